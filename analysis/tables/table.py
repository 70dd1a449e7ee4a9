"""A table that is Markdown, LaTeX (booktabs) or HTML: text cells, and the frame of numbers behind them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis import statistics
from analysis.words import TOO_FEW

GREEK_LETTERS = (  # letters that TeX has
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi "
    "omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega"
).split()
TEX_CHARACTERS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\n": " ",
    "[": "{[}",  # else the length of a break, after the break of a row
    "\u00a0": "~",
    "−": "$-$",
    "–": "--",
    "—": "---",
    "…": r"\dots{}",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{character: f"${character}$" for character in "<>|"},  # other glyphs in TeX's first font encoding
    **dict(zip("×±·≤≥≠≈→←⇒∞∅∈√²³½", (
        *(r"$\times$", r"$\pm$", r"$\cdot$", r"$\le$", r"$\ge$", r"$\ne$", r"$\approx$", r"$\to$", r"$\gets$"),
        *(r"$\Rightarrow$", r"$\infty$", r"$\emptyset$", r"$\in$", r"$\surd$", "$^2$", "$^3$", r"$\frac12$"),
    ), strict=True)),
    **{
        unicodedata.lookup(f"GREEK {'SMALL' if letter.islower() else 'CAPITAL'} LETTER {letter.replace('mbd', 'md')}"):
        rf"$\{letter}$" for letter in GREEK_LETTERS
    },
}  # fmt: skip
LINE_WIDTH, LANDSCAPE_WIDTH = (
    80,
    128,
)  # characters of \footnotesize in a line of LaTeX's `article`, upright and turned by 90°
COLUMN_GAP = 2  # characters between columns
MOST_FLOAT_ROWS = 36  # of a float; a longer table runs over pages


@dataclass(frozen=True)
class Table:
    """Text cells, ready to be written; `frame` holds the numbers behind them, as fractions.

    Raises ValueError for rows of two selection rules, which its column `selection` names.
    """

    caption: str
    header: list[str]
    rows: list[list[str]]
    frame: pd.DataFrame

    def __post_init__(self) -> None:
        if "selection" in self.frame and self.frame["selection"].notna().any():
            statistics.shared_rule(self.frame["selection"].dropna())

    def markdown(self) -> str:
        """Return the table as GitHub renders it."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        body = "\n".join("| " + " | ".join(map(_escape_markdown, line)) + " |" for line in lines)
        return f"{_escape_markdown(self.caption)}\n\n{body}\n"

    def _repr_markdown_(self) -> str:
        return self.markdown()

    def latex(self, label: str) -> str:
        """A float or, for a long or wide table, pages of their own; the first line names the packages that it needs."""
        kinds, turned = _latex_columns(self.header, self.rows)
        columns, apart = "".join(kinds), r" \addlinespace[3pt]" * (set(kinds) != {"l"})  # wrapped rows
        header, *rows = (" & ".join(map(_escape_tex, line)) + r" \\" for line in [self.header, *self.rows])
        rows = [row + apart for row in rows]
        title, head = (
            rf"\caption{{{_escape_tex(self.caption)}}}\label{{tab:{label}}}",
            [r"\toprule", header, r"\midrule"],
        )
        if turned or len(rows) > MOST_FLOAT_ROWS:
            packages, outer = "booktabs,longtable" + ",pdflscape" * turned, "landscape" if turned else ""
            above = [title + r" \\", *head, r"\endfirsthead", *head, r"\endhead", r"\bottomrule", r"\endfoot"]
            wide = r"\setlength{\LTcapwidth}{\linewidth}"
            lines = [wide, rf"\begin{{longtable}}{{{columns}}}", *above, *rows, r"\end{longtable}"]
        else:
            packages, outer = "booktabs", "table"
            inner = [rf"\begin{{tabular}}{{{columns}}}", *head, *rows, r"\bottomrule", r"\end{tabular}"]
            lines = [title + r"\par\medskip", *inner]
        lines = [r"\begingroup\centering\footnotesize\setlength{\tabcolsep}{4pt}", *lines, r"\par\endgroup"]
        lines = [rf"\begin{{{outer}}}", *lines, rf"\end{{{outer}}}"] if outer else lines
        return "\n".join([rf"% \usepackage{{array,{packages}}}", *lines, ""])


def percent(fraction: float) -> str:
    """Format a fraction in percent: `0.945` -> `94.50`."""
    return f"{100 * fraction:.2f}".replace("-", "−")


def interval(low: float, high: float) -> str:
    """Format an interval of a share in percent, cut at 0 and 100; nothing where there is none."""
    if np.isnan(low):
        return ""
    return TOO_FEW if statistics.is_too_wide(low, high) else f"[{percent(max(low, 0.0))}, {percent(min(high, 1.0))}]"


def unbroken(text: str) -> str:
    """Allow no line break inside `95 %`, `n = 4` and `[0.12, 0.34]`."""
    text = text.replace(" %", "\u00a0%").replace(" = ", "\u00a0=\u00a0")
    return re.sub(r"\[[^][]*\]", lambda match: match[0].replace(" ", "\u00a0"), text)


def _escape_markdown(text: str) -> str:
    """Escape a text so that nothing in a cell is markup."""
    return re.sub(r"([\\`*<|~]|(?<!\w)_|_(?!\w))", r"\\\1", text.replace("\n", " "))


def _escape_tex(text: str) -> str:
    return "".join(map(_tex_character, unbroken(text)))


def _tex_character(character: str) -> str:
    """What LaTeX typesets by itself stays; a sign that it does not know becomes its number."""
    if character in TEX_CHARACTERS:
        return TEX_CHARACTERS[character]
    if " " <= character <= "~" or (character <= "ÿ" and character.isalpha() and character not in "ÐÞðþ"):
        return character
    return f"U+{ord(character):04X}"


def _latex_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], bool]:
    """LaTeX's columns, as wide as their cells or, where these do not fit a line, wrapped; and if the page is turned."""
    words, body, whole = [], [], []  # widths in characters: of the longest word, without the header, of all
    for column in zip(header, *rows, strict=True):
        cells = [unbroken(cell) for cell in column]
        words.append(max(len(word) for cell in cells for word in cell.split(" ")))
        body.append(max([words[-1], *map(len, cells[1:])]))
        whole.append(max(map(len, cells)))
    room = LINE_WIDTH - COLUMN_GAP * len(whole)
    if sum(whole) <= room:
        return ["l"] * len(whole), False
    if turned := sum(words) > room:
        room = LANDSCAPE_WIDTH - COLUMN_GAP * len(whole)
    widths = list(words)
    for wanted in (body, whole):  # headers wrap before cells do; room goes to the narrowest first
        while sum(widths) < room and (short := [i for i, width in enumerate(widths) if width < wanted[i]]):
            widths[min(short, key=widths.__getitem__)] += 1
    line = max(room, sum(widths)) + COLUMN_GAP * len(widths) + 2  # some words have wide letters
    wrapped = (rf">{{\raggedright\arraybackslash}}p{{{width / line:.3f}\linewidth}}" for width in widths)
    return [kind if width < n else "l" for kind, width, n in zip(wrapped, widths, whole, strict=True)], turned
