"""The option `--update-golden`, the order of tests, and the smallest trial that trains, for the tests of methods."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:  # tests run side by side: torch's threads would take each other's cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # counts until torch is imported

from lnl import methods
from lnl.methods import Method
from lnl.system import user_code
from lnl.training.task import Task, Truth
from lnl.trial import code_hash, contract
from lnl.trial.config import Trial
from lnl.trial.run import Execution, assemble

settings.register_profile("any machine", deadline=None)  # of a test's examples: other processes share the cores
settings.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden from this run")


@pytest.hookimpl(wrapper=True)  # before pytest-xdist reads the groups, which even a `tryfirst` of ours comes after
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Long tests first, then slow ones, so that what ends the run is small; and who shares a process.

    `--dist loadgroup` gives the tests of a group to one process.  A group is a file; of its slow tests each is a group
    of its own, with all its cases, and of its long ones each case.  Where tests share a fixture that lives as long as
    the file, they stay with the file: every process would make the fixture again.
    """
    groups = {}
    for item in items:
        name = item.path.stem
        if item.get_closest_marker("long"):
            item.add_marker("slow")
            name = item.name
        elif item.get_closest_marker("slow"):
            name = getattr(item, "originalname", item.name)
        groups[item] = item.path.stem if _shares(item) else name
        item.add_marker(pytest.mark.xdist_group(groups[item]))
    long, slow = ({groups[item] for item in items if item.get_closest_marker(name)} for name in ("long", "slow"))
    places = {group: place for place, group in enumerate(dict.fromkeys(groups.values()))}
    items.sort(key=lambda item: (groups[item] not in long, groups[item] not in slow, places[groups[item]]))
    yield


def _shares(item: pytest.Item) -> bool:
    """Whether the test uses a fixture that lives as long as its file."""
    definitions = item._fixtureinfo.name2fixturedefs.values() if isinstance(item, pytest.Function) else ()
    return any(each.scope == "module" for fixtures in definitions for each in fixtures)


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder for a user's own files; what is imported from them is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(user_code, "_folders", [])
    for name in ("_known", "_modules", "_announced"):
        monkeypatch.setattr(user_code, name, {})
    monkeypatch.setattr(code_hash, "_hashes", dict(code_hash._hashes))
    modules = set(sys.modules)
    yield tmp_path
    methods.load.cache_clear()
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture(scope="module")
def ray_folder() -> Iterator[Path]:
    """$RAY_TMPDIR of a cluster that a test starts: in Ray's own, its address would be followed by everything here.

    Its path is short, as those of sockets have to be.
    """
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        yield Path(folder)


@dataclass(frozen=True)
class Built:
    """A method before its first step, with what it sees and what it does not."""

    method: Method
    task: Task
    truth: Truth


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Trial]:
    """`tiny("robmix", {"method.views": 1})`: two epochs of three steps on 50 digits, 40 % of their labels wrong."""
    return contract.small


@pytest.fixture(scope="session")
def build() -> Callable[[Trial], Built]:
    """A trial's method as `lnl.trial.run.run` makes it, on the CPU, for tests that look inside."""

    def make(trial: Trial) -> Built:
        return Built(*assemble(trial, Execution(device="cpu")))

    return make
