"""The report as a page: its sections and pictures, their files beside it, and the HTML."""

from __future__ import annotations

import base64
import itertools
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2

from analysis.figures.base import Plot, Plots
from analysis.report.rendering import Renderer, Rendering
from analysis.results import Results
from analysis.tables.table import Table, unbroken
from lnl.storage.atomic import write_atomically
from lnl.storage.filenames import file_name
from lnl.storage.places import Place, default_storage, storage_flag

PIXELS_PER_INCH = 100  # on the page
MOST_OPEN_SENTENCES = 12  # on contrasts; more of them are folded, for the figure below says the same
WIDEST_ON_PHONE = 320  # CSS pixels of a figure that needs no scrolling there
PAGE_ANCHORS = ("missing", "left", "provenance", "unreadable")  # ids of the page's own


@dataclass(frozen=True)
class Picture:
    """A figure on the page."""

    stem: str  # of its files
    rendering: Rendering
    width: int  # CSS pixels
    caption: str
    rows: int | None  # of the frame that it draws, where there is one
    code: str  # a Python expression that draws it again, after `from analysis import load`

    @cached_property
    def files(self) -> dict[str, bytes]:
        """The picture by kind of file."""
        return self.rendering.files()

    @property
    def source(self) -> str:
        """The picture as a data: URL."""
        return f"data:image/png;base64,{base64.b64encode(self.files['png']).decode()}"


@dataclass
class Section:
    """One panel, or something else that the page shows under a heading.

    `lead` comes first; `note` stands where there is nothing to draw; `more` (tables) and `asides`, by heading, are
    folded; `parts`, folded if `folded`, come last.
    """

    name: str
    title: str
    pictures: list[Picture] = field(default_factory=list)
    more: dict[str, dict[str, Table]] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)  # by the stem of their files
    note: str = ""
    lead: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    asides: dict[str, list[str]] = field(default_factory=dict)
    parts: list[Section] = field(default_factory=list)
    folded: bool = False

    @property
    def anchor(self) -> str:
        """The id of its heading; its only figure may have its name."""
        return self.name + "-section" * any(picture.stem == self.name for picture in self.pictures)


@dataclass(frozen=True)
class Report:
    """What every section is made from, and where its files go."""

    study: Results
    rule: str
    folder: Place
    figures: str | None = None  # file with figures of the user's own
    pdf: bool = False  # figures are written as PDF, too
    renderer: Renderer = field(default_factory=Renderer)
    drawn: list[Picture] = field(default_factory=list)  # so far
    written: set[str] = field(default_factory=set)  # names of its files so far
    anchors: set[str] = field(default_factory=lambda: set(PAGE_ANCHORS))  # ids of its sections so far

    @property
    def command(self) -> str:
        night = f" --night {shlex.quote(self.study.night)}" if self.study.night else ""
        named = f"{shlex.quote(self.study.name)} --preset {shlex.quote(self.study.preset)}"
        own = f" --figures {shlex.quote(self.figures)}" if self.figures else ""
        more = own + " --pdf" * self.pdf
        return f"lnl report {named}{night} --selection {self.rule}{more}{storage_flag(self.study.root)}"

    @property
    def loading(self) -> str:
        """The Python expression that loads the study."""
        root = str(self.study.root) if storage_flag(self.study.root) else default_storage()
        night = f", night={python_literal(self.study.night)}" if self.study.night else ""
        named = map(python_literal, (root, self.study.name, self.study.preset))
        return f"load({', '.join(named)}{night})"

    def section(self, name: str, title: str, **content: Any) -> Section:
        """Return a section whose id no other has."""
        anchor = _free_name(name, lambda anchor: anchor not in self.anchors)
        self.anchors.add(anchor)
        return Section(anchor, title, **content)

    def picture(self, name: str, plot: Plot, code: str) -> Picture:
        """Begin with a figure, which is written with the page; write the rows that it draws."""
        stem, kinds = self._stem(name, "png"), ["png", *["pdf"] * self.pdf]
        self.written.update(f"{stem}.{kind}" for kind in kinds)
        if len(plot.drawn.columns):
            self._write(
                f"{stem}.csv", plot.drawn.to_csv(index=False, float_format="%.10g", lineterminator="\n").encode()
            )
        rows = len(plot.drawn) if len(plot.drawn.columns) else None
        width = round(plot.figure.get_figwidth() * PIXELS_PER_INCH)
        picture = Picture(stem, self.renderer.start(plot.figure, kinds), width, plot.caption, rows, code)
        self.drawn.append(picture)
        return picture

    def pictures(self, prefix: str, drawn: Plots, code: str) -> list[Picture]:
        """Write figures by name.  `code`: a Python expression that draws all of them."""
        return [
            self.picture(f"{prefix}-{kind}", plot, f"{code}[{python_literal(kind)}]") for kind, plot in drawn.items()
        ]

    def tables(self, **named: Table) -> dict[str, Table]:
        """Write tables by name; return them by the stem of their files."""
        stems = {}
        for name, table in named.items():
            stems[stem := self._stem(name, "md")] = table
            self._write(f"{stem}.md", table.markdown().encode())
            self._write(f"{stem}.tex", table.latex(stem).encode())
        return stems

    def _stem(self, name: str, kind: str) -> str:
        """Of a name's files, of which one has this ending: unlike all others of this report."""
        return _free_name(name, lambda stem: f"{stem}.{kind}" not in self.written)

    def page(self, template: str, **content: Any) -> Place:
        """Write the figures, and the page last."""
        for picture in reversed(self.drawn):  # from the end, where other processes have not begun
            for kind, data in picture.files.items():
                self._write(f"{picture.stem}.{kind}", data)
        loader = jinja2.FileSystemLoader(Path(__file__).parent)
        environment = jinja2.Environment(
            loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_unbroken
        )
        return self._write(
            "index.html",
            environment.get_template(template).render(report=self, widest_on_phone=WIDEST_ON_PHONE, **content).encode(),
        )

    def _write(self, name: str, content: bytes) -> Place:
        path = self.folder / name
        write_atomically(path, lambda temporary: temporary.write_bytes(content))
        self.written.add(name)
        return path


def python_literal(text: str) -> str:
    """Return a text as Python spells it."""
    return json.dumps(text, ensure_ascii=False)


def _free_name(name: str, is_free: Callable[[str], bool]) -> str:
    """The file name of this name, or of the name with the first number with which it is free."""
    candidates = (file_name(name if number == 1 else f"{name} ({number})") for number in itertools.count(1))
    return next(filter(is_free, candidates))


def _unbroken(value: Any) -> Any:
    """Keep numbers on the page together with their units."""
    return unbroken(value) if type(value) is str else value  # markup stays as it is
