"""Reported numbers beside measured ones: for each arm and setting the closest that a paper has, and how they differ.

They are compared, by whether the reported value lies in the 95 % interval of ours, only where nothing but the number of
runs differs.  A protocol that is not known counts as different, and so do a method's parameters where the registry
knows none of the paper's: numbers of methods that a paper trained again are often of its own optimizer.  Where it knows
some, these count and those that an arm or a setting sets; the rest are taken for the method's defaults.  What a method
does otherwise than its authors' code (`analysis.papers.departures`) is said beside each comparison.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis import statistics
from analysis.papers.departures import departures
from analysis.papers.registry import Entry, entries, paper
from analysis.results import Results
from analysis.tables.table import Table, interval, percent
from analysis.verdicts import FEWEST_REPLICATES
from analysis.words import readable, rule_sentence, setting_name
from lnl.dotted import lookup
from lnl.storage.places import canonical

CLASSES = {
    "cifar100": 100,
    "imagenet": 1000,
    "webvision": 1000,
    "webvision_mini": 50,
    "food101n": 101,
    "clothing1m": 14,
}
FROM_THE_WEB = {"webvision", "webvision_mini", "food101n", "clothing1m"}  # their given labels are not those of people
SAME_SHARE = 1e-3  # of wrong labels: less is rounding
REPLICATES = "replicates"  # the one difference that forbids no comparison
EPOCH_RULES = {
    "last": "the last epoch",
    "last10": "the mean of the last ten epochs",
    "median20": "the median of the last 20 checkpoints",
    "val_selected": "the best validation epoch",
    "best_test": "the best test epoch",
}
ORACLE_NOTE = "an oracle, chosen by looking at the test set"
COMPARED_MEASURES = ("test accuracy", "validation accuracy")  # what may stand beside a test accuracy, in this order
TRUE_CLASS_CONVENTION = {True: "may redraw the true class", False: "never keeps the true class"}
SIMILAR_NOISE = {"asymmetric_block": "asymmetric", "flip": "pair"}  # kinds that are laid beside each other, and flagged
PROTOCOL_NOTE = (
    f"A number is compared with ours from {FEWEST_REPLICATES} replicates on, only where nothing but the "
    "number of runs differs: "
    "a protocol that is not known counts as different, and so do parameters that an arm or a setting sets and the "
    "paper does not name. What our methods do otherwise than their authors' code is said beside each comparison."
)
BESIDE_COLUMNS = (  # of `beside`
    *("arm", "setting", "n", "mean", "low", "high", "selection"),
    *("entry", "paper", "where", "name", "reported", "sd", "n_reported"),
    *("differs_in", "mismatches", "departures", "comparable", "comparison"),
)


class Mismatch(NamedTuple):
    """One difference of protocol."""

    what: str  # in a word, for tables
    text: str  # part of a sentence


def beside(study: Results, selection: str | None = None) -> pd.DataFrame:
    """Every measured arm × setting with the closest reported numbers, one row each.

    Columns: arm, setting (JSON), n, mean, low, high (ours, fractions, t interval), selection; entry (row of
    `reported`), paper, where, name, reported, sd, n_reported; differs_in (words), mismatches, departures (sentences
    both), comparable, comparison.  An arm that no paper has a number for gets one row without one.
    """
    rule = study.rule(selection)
    rows = []
    for (arm, setting), trials in _by_arm_and_setting(study):
        scores = statistics.accuracy(trials, rule).dropna()
        if not len(scores):
            continue
        estimate = statistics.mean(scores)
        mean, low, high = float(estimate.value), float(estimate.low), float(estimate.high)
        ours = {"arm": arm, "setting": setting, "n": len(scores), "mean": mean, "low": low, "high": high}
        config = _config(trials)
        nearest = list(closest(config)) if config else []
        declared = departures(config) if config else []
        for number, entry in nearest:
            differences = mismatches(entry, config, stated_settings(study, arm, setting), rule, len(scores))
            blocking = list(dict.fromkeys(mismatch.what for mismatch in differences if mismatch.what != REPLICATES))
            rows.append(
                {
                    **ours,
                    **{"entry": number, "paper": entry.paper, "where": entry.where, "name": entry.name},
                    **{"reported": entry.value, "sd": entry.sd, "n_reported": entry.n},
                    "differs_in": list(dict.fromkeys(mismatch.what for mismatch in differences)),
                    "mismatches": [mismatch.text for mismatch in differences],
                    "departures": declared,
                    "comparable": not blocking,
                    "comparison": "; ".join(
                        [
                            _compared(entry.value, mean, low, high, len(scores), blocking),
                            *([*(mismatch.text for mismatch in differences), *declared] if not blocking else []),
                        ]
                    ),
                }
            )
        if not nearest:
            why = "no paper has a number for it" if config else "its configuration is not stored"
            nothing = {"differs_in": [], "mismatches": [], "departures": declared}
            rows.append({**ours, **nothing, "comparable": False, "comparison": why})
    frame = pd.DataFrame([{**row, "selection": rule} for row in rows], columns=list(BESIDE_COLUMNS))
    kinds: dict[str, Any] = {"n": int, "comparable": bool, "entry": "Int64", "n_reported": "Int64"}
    return frame.astype({**kinds, **dict.fromkeys(("mean", "low", "high", "reported", "sd"), float)})


def closest(config: Mapping[str, Any]) -> Iterator[tuple[int, Entry]]:
    """The entries, with their row, of the same method and kind of noise that are nearest in what the question is.

    In this order: the method's variant (its words and switches, where its weights start; numbers are protocol), the
    data set (another one with as many classes before others), which human labels, the rate of wrong labels, the number
    of labels, of trusted images, the network.  All that are equally near are given: they differ in protocol.

    Test accuracies come first; the nearest validation accuracies follow where no test accuracy is as near.
    """
    noise, method = config["noise"], config["method"]
    our_kind = SIMILAR_NOISE.get(_noise_kind(config), _noise_kind(config))
    ranked: dict[str, list[tuple[tuple[float, ...], int, Entry]]] = {measure: [] for measure in COMPARED_MEASURES}
    for number, entry in enumerate(entries()):
        kind = SIMILAR_NOISE.get(entry.noise, entry.noise)
        same = entry.method == method["name"] and kind == our_kind
        if not same or entry.measure not in ranked:
            continue
        symmetric = kind == "symmetric"
        rate = wrong_share(kind, entry.rate, entry.include_true, entry.dataset) if symmetric else entry.rate
        rank = (
            sum(
                lookup(method, key, None) != value
                for key, value in entry.settings.items()
                if isinstance(value, str | bool)
            )
            + (entry.initialisation != _initial_weights(config)),
            entry.dataset != _dataset(config),
            _classes(entry.dataset) != _classes(_dataset(config)),
            entry.column != noise["column"],
            round(abs(rate - (_our_share(config) if symmetric else noise["rate"])), 6),
            _apart(entry.labels, config["labels"]),
            _apart(entry.unlabelled_ratio, config["unlabelled_ratio"]),
            abs((entry.probe or 0) - config["probe"]),
            entry.network != config["network"],
        )
        ranked[entry.measure].append((rank, number, entry))
    nearest: tuple[float, ...] = (np.inf,)
    for of_measure in ranked.values():
        best = min((rank for rank, _, _ in of_measure), default=nearest)
        if best < nearest:
            yield from ((number, entry) for rank, number, entry in of_measure if rank == best)
            nearest = best


def mismatches(
    entry: Entry, config: Mapping[str, Any], stated: Mapping[str, Any], selection: str, n: int
) -> list[Mismatch]:
    """All in which a reported number's protocol differs from ours, or is not known.

    `config`: a trial's, as stored; `stated`: the fields of its method that the study sets; `n`: our replicates.
    """
    return [Mismatch(what, sentence) for what, sentence in _differences(entry, config, stated, selection, n)]


def _differences(
    entry: Entry, config: Mapping[str, Any], stated: Mapping[str, Any], selection: str, n: int
) -> Iterator[tuple[str, str]]:
    if entry.measure != "test accuracy":
        yield "measure", f"the paper's number is {entry.measure}, ours test accuracy"
    if entry.evidence == "recalled":
        yield "evidence", "the reported number is recalled and not read"
    if entry.dataset != _dataset(config):
        yield "data set", f"{config['dataset']} here, {entry.dataset} in the paper"
    yield from _noise_differences(entry, config)
    yield from _images_differences(entry, config)
    yield from _network_differences(entry, config)
    yield from _method_differences(entry, config, stated)
    yield from _length_differences(entry, config)
    yield from _selection_differences(entry, config, selection)
    yield from _replicate_differences(entry, n)


def _noise_differences(entry: Entry, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    noise = config["noise"]
    share, ours = wrong_share(entry.noise, entry.rate, entry.include_true, entry.dataset), _our_share(config)
    if entry.noise != _noise_kind(config):
        yield "noise", f"noise {_noise_kind(config)} here, {entry.noise} in the paper"
    if entry.column != noise["column"]:
        yield "noise", f"human labels {noise['column']} here, {entry.column} in the paper"
    if entry.noise == "semantic":
        yield "noise", "semantic labels are another network's here than in the paper"
    elif entry.noise == "symmetric" and entry.include_true is not None:
        if abs(share - ours) > SAME_SHARE:
            alike = entry.include_true == noise["include_true"]
            conventions = f"ours {_convention(noise)}, the paper's {TRUE_CLASS_CONVENTION[entry.include_true]}: "
            yield (
                "noise rate" if alike else "noise convention",
                ("" if alike else f"symmetric noise: {conventions}")
                + f"{ours:.1%} of the labels are wrong here, {share:.1%} in the paper",
            )
    elif abs(entry.rate - noise["rate"]) > SAME_SHARE:
        yield "noise rate", f"rate {noise['rate']:g} here, {entry.rate:g} in the paper"
    if entry.noise == "symmetric" and entry.include_true is None:
        yield (
            "noise convention",
            f"symmetric noise: ours {_convention(noise)}, the paper's convention is not known",
        )
    if entry.noise == _noise_kind(config) == "asymmetric" and entry.dataset != config["dataset"]:
        yield "noise", "asymmetric noise maps each data set's classes in its own way"


def _convention(noise: Mapping[str, Any]) -> str:
    """Say what our symmetric noise does with the true class."""
    return TRUE_CLASS_CONVENTION[noise["include_true"]]


def _images_differences(entry: Entry, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if entry.labels != config["labels"]:
        here, there = ("all" if count is None else f"{count}" for count in (config["labels"], entry.labels))
        yield "labels", f"{here} labels here, {there} in the paper"
    if entry.unlabelled_ratio != config["unlabelled_ratio"] and not (entry.labels is None and config["labels"] is None):
        here, there = (
            "all others" if ratio is None else f"{ratio:g} for each labelled one"
            for ratio in (config["unlabelled_ratio"], entry.unlabelled_ratio)
        )
        yield "unlabelled images", f"unlabelled images: {here} here, {there} in the paper"
    if entry.probe != config["probe"]:
        there = "not known how many" if entry.probe is None else f"{entry.probe}"
        yield "trusted images", f"{config['probe']} trusted images here, {there} in the paper"


def _network_differences(entry: Entry, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if entry.network is None:
        yield "network", f"{config['network']} here, the paper's network is not known"
    elif entry.network != config["network"]:
        yield "network", f"{config['network']} here, {entry.network} in the paper"
    here, there = _initial_weights(config), entry.initialisation
    if here != there:
        yield "initialisation", f"starts from {here or 'random weights'} here, {there or 'random weights'} in the paper"
    if (pixels := config.get("resize")) != entry.resize:
        here, there = (f"resized to {size} pixels" if size else "as they are" for size in (pixels, entry.resize))
        yield "image size", f"images are {here} here, {there} in the paper"


def _method_differences(
    entry: Entry, config: Mapping[str, Any], stated: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    for key, value in entry.settings.items():
        if (here := lookup(config["method"], key, None)) != value:
            yield "variant" if isinstance(value, str | bool) else "settings", f"{key} {here} here, {value} in the paper"
    if not entry.settings:
        yield "settings", "the paper's parameters are not known"
    elif silent := [key for key in stated if key not in entry.settings]:
        yield "settings", f"set here, and not known of the paper: {', '.join(silent)}"


def _length_differences(entry: Entry, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if entry.epochs is None:
        yield "epochs", f"{config['epochs']} epochs here, the paper's are not known"
    elif entry.epochs != config["epochs"]:
        yield "epochs", f"{config['epochs']} epochs here, {entry.epochs} in the paper"
    if entry.steps != config["steps"]:
        here, there = ("one pass" if steps is None else f"{steps} steps" for steps in (config["steps"], entry.steps))
        yield "epochs", f"an epoch is {here} here, {there} in the paper"


def _selection_differences(entry: Entry, config: Mapping[str, Any], selection: str) -> Iterator[tuple[str, str]]:
    if entry.selection == "unknown":
        yield "selection rule", f"{EPOCH_RULES[selection]} here, the paper's rule is not known"
    elif entry.selection != selection:
        marks = [f" ({ORACLE_NOTE})" * (rule == "best_test") for rule in (selection, entry.selection)]
        yield (
            "selection rule",
            f"{EPOCH_RULES[selection]}{marks[0]} here, {EPOCH_RULES[entry.selection]}{marks[1]} in the paper",
        )
    here = config["validation"]["labels"] if config["validation"]["images"] else "none"
    if entry.validation == "unknown":
        yield "validation", "whether the paper keeps validation images apart is not known"
    elif entry.validation != here:
        yield "validation", f"validation labels: {here} here, {entry.validation} in the paper"


def _replicate_differences(entry: Entry, n: int) -> Iterator[tuple[str, str]]:
    if entry.n is None:
        yield REPLICATES, "the paper's number of runs is not known"
    elif entry.n < FEWEST_REPLICATES:
        yield (
            REPLICATES,
            "one run in the paper" if entry.n == 1 else f"{entry.n} runs in the paper, fewer than {FEWEST_REPLICATES}",
        )
    if n < FEWEST_REPLICATES:
        yield REPLICATES, "one replicate here" if n == 1 else f"{n} replicates here, fewer than {FEWEST_REPLICATES}"
    if entry.spread == "epochs":
        yield "±", "± is over epochs in the paper, not over runs"
    elif entry.spread == "unknown":
        yield REPLICATES, "what ± is over is not known"


def wrong_share(kind: str, rate: float, include_true: bool | None, dataset: str) -> float:
    """Share of wrong labels that a nominal rate leaves: 50 % symmetric noise that may redraw the true class has 45 %.

    Where the convention is not known, as if the true class were never kept.  CIFAR-10's asymmetric map changes five of
    its ten classes.
    """
    if kind == "symmetric" and include_true:
        return rate * (_classes(dataset) - 1) / _classes(dataset)
    return rate / 2 if kind == "asymmetric" and dataset == "cifar10" else rate


def stated_settings(study: Results, arm: str, setting: str) -> dict[str, Any]:
    """Fields of the method that the arm or the setting sets, without "method.": what may differ from its defaults.

    An arm that keeps the base's method has what the base says of it, too; that is not known here.
    """
    overrides = {**study.plan.arms.get(arm, {}), **json.loads(setting)}
    whole = overrides.get("method")
    inside = {key: value for key, value in whole.items() if key != "name"} if isinstance(whole, Mapping) else {}
    dotted = {key.removeprefix("method."): value for key, value in overrides.items() if key.startswith("method.")}
    return {key: value for key, value in {**inside, **dotted}.items() if key != "name"}


def table(study: Results, selection: str | None = None) -> Table:
    """Tabulate a study's arms and settings with the closest reported numbers."""
    frame = beside(study, selection)
    known = frame[frame["entry"].notna()]
    rows = [
        [
            readable(row["arm"]),
            setting_name(json.loads(row["setting"])),
            str(row["n"]),
            percent(row["mean"]),
            interval(row["low"], row["high"]),
            _reported(row["reported"], row["sd"]),
            f"{row['paper']}, {row['where']}: {row['name']}",
            row["comparison"],
        ]
        for row in statistics.records(known)
    ]
    header = ["arm", "setting", "n", "here (%)", "95 % interval", "reported (%)", "where", "comparison"]
    rule = study.rule(selection)
    without = sorted({readable(arm) for arm in frame["arm"]} - {readable(arm) for arm in known["arm"]})
    caption = (
        f"What papers report beside what was measured here. {rule_sentence(rule, study.trials)} {PROTOCOL_NOTE}"
        + f" No paper has a number for: {', '.join(without)}." * bool(without)
    )
    return Table(caption, header, rows, frame)


