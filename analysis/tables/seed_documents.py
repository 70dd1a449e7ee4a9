"""Tables laid out as the seed documents have theirs: one arm with all it measured, or arms by levels of a factor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import statistics
from analysis.results import Results
from analysis.tables.table import Table
from analysis.words import (
    PERCENT_METRICS,
    count_sentence,
    factor_name,
    level_name,
    metric_name,
    readable,
    rule_sentence,
)
from lnl.storage import outcomes

ARM_METRICS = ("train/accuracy", "validation/accuracy", "train/loss", "test/accuracy")  # document 002, Tables 1 to 3
RATIO_METRICS = ("train/accuracy", "validation/accuracy")  # its Table 4


def seed_tables(study: Results, panel: str, selection: str) -> dict[str, Table]:
    """By name: arms by levels, where a factor is crossed; with a validation set also what document 002 tabulates.

    Without columns of metrics that no trial of the panel recorded.
    """
    declared = study.plan.panels[panel]
    trials = study.panel(panel)
    if not declared.across or trials.empty:
        return {}
    tables = {f"{panel}-levels": levels_table(study, panel, selection)}
    if trials["accuracy_val_selected"].notna().any() and len(declared.across) == 1:
        curves = study.epochs(ARM_METRICS)
        recorded = set(curves.loc[curves["trial"].isin(trials["trial"]), "metric"])
        if of_ratios := [metric for metric in RATIO_METRICS if metric in recorded]:
            tables[f"{panel}-training"] = levels_table(study, panel, selection, of_ratios, curves)
        if len(of_one := [metric for metric in ARM_METRICS if metric in recorded]) > 1:  # test accuracy stands above
            arms = trials["arm"].cat.remove_unused_categories().cat.categories
            tables |= {
                f"{panel}-{arm}": arm_metrics_table(study, panel, arm, selection, of_one, curves) for arm in arms
            }
    return tables


def arm_metrics_table(
    study: Results,
    panel: str,
    arm: str,
    selection: str,
    metrics: Sequence[str] = ARM_METRICS,
    curves: pd.DataFrame | None = None,
) -> Table:
    """What an arm measured at each level of a panel's factors, a column for each metric (document 002, Tables 1 to 3).

    `curves`: these metrics and test accuracy from `Results.epochs`, read where they are not given.  Raises ValueError
    for an arm that the panel does not have.
    """
    across = list(study.plan.panels[panel].across)
    if arm not in (arms := study.plan.panels[panel].arms):
        raise ValueError(f"The panel {panel!r} has no arm {arm!r}: choose one of {', '.join(arms)}.")
    trials = study.panel(panel)
    trials = trials[trials["arm"] == arm]
    frame = measured_metrics(study, trials, across, selection, metrics, curves)
    rows = [
        [*(_level_with_noise(trials, factor, level) for factor, level in zip(across, setting, strict=True)), *cells]
        for setting, cells in _cells_by_group(frame, across, [{"metric": metric} for metric in metrics])
    ]
    header = [*map(factor_name, across), *(metric_name(metric).replace("\n", " ") for metric in metrics)]
    caption = f"Arm: {readable(arm)}. {study.plan.panels[panel].title}."
    return Table(f"{caption} {_caption_end(selection, trials, frame)}", header, rows, frame)


def levels_table(
    study: Results,
    panel: str,
    selection: str,
    metrics: Sequence[str] = ("test/accuracy",),
    curves: pd.DataFrame | None = None,
) -> Table:
    """Arms by levels: a row per arm, a column per setting and metric (document 002, Table 4; those of document 004).

    Columns of noise tell the share of labels that are wrong in fact.  `curves`: as for `of_arm`.
    """
    across = list(study.plan.panels[panel].across)
    trials = study.panel(panel)
    frame = measured_metrics(study, trials, ["arm", *across], selection, metrics, curves)
    settings = (
        trials[across].drop_duplicates().sort_values(across).itertuples(index=False, name=None) if across else [()]
    )
    columns = [
        {**dict(zip(across, setting, strict=True)), "metric": metric} for setting in settings for metric in metrics
    ]
    rows = [[readable(arm), *cells] for (arm,), cells in _cells_by_group(frame, ["arm"], columns)]
    header = ["arm"]
    for column in columns:
        names = [_level_with_noise(trials, factor, column[factor]) for factor in across]
        if tuple(metrics) != ("test/accuracy",) or not across:
            names.append(metric_name(column["metric"]).replace("\n", " "))
        header.append(", ".join(names))
    title = study.plan.panels[panel].title
    return Table(f"{title}. {_caption_end(selection, trials, frame)}", header, rows, frame)


def measured_metrics(
    study: Results,
    trials: pd.DataFrame,
    by: Sequence[str],
    selection: str,
    metrics: Sequence[str],
    curves: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Metrics at the epochs that the rule chooses, by group: metric, n, mean, and its 95 % t interval.

    Test accuracy is that of `statistics.accuracy`, a diverged trial counting as chance; of other metrics a diverged
    trial has no value.  `curves`: as for `of_arm`.
    """
    values = pd.DataFrame(index=trials.index)
    if fixed := [metric for metric in metrics if metric != "test/accuracy"]:
        curves = study.epochs(["test/accuracy", *fixed]) if curves is None else curves
        curves = curves[["trial", "epoch", "metric", "value"]].merge(
            trials[["trial", "epoch_val_selected"]].drop_duplicates("trial"), on="trial"
        )
        at_rule = _rows_of_rule(curves, selection).groupby(["trial", "metric"])["value"].mean().unstack("metric")
        values = at_rule.reindex(index=trials["trial"], columns=fixed).set_axis(trials.index)
        values[outcomes.diverged(trials)] = np.nan
    values["test/accuracy"] = statistics.accuracy(trials, selection)
    rows: list[dict[str, Any]] = []
    for group, here in trials.groupby(list(by), observed=True) if by else [((), trials)]:
        for metric in metrics:
            known = values.loc[here.index, metric].dropna()
            if len(known):
                estimate = dict(zip(("mean", "low", "high"), map(float, statistics.mean(known)[:3]), strict=True))
                rows.append({**dict(zip(by, group, strict=True)), "metric": metric, "n": len(known), **estimate})
    return pd.DataFrame(rows, columns=[*by, "metric", "n", "mean", "low", "high"]).assign(selection=selection)


