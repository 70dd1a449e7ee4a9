"""What a study sets for all arms holds for all of them or is refused; `--arms` chooses every arm, whatever its name."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from lnl.cli import flags as cli_flags
from lnl.cli import main
from lnl.study.parts import Panel, Preset
from lnl.study.plan import Plan
from lnl.study.study import Study
from lnl.training.task import Noise
from lnl.trial.config import Trial

BASE = Trial(
    method={"name": "robmix", "lambda_mixmatch": 3.0, "batch_size": 24},
    dataset="digits",
    network="small_convnet",
    labels=50,
    noise=Noise("symmetric", 0.4),
)


def declare(arms: dict[str, Any], shared: dict[str, Any] | None = None, **preset: Any) -> Study:
    presets = {"small": Preset(**preset)}
    return Study(name="shared", question="?", base=BASE, shared=shared or {}, arms=arms, replicates=1, presets=presets)


def methods_of(plan: Plan) -> dict[str, Any]:
    return {planned.arm: planned.trial.method for planned in plan.trials}


ARMS = {
    "own": {},
    "other": {"method": "supervised"},
    "says": {"method": "supervised", "method.batch_size": 8, "method.optimizer.learning_rate": 0.5},
    "whole": {"method": {"name": "mixup", "batch_size": 4}},
    "optimizer": {"method": "gce", "method.optimizer": {"kind": "sgd", "momentum": 0.5}},
}


@pytest.mark.parametrize("by", ["study", "preset", "flag"])
def test_a_field_set_for_all_arms_holds_for_every_method_that_has_it(by: str) -> None:
    """Not for an arm that sets it itself, alone, within a larger field or in an object of its method."""
    shared = {"method.batch_size": 16, "method.optimizer.learning_rate": 0.25, "method.optimizer.average": 0.5}
    study = declare(ARMS, shared if by == "study" else {}, base=shared if by == "preset" else {})
    found = methods_of(study.plan("small", changes=shared if by == "flag" else None))
    assert {arm: method.batch_size for arm, method in found.items()} == {
        "own": 16, "other": 16, "says": 8, "whole": 4, "optimizer": 16,
    }  # fmt: skip
    rates = {arm: method.optimizer.learning_rate for arm, method in found.items()}
    default = methods_of(declare(ARMS).plan())["optimizer"].optimizer.learning_rate
    assert rates == {"own": 0.25, "other": 0.25, "says": 0.5, "whole": 0.25, "optimizer": default}
    assert found["other"].optimizer.average == 0.5 and found["optimizer"].optimizer.average != 0.5


def test_what_a_study_shares_comes_before_its_preset_and_a_flag() -> None:
    optimizer = {"kind": "sgd", "learning_rate": 0.25, "average": 0.25}
    study = declare(
        {"own": {}, "other": {"method": "supervised"}},
        {"method.batch_size": 8, "method.optimizer": optimizer},
        base={"method.batch_size": 16, "method.optimizer.average": 0.5},
    )
    for plan, size, average in (
        (study.plan(), 8, 0.25),
        (study.plan("small"), 16, 0.5),
        (study.plan("small", changes={"method.batch_size": 32}), 32, 0.5),
    ):
        for method in methods_of(plan).values():
            assert (method.batch_size, method.optimizer.kind, method.optimizer.learning_rate) == (size, "sgd", 0.25)
            assert method.optimizer.average == average


@pytest.mark.parametrize("by", ["study", "preset", "flag"])
def test_a_method_without_the_field_is_left_as_it_is(by: str) -> None:
    """Also where it is the base's own method."""
    changes = {"method.q": 0.5, "method.batch_size": 8}
    arms = {"base": {}, "gce": {"method": "gce"}, "propagation": {"method": "label_propagation"}}
    study = declare(arms, changes if by == "study" else {}, base=changes if by == "preset" else {})
    found = methods_of(study.plan("small", changes=changes if by == "flag" else None))
    assert found["base"] == BASE.override({"method.batch_size": 8}).method
    assert (found["gce"].q, found["gce"].batch_size) == (0.5, 8)
    assert found["propagation"] == Trial(method="label_propagation").method


@pytest.mark.parametrize(
    ("arms", "named"),
    [(None, "the arms gce and propagation are"), ("base,propagation", "the arm propagation is"), ("base", "")],
)
def test_a_plan_names_the_chosen_arms_whose_method_lacks_a_field(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, arms: str | None, named: str
) -> None:
    study = declare({"base": {}, "gce": {"method": "gce"}, "propagation": {"method": "label_propagation"}})
    monkeypatch.setattr("sys.argv", ["shared.py", "--plan", "--storage", str(tmp_path), "--set", "method.lambda_u=5"])
    sys.argv += ["--set", "method.ramp=1", "--set", "method.batch_size=64", *(["--arms", arms] if arms else [])]
    with pytest.raises(SystemExit):
        study.main()
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Not every method")]
    if not named:
        assert not told
    elif arms:
        fields = "method.lambda_u, method.ramp and method.batch_size"
        assert told == [f"Not every method has {fields}: {named} left as it is."]
    else:
        assert told[0] == f"Not every method has method.lambda_u and method.ramp: {named} left as they are."
        assert told[1:] == ["Not every method has method.batch_size: the arm propagation is left as it is."]


def test_only_fields_of_the_method_are_shared() -> None:
    with pytest.raises(ValueError, match=r"'epochs' is no field of the method.*set it in the base"):
        declare({"own": {}}, {"epochs": 3})


