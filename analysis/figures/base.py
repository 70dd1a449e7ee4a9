"""What all figures share: style, colours, and a figure with its rows and caption."""

from __future__ import annotations

import base64
import contextlib
import html
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from analysis.results import Results
from analysis.words import readable

STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8a8a",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ececec",
    "grid.linewidth": 0.7,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "text.parse_math": False,  # names are text: a dollar sign is one
    "pdf.fonttype": 42,  # TrueType: journals refuse Type 3
}
PLAIN_FONT = "DejaVu Sans"  # matplotlib's own
WIDE_FONTS = (  # with Chinese, Japanese or Korean signs, as systems have them; those that are installed are used
    *("Noto Sans CJK SC", "Noto Sans CJK TC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Source Han Sans SC"),
    *("Noto Sans SC", "Noto Sans JP", "Noto Sans KR", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "IPAexGothic"),
    *("IPAGothic", "TakaoGothic", "VL Gothic", "NanumGothic", "UnDotum", "Droid Sans Fallback", "Unifont"),
    *("PingFang SC", "Hiragino Sans", "Hiragino Sans GB", "Apple SD Gothic Neo", "STHeiti", "Arial Unicode MS"),
    *("Microsoft YaHei", "SimHei", "Yu Gothic", "Meiryo", "MS Gothic", "Malgun Gothic"),
)
BOXES = "Drawn as boxes, because no font of this machine has them"
MOST_SIGNS = 12  # that a caption names
NOT_STYLE = ("backend", "backend_fallback", "interactive", "toolbar", "timezone", "date.epoch")  # no look
MOST_ARMS_TOGETHER = 7  # in one pair of axes, each with a colour of its own; of more each has a row, or its own axes
PAGE_WIDTH = 9.6  # inches; the report shows them at about 100 px each
# Okabe & Ito (2008), without yellow, which is too light for lines; the base arm is black
ARM_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
ARM_LINES = ("-", "--", ":")  # after six arms the colours come again with another line
NAME_COLOURS = (  # of levels that are names, such as kinds of noise; Paul Tol's muted scheme without two
    *("#332288", "#88CCEE", "#117733", "#DDCC77", "#AA4499", "#999933", "#661100", "#CC6677"),
)
FAINT_ALPHA = 0.28
PNG_DPI = 200
DARK_GREY = "#444444"
CLASS_MARKERS = ("o", "^", "s", "D")  # after six classes the colours come again with another marker


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Within it, or in a function that it decorates, figures look as here, whatever the user's matplotlibrc says.

    A sign that no font has is drawn as a box; the caption says so.
    """
    plain = {name: value for name, value in matplotlib.rcParamsDefault.items() if name not in NOT_STYLE}
    with matplotlib.rc_context({**plain, **STYLE, "font.family": list(fonts())}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield


@cache
def fonts() -> tuple[str, ...]:
    """The fonts of figures: matplotlib's own and, for signs that it lacks, those of `WIDE_FONTS` that there are."""
    installed = set(font_manager.get_font_names())
    return (PLAIN_FONT, *(name for name in WIDE_FONTS if name in installed))


@cache
def _known_signs() -> frozenset[int]:
    """Code points that the fonts have."""
    files = [font_manager.findfont(font_manager.FontProperties(family=[name])) for name in fonts()]
    return frozenset(point for file in files for point in font_manager.get_font(file).get_charmap())


def _boxes_sentence(figure: Figure) -> str:
    """Which signs of a figure's texts no font has; nothing where there are none."""
    texts = "".join(text.get_text() for text in figure.findobj(Text))
    lacking = [sign for sign in dict.fromkeys(texts) if not sign.isspace() and ord(sign) not in _known_signs()]
    shown = " ".join(lacking[:MOST_SIGNS]) + " …" * (len(lacking) > MOST_SIGNS)
    return f" {BOXES}: {shown}. Install one, such as Noto Sans CJK." if lacking else ""


def colour_map(name: str) -> Colormap:
    """Return a colour map of 256 colours, whatever the user's matplotlibrc says."""
    return matplotlib.colormaps[name].resampled(256)


@dataclass(frozen=True)
class Plot:
    """A figure, the frame it was drawn from, and what a reader must know."""

    figure: Figure
    drawn: pd.DataFrame
    caption: str

    def __post_init__(self) -> None:
        if BOXES not in self.caption:  # as in that of a figure with another caption
            object.__setattr__(self, "caption", self.caption + _boxes_sentence(self.figure))

    def png(self) -> bytes:
        return png(self.figure)

    def pdf(self) -> bytes:
        return pdf(self.figure)

    def _repr_html_(self) -> str:
        """As wide as in the report, 100 px an inch."""
        image, width = base64.b64encode(self.png()).decode(), round(100 * self.figure.get_figwidth())
        style = f"width:{width}px;max-width:100%"
        return f'<img style="{style}" src="data:image/png;base64,{image}"><p>{html.escape(self.caption)}</p>'


class Plots(dict[str, Plot]):
    """Figures by name, which a notebook shows below each other."""

    def _repr_html_(self) -> str:
        return "".join(plot._repr_html_() for plot in self.values())


@dataclass(frozen=True)
class Look:
    """How one arm or level is drawn."""

    colour: Any
    line: Any = "-"


def annotate_right(axes: Axes, position: float, text: str, beside: float = 8, **look: Any) -> None:
    """Write a text so many points right of the axes, at a height in data."""
    place: Any = dict(xycoords=axes.get_yaxis_transform(), xytext=(beside, 0), textcoords="offset points")
    axes.annotate(text, (1, position), va="center", fontsize=8.5, annotation_clip=False, **place, **look)


