"""constraints.txt: the versions that were tested, one for everything that pyproject.toml asks for, within its range."""

from __future__ import annotations

import contextlib
import re
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[1]
LINES = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
VERSIONS = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in LINES[1:])}


def project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def direct() -> list[Requirement]:
    """All that is asked for directly, but by `bench`, which the tests do not use."""
    lists = [
        project()["dependencies"],
        *(of for extra, of in project()["optional-dependencies"].items() if extra != "bench"),
    ]
    asked = [Requirement(text) for texts in lists for text in texts]
    return [requirement for requirement in asked if requirement.name != project()["name"]]


def installed_with(requirements: Iterable[Requirement]) -> set[str]:
    """What these requirements bring, all that they need included, as far as it is installed here."""
    waiting, brought = [*requirements], set[tuple[str, frozenset[str]]]()
    while waiting:
        requirement = waiting.pop()
        known = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if known in brought:
            continue
        brought.add(known)
        with contextlib.suppress(metadata.PackageNotFoundError):
            needed = map(Requirement, metadata.requires(requirement.name) or ())
            extras = ("", *requirement.extras)
            waiting += [
                one for one in needed if not one.marker or any(one.marker.evaluate({"extra": e}) for e in extras)
            ]
    return {name for name, _ in brought}


def test_the_core_brings_no_tool_for_tests_and_nothing_of_an_extra() -> None:
    core = installed_with(map(Requirement, project()["dependencies"]))
    assert {"torch", "ray", "numpy"} <= core
    extras = {Requirement(text).name for texts in project()["optional-dependencies"].values() for text in texts}
    assert {"pytest", "mypy", "wandb", "nbclient", "psycopg"} <= extras
    # torch asks for setuptools; rich for a reader of Markdown
    assert core & {canonicalize_name(name) for name in extras} == {"setuptools", "markdown-it-py"}


@pytest.mark.parametrize("requirement", direct(), ids=lambda requirement: requirement.name)
def test_everything_asked_for_has_a_tested_version_within_its_range(requirement: Requirement) -> None:
    version = VERSIONS.get(canonicalize_name(requirement.name))
    assert version is not None, "run `make constraints`"
    assert requirement.specifier.contains(version, prereleases=True)


def test_there_are_names_and_versions_and_nothing_else() -> None:
    """No hash, no address, no path, and no build for one machine, such as +cpu: any index serves it."""
    assert LINES[0].startswith("# ")
    assert not [line for line in LINES[1:] if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line)]
    assert len(VERSIONS) == len(LINES) - 1, "one version of each"
    assert not {"lnl", "pip"} & VERSIONS.keys()
