"""The report of a study: one self-contained page, with its figures and tables as files beside it.

The same rows give the same bytes: nothing is dated but by the rows themselves.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import pandas as pd

from analysis import configuration, papers, statistics, verdicts, words
from analysis import cost as cost_module
from analysis.figures import aggregate, search_axes
from analysis.figures import contrasts as figures_contrasts
from analysis.figures import inside as figures_inside
from analysis.figures import panels as figures_panels
from analysis.figures import search as figures_search
from analysis.report.page import MOST_SENTENCES, Report, Section, python
from analysis.report.sentences import papers_sentence, rules_sentences, search_sentences, search_warnings
from analysis.results import LoadError
from analysis.tables import seed_documents
from analysis.tables import study as tables_study
from lnl.storage.places import storage_flag

MOST_OPEN = 4  # searches whose figures are open on the page; of more of them each is folded


def declared(report: Report, contrasts: pd.DataFrame) -> Section:
    """Every declared contrast: the figure at the top of the page, and its table."""
    section = report.section("contrasts", "Declared contrasts")
    if contrasts.empty:
        section.note = "No contrast is declared between arms of this preset."
        return section
    section.tables = report.tables(contrasts=tables_study.of_contrasts(report.study, report.rule))
    if contrasts["difference"].isna().all():
        section.note = "No contrast has finished replicates of both its arms yet."
        return section
    code = f'plots.forest({report.loading}.contrasts("{report.rule}"))'
    section.pictures = [report.picture("contrasts", figures_contrasts.forest(contrasts), code)]
    return section


def trained(report: Report) -> Iterator[Section]:
    """The base configuration, what each arm changes, and what arms that are compared differ in without a word."""
    study = report.study
    section = report.section("trained", "What was trained")
    section.lead = list(configuration.same_training(study.plan, study.trials))
    found = list(configuration.sentences(configuration.remarks(study.plan, study.trials)))
    section.warnings = found[:MOST_SENTENCES]
    if more := len(found) - MOST_SENTENCES:
        section.warnings += [f"{more} more such remarks are left out: the table tells them."] * (more > 0)
    named = {"trained": configuration.of_base(study), "trained-arms": configuration.of_arms(study)}
    section.tables = report.tables(**named)
    if len((method := configuration.of_method(study)).rows):
        section.more["All settings of the base's method"] = report.tables(**{"trained-method": method})
    yield section


def failures(report: Report) -> Iterator[Section]:
    """Why trials failed or diverged, in their own words."""
    table = configuration.of_failures(report.study)
    if table.rows:
        section = report.section("failures", "What failed or diverged, and why", tables=report.tables(failures=table))
        named = f"{shlex.quote(report.study.name)} --preset {shlex.quote(report.study.preset)}"
        section.note = f"What they printed, and whole tracebacks: lnl logs {named}{storage_flag(report.study.root)}"
        yield section


def search(report: Report) -> Iterator[Section]:
    """What each search tried, found and spent."""
    study, rule = report.study, report.rule
    if not study.cells:
        return
    suggestions = study.suggestions(rule)
    section = report.section("suggestions", "Search", folded=len(study.cells) > MOST_OPEN)
    section.lead = list(search_sentences(study))
    section.warnings = list(search_warnings(study, suggestions))
    section.tables = report.tables(suggestions=tables_study.of_search(study, suggestions, rule))
    overview = figures_search.overview(study, suggestions)
    section.pictures = report.pictures("suggestions", overview, f'{report.loading}.plot_search(selection="{rule}")')
    for cell in study.cells:
        name, stem = search_axes.name_of(cell), f"suggestions-{search_axes.stem(cell)}"
        place = f", {cell.setting!r}" * bool(cell.setting)
        drawn = figures_search.of_cell(study, cell, suggestions)
        code = f'{report.loading}.plot_search({python(name)}{place}, selection="{rule}")'
        part = report.section(stem, search_axes.title(cell), pictures=report.pictures(stem, drawn, code))
        if not drawn:
            part.note = "No suggestion of this search is complete yet."
        section.parts.append(part)
    yield section


def panels(report: Report) -> Iterator[Section]:
    """A section for each panel of the study."""
    study, rule = report.study, report.rule
    epochs = study.epochs(sorted({metric for panel in study.plan.panels.values() for metric in panel.curves}))
    for name, panel in study.plan.panels.items():
        section = report.section(name, panel.title)
        yield section
        if study.panel(name).empty:
            section.note = "No trial of this panel has finished yet."
            continue
        section.tables = report.tables(**{name: tables_study.of_panel(study, name, rule)})
        if laid_out := seed_documents.of_panel(study, name, rule):
            section.more["As tables of papers have it"] = report.tables(**laid_out)
        if len(panel.across) > figures_panels.MOST_FACTORS:
            crossed = len(panel.across)
            section.note = (
                f"Figures show at most {figures_panels.MOST_FACTORS} crossed factors; this panel crosses {crossed}."
            )
            continue
        drawn = figures_panels.of_panel(study, name, rule, epochs)
        section.pictures = report.pictures(name, drawn, f'{report.loading}.plot({python(name)}, "{rule}")')
        recorded = set(epochs.loc[epochs["trial"].isin(study.panel(name)["trial"]), "metric"])
        asked = [metric for metric in panel.curves if not metric.endswith(figures_inside.HISTOGRAM)]
        if absent := [metric for metric in asked if metric not in recorded]:
            section.note = f"No trial of this panel recorded {', '.join(absent)}."


def across(report: Report) -> Iterator[Section]:
    """All settings together, and the factorials that the arms make up, where the study has them."""
    drawn = aggregate.of_study(report.study, report.rule)
    named = aggregate.tables_of(report.study, report.rule)
    if drawn or named:
        code = f'aggregate_plots.of_study({report.loading}, "{report.rule}")'
        section = report.section("across", "Across settings", pictures=report.pictures("across", drawn, code))
        section.tables = report.tables(**{f"across-{name}": table for name, table in named.items()})
        yield section


def rules(report: Report) -> Iterator[Section]:
    """What a trial's accuracy is under each selection rule, and by how much the oracle flatters."""
    table = tables_study.of_rules(report.study)
    if len(table.frame):
        code = f"plots.selection_rules(tables.of_rules({report.loading}).frame)"
        pictures = [report.picture("rules", figures_contrasts.selection_rules(table.frame), code)]
        yield report.section(
            "rules",
            "What the choice of epoch changes",
            pictures=pictures,
            tables=report.tables(rules=table),
            lead=list(rules_sentences(report.study.trials, table.frame)),
        )


