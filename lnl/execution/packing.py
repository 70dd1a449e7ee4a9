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
from lnl.trial.reports import TrialOutcome

AUTO = "auto"
BUDGET = "The budget"  # begins the sentence of a run that has spent it
HEADROOM = 1.1  # more than was measured: another replicate may draw a larger batch of something
CONTEXT_MB = 700.0  # what CUDA itself takes in every process, which PyTorch does not count
STEPS = 10_000  # into which Ray divides a GPU: seven times 0.1429 would not fit
MOST = 16  # trials on one GPU: more wait for each other, not for memory
SAME_MEMORY = ("replicate", "noise", "epochs", "steps")  # fields that leave a trial's memory as it is
MEASURED = ("config", "peak_memory_mb", "device_memory_mb")  # the columns of `trials` that say what was measured


def kind(config: Mapping[str, Any]) -> str:
    """Trials of one kind take the same memory.  `config`: a trial as plain data.

    Fractions (a learning rate, a temperature) move none, so that most suggestions of a search are of one kind.
    """
    return canonical(_without_fractions({name: value for name, value in config.items() if name not in SAME_MEMORY}))


def _without_fractions(value: Any) -> Any:
    """Plain data without the numbers in it that are not whole."""
    if isinstance(value, Mapping):
        return {key: _without_fractions(field) for key, field in value.items() if not isinstance(field, float)}
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
        """Learn from rows with `MEASURED`; of several rows of a kind the largest measurement counts."""
        if self.asked != AUTO:
            return
        known = rows[(rows["peak_memory_mb"] > 0) & (rows["device_memory_mb"] > 0)]
        for config, peak, device in known[list(MEASURED)].itertuples(index=False):
            key = kind(json.loads(config))
            self.measured[key] = max(self.measured.get(key, 0.0), share(peak, device))

    def learn_of(self, trial: Trial, outcome: TrialOutcome) -> None:
        """Learn from how a trial that was trained ended; if nothing was measured, its kind takes whole GPUs."""
        if self.asked == AUTO:
            peak, device = outcome.get("peak_memory_mb") or 0.0, outcome.get("device_memory_mb") or 0.0
            self.measured.setdefault(self.kind_of(trial), share(peak, device) if peak > 0 and device > 0 else 1.0)

    def of(self, trial: Trial) -> float | None:
        """The GPUs of a trial; None where its kind is to be measured first, on a whole GPU."""
        if trial.id in self.raised:
            return self.raised[trial.id]
        return self.measured.get(self.kind_of(trial)) if self.asked == AUTO else float(self.asked)

    def gpus(self, trial: Trial) -> float:
        """The GPUs of a trial, a whole one where it is to be measured."""
        gpus = self.of(trial)
        return 1.0 if gpus is None else gpus

    def give(self, trial: Trial) -> float:
        """The share with which a trial is submitted now."""
        gpus = self.gpus(trial)
        self.given = min(self.given, gpus)
        self._had[trial.id] = gpus
        return gpus

    def kind_of(self, trial: Trial) -> str:
        """The kind of a trial, see `kind`."""
        if trial.id not in self._kinds:
            self._kinds[trial.id] = kind(trial.model_dump(mode="json"))
        return self._kinds[trial.id]

    def widen(self, trial: Trial) -> bool:
        """Double a trial's share, and its kind's, after it ran out of memory; returns whether there is more to have."""
        before = self._had.get(trial.id, self.gpus(trial))  # its kind may have got more since
        if not 0 < before < 1:
            return False
        self.raised[trial.id] = min(1.0, 2 * before)
        if self.asked == AUTO:
            key = self.kind_of(trial)
            self.measured[key] = max(self.measured.get(key, 0.0), self.raised[trial.id])
        return True


class Budget:
    """The device-hours of one run: what trials have taken, and what running ones are expected to take."""

    def __init__(self, hours: float | None = None, cpus: float = 1) -> None:
        self.hours, self.cpus = hours, cpus
        self.spent = 0.0  # device-seconds of trials that have ended
        self.running: dict[str, tuple[float, float | None]] = {}  # trial -> devices that it takes, since when
        self.expected: dict[str, float] = {}

    @property
    def sentence(self) -> str:
        """Why the run ended."""
        return f"{BUDGET} of {self.hours:g} device-hours holds no more. What is finished is stored: run again to go on."

    def holds(self, seconds: float | None, gpus: float) -> bool:
        """Whether one more trial fits, as far as trials of its kind have been timed."""
        if self.hours is None:
            return True
        promised = sum(max(self.expected.get(trial, 0.0), taken) for trial, taken in self._taken().items())
        return self.spent + promised + (seconds or 0.0) * self._devices(gpus) < self.hours * 3600

    def begin(self, trial: str, gpus: float, seconds: float | None) -> None:
        """A trial was submitted and waits for its devices.  `seconds`: what it is expected to take."""
        self.running[trial] = (self._devices(gpus), None)
        self.expected[trial] = (seconds or 0.0) * self._devices(gpus)

    def start(self, trial: str) -> None:
        """A trial has got its devices."""
        devices, since = self.running.get(trial, (0.0, None))
        self.running[trial] = (devices, time.monotonic() if since is None else since)

    def wait(self, trial: str) -> None:
        """A trial has lost its worker; its devices are released."""
        if trial in self.running:
            self.spent += self._taken()[trial]
            self.running[trial] = (self.running[trial][0], None)

    def end(self, trial: str) -> None:
        """A trial has ended; its devices are released."""
        self.spent += self._taken().get(trial, 0.0)
        self.running.pop(trial, None)

    def is_spent(self) -> bool:
        """Whether the trials have taken all of the budget."""
        return self.hours is not None and self.spent + sum(self._taken().values()) >= self.hours * 3600

    def _taken(self) -> dict[str, float]:
        clock = time.monotonic()
        return {
            trial: 0.0 if since is None else devices * (clock - since)
            for trial, (devices, since) in self.running.items()
        }

    def _devices(self, gpus: float) -> float:
        return gpus or self.cpus
