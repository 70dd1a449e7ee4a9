"""Plans that earlier commands have made, so that `lnl status` imports torch only where a plan may be another by now.

To plan a study is to run its file and to build the configurations of its methods, which are made of torch modules.  A
plan without looks and without a search depends on the flags, on the text of the study's file, of what this imports from
its own folder and of the user's own methods, networks and data sets, on this package, and on the versions of Python and
pydantic.  It is remembered, below the folder of data, until one of them changes.  A file that may depend on more, as it
imports something else or opens files, is planned anew each time.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pydantic
from pydantic import BaseModel

from lnl import data, methods
from lnl.cli.planning import Request
from lnl.cli.studies import study_file
from lnl.execution import sequential
from lnl.storage.atomic import write_atomically
from lnl.storage.objects import StorageError
from lnl.storage.part_names import Kept
from lnl.storage.places import canonical, short_hash
from lnl.storage.plan_record import PlanRecord
from lnl.storage.store import Store
from lnl.study.plan import Plan, Planned
from lnl.system import user_code
from lnl.trial.code_hash import sources_digest

if TYPE_CHECKING:  # imports torch
    from lnl.trial.config import Trial

FLAGS = ("preset", "arms", "method", "replicates", "night", "set", "keep", "rerun_unkept")  # a plan depends on them
# With these it depends on results, too.
FLAGS_OF_MORE = ("until_decided", "max_replicates", "trials", "parameters", "sampler", "pruner", "search_seed")
# Modules of which an import says that a file depends on nothing else, and built-in functions that say it does.
SELF_CONTAINED = frozenset(
    "__future__ collections copy dataclasses enum functools itertools lnl math operator string types typing".split()
)
OPENS = frozenset("__import__ eval exec input open".split())
MOST = 100  # plans that are kept, the latest


class _Noise(BaseModel, frozen=True):
    given_column: str | None


class _Trial(BaseModel, frozen=True):
    """What the state of a trial is told by; see `lnl.trial.provenance.Trial`."""

    id: str
    replicate: int
    method_name: str
    dataset: str
    network: str
    weights: str | None
    noise: _Noise
    total_epochs: int
    prerequisites: dict[str, _Trial]

    def references(self) -> Iterator[str]:
        """The user's own code that it names, or that its prerequisites name."""
        own_method = methods.reference(self.method_name)
        yield from [own_method] if own_method else []
        yield from filter(user_code.is_reference, (self.network, self.dataset))
        for trial in self.prerequisites.values():
            yield from trial.references()


class _Planned(BaseModel, frozen=True):
    trial: _Trial
    arm: str
    setting: str


class _Memory(BaseModel, frozen=True):
    """A plan and what it was made from."""

    made_from: str
    record: PlanRecord
    trials: tuple[_Planned, ...]
    arms: list[str] | None
    keep: tuple[Kept, ...]

    def references(self) -> set[str]:
        return {reference for planned in self.trials for reference in planned.trial.references()}

    def plan(self) -> Plan:
        # Of a trial, who asks how plans stand reads no more than `_Trial` has.
        return Plan(
            tuple(Planned(cast("Trial", each.trial), each.arm, each.setting) for each in self.trials), self.record
        )


def recall(options: argparse.Namespace) -> Request | None:
    """What these flags ask of a study, as an earlier command has planned it; None where it is to be planned anew.

    Raises `lnl.cli.flags.UsageError` where there is no such study.
    """
    path = study_file(options.study)
    user_code.search_in(path.parent)
    try:
        memory = _Memory.model_validate_json(_place(path, options).read_bytes())
        if memory.made_from != _made_from(path, memory.references()):
            return None
    except (OSError, ValueError):  # there is none, another version wrote it, or the user's code cannot be read
        return None
    store, plan = Store(options.storage), memory.plan()
    if sequential.declared_before(store, plan.study, plan.preset) and options.replicates is None:
        return None  # that run goes on with its looks
    return Request(store, plan, memory.arms, lambda **_: plan, memory.keep, options.rerun_unkept)


def remember(request: Request, options: argparse.Namespace) -> None:
    """Keep the plan of a request for `recall`, where it can be kept and the folder of data can be written.

    `options`: with the `study` that was named.
    """
    plan = request.plan
    if plan.record.looks or plan.search is not None or any(getattr(options, flag) for flag in FLAGS_OF_MORE):
        return
    trials = tuple(_Planned(trial=_sketch(each.trial), arm=each.arm, setting=each.setting) for each in plan.trials)
    try:
        path = study_file(options.study)  # there is none of a study that a notebook runs
        memory = _Memory(made_from="", record=plan.record, trials=trials, arms=request.arms, keep=request.keep)
        made_from = _made_from(path, memory.references())
        text = memory.model_copy(update={"made_from": made_from}).model_dump_json().encode()
        if made_from is not None and _Memory.model_validate_json(text).plan().hash == plan.hash:
            write_atomically(place := _place(path, options), lambda temporary: temporary.write_bytes(text))
            for old in sorted(place.parent.glob("*.json"), key=lambda file: -file.stat().st_mtime)[MOST:]:
                old.unlink()
    except (StorageError, OSError, ValueError):
        return


def _sketch(trial: Trial) -> _Trial:
    return _Trial(
        id=trial.id,
        replicate=trial.replicate,
        method_name=trial.method_name,
        dataset=trial.dataset,
        network=trial.network,
        weights=trial.weights,
        noise=_Noise(given_column=trial.noise.given_column),
        total_epochs=trial.total_epochs,
        prerequisites={role: _sketch(before) for role, before in trial.prerequisites.items()},
    )


def _place(path: Path, options: argparse.Namespace) -> Path:
    """The file that keeps the plan of a study under these flags, as seen from the current folder."""
    flags = {flag: str(getattr(options, flag)) for flag in FLAGS}
    key = canonical({**flags, "study": str(path.absolute()), "folder": str(Path.cwd())})
    return data.data_folder(options.data) / "plans" / f"{short_hash(key)}.json"


def _made_from(path: Path, references: Iterable[str]) -> str | None:
    """A digest of all that a plan depends on beside the flags; None where a file may depend on more."""
    own = user_code.script(path)
    if not all(_is_self_contained(source.text, own) for source in own.values()):
        return None
    texts = [own, *(user_code.read(reference).sources for reference in sorted(references))]
    named = [sorted((name, source.text) for name, source in sources.items()) for sources in texts]
    versions = (sources_digest(), sys.version, pydantic.VERSION)
    return hashlib.sha256(repr((versions, named)).encode()).hexdigest()


def _is_self_contained(text: bytes, own: Mapping[str, object]) -> bool:
    """Whether a file depends on nothing but its text: `own` are the modules of its folder."""
    for node in ast.walk(ast.parse(text)):
        imported: list[str] = []
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imported = [node.module or ""]
        if not {name.partition(".")[0] for name in imported} <= SELF_CONTAINED | own.keys():
            return False
        if isinstance(node, ast.Name) and node.id in OPENS:
            return False
    return True
