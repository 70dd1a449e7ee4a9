"""A trial's id names its results: whoever continues a study of last year must find the ones of last year.

A plan's record is what a report of last year's results starts from.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from pathlib import Path

import pytest

from lnl.cli.studies import find_study
from lnl.study.plan import Plan

REPOSITORY = Path(__file__).parents[2]
RECORDED = Path(__file__).parents[1] / "golden" / "trial_ids.json"
STUDIES = sorted(path.stem for path in REPOSITORY.glob("studies/*.py"))

Digests = dict[str, dict[str, str]]


def digests(study: str) -> Digests:
    """Preset -> arm -> number and digest of its trials (setting, replicate, id) and of its searches (name)."""
    declared = find_study(study)
    found = {}
    for preset in (None, *declared.presets):
        plan = declared.plan(preset)
        lines: dict[str, list[str]] = defaultdict(list)
        for planned in plan.trials:
            lines[planned.arm].append(f"{planned.setting} {planned.trial.replicate} {planned.id}")
        for cell in plan.cells:
            lines[cell.arm].append(f"{cell.setting} {cell.name}")
        lines["the record"] = [record_text(plan)]
        found[preset or "no preset"] = {arm: digest(lines[arm]) for arm in sorted(lines)}
    return found


def record_text(plan: Plan) -> str:
    """The record as the store keeps it, without the base, in which every new field of a method would stand."""
    record = plan.record.as_json()
    return json.dumps({name: value for name, value in record.items() if name not in ("base", "method_changes")})


def digest(lines: list[str]) -> str:
    """Their number, and a hash in which their order does not count."""
    text = "\n".join(sorted(lines))
    return f"{len(lines)} {hashlib.sha256(text.encode()).hexdigest()[:12]}"


@pytest.mark.parametrize("study", STUDIES)
def test_trials_of_every_preset_keep_their_ids(study: str, request: pytest.FixtureRequest) -> None:
    """After a change that is meant, `pytest tests/study/test_trial_ids.py --update-golden` records the new ids."""
    recorded: dict[str, Digests] = json.loads(RECORDED.read_text(encoding="utf-8"))
    planned = digests(study)
    if request.config.getoption("--update-golden"):
        recorded = {name: recorded[name] for name in recorded.keys() & set(STUDIES)} | {study: planned}
        RECORDED.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    assert study in recorded, "run `pytest tests/study/test_trial_ids.py --update-golden` and commit the file"
    assert planned.keys() == recorded[study].keys()
    for preset, arms in planned.items():
        changed = sorted(arms.items() ^ recorded[study][preset].items())
        assert not changed, f"{study} --preset {preset}: the stored results of these arms would not be found"


def test_every_recorded_study_is_there() -> None:
    assert json.loads(RECORDED.read_text(encoding="utf-8")).keys() == set(STUDIES)
