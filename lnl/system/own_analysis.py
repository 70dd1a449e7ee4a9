"""`import analysis` means the package beside `lnl`, also where a user has a module of that name.

`python STUDY.py` puts the study's folder first on the path, and so does a command that loads a study's file.  A file
`analysis.py` there is the user's own: the study's file may import it, and keeps it.  What is imported by that name once
a command runs is the package beside `lnl`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

NAME = "analysis"
FOLDER = Path(__file__).parents[2] / NAME


class _Finder(MetaPathFinder):
    """Finds `analysis` beside `lnl`, before the path is searched."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != NAME:
            return None
        return spec_from_file_location(NAME, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)])


_FINDER = _Finder()


def use_own_analysis() -> None:
    """From now on `import analysis` finds the package beside `lnl`; what imported another one before keeps that."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    if not _own_is_loaded():
        _forget()


@contextmanager
def users_modules_first() -> Iterator[None]:
    """Within it `import analysis` finds what the path has first: a user's file is loaded with its own."""
    own = {name: module for name, module in sys.modules.items() if _is_part(name)}
    if searched_first := _FINDER in sys.meta_path:
        sys.meta_path.remove(_FINDER)
    _forget()
    try:
        yield
    finally:
        if own or not _own_is_loaded():
            _forget()
            sys.modules.update(own)
        if searched_first:
            use_own_analysis()


def _own_is_loaded() -> bool:
    file = getattr(sys.modules.get(NAME), "__file__", None)
    return file is not None and Path(file) == FOLDER / "__init__.py"


def _forget() -> None:
    for name in [name for name in sys.modules if _is_part(name)]:
        del sys.modules[name]


def _is_part(name: str) -> bool:
    return name == NAME or name.startswith(f"{NAME}.")
