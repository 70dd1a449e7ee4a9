"""Torch's optimizers without its compiler: the same steps, the same state, and nothing of the compiler imported."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from lnl.training.optimizers import eager
from tests.forked import ROOT, run_script

TRAIN = """
import sys
from lnl.trial import contract
from lnl.trial.run import run
assert "torch._dynamo" not in sys.modules, "it was there before"
list(run(contract.small("simclr", {"epochs": 1, "method.optimizer.kind": sys.argv[1]})))  # ends with LBFGS
print("torch._dynamo" in sys.modules)
"""
KINDS = {
    torch.optim.SGD: {"lr": 0.1, "momentum": 0.9, "nesterov": True, "fused": True},
    torch.optim.Adam: {"lr": 0.1, "fused": True},
    torch.optim.AdamW: {"lr": 0.1, "weight_decay": 0.1, "fused": True},
    torch.optim.LBFGS: {"lr": 0.1},
}


def steps(kind: type[torch.optim.Optimizer], settings: dict[str, float], break_after: int) -> list[float]:
    """Where four steps lead, with a new optimizer that is given the state of the first after some of them."""
    point = torch.tensor([1.0, -2.0, 0.5], requires_grad=True)
    optimizer = kind([point], **settings)

    def loss() -> float:
        optimizer.zero_grad()
        value = ((point - 3) ** 2 * torch.tensor([1.0, 2.0, 4.0])).sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value.item()

    for step in range(4):
        if step == break_after:
            state = optimizer.state_dict()
            optimizer = kind([point], **settings)
            optimizer.load_state_dict(state)
        optimizer.step(loss)  # type: ignore[arg-type]
    return point.tolist()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_steps_and_state_are_those_of_torch(kind: type[torch.optim.Optimizer]) -> None:
    expected = steps(kind, KINDS[kind], break_after=9)
    assert expected != [1.0, -2.0, 0.5]
    assert steps(eager(kind), KINDS[kind], break_after=9) == steps(eager(kind), KINDS[kind], break_after=2) == expected


def test_a_step_records_no_gradient() -> None:
    point = torch.ones(2, requires_grad=True)
    optimizer = eager(torch.optim.SGD)([point], lr=0.1)
    point.grad = torch.ones(2)
    optimizer.step()
    assert point.grad_fn is None and torch.is_grad_enabled() and point.tolist() == pytest.approx([0.9, 0.9])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_training_does_not_import_the_compiler(kind: str, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(TRAIN, encoding="utf-8")
    done = run_script([str(script), kind], {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, tmp_path)
    assert done.stdout == "False\n", done.stdout + done.stderr
