"""The registry of reported numbers: one TOML file per source in this folder, one `Entry` per number.

A file holds its tables as they are printed.  The cells of a row stand in one text, in the order of `columns`: "96.1",
"92.9±0.2", or "-" where the paper has no number.  `unit` says what they are in: percent (unless said otherwise),
percent error, or a number as it is.  Every other key is a field of `Entry`; a table says what all of its cells share, a
column and a row what is their own.  `settings` of the three are joined.  TOML has no null: a `probe`, a `network` or a
`method` of ours that is not known is "unknown".
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import BaseModel, Field, ValidationError, model_validator

FOLDER = Path(__file__).parent
CELL = re.compile(r"(?P<value>\d+(\.\d+)?)(±(?P<sd>\d+(\.\d+)?))?")
ABSENT = "-"
Fraction = Annotated[float, Field(ge=0, le=1)]


class PaperError(ValueError):
    """A file of the registry cannot be read, or there is no such paper; the message says which and why."""


class Entry(BaseModel, frozen=True, extra="forbid", strict=True):
    """One number of one paper, and all that is known of how it came about.  None: not known, unless said otherwise."""

    paper: str  # file of this folder
    where: str  # table, figure or section
    found: str  # where the number was read, as far as `evidence` goes
    # read: in the paper or its authors' own repository | quoted: in another public text | recalled: by the author of a
    # fact sheet, from memory, so that it is shown and never compared.
    evidence: Literal["read", "quoted", "recalled"] = "read"
    name: str  # as the paper calls it
    method: str | None = None  # file of lnl/methods; None: not among ours
    settings: dict[str, Any] = Field(default_factory=dict)  # of our method's Config, where the paper says them
    measure: Literal[
        "test accuracy",
        "test accuracy, top 5",
        "validation accuracy",
        "training accuracy",
        "training loss",
        "area under the error curve",
    ] = "test accuracy"
    dataset: str
    noise: Literal[
        "none",
        "symmetric",
        "asymmetric",
        "asymmetric_block",
        "pair",
        "flip",  # one wrong class for all or for each, drawn at random
        "hierarchical",
        "human",
        "semantic",
        "web",
    ] = "none"
    rate: Fraction = 0.0  # nominal
    include_true: bool | None = None  # symmetric only: whether the true class may be drawn, so that fewer are wrong
    column: str | None = None  # human only: which labels; none with other kinds
    labels: Annotated[int, Field(ge=1)] | None = None  # None: all
    unlabelled_ratio: Annotated[float, Field(gt=0)] | None = None  # unlabelled images per labelled one; None: all left
    probe: Annotated[int, Field(ge=0)] | None = 0  # trusted images
    network: str | None = None  # our name for it where we have it, else the paper's
    resize: Annotated[int, Field(ge=1)] | None = None  # pixels that the network sees; None: those of the data set
    initialisation: str = ""  # what its weights start from; empty: drawn at random
    selection: Literal["last", "last10", "median20", "val_selected", "best_test", "unknown"] = "unknown"
    validation: Literal["none", "noisy", "clean", "unknown"] = "unknown"  # images kept apart, and their labels
    epochs: Annotated[int, Field(ge=1)] | None = None
    steps: Annotated[int, Field(ge=1)] | None = None  # optimizer steps an epoch; None: one pass
    n: Annotated[int, Field(ge=1)] | None = None  # replicates
    value: Annotated[float, Field(ge=0)]  # a fraction; a loss as it is
    sd: Annotated[float, Field(ge=0)] | None = None  # what follows ±
    spread: Literal["replicates", "epochs", "unknown"] | None = None  # what ± is over; None: no ±
    notes: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Entry:
        if self.measure != "training loss" and not (self.value <= 1 and (self.sd or 0) <= 1):
            raise ValueError(f"{self.value} ± {self.sd} is no fraction")
        if (self.sd is None) != (self.spread is None):
            raise ValueError("± needs a spread (replicates, epochs or unknown), and a spread ±")
        if self.include_true is not None and self.noise != "symmetric":
            raise ValueError("include_true belongs to symmetric noise")
        if (self.column is None) == (self.noise == "human"):
            raise ValueError("column says which human labels: give it with human noise and only then")
        if bool(self.rate) == (self.noise in ("none", "human", "web")):
            raise ValueError(f"the rate of noise {self.noise} is {self.rate}")
        return self


class Paper(BaseModel, frozen=True, extra="forbid"):
    """A source: a paper, a report or a benchmark."""

    name: str
    title: str
    authors: str
    year: int | None = None
    url: str = ""
    seed: str = ""  # number of the seed document, for those that this project began with
    notes: list[str] = []  # what the source does not agree with itself, or with its code, about
    tables: list[dict[str, Any]] = []


@cache
def papers() -> dict[str, Paper]:
    """Every source by name, in the order of their names.  Raises PaperError."""
    by_name = {}
    for path in sorted(FOLDER.glob("*.toml")):
        try:
            by_name[path.stem] = Paper(name=path.stem, **tomllib.loads(path.read_text(encoding="utf-8")))
        except (tomllib.TOMLDecodeError, ValidationError) as error:
            raise PaperError(f"{path.name}: {error}") from None
    return by_name


def paper(name: str) -> Paper:
    """Return a source by its name.  Raises PaperError for an unknown one."""
    if name not in papers():
        raise PaperError(f"There is no paper {name!r}: choose one of {', '.join(papers())}.")
    return papers()[name]


def notes(name: str) -> list[str]:
    """What is odd about a paper or its tables: inconsistencies, conventions that its text does not tell."""
    of_entries = dict.fromkeys(entry.notes for entry in entries() if entry.paper == name and entry.notes)
    return [*paper(name).notes, *of_entries]


@cache
def entries() -> tuple[Entry, ...]:
    """All numbers, by paper, table, row and column.  Raises PaperError with the place of what cannot be right."""
    return tuple(
        entry for source in papers().values() for table in source.tables for entry in _entries_of_table(source, table)
    )


def reported() -> pd.DataFrame:
    """All numbers, one row each, with the fields of `Entry` as columns; accuracies are fractions."""
    return pd.DataFrame([entry.model_dump() for entry in entries()], columns=list(Entry.model_fields))


def _entries_of_table(source: Paper, table: Mapping[str, Any]) -> Iterator[Entry]:
    shared = {key: value for key, value in table.items() if key not in ("columns", "rows", "unit")}
    columns = table.get("columns", [{}])
    for row in table["rows"]:
        place = f"{source.name}.toml, {table.get('where')}, {row.get('name')}"
        cells = row["cells"].split()
        if len(cells) != len(columns):
            raise PaperError(f"{place}: {len(cells)} cells for {len(columns)} columns.")
        own = {key: value for key, value in row.items() if key != "cells"}
        for column, cell in zip(columns, cells, strict=True):
            if cell == ABSENT:
                continue
            parts = (shared, column, own)
            fields = {key: value for part in parts for key, value in part.items() if key != "unit"}
            fields |= {key: None for key in ("probe", "network", "method") if fields.get(key) == "unknown"}
            settings = {key: value for part in parts for key, value in part.get("settings", {}).items()}
            unit = column.get("unit", table.get("unit", "percent"))
            try:
                number = _number(cell, unit, fields.pop("spread", None))
                yield Entry(paper=source.name, **{**fields, "settings": settings, **number})
            except (ValidationError, PaperError) as error:
                raise PaperError(f"{place}, {cell!r}: {error}") from None


def _number(cell: str, unit: str, spread: str | None) -> dict[str, Any]:
    """`value`, `sd` and `spread` of a cell: "92.9±0.2" in percent is 0.929 ± 0.002, in percent error 0.071 ± 0.002."""
    match = CELL.fullmatch(cell)
    if match is None or unit not in ("percent", "percent error", "number"):
        raise PaperError(f"neither a number nor {ABSENT!r}, or of an unknown unit {unit!r}")
    value, scale = Decimal(match["value"]), 1 if unit == "number" else 100
    fields: dict[str, Any] = {"value": float((100 - value if unit == "percent error" else value) / scale)}
    if match["sd"] is not None:
        fields |= {"sd": float(Decimal(match["sd"]) / scale), "spread": spread or "unknown"}
    return fields
