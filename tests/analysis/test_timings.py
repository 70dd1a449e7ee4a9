"""Where the time went, from hand-made attempts whose seconds are known."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from analysis.figures.timings import PHASE_COLOURS, timings_figure
from analysis.results import LoadError
from analysis.timings import PHASES, STORED, read_timings
from lnl.cli.main import main
from lnl.storage.schema import TRIALS
from lnl.storage.store import Store
from lnl.system import timing

BEGIN = datetime(2026, 11, 21, 8, tzinfo=UTC)


def attempt(root: Path, trial: str, wall: float, phases: dict[str, float] | None, **row: Any) -> None:
    told = {} if phases is None else {f"seconds_{name}": phases.get(name, 0.0) for name in STORED}
    about = {"trial": trial, "attempt": 1, "preset": "base", "arm": "full", "replicate": 0, "status": "ok"}
    machine = {"gpus": 0.0, "cpus": 1.0, "device": "x86_64 CPU", "seconds": sum((phases or {}).values())}
    times = {"started_at": BEGIN, "ended_at": BEGIN + timedelta(seconds=wall)}
    Store(root).write_attempt("quick", {**about, **machine, **times, **told, **row}, [])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    attempt(tmp_path, "a", 10, {"forward": 4, "backward": 3, "evaluation": 1})
    attempt(tmp_path, "b", 20, {"forward": 6, "backward": 7, "evaluation": 1, "report": 0.04})
    attempt(tmp_path, "c", 4, {"views": 1, "forward": 1, "backward": 1, "rest": 1}, arm="quick_arm")
    return tmp_path


def test_each_phase_has_a_column_and_a_colour() -> None:
    assert tuple(timing.PHASES) == STORED and list(PHASE_COLOURS) == list(PHASES)
    assert {f"seconds_{name}" for name in STORED} == {name for name in TRIALS.names if name.startswith("seconds_")}


def test_means_of_an_arm_and_what_lies_before_the_first_epoch(root: Path) -> None:
    timings = read_timings(root, "quick")
    first, second = timings.arms().to_dict("records")
    assert (first["arm"], first["attempts"], first["total"]) == ("full", 2, 15)
    assert (first["forward"], first["backward"], first["start"]) == (5, 5, pytest.approx((2 + 5.96) / 2))
    assert (second["arm"], second["start"], second["total"]) == ("quick_arm", 0, 4)
    assert timings.shown() == ["start", "views", "forward", "backward", "rest", "evaluation"], (
        "0.04 s of 30 s is little"
    )
    assert list(timings.sentences()) == ["Forward and backward passes took 65% of the time of 3 attempts."]


def test_the_table_adds_all_attempts(root: Path) -> None:
    table = read_timings(root, "quick").table()
    assert table.header == ["arm", "attempts", "seconds", *(f"{name}, %" for name in table_phases(root))]
    assert table.rows[1] == ["quick arm", "1", "4.0", "0", "25", "25", "25", "25", "0"]
    assert table.rows[-1][:3] == ["all", "3", "11.3"] and len(table.rows) == 3


def table_phases(root: Path) -> list[str]:
    return read_timings(root, "quick").shown()


def test_the_figure_draws_the_slowest_arm_first(root: Path) -> None:
    plot = timings_figure(read_timings(root, "quick"))
    (axes,) = plot.figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["full", "quick arm"]
    ends = [max(bar.get_x() + bar.get_width() for bar in bars) for bars in zip(*axes.containers, strict=True)]
    assert ends == [pytest.approx(15 - 0.02), pytest.approx(4)]


def test_attempts_that_tell_nothing_are_counted_and_left_out(root: Path) -> None:
    attempt(root, "old", 50, None)
    attempt(root, "resumed", 5, {"forward": 30}, attempt=2)  # its phases are those of both parts
    attempt(root, "failed", 5, {"forward": 30}, status="failed")
    timings = read_timings(root, "quick")
    assert len(timings.attempts) == 3 and timings.silent == 2
    assert "2 attempts of an earlier version, or in two parts, tell no phases." in list(timings.sentences())


def test_on_a_gpu_the_reader_is_told_what_the_host_cannot_tell(root: Path) -> None:
    attempt(root, "gpu", 10, {"rest": 9}, device="NVIDIA H200", gpus=1.0)
    assert any(sentence.startswith("On a GPU") for sentence in read_timings(root, "quick").sentences())


def test_without_any_there_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attempt(tmp_path, "old", 50, None)
    with pytest.raises(LoadError, match="tells where its time went"):
        read_timings(tmp_path, "quick")
    assert main(["profile", "quick", "--storage", str(tmp_path)]) == 2
    assert "it must have been run by this version" in capsys.readouterr().err


def test_the_command(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "quick", "--storage", str(root), "--figure", str(tmp_path / "time.png")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[:3] == ["arm", "attempts", "seconds"] and printed[1].split()[:3] == ["full", "2", "15.0"]
    assert (tmp_path / "time.png").stat().st_size > 1000
    assert main(["profile", "quick", "--storage", str(root), "--json"]) == 0
    assert [arm["arm"] for arm in json.loads(capsys.readouterr().out)["arms"]] == ["full", "quick_arm", "all"]
