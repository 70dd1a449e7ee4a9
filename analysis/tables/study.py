"""Tables of a study: panels, contrasts, selection rules, looks, searches, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis import statistics
from analysis.results import Results, in_base
from analysis.searches import SAMPLER_NAMES, best_suggestion, parameters_in_words, shown_suggestions
from analysis.tables.table import Table, interval, percent
from analysis.verdicts import MOST_REPLICATES, declared_late
from analysis.words import (
    VERDICT_SENTENCE,
    difference_interval,
    difference_text,
    factor_name,
    level_name,
    p_text,
    plural,
    readable,
    rule_sentence,
    setting_name,
)


def panel_table(study: Results, name: str, selection: str) -> Table:
    """Every arm of a panel in every setting, with its difference to the reference arm in the same setting."""
    panel = study.plan.panels[name]
    across, reference = list(panel.across), panel.reference
    trials = study.panel(name)
    frame = statistics.arm_table(trials, reference, across, selection).assign(selection=selection)
    rows = [
        [
            *(level_name(factor, row[factor]) for factor in across),
            readable(row["arm"]),
            str(row["n"]),
            percent(row["mean"]),
            interval(row["low"], row["high"]) or "all equal" * (row["n"] > 1),
            "reference" if row["arm"] == reference else _difference(row, "against_"),
            "" if row["arm"] == reference else _pairing(row, "against_"),
        ]
        for row in statistics.records(frame)
    ]
    measured = [
        "arm",
        "n",
        "accuracy (%)",
        "95 % interval",
        f"difference to {readable(reference)} (points)",
        "paired",
    ]
    title = panel.title if panel.title.endswith("?") else f"{panel.title}."
    caption = f"{title} {rule_sentence(selection, trials)} {INTERVALS_SENTENCE}"
    return Table(caption, [*map(factor_name, across), *measured], rows, frame)


def contrasts_table(study: Results, selection: str) -> Table:
    """The declared contrasts in the base setting."""
    frame, looks = study.contrasts(selection), study.plan.looks
    rows = [
        [
            readable(row["arm"]),
            readable(row["against"]),
            str(row["verdict"]),
            _difference(row),
            difference_interval(row["low_holm"], row["high_holm"]),
            *("" if np.isnan(row[p]) else p_text(row[p])[2:].removeprefix("= ") for p in P_VALUE_COLUMNS),
            f"{row['direction']}{' (late)' * bool(declared_late(row))}",
            percent(row["smallest_effect"]) if row["smallest_effect"] > 0 else "",
            _pairing(row),
            "" if row["why"] else _more_text(row["more"]),
        ]
        for row in statistics.records(frame)
    ]
    header = [
        *("arm", "against", "verdict", "difference (points)", "interval after Holm", "p", "p, equivalence"),
        *("declared", "matters from (points)", "paired", "more replicates"),
    ]
    base = in_base(study.trials)
    named = base[base["arm"].isin({*frame["arm"], *frame["against"]})]
    corrected = "" if looks else "Interval after Holm: without 0 exactly where p is at most .05. "
    caption = (
        f"Declared contrasts in the base setting. {rule_sentence(selection, named)} {INTERVALS_SENTENCE} {corrected}"
        f"{VERDICT_SENTENCE} p: after Holm over {len(frame)} contrasts"
        + f", over looks after {', '.join(map(str, looks))} replicates" * bool(looks)
        + ". More replicates: about as many would decide it."
        + " Late: declared, or changed, after some of its trials had ended." * any(row[7].endswith(")") for row in rows)
    )
    return Table(caption, header, rows, frame)


def rules_table(study: Results) -> Table:
    """Each arm of the base setting under every selection rule: the one table whose columns are of several rules."""
    trials = in_base(study.trials)
    order = trials["arm"].map(list(study.plan.arms).index)
    frame = statistics.rule_table(trials.loc[order.sort_values(kind="stable").index])
    known_rules = [
        rule for rule in statistics.SELECTION_RULES if frame[rule].notna().any()
    ]  # no validation set, no val_selected
    columns = {
        "arm": frame["arm"].map(readable),
        "n": frame["n"].map(str),
        **{f"{rule} (%)": frame[rule].map(_percent_or_nothing) for rule in known_rules if rule != "best_test"},
        **({"its validation labels": frame["validation"]} if "val_selected" in known_rules else {}),
        "best_test, an oracle (%)": frame["best_test"].map(_percent_or_nothing),
        **{
            f"oracle ahead of {rule} (points)": [
                _percent_or_nothing(mean) and f"{_percent_or_nothing(mean)}, at most {_percent_or_nothing(largest)}"
                for mean, largest in zip(frame[f"ahead_of_{rule}"], frame[f"ahead_of_{rule}_most"], strict=True)
            ]
            for rule in ("last", "val_selected")
            if rule in known_rules
        },
    }
    caption = (
        "Test accuracy in the base setting by selection rule, means over n replicates: "
        f"{'; '.join(f'{rule}, {statistics.SELECTION_RULES[rule]}' for rule in known_rules)}. "
        "How far the oracle is ahead: mean over replicates, and the largest."
    )
    if failures := int(statistics.at_chance(trials).sum()):
        caption += f" {failures} diverged {plural('trial', failures)} counted as chance under every rule."
    return Table(caption, list(columns), [list(row) for row in zip(*columns.values(), strict=True)], frame)


def looks_table(study: Results, taken: pd.DataFrame) -> Table:
    """The declared contrasts as each look found them.  `taken`: `Results.looks_taken`."""
    rows = [
        [
            f"{row['looked']:g}" if not np.isnan(row["looked"]) else "",
            readable(row["arm"]),
            readable(row["against"]),
            str(row["n"]),
            _difference(row),
            p_text(row["p_holm"]).removeprefix("p = ") if not np.isnan(row["p_holm"]) else "",
            str(row["verdict"]),
        ]
        for row in statistics.records(taken)
    ]
    looks = ", ".join(map(str, study.plan.looks))
    caption = (
        f"The declared contrasts at each look, as it was taken; declared are looks after {looks} replicates. p: of a "
        "difference other than zero, over all declared looks and after Holm over the contrasts. Intervals are those of "
        "a fixed number of replicates: where looks decide when to stop they hold the truth in 92 to 95 % of studies."
    )
    header = ["replicates", "arm", "against", "n", "difference (points)", "p", "verdict"]
    return Table(caption, header, rows, taken)


def left_table(study: Results) -> Table:
    """Trials in the store that the plan no longer asks for, by arm and setting."""
    left = study.left.assign(
        where=study.left["setting"].map(setting_name),
        accuracy=statistics.accuracy(study.left, "last").where(statistics.is_finished(study.left)),
    )
    groups = left.groupby(["arm", "where"], sort=True)["accuracy"]
    frame = groups.agg(trials="size", finished="count", mean="mean").reset_index().assign(selection="last")
    rows = [
        [
            readable(row["arm"]),
            row["where"],
            str(row["trials"]),
            str(row["finished"]),
            _percent_or_nothing(row["mean"]),
        ]
        for row in statistics.records(frame)
    ]
    header = ["arm", "setting", "trials", "finished", "accuracy (%), last epoch"]
    return Table("Results that the plan no longer asks for.", header, rows, frame)


def missing_table(study: Results) -> Table:
    """Planned trials without a result, by arm, setting and reason."""
    reasons = study.missing["status"].str.cat(study.missing["failure_class"], sep=": ", na_rep="").str.rstrip(": ")
    missing = study.missing.assign(where=study.missing["setting"].map(setting_name), reason=reasons)
    groups = missing.groupby(["arm", "where", "reason"], sort=False)["replicate"]
    frame = groups.agg(lambda values: ", ".join(map(str, sorted(values)))).reset_index()
    rows = [[readable(row["arm"]), row["where"], row["replicate"], row["reason"]] for row in statistics.records(frame)]
    return Table("Planned trials without a result.", ["arm", "setting", "replicates", "reason"], rows, frame)


def search_table(study: Results, suggestions: pd.DataFrame, selection: str) -> Table:
    """What each search spent, and what validation chose, all of it on the search's own replicates.

    `suggestions`: from `Results.suggestions`, under the same selection rule.
    """
    search = study.plan.require_search()
    rows: list[dict[str, Any]] = []
    for cell in study.cells:
        of_search = suggestions[suggestions["search"] == cell.search]
        here = shown_suggestions(suggestions, cell)
        own = here[here["own"] & (here["state"] == "complete")]
        best = best_suggestion(here, cell)
        rows.append(
            {
                "arm": cell.arm,
                "sampler": cell.sampler,
                "setting": cell.setting,
                **{state: int((of_search["state"] == state).sum()) for state in ("complete", "pruned", "failed")},
                "counted": int(here["counts"].sum()),
                "epochs": int(of_search["epochs"].sum()),
                "seconds": float(of_search["spent"].sum()),
                "default_validation": own["accuracy"].sum() if len(own) else np.nan,
                "default_test": own["test"].sum(skipna=False) if len(own) else np.nan,
                "number": int(best["number"].iloc[0]) if len(best) else None,
                "own": bool(best["own"].iloc[0]) if len(best) else False,
                "final": cell.winner is not None,
                "params": best["params"].iloc[0] if len(best) else {},
                "validation": best["accuracy"].iloc[0] if len(best) else np.nan,
                "test": best["test"].iloc[0] if len(best) else np.nan,
            }
        )
    elsewhere = any(row["setting"] for row in rows)
    cells = [
        [
            readable(row["arm"]),
            SAMPLER_NAMES.get(row["sampler"], row["sampler"]),
            *([setting_name(row["setting"])] if elsewhere else []),
            f"{row['complete']} / {row['pruned']} / {row['failed']}" + " so far" * (not row["final"]),
            str(row["epochs"]),
            _duration(row["seconds"]),
            *(_percent_or_nothing(row[name]) for name in ("default_validation", "default_test")),
            "" if row["number"] is None else _winner_name(row),
            *(_percent_or_nothing(row[name]) for name in ("validation", "test")),
            parameters_in_words(row["params"]) if row["number"] else "",
        ]
        for row in rows
    ]
    header = [
        *("arm", "sampler", *(["setting"] if elsewhere else []), "complete / pruned / failed", "epochs", "time"),
        *("own values: validation (%)", "test (%)", "winner", "its validation (%)", "its test (%)", "its values"),
    ]
    count = search.replicates
    replicates = "1 replicate" if count == 1 else f"{count} replicates"
    caption = (
        f"What each search spent and found, on {replicates} of its own ({search.validation_labels} validation "
        f"labels). {rule_sentence(selection, study.tried)} The winner's accuracies are those by which, "
        "and beside which, it was chosen: they flatter it, and only the contrasts tell what it is worth."
    )
    return Table(caption, header, cells, pd.DataFrame(rows).assign(selection=selection))


INTERVALS_SENTENCE = (
    "Intervals: 95 %, Student's t over replicates; paired by replicate where the stored hashes agree, else Welch. "
    "Those of accuracies are cut at 0 and 100; one that is wider than 100 points is left out."
)


P_VALUE_COLUMNS = ("p_holm", "p_equivalence_holm")


def _more_text(count: float) -> str:
    """Say how many replicates would decide a contrast, where that is known."""
    return "" if np.isnan(count) else f"> {MOST_REPLICATES}" if count > MOST_REPLICATES else f"{count:.0f}"


def _percent_or_nothing(fraction: float) -> str:
    """Format a fraction in percent; nothing where there is none."""
    return "" if np.isnan(fraction) else percent(fraction)


def _winner_name(row: Mapping[str, Any]) -> str:
    """Name the winner: `7`, `own values`, or `7 so far`."""
    return ("own values" if row["own"] else f"{row['number']}") + " so far" * (not row["final"])


def _duration(seconds: float) -> str:
    """Format a duration: `95 s`, `34 min`, `2.3 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _difference(row: Mapping[str, Any], prefix: str = "") -> str:
    return difference_text(*(row[prefix + name] for name in ("difference", "low", "high")))


def _pairing(row: Mapping[str, Any], prefix: str = "") -> str:
    """Say whether replicates are pairs: `yes, n = 4, ρ = 0.65` or `no (…), n = 4 and 3`."""
    n, n_against, rho = row[f"{prefix}n"], row[f"{prefix}n_against"], row[f"{prefix}correlation"]
    if row[f"{prefix}paired"]:
        return f"yes, n = {n:g}" + ("" if np.isnan(rho) else f", ρ = {rho:.2f}".replace("-", "−"))
    return f"no ({row[f'{prefix}reason']}), n = {n:g} and {n_against:g}"
