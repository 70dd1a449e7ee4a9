"""The sentences of the report, made from its numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd

from analysis import configuration, measures, search_curves, statistics
from analysis.figures.contrasts import VERDICT_MARKS
from analysis.measures import ACCURACY
from analysis.results import Results
from analysis.searches import search_name, search_title, searches_by_setting, shown_suggestions
from analysis.verdicts import MOST_REPLICATES, declared_late
from analysis.words import (
    GIVEN_KINDS,
    TOO_FEW,
    capitalised,
    counted,
    difference_interval,
    measure_name,
    noise_name,
    p_text,
    plural,
    readable,
    signed,
    unit_name,
)
from lnl.dotted import flatten
from lnl.storage import outcomes
from lnl.storage.plan_record import PLANNED_COLUMNS

MOST_NAMED_SEARCHES = 6  # searches in one sentence
RATELESS = (*GIVEN_KINDS, "semantic")  # kinds of label noise that are not drawn at a rate
MOST_FLIP_SENTENCES = 5  # sentences on rankings that depend on the budget


def summary_sentences(study: Results) -> Iterator[str]:
    """What was asked for and what is there, in plain words."""
    if study.night:
        yield f"The night of {study.night}, whose replicates are its own."
    planned = pd.DataFrame(study.plan.trial_rows(), columns=PLANNED_COLUMNS)
    settings = planned["setting"].map(str).nunique()
    counts = planned.groupby(["arm", planned["setting"].map(str)])["replicate"].nunique()
    replicates = counted(counts.max(), "replicate")
    if counts.min() < counts.max():
        replicates = f"{counts.min()} to {replicates}"
    trials = study.trials.drop_duplicates("trial")  # a search that found nothing better shares its arm's
    yield (
        f"{counted(planned['arm'].nunique(), 'arm')} in {counted(settings, 'setting')} with "
        f"{replicates}: {counted(planned['trial'].nunique(), 'trial')} planned, "
        f"{len(trials)} finished."
    )
    if count := int(statistics.at_chance(trials).sum()):
        yield f"Diverged, and counted as chance accuracy: {count}."
    if unknown := int(outcomes.diverged(trials).sum()) - count:
        yield f"Diverged, and left out, as nothing tells how many classes there are: {unknown}."
    if len(study.missing):
        reasons = study.missing["failure_class"].fillna(study.missing["status"]).value_counts().sort_index()
        yield f"Missing: {', '.join(f'{count} {readable(str(reason))}' for reason, count in reasons.items())}."
    if outside := sum(not contrast.arms <= study.plan.arms.keys() for contrast in study.plan.contrasts):
        yield f"Left out: {counted(outside, 'declared contrast')} of arms that this preset does not have."
    if study.earlier:
        before = " and ".join(str(count) for count in study.earlier)
        yield (
            f"Submitted before with {before} replicates: if there are more because of what those showed, verdicts err "
            "more often than they say; --until-decided, from the start, adds replicates without that."
        )
    if len(study.left):
        yield f"Shown apart, at the end: {counted(len(study.left), 'trial')} that the plan no longer asks for."


def verdict_counts(contrasts: pd.DataFrame) -> str:
    """Say how many declared contrasts have which verdict."""
    if contrasts.empty:
        return ""
    counts = {word: int((contrasts["verdict"] == word).sum()) for word in VERDICT_MARKS}
    several = {"helps": "help", "hurts": "hurt"}
    parts = [f"{n} {several.get(word, word) if n > 1 else word}" for word, n in counts.items() if n]
    text = f"Of {counted(len(contrasts), 'declared contrast')}: {', '.join(parts)}."
    return text.replace("no verdict", "without a verdict")


class Verdict(NamedTuple):
    """One declared contrast in plain words."""

    word: str
    sentence: str
    numbers: str  # by which it is said
    doubts: str = ""  # what a reader must know before believing it


def verdict_in_words(
    row: Mapping[str, Any], family: int, looks: Sequence[int] = (), remark: configuration.Remark | None = None
) -> Verdict:
    """A declared contrast, its numbers and its doubts.

    `row`: from `Results.contrasts`.  `family`: how many are declared.  `looks`: replicates at every declared look.
    `remark`: what else the two arms differ in.
    """
    arm, against, word = readable(row["arm"]), readable(row["against"]), row["verdict"]
    sentence = {
        "equivalent": f"{arm} is equivalent to {against}",
        "undecided": f"{arm} against {against} is undecided",
        "no verdict": f"no verdict on {arm} against {against}",
    }.get(word, f"{arm} {word} compared with {against}")
    if row["metric"] != ACCURACY:
        sentence += f" in {measure_name(row['metric'])}"
    parts = [
        "" if np.isnan(row["difference"]) else _numbers(row, word, family),
        _needed(row, looks),
        _looked(row, looks),
        *_divergences(row),
        *_declaration(row, word),
    ]
    doubts = [declared_late(row), f"the two arms also differ in {remark.in_words()}" if remark else ""]
    numbers, doubted = ("; ".join(filter(None, texts)) for texts in (parts, doubts))
    return Verdict(word, sentence, f"{numbers}.", capitalised(f"{doubted}.") if doubted else "")


def _needed(row: Mapping[str, Any], looks: Sequence[int]) -> str:
    """Why there is no verdict, or about how many replicates more would decide it."""
    if row["why"]:
        return str(row["why"])
    if looks and row["looked"] == looks[-1] and row["more"] <= MOST_REPLICATES:
        return f"the last look is taken: a new study would need about {round(row['more'] + row['n'])} replicates"
    if row["more"] > MOST_REPLICATES:
        return f"not even {MOST_REPLICATES:,} more replicates would decide it"
    if row["more"] > 0:
        return f"about {counted(round(row['more']), 'more replicate')} would decide it"
    return ""


def _looked(row: Mapping[str, Any], looks: Sequence[int]) -> str:
    """At which look the contrast was decided, or how far the looks have come."""
    declared = f"looks at {', '.join(map(str, looks))}"
    if not np.isnan(row["look"]):
        return f"decided at the look after {counted(int(row['look']), 'replicate')} ({declared})"
    if not looks or row["why"]:
        return ""
    so_far = "no look yet" if np.isnan(row["looked"]) else f"looked after {counted(int(row['looked']), 'replicate')}"
    return f"{so_far} ({declared})"


def _divergences(row: Mapping[str, Any]) -> Iterator[str]:
    for arm, count in ((row["arm"], row["diverged"]), (row["against"], row["diverged_against"])):
        if count:
            counts = ("counts" if count == 1 else "count") + " as chance"
            if row["metric"] != ACCURACY:
                counts = ("has" if count == 1 else "have") + " no value"
            yield f"{counted(count, 'trial')} of {readable(arm)} diverged and {counts}"


def _declaration(row: Mapping[str, Any], word: str) -> Iterator[str]:
    """The effect that was declared to matter, and whether the verdict agrees with the declared direction."""
    if row["smallest_effect"] > 0:
        least = f"{measures.scale(row['metric']) * row['smallest_effect']:g}"
        unit = unit_name(row["metric"])
        yield f"declared to matter from {least}{unit.removesuffix('s') if least == '1' else unit}"
    if row["direction"] != "any":
        agrees = "as declared" if word == row["direction"] else "against the declared direction"
        yield agrees if word in ("helps", "hurts") else f"declared: {row['direction']}"


def _numbers(row: Mapping[str, Any], word: str, family: int) -> str:
    """Difference, interval, n and the p value that decided."""
    metric = row["metric"]
    interval = difference_interval(row["low"], row["high"], metric)
    interval = ", no interval" if interval in ("", TOO_FEW) else f" {interval}"
    if row["paired"]:
        n = f"n = {counted(row['n'], 'pair')}"
    else:
        n = f"n = {row['n']} and {row['n_against']}, unpaired: {row['reason']}"
    p = row["p_equivalence_holm"] if word == "equivalent" else row["p_holm"]
    tested = " against a difference that matters," * (word == "equivalent")
    over = f" after Holm over {family} contrasts" * (family > 1)
    tests = "" if np.isnan(p) else f" ({p_text(p)}{tested}{over})"
    return f"{signed(row['difference'], metric)}{unit_name(metric)}{interval}, {n}{tests}"


def search_sentences(study: Results) -> Iterator[str]:
    """How values were chosen, and on what the choice was confirmed."""
    search = study.plan.require_search()
    rule = statistics.SELECTION_RULES[search.selection].replace("validation accuracy", "accuracy there")
    used = ", ".join(str(replicate) for replicate in sorted(study.tried["replicate"].unique()))
    which = f" (number {used})" * bool(used)
    yield (
        f"Values were chosen by accuracy on {search.validation_labels} validation labels, {rule}, on "
        f"{counted(search.replicates, 'replicate')} of the searches' own{which}; each search made "
        f"{counted(search.suggestions, 'suggestion')}, the arm's own values the first. "
        "What the winners are worth is "
        f"confirmed on the study's {counted(study.plan.replicates, 'replicate')}, which no search has seen: see the "
        "declared contrasts."
    )
    won = [cell for cell in study.cells if cell.winner and cell.winner.number == 0]
    if won:
        yield (f"The own values won, so the searched arm is the arm itself: {_first_few(map(search_title, won))}.")
    if len(search.objectives) > 1:
        yield "The searches had two objectives, accuracy and seconds; the curves of best-so-far look at accuracy alone."


def search_warnings(study: Results, suggestions: pd.DataFrame) -> Iterator[str]:
    """What a reader must know before comparing searches."""
    open_cells = [cell for cell in study.cells if not cell.winner]
    if open_cells:
        asked = study.plan.require_search().suggestions
        counts = suggestions.groupby("search")["counts"].sum()
        parts = [f"{search_title(cell)} ({counts.get(cell.search, 0)} of {asked})" for cell in open_cells]
        verb = "is" if len(parts) == 1 else "are"
        yield (
            f"Not finished, and drawn as far as {'it' if len(parts) == 1 else 'they'} {verb}: {_first_few(parts)}. "
            "Running the study again goes on with them."
        )
    for setting, cells in searches_by_setting(study).items():
        place = "" if setting == "base" else f" at {setting}"
        searches = {readable(search_name(cell)): shown_suggestions(suggestions, cell) for cell in cells}
        counts_here = {name: int(rows["counts"].sum()) for name, rows in searches.items()}
        if len(set(counts_here.values())) > 1:
            low, high = min(counts_here.values()), max(counts_here.values())
            behind = [name for name, count in counts_here.items() if count < high]
            yield (
                f"Budgets differ{place}: {_first_few(behind)} with fewer than "
                f"{counted(high, 'suggestion')} that count. "
                f"Compare searches up to {counted(low, 'suggestion')} only."
            )
        curves = {name: search_curves.best_so_far(rows) for name, rows in searches.items()}
        flips = search_curves.ranking_flips(curves)
        yield from (flip_sentence(row, place) for row in statistics.records(flips.head(MOST_FLIP_SENTENCES)))
        if len(flips) > MOST_FLIP_SENTENCES:
            more = len(flips) - MOST_FLIP_SENTENCES
            yield f"The ranking depends on the budget{place} for {counted(more, 'more pair')} of searches, by less."
    for cell in study.cells:
        rows = shown_suggestions(suggestions, cell)
        versions = rows["code_hash"].dropna().nunique()
        if versions > 1:
            yield f"The suggestions of {search_title(cell)} come from {versions} versions of the code."


def flip_sentence(row: Mapping[str, Any], place: str = "") -> str:
    """Two searches whose order in expected test accuracy turns with the budget."""
    span = f"up to {counted(row['until'], 'suggestion')}"
    if row["first"] > 1:
        span = f"from {row['first']} to {counted(row['until'], 'suggestion')}"
        span = span if row["first"] < row["until"] else f"at {counted(row['until'], 'suggestion')}"
    return (
        f"The ranking depends on the budget{place}: {row['early']} leads {row['late']} {span} "
        f"(by {100 * row['lead']:.1f} points at most), {row['late']} from {row['since']} on "
        f"(by {100 * row['final_lead']:.1f} at {row['budget']}; expected test accuracy)."
    )


def rules_sentences(trials: pd.DataFrame, rules: pd.DataFrame) -> Iterator[str]:
    """By how much the oracle flatters, and where last10 says little.  `rules`: of `statistics.rule_table`."""
    ahead = 100 * rules["ahead_of_last"].dropna()
    if len(ahead):
        low, high = f"{ahead.min():.1f}", f"{ahead.max():.1f}"
        span = f"{low} points on average" if low == high else f"{low} to {high} points on average, by arm"
        yield f"Choosing each trial's epoch by its test accuracy would lift it above its last epoch by {span}."
    if trials["epochs"].max() <= 10:
        yield "Trials have at most ten epochs: last10 averages all of them, the first ones too."


def papers_sentence(compared: pd.DataFrame) -> str:
    """How many of the reported numbers can be compared.  `compared`: of `papers.beside`."""
    reported = compared[compared["entry"].notna()]
    count, comparable = len(reported), int(reported["comparable"].sum())
    numbers = f"{count} reported {plural('number', count)} nearest to what was measured here"
    if not comparable:
        return f"Nothing to compare: of the {numbers}, none comes from the same protocol; the table says what differs."
    return f"Of the {numbers}, {comparable} {'comes' if comparable == 1 else 'come'} from the same protocol."


def provenance_rows(trials: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """What the finished trials were made with, from their rows; several values are listed with their counts."""

    def values_with_counts(column: str, show: Callable[[object], str] = str) -> str:
        counts = trials[column].dropna().map(show).value_counts().sort_index()
        return (
            ", ".join(str(value) if len(counts) == 1 else f"{value} ({n} trials)" for value, n in counts.items())
            or "not stored"
        )

    if trials.empty:
        return
    yield "Trained", f"{trials['started_at'].min():%Y-%m-%d %H:%M} to {trials['ended_at'].max():%Y-%m-%d %H:%M} UTC"
    yield (
        "Training time",
        f"{trials['seconds'].sum() / 3600:.2f} hours in all, {trials['seconds'].median():.1f} s per trial (median)",
    )
    yield "Device", values_with_counts("device")
    yield "Machine", values_with_counts("host")
    for package in ("python", "torch", "ray"):
        yield f"Version of {package}", values_with_counts(f"version_{package}")
    dirty = trials["git_dirty"].fillna(False).astype(bool)
    changed = f", with uncommitted changes in {counted(int(dirty.sum()), 'trial')}" * bool(dirty.any())
    yield "Git commit", values_with_counts("git_commit", lambda commit: str(commit)[:12]) + changed
    for method, rows in trials.groupby("method"):
        counts = rows["code_hash"].fillna("not stored").value_counts().sort_index()
        text = ", ".join(f"{code} ({counted(n, 'trial')})" for code, n in counts.items())
        yield f"Code of {method}", text + "; the trials come from different versions of the code" * (len(counts) > 1)
    for dataset, rows in trials.groupby("dataset"):
        yield f"Data {dataset}", ", ".join(sorted(rows["data_hash"].dropna().unique())) or "no hash stored"


def noise_rows(trials: pd.DataFrame) -> list[list[str]]:
    """Per noise and number of labels: the share of wrong labels as realised, and how many draws of it there are."""
    rows = []
    columns = trials["config"].map(_noise_column).rename("column")
    for cell, group in trials.groupby(["noise_kind", "noise_rate", columns, "labels"]):
        kind, rate, column, labels = cast(tuple[str, float, str, int], cell)
        low, high = group["noise_realised"].min(), group["noise_realised"].max()
        realised = f"{100 * low:.2f} %" if high - low < 5e-5 else f"{100 * low:.2f} % to {100 * high:.2f} %"
        realised = "not known" if np.isnan(low) else realised
        asked = "–" if kind in RATELESS else f"{100 * rate:g} %"
        draws = str(group["noise_hash"].nunique())
        rows.append([noise_name(kind, column), asked, str(labels), realised, draws])
    return rows


def _noise_column(config: object) -> str:
    """The column of given labels that a trial was trained on; nothing where it named none."""
    return flatten(json.loads(config)).get("noise.column") or "" if isinstance(config, str) else ""


def _first_few(parts: Iterable[str]) -> str:
    """Name the first of them, and say how many more there are."""
    named = list(parts)
    more = len(named) - MOST_NAMED_SEARCHES
    return "; ".join([*named[:MOST_NAMED_SEARCHES], *([f"and {more} more"] if more > 0 else [])])
