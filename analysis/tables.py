"""Tables as Markdown and LaTeX (booktabs): every number with n, interval and selection rule.  Accuracies in percent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis import plots, statistics

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


INTERVALS = (
    "Intervals: 95 %, Student's t over replicates; paired by replicate where the stored hashes agree, else Welch."
)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}".replace("-", "−")


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
