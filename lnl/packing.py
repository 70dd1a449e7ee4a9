"""How many trials share a GPU: by the memory that trials of the same kind were seen to take.

The first trial of a kind has a GPU to itself and measures.  The others get 1/n of one, with n as large as memory
allows; one that runs out of memory all the same gets twice that at its next attempt, up to the whole GPU.  Ray only
counts shares: it limits no memory, so each worker limits PyTorch to its own (`memory_fraction`), and a trial that
takes too much fails itself and not its neighbours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Literal

import pandas as pd

from lnl.results import canonical
from lnl.trial import Trial

AUTO = "auto"
HEADROOM = 1.1  # more than was measured: another replicate may draw a larger batch of something
CONTEXT_MB = 700.0  # what CUDA itself takes in every process, which PyTorch does not count
STEPS = 10_000  # into which Ray divides a GPU: seven times 0.1429 would not fit
MOST = 16  # trials on one GPU: more wait for each other, not for memory
SAME_MEMORY = ("replicate", "noise", "epochs", "steps")  # fields that leave a trial's memory as it is
COLUMNS = ("config", "peak_memory_mb", "device_memory_mb")  # of rows that tell what was measured


def kind(config: Mapping[str, Any]) -> str:
    """Trials of one kind take the same memory.  `config`: a trial as plain data."""
    return canonical({name: value for name, value in config.items() if name not in SAME_MEMORY})


def share(peak_mb: float, device_mb: float) -> float:
    """1/n of a GPU of `device_mb`, for trials that hold `peak_mb` of it each; 1 where two do not fit."""
    trials = max(1, min(MOST, math.floor(device_mb / (peak_mb * HEADROOM + CONTEXT_MB))))
    return math.floor(STEPS / trials) / STEPS


def _share(peak_mb: float, device_mb: float) -> float:
    """1 where no GPU was there to measure: zero or NaN."""
    return share(peak_mb, device_mb) if peak_mb > 0 and device_mb > 0 else 1.0


def memory_fraction(gpus: float, device_mb: float) -> float:
    """The part of a GPU's memory that PyTorch may take in a process with this share of it."""
    return min(1.0, max(0.0, gpus - CONTEXT_MB / device_mb)) if gpus < 1 else 1.0


class Shares:
    """The GPUs of each trial of a run: a given number, or `auto`."""

    def __init__(self, asked: float | Literal["auto"]) -> None:
        self.asked = asked
        self.measured: dict[str, float] = {}
        self.raised: dict[str, float] = {}  # trial -> its share after it ran out of memory

    def learn(self, rows: pd.DataFrame) -> None:
        """From rows with `COLUMNS`: of several of a kind the largest counts, and one without a figure takes it all."""
        if self.asked != AUTO:
            return
        shares: dict[str, float] = {}
        for config, peak, device in rows[list(COLUMNS)].itertuples(index=False):
            key = kind(json.loads(config))
            shares[key] = max(shares.get(key, 0.0), _share(peak, device))
        self.measured |= shares

    def learn_of(self, trial: Trial, measured: Mapping[str, Any]) -> None:
        """From what a trial that has ended reports; without a figure it takes a whole GPU."""
        if self.asked == AUTO:
            peak, device = (measured.get(name) for name in COLUMNS[1:])
            self.measured.setdefault(self._kind(trial), _share(peak or 0.0, device or 0.0))

    def of(self, trial: Trial) -> float | None:
        """GPUs of a trial; None where its kind is to be measured first, on a whole one."""
        if trial.id in self.raised:
            return self.raised[trial.id]
        return self.measured.get(self._kind(trial)) if self.asked == AUTO else float(self.asked)

    def same(self, one: Trial, other: Trial) -> bool:
        """Whether they are of one kind."""
        return self._kind(one) == self._kind(other)

    def smallest(self) -> float:
        """The least that any trial takes so far."""
        known = [*self.measured.values(), *self.raised.values()]
        return min(known, default=1.0) if self.asked == AUTO else float(self.asked)

    def _kind(self, trial: Trial) -> str:
        return kind(trial.model_dump(mode="json"))

    def widen(self, trial: Trial) -> bool:
        """After it ran out of memory: twice its share, if there is more to have."""
        before = self.of(trial) or 1.0  # the whole one that it measured on
        if not 0 < before < 1:
            return False
        self.raised[trial.id] = min(1.0, 2 * before)
        return True
