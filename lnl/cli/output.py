"""What commands print and write besides their own text: tables, figures, and the report of a study."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lnl.cli.flags import UsageError
from lnl.storage.atomic import write_atomically
from lnl.storage.places import Place, storage_flag

if TYPE_CHECKING:
    from rich.table import Table

    from analysis.figures.base import Plot

COLUMNS_OF_A_FILE = 1000  # no line of a table is broken where the output is no terminal


def print_table(table: Table) -> None:
    """Print a table as wide as the terminal; in a file or a pipe as wide as it is."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else COLUMNS_OF_A_FILE).print(table)


def print_numbers(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table of names, in the first column, and numbers, each of which is shown whole."""
    from rich.markup import escape
    from rich.table import Column, Table

    table = Table(Column(header[0], overflow="fold"), box=None, pad_edge=False)
    for name in header[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    for name, *cells in rows:
        table.add_row(escape(name), *cells)
    print_table(table)


def tell_unreadable(files: Mapping[Place, str]) -> None:
    """Print, on standard error, which files were left out, and why."""
    for path, reason in files.items():
        print(f"unreadable and left out: {path} ({reason})", file=sys.stderr)


def write_text(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_new(path: Path, text: str) -> None:
    """Write a file that is not there yet, with its folder.  Raises `UsageError` where it is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(
            f"{path} is there already, and stays as it is: choose another name, or move it away."
        ) from None


def check_figure(path: Path | None) -> None:
    """Raise `UsageError` for a figure's file that is neither .png nor .pdf, before any work is done."""
    if path is not None and path.suffix not in (".png", ".pdf"):
        raise UsageError(f"--figure takes a .png or a .pdf, not '{path}'.")


def write_figure(path: Path, plot: Plot) -> None:
    """Write a figure as its file's suffix says."""
    content = plot.pdf() if path.suffix == ".pdf" else plot.png()
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def draw_report(
    storage: Place,
    study: str,
    preset: str | None = None,
    *,
    selection: str | None = None,
    output: Path | None = None,
    night: str | None = None,
    figures: str | None = None,
    pdf: bool = False,
) -> Place:
    """Write a study's report and return its page; for dozens of arms that takes a minute, as a terminal is told."""
    from rich.console import Console

    from analysis.report.build import build

    sys.stdout.flush()
    with Console(stderr=True).status("Drawing the report"):
        return build(storage, study, preset, selection=selection, output=output, night=night, figures=figures, pdf=pdf)


def relative_path(path: Place) -> Place:
    """The path from the current folder where it lies below it."""
    here = Path.cwd()
    return path.relative_to(here) if isinstance(path, Path) and path.is_relative_to(here) else path


def logs_command(study: str, trial: str, storage: Place) -> str:
    """The command that prints a trial's log."""
    return f"lnl logs {study} {trial}{storage_flag(storage)}"
