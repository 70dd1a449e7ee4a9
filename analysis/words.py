"""Words and numbers in sentences: names of factors, metrics, levels and verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis import measures, statistics
from analysis.measures import ACCURACY
from lnl.storage import outcomes
from lnl.storage.places import short_hash

LONGEST_NAME = 60  # characters of a name in figures and texts
FACTOR_NAMES = {
    "labels": "labelled images",
    "noise.rate": "noise rate",
    "unlabelled_ratio": "labelled : unlabelled",
}
METRIC_NAMES = {
    "train/loss": "training loss",
    "train/loss_contrastive": "contrastive loss L1",
    "train/loss_mixmatch": "MixMatch loss L2",
    "test/accuracy": "test accuracy (%)",
    "train/gradient_norm_contrastive": "gradient norm of\nthe contrastive loss",
    "train/gradient_norm_mixmatch": "gradient norm of\nthe MixMatch loss",
    "train/gradient_cosine": "cosine of\nthe two gradients",
    "oracle/selection_auc": "AUC of the clean\nprobability or weight",
    "oracle/selection_precision": "precision of the\nclean selection (%)",
    "oracle/selection_recall": "recall of the\nclean selection (%)",
    "oracle/error_average_precision": "average precision\nof wrong labels",
    "oracle/error_precision": "precision of\nflagged labels (%)",
    "oracle/error_recall": "recall of\nwrong labels (%)",
    "oracle/refined_accuracy": "accuracy of\nrefined labels (%)",
    "oracle/refined_noise": "wrong among\nrefined labels (%)",
    "oracle/pseudo_label_accuracy": "accuracy of\npseudo-labels (%)",
    "oracle/memorised": "memorised\nwrong labels (%)",
}
TOO_FEW = "[too few replicates]"  # in place of an interval that is too wide to say anything
GIVEN_KINDS = ("given", "human")  # of label noise: not drawn at a rate, but as people have it
VERDICT_SENTENCE = (
    "Helps or hurts: other than zero (t test, p ≤ 0.05 after Holm over all declared contrasts). Equivalent: within the "
    "smallest effect that matters (two one-sided t tests, likewise). Undecided: neither."
)


def readable(name: str) -> str:
    """`frozen_head` -> `frozen head`; a long name is its beginning and a hash of all of it."""
    text = " ".join(name.replace("_", " ").split())
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 10]}… {short_hash(name)[:8]}"


def factor_name(factor: str) -> str:
    """Name a factor as it stands on an axis or in a caption."""
    return FACTOR_NAMES.get(factor, readable(factor.rpartition(".")[2]))


def level_name(factor: str, level: Any) -> str:
    """Name a level with its unit: 0.4 of the noise rate is 40 %."""
    if factor == "unlabelled_ratio" and isinstance(level, int | float):
        return f"1 : {level:g}"
    if factor == "noise.rate" and isinstance(level, int | float):
        return f"{100 * level:g} %"
    if isinstance(level, Mapping):  # settings with fields of their own, such as noise
        return settings_in_words(level)
    return f"{level:g}" if isinstance(level, float) else str(level)


def setting_name(setting: Mapping[str, Any]) -> str:
    """Name a setting: `{"labels": 40, "noise.rate": 0.1}` -> `40 labels, 10 % noise`."""
    return ", ".join(level_phrase(factor, level) for factor, level in setting.items()) or "base"


def level_phrase(factor: str, level: Any) -> str:
    """Name a level together with its factor: `40 labels`, `10 % noise`."""
    if factor == "noise":
        return level_name(factor, level)
    if factor in ("labels", "probe"):
        return f"{level} {'labels' if factor == 'labels' else 'trusted images'}"
    if factor == "noise.rate":
        return f"{level_name(factor, level)} noise"
    if factor == "unlabelled_ratio" and isinstance(level, str):
        return f"{level} unlabelled images"
    return f"{factor_name(factor)} {level_name(factor, level)}"


def noise_name(kind: str, column: str | None) -> str:
    """Name a kind of label noise: `symmetric`, or `given labels, column worse`, which people gave to the images."""
    if kind not in GIVEN_KINDS:
        return readable(kind)
    return "given labels" + f", column {column}" * bool(column)


def metric_name(metric: str) -> str:
    """Name a metric as it stands on an axis: test/accuracy is test accuracy (%)."""
    split, _, name = metric.partition("/")
    shown = {"train": "training"}.get(split, split)
    return METRIC_NAMES.get(metric, f"{shown} {readable(name)}" + " (%)" * measures.is_share(metric))


def rule_sentence(selection: str, trials: pd.DataFrame) -> str:
    """The selection rule in words, and what was done with trials that diverged or have no value."""
    text = f"Test accuracy {statistics.SELECTION_RULES[selection]} (selection rule {selection})."
    if selection == "val_selected":
        kinds = sorted(trials["validation_labels"].dropna().unique())
        text = text.replace("validation accuracy", f"accuracy on {' or '.join(kinds) or 'absent'} validation labels")
    if failures := int(statistics.at_chance(trials).sum()):
        text += f" {failures} diverged {plural('trial', failures)} counted as chance."
    unknown = int(outcomes.diverged(trials).sum()) - failures
    if absent := int(statistics.accuracy(trials, selection).isna().sum()) - unknown:
        text += f" {absent} {plural('trial', absent)} without a value under this rule left out."
    if unknown:
        text += f" {unknown} diverged {plural('trial', unknown)} left out: nothing tells how many classes there are."
    return text


def count_sentence(counts: Sequence[int]) -> str:
    """Say how many replicates stand behind each point."""
    low, high = min(counts), max(counts)
    return f"n = {low} {plural('replicate', low)}" if low == high else f"n = {low} to {high} replicates"


def plural(noun: str, count: int) -> str:
    """Return the noun as it follows the count."""
    return noun if count == 1 else noun + "s"


def counted(count: int, noun: str) -> str:
    """Count in words: `1 trial`, `3 trials`."""
    return f"{count} {plural(noun, count)}"


def difference_text(difference: float, low: float, high: float, metric: str = ACCURACY) -> str:
    """In percentage points, for accuracies: `−0.42 [−1.10, +0.26]`, or `−0.42` where there is no interval."""
    if np.isnan(difference):
        return "no data"
    return f"{signed(difference, metric)} {difference_interval(low, high, metric)}".rstrip()


def difference_interval(low: float, high: float, metric: str = ACCURACY) -> str:
    """As in `signed`: `[−1.10, +0.26]`; nothing where there is none, `TOO_FEW` where it says nothing."""
    if np.isnan(low):
        return ""
    too_wide = statistics.is_too_wide(low, high, metric)
    return TOO_FEW if too_wide else f"[{signed(low, metric)}, {signed(high, metric)}]"


def signed(difference: float, metric: str = ACCURACY) -> str:
    """A difference with its sign: of shares in percentage points, −0.004 -> `−0.40`; of others as it is, `−0.0040`."""
    text = f"{measures.scale(metric) * difference:+.{2 if measures.is_share(metric) else 4}f}"
    return (text[1:] if float(text) == 0 else text).replace("-", "−")


def unit_name(metric: str) -> str:
    """What stands behind a difference in a metric: points, or nothing."""
    return " points" if measures.is_share(metric) else ""


def measure_name(metric: str) -> str:
    """Name a metric in a sentence, without its unit: `test accuracy`."""
    return metric_in_text(metric).removesuffix(" (%)")


def p_text(p: float) -> str:
    """Format a p value: `p = 0.004`, `p < 0.001`."""
    return "p < 0.001" if p < 1e-3 else f"p = {p:.3f}"


def group_name(column: str, level: Any) -> str:
    """Name an arm, or a level together with its factor."""
    return readable(level) if column == "arm" else level_phrase(column, level)


def metric_in_text(metric: str) -> str:
    """Name a metric on one line."""
    return metric_name(metric).replace("\n", " ")


def capitalised(text: str) -> str:
    """Return the text with a capital letter."""
    return text[:1].upper() + text[1:]


def listed(parts: Iterable[str]) -> str:
    """Join parts in a sentence: `a, b and c`."""
    *first, last = list(parts)
    return f"{', '.join(first)} and {last}" if first else last


def settings_in_words(settings: Mapping[str, Any]) -> str:
    """Name the values of nested settings, kind and rate first, since rows keep their keys in another order."""
    keys = sorted(settings, key=lambda key: (key != "kind", key != "rate", key))
    return " ".join(_value_in_words(key, settings[key]) for key in keys)


def _value_in_words(key: str, value: Any) -> str:
    """A switch has the name of its field: `include true`, `no exact`."""
    if isinstance(value, Mapping):
        return settings_in_words(value)
    return f"{'' if value else 'no '}{readable(key)}" if isinstance(value, bool) else str(value)