def registry_table(name: str, study: Results | None = None, selection: str | None = None) -> Table:
    """All numbers of one paper, with those of a study beside the ones that are closest to its arms."""
    measured = pd.DataFrame(columns=list(BESIDE_COLUMNS)) if study is None else beside(study, selection)
    here = {number: statistics.records(rows) for number, rows in measured.groupby("entry")}
    title = paper(name).title  # raises PaperError for an unknown one
    rows, records = [], []
    for number, entry in enumerate(entries()):
        if entry.paper != name:
            continue
        for measured_row in here.get(number, [None]):
            about = {"entry": number, **entry.model_dump(exclude={"selection", "n"}), "n_reported": entry.n}
            records.append({**(measured_row or {}), **about, "rule_of_paper": entry.selection})
            rows.append(
                [
                    entry.where,
                    entry.name,
                    _setting_text(entry),
                    entry.network or "not known",
                    _epoch_text(entry),
                    "not known" if entry.n is None else str(entry.n),
                    _reported(entry.value, entry.sd, entry.measure == "training loss"),
                    "" if measured_row is None else _measured(readable(measured_row["arm"]), measured_row),
                    "" if measured_row is None else measured_row["comparison"],
                ]
            )
    header = ["where", "name", "setting", "network", "epoch", "runs", "reported (%)", "here (%)", "comparison"]
    caption = f"{title}: all its numbers in the registry. {PROTOCOL_NOTE}"
    return Table(caption, header, rows, pd.DataFrame(records))


