"""A method that lies outside of the package: its name, its configuration, its code and its training."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from lnl import Noise, Trial, methods, run, trainable
from lnl.cli.main import main
from lnl.system import user_code
from lnl.trial import code_hash
from lnl.trial.config import parse
from lnl.trial.provenance import Current

METHOD = '''
"""Label smoothing: part of each label is shared out."""

from __future__ import annotations

from typing import Annotated

import torch
from helper import smoothed
from pydantic import Field

from lnl.functional import losses, targets
from lnl.settings import Settings
from lnl.space import Space, Uniform
from lnl.training.learner import Learner, Optimizer
from lnl.training.task import order

USES = ("labels",)


class Config(Settings):
    batch_size: Annotated[int, Field(ge=2)] = 16
    smoothing: Annotated[float, Field(ge=0, le=1)] = 0.1
    """share that all classes divide"""
    optimizer: Optimizer = Optimizer(kind="sgd", learning_rate=0.03)


SEARCH: dict[str, Space] = {"method.smoothing": Uniform(0.0, 0.9)}


class Method:
    def __init__(self, config, task, network, streams) -> None:
        self.config, self.task, self.streams = config, task, streams
        self.steps = task.steps_per_epoch(config.batch_size)
        self.learner = Learner.classifier(network, config.optimizer, self.steps * task.epochs, task.classes)

    def train_epoch(self, epoch):
        batch_losses = []
        for index in order(self.task.labelled, self.config.batch_size, self.steps, self.streams["order"]):
            images = self.task.view(index, "weak", self.streams["augment"])
            labels = targets.one_hot(self.task.labels[index], self.task.classes)
            batch_losses.append(self.learner.step(self.objective, (images, labels)))
        return {"loss": torch.stack(batch_losses).mean()}

    def objective(self, network, batch):
        images, labels = batch
        return losses.soft_cross_entropy(network(images), smoothed(labels, self.config.smoothing)).mean()

    def predict(self, images):
        return self.learner.logits(images).softmax(dim=-1)

    def features(self, images):
        return self.learner.features(images)
'''
HELPER = "def smoothed(labels, share):\n    return (1 - share) * labels + share / labels.shape[-1]\n"
NETWORK = """
from torch import nn

class Flat(nn.Module):
    def __init__(self, inputs, width):
        super().__init__()
        self.layer, self.width = nn.Linear(inputs, width), width

    def forward(self, images):
        return self.layer(images.flatten(1))

def narrow(channels, size):
    return Flat(channels * size**2, 8)

def wide(channels, size):
    return Flat(channels * size**2, 16)

def widthless(channels, size):
    return nn.Identity()

def failing(channels, size):
    return Flat(channels * size**2, None)

def of_vectors(length):
    return Flat(length, 8)
