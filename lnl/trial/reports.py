"""What a worker reports of a trial: the metrics of each epoch, and at last how the attempt ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Required, TypedDict

if TYPE_CHECKING:  # whoever only shows reports needs no torch
    from lnl.trial.run import Row

Metrics = Mapping[str, float]  # `epoch`, `seconds`, and `<split>_<metric>` of each metric


class TrialOutcome(TypedDict, total=False):
    """How an attempt ended; what is not known is left out.

    `done`: trained to the end, or diverged, which is a result, too.  `pruned`: ended early at the request of its
    search.  `failed`: by an accident, see `message`.  `taken`: another process trains it.  `storage`: the results
    cannot be read or written, so that the whole run ends.
    """

    outcome: Required[Literal["done", "pruned", "failed", "taken", "storage"]]
    message: str
    failure: str | None  # the failure class
    refused: bool  # the trial's values cannot be trained with
    seconds: float
    accuracy: float | None  # on test images, under the plan's selection rule
    peak_memory_mb: float | None  # accelerator memory; None on CPU
    device_memory_mb: float | None


def metrics_of(row: Row) -> dict[str, float]:
    """An epoch's row as flat metrics: test_accuracy, train_loss, …"""
    return {
        "epoch": row.epoch,
        "seconds": row.seconds,
        **{f"{split}_{metric}": value for (split, metric), value in row.metrics.items()},
    }
