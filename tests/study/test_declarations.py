"""A contrast that was declared, or changed, after its trials had ended is told wherever its verdict stands."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.results import read_results
from analysis.verdicts import declarations
from lnl.cli import flags, main
from lnl.storage.store import Store
from lnl.study.parts import Contrast
from lnl.study.plan import plan_row
from lnl.study.study import Study
from lnl.trial.config import Trial

START = datetime(2026, 5, 1, 12, tzinfo=UTC)
BASE = Trial(method="supervised", dataset="digits", network="small_convnet", labels=50, epochs=2, steps=3)


def hours(count: float) -> datetime:
    return START + timedelta(hours=count)


def declare(effect: float = 0.01, names: tuple[str, str] = ("plain", "strong"), **contrast: Any) -> Study:
    plain, strong = names
    return Study(
        name="late",
        question="?",
        base=BASE,
        arms={plain: {}, strong: {"method.augmentation": "strong"}},
        replicates=4,
        contrasts=[Contrast(strong, against=plain, smallest_effect=effect, **contrast)],
    )


def submit(store: Store, study: Study, at: float) -> None:
    store.write_plan({**plan_row(study.plan(), None), "submitted_at": hours(at)})


def finish(store: Store, study: Study, at: float, count: int | None = None) -> None:
    """The plan's first trials, one a minute."""
    for place, planned in enumerate(study.plan().trials[:count]):
        trial = {"trial": planned.id, "arm": planned.arm, "setting": "{}", "replicate": planned.trial.replicate}
        if store.attempt_path("trials", study.name, planned.id, 1).exists():
            continue
        what = {"attempt": 1, "preset": "base", "status": "ok", "accuracy_last": 0.5 + 0.01 * place}
        store.write_attempt(study.name, {**trial, **what, "ended_at": hours(at) + timedelta(minutes=place)}, [])


def told(root: Path) -> tuple[int, int]:
    row = read_results(root, "late").contrasts().iloc[0]
    return row["declared_after"], row["declared_of"]


@pytest.mark.slow
def test_a_contrast_declared_before_its_trials_is_not_late(tmp_path: Path) -> None:
    store = Store(tmp_path)
    submit(store, declare(), 0)
    finish(store, declare(), 1)
    submit(store, declare(), 2)  # a second run of the same plan
    assert told(tmp_path) == (0, 8)
    assert read_results(tmp_path, "late").contrasts()["declared_at"][0] == pd.Timestamp(hours(0)), (
        "the first submission counts"
    )


@pytest.mark.parametrize("changed", [{"effect": 0.5}, {"direction": "helps"}])
def test_a_changed_contrast_is_as_new_as_its_change(tmp_path: Path, changed: dict[str, Any]) -> None:
    store = Store(tmp_path)
    submit(store, declare(), 0)
    finish(store, declare(), 1, count=3)
    submit(store, declare(**changed), 2)
    finish(store, declare(), 3)
    assert told(tmp_path) == (3, 8)
    submit(store, declare(), 4)  # and back: that one had been declared before any trial
    assert told(tmp_path) == (0, 8)


def test_a_renamed_arm_is_the_same_arm_and_another_configuration_under_its_name_is_not(tmp_path: Path) -> None:
    store = Store(tmp_path)
    submit(store, declare(), 0)
    finish(store, declare(), 1)
    submit(store, declare(names=("reference", "augmented")), 2)
    assert told(tmp_path) == (0, 8)
    swapped = declare(names=("strong", "plain"))  # "plain against strong" of the old names, the other way round
    submit(store, swapped, 3)
    assert told(tmp_path) == (0, 8), "the pair of configurations is what it was"
    turned = swapped.model_copy(update={"contrasts": [Contrast("strong", against="plain", smallest_effect=0.01)]})
    submit(store, turned, 4)
    assert told(tmp_path) == (8, 8)


def test_the_first_outcome_counts_and_not_a_later_attempt(tmp_path: Path) -> None:
    store = Store(tmp_path)
    submit(store, declare(), 0)
    finish(store, declare(), 1)
    submit(store, declare(effect=0.5), 2)
    trial = declare().plan().trials[0]
    again = {"trial": trial.id, "attempt": 2, "status": "ok", "preset": "base", "accuracy_last": 0.5}
    store.write_attempt("late", {**again, "ended_at": hours(3)}, [])
    assert told(tmp_path) == (8, 8)


