"""Tables of parquet parts: `write_rows` writes a part, `read_table` reads a whole table.

A part that is damaged or foreign, and rows that are there twice, are left out and named (`LeftOut`), never an error:
one bad file must not hide all others.  Rows of trials are read from a joined copy where there are many.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lnl.storage.atomic import write_atomically
from lnl.storage.files import listed, printable, read_file, reason, shown
from lnl.storage.footer import checked, guarded
from lnl.storage.objects import ObjectPath, StorageError
from lnl.storage.part_names import holds_many, names_rows, part_name, partition, study_of
from lnl.storage.places import Place
from lnl.storage.schema import (
    ATTEMPT_KEY,
    FREE_TEXT_COLUMNS,
    PART,
    PART_KEYS,
    PARTITION,
    PARTITIONED,
    ROW_KEYS,
    SCHEMA_VERSION,
    STAMP,
    TABLES,
    TRIALS,
)
from lnl.storage.secrets import mask

logger = logging.getLogger(__name__)
TWICE = "rows that are there twice count once"  # of a part whose other rows count


def write_rows(path: Place, schema: pa.Schema, rows: Sequence[Mapping[str, Any]], *, once: bool = False) -> None:
    """Write one part; a key that the schema lacks is an error, a missing one is null.  `once`: never over another file.

    Raises `StorageError`.
    """
    names = set(schema.names)
    for row in rows:
        if unknown := set(row) - names:
            raise KeyError(f"Columns that the schema lacks: {sorted(unknown)}.")
    free_text = [name for name in FREE_TEXT_COLUMNS if name in names]
    filled = [
        {
            "schema_version": SCHEMA_VERSION,
            **row,
            **{name: printable(mask(row[name])) for name in free_text if row.get(name)},
        }
        for row in rows
    ]
    table = pa.Table.from_pylist(filled, schema=schema)
    # pages of one value: codecs, dictionaries and statistics are most of such a file, and of the time to read it
    one_row = {"compression": "none", "use_dictionary": False, "write_statistics": False, "store_schema": False}
    write_table(path, table, once=once, **(one_row if len(rows) == 1 else {}))


def write_table(path: Place, table: pa.Table, *, once: bool = False, **options: Any) -> None:
    """Write one part as it is, with checksums.  `options`: of pyarrow.  Raises `StorageError`."""
    content = io.BytesIO()
    pq.write_table(table, content, **{"compression": "zstd", "write_page_checksum": True, **options})
    write_atomically(path, lambda temporary: temporary.write_bytes(guarded(content.getvalue())), once=once)


LeftOut = dict[Place, str]  # parts -> why they, or some of their rows, are left out, to stand within a sentence


def tell_left_out(parts: LeftOut) -> None:
    """Warn of parts that are left out, where nobody gets to see them otherwise; of each part once per process."""
    for path, why in parts.items():
        _warn(path, why)


@cache
def _warn(path: Place, why: str) -> None:
    logger.warning("%s is left out (%s): see `lnl doctor`.", shown(path), why)


# ------------------------------------------------------------------------------------------------------- whole tables

UNREADABLE = (OSError, KeyError, UnicodeDecodeError, pa.ArrowException)  # of damaged files; KeyError: of their columns
TOGETHER = 50  # parts that a thread reads at once: thousands of small tables that live together are slow to make
REQUESTS = 32  # objects that are asked for at once: a thread waits for most of its time
JOINED = ".joined"  # not .parquet: other readers, such as DuckDB, would count its rows again
MANY = 200  # parts that are not in the joined file yet, and make it worth writing anew

Filters = Sequence[tuple[str, str, object]] | None  # (column, operator, value), all of which must hold


class Query(NamedTuple):
    """What is to be read of a table."""

    table: str
    wanted: pa.Schema  # columns
    filters: Filters

    def columns_in_files(self, keys: Sequence[str]) -> pa.Schema:
        """The columns that must be decoded."""
        names = {*keys, *self.wanted.names, *(column for column, _, _ in self.filters or ()), "schema_version"}
        return pa.schema([field for field in TABLES[self.table] if field.name in names])

    def of_rows(self, rows: pa.Table) -> pa.Table:
        """The wanted columns of the rows that pass."""
        if self.filters:
            rows = rows.filter(pq.filters_to_expression(list(self.filters)))
        return rows.select(self.wanted.names).combine_chunks()


class Rows(NamedTuple):
    """Rows from some parts."""

    tables: list[pa.Table]
    newest_schema: int  # the newest version of the schema among them
    left_out: LeftOut


def read_table(
    root: Place,
    table: str,
    study: str | None,
    columns: Sequence[str] | None,
    filters: Filters,
    files: str | Collection[str],
    check: bool,
) -> tuple[pd.DataFrame, LeftOut]:
    """See `Store.read`."""
    folder = root / table if study is None or table not in PARTITIONED else root / table / partition(study)
    paths = _parts(folder, files, deep=study is None and table in PARTITIONED)
    query = Query(table, _wanted(table, columns), filters)
    many = [path for path in paths if holds_many(path.stem)]
    if table == "trials" and files == "*" and not check and not many:
        batches = _read_joined(paths, query)
    else:
        batches = _read_all([path for path in paths if not holds_many(path.stem)], query)
        own = set(paths).difference(many, *(rows.left_out for rows in batches))
        batches += _read_many(many, own, query)
    _warn_of_newer_schema(folder, max((rows.newest_schema for rows in batches), default=0))
    tables = [query.wanted.empty_table(), *(part for rows in batches for part in rows.tables)]
    left_out = {path: why for rows in batches for path, why in rows.left_out.items()}
    return pa.concat_tables(tables).combine_chunks().to_pandas(), dict(sorted(left_out.items()))


def _wanted(table: str, columns: Sequence[str] | None) -> pa.Schema:
    schema = TABLES[table].insert(0, PARTITION) if table in PARTITIONED else TABLES[table]
    return pa.schema([schema.field(name) for name in (schema.names if columns is None else columns)])


def _parts(folder: Place, files: str | Collection[str], deep: bool) -> list[Place]:
    """The parts in a folder, and deeper: those that a pattern fits, or of these names."""
    pattern, names = (files, None) if isinstance(files, str) else ("*", set(files))
    return [
        path
        for path in listed(folder, f"{pattern}.parquet", deep=deep)
        if not path.name.startswith(".") and (names is None or path.stem in names or holds_many(path.stem))
    ]


def _warn_of_newer_schema(folder: Place, newest: int) -> None:
    if newest > SCHEMA_VERSION:
        warnings.warn(
            f"Some files below {folder} were written by a newer version of lnl (their schema is {newest}, this "
            f"version knows {SCHEMA_VERSION}): what it does not know in them is left out until you update it.",
            stacklevel=4,
        )


def _read_all(paths: Sequence[Place], query: Query) -> list[Rows]:
    """As `_read_parts`, in threads."""
    is_far = any(isinstance(path, ObjectPath) for path in paths[:1])
    together = max(1, min(TOGETHER, len(paths) // REQUESTS)) if is_far else TOGETHER
    groups = [paths[start : start + together] for start in range(0, len(paths), together)]
    with ThreadPoolExecutor(REQUESTS if is_far else pa.cpu_count()) as pool:
        return list(pool.map(partial(_read_parts, query=query), groups))


def _read_parts(paths: Sequence[Place], query: Query) -> Rows:
    """The rows of parts that have one key each."""
    inside = query.columns_in_files(PART_KEYS[query.table])
    parts: list[tuple[Place, pa.Table]] = []
    left_out: LeftOut = {}
    for path in paths:
        try:
            parts.append((path, _read_part(path, inside, query.table)))
        except UNREADABLE as error:
            left_out[path] = reason(error)
    return _together(parts, query, left_out)


def _read_many(paths: Sequence[Place], taken: set[Place], query: Query) -> Iterator[Rows]:
    """The rows of parts that hold many keys; `taken`: parts of one key, whose rows count before theirs."""
    inside = query.columns_in_files(ROW_KEYS[query.table])
    for path in paths:
        try:
            part = _read_part(path, inside, query.table)
        except UNREADABLE as error:
            yield Rows([], 0, {path: reason(error)})
            continue
        twice = _twice(part, path, query.table, taken)
        parts = [(path, part.filter(pa.array(~twice)) if twice.any() else part)]
        yield _together(parts, query, {path: f"{twice.sum()} of its rows; {TWICE}"} if twice.any() else {})


def _twice(part: pa.Table, path: Place, table: str, taken: set[Place]) -> np.ndarray:
    """Which rows of a part of many keys have come before, in this part or another; `taken` grows by its keys."""
    rows = part.select(ROW_KEYS[table]).to_pandas()
    twice = rows.duplicated().to_numpy(copy=True)
    for key, inside in rows.groupby(list(PART_KEYS[table]), sort=False).indices.items():
        own = path.parent / f"{part_name(table, *key)}.parquet"
        twice[inside] |= own in taken
        taken.add(own)
    return twice


def _together(parts: Sequence[tuple[Place, pa.Table]], query: Query, left_out: LeftOut) -> Rows:
    """The rows of parts that were read, with the columns that are in no file."""
    if not parts:
        return Rows([], 0, left_out)
    rows = pa.concat_tables(part for _, part in parts)
    counts = [part.num_rows for _, part in parts]
    if query.table in PARTITIONED and PARTITION.name in query.wanted.names:
        rows = rows.append_column(PARTITION, pa.array(np.repeat([_study(path) for path, _ in parts], counts)))
    if PART.name in query.wanted.names:
        rows = rows.append_column(PART, pa.array(np.repeat([path.name for path, _ in parts], counts)))
    return Rows([query.of_rows(rows)], _newest(rows["schema_version"]), left_out)


def _study(path: Place) -> str:
    """The study of a part; the folder's name where it lies in no partition."""
    return study_of(path) or path.parent.name


