"""Tables as Markdown and LaTeX (booktabs): every number with n, interval and selection rule.  Accuracies in percent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis import plots, search_plots, statistics

if TYPE_CHECKING:
    from analysis.load import Study

TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "–": "--",
    "ρ": r"$\rho$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


@dataclass(frozen=True)
class Table:
    """Text cells, ready to be written; `frame` holds the numbers behind them, as fractions."""

    caption: str
    header: list[str]
    rows: list[list[str]]
    frame: pd.DataFrame

    def markdown(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        body = "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)
        return f"{self.caption}\n\n{body}\n"

    def latex(self, label: str) -> str:
        """A table float; needs `\\usepackage{booktabs}`."""
        header, *rows = (" & ".join(map(_tex, line)) + r" \\" for line in [self.header, *self.rows])
        return "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{_tex(self.caption)}}}",
                rf"\label{{tab:{label}}}",
                rf"\begin{{tabular}}{{{'l' * len(self.header)}}}",
                r"\toprule",
                header,
                r"\midrule",
                *rows,
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
                "",
            ]
        )


def of_panel(study: Study, name: str, selection: str) -> Table:
    """Every arm of a panel in every setting, with its difference to the reference arm in the same setting."""
    panel = study.plan["panels"][name]
    across, reference = panel["across"], panel["reference"]
    trials = study.panel(name)
    frame = statistics.arm_table(trials, reference, across, selection)
    rows = [
        [
            *(plots.level_name(factor, row[factor]) for factor in across),
            plots.words(row["arm"]),
            str(row["n"]),
            _percent(row["mean"]),
            _interval(row["low"], row["high"]),
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
        f"difference to {plots.words(reference)} (points)",
        "paired",
    ]
    caption = f"{panel['title']}. {plots.rule_sentence(selection, trials)} {INTERVALS}"
    return Table(caption, [*map(plots.factor_name, across), *measured], rows, frame)


def of_contrasts(study: Study, selection: str) -> Table:
    """The declared contrasts in the base setting."""
    frame = study.contrasts(selection)
    rows = [
        [
            plots.words(row["arm"]),
            plots.words(row["against"]),
            _difference(row),
            "" if np.isnan(row["p"]) else "< 0.0001" if row["p"] < 1e-4 else f"{row['p']:.4f}",
            str(row["direction"]),
            _percent(row["smallest_effect"]) if row["smallest_effect"] > 0 else "",
            _pairing(row),
        ]
        for row in statistics.records(frame)
    ]
    header = [
        "arm",
        "against",
        "difference (points)",
        "p",
        "expected",
        "matters from",
        "paired",
    ]
    base = study.trials[~study.trials["setting"].map(bool).astype(bool)]
    named = base[base["arm"].isin({*frame["arm"], *frame["against"]})]
    caption = (
        f"Declared contrasts in the base setting. {plots.rule_sentence(selection, named)} {INTERVALS} "
        "p: two-sided, not corrected for the number of contrasts."
    )
    return Table(caption, header, rows, frame)


def of_left(study: Study) -> Table:
    """Trials in the store that the plan no longer asks for, by arm and setting."""
    left = study.left.assign(
        where=study.left["setting"].map(plots.setting_name),
        accuracy=statistics.accuracy(study.left, "last").where(statistics.outcome(study.left)),
    )
    groups = left.groupby(["arm", "where"], sort=True)["accuracy"]
    frame = groups.agg(trials="size", finished="count", mean="mean").reset_index()
    rows = [
        [
            plots.words(row["arm"]),
            row["where"],
            str(row["trials"]),
            str(row["finished"]),
            "" if np.isnan(row["mean"]) else _percent(row["mean"]),
        ]
        for row in statistics.records(frame)
    ]
    header = ["arm", "setting", "trials", "finished", "accuracy (%), last epoch"]
    return Table("Results that the plan no longer asks for.", header, rows, frame)


def of_missing(study: Study) -> Table:
    """Planned trials without a result, by arm, setting and reason."""
    reasons = study.missing["status"].str.cat(study.missing["failure_class"], sep=": ", na_rep="").str.rstrip(": ")
    missing = study.missing.assign(where=study.missing["setting"].map(plots.setting_name), reason=reasons)
    groups = missing.groupby(["arm", "where", "reason"], sort=False)["replicate"]
    frame = groups.agg(lambda values: ", ".join(map(str, sorted(values)))).reset_index()
    rows = [
        [plots.words(row["arm"]), row["where"], row["replicate"], row["reason"]] for row in statistics.records(frame)
    ]
    return Table("Planned trials without a result.", ["arm", "setting", "replicates", "reason"], rows, frame)


def of_search(study: Study, suggestions: pd.DataFrame, selection: str) -> Table:
    """What each search spent, and what validation chose, all of it on the search's own replicates.

    `suggestions`: from `Study.suggestions`, under the same selection rule.
    """
    search = study.plan["search"]
    rows: list[dict[str, Any]] = []
    for cell in study.cells:
        mine = suggestions[suggestions["search"] == cell["search"]]
        here = search_plots.shown(suggestions, cell)
        own = here[here["own"] & (here["state"] == "complete")]
        best = search_plots.leader(here, cell)
        rows.append(
            {
                "arm": cell["arm"],
                "sampler": cell["sampler"],
                "setting": cell["setting"],
                **{state: int((mine["state"] == state).sum()) for state in ("complete", "pruned", "failed")},
                "counted": int(here["counts"].sum()),
                "epochs": int(mine["epochs"].sum()),
                "seconds": float(mine["spent"].sum()),
                "default_validation": own["accuracy"].sum() if len(own) else np.nan,
                "default_test": own["test"].sum(skipna=False) if len(own) else np.nan,
                "number": int(best["number"].iloc[0]) if len(best) else None,
                "own": bool(best["own"].iloc[0]) if len(best) else False,
                "final": cell["winner"] is not None,
                "params": best["params"].iloc[0] if len(best) else {},
                "validation": best["accuracy"].iloc[0] if len(best) else np.nan,
                "test": best["test"].iloc[0] if len(best) else np.nan,
            }
        )
    elsewhere = any(row["setting"] for row in rows)
    cells = [
        [
            plots.words(row["arm"]),
            search_plots.SAMPLERS.get(row["sampler"], row["sampler"]),
            *([plots.setting_name(row["setting"])] if elsewhere else []),
            f"{row['complete']} / {row['pruned']} / {row['failed']}" + " so far" * (not row["final"]),
            str(row["epochs"]),
            _duration(row["seconds"]),
            *("" if np.isnan(row[name]) else _percent(row[name]) for name in ("default_validation", "default_test")),
            "" if row["number"] is None else _numbered(row),
            *("" if np.isnan(row[name]) else _percent(row[name]) for name in ("validation", "test")),
            search_plots.params_name(row["params"]) if row["number"] else "",
        ]
        for row in rows
    ]
    header = [
        *("arm", "sampler", *(["setting"] if elsewhere else []), "complete / pruned / failed", "epochs", "time"),
        *("own values: validation (%)", "test (%)", "winner", "its validation (%)", "its test (%)", "its values"),
    ]
    count = search["replicates"]
    replicates = "1 replicate" if count == 1 else f"{count} replicates"
    caption = (
        f"What each search spent and found, on {replicates} of its own ({search['validation_labels']} validation "
        f"labels). {plots.rule_sentence(selection, study.tried)} The winner's accuracies are those by which, and "
        "beside which, it was chosen: they flatter it, and only the contrasts tell what it is worth."
    )
    return Table(caption, header, cells, pd.DataFrame(rows))


INTERVALS = (
    "Intervals: 95 %, Student's t over replicates; paired by replicate where the stored hashes agree, else Welch."
)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}".replace("-", "−")


def _numbered(row: Mapping[str, Any]) -> str:
    """`7`, `own values`, or `7 so far`."""
    return ("own values" if row["own"] else f"{row['number']}") + " so far" * (not row["final"])


def _duration(seconds: float) -> str:
    """`95 s`, `34 min`, `2.3 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _interval(low: float, high: float) -> str:
    return "" if np.isnan(low) else f"[{_percent(low)}, {_percent(high)}]"


def _difference(row: Mapping[str, Any], prefix: str = "") -> str:
    return plots.difference_text(*(row[prefix + name] for name in ("difference", "low", "high")))


def _pairing(row: Mapping[str, Any], prefix: str = "") -> str:
    """`yes, n = 4, ρ = 0.65` or `no (…), n = 4 and 3`."""
    n, n_against, rho = row[f"{prefix}n"], row[f"{prefix}n_against"], row[f"{prefix}correlation"]
    if row[f"{prefix}paired"]:
        return f"yes, n = {n:g}" + ("" if np.isnan(rho) else f", ρ = {rho:.2f}".replace("-", "−"))
    return f"no ({row[f'{prefix}reason']}), n = {n:g} and {n_against:g}"


def _tex(text: str) -> str:
    return re.sub("|".join(map(re.escape, TEX)), lambda match: TEX[match[0]], text)