def _by_arm_and_setting(study: Results) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    """Yield the finished trials of each arm in each setting, in the plan's order."""
    for (arm, place), rows in study.trials.groupby(["arm", study.trials["setting"].map(canonical)], sort=False):
        yield (str(arm), str(place)), rows


def _config(trials: pd.DataFrame) -> dict[str, Any]:
    """The stored configuration that these replicates share; empty where none is stored."""
    texts = trials["config"].dropna()
    return dict(json.loads(texts.iloc[0])) if len(texts) else {}


def _initial_weights(config: Mapping[str, Any]) -> str:
    """What the weights start from: ImageNet, BEiT, a file, then a method, and its data where these are other ones.

    Empty: drawn at random.
    """
    start = config.get("init_from") or {}
    method = start.get("method", start.get("method.name", ""))
    method = method["name"] if isinstance(method, Mapping) else method
    other_data = "dataset" in start and start["dataset"] != config["dataset"]
    trained = f"{method} on {start['dataset']}" if other_data else method
    return ", then ".join(filter(None, [_published(config, config.get("weights") or start.get("weights")), trained]))


def _published(config: Mapping[str, Any], weights: str | None) -> str:
    """What papers call published weights: those of BEiT are a file, which may have any name."""
    if weights == "imagenet":
        return "ImageNet"
    return "BEiT" if weights and config["network"] == "beit_b_16" else weights or ""


