"""What a worker is given: the trial and the settings of its run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lnl.storage.currency import Sources
from lnl.storage.places import Place
from lnl.storage.store import Store
from lnl.trial.run import Execution, Row


@dataclass(frozen=True)
class Settings:
    """How a plan is executed; nothing here changes a result's identity."""

    storage: Place
    data: Path | None = None
    address: str = "local"  # of Ray
    cpus: int | None = None  # of a Ray of our own; None: those that this process may use
    cpus_per_trial: float = 1
    gpus_per_trial: float | Literal["auto"] | None = (
        None  # None: one where the cluster has GPUs; auto: see lnl.execution.packing
    )
    device: str = "auto"
    checkpoint_s: float = 10.0  # seconds of training between checkpoints
    wait: bool = True  # for trials that another driver holds

    def execution(self) -> Execution:
        device = "cpu" if self.device == "auto" and self.gpus_per_trial == 0 else self.device
        return Execution(device, max(1, round(self.cpus_per_trial)), self.data, Store(self.storage).trained)


@dataclass(frozen=True)
class Job:
    """One planned trial, as plain data that travels to a worker, with what its row says about the plan."""

    trial: dict[str, Any]
    arm: str
    setting: str
    prerequisite: bool  # keep what it has learnt: other trials start from it
    search: str | None
    suggestion: int | None
    embeddings: int
    store: str  # identity of the results folder that the driver sees
    run: str  # of this driver
    rerun_stale: bool
    study: str
    preset: str
    plan_hash: str
    selection: str  # the plan's rule
    sources: Sources  # the trial's code and data, where the driver runs
    git_commit: str | None
    git_dirty: bool | None

    def to_text(self) -> str:
        """As JSON, for `from_text`."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_text(text: str) -> Job:
        """What `to_text` wrote."""
        record = json.loads(text)
        return Job(**{**record, "sources": Sources(*record["sources"])})


Report = Callable[[dict[str, Any]], None]


def flat(row: Row) -> dict[str, Any]:
    """A row as Tune metrics: test_accuracy, train_loss, …"""
    return {
        "epoch": row.epoch,
        "seconds": row.seconds,
        **{f"{split}_{metric}": value for (split, metric), value in row.metrics.items()},
    }
