"""The clock of a trial: every second in one phase."""

from __future__ import annotations

import itertools
import time

import pytest

from lnl.system.timing import PHASES, Clock, phase
from lnl.trial.config import Trial
from lnl.trial.run import run


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the time is a second later than the one before."""
    seconds = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(seconds)))


def test_an_inner_phase_does_not_count_in_the_outer_one(ticks: None) -> None:
    clock = Clock()
    with clock.running(), phase("rest"):
        with phase("forward"):
            pass
        with phase("backward"), phase("views"):
            pass
    counted = {name: seconds for name, seconds in clock.seconds.items() if seconds}
    # rest before, between and after the two; backward before and after views
    assert counted == {"rest": 3, "forward": 1, "backward": 2, "views": 1}


def test_evaluation_is_told_as_a_whole(ticks: None) -> None:
    clock = Clock()
    with clock.running(), phase("evaluation"), phase("inference"), phase("views"):
        pass
    assert clock.seconds["evaluation"] == sum(clock.seconds.values()) == 5


def test_an_error_ends_its_phases(ticks: None) -> None:
    clock = Clock()
    with clock.running():
        with pytest.raises(ValueError), phase("rest"), phase("forward"):
            raise ValueError
        with phase("update"):
            pass
    assert clock.seconds["update"] == 1 and clock.seconds["rest"] == 2


def test_without_a_clock_nothing_is_timed_and_clocks_do_not_mix() -> None:
    first, second = Clock({"views": 3.0}), Clock()
    with first.running():
        with second.running(), phase("views"):
            time.sleep(0.01)
    with phase("views"):
        time.sleep(0.01)
    assert first.seconds["views"] == 3.0 and 0.01 <= second.seconds["views"] < 1


@pytest.mark.parametrize(
    ("method", "used"),
    [
        ("supervised", {"views", "forward", "backward", "update"}),
        ("learning_to_reweight", {"views", "forward", "backward", "update", "meta"}),
        ("co_teaching", {"views", "forward", "backward", "update", "inference"}),
    ],
)
def test_the_phases_of_a_trial_are_all_of_its_time(method: str, used: set[str]) -> None:
    trial = Trial(method=method, dataset="digits", network="small_convnet", labels=100, probe=20, epochs=2, steps=3)
    clock = Clock()
    *_, row = run(trial, clock=clock)
    assert sum(clock.seconds.values()) == pytest.approx(row.seconds, rel=0.05)
    assert {name for name in PHASES if clock.seconds[name] > 0} - {"inference"} == (used | {"rest", "evaluation"}) - {
        "inference"
    }
    assert clock.seconds["inference"] > 0 or "inference" not in used
