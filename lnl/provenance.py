"""What a trial's numbers come from, as hashes: the code that it runs and the data that it reads.

A finished attempt is current while both are what a new attempt would use now (`lnl.results.latest`, which every command
and every reader asks).  Code is read once, when this process starts: edits of a running study's files change neither
its hashes nor, since workers import from a `snapshot` of the same text, its results.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Protocol

from lnl import data, machine
from lnl.files import open_file
from lnl.results import Place, Sources, short_hash

ROOT = Path(__file__).parents[1]  # the folder that holds the package
UNHASHED = (
    "lnl",
    "lnl.checkpoints",
    "lnl.declaring",
    "lnl.filenames",
    "lnl.files",
    "lnl.machine",
    "lnl.methods",
    "lnl.provenance",
    "lnl.results",
    "lnl.space",
)  # modules that train nothing


class Noise(Protocol):
    """What counts here of a trial's noise."""

    @property
    def column(self) -> str | None: ...


class Trial(Protocol):
    """What counts here of a `lnl.trial.Trial`, which is defined above this module."""

    @property
    def id(self) -> str: ...
    @property
    def method_name(self) -> str: ...
    @property
    def dataset(self) -> str: ...
    @property
    def weights(self) -> str | None: ...
    @property
    def noise(self) -> Noise: ...
    @property
    def prerequisites(self) -> Mapping[str, Trial]: ...


