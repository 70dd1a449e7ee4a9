"""What a trial's numbers come from, as hashes: the code that it runs and the data that it reads.

A finished attempt is current while both are what a new attempt would use now (`lnl.storage.currency.latest`, which
every command and every reader asks).  Which code counts says `lnl.trial.code_hash`.  Code is read once, when this
process starts: edits of a running study's files change neither its hashes nor, since workers import from a copy of
the same text, its results.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Protocol

from lnl import data
from lnl.storage.currency import Sources
from lnl.storage.files import open_file
from lnl.storage.places import Place, short_hash
from lnl.system import machine
from lnl.trial.code_hash import code_hash, joined


class Noise(Protocol):
    """What counts here of a trial's noise."""

    @property
    def given_column(self) -> str | None: ...


class Trial(Protocol):
    """What counts here of a `lnl.trial.config.Trial`, which is defined above this module."""

    @property
    def id(self) -> str: ...
    @property
    def method_name(self) -> str: ...
    @property
    def dataset(self) -> str: ...
    @property
    def network(self) -> str: ...
    @property
    def weights(self) -> str | None: ...
    @property
    def noise(self) -> Noise: ...
    @property
    def prerequisites(self) -> Mapping[str, Trial]: ...


class Current:
    """What new trials would use now: the code of this process and the data sets below `root`.

    Each data set is looked up once; to see a file that was replaced since, make another `Current`.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root
        self._known: dict[tuple[object, ...], Sources] = {}
        self.checksum = cache(self._checksum)

    def sources(self, trial: Trial) -> Sources:
        """The hashes of a trial's code and data; those of data that are not on this machine are None."""
        before = [self.sources(prerequisite) for prerequisite in trial.prerequisites.values()]
        key = (trial.method_name, trial.network, trial.weights, trial.dataset, trial.noise.given_column, *before)
        if key not in self._known:
            self._known[key] = self._sources(trial, before)
        return self._known[key]

    def _sources(self, trial: Trial, before: Sequence[Sources]) -> Sources:
        code = [code_hash(trial.method_name, trial.network), *(source.code_hash for source in before)]
        if trial.weights is not None:
            with contextlib.suppress(OSError, ValueError):  # the trial itself reports a file that cannot be read
                path = machine.expanded(trial.weights)
                status = path.stat()
                code.append(_file_hash(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
        read = [self.checksum(*key) for key in _keys(trial)]
        everything = [*read, *(source.sources_hash for source in before)]
        known = [part for part in everything if part is not None]
        return Sources(joined(code), read[0], _joined(known) if len(known) == len(everything) else None)

    def trained_path(self, folder: Place, trial: Trial) -> Place:
        """Where the state of a trained prerequisite is kept: one file for each configuration, code and data."""
        sources = self.sources(trial)
        return folder / f"{trial.id}-{short_hash(f'{sources.code_hash} {sources.sources_hash}')}.pt"

    def missing_data(self, trials: Iterable[Trial]) -> list[str]:
        """Names of data sets that are not on this machine, so that results cannot be compared with them."""
        return sorted({trial.dataset for trial in trials if self.checksum(trial.dataset, None) is None})

    def remarks(self, trials: Iterable[Trial]) -> dict[str, tuple[str, ...]]:
        """By data set of these trials, what was odd about its images when they were read; of those on this machine."""
        found = {}
        for name in sorted({trial.dataset for trial in trials}):
            with contextlib.suppress(data.DataError):
                if (dataset := data.present(name, self.root)) and dataset.remarks:
                    found[name] = dataset.remarks
        return found

    def _checksum(self, name: str, column: str | None) -> str | None:
        """As `verified_checksum`, but nothing is fetched or read through; None where the data are not here."""
        with contextlib.suppress(data.DataError):
            if dataset := data.present(name, self.root):
                return _checksum_of(dataset, column, self.root)
        return None


def verified_checksum(name: str, column: str | None, root: Path | None) -> str:
    """Checksum of a data set whose images are read through, or of one column of its given labels.

    Raises `lnl.data.DataError`.
    """
    return _checksum_of(data.load(name, root, verify=column is None), column, root)


def _checksum_of(dataset: data.Dataset, column: str | None, root: Path | None) -> str:
    if column is None:
        return dataset.checksum
    labels = data.given_labels(dataset, column, root)
    return hashlib.sha256(labels.tobytes()).hexdigest()[:16]


def data_keys(trials: Iterable[Trial]) -> set[tuple[str, str | None]]:
    """What these trials and all that they start from read: data set and, if any, the column of its given labels."""
    keys = set()
    for trial in trials:
        keys |= {*_keys(trial), *data_keys(trial.prerequisites.values())}
    return keys


def _keys(trial: Trial) -> list[tuple[str, str | None]]:
    """The data set first."""
    column = trial.noise.given_column
    return [(trial.dataset, None)] if column is None else [(trial.dataset, None), (trial.dataset, column)]


def _joined(hashes: Sequence[str]) -> str:
    """One hash of the data of several; a single one stays as it is."""
    return hashes[0] if len(hashes) == 1 else short_hash("".join(hashes))


@lru_cache(maxsize=64)
def _file_hash(path: Path, size: int, changed: int, status_changed: int) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
