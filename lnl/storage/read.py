"""Reading and writing parquet parts, with the damaged and foreign ones left out and named."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lnl.storage.atomic import write_atomically
from lnl.storage.files import printable, read_file, reason, shown
from lnl.storage.objects import ObjectPath, StorageError
from lnl.storage.places import Place, _is_named, holds_many, part_name
from lnl.storage.schema import (
    _ATTEMPT,
    PART,
    PART_KEYS,
    PARTITION,
    PARTITIONED,
    ROW_KEYS,
    SCHEMA_VERSION,
    SPOKEN,
    STAMP,
    TABLES,
    TRIALS,
)
from lnl.storage.secrets import mask

logger = logging.getLogger(__name__)
TWICE = "rows that are there twice count once"  # of a part whose other rows count


def write_rows(path: Place, schema: pa.Schema, rows: Sequence[Mapping[str, Any]], *, once: bool = False) -> None:
    """One parquet file from row dictionaries; a key that the schema lacks is an error, a missing one is null."""
    names = set(schema.names)
    for row in rows:
        if unknown := set(row) - names:
            raise KeyError(f"Columns that the schema lacks: {sorted(unknown)}.")
    spoken = [name for name in SPOKEN if name in names]
    filled = [
        {
            "schema_version": SCHEMA_VERSION,
            **row,
            **{name: printable(mask(row[name])) for name in spoken if row.get(name)},
        }
        for row in rows
    ]
    table = pa.Table.from_pylist(filled, schema=schema)
    # pages of one value: codecs, dictionaries and statistics are most of such a file, and of the time to read it
    one_row = {"compression": "none", "use_dictionary": False, "write_statistics": False, "store_schema": False}
    _write_table(path, table, once=once, **(one_row if len(rows) == 1 else {}))


def _write_table(path: Place, table: pa.Table, *, once: bool = False, **options: Any) -> None:
    options = {"compression": "zstd", "write_page_checksum": True, **options}

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # pyarrow itself opens no name that is not UTF-8
            pq.write_table(table, file, **options)

    write_atomically(path, write, once=once)


LeftOut = dict[Place, str]  # parts -> why they, or some of their rows, are left out, to stand within a sentence
_Found = tuple[list[pa.Table], int, LeftOut]  # rows, the newest schema version, what is left out


def tell_left_out(parts: LeftOut) -> None:
    """Where rows are read that nobody gets to see as such; each part once per process."""
    for path, why in parts.items():
        _tell(path, why)


@cache
def _tell(path: Place, why: str) -> None:
    logger.warning("%s is left out (%s): see `lnl doctor`.", shown(path), why)


def _unreadable(path: Place, why: str) -> StorageError:
    return StorageError(f"{shown(path)} cannot be read ({why}): remove it; then run again.")


UNREADABLE = (OSError, KeyError, UnicodeDecodeError, pa.ArrowException)  # of damaged files; KeyError: of their columns
TOGETHER = 50  # parts that a thread reads at once: thousands of small tables that live together are slow to make
REQUESTS = 32  # objects that are asked for at once: a thread waits for most of its time
JOINED = ".joined"  # not .parquet: other readers, such as DuckDB, would count its rows again
MANY = 200  # parts that are not in the joined file yet, and make it worth writing anew


def _read_all(paths: Sequence[Place], table: str, wanted: pa.Schema, filters: Any) -> list[_Found]:
    """As `_read_parts`, in threads."""
    read = partial(_read_parts, table=table, wanted=wanted, filters=filters)
    far = any(isinstance(path, ObjectPath) for path in paths[:1])
    together = max(1, min(TOGETHER, len(paths) // REQUESTS)) if far else TOGETHER
    groups = [paths[start : start + together] for start in range(0, len(paths), together)]
    with ThreadPoolExecutor(REQUESTS if far else pa.cpu_count()) as pool:
        return list(pool.map(read, groups))


def _joined(folder: Place, paths: Sequence[Place]) -> tuple[pa.Table, list[Place]]:
    """The rows of a folder's trials that its joined file holds as they are, and the parts to be read one by one.

    The joined file is a copy and never the record: a part counts by its name, size and time of change, and where many
    are not in it, it is written anew.  Without it, or where it cannot be written, everything takes longer and is the
    same.
    """
    stamps = {}
    for path in paths:
        with contextlib.suppress(OSError):  # such as removed since it was listed: that is told where it is opened
            about = path.stat()
            stamps[path.name] = f"{about.st_size}-{about.st_mtime_ns}"
    known = _known(folder / JOINED, stamps)
    unknown = _others(paths, known)
    if len(unknown) > MANY:
        read = [part for parts, *_ in _read_all(unknown, "trials", TRIALS.append(PART), None) for part in parts]
        fresh = pa.concat_tables(read) if read else known.select([*TRIALS.names, PART.name]).slice(0, 0)
        stamp = pa.array([stamps.get(name) for name in fresh[PART.name].to_pylist()], pa.string())
        known = pa.concat_tables([known, fresh.append_column(STAMP, stamp)]).combine_chunks()
        with contextlib.suppress(StorageError):
            _write_table(folder / JOINED, known)
        unknown = _others(paths, known)  # those that cannot be read
    study = pa.array([folder.name.removeprefix("study=")] * len(known), pa.string())
    return known.append_column(PARTITION, study), unknown


def _known(path: Place, stamps: Mapping[str, str]) -> pa.Table:
    """The rows of a joined file whose parts are as they were; none where it is absent, damaged or of another schema."""
    schema = TRIALS.append(PART).append(STAMP)
    try:
        rows = pq.ParquetFile(pa.BufferReader(read_file(path)), page_checksum_verification=True).read()
    except UNREADABLE:
        return schema.empty_table()
    if not rows.schema.equals(schema):
        return schema.empty_table()
    columns = zip(*(rows[name].to_pylist() for name in (PART.name, STAMP.name, *_ATTEMPT)), strict=True)
    good = [
        stamps.get(name) == stamp and _is_named("trials", name.removesuffix(".parquet"), *key)
        for name, stamp, *key in columns
    ]
    return rows.filter(pa.array(good, pa.bool_()))


def _others(paths: Sequence[Place], rows: pa.Table) -> list[Place]:
    there = set(rows[PART.name].to_pylist())
    return [path for path in paths if path.name not in there]


def _read_parts(paths: Sequence[Place], table: str, wanted: pa.Schema, filters: Any) -> _Found:
    """The wanted columns of the rows that pass, the newest schema version, and the files that are left out."""
    inside = _needed(table, wanted, filters, PART_KEYS[table])
    parts: list[tuple[Place, pa.Table]] = []
    broken: LeftOut = {}
    for path in paths:
        try:
            parts.append((path, _read_part(path, inside, table)))
        except UNREADABLE as error:
            broken[path] = reason(error)
    return (*_together(parts, table, wanted, filters), broken)


def _read_many(
    paths: Sequence[Place], taken: set[Place], table: str, wanted: pa.Schema, filters: Any
) -> Iterator[_Found]:
    """As `_read_parts`, of files of many attempts; `taken`: parts of one attempt, whose rows count before theirs."""
    inside = _needed(table, wanted, filters, ROW_KEYS[table])
    for path in paths:
        try:
            part = _read_part(path, inside, table)
        except UNREADABLE as error:
            yield [], 0, {path: reason(error)}
            continue
        twice = _twice(part, path, table, taken)
        parts = [(path, part.filter(pa.array(~twice)) if twice.any() else part)]
        broken = {path: f"{twice.sum()} of its rows; {TWICE}"} if twice.any() else {}
        yield (*_together(parts, table, wanted, filters), broken)


def _twice(part: pa.Table, path: Place, table: str, taken: set[Place]) -> np.ndarray:
    """Which rows of a file of many attempts are there before, in this one or in another, which `taken` grows by."""
    rows = part.select(ROW_KEYS[table]).to_pandas()
    twice = rows.duplicated().to_numpy(copy=True)
    for key, inside in rows.groupby(list(PART_KEYS[table]), sort=False).indices.items():
        own = path.parent / f"{part_name(table, *key)}.parquet"
        twice[inside] |= own in taken
        taken.add(own)
    return twice


def _needed(table: str, wanted: pa.Schema, filters: Any, keys: Sequence[str]) -> pa.Schema:
    names = {*keys, *wanted.names, *(column for column, _, _ in filters or []), "schema_version"}
    return pa.schema([field for field in TABLES[table] if field.name in names])


def _together(
    parts: Sequence[tuple[Place, pa.Table]], table: str, wanted: pa.Schema, filters: Any
) -> tuple[list[pa.Table], int]:
    """The wanted columns of the rows that pass, and the newest schema version."""
    if not parts:
        return [], 0
    rows = pa.concat_tables(part for _, part in parts)
    if table in PARTITIONED and PARTITION.name in wanted.names:
        studies = [path.parent.name.removeprefix("study=") for path, _ in parts]
        rows = rows.append_column(PARTITION, pa.array(np.repeat(studies, [part.num_rows for _, part in parts])))
    if PART.name in wanted.names:
        names = [path.name for path, _ in parts]
        rows = rows.append_column(PART, pa.array(np.repeat(names, [part.num_rows for _, part in parts])))
    return [_chosen(rows, wanted, filters)], _newest(rows["schema_version"])


def _chosen(rows: pa.Table, wanted: pa.Schema, filters: Any) -> pa.Table:
    if filters:
        rows = rows.filter(pq.filters_to_expression(filters))
    return rows.select(wanted.names).combine_chunks()


def _read_part(path: Place, inside: pa.Schema, table: str) -> pa.Table:
    """These columns of one file, null where it lacks them.

    Raises where it is damaged, empty or of another kind, and where its name is not that of its rows.
    """
    known = TABLES[table]
    # all bytes at once: a seek for each column takes longer; and the caller has threads
    file = pq.ParquetFile(pa.BufferReader(read_file(path)), page_checksum_verification=True)
    part = file.read(columns=inside.names, use_threads=False)
    if not part.schema.equals(inside) or not part.num_rows:
        part = _fitted(part, file.schema_arrow.names, inside, known)
    if not holds_many(path.stem):
        keys = [part[name].unique().to_pylist() for name in PART_KEYS[table]]
        if any(len(values) != 1 for values in keys) or not _is_named(table, path.stem, *(key for (key,) in keys)):
            raise pa.ArrowInvalid("its name is not that of its rows")
    return part


def _fitted(part: pa.Table, names: Sequence[str], inside: pa.Schema, known: pa.Schema) -> pa.Table:
    present = set(part.column_names)
    newer = "schema_version" in present and _newest(part["schema_version"].cast(pa.int32())) > SCHEMA_VERSION
    renamed = not present.issuperset(inside.names) and not set(known.names).issuperset(names)
    if part.num_rows == 0 or known.names[0] not in present or (renamed and not newer):  # no checksum guards the names
        raise pa.ArrowInvalid("it holds no rows of this table")
    columns = [
        part[field.name].cast(field.type) if field.name in present else pa.nulls(part.num_rows, field.type)
        for field in inside
    ]
    return pa.table(columns, schema=inside)


def _newest(versions: pa.ChunkedArray) -> int:
    return pc.max(versions).as_py() or 0
