"""Finding a study by its name or file, without starting what the file would start by itself."""

from __future__ import annotations

import argparse
import os
import sys
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from lnl.cli.flags import UsageError, add_completed_argument, unknown_name
from lnl.system import user_code
from lnl.system.own_analysis import users_modules_first

if TYPE_CHECKING:  # imports torch, which commands that only read results do without
    from lnl.study.study import Study


SHIPPED = Path(__file__).parents[2] / "studies"  # in the repository, and where a wheel is installed


def find_study(name: str) -> Study:
    """Return the study that a file runs, or that of studies/<name>.py here, or else of the one that comes with `lnl`.

    Raises `UsageError` where there is no such file, or no study in it.
    """
    return _load(study_file(name))


def add_study_argument(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names a study, for which a shell completes names and files."""
    add_completed_argument(parser, "study", study_files, help="a study's name (studies/<name>.py) or file")


def study_file(name: str) -> Path:
    """Return the file of a study, by its path or its name.  Raises `UsageError` where there is none."""
    path = Path(name) if _is_file_name(name) else study_files().get(name)
    if path is not None and path.is_file():
        return path
    known = sorted(study_files())
    raise UsageError(unknown_name("study", name, known, f"choose one of {', '.join(known)}, or give a file"))


def study_files() -> dict[str, Path]:
    """Name -> file of every study that can be named: those here, before those that come with `lnl`."""
    return {path.stem: path for folder in (SHIPPED, Path("studies").absolute()) for path in sorted(folder.glob("*.py"))}


def study_name(name: str) -> str:
    """Return the name under which results are stored: that of the study in a file, where a file is given."""
    return find_study(name).name if _is_file_name(name) else name


def _is_file_name(name: str) -> bool:
    return name.endswith(".py") or os.sep in name


class _StudyFound(BaseException):
    """Ends a study's file where `python FILE` would start the study: at its `study.main()`."""

    def __init__(self, study: Study) -> None:
        self.study = study


_loading: ContextVar[bool] = ContextVar("a command loads a study's file", default=False)


def end_loading(study: Study) -> None:
    """End a study's file with this study, if a command is loading one; do nothing where the file is run by itself."""
    if _loading.get():
        raise _StudyFound(study)


def _load(path: Path) -> Study:
    """Run the file as `python FILE` does, up to the first `main()` of a study: that study, else its `study`."""
    from lnl.declaring import DeclarationError
    from lnl.study.study import Study

    module = ModuleType("__main__")  # dataclasses and pickle look a class's module up there
    module.__file__ = str(path.absolute())
    user_code.search_in(path.parent)
    sys.path.insert(0, str(path.absolute().parent))  # stays there: the file may import when a function of it is called
    before = sys.modules["__main__"], sys.argv
    token = _loading.set(True)
    try:
        sys.modules["__main__"], sys.argv = module, [str(path)]
        with users_modules_first():
            exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), module.__dict__)
    except _StudyFound as found:
        return found.study
    except DeclarationError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's file does
        reason = str(error).split("\n")[0].rstrip(".")
        raise UsageError(f"{path} cannot be loaded ({type(error).__name__}: {reason}).") from error
    finally:
        _loading.reset(token)
        sys.modules["__main__"], sys.argv = before
    if isinstance(study := getattr(module, "study", None), Study):
        return study
    raise UsageError(f"{path} declares no `study = Study(…)`.")