def _dataset(config: Mapping[str, Any]) -> str:
    """The data set's name without its options, such as the size of its images."""
    return str(config["dataset"]).partition("?")[0]


def _classes(dataset: str) -> int:
    return CLASSES.get(dataset, 10)


def _noise_kind(config: Mapping[str, Any]) -> str:
    """Return the kind of noise as papers call it: labels that are given came from people or with images of the web."""
    noise = config["noise"]
    if noise["kind"] in ("given", "human"):
        return "web" if _dataset(config) in FROM_THE_WEB else "human"
    return "none" if noise["kind"] != "semantic" and not noise["rate"] else str(noise["kind"])


def _our_share(config: Mapping[str, Any]) -> float:
    noise = config["noise"]
    return wrong_share(noise["kind"], noise["rate"], noise["include_true"], config["dataset"])


def _apart(first: float | None, second: float | None) -> float:
    """How far two counts are apart, as a logarithm; infinite where one is of all images and the other not."""
    if first is None or second is None:
        return 0.0 if first is second else np.inf
    return round(abs(float(np.log(first / second))), 6)


def _compared(reported: float, mean: float, low: float, high: float, n: int, blocking: list[str]) -> str:
    if blocking:
        return f"not comparable: {', '.join(blocking)}"
    if n < FEWEST_REPLICATES:
        return "not compared"
    if np.isnan(low):
        return "our replicates do not differ: no interval"
    away = f"{100 * abs(reported - mean):.2f} points {'above' if reported > mean else 'below'} our mean"
    return f"in our interval, {away}" if low <= reported <= high else f"outside our interval, {away}"


