"""`lnl new`: a short, commented file to start from, which runs as it is."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lnl.cli.flags import COMPLETE, Commands, UsageError
from lnl.cli.output import write_new

TEMPLATES = Path(__file__).parent / "templates"
NAME = r"[a-z][a-z0-9_]{0,59}"


@dataclass(frozen=True)
class Kind:
    """What can be made: `templates/<kind>.py`, in which `my_<kind>` stands for the name."""

    help: str
    folder: Path  # where the file is written, below the current folder
    next_steps: tuple[str, ...]  # commands, with `{name}` and `{path}`
    fill: Callable[[str, argparse.Namespace], str] = lambda text, options: text  # in what the flags say
    add_flags: Callable[[argparse.ArgumentParser], None] = lambda parser: None


def _add_study_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset", metavar="NAME", default="digits", help="your images: folder:PATH or npz:FILE (default: digits)"
    )


def _fill_study(text: str, options: argparse.Namespace) -> str:
    return text.replace('dataset="digits"', f"dataset={json.dumps(options.dataset, ensure_ascii=False)}")


KINDS = {
    "study": Kind(
        "a study: two or three arms, one contrast, two presets",
        Path("studies"),
        ("lnl run {name} --preset smoke", "lnl run {name} --preset small"),
        _fill_study,
        _add_study_flags,
    ),
    "method": Kind(
        "a method of your own: a loss, its parameters, and what a search may try",
        Path("."),
        ("lnl check {path}", "lnl methods {path}"),
    ),
}


def add_parser(commands: Commands) -> None:
    """Add the command to `lnl`."""
    text = "write a short, commented file to start from, which runs as it is"
    kinds = commands.add_parser("new", help=text, description=text).add_subparsers(required=True, metavar="kind")
    for name, kind in KINDS.items():
        parser = kinds.add_parser(name, help=kind.help, description=f"Write {kind.help}.")
        parser.add_argument("name", help=f"the file is {kind.folder / 'NAME.py'}")
        kind.add_flags(parser)
        parser.set_defaults(command=run, kind=name)


def run(options: argparse.Namespace) -> int:
    """Write the file, unless there is one of that name, and say what to do next."""
    kind, name = KINDS[options.kind], options.name.removesuffix(".py")
    if not re.fullmatch(NAME, name):
        raise UsageError(f"'{name}' is no name of a {options.kind}: give small letters, digits and _, a letter first.")
    path = kind.folder / f"{name}.py"
    template = (TEMPLATES / f"{options.kind}.py").read_text(encoding="utf-8")
    write_new(path, kind.fill(template.replace(f"my_{options.kind}", name), options))
    print(f"Wrote {path}.  Next:")
    for step in kind.next_steps:
        print(f"  {step.format(name=name, path=path)}")
    return COMPLETE
