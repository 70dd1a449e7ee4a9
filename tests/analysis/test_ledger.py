"""What a study cost, from hand-made attempts and runs whose hours are known."""

from __future__ import annotations

import json
import sys
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.cost import ATTEMPT_KINDS, Ledger, read_ledger
from analysis.figures.cost import cost_figure
from analysis.results import LoadError
from lnl.cli.main import main
from lnl.storage import part_names, schema, tables
from lnl.storage.store import Store

BEGIN = datetime(2026, 11, 21, 8, tzinfo=UTC)


def at(hours: float) -> datetime:
    return BEGIN + timedelta(hours=hours)


class Made:
    """A results folder; times are hours since its beginning."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self.attempts: dict[str, int] = {}

    def attempt(self, trial: str, begins: float | None, ends: float | None, arm: str = "full", **row: Any) -> None:
        self.attempts[trial] = attempt = self.attempts.get(trial, 0) + 1
        study = row.pop("study", "quick")
        about = {"trial": trial, "attempt": attempt, "preset": "base", "arm": arm, "replicate": 0, "status": "ok"}
        times = {
            name: None if hours is None else at(hours) for name, hours in (("started_at", begins), ("ended_at", ends))
        }
        wall = 0 if begins is None or ends is None else 3600 * (ends - begins)
        machine = {"gpus": 1.0, "cpus": 2.0, "device": "NVIDIA H200", "seconds": wall}
        self.store.write_attempt(study, {**about, **times, **machine, **row}, [])

    def run(self, begins: float, ends: float | None, resources: dict[str, float] | None = None, **about: Any) -> None:
        told = {"run": f"{begins}-{ends}", "preset": "base", "resources": resources or {"GPU": 1.0, "CPU": 16.0}}
        study = about.pop("study", "quick")
        self.event(begins, study, "run_started", {**told, **about})
        if ends is not None:
            self.event(ends, study, "run_ended", {"run": told["run"], "preset": "base"})

    def event(self, hours: float, study: str, kind: str, payload: dict[str, Any]) -> None:
        path = (
            self.store.root
            / "events"
            / f"{part_names.part_name('events', at(hours), kind)}{uuid.uuid4().hex[:12]}.parquet"
        )
        row = {"at": at(hours), "study": study, "kind": kind, "payload": json.dumps(payload)}
        tables.write_rows(path, schema.EVENTS, [row])

    def ledger(self, **asked: Any) -> Ledger:
        return read_ledger(self.store.root, "quick", **asked)

    def hours(self, arm: str = "full", unit: str = "GPU-hours") -> dict[str, float]:
        """Of one arm, those that are not zero."""
        arms = self.ledger().arms()
        row = arms[(arms["arm"] == arm) & (arms["unit"] == unit)].iloc[0]
        return {kind: row[kind] for kind in ATTEMPT_KINDS if row[kind] != 0}


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


LOST = {"status": "preempted", "failure_class": "preempted"}
OOM = {"status": "failed", "failure_class": "oom"}

# ----------------------------------------------------------------------------------------------------------- attempts


def test_every_kind_of_attempt_costs_its_own_time_times_its_devices(made: Made) -> None:
    made.attempt("a", 0, 2)
    made.attempt("b", 0, 1, status="failed", failure_class="nan")  # diverged: an outcome
    made.attempt("c", 0, 1, status="failed", failure_class="oom", gpus=0.25)
    made.attempt("d", 0, 4, status="failed", failure_class="code_error")
    made.attempt("e", 0, 3, status="pruned", search="s", suggestion=1)
    made.attempt("f", 0, 0.5, **LOST)
    made.attempt("g", 0, 2, arm="small", gpus=0.0, cpus=2.0, device="x86_64 CPU")
    assert made.hours() == {"useful": 3, "failed": 4.25, "lost": 0.5}
    assert made.hours("full, search") == {"pruned": 3}
    assert made.hours("small", "CPU-hours") == {"useful": 4}
    sentences = list(made.ledger().sentences())
    assert sentences[0] == "Failed, GPU-hours: code_error 4, oom 0.25."
    assert "NVIDIA H200: 6 attempts, 10.8 GPU-hours." in sentences
    assert "x86_64 CPU: 1 attempt, 4 CPU-hours." in sentences


def test_an_outcome_that_another_replaced_is_repeated(made: Made) -> None:
    made.attempt("a", 0, 2)
    made.attempt("a", 3, 6)  # --rerun-stale
    assert made.hours() == {"repeated": 2, "useful": 3}


@pytest.mark.parametrize(
    ("trained", "expected"),
    [
        (1.0, {"useful": 1, "lost": 2}),  # it began anew
        (2.5, {"useful": 2.5, "lost": 0.5}),  # it went on from a checkpoint after 1.5 hours
        (3.0, {"useful": 3}),  # nothing was lost
    ],
)
def test_what_an_outcome_took_over_from_a_lost_attempt_is_of_use(made: Made, trained: float, expected: Any) -> None:
    made.attempt("a", 0, 2, **LOST)
    made.attempt("a", 2, 3, seconds=3600 * trained)
    assert made.hours() == pytest.approx(expected)


def test_shares_of_attempts_before_count_as_they_were(made: Made) -> None:
    """Half of a trial on a quarter of a GPU, which was too small in the end, then on half a GPU."""
    made.attempt("a", 0, 4, **OOM, gpus=0.25)
    made.attempt("a", 4, 6, seconds=3600 * 4, gpus=0.5)  # two of the four hours before
    assert made.hours() == pytest.approx({"useful": 0.5 * 2 + 0.25 * 2, "failed": 0.25 * 2})


def test_what_has_no_times_is_not_known_and_never_zero(made: Made) -> None:
    made.attempt("a", None, None, **LOST)
    made.attempt("a", 0, 1, arm="full", seconds=3600 * 1.5)  # half an hour was taken over
    made.attempt("b", 0, 1, **LOST, arm="other")
    made.attempt("c", None, None, **LOST, arm="other")
    assert made.hours()["useful"] == 1.5 and np.isnan(made.hours()["lost"])
    rows = {row[0]: row[2:] for row in made.ledger().table().rows}
    assert rows["full"] == ["2 (1 not timed)", "1.5", "0", "0", "not known", "0", "≥ 1.5"]
    assert rows["other"] == ["2 (1 not timed)", "0", "0", "0", "≥ 1", "0", "≥ 1"]
    assert rows["idle"][-1] == "not known"


# --------------------------------------------------------------------------------------------------------------- idle


def test_idle_is_what_a_run_could_have_used_and_nobody_did(made: Made) -> None:
    made.run(0, 4, {"GPU": 2.0, "CPU": 64.0})
    made.attempt("a", 1, 3)
    made.attempt("b", 1, 2, gpus=0.5)
    assert made.ledger().idle == pytest.approx({"GPU-hours": 2 * 4 - 2 - 0.5})


def test_without_gpus_it_is_that_of_cpus(made: Made) -> None:
    made.run(0, 1, {"GPU": 0.0, "CPU": 4.0})
    made.attempt("a", 0, 1, gpus=0.0, cpus=3.0, device="arm64 CPU")
    assert made.ledger().idle == pytest.approx({"CPU-hours": 1})


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (["m1"], ["m1"], 1 * 4 - 2),  # two drivers on one machine
        (["m1", "m2"], ["m2", "m3"], 1 * 4 - 2),  # one cluster, which grew
        (["m1"], ["m2"], 1 * 3 + 1 * 2 - 2),  # two machines
        ([], ["m2"], 1 * 4 - 2),  # who knows: rather too little than twice
    ],
)
def test_drivers_that_overlap_count_a_machine_once(made: Made, first: Any, second: Any, expected: float) -> None:
    made.run(0, 3, hosts=first)
    made.run(2, 4, hosts=second)
    made.attempt("a", 1, 3)
    assert made.ledger().idle == pytest.approx({"GPU-hours": expected})


def test_a_run_that_asked_for_nothing_has_not_told_what_it_could_use(made: Made) -> None:
    made.run(0, 4, {"GPU": 0.0, "CPU": 0.0})
    made.attempt("a", 0, 1)
    found = made.ledger()
    assert (found.idle, found.runs, found.silent) == ({}, 0, 1)
    assert "Idle time is not known: no run has told what it could use." in list(found.sentences())
    made.run(5, 7, {"GPU": 1.0, "CPU": 4.0})
    found = made.ledger()
    assert (found.idle, found.runs, found.silent) == ({"GPU-hours": 2.0}, 1, 1)
    assert [row[-1] for row in found.table().rows] == ["1", "≥ 2", "≥ 3"]
    assert any(sentence.endswith("idle time is not known: 1.") for sentence in found.sentences())


def test_time_between_runs_and_attempts_outside_are_nobodys(made: Made) -> None:
    made.run(0, 1)
    made.run(5, 6)
    made.attempt("a", 0, 1)
    made.attempt("b", 2, 4)  # a run that told nothing
    assert made.ledger().idle == pytest.approx({"GPU-hours": 1})


def test_machines_that_come_and_go_count_while_they_are_there(made: Made) -> None:
    """One GPU; three from hour 1 to 3, whose host is lost; then one. Two attempts of two hours; an open run beside."""
    hosts = {"hosts": ["head", "one"]}
    made.run(0, 4, **hosts)
    about = {"run": "0-4", "preset": "base"}
    more = {"resources": {"GPU": 3.0, "CPU": 48.0}, "hosts": ["head", "one", "two"]}
    made.event(1, "quick", "run_resized", {**about, **more})
    made.event(3, "quick", "run_resized", {**about, "resources": {"GPU": 1.0, "CPU": 16.0}, **hosts})
    made.attempt("a", 0, 2)
    made.attempt("b", 1, 3)
    assert made.ledger().idle == pytest.approx({"GPU-hours": 1 + 2 * 3 + 1 - 4})
    assert (made.ledger().runs, made.ledger().unended) == (1, 0)

    made.run(5, None, {"GPU": 1.0}, **hosts)
    made.attempt("c", 5, 6)
    made.event(9, "quick", "run_resized", {"run": "5-None", "preset": "base", "resources": {"GPU": 9.0}, **hosts})
    assert made.ledger().idle == pytest.approx({"GPU-hours": 4}), "what came after all that is known of a run"


def test_processors_are_not_idle_where_a_run_has_lost_its_gpus(made: Made) -> None:
    made.run(0, 3, {"GPU": 1.0, "CPU": 20.0}, hosts=["head", "one"])
    gone = {"resources": {"GPU": 0.0, "CPU": 4.0}, "hosts": ["head"]}
    made.event(1, "quick", "run_resized", {"run": "0-3", "preset": "base", **gone})
    made.attempt("a", 0, 0.5)
    assert made.ledger().idle == pytest.approx({"GPU-hours": 0.5}) and made.ledger().units() == ["GPU-hours"]


def test_another_study_on_the_machine_is_not_idle_time(made: Made) -> None:
    made.run(0, 2)
    made.attempt("a", 0, 1)
    made.attempt("z", 1, 2, study="other")
    assert made.ledger().idle == pytest.approx({"GPU-hours": 0})
    assert made.hours() == {"useful": 1}


def test_more_than_the_machines_had_does_not_pay_for_idle_time_elsewhere(made: Made) -> None:
    made.run(0, 4)  # the cluster grew after it began
    made.attempt("a", 0, 1)
    made.attempt("b", 0, 1)
    assert made.ledger().idle == pytest.approx({"GPU-hours": 3})


def test_a_killed_run_ends_with_its_last_attempt(made: Made) -> None:
    made.run(0, None)
    made.run(10, 11)
    made.attempt("a", 1, 3)
    made.attempt("b", 10, 11)
    found = made.ledger()
    assert found.idle == pytest.approx({"GPU-hours": 1})
    assert any("Runs without an end" in sentence and sentence.endswith(": 1.") for sentence in found.sentences())


def test_interrupted_attempts_are_not_idle_where_an_outcome_took_them_over(made: Made) -> None:
    """Ctrl-C leaves no row; the checkpoint tells."""
    made.run(0, 2)
    made.run(2, 3)
    made.attempt("a", 2, 3, seconds=3600 * 2.5)
    assert made.hours() == {"useful": 2.5}
    assert made.ledger().idle == pytest.approx({"GPU-hours": 3 - 2.5})


@pytest.mark.parametrize("seed", range(5))
def test_arms_and_idle_time_make_up_what_the_machine_had(tmp_path: Path, seed: int) -> None:
    """Random attempts of all kinds that fill a machine of four GPUs now and then, all inside one run."""
    draw = np.random.default_rng(seed)
    made = Made(tmp_path)
    made.run(0, 10, {"GPU": 4.0, "CPU": 1.0})
    kinds = [{}, LOST, OOM, {"status": "pruned"}, {"status": "failed", "failure_class": "nan"}]
    for slot in range(8):
        time = 0.0
        while (begins := time + draw.uniform(0, 1)) < 9:
            time = min(10.0, begins + draw.uniform(0.1, 2))
            kind = kinds[draw.integers(len(kinds))]
            seconds = 3600 * draw.uniform(0, 1) * (time - begins)
            arm, trial = f"arm {draw.integers(3)}", f"{slot}{draw.integers(4)}"
            made.attempt(trial, begins, time, arm=arm, gpus=0.5, seconds=seconds, **kind)
    found = made.ledger()
    assert found.arms()["total"].sum() + found.idle["GPU-hours"] == pytest.approx(40)
    shown = found.table().frame.set_index("arm")["total"]
    assert shown["all"] == pytest.approx(40)
    assert cost_figure(found).drawn["hours"].sum() == pytest.approx(40)


# ------------------------------------------------------------------------------------------------------------- chosen


def test_a_preset_or_a_night_by_itself(made: Made) -> None:
    from lnl.replicates import first_replicate, parse

    made.run(0, 5)
    made.attempt("a", 0, 1)
    made.attempt("b", 1, 3, preset="paper")
    made.run(8, 9)
    made.attempt("c", 8, 8.5, replicate=first_replicate(parse("2026-11-20")) + 1)
    assert made.ledger(preset="paper").arms()["total"].tolist() == [2]
    assert made.ledger(preset="paper").runs == 0, "runs of other presets are not its own"
    night = made.ledger(night="2026-11-20")
    assert night.arms()["total"].tolist() == [0.5] and night.idle == pytest.approx({"GPU-hours": 0.5})
    assert made.ledger().arms()["attempts"].tolist() == [3]
    with pytest.raises(LoadError, match=r"No attempt of study 'quick', preset 'cifar' .*there are presets base, paper"):
        made.ledger(preset="cifar")


def test_what_cannot_be_read_is_told(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    made.attempt("a", 0, 1)
    made.attempt("b", 0, 1)
    broken = made.store.attempt_path("trials", "quick", "b", 1)
    Path(str(broken)).write_bytes(b"PAR1")
    found = made.ledger()
    assert found.arms()["attempts"].tolist() == [1]
    assert list(found.unreadable) == [broken]
    assert main(["ledger", "quick", "--storage", str(made.store.root)]) == 0
    assert capsys.readouterr().err.startswith(f"unreadable and left out: {broken} (")


# ------------------------------------------------------------------------------------------------------------ command


def test_the_command_has_a_line_per_arm(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made.run(0, 4)
    made.attempt("a", 0, 2)
    made.attempt("b", 2, 3, arm="frozen_head", **OOM)
    made.attempt("c", 0, 2, arm="small", gpus=0.0, device="x86_64 CPU")
    storage = ["--storage", str(tmp_path)]
    assert (
        main(["ledger", "quick", *storage, "--csv", str(tmp_path / "a.csv"), "--figure", str(tmp_path / "a.png")]) == 0
    )
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "GPU-hours attempts useful failed pruned lost repeated total",
        "full 1 2 0 0 0 0 2",
        "frozen head 1 0 1 0 0 0 1",
        "idle 1",
        "all 2 2 1 0 0 0 4",
        "CPU-hours attempts useful failed pruned lost repeated total",
        "small 1 4 0 0 0 0 4",
        "idle not known",
        "all 1 4 0 0 0 0 ≥ 4",
        "Failed, GPU-hours: oom 1.",
        "x86_64 CPU: 1 attempt, 4 CPU-hours.",
        "NVIDIA H200: 2 attempts, 3 GPU-hours.",
    ]
    frame = pd.read_csv(tmp_path / "a.csv")
    assert frame.loc[frame["arm"] == "full", ["useful", "failed", "total"]].to_numpy().tolist() == [[2, 0, 2]]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")

    assert main(["ledger", "quick", *storage, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["total"] for row in told["hours"]] == [2, 1, 1, 4, 4, None, 4]
    assert told["notes"][0] == "Failed, GPU-hours: oom 1."


def test_a_number_is_shown_whole_whatever_the_width(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = "robmix_with_a_name_that_leaves_no_room_for_its_hours"
    made.attempt("a", 0, 0.00123, arm=arm)
    for terminal in (True, False):
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        assert main(["ledger", "quick", "--storage", str(tmp_path)]) == 0
        out = capsys.readouterr().out
        assert out.count("0.00123") == 5 and "…" not in out, "useful and total, of the arm and of all; the device"
        assert (arm.replace("_", " ") in out) == (not terminal), "a narrow terminal folds names"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [(["quack"], "No attempt of study 'quack'"), (["quick", "--figure", "a.gif"], "takes a .png or a .pdf")],
)
def test_a_mistake_gets_one_sentence(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], sentence: str
) -> None:
    made.attempt("a", 0, 1)
    assert main(["ledger", *flags, "--storage", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert sentence in said and len(said.splitlines()) == 1


@pytest.mark.parametrize("flag", ["--csv", "--figure"])
def test_what_cannot_be_written_gets_one_sentence(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    made.attempt("a", 0, 1)
    folder = tmp_path / "folder.png"
    folder.mkdir()
    assert main(["ledger", "quick", "--storage", str(tmp_path), flag, str(folder)]) == 1
    said = capsys.readouterr().err
    assert f"Cannot write {folder}" in said and len(said.splitlines()) == 1