class Current:
    """What new trials would use now: the code of this process and the data sets below `root`.

    Data are looked at once: whoever wants to see a file that was replaced since makes another one.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root
        self._known: dict[tuple[object, ...], Sources] = {}
        self.checksum = cache(self._checksum)

    def sources(self, trial: Trial) -> Sources:
        """The hashes of a trial's code and data; those of data that are not on this machine are None."""
        before = [self.sources(prerequisite) for prerequisite in trial.prerequisites.values()]
        key = (trial.method_name, trial.weights, trial.dataset, trial.noise.column, *before)
        if key not in self._known:
            self._known[key] = self._sources(trial, before)
        return self._known[key]

    def _sources(self, trial: Trial, before: Sequence[Sources]) -> Sources:
        code = [code_hash(trial.method_name), *(one.code_hash for one in before)]
        if trial.weights is not None:
            with contextlib.suppress(OSError, ValueError):  # of a file that cannot be read the trial tells
                path = machine.expanded(trial.weights)
                status = path.stat()
                code.append(_file_hash(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
        read = [self.checksum(*key) for key in _keys(trial)]
        everything = [*read, *(one.sources_hash for one in before)]
        known = [part for part in everything if part is not None]
        return Sources(_joined(code), read[0], _joined(known) if len(known) == len(everything) else None)

    def trained_path(self, folder: Place, trial: Trial) -> Place:
        """Where the state of a trained prerequisite is kept: one file for each configuration, code and data."""
        sources = self.sources(trial)
        return folder / f"{trial.id}-{short_hash(f'{sources.code_hash} {sources.sources_hash}')}.pt"

    def missing_data(self, trials: Iterable[Trial]) -> list[str]:
        """Names of data sets that are not on this machine, so that results cannot be compared with them."""
        return sorted({trial.dataset for trial in trials if self.checksum(trial.dataset, None) is None})

    def _checksum(self, name: str, column: str | None) -> str | None:
        """As `verified_checksum`, but nothing is fetched or read through; None where the data are not here."""
        with contextlib.suppress(data.DataError):
            if dataset := data.present(name, self.root):
                return _checksum_of(dataset, column, self.root)
        return None


def verified_checksum(name: str, column: str | None, root: Path | None) -> str:
    """Checksum of a data set whose images are read through, or of one column of its human labels.

    Raises `lnl.data.DataError`.
    """
    return _checksum_of(data.load(name, root, verify=column is None), column, root)


def _checksum_of(dataset: data.Dataset, column: str | None, root: Path | None) -> str:
    if column is None:
        return dataset.checksum
    labels = data.human_labels(dataset, column, root)
    return hashlib.sha256(labels.tobytes()).hexdigest()[:16]


def data_keys(trials: Iterable[Trial]) -> set[tuple[str, str | None]]:
    """What these trials and all that they start from read: data set and, if any, the column of its human labels."""
    keys = set()
    for trial in trials:
        keys |= {*_keys(trial), *data_keys(trial.prerequisites.values())}
    return keys


def _keys(trial: Trial) -> list[tuple[str, str | None]]:
    """The data set first."""
    columns = (None, trial.noise.column) if trial.noise.column is not None else (None,)
    return [(trial.dataset, column) for column in columns]


def _joined(hashes: Sequence[str]) -> str:
    """One hash of several; a single one stays as it is."""
    return hashes[0] if len(hashes) == 1 else short_hash("".join(hashes))


@lru_cache(maxsize=64)
def _file_hash(path: Path, size: int, changed: int, status_changed: int) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --------------------------------------------------------------------------------------------------------------- code


def read_sources(root: Path) -> dict[str, bytes]:
    """The text of every module of the package below `root`, by its path relative to `root`."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted((root / "lnl").rglob("*.py"))}


SOURCES = read_sources(ROOT)


@cache
def code_hash(method: str) -> str:
    """Hash of the code that a trial of `method` runs: its file, `lnl.trial`, and all that they import from lnl.

    Comments, docstrings, formatting and what a search may try do not count.
    """
    return hash_of(method, SOURCES)


def hash_of(method: str, sources: Mapping[str, bytes]) -> str:
    """As `code_hash`, of a package with this text."""
    waiting, counted = [f"lnl.methods.{method}", "lnl.trial"], {}
    while waiting:
        name = waiting.pop()
        if name in counted or name in UNHASHED:
            continue
        if path := _path_of(name, sources):
            counted[name], imports = _what_counts(sources[path], lambda name: _path_of(name, sources) is not None)
            waiting += imports
    return short_hash("".join(counted[name] for name in sorted(counted)))


def snapshot(folder: Path) -> Path:
    """Write the package as this process has read it into `folder`, for workers to import; returns the folder.

    Raises `RuntimeError` where a module has changed while this process was starting, which may have imported either
    text.
    """
    changed = sorted(
        path
        for path, text in SOURCES.items()
        if path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") in sys.modules
        and (ROOT / path).is_file()
        and (ROOT / path).read_bytes() != text
    )
    if changed:
        raise RuntimeError(f"{ROOT / changed[0]} has changed since this process started: start it again.")
    skip = shutil.ignore_patterns("__pycache__", "*.py")
    shutil.copytree(ROOT / "lnl", folder / "lnl", ignore=skip, dirs_exist_ok=True)
    for path, text in SOURCES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(text)
    return folder


def _path_of(module: str, sources: Mapping[str, bytes]) -> str | None:
    """The file of a module of lnl, if there is one."""
    stem = module.replace(".", "/")
    return next((path for path in (f"{stem}/__init__.py", f"{stem}.py") if path in sources), None)


def _what_counts(text: bytes, is_module: Callable[[str], bool]) -> tuple[str, list[str]]:
    """What counts of a source file, and the modules of lnl that it imports."""
    tree = ast.parse(text)
    return ast.dump(_without_docstrings(_without_spaces(tree))), sorted(_imports(tree, is_module))


def _imports(tree: ast.AST, is_module: Callable[[str], bool]) -> set[str]:
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names if alias.name.startswith("lnl.")}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lnl":
            imported.add(node.module)
            imported |= {name for alias in node.names if is_module(name := f"{node.module}.{alias.name}")}
    return imported


def _without_spaces(tree: ast.Module) -> ast.Module:
    """Without SEARCH, MIXMATCH_SEARCH and the like, and the import of their words."""
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.ImportFrom) and node.module == "lnl.space")
        and not (isinstance(node, ast.Assign | ast.AnnAssign) and _names_a_space(node))
    ]
    return tree


def _names_a_space(node: ast.Assign | ast.AnnAssign) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return all(isinstance(target, ast.Name) and target.id.endswith("SEARCH") for target in targets)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return tree