"""


@pytest.fixture(autouse=True)
def folder(own_folder: Path) -> Path:
    write(own_folder / "mine.py", METHOD)
    write(own_folder / "helper.py", HELPER)
    write(own_folder / "net.py", NETWORK)
    return own_folder


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text), encoding="utf-8")


def small(method: object = "mine.py", **fields: object) -> Trial:
    plain = {"dataset": "digits", "network": "small_convnet", "labels": 50, "epochs": 2, "steps": 3}
    return parse({"method": method, **plain, **fields})


def test_a_file_is_a_method_by_its_name(folder: Path) -> None:
    trial = small({"name": "./mine.py", "smoothing": 0.3})
    assert trial.method_name == "mine.py"
    assert trial.method.model_dump()["smoothing"] == 0.3
    assert trial.identity()["method"] == {"name": "mine.py", "smoothing": 0.3}
    assert small(str(folder / "mine.py")).id == small("mine.py").id
    assert parse(trial.model_dump(mode="json")) == trial == small("mine.py").override({"method.smoothing": 0.3})
    assert small("gce").override({"method": "mine.py"}) == small()


def test_it_trains_by_its_own_fields() -> None:
    metrics = [[row.metrics for row in run(small({"name": "mine.py", "smoothing": share}))] for share in (0.0, 0.5)]
    assert len(metrics[0]) == 2 and metrics[0] != metrics[1]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('USES = ("labels",)', "", "mine.py is no method, because it defines no USES: a method has .* writes."),
        ('("labels",)', '("label",)', "mine.py: USES must be a tuple of some of labels, .*, not .*label.*"),
        ("class Config(Settings)", "class Config", "mine.py: Config must be a class of `lnl.settings.Settings`."),
        ("] = 0.1", "]", "mine.py: every field of Config needs a valid default, and 'smoothing' has none."),
        ("from helper", "from nowhere", "mine.py cannot be loaded .ModuleNotFoundError: .*; mine.py, line 9.*"),
    ],
)
def test_a_file_that_is_no_method_is_refused_in_one_sentence(old: str, new: str, sentence: str, folder: Path) -> None:
    write(folder / "mine.py", METHOD.replace(old, new))
    with pytest.raises(ValueError, match=f"{sentence}$"):
        small()


def test_unknown_names_and_fields_are_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"^method: there is no file 'other.py' in \S+\.$"):
        small("other.py")
    with pytest.raises(ValueError, match=r"^Unknown key 'method.smooth': did you mean 'method.smoothing'"):
        small({"name": "mine.py", "smooth": 0.3})
    with pytest.raises(ValueError, match=r"there is no method 'mine': .* or give a file, such as my.py.$"):
        small("mine")
    user_code.load("mine.py")
    with pytest.raises(ValueError, match=r"a method of your own is given by its file: {'name'"):
        Trial(method=user_code.load("mine.py:Config")())  # type: ignore[operator]


def test_an_edit_makes_its_own_trials_stale_and_nobody_elses(folder: Path) -> None:
    def hashes(helper: str = HELPER, method: str = METHOD, network: str = NETWORK) -> dict[str, str]:
        changed = {"helper": helper, "mine": method, "net": network}
        codes = [
            user_code.UserCode(
                code.place,
                code.module,
                {name: source._replace(text=changed[name].encode()) for name, source in code.sources.items()},
            )
            for code in map(user_code.read, ("mine.py", "net.py"))
        ]
        tree = code_hash.Tree(code_hash.SOURCES, codes)
        own = [f"mine.{entry}" for entry in code_hash.ENTRIES]
        return {
            "mine": tree.hash(None, own),
            "mine on narrow": tree.hash(None, [*own, "net.narrow"]),
            "gce on wide": tree.hash("gce", ["net.wide"]),
            "gce": tree.hash("gce"),
        }

    before = hashes()

    def stale(**texts: str) -> set[str]:
        return {name for name, now in hashes(**texts).items() if now != before[name]}

    assert before["gce"] == code_hash.code_hash("gce") == code_hash.code_hash("gce", "small_convnet")
    assert before["mine"] == code_hash.code_hash("mine.py", "small_convnet")
    assert before["mine on narrow"] == Current().sources(small(network="net.py:narrow")).code_hash
    assert len(set(before.values())) == 4
    assert stale(helper=HELPER.replace("1 - share", "0.9 - share")) == {"mine", "mine on narrow"}
    assert stale(method=METHOD.replace('"weak"', '"strong"')) == {"mine", "mine on narrow"}
    assert stale(network=NETWORK.replace("**2, 8)", "**2, 9)")) == {"mine on narrow"}
    assert stale(network=NETWORK.replace("images.flatten", "2 * images.flatten")) == {"mine on narrow", "gce on wide"}
    assert stale(method=METHOD.replace("Uniform(0.0, 0.9)", "Uniform(0.0, 0.5)"), helper=f"# why\n{HELPER}") == set()


def test_an_installed_package_announces_a_method(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder / "site/theirs/__init__.py", "")
    write(folder / "site/theirs/smoothing.py", METHOD.replace("from helper", "from theirs.helper"))
    write(folder / "site/theirs/helper.py", HELPER)
    write(folder / "site/theirs-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    write(
        folder / "site/theirs-1.0.dist-info/entry_points.txt",
        "[lnl.methods]\nsmooth = theirs.smoothing\ngce = theirs.smoothing\n",
    )
    monkeypatch.syspath_prepend(str(folder / "site"))
    assert methods.installed() == ["smooth"]  # the package's own `gce` stays what it is
    trial = small({"name": "smooth", "smoothing": 0.3})
    assert trial.method_name == "smooth" and methods.reference("smooth") == "theirs.smoothing"
    assert code_hash.code_hash("smooth") == code_hash.code_hash("theirs.smoothing") != code_hash.code_hash("gce")
    assert set(user_code.read("theirs.smoothing").sources) == {"theirs", "theirs.smoothing", "theirs.helper"}
    assert small("theirs.smoothing").method_name == "theirs.smoothing"
    assert [row.epoch for row in run(trial)] == [1, 2]


def test_a_network_of_ones_own_trains(folder: Path) -> None:
    (first, _) = run(small("supervised", network="./net.py:narrow"))
    assert first.facts["parameters"] == 64 * 8 + 8 + 8 * 10 + 10
    assert small(network="net.py:narrow").id != small(network="net.py:wide").id
    (folder / "one.py").write_text(
        "from net import wide\n\ndef only(channels, size):\n    return wide(channels, size)\n"
    )
    (first, _) = run(small("supervised", network="one.py"))
    assert first.facts["parameters"] == 64 * 16 + 16 + 16 * 10 + 10


def test_tune_names_no_folder_by_the_path_of_a_file(folder: Path) -> None:
    """Its results would lie in a folder of that path, or beside the file."""
    for name in ("./mine.py", str(folder / "mine.py")):
        assert "/" not in trainable(name, dataset="digits").__name__
    assert trainable("mixmatch").__name__ == "mixmatch"


def test_a_method_and_a_network_of_ones_own_train_on_vectors() -> None:
    (first, second) = run(small(dataset="digits_vectors", network="net.py:of_vectors"))
    assert first.facts["parameters"] == 64 * 8 + 8 + 8 * 10 + 10
    assert (first.epoch, second.epoch) == (1, 2) and second.metrics["test", "accuracy"] > 0
    for trial, sentence in (
        (small(network="net.py:of_vectors"), "net.py:of_vectors takes vectors, and the data set has images"),
        (small(dataset="digits_vectors", network="net.py:wide"), "net.py:wide takes images, and the data set has vec"),
    ):
        with pytest.raises(ValueError, match=sentence):
            list(run(trial))


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        ("net.py", "network: net.py must define one function .*, as in 'net.py:narrow': it defines narrow, wide, .*"),
        ("net.py:thin", "network: net.py has no 'thin': it defines Flat, narrow, wide, widthless, failing, of_vectors"),
        ("net.py:widthless", "net.py:widthless must return a torch.nn.Module .* with its `width` .*, not Identity"),
        ("net.py:failing", "net.py:failing builds no network for images of 1 × 8 × 8 .TypeError: .*"),
        ("nowhere.py", r"network: there is no file 'nowhere.py' in \S+"),
    ],
)
def test_what_is_no_network_is_refused_in_one_sentence(network: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=rf"^{sentence}\.$"):
        list(run(small("supervised", network=network, noise=Noise("symmetric", 0.4))))


def test_lnl_methods_shows_the_switches_of_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "mine.py"]) == 0
    shown = capsys.readouterr().out
    for part in ("Label smoothing: part of", "method.smoothing", "0 … 0.9", "share that all classes divide"):
        assert part in shown