def _setting_text(entry: Entry) -> str:
    """Data set, labels and noise, such as `cifar10, 50 % symmetric, true class among the draws`."""
    parts = [entry.dataset]
    if entry.labels:
        parts.append(f"{entry.labels} labels")
    if entry.unlabelled_ratio:
        parts.append(f"1 : {entry.unlabelled_ratio:g}")
    if entry.probe:
        parts.append(f"{entry.probe} trusted")
    if entry.noise == "human":
        parts.append(f"human labels {entry.column}")
    elif entry.noise != "none":
        parts.append(f"{100 * entry.rate:g} % {entry.noise.replace('_', ' ')}" if entry.rate else "web labels")
    if entry.include_true is not None:
        parts.append("true class among the draws" if entry.include_true else "true class never drawn")
    if entry.measure != "test accuracy":
        parts.append(entry.measure)
    return ", ".join(parts)


def _epoch_text(entry: Entry) -> str:
    if entry.selection == "unknown":
        return "not known"
    return EPOCH_RULES[entry.selection] + " (an oracle)" * (entry.selection == "best_test")


def _measured(arm: str, row: Mapping[str, Any]) -> str:
    """Format a mean of ours: `dividemix: 94.50 [94.20, 94.80], n = 5`."""
    return f"{arm}: {' '.join(filter(None, [percent(row['mean']), interval(row['low'], row['high'])]))}, n = {row['n']}"


def _reported(value: float, sd: float | None, number: bool = False) -> str:
    show = (lambda plain: f"{plain:g}") if number else percent
    return show(value) + ("" if sd is None or np.isnan(sd) else f" ± {show(sd)}")
