"""The file `labels.csv` or `labels.parquet` beside a folder of images: what people said of each image.

Its columns are `file`, the path of an image below the folder; `label` and any that start with `label_`, which hold the
names of classes as one annotator gave them; and `clean`, the true class where it is known.  An empty cell is no label.
"""

from __future__ import annotations

import csv
import io
import logging
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lnl.data.dataset import DataError
from lnl.storage.files import is_there, open_file, read_file, reason, shown

logger = logging.getLogger(__name__)

FILE, CLEAN, LABEL = "file", "clean", "label"
NAMES = ("labels.csv", "labels.parquet")
CORRECTED = ("given", "changed_by", "at", "reason")  # what `lnl label apply` writes beside a label


@dataclass(frozen=True)
class Row:
    """What the file says of one image."""

    where: str  # the file and its line, for messages
    cells: dict[str, str]  # column -> name of a class; those that are not empty


@dataclass(frozen=True)
class LabelFile:
    """All rows, by the image's path below the folder as `key` writes it."""

    path: Path
    columns: tuple[str, ...]  # those of labels, without `clean`
    rows: dict[str, Row]


def key(file: str) -> str:
    """A path as it is compared: with slashes, and as `normal` has it."""
    return normal(file.strip().replace("\\", "/").removeprefix("./"))


def normal(text: str) -> str:
    """The text in one of Unicode's two ways to write an umlaut, of which file systems and tables choose either."""
    return unicodedata.normalize("NFC", text)


def find(folder: Path) -> Path | None:
    """The file of labels in a folder, if there is one.  Raises `DataError` where there are two."""
    present = [folder / name for name in NAMES if is_there(folder / name)]
    if len(present) > 1:
        raise DataError(f"{shown(folder)} has both {' and '.join(NAMES)}: keep one.")
    return present[0] if present else None


def read(path: Path, named: Collection[str] = ()) -> LabelFile:
    """All rows of the file.  Raises `DataError` with one sentence where it is damaged or says a thing twice.

    `named`: further columns that hold labels, whatever they are called.
    """
    lines = _csv(path) if path.suffix == ".csv" else _parquet(path)
    _, header = next(lines, ("", ()))
    columns = tuple(name for name in header if name == LABEL or name.startswith(f"{LABEL}_") or name in named)
    _check_header(path, header, columns)
    used = {*columns, CLEAN} & {*header}
    if unused := [name for name in header if name not in {*used, FILE, *CORRECTED}]:
        logger.warning(
            "%s has the columns %s, which are not used: labels are in 'label', 'label_…' and 'clean'.",
            shown(path),
            ", ".join(unused),
        )
    rows: dict[str, Row] = {}
    for place, values in lines:
        where = f"{shown(path)}, {place}"
        if len(values) != len(header):
            raise DataError(f"{where}: there are {len(values)} cells, but the header has {len(header)}: correct it.")
        cells = dict(zip(header, (value.strip() for value in values), strict=True))
        image = key(cells[FILE])
        if image in rows:
            raise DataError(
                f"{where}: '{image}' has a row before ({rows[image].where.rpartition(', ')[2]}): give each image one "
                "row, and each annotator a column."
            )
        rows[image] = Row(where, {name: normal(cells[name]) for name in used if cells[name]})
    return LabelFile(path, columns, rows)


def _check_header(path: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    if FILE not in header or not (columns or CLEAN in header):
        raise DataError(
            f"{shown(path)} has the columns {', '.join(header) or '(none)'}, but needs 'file' and 'label' "
            "(or 'label_…' for several annotators, or 'clean' for the truth): let its first line be file,label."
        )
    if len(set(header)) < len(header):
        twice = next(name for name in header if list(header).count(name) > 1)
        raise DataError(f"{shown(path)} has two columns '{twice}': give each a name of its own, such as label_2.")


def separator(text: str) -> str:
    """What separates the cells of a CSV file: comma, semicolon or tab, whichever its first line has most often."""
    return max(",;\t", key=text.partition("\n")[0].count)


def _csv(path: Path) -> Iterator[tuple[str, Sequence[str]]]:
    """Lines with their place, the header first; separated by comma, semicolon or tab, whichever the header has."""
    try:
        text = read_file(path).decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator(text), strict=True)
        for values in reader:
            if any(value.strip() for value in values):
                yield f"line {reader.line_num}", [value.strip() for value in values]
    except UnicodeDecodeError as error:
        raise DataError(f"{shown(path)} is not UTF-8 (byte {error.start}): save it as 'CSV UTF-8'.") from error
    except (OSError, csv.Error) as error:
        raise DataError(f"{shown(path)} cannot be read as CSV ({reason(error)}): write it anew.") from error


def _parquet(path: Path) -> Iterator[tuple[str, Sequence[str]]]:
    """Rows with their place, the names of columns first."""
    import pyarrow
    import pyarrow.parquet

    try:
        with open_file(path) as file:
            table = pyarrow.parquet.read_table(file)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(f"{shown(path)} cannot be read as parquet ({reason(error)}): write it anew.") from error
    yield "", table.column_names
    columns = [column.to_pylist() for column in table.columns]
    for number, values in enumerate(zip(*columns, strict=True), 1):
        yield f"row {number}", ["" if value is None else str(value) for value in values]