def test_more_replicates_leave_the_declaration_where_it_was(tmp_path: Path) -> None:
    store = Store(tmp_path)
    submit(store, declare(), 0)
    finish(store, declare(), 1)
    more = declare().model_copy(update={"replicates": 6})
    submit(store, more, 2)
    assert told(tmp_path) == (0, 12)


def test_a_plan_of_an_older_version_was_submitted_when_it_says(tmp_path: Path) -> None:
    """Its file has no time of the first submission."""
    record = declare().plan().record
    about = {"study": record.study, "plan": json.dumps(record.as_json()), "first_submitted_at": hours(2)}
    ended = {planned.trial: hours(1) for planned in record.trials[:5]}
    found = declarations(record, record.contrasts, pd.DataFrame([about]), ended)
    assert found[["declared_after", "declared_of"]].iloc[0].tolist() == [5, 8]


def test_status_and_the_end_of_a_run_tell_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also before the changed contrast was submitted at all: a look at results does not submit it."""
    monkeypatch.chdir(tmp_path)
    store = Store(tmp_path / "results")
    submit(store, declare(), 0)
    finish(store, declare(), 1)
    file = """from lnl import Contrast, Study, Trial
base = Trial(method="supervised", dataset="digits", network="small_convnet", labels=50, epochs=2, steps=3)
Study(
    name="late", question="?", base=base, arms={"plain": {}, "strong": {"method.augmentation": "strong"}}, replicates=4,
    contrasts=[Contrast("strong", against="plain", smallest_effect=EFFECT)],
).main()
"""
    for effect, late in (("0.01", 0), ("0.5", 8)):
        (tmp_path / "late.py").write_text(file.replace("EFFECT", effect), encoding="utf-8")
        main.main(["status", "late.py"])
        assert ("declared after 8 of 8 trials had ended" in capsys.readouterr().out) == bool(late)
        main.main(["status", "late.py", "--json"])
        (row,) = json.loads(capsys.readouterr().out)["contrasts"]
        assert (row["declared_after"], row["declared_of"]) == (late, 8)
        assert row["declared_at"] == (None if late else hours(0).isoformat())


# --------------------------------------------------------------------------------------------------------- renamed arms


@pytest.mark.slow
def test_every_command_calls_a_renamed_arm_by_its_new_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its trials are what they were, and their rows keep the old name."""
    monkeypatch.chdir(tmp_path)
    store = Store(tmp_path / "results")
    old, new = declare(), declare(names=("reference", "augmented"))
    submit(store, old, 0)
    finish(store, old, 1, count=6)
    for planned in old.plan().trials[6:]:
        failed = {"trial": planned.id, "arm": planned.arm, "setting": "{}", "replicate": planned.trial.replicate}
        failed |= {
            "attempt": 1,
            "preset": "base",
            "status": "failed",
            "failure_class": "oom",
            "failure_message": "full",
        }
        store.write_attempt("late", {**failed, "started_at": hours(1), "ended_at": hours(2)}, [])
    submit(store, new, 2)
    (tmp_path / "late.py").write_text(
        """from lnl import Contrast, Study, Trial
base = Trial(method="supervised", dataset="digits", network="small_convnet", labels=50, epochs=2, steps=3)
Study(
    name="late", question="?", base=base, replicates=4,
    arms={"reference": {}, "augmented": {"method.augmentation": "strong"}},
    contrasts=[Contrast("augmented", against="reference", smallest_effect=0.01)],
).main()
""",
        encoding="utf-8",
    )
    for command in (["plan", "late.py"], ["status", "late.py"], ["ledger", "late"], ["logs", "late"]):
        main.main(command)
        text = capsys.readouterr().out
        assert "augmented" in text and "strong" not in text and "plain" not in text, text
    assert main.main(["logs", "late", "--arm", "augmented"]) == flags.COMPLETE
    assert main.main(["logs", "late", "--arm", "strong"]) == flags.USAGE
    capsys.readouterr()
    assert set(read_results(tmp_path / "results", "late").contrasts()["arm"]) == {"augmented"}


@pytest.mark.parametrize("store", ["earlier/store", "results"])
def test_of_what_an_earlier_version_has_stored_nothing_is_claimed(store: str) -> None:
    """It kept only the last time at which a plan was submitted, which may be that of a run that trained nothing."""
    name, preset = {"earlier/store": ("earlier", "base"), "results": ("robmix_ablation", "digits")}[store]
    contrasts = read_results(Path(__file__).parents[1] / "fixture" / store, name, preset).contrasts()
    assert len(contrasts) and (contrasts["declared_after"] == 0).all() and contrasts["declared_at"].isna().all()