def looks_taken(report: Report) -> Iterator[Section]:
    """What each declared look showed when it was taken; a night has none."""
    taken = report.study.looks_taken()
    if taken.empty or report.study.night:
        return
    section = report.section(
        "looks", "Looks at the contrasts", tables=report.tables(looks=tables_study.of_looks(report.study, taken))
    )
    now = report.study.contrasts().set_index(["arm", "against"])["verdict"]
    decided = taken[~taken["verdict"].isin(verdicts.OPEN)].drop_duplicates(["arm", "against"], keep="last")
    for row in statistics.records(decided):
        if now.get((row["arm"], row["against"])) not in {row["verdict"], "equivalent"}:
            section.warnings.append(
                f"{words.words(row['arm'])} against {words.words(row['against'])} was judged '{row['verdict']}' at a "
                "look, and the rows say otherwise: they have changed since."
            )
    yield section


def inside(report: Report) -> Iterator[Section]:
    """What the methods believed of the labels, where they recorded it."""
    if pictures := report.pictures("inside", report.study.plot_inside(), f"{report.loading}.plot_inside()"):
        yield report.section("inside", "Inside the methods", pictures=pictures)


def beside(report: Report) -> Iterator[Section]:
    """What papers report for what was measured here, and what is odd about these papers."""
    table = papers.table(report.study, report.rule)
    if not table.rows:
        return
    section = report.section("papers", "Beside the papers", lead=[papers_sentence(table.frame)])
    saved = report.tables(papers=table)
    if table.frame["comparable"].any():
        section.tables = saved
    else:
        section.more["What papers report, and how their protocols differ"] = saved
    names = sorted(table.frame["paper"].dropna().unique())
    section.asides = {f"{name}: {papers.paper(name).title}": said for name in names if (said := papers.notes(name))}
    yield section


def cost(report: Report) -> Iterator[Section]:
    """Device-hours per arm, of use and of none."""
    study = report.study
    try:
        found = cost_module.of(study.root, study.name, study.preset, study.night)
    except LoadError:
        return
    code = f"ledger.of({report.found}).figure()"
    section = report.section("cost", "What it cost", pictures=[report.picture("cost", found.figure(), code)])
    section.more["As a table"] = report.tables(cost=found.table())
    section.lead = [" ".join(found.sentences())]
    yield section