# ------------------------------------------------------------------------------------------------------ joined copies


def _read_joined(paths: Sequence[Place], query: Query) -> list[Rows]:
    """As `_read_all`, of all trials, from the joined files as far as these go."""
    batches: list[Rows] = []
    for folder, inside in groupby(paths, key=lambda path: path.parent):
        rows, others = _joined(folder, list(inside))
        batches.append(Rows([query.of_rows(rows)], _newest(rows["schema_version"]), {}))
        batches += _read_all(others, query)
    return batches


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
    others = _others(paths, known)
    if len(others) > MANY:
        known = _with_others(known, others, stamps)
        with contextlib.suppress(StorageError):
            write_table(folder / JOINED, known)
        others = _others(paths, known)  # those that cannot be read
    study = pa.array([_study(paths[0])] * len(known), pa.string())
    return known.append_column(PARTITION, study), others


def _with_others(known: pa.Table, others: Sequence[Place], stamps: Mapping[str, str]) -> pa.Table:
    """The rows of a joined file with those of other parts, as far as these can be read."""
    query = Query("trials", TRIALS.append(PART), None)
    read = [part for rows in _read_all(others, query) for part in rows.tables]
    fresh = pa.concat_tables(read) if read else known.select([*TRIALS.names, PART.name]).slice(0, 0)
    stamp = pa.array([stamps.get(name) for name in fresh[PART.name].to_pylist()], pa.string())
    return pa.concat_tables([known, fresh.append_column(STAMP, stamp)]).combine_chunks()


