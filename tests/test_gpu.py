"""What only a CUDA device can show: every method trains there, in both precisions, and resumes exactly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lnl import methods
from lnl.trial.config import Trial
from lnl.trial.run import Execution, run
from tests.methods.test_methods import ARMS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "arm"), [(name, arm) for name in methods.names() for arm in ["default", *ARMS.get(name, {})]]
)
def test_two_epochs_and_a_resumed_one(tiny: Callable[..., Trial], name: str, arm: str, precision: str) -> None:
    changes = ARMS.get(name, {}).get(arm, {})
    trial, there = tiny(name, {**changes, "epochs": 2, "precision": precision}), Execution(device="cuda")
    rows = run(trial, there)
    state = next(rows).snapshot()
    whole, resumed = next(rows), next(run(trial, there, state))
    assert whole.epoch == resumed.epoch == 2
    assert whole.metrics["test", "accuracy"] == pytest.approx(resumed.metrics["test", "accuracy"], abs=0.02)
    assert all(value == value for (_, metric), value in whole.metrics.items() if metric.startswith("loss"))
