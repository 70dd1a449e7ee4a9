"""How a run shares devices out: how many trials one GPU has room for, and how long all of them may take.

The first trial of a kind has a GPU to itself and measures.  The others get 1/n of one, with n as large as memory
allows; one that runs out of memory all the same gets twice that at its next attempt, up to the whole GPU.  Ray only
counts shares: it limits no memory, so each worker limits PyTorch to its own (`memory_fraction`), and a trial that
takes too much fails itself and not its neighbours.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from typing import Any, Literal

import pandas as pd

from lnl.storage.places import canonical
from lnl.trial.config import Trial

AUTO = "auto"
BUDGET = "The budget"  # begins the sentence of a run that has spent it
HEADROOM = 1.1  # more than was measured: another replicate may draw a larger batch of something
CONTEXT_MB = 700.0  # what CUDA itself takes in every process, which PyTorch does not count
STEPS = 10_000  # into which Ray divides a GPU: seven times 0.1429 would not fit
MOST = 16  # trials on one GPU: more wait for each other, not for memory
SAME_MEMORY = ("replicate", "noise", "epochs", "steps")  # fields that leave a trial's memory as it is
COLUMNS = ("config", "peak_memory_mb", "device_memory_mb")  # of rows that tell what was measured


def kind(config: Mapping[str, Any]) -> str:
    """Trials of one kind take the same memory.  `config`: a trial as plain data.

    Fractions (a learning rate, a temperature) move none, so that most suggestions of a search are of one kind.
    """
    return canonical(_whole({name: value for name, value in config.items() if name not in SAME_MEMORY}))


def _whole(value: Any) -> Any:
    """Without the fractions in it."""
    if isinstance(value, Mapping):
        return {key: _whole(one) for key, one in value.items() if not isinstance(one, float)}
    return value


def share(peak_mb: float, device_mb: float) -> float:
    """1/n of a GPU of `device_mb`, for trials that hold `peak_mb` of it each; 1 where two do not fit."""
    trials = max(1, min(MOST, math.floor(device_mb / (peak_mb * HEADROOM + CONTEXT_MB))))
    return math.floor(STEPS / trials) / STEPS


def memory_fraction(gpus: float, device_mb: float) -> float:
    """The part of a GPU's memory that PyTorch may take in a process with this share of it."""
    return min(1.0, max(0.0, gpus - CONTEXT_MB / device_mb)) if gpus < 1 else 1.0


class Shares:
    """The GPUs of each trial of a run: a given number, or `auto`."""

    def __init__(self, asked: float | Literal["auto"]) -> None:
        self.asked = asked
        self.measured: dict[str, float] = {}  # by kind
        self.raised: dict[str, float] = {}  # trial -> its share after it ran out of memory
        self.given = 1.0 if asked == AUTO else float(asked)  # the least that a trial of this run has had
        self._had: dict[str, float] = {}  # trial -> its share when it was handed out last
        self._kinds: dict[str, str] = {}

    def learn(self, rows: pd.DataFrame) -> None:
        """From rows with `COLUMNS`, those that have measured: of several of a kind the largest counts."""
        if self.asked != AUTO:
            return
        known = rows[(rows["peak_memory_mb"] > 0) & (rows["device_memory_mb"] > 0)]
        for config, peak, device in known[list(COLUMNS)].itertuples(index=False):
            key = kind(json.loads(config))
            self.measured[key] = max(self.measured.get(key, 0.0), share(peak, device))

    def learn_of(self, trial: Trial, measured: Mapping[str, Any]) -> None:
        """From the last report of a trial that was trained; without a figure its kind takes whole GPUs."""
        if self.asked == AUTO:
            peak, device = (measured.get(name) or 0.0 for name in COLUMNS[1:])
            self.measured.setdefault(self.kind_of(trial), share(peak, device) if peak > 0 and device > 0 else 1.0)

    def of(self, trial: Trial) -> float | None:
        """GPUs of a trial; None where its kind is to be measured first, on a whole one."""
        if trial.id in self.raised:
            return self.raised[trial.id]
        return self.measured.get(self.kind_of(trial)) if self.asked == AUTO else float(self.asked)

    def gpus(self, trial: Trial) -> float:
        """As `of`, or the whole one that it is to measure on."""
        share = self.of(trial)
        return 1.0 if share is None else share

    def give(self, trial: Trial) -> float:
        """The share with which it is handed out now."""
        gpus = self.gpus(trial)
        self.given = min(self.given, gpus)
        self._had[trial.id] = gpus
        return gpus

    def kind_of(self, trial: Trial) -> str:
        if trial.id not in self._kinds:
            self._kinds[trial.id] = kind(trial.model_dump(mode="json"))
        return self._kinds[trial.id]

    def widen(self, trial: Trial) -> bool:
        """After it ran out of memory: twice its share, if there is more to have, for others of its kind, too."""
        before = self._had.get(trial.id, self.gpus(trial))  # its kind may have got more since
        if not 0 < before < 1:
            return False
        self.raised[trial.id] = min(1.0, 2 * before)
        if self.asked == AUTO:
            key = self.kind_of(trial)
            self.measured[key] = max(self.measured.get(key, 0.0), self.raised[trial.id])
        return True


class Budget:
    """Device-hours of one run: what trials took, and what those that run are expected to."""

    def __init__(self, hours: float | None = None, cpus: float = 1) -> None:
        self.hours, self.cpus = hours, cpus
        self.spent = 0.0  # device-seconds of trials that have ended
        self.running: dict[str, tuple[float, float | None]] = {}  # trial -> devices that it takes, since when
        self.expected: dict[str, float] = {}

    @property
    def sentence(self) -> str:
        return f"{BUDGET} of {self.hours:g} device-hours holds no more. What is finished is stored: run again to go on."

    def holds(self, seconds: float | None, gpus: float) -> bool:
        """Whether one more trial fits, as far as it has been timed."""
        if self.hours is None:
            return True
        promised = sum(max(self.expected.get(trial, 0.0), taken) for trial, taken in self._taken().items())
        return self.spent + promised + (seconds or 0.0) * self._devices(gpus) < self.hours * 3600

    def begin(self, trial: str, gpus: float, seconds: float | None) -> None:
        """It waits for its devices."""
        self.running[trial] = (self._devices(gpus), None)
        self.expected[trial] = (seconds or 0.0) * self._devices(gpus)

    def start(self, trial: str) -> None:
        """It has them."""
        devices, since = self.running.get(trial, (0.0, None))
        self.running[trial] = (devices, time.monotonic() if since is None else since)

    def wait(self, trial: str) -> None:
        """It has lost them, with its worker."""
        if trial in self.running:
            self.spent += self._taken()[trial]
            self.running[trial] = (self.running[trial][0], None)

    def end(self, trial: str) -> None:
        self.spent += self._taken().get(trial, 0.0)
        self.running.pop(trial, None)

    def is_spent(self) -> bool:
        return self.hours is not None and self.spent + sum(self._taken().values()) >= self.hours * 3600

    def _taken(self) -> dict[str, float]:
        clock = time.monotonic()
        return {
            trial: 0.0 if since is None else devices * (clock - since)
            for trial, (devices, since) in self.running.items()
        }

    def _devices(self, gpus: float) -> float:
        return gpus or self.cpus
