"""A plan's searches: what each is called, which of its suggestions count, and which is the best.

A *cell* is one search of the plan: one arm in one setting with one sampler.  Suggestions are rows of
`Results.suggestions`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.results import Results
from analysis.words import factor_name, readable, setting_name
from lnl.storage.plan_record import CellRecord

SAMPLER_NAMES = {
    "tpe": "TPE",
    "random": "random search",
    "qmc": "QMC",
    "cmaes": "CMA-ES",
    "gp": "GP",
    "nsga2": "NSGA-II",
}


def search_name(cell: CellRecord) -> str:
    """`robmix_tpe`: the arm and its sampler, also where the arm's own values won."""
    return f"{cell.arm}_{cell.sampler}"


def search_title(cell: CellRecord) -> str:
    """Name a search in a heading: `robmix tpe, 20 % noise`."""
    return readable(search_name(cell)) + (f", {setting_name(cell.setting)}" if cell.setting else "")


def search_stem(cell: CellRecord) -> str:
    """Return the stem by which the figures of a search are named."""
    return search_name(cell) + "".join(f"-{factor}-{level}" for factor, level in cell.setting.items())


def parameter_names(parameters: Sequence[str]) -> dict[str, str]:
    """Dotted field -> words: the last part, or all of them where two would be called the same."""
    short = {key: factor_name(key) for key in parameters}
    twice = [name for name in short.values() if list(short.values()).count(name) > 1]
    return {
        key: readable(key.removeprefix("method.")).replace(".", " ") if name in twice else name
        for key, name in short.items()
    }


def value_name(value: Any) -> str:
    """Format a value; of a number three digits."""
    if isinstance(value, float):
        return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e")
    return "none" if value is None else str(value)


def parameters_in_words(params: Mapping[str, Any]) -> str:
    """Name values: `learning rate 0.01, threshold 0.5`."""
    shown = parameter_names(list(params))
    return ", ".join(f"{shown[key]} {value_name(value)}" for key, value in params.items())


def shown_suggestions(suggestions: pd.DataFrame, cell: CellRecord) -> pd.DataFrame:
    """Return a cell's suggestions that count, and those that failed on the way."""
    rows = suggestions[suggestions["search"] == cell.search]
    return rows[rows["counts"] | (rows["state"] == "failed")].sort_values("number", ignore_index=True)


def complete_suggestions(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the suggestions that were trained to their end."""
    return rows[(rows["state"] == "complete") & rows["accuracy"].notna()]


def best_suggestion(rows: pd.DataFrame, cell: CellRecord) -> pd.DataFrame:
    """The winner's row, or the best so far where there is none yet; empty where nothing is complete."""
    done = complete_suggestions(rows)
    if cell.winner:
        return done[done["number"] == cell.winner.number]
    return done.sort_values(["accuracy", "number"], ascending=[False, True]).head(1)


def searched_parameters(rows: pd.DataFrame, cell: CellRecord) -> list[str]:
    """Return the fields that any suggestion has, the most important first."""
    tried = {key for params in rows["params"] for key in params}
    keys = [key for key in cell.space if key in tried]
    return sorted(keys, key=lambda key: -cell.importance.get(key, 0.0))


def searches_by_setting(study: Results) -> dict[str, list[CellRecord]]:
    """Return the plan's searches by the setting that they are in, in words."""
    by_setting: dict[str, list[CellRecord]] = {}
    for cell in study.cells:
        by_setting.setdefault(setting_name(cell.setting), []).append(cell)
    return by_setting