def _rows_of_rule(curves: pd.DataFrame, selection: str) -> pd.DataFrame:
    """Rows of the epochs that a selection rule looks at."""
    last = curves.groupby("trial")["epoch"].transform("max")
    if selection == "last":
        return curves[curves["epoch"] == last]
    if selection == "last10":
        return curves[curves["epoch"] > last - 10]
    if selection == "val_selected":
        return curves[curves["epoch"] == curves["epoch_val_selected"]]
    best = curves[curves["metric"] == "test/accuracy"].sort_values(["value", "epoch"], ascending=[False, True])
    return curves.merge(best.drop_duplicates("trial")[["trial", "epoch"]], on=["trial", "epoch"])


def _cells_by_group(
    frame: pd.DataFrame, by: Sequence[str], columns: Sequence[dict[str, Any]]
) -> list[tuple[tuple[Any, ...], list[str]]]:
    """The row of each group, in declared order: `88.2 ± 1.3`, or nothing where nothing was measured."""
    by_group = []
    for group, rows in frame.groupby(list(by), sort=False) if by else [((), frame)]:
        cells = []
        for column in columns:
            cell = rows[np.logical_and.reduce([rows[name] == value for name, value in column.items()])]
            cells.append(_mean_and_half(cell.iloc[0]) if len(cell) else "")
        by_group.append((group, cells))
    return by_group


def _mean_and_half(row: pd.Series) -> str:
    """Mean and half of the interval, ± 0 where replicates agree."""
    share = row["metric"].endswith(PERCENT_METRICS)
    scale, digits = (100, 1) if share else (1, 3)
    text = f"{scale * row['mean']:.{digits}f}"
    if _agree(row):
        text += " ± 0"
    elif not (np.isnan(row["low"]) or (share and statistics.is_too_wide(row["low"], row["high"]))):
        text += f" ± {scale * (row['high'] - row['mean']):.{digits}f}"
    return text.replace("-", "−")


def _agree(row: Mapping[str, Any] | pd.Series) -> bool:
    """Whether several replicates have one value, so that there is no interval."""
    return bool(row["n"] > 1 and np.isnan(row["low"]))


def _level_with_noise(trials: pd.DataFrame, factor: str, level: Any) -> str:
    name = level_name(factor, level)
    if factor.partition(".")[0] != "noise":
        return name
    realised = trials.loc[trials[factor] == level, "noise_realised"].mean()
    return name if np.isnan(realised) else f"{name} ({100 * realised:.1f} % wrong)"


def _caption_end(selection: str, trials: pd.DataFrame, frame: pd.DataFrame) -> str:
    text = rule_sentence(selection, trials)
    if set(frame["metric"]) - {"test/accuracy"}:
        text += " All else is from the same epochs, without diverged trials."
    if len(frame):
        text += f" Mean ± half of the 95 % t interval; {count_sentence(frame['n'].tolist())}."
    if any(map(_agree, statistics.records(frame))):
        text += " ± 0: all replicates agree, as few of them can by chance."
    return text
