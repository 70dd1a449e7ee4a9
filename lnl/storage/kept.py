"""What trials keep on request: per-image predictions, what a method believes of each given label, final weights.

Each is one file of an attempt, in a folder of its kind: two tables, and weights as safetensors, which every framework
reads.  They are written before the attempt's row, so that a row which exists has them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from lnl.storage.atomic import write_atomically
from lnl.storage.files import listed, read_file, reason, shown
from lnl.storage.objects import StorageError
from lnl.storage.part_names import KEPT, Kept, attempt_name, partition
from lnl.storage.places import Place
from lnl.storage.schema import SCHEMA_VERSION, TABLES
from lnl.storage.store import Store
from lnl.storage.tables import write_table

if TYPE_CHECKING:  # whoever only reads needs no torch
    from torch import Tensor

DIGEST = "sha256"  # of the tensors, in the metadata of a file of weights


@dataclass(frozen=True)
class Outputs:
    """What a trained method says, and its weights; None: not asked for.

    The tables lack the columns that name their attempt.
    """

    predictions: pa.Table | None = None
    beliefs: pa.Table | None = None
    weights: Mapping[str, Tensor] | None = None


def write(store: Store, study: str, trial: str, attempt: int, epoch: int, outputs: Outputs) -> None:
    """Store what an attempt keeps.  Raises `StorageError`."""
    key = {"trial": trial, "attempt": attempt, "epoch": epoch, "schema_version": SCHEMA_VERSION}
    tables: dict[Kept, pa.Table | None] = {"predictions": outputs.predictions, "beliefs": outputs.beliefs}
    for kind, table in tables.items():
        if table is not None:
            columns = [
                pa.array([key[field.name]] * len(table), field.type) if field.name in key else table[field.name]
                for field in TABLES[kind]
            ]
            write_table(store.kept_path(kind, study, trial, attempt), pa.table(columns, schema=TABLES[kind]))
    if outputs.weights is not None:
        write_weights(store.kept_path("weights", study, trial, attempt), outputs.weights)


def attempts_with(store: Store, study: str, kinds: Collection[Kept]) -> dict[Kept, set[str]]:
    """By kind the names (`attempt_name`) of a study's attempts that have kept it."""
    return {kind: {path.stem for path in listed(store.root / kind / partition(study), "*.*")} for kind in kinds}


def lacking(name: str, attempts: Mapping[Kept, Collection[str]]) -> tuple[Kept, ...]:
    """The kinds that the attempt of this name has not kept, of those in `attempts`, which `attempts_with` gave."""
    return tuple(kind for kind in KEPT if kind in attempts and name not in attempts[kind])


def lacks(store: Store, study: str, trial: str, attempt: int, kinds: Collection[Kept]) -> bool:
    """Whether one attempt has not kept all of these kinds."""
    return bool(lacking(attempt_name(trial, attempt), attempts_with(store, study, kinds)))


# ----------------------------------------------------------------------------------------------------------- weights


def write_weights(path: Place, weights: Mapping[str, Tensor]) -> None:
    """Write tensors by name as safetensors, with a digest of them in its metadata.  Raises `StorageError`."""
    from safetensors.numpy import save_file

    arrays = {name: np.ascontiguousarray(tensor.detach().cpu().numpy()) for name, tensor in weights.items()}
    metadata = {"format": "pt", DIGEST: _digest(arrays)}
    write_atomically(path, lambda temporary: save_file(arrays, temporary, metadata))


def read_weights(path: Place) -> dict[str, np.ndarray]:
    """The tensors that `write_weights` wrote, as arrays by name.

    Raises `FileNotFoundError`, and `StorageError` with one sentence where the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        content = read_file(path)
        weights: dict[str, np.ndarray] = load(content)
        length = int.from_bytes(content[:8], "little")  # of the header, which is JSON
        if json.loads(content[8 : 8 + length])["__metadata__"][DIGEST] != _digest(weights):
            raise ValueError("its tensors have another digest than when they were written")
    except FileNotFoundError:
        raise
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise StorageError(
            f"{shown(path)} cannot be used ({reason(error)}): remove it; --rerun-unkept then trains its trial again."
        ) from error
    return weights


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Digest of names, types, shapes and contents."""
    total = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        total.update(f"{name} {array.dtype} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()
