"""Finding a study by its name or file."""

from __future__ import annotations

import os
import sys
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType

from lnl.cli.flags import UsageError
from lnl.declaring import DeclarationError
from lnl.study.study import Study

A_STUDY = "a study's name (studies/<name>.py) or file"


def find_study(name: str) -> Study:
    """The study that a file runs, or studies/<name>.py below the current folder or beside the package."""
    folders = [root / "studies" for root in (Path.cwd(), Path(__file__).parents[2])]
    places = [Path(name)] if _is_file_name(name) else [folder / f"{name}.py" for folder in folders]
    for path in places:
        if path.is_file():
            return _study_of(path)
    known = sorted({path.stem for folder in folders for path in folder.glob("*.py")})
    raise UsageError(f"There is no study '{name}': choose one of {', '.join(known)}, or give a file.")


def _is_file_name(name: str) -> bool:
    return name.endswith(".py") or os.sep in name


class _Handed(BaseException):
    """Ends a study's file where `python FILE` would start the study: at its `study.main()`."""

    def __init__(self, study: Study) -> None:
        self.study = study


_reading: ContextVar[bool] = ContextVar("reading a study's file", default=False)


def _study_of(path: Path) -> Study:
    """Run the file as `python FILE` does, up to the first `main()` of a study: that study, else its `study`."""
    module = ModuleType("__main__")  # dataclasses and pickle look a class's module up there
    module.__file__ = str(path.absolute())
    sys.path.insert(0, str(path.absolute().parent))  # stays there: the file may import when it is asked to
    before = sys.modules["__main__"], sys.argv
    token = _reading.set(True)
    try:
        sys.modules["__main__"], sys.argv = module, [str(path)]
        exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), module.__dict__)
    except _Handed as handed:
        return handed.study
    except DeclarationError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's file does
        reason = str(error).split("\n")[0].rstrip(".")
        raise UsageError(f"{path} cannot be loaded ({type(error).__name__}: {reason}).") from error
    finally:
        _reading.reset(token)
        sys.modules["__main__"], sys.argv = before
    if isinstance(found := getattr(module, "study", None), Study):
        return found
    raise UsageError(f"{path} declares no `study = Study(…)`.")


def _study_name(name: str) -> str:
    """The name under which results are stored: that of the study in a file, where a file is given."""
    return find_study(name).name if _is_file_name(name) else name