def panels_width(panels: int) -> float:
    """Return the inches of a figure with so many panels side by side, at most the page's."""
    return min(PAGE_WIDTH, 1.6 + 1.8 * panels)


def whole_ticks(most: int = 10) -> MaxNLocator:
    """At most so many ticks at whole numbers, such as epochs: one where there is one."""
    return MaxNLocator(integer=True, nbins=most, min_n_ticks=1)


def arm_looks(study: Results) -> dict[str, Look]:
    """Black for the base arm, then the palette in the order of the plan: an arm looks the same everywhere.

    Where there are more arms than colours, those that share a panel whose arms stand together do not share a colour.
    Searched arms come last, and have their look before their search is over.
    """
    searched = {f"{cell.arm}_{cell.sampler}": None for cell in study.plan.cells}
    names = [*(name for name in study.plan.arms if name not in searched), *searched]
    base = next((name for name, overrides in study.plan.arms.items() if not overrides), names[0])
    others = [name for name in names if name != base]
    together = [panel.arms for panel in study.plan.panels.values() if len(panel.arms) <= MOST_ARMS_TOGETHER]
    colours: dict[str, str] = {}
    looks = {base: Look("#000000")}
    for i, name in enumerate(others):
        beside = {colours[arm] for arms in together if name in arms for arm in arms if arm in colours}
        cycle = [ARM_COLOURS[(i + step) % len(ARM_COLOURS)] for step in range(len(ARM_COLOURS))]
        colours[name] = next((colour for colour in cycle if colour not in beside), cycle[0])
        before = list(colours.values()).count(colours[name]) - 1  # arms that have the colour already
        looks[name] = Look(colours[name], ARM_LINES[before % len(ARM_LINES)])
    return looks


def level_looks(values: Sequence[Any]) -> dict[Any, Look]:
    """Numbers have an order: a sequential map, dark to light; names have colours of their own.  No arm uses them."""
    if len(values) > 2 and all(isinstance(value, str) for value in values):
        return {
            value: Look(NAME_COLOURS[i % len(NAME_COLOURS)], ARM_LINES[i // len(NAME_COLOURS)])
            for i, value in enumerate(values)
        }
    shades = colour_map("plasma")(np.linspace(0.05, 0.8, max(len(values), 2)))
    return {value: Look(tuple(shade)) for value, shade in zip(values, shades, strict=False)}


def new_figure(height: float, width: float = PAGE_WIDTH) -> Figure:
    """Return an empty figure of these inches, without pyplot."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def stacked_bars(axes: Axes, arms: Sequence[str], widths: Mapping[str, np.ndarray], colours: Mapping[str, str]) -> None:
    """Horizontal bars, one per arm, the first on top: of each kind as wide as `widths[kind]` (arms,), in this order."""
    places, left = np.arange(len(arms)), np.zeros(len(arms))
    for kind, of_kind in widths.items():
        if of_kind.any():
            axes.barh(places, of_kind, left=left, color=colours[kind], height=0.62, label=kind)
        left += of_kind
    axes.set_yticks(places, [readable(arm) for arm in arms])
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


def png(figure: Figure) -> bytes:
    """Render a figure; the same rows give the same bytes, as no version is written."""
    file, canvas, dpi = io.BytesIO(), figure.canvas, figure.dpi
    with drawing():
        _lay_out(figure)
        try:
            figure.set_dpi(PNG_DPI)
            FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})  # `savefig` would draw twice
        finally:
            figure.set_dpi(dpi)
            figure.set_canvas(canvas)
    return file.getvalue()


def pdf(figure: Figure) -> bytes:
    """Render a figure; the same rows give the same bytes, as no date or version is written."""
    file = io.BytesIO()
    with drawing():
        _lay_out(figure)
        figure.savefig(file, format="pdf", metadata={"CreationDate": None, "Producer": None, "Creator": None})
    return file.getvalue()


def _lay_out(figure: Figure) -> None:
    """Place its parts once and for all: the engine starts from what it left, so each rendering would move a little."""
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")


def used_levels(rows: pd.DataFrame, column: str) -> list[Any]:
    """Return the categories that occur, in declared order."""
    return list(rows[column].cat.remove_unused_categories().cat.categories)


def within_percent(low: float, high: float) -> tuple[float, float]:
    """Axis limits in percent without the room that wide intervals ask for outside 0 to 100."""
    return max(low, -3.0), min(high, 103.0)


def legend_above(figure: Figure, entries: Sequence[tuple[str, Look]]) -> None:
    """Draw a legend above the axes, read row by row."""
    widths = [7 + len(name) for name, _ in entries]  # in characters, of which an inch holds about 12
    room = int(12 * figure.get_figwidth())
    columns = len(entries) if sum(widths) <= room else max(1, room // max(widths))
    figure.set_figheight(figure.get_figheight() + 0.19 * ((len(entries) - 1) // columns))  # the axes keep their height
    by_row = [entry for column in range(columns) for entry in entries[column::columns]]  # matplotlib fills columns
    handles = [Line2D([], [], color=look.colour, linestyle=look.line, linewidth=2.2) for _, look in by_row]
    names = [name for name, _ in by_row]
    figure.legend(handles, names, loc="outside upper left", ncols=columns, handlelength=1.8, columnspacing=1.6)
