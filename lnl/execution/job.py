"""What a worker is given: a `Job`, which is one planned trial, and the `RunSettings` of its run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lnl.storage.currency import Sources
from lnl.storage.part_names import Kept
from lnl.storage.places import Place


@dataclass(frozen=True)
class RunSettings:
    """How a plan is executed; nothing here changes a result's identity."""

    storage: Place
    data: Path | None = None
    address: str = "local"  # of Ray
    cpus: int | None = None  # of a Ray of our own; None: those that this process may use
    cpus_per_trial: float = 1
    gpus_per_trial: float | Literal["auto"] | None = None  # None: one where the cluster has GPUs; auto: see `packing`
    device: str = "auto"
    checkpoint_s: float = 10.0  # seconds of training between checkpoints
    wait: bool = True  # for trials that another driver holds
    keep: tuple[Kept, ...] = ()  # what trials keep at their end; those of searches keep nothing
    rerun_unkept: bool = False  # train finished trials again that have not kept it


@dataclass(frozen=True)
class Job:
    """One planned trial, as plain data that travels to a worker, with what its row says about the plan."""

    trial: dict[str, Any]  # a `lnl.trial.config.Trial` as JSON
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
