"""The option `--update-golden`, the order of tests, and the smallest trial that trains, for the tests of methods."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from lnl import methods
from lnl.methods import Method
from lnl.training.task import Noise, Task, Truth
from lnl.trial.config import Trial
from lnl.trial.run import Execution, assemble


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden from this run")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, then files of many tests: what ends the run is small."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path not in slow, -tests[item.path], item.path))


@dataclass(frozen=True)
class Built:
    """A method before its first step, with what it sees and what it does not."""

    method: Method
    task: Task
    truth: Truth


SMALL = {"batch_size": 16, "warm_up": 1, "pretrain_epochs": 1, "hidden": 128, "projector_width": 128}  # at most


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Trial]:
    """`tiny("robmix", {"method.views": 1})`: two epochs of three steps on 50 digits, 40 % of their labels wrong.

    Methods that use one get a probe of 20.
    """

    def make(method: str, changes: Mapping[str, Any] | None = None) -> Trial:
        module = methods.load(method)
        fields = module.Config.model_fields
        small = {
            f"method.{name}": size for name, size in SMALL.items() if name in fields and fields[name].default > size
        }
        base = Trial(
            method=methods.configure(method),
            dataset="digits",
            network="small_convnet",
            labels=50,
            noise=Noise("symmetric", 0.4),
            probe=20 if "probe" in module.USES else 0,
            epochs=2,
            steps=3,
        )
        return base.override({**small, **(changes or {})})

    return make


@pytest.fixture(scope="session")
def build() -> Callable[[Trial], Built]:
    """A trial's method as `lnl.trial.run.run` makes it, on the CPU, for tests that look inside."""

    def make(trial: Trial) -> Built:
        return Built(*assemble(trial, Execution(device="cpu")))

    return make
