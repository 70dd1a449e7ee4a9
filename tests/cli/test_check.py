"""`lnl check`: a line for each clause of the contract, each of which can be broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from lnl.cli.main import main
from lnl.trial import contract
from tests.methods.test_own_methods import HELPER, METHOD, NETWORK

VIEW = "            images = self.task.view("
BROKEN = {  # a passage of the method's file, what stands there instead, the clause and the sentence
    "logits": (".softmax(dim=-1)", "", "rows sum to 1", "must return probabilities of the classes"),
    "no loss": ('"loss"', '"cost"', "rows sum to 1", "`loss` among them"),
    "a gradient": ("(batch_losses).mean()", "(batch_losses).mean().requires_grad_()", "rows sum to 1", "detached"),
    "chance of its own": (
        VIEW,
        f"            index = index.roll(torch.seed() % 7)[:9]\n{VIEW}",
        "same seed",
        "streams",
    ),
    "state out of sight": (
        VIEW,
        f"            self.seen = getattr(self, 'seen', 0) + 1\n            index = index[: 9 + self.seen]\n{VIEW}",
        "interrupted and resumed",
        "interrupted after epoch 1 and resumed, it ends otherwise",
    ),
    "predictions that draw": (
        "        return self.learner.logits",
        "        torch.rand((), generator=self.streams['order'])\n        return self.learner.logits",
        "predicting changes no training",
        "predict in inference mode and draw nothing",
    ),
    "a field without use": (
        "class Config(Settings):",
        "class Config(Settings):\n    unused: float = 0.5",
        "every field",
        "`unused` = 0.25 changes nothing: use the field, or delete it",
    ),
    "a range without the default": ("Uniform(0.0, 0.9)", "Uniform(0.5, 0.9)", "SEARCH", "not hold the default 0.1"),
    "a range of no field": ('"method.smoothing":', '"method.smooth":', "SEARCH", "'method.smooth' is not a field"),
    "a look at the truth": (
        "            labels = targets.one_hot(self.task.labels[index]",
        "            import sys\n"
        "            frame = sys._getframe()\n"
        "            while 'truth' not in frame.f_locals:\n"
        "                frame = frame.f_back\n"
        "            labels = targets.one_hot(frame.f_locals['truth'].labels[index]",
        "true labels and the test set",
        "learn from what the Task holds alone",
    ),
    "true labels in hand": (
        "    def train_epoch(self, epoch):",
        "    def train_epoch(self, epoch):\n        import sys\n        frame = sys._getframe()\n"
        "        while 'truth' not in frame.f_locals:\n            frame = frame.f_back\n"
        "        self.known = {'answers': [frame.f_locals['truth'].labels[self.task.labelled]]}",
        "out of reach",
        "holds the true labels",
    ),
    "beliefs of another shape": (
        "    def features",
        "    def beliefs(self):\n        from lnl.training.task import Beliefs\n"
        "        return Beliefs(clean=torch.ones(3))\n\n    def features",
        "beliefs",
        r"`clean` must have the shape \(…, 50\), not \(3,\)",
    ),
    "hidden divergence": (
        "        batch_losses = []",
        "        batch_losses = []\n        if self.config.optimizer.learning_rate > 1e20:\n"
        "            return {'loss': torch.ones(()), 'norm': torch.full((), torch.nan)}",
        "divergence",
        "train/norm is no number",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_each_clause_can_be_broken(name: str, own_folder: Path) -> None:
    old, new, says, sentence = BROKEN[name]
    assert METHOD.count(old) == 1
    write(own_folder, METHOD.replace(old, new))
    (check,) = [check for check in contract.METHOD_CHECKS if says in check.says]
    with pytest.raises(contract.Broken, match=sentence):
        check.of("mine.py")


@pytest.mark.slow
def test_a_field_that_matters_beside_another_one_says_so(own_folder: Path) -> None:
    (check,) = [check for check in contract.METHOD_CHECKS if check.of is contract.every_field_changes_training]
    conditional = METHOD.replace("class Config(Settings):", "class Config(Settings):\n    on: bool = False").replace(
        "self.config.smoothing)", "self.config.smoothing if self.config.on else 0.5)"
    )
    late = METHOD.replace("self.config.smoothing)", "self.config.smoothing if self.task.epochs > 2 else 0.5)")
    write(own_folder, conditional)
    assert "`smoothing` = 0.05 changes nothing" in contract.broken("mine.py", check)
    for suffix, text in (
        ("where", f'{conditional}\nWHERE = {{"smoothing": {{"on": True}}}}\n'),
        ("late", f'{late}\nWHERE = {{"smoothing": {{"epochs": 3}}}}\n'),
        ("when", conditional.replace("Uniform(0.0, 0.9)", 'Uniform(0.0, 0.9, when={"method.on": (True,)})')),
    ):
        (own_folder / f"mine_{suffix}.py").write_text(text, encoding="utf-8")
        assert contract.broken(f"mine_{suffix}.py", check) == ""


@pytest.mark.slow
def test_a_line_for_each_clause(own_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(own_folder, METHOD)
    assert main(["check", "mine.py"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        *(f"ok      {check.says}" for check in contract.METHOD_CHECKS),
        "mine.py is a method for every study.",
    ]
    assert main(["check", "net.py:narrow"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "net.py:narrow is a network for every study."
    (own_folder / "bad.py").write_text(METHOD.replace(".softmax(dim=-1)", ""), encoding="utf-8")
    assert main(["check", "bad.py"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ok      SEARCH names fields") and lines[1].startswith("failed  predictions are")
    assert lines[-1].startswith("bad.py breaks ")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("gce", "'gce' is a method of the package itself, whose tests check it: give a file."),
        ("gcee", "there is no method 'gcee': did you mean 'gce'?"),
        ("nothing.py", "there is no file 'nothing.py' in "),
        ("helper.py:nothing", "helper.py has no 'nothing': it defines smoothed."),
        ("net.py", "net.py must define one function (channels, size) -> backbone, or the name says which, as in"),
    ],
)
def test_what_cannot_be_checked(name: str, sentence: str, own_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(own_folder, METHOD)
    assert main(["check", name]) == 2
    assert capsys.readouterr().err.startswith(f"error: {sentence}")


def write(folder: Path, method: str) -> None:
    for name, text in (("mine", method), ("helper", HELPER), ("net", NETWORK)):
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
