"""Optuna's objects, made from what a plan says: samplers, pruners, distributions and the storage."""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import sqlalchemy.exc
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock

from lnl.space import Choice, Integer, Space
from lnl.storage.files import is_there, lock_file, open_file
from lnl.storage.leases import locked
from lnl.storage.objects import StorageError
from lnl.storage.places import Place
from lnl.study.plan import Cell

JOURNAL = "optuna.journal"  # below the results folder; `optuna-dashboard results/optuna.journal` opens it
CONNECT_S = 10  # until a database that does not answer is given up
optuna.logging.set_verbosity(optuna.logging.ERROR)


def make_sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    """A sampler with Optuna's defaults."""
    quiet: Any = {"seed": seed, "warn_independent_sampling": False}  # conditional fields are drawn independently
    samplers: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
        "qmc": lambda: optuna.samplers.QMCSampler(scramble=True, warn_asynchronous_seeding=False, **quiet),
        "cmaes": lambda: optuna.samplers.CmaEsSampler(**quiet),
        "gp": lambda: optuna.samplers.GPSampler(**quiet),
        "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=seed),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return samplers[name]()


def make_pruner(name: str) -> optuna.pruners.BasePruner:
    """One of Optuna's pruners; one that never prunes where none is asked for, or Ray Tune prunes."""
    pruners: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
        "median": optuna.pruners.MedianPruner,
        "percentile": lambda: optuna.pruners.PercentilePruner(25.0),
        "successive_halving": optuna.pruners.SuccessiveHalvingPruner,
        "hyperband": optuna.pruners.HyperbandPruner,
    }
    return pruners.get(name, optuna.pruners.NopPruner)()


def distribution(space: Space) -> BaseDistribution:
    """A space as one of Optuna's distributions."""
    if isinstance(space, Choice):
        return CategoricalDistribution(space.values)
    if isinstance(space, Integer):
        return IntDistribution(space.low, space.high, space.log)
    return FloatDistribution(space.low, space.high, space.log)


def seed_of(cell: Cell, seed: int, driver: int = 0, trials: int = 0) -> int:
    """The seed of a search's sampler, for its `driver`-th driver, which found so many suggestions evaluated."""
    digest = hashlib.sha256(f"{seed} {cell.place}".encode()).digest()
    own = int.from_bytes(digest[:4])
    return int(np.random.SeedSequence([own, driver, trials]).generate_state(1)[0]) if driver or trials else own


class _FileLock(BaseJournalFileLock):
    """A lock for the journal, which the system frees when its process dies, unlike Optuna's own lock files."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def acquire(self) -> bool:
        self.file = lock_file(self.path)
        return True

    def release(self) -> None:
        self.file.close()


def open_storage(url: str | None, root: Place) -> optuna.storages.BaseStorage:
    """The database at `url`, or the journal of the results folder.

    Raises `StorageError` where it cannot be used, `ValueError` where `url` is not one, or must be given.
    """
    if url is None:
        if not isinstance(root, Path):
            raise ValueError(
                f"Optuna keeps no journal on object storage, as at {root}: give a search --optuna or $LNL_OPTUNA, such "
                "as postgresql://user@host/name."
            )
        with storage_errors(place_of(url, root)):
            root.mkdir(parents=True, exist_ok=True)
            if is_there(root / JOURNAL):
                open_file(root / JOURNAL).close()  # Optuna would wait for ever where it is a pipe
            lock = _FileLock(root / f".{JOURNAL}.lock")
            return JournalStorage(JournalFileBackend(str(root / JOURNAL), lock_obj=lock))
    options: dict[str, Any] = {"pool_pre_ping": True}
    place = place_of(url, root)
    if sqlalchemy.make_url(url).get_backend_name() == "postgresql":
        options["connect_args"] = {"connect_timeout": CONNECT_S}
    with storage_errors(place), locked(root / "suggestions"):  # of two drivers one makes the tables
        return RDBStorage(url, engine_kwargs=options)


def place_of(url: str | None, root: Place) -> str:
    """A storage as messages name it: without a password.  Raises `ValueError` where `url` is not one."""
    if url is None:
        return str(root / JOURNAL)
    try:
        return sqlalchemy.make_url(url).set(query={}).render_as_string(hide_password=True)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise ValueError(
            "--optuna or $LNL_OPTUNA is not a database URL: give one such as postgresql://user@host/name."
        ) from None


@contextlib.contextmanager
def storage_errors(place: str) -> Iterator[None]:
    """Turn whatever Optuna's storage raises into a `StorageError` of one sentence."""
    try:
        yield
    except StorageError:
        raise
    except (sqlalchemy.exc.NoSuchModuleError, ImportError) as error:
        raise StorageError(f"No driver for {place} is installed ({_first_line(error)}): pip install it.") from error
    except ValueError as error:
        if not isinstance(error, json.JSONDecodeError) and "Invalid log format" not in str(error):
            raise
        raise StorageError(
            f"Optuna's journal {place} is damaged: move it away and run again; it is made anew from the results."
        ) from error
    except (
        optuna.exceptions.StorageInternalError,
        sqlalchemy.exc.SQLAlchemyError,
        OSError,
        RuntimeError,
        KeyError,
    ) as error:
        if isinstance(error, RuntimeError | KeyError) and not _is_of_optuna(error):
            raise
        cause = error.__cause__ or error
        raise StorageError(
            f"Optuna's storage {place} cannot be used ({_first_line(cause)}): see that it is there and may be written; "
            "no result is lost, and a storage that is gone is made again from the results."
        ) from error


def _is_of_optuna(error: BaseException) -> bool:
    """Whether Optuna or its database raised it, such as for a study that was deleted or is of another version."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    place = trace.tb_frame.f_globals.get("__name__", "") if trace else ""
    return place.partition(".")[0] in ("optuna", "sqlalchemy") or isinstance(
        error, optuna.exceptions.OptunaError | sqlalchemy.exc.SQLAlchemyError
    )


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
