"""The report of a study: one self-contained page, with its figures and tables as files beside it.

The same rows give the same bytes: nothing is dated but by the rows themselves.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import jinja2
import numpy as np
import pandas as pd

from analysis import plots, search_plots, statistics, tables
from analysis.load import Study, load
from lnl.results import write_atomically

PIXELS_PER_INCH = 100  # on the page
MOST_OPEN = 4  # searches whose figures are open on the page; of more of them each is folded
MOST_SENTENCES = 12  # on contrasts; more of them are folded, for the figure below says the same
MOST_NAMED = 6  # searches in one sentence
MOST_FLIPS = 5  # sentences on rankings that depend on the budget


@dataclass(frozen=True)
class Picture:
    """A figure on the page."""

    stem: str  # of its files
    source: str  # data: URL
    width: int  # CSS pixels
    caption: str


@dataclass
class Section:
    """One panel, or what stands beside them, on the page.

    `lead` comes first; `note` stands where there is nothing to draw; `parts`, folded if `folded`, come last.
    """

    name: str
    title: str
    command: str
    code: str
    pictures: list[Picture] = field(default_factory=list)
    table: tables.Table | None = None
    note: str = ""
    lead: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    parts: list[Section] = field(default_factory=list)
    folded: bool = False


def build(
    root: str | Path, study: str, preset: str | None = None, selection: str | None = None, out: str | Path | None = None
) -> Path:
    """Write the report of a study's newest plan; returns the page, `<root>/reports/<study>-<preset>/index.html`.

    `selection`: the rule by which a trial's accuracy is read; the plan's own where none is given.
    """
    loaded = load(root, study, preset)
    rule = loaded.rule(selection)
    folder = Path(out) if out is not None else loaded.root / "reports" / f"{loaded.name}-{loaded.preset}"
    curves = sorted({metric for panel in loaded.plan["panels"].values() for metric in panel["curves"]})
    epochs = loaded.epochs(curves)
    contrasts = _contrast_section(loaded, rule, folder)
    sections = [_search_section(loaded, rule, folder)] if loaded.cells else []
    sections += [_panel_section(loaded, name, rule, epochs, folder) for name in loaded.plan["panels"]]
    inside = _inside_section(loaded, rule, folder)
    sections += [inside] if inside.pictures else []
    templates = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=templates, autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_unbroken
    )
    page = environment.get_template("report.html.jinja").render(
        study=loaded,
        title=plots.words(loaded.name),
        rule=rule,
        rule_in_words=statistics.SELECTION[rule],
        summary=" ".join(summary(loaded)),
        sentences=[contrast_sentence(row) for _, row in loaded.contrasts(rule).iterrows()],
        most_open_sentences=MOST_SENTENCES,
        contrasts=contrasts,
        sections=sections,
        missing=tables.of_missing(loaded) if len(loaded.missing) else None,
        left=tables.of_left(loaded) if len(loaded.left) else None,
        provenance=list(provenance(loaded.trials.drop_duplicates("trial"))),
        noise=realised_noise(loaded.trials),
        unreadable=[path.relative_to(loaded.root).as_posix() for path in loaded.unreadable],
    )
    return _write(folder / "index.html", page.encode())


def summary(study: Study) -> Iterator[str]:
    """What was asked for and what is there, in plain words."""
    planned = pd.DataFrame(study.plan["trials"], columns=["trial", "arm", "setting", "replicate"])
    settings = planned["setting"].map(str).nunique()
    replicates = planned["replicate"].nunique()
    trials = study.trials.drop_duplicates("trial")  # a search that found nothing better shares its arm's
    yield (
        f"{_count(planned['arm'].nunique(), 'arm')} in {_count(settings, 'setting')} with "
        f"{_count(replicates, 'replicate')}: {_count(planned['trial'].nunique(), 'trial')} planned, "
        f"{len(trials)} finished."
    )
    if count := int(statistics.diverged(trials).sum()):
        yield f"Diverged, and counted as chance accuracy: {count}."
    if len(study.missing):
        reasons = study.missing["failure_class"].fillna(study.missing["status"]).value_counts().sort_index()
        yield f"Missing: {', '.join(f'{count} {plots.words(str(reason))}' for reason, count in reasons.items())}."
    if outside := len(study.plan["contrasts"]) - len(study.contrasts()):
        yield f"Left out: {_count(outside, 'declared contrast')} of arms that this preset does not have."
    if len(study.left):
        yield f"Shown apart, at the end: {_count(len(study.left), 'trial')} that the plan no longer asks for."


def contrast_sentence(row: pd.Series) -> str:
    """One declared contrast: difference, interval, n, paired or not.  No verdict."""
    name = f"{plots.words(row['arm'])} against {plots.words(row['against'])}"
    if np.isnan(row["difference"]):
        return f"{name}: no finished replicates of both arms in the base setting yet."
    difference, low, high = (plots.points(row[name]) for name in ("difference", "low", "high"))
    interval = "no interval: too few replicates that differ"
    if not np.isnan(row["low"]):
        interval = f"95 % interval {low} to {high}"
    how = f"n = {row['n']} and {row['n_against']}, unpaired: {row['reason']}"
    if row["paired"]:
        rho = "" if np.isnan(row["correlation"]) else f", correlation {row['correlation']:.2f}".replace("-", "−")
        how = f"n = {row['n']}, paired by replicate{rho}"
    smallest = row["smallest_effect"]
    matters = f" Declared to matter from {100 * smallest:g} points." if smallest > 0 else ""
    return f"{name}: {difference} percentage points, {interval}; {how}.{matters}"


def search_sentences(study: Study) -> Iterator[str]:
    """How values were chosen, and on what the choice was confirmed."""
    search = study.plan["search"]
    rule = statistics.SELECTION[search["selection"]].replace("validation accuracy", "accuracy there")
    used = ", ".join(str(replicate) for replicate in sorted(study.tried["replicate"].unique()))
    which = f" (number {used})" * bool(used)
    yield (
        f"Values were chosen by accuracy on {search['validation_labels']} validation labels, {rule}, on "
        f"{_count(search['replicates'], 'replicate')} of the searches' own{which}; each search made "
        f"{_count(search['suggestions'], 'suggestion')}, the arm's own values the first. What the winners are worth is "
        f"confirmed on the study's {_count(study.plan['replicates'], 'replicate')}, which no search has seen: see the "
        "declared contrasts."
    )
    won = [cell for cell in study.cells if cell["winner"] and cell["winner"]["number"] == 0]
    if won:
        yield (f"The own values won, so the searched arm is the arm itself: {_several(map(search_plots.title, won))}.")
    if len(search["objectives"]) > 1:
        yield "The searches had two objectives, accuracy and seconds; the curves of best-so-far look at accuracy alone."


def search_warnings(study: Study, suggestions: pd.DataFrame) -> Iterator[str]:
    """What a reader must know before comparing searches."""
    open_cells = [cell for cell in study.cells if not cell["winner"]]
    if open_cells:
        asked = study.plan["search"]["suggestions"]
        counts = suggestions.groupby("search")["counts"].sum()
        parts = [f"{search_plots.title(cell)} ({counts.get(cell['search'], 0)} of {asked})" for cell in open_cells]
        verb = "is" if len(parts) == 1 else "are"
        yield (
            f"Not finished, and drawn as far as {'it' if len(parts) == 1 else 'they'} {verb}: {_several(parts)}. "
            "Running the study again goes on with them."
        )
    for setting, cells in search_plots.by_setting(study).items():
        place = "" if setting == "base" else f" at {setting}"
        searches = {plots.words(search_plots.name_of(cell)): search_plots.shown(suggestions, cell) for cell in cells}
        counts_here = {name: int(rows["counts"].sum()) for name, rows in searches.items()}
        if len(set(counts_here.values())) > 1:
            low, high = min(counts_here.values()), max(counts_here.values())
            behind = [name for name, count in counts_here.items() if count < high]
            yield (
                f"Budgets differ{place}: {_several(behind)} with fewer than {_count(high, 'suggestion')} that count. "
                f"Compare searches up to {_count(low, 'suggestion')} only."
            )
        curves = {name: statistics.best_so_far(rows) for name, rows in searches.items()}
        flips = statistics.ranking_flips(curves)
        yield from (flip_sentence(row, place) for row in statistics.records(flips.head(MOST_FLIPS)))
        if len(flips) > MOST_FLIPS:
            more = len(flips) - MOST_FLIPS
            yield f"The ranking depends on the budget{place} for {_count(more, 'more pair')} of searches, by less."
    for cell in study.cells:
        rows = search_plots.shown(suggestions, cell)
        versions = rows["code_hash"].dropna().nunique()
        if versions > 1:
            yield f"The suggestions of {search_plots.title(cell)} come from {versions} versions of the code."


def flip_sentence(row: Mapping[str, Any], place: str = "") -> str:
    """Two searches whose order in expected test accuracy turns with the budget."""
    span = f"up to {_count(row['until'], 'suggestion')}"
    if row["first"] > 1:
        span = f"from {row['first']} to {_count(row['until'], 'suggestion')}"
        span = span if row["first"] < row["until"] else f"at {_count(row['until'], 'suggestion')}"
    return (
        f"The ranking depends on the budget{place}: {row['early']} leads {row['late']} {span} "
        f"(by {100 * row['lead']:.1f} points at most), {row['late']} from {row['since']} on "
        f"(by {100 * row['final_lead']:.1f} at {row['budget']}; expected test accuracy)."
    )


def provenance(trials: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """What the finished trials were made with, from their rows; several values are listed with their counts."""

    def counted(column: str, show: Callable[[object], str] = str) -> str:
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
    yield "Device", counted("device")
    yield "Machine", counted("host")
    for package in ("python", "torch", "ray"):
        yield f"Version of {package}", counted(f"version_{package}")
    dirty = trials["git_dirty"].fillna(False).astype(bool)
    changed = f", with uncommitted changes in {_count(int(dirty.sum()), 'trial')}" * bool(dirty.any())
    yield "Git commit", counted("git_commit", lambda commit: str(commit)[:12]) + changed
    for method, rows in trials.groupby("method"):
        counts = rows["code_hash"].fillna("not stored").value_counts().sort_index()
        text = ", ".join(f"{code} ({_count(n, 'trial')})" for code, n in counts.items())
        yield f"Code of {method}", text + "; the trials come from different versions of the code" * (len(counts) > 1)
    for dataset, rows in trials.groupby("dataset"):
        yield f"Data {dataset}", ", ".join(sorted(rows["data_hash"].dropna().unique())) or "no hash stored"


def realised_noise(trials: pd.DataFrame) -> list[list[str]]:
    """Per noise and number of labels: the share of wrong labels as realised, and how many draws of it there are."""
    rows = []
    for cell, group in trials.groupby(["noise_kind", "noise_rate", "labels"]):
        kind, rate, labels = cast(tuple[str, float, int], cell)
        low, high = group["noise_realised"].min(), group["noise_realised"].max()
        realised = f"{100 * low:.2f} %" if high - low < 5e-5 else f"{100 * low:.2f} % to {100 * high:.2f} %"
        rows.append([kind, f"{100 * rate:g} %", str(labels), realised, str(group["noise_hash"].nunique())])
    return rows


def _contrast_section(study: Study, rule: str, folder: Path) -> Section:
    section = _section(study, "contrasts", "Declared contrasts", rule, ".contrasts({rule})")
    table = tables.of_contrasts(study, rule)
    if table.frame.empty:
        section.note = "No contrast is declared between arms of this preset."
        return section
    section.table = _save_table(folder, "contrasts", table)
    known = table.frame.dropna(subset="difference")
    if known.empty:
        section.note = "No contrast has finished replicates of both its arms yet."
        return section
    section.pictures = [_save_figure(folder, "contrasts", plots.forest(known, plots.arm_looks(study)))]
    if waiting := len(table.frame) - len(known):
        section.note = f"Not drawn: {_count(waiting, 'contrast')} without finished replicates of both arms."
    return section


def _search_section(study: Study, rule: str, folder: Path) -> Section:
    suggestions = study.suggestions(rule)
    section = _section(study, "suggestions", "Search", rule, ".plot_search(selection={rule})")
    section.lead = list(search_sentences(study))
    section.warnings = list(search_warnings(study, suggestions))
    section.table = _save_table(folder, "suggestions", tables.of_search(study, suggestions, rule))
    overview = search_plots.overview(study, suggestions)
    section.pictures = [_save_figure(folder, f"suggestions-{kind}", plot) for kind, plot in overview.items()]
    section.folded = len(study.cells) > MOST_OPEN
    for cell in study.cells:
        name, stem = search_plots.name_of(cell), f"suggestions-{search_plots.stem(cell)}"
        place = f", {cell['setting']!r}" * bool(cell["setting"])
        part = _section(
            study, stem, search_plots.title(cell), rule, f'.plot_search("{name}"{place}, selection={{rule}})'
        )
        drawn = search_plots.of_cell(study, cell, suggestions)
        part.pictures = [_save_figure(folder, f"{stem}-{kind}", plot) for kind, plot in drawn.items()]
        if not drawn:
            part.note = "No suggestion of this search is complete yet."
        section.parts.append(part)
    return section


def _panel_section(study: Study, name: str, rule: str, epochs: pd.DataFrame, folder: Path) -> Section:
    panel = study.plan["panels"][name]
    section = _section(study, name, panel["title"], rule, f'.plot("{name}", {{rule}})')
    if study.panel(name).empty:
        section.note = "No trial of this panel has finished yet."
        return section
    section.table = _save_table(folder, name, tables.of_panel(study, name, rule))
    if len(panel["across"]) > plots.MOST_FACTORS:
        section.note = (
            f"Figures show at most {plots.MOST_FACTORS} crossed factors; this panel crosses {len(panel['across'])}."
        )
        return section
    drawn = plots.of_panel(study, name, rule, epochs)
    section.pictures = [_save_figure(folder, f"{name}-{kind}", plot) for kind, plot in drawn.items()]
    recorded = set(epochs.loc[epochs["trial"].isin(study.panel(name)["trial"]), "metric"])
    if absent := [metric for metric in panel["curves"] if metric not in recorded]:
        section.note = f"No trial of this panel recorded {', '.join(absent)}."
    return section


def _inside_section(study: Study, rule: str, folder: Path) -> Section:
    section = _section(study, "inside", "Inside the methods", rule, ".plot_inside()")
    section.pictures = [_save_figure(folder, f"inside-{kind}", plot) for kind, plot in study.plot_inside().items()]
    return section


def _section(study: Study, name: str, title: str, rule: str, call: str) -> Section:
    command = f"lnl report {study.name} --preset {study.preset} --selection {rule}"
    code = f'load("results", "{study.name}", "{study.preset}")' + call.replace("{rule}", f'"{rule}"')
    return Section(name, title, command, code)


def _save_figure(folder: Path, stem: str, plot: plots.Plot) -> Picture:
    png = plot.png()
    _write(folder / f"{stem}.png", png)
    _write(folder / f"{stem}.pdf", plot.pdf())
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return Picture(stem, source, round(plot.figure.get_figwidth() * PIXELS_PER_INCH), plot.caption)


def _save_table(folder: Path, stem: str, table: tables.Table) -> tables.Table:
    _write(folder / f"{stem}.md", table.markdown().encode())
    _write(folder / f"{stem}.tex", table.latex(stem).encode())
    return table


def _write(path: Path, content: bytes) -> Path:
    write_atomically(path, lambda temporary: temporary.write_bytes(content))
    return path


def _unbroken(value: Any) -> Any:
    """No line break inside `95 %` and `n = 4`."""
    return value.replace(" %", "\u00a0%").replace("n = ", "n\u00a0=\u00a0") if isinstance(value, str) else value


def _several(parts: Iterable[str]) -> str:
    """The first of them, and how many more there are."""
    named = list(parts)
    more = len(named) - MOST_NAMED
    return "; ".join([*named[:MOST_NAMED], *([f"and {more} more"] if more > 0 else [])])


def _count(count: int, noun: str) -> str:
    return f"{count} {plots.plural(noun, count)}"