def _known(path: Place, stamps: Mapping[str, str]) -> pa.Table:
    """The rows of a joined file whose parts are as they were; none where it is absent, damaged or of another schema."""
    schema = TRIALS.append(PART).append(STAMP)
    try:
        rows = pq.ParquetFile(pa.BufferReader(checked(read_file(path))), page_checksum_verification=True).read()
    except UNREADABLE:
        return schema.empty_table()
    if not rows.schema.equals(schema):
        return schema.empty_table()
    columns = zip(*(rows[name].to_pylist() for name in (PART.name, STAMP.name, *ATTEMPT_KEY)), strict=True)
    is_known = [
        stamps.get(name) == stamp and names_rows("trials", name.removesuffix(".parquet"), *key)
        for name, stamp, *key in columns
    ]
    return rows.filter(pa.array(is_known, pa.bool_()))


def _others(paths: Sequence[Place], rows: pa.Table) -> list[Place]:
    """The parts that a joined file does not hold."""
    names = set(rows[PART.name].to_pylist())
    return [path for path in paths if path.name not in names]


# ----------------------------------------------------------------------------------------------------------- one part


def _read_part(path: Place, inside: pa.Schema, table: str) -> pa.Table:
    """These columns of one file, null where it lacks them.

    Raises where it is damaged, empty or of another kind, and where its name is not that of its rows.
    """
    known = TABLES[table]
    # all bytes at once: a seek for each column takes longer; and the caller has threads
    file = pq.ParquetFile(pa.BufferReader(checked(read_file(path))), page_checksum_verification=True)
    part = file.read(columns=inside.names, use_threads=False)
    if not part.schema.equals(inside) or not part.num_rows:
        part = _fitted(part, file.schema_arrow.names, inside, known)
    if not holds_many(path.stem):
        keys = [part[name].unique().to_pylist() for name in PART_KEYS[table]]
        if any(len(values) != 1 for values in keys) or not names_rows(table, path.stem, *(key for (key,) in keys)):
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