def test_a_change_of_the_base_moves_the_id_of_every_arm_that_does_not_set_it() -> None:
    before, after = (
        {planned.arm: planned.id for planned in declare(ARMS).plan(changes=changes).trials}
        for changes in ({}, {"method.batch_size": 16})
    )
    assert {arm for arm in ARMS if before[arm] == after[arm]} == {"says", "whole"}


def test_fields_of_the_base_trials_own_method_stay_with_that_method() -> None:
    """So that a field which no other method has makes no study impossible."""
    found = methods_of(declare(ARMS).plan())
    assert (found["own"].lambda_mixmatch, found["own"].batch_size) == (3.0, 24)
    assert found["other"] == Trial(method="supervised").method
    study = declare(ARMS, base={"method": {"name": "robmix", "lambda_mixmatch": 5.0}, "method.batch_size": 16})
    found = methods_of(study.plan("small"))
    assert (found["own"].lambda_mixmatch, found["own"].batch_size, found["other"].batch_size) == (5.0, 16, 16)


def test_a_factor_that_changes_the_method_keeps_what_is_set_for_all() -> None:
    study = Study(name="x", question="?", base=BASE, arms={"a": {}}, factors={"method": ["robmix", "mixmatch"]})
    plan = study.plan(changes={"method.batch_size": 16}, replicates=1)
    assert {p.trial.method_name: p.trial.method.batch_size for p in plan.trials} == {"robmix": 16, "mixmatch": 16}


@pytest.mark.parametrize(
    ("arms", "changes", "sentence"),
    [
        ({"other": {"method": "supervised"}}, {"method.lambda_u": 5}, "Unknown key 'method.lambda_u': there are aug"),
        ({"other": {"method": "label_propagation"}}, {"method.optimizer.average": 0.5}, "'method.optimizer.average'"),
        ({"own": {}, "other": {"method": "gce"}}, {"method.lamda_u": 5}, "did you mean 'method.lambda_u'?"),
        (
            {"other": {"method": "gce"}},
            {"method.augmentation": "bold"},
            "method.augmentation: Input should be",
        ),
        ({"a": {"method": "supervised", "method.lamda": 1}}, {}, "Arm 'a': Unknown key 'method.lamda'"),
    ],
)
def test_what_no_arm_can_keep_is_refused_by_name(arms: dict[str, Any], changes: dict[str, Any], sentence: str) -> None:
    base = BASE.override({"method": "robmix"}) if "method.augmentation" not in changes else Trial(method="supervised")
    study = Study(name="x", question="?", base=base, arms=arms, presets={"small": Preset(base=changes)})
    for call in ({"preset": "small"}, {"changes": changes}) if changes else ({},):
        with pytest.raises(ValueError) as refusal:
            study.plan(**call)
        text = str(refusal.value)
        assert sentence in text and "\n" not in text and text[-1] in ".?", text


def test_what_is_asked_for_must_be_a_field_of_an_arm_that_is_to_run() -> None:
    study = declare({"own": {}, "other": {"method": "supervised"}}, base={"method.lambda_u": 3})
    for chosen in ({}, {"arms": ["own"]}, {"method": "robmix"}):
        plan = study.plan(changes={"method.lambda_u": 5}, **chosen)
        assert methods_of(plan)["own"].lambda_u == 5
    with pytest.raises(ValueError, match=r"No arm that is to be run is of a method with the field 'method.lambda_u'"):
        study.plan(changes={"method.lambda_u": 5}, arms=["other"])
    assert study.plan("small", arms=["other"]), "what the declaration sets for others is no mistake"


def test_an_arm_of_no_chosen_panel_is_not_asked() -> None:
    study = Study(
        name="x",
        question="?",
        base=BASE,
        arms={"own": {}, "other": {"method": "supervised"}},
        panels={"p": Panel("", ("own",)), "q": Panel("", ("other",))},
        presets={"small": Preset(base={"method.lambda_u": 5}, panels=("p",))},
    )
    assert list(methods_of(study.plan("small"))) == ["own"]


def test_an_override_leaves_what_it_was_given_as_it_was() -> None:
    """One dictionary may stand in several arms and presets."""
    optimizer = {"kind": "sgd", "learning_rate": 0.5}
    BASE.override({"method.optimizer": optimizer, "method.optimizer.learning_rate": 0.1})
    assert optimizer == {"kind": "sgd", "learning_rate": 0.5}


# ------------------------------------------------------------------------------------------------------- --arms

NAMES = ["plain", "a,b", "a", "c, d", "two words", "-dash", "--json", "ünï/..\\$", "b"]
FILE = """from lnl import Study, Trial
BASE = Trial(method="supervised", dataset="digits", network="small_convnet", labels=50)
Study(
    name="odd", question="?", base=BASE, replicates=1,
    arms={name: {"epochs": 10 + place} for place, name in enumerate(NAMES)},
).main()
"""


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        *(([f"--arms={name}"], {name}) for name in NAMES),
        (["--arms", "plain,b"], {"plain", "b"}),
        (["--arms", "plain,a,b"], {"plain", "a,b"}),
        (["--arms", "a", "--arms", "b"], {"a", "b"}),
        (["--arms=-dash,c, d,two words"], {"-dash", "c, d", "two words"}),
    ],
)
def test_every_arm_can_be_chosen(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    expected: set[str],
) -> None:
    (tmp_path / "odd.py").write_text(f"NAMES = {NAMES!r}\n{FILE}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main.main(["plan", "odd.py", "--json", *flags]) == cli_flags.COMPLETE
    assert {trial["arm"] for trial in json.loads(capsys.readouterr().out)["trials"]} == expected
