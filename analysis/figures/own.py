"""Figures of a user's own: a file whose functions take a loaded study and return a figure of matplotlib."""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.base import Plot, drawing
from analysis.results import Results
from lnl.system import user_code


class NotDrawn(Exception):
    """A figure of the user's own could not be drawn; the message is a sentence that says why."""


@dataclass(frozen=True)
class OwnFigure:
    """A function of a user's file."""

    module: str
    name: str
    function: Callable[[Results], object]

    @property
    def title(self) -> str:
        """The first line of its docstring, without one its name."""
        return (inspect.getdoc(self.function) or self.name).splitlines()[0]

    def draw(self, study: Results) -> Plot:
        """What the function returns for the study.  Raises `NotDrawn` for any error of it."""
        try:
            with drawing():
                drawn = self.function(study)
                figure = drawn.figure if isinstance(drawn, Plot) else drawn
                if not isinstance(figure, Figure):
                    raise TypeError(f"it must return a matplotlib Figure, not {type(drawn).__name__}")
                plot = drawn if isinstance(drawn, Plot) else Plot(figure, pd.DataFrame(), self.title)
                plot.png()  # which draws, and may fail where the function did not
        except Exception as error:  # whatever a user's function does
            reason = (str(error).splitlines() or [""])[0].rstrip(".")
            raise NotDrawn(
                f"`{self.name}` could not be drawn ({type(error).__name__}: {reason}{self._line(error)})."
            ) from error
        finally:
            if (pyplot := sys.modules.get("matplotlib.pyplot")) is not None:
                pyplot.close("all")
        return plot

    def _line(self, error: BaseException) -> str:
        """The line of the user's file at which it failed."""
        file = inspect.getsourcefile(self.function)
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        return f"; {Path(file or '').name}, line {lines[-1]}" if lines else ""


def own_figures(reference: str) -> list[OwnFigure]:
    """The functions of a user's file that have no underscore before their name, in its order.

    Raises `ValueError` where there is no such file, where it cannot be imported, and where it defines none.
    """
    module = user_code.load(reference)
    assert isinstance(module, ModuleType), "a reference with a name after a colon"
    functions = [(name, getattr(module, name)) for name in user_code.public_names(module)]
    figures = [
        OwnFigure(module.__name__, name, function) for name, function in functions if isinstance(function, FunctionType)
    ]
    if not figures:
        raise ValueError(f"{reference} defines no figure: write a function that takes a study and returns a Figure.")
    return figures
