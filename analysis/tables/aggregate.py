"""Tables across settings and of factorial ablations, and the sentences that their captions share with the figures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis import aggregate, statistics
from analysis.aggregate import Grid
from analysis.factorials import Factorial, declared_factorials, effects
from analysis.results import Results, in_base
from analysis.tables.table import Table, interval, percent
from analysis.words import (
    count_sentence,
    difference_text,
    factor_name,
    listed,
    plural,
    readable,
    rule_sentence,
    setting_name,
)

MOST_NAMED_ARMS = 6  # arms that were left out, in one sentence


def across_tables(study: Results, selection: str) -> dict[str, Table]:
    """The same numbers as tables: `settings` across settings, and one for each factorial."""
    tables = {}
    grid = aggregate.grid(study, selection)
    if grid is not None:
        tables["settings"] = settings_table(grid, selection)
    for factorial in declared_factorials(study):
        frame = effects(study, factorial, selection)
        if len(frame):
            tables[factorial_stem(factorial)] = effects_table(
                frame, factorial, factorial_rule_sentence(study, factorial, selection)
            )
    return tables


def settings_table(grid: Grid, selection: str) -> Table:
    """IQM, difference to the reference, probability of improvement and, where there are enough, mean ranks."""
    frame = aggregate.interquartile_means(grid)
    better = aggregate.improvements(grid)
    better = better.loc[better["setting"].isna(), ["arm", "probability", "low", "high"]]
    frame = frame.merge(better, on="arm", how="left", suffixes=("", "_better"))
    ranking = aggregate.ranking(grid)
    if ranking is not None:
        frame["rank"] = ranking.ranks
    rows = [
        [
            readable(row["arm"]),
            str(row["n"]),
            percent(row["iqm"]),
            interval(row["low"], row["high"]),
            *(
                ["reference", "", ""]
                if row["arm"] == grid.reference
                else [
                    difference_text(row["difference"], row["difference_low"], row["difference_high"]),
                    f"yes, n = {row['pairs']:g}"
                    if row["paired"]
                    else f"no ({row['reason']}), n = {row['pairs']:g} and {row['n_against']:g}",
                    f"{percent(row['probability'])} {interval(row['low_better'], row['high_better'])}".strip(),
                ]
            ),
            *([f"{row['rank']:.2f}"] if ranking is not None else []),
        ]
        for row in statistics.records(frame)
    ]
    reference = readable(grid.reference)
    header = ["arm", "n", "IQM (%)", "95 % interval", f"difference to {reference} (points)", "paired"]
    header += [f"better than {reference} (% of runs)", *(["mean rank"] if ranking is not None else [])]
    caption = (
        f"Arms over settings. {scope_sentence(grid, selection)} "
        "IQM: mean of the middle half of a replicate's accuracies over "
        "settings; its intervals are Student's t over replicates, those of shares Korn and Graubard's; 95 %, not "
        "corrected for the number of arms."
    )
    return Table(caption, header, rows, frame)


def effects_table(frame: pd.DataFrame, factorial: Factorial, rule: str) -> Table:
    """Effects and interactions, then the additivity residual of every arm that combines factors."""
    shown = frame[frame["kind"].isin(["effect", "residual"])]
    accuracies = {kind: frame[frame["kind"] == kind].set_index("arm")["value"] for kind in ("measured", "additive")}
    rows = [
        [
            term_name(row["term"]) if row["kind"] == "effect" else readable(row["arm"]),
            ["", "effect", "interaction of two", f"interaction of {len(row['term'])}"][min(len(row["term"]), 3)]
            if row["kind"] == "effect"
            else f"additivity residual: {percent(accuracies['measured'][row['arm']])} instead of "
            f"{percent(accuracies['additive'][row['arm']])}",
            difference_text(row["value"], row["low"], row["high"]),
            "" if np.isnan(row["p"]) else f"{row['p']:.4f}" if row["p"] >= 1e-4 else "< 0.0001",
        ]
        for row in statistics.records(shown)
    ]
    caption = f"{factorial_sentence(factorial, rule)} {intervals_sentence(frame)}"
    return Table(caption, ["factors or arm", "quantity", "value (points)", "p"], rows, frame)


def factorial_stem(factorial: Factorial) -> str:
    """Return the name by which figures and tables of a factorial are stored."""
    return "factorial-" + "-".join(factorial.factors)


def term_name(term: Sequence[str]) -> str:
    """Name an effect by its factors: `mixup × frozen head`."""
    return " × ".join(map(readable, term))


def scope_sentence(grid: Grid, selection: str) -> str:
    """What is aggregated under which rule, and what was left out and why."""
    factors = list(dict.fromkeys(factor_name(factor) for setting in grid.settings for factor in setting))
    counts = [len(table) for table in grid.accuracies.values()]
    text = (
        f"{rule_sentence(selection, grid.trials)} Over {len(grid.settings)} "
        f"settings ({listed(factors)}), each with the same weight; {count_sentence(counts)} of each arm."
    )
    if len(grid.left_arms) > MOST_NAMED_ARMS:
        text += f" {len(grid.left_arms)} arms left out, because they lack a replicate with all of these settings."
    elif grid.left_arms:
        text += (
            f" Arms left out, because they lack a replicate with all of these settings: {_arm_names(grid.left_arms)}."
        )
    if grid.left_settings:
        text += " Settings left out, because some of these arms lack them: "
        text += "; ".join(map(setting_name, grid.left_settings)) + "."
    if grid.left_runs:
        text += f" {grid.left_runs} {plural('run', grid.left_runs)} of replicates that lack a setting left out."
    return text


def _arm_names(arms: Sequence[str]) -> str:
    return listed(map(readable, arms))


def factorial_rule_sentence(study: Results, factorial: Factorial, selection: str) -> str:
    """Describe the selection rule for the arms of a factorial."""
    base = in_base(study.trials)
    return rule_sentence(selection, base[base["arm"].isin(factorial.arms)])


def factorial_sentence(factorial: Factorial, rule: str) -> str:
    """Describe a factorial, for captions."""
    return (
        f"Factorial of {_arm_names(factorial.factors)}: all {len(factorial.arms)} combinations, starting from "
        f"{readable(factorial.arms[0])}, in the base setting. {rule} An interaction × is how much the effect of one "
        "factor changes with the other."
    )


def intervals_sentence(frame: pd.DataFrame) -> str:
    """Describe the intervals of a factorial's effects."""
    first = frame.iloc[0]
    pairing = "replicate by replicate" if first["paired"] else "unpaired (Satterthwaite)"
    why = first["reason"]
    return f"95 % t intervals, {pairing}: {why}; n = {first['n']}; not corrected for the number of effects."
