"""The sections of the report: each puts one question's figures, tables and sentences on the page.

The same rows give the same bytes: nothing is dated but by the rows themselves.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator

import pandas as pd

from analysis import configuration, papers, statistics
from analysis.classes import MOST_CLASSES, test_set
from analysis.cost import read_ledger
from analysis.figures.aggregate import across_figures
from analysis.figures.classes import class_figures
from analysis.figures.contrasts import contrasts_figure, rules_figure
from analysis.figures.cost import cost_figure
from analysis.figures.histograms import HISTOGRAM_SUFFIX
from analysis.figures.inside import inside_figures
from analysis.figures.own import NotDrawn, own_figures
from analysis.figures.panels import MOST_FACTORS, panel_figures
from analysis.figures.search import overview_figures, search_figures
from analysis.figures.timings import timings_figure
from analysis.notebook import loaded
from analysis.report.page import MOST_OPEN_SENTENCES, Report, Section, python_literal
from analysis.report.sentences import papers_sentence, rules_sentences, search_sentences, search_warnings
from analysis.results import LoadError
from analysis.searches import search_name, search_stem, search_title
from analysis.tables.aggregate import across_tables
from analysis.tables.classes import calibration_table, confused_table, hardest_table, suspects_table
from analysis.tables.seed_documents import seed_tables
from analysis.tables.study import contrasts_table, looks_table, panel_table, rules_table, search_table
from analysis.timings import read_timings
from analysis.verdicts import OPEN_VERDICTS
from analysis.words import listed, readable
from lnl.storage.places import storage_flag

MOST_OPEN_SEARCHES = 4  # searches whose figures are open on the page; of more of them each is folded


def contrasts_section(report: Report, contrasts: pd.DataFrame) -> Section:
    """Every declared contrast: the figure at the top of the page, and its table."""
    section = report.section("contrasts", "Declared contrasts")
    if contrasts.empty:
        section.note = "No contrast is declared between arms of this preset."
        return section
    section.tables = report.tables(contrasts=contrasts_table(report.study, report.rule))
    if contrasts["difference"].isna().all():
        section.note = "No contrast has finished replicates of both its arms yet."
        return section
    code = f'{report.loading}.plot_contrasts("{report.rule}")'
    section.pictures = [report.picture("contrasts", contrasts_figure(contrasts), code)]
    return section


def trained_section(report: Report) -> Iterator[Section]:
    """The base configuration, what each arm changes, and what arms that are compared differ in without a word."""
    study = report.study
    section = report.section("trained", "What was trained")
    section.lead = list(configuration.same_training_sentences(study.plan, study.trials))
    remarks = list(configuration.remark_sentences(configuration.remarks(study.plan, study.trials)))
    section.warnings = remarks[:MOST_OPEN_SENTENCES]
    if (more := len(remarks) - MOST_OPEN_SENTENCES) > 0:
        section.warnings.append(f"{more} more such remarks are left out: the table tells them.")
    named = {"trained": configuration.base_table(study), "trained-arms": configuration.arms_table(study)}
    section.tables = report.tables(**named)
    if len((method := configuration.method_table(study)).rows):
        section.more["All settings of the base's method"] = report.tables(**{"trained-method": method})
    yield section


def failures_section(report: Report) -> Iterator[Section]:
    """Why trials failed or diverged, in their own words."""
    table = configuration.failures_table(report.study)
    if table.rows:
        section = report.section("failures", "What failed or diverged, and why", tables=report.tables(failures=table))
        named = f"{shlex.quote(report.study.name)} --preset {shlex.quote(report.study.preset)}"
        section.note = f"What they printed, and whole tracebacks: lnl logs {named}{storage_flag(report.study.root)}"
        yield section


def own_section(report: Report) -> Iterator[Section]:
    """Figures of the user's own; what could not be drawn is told in a sentence, and the rest stands."""
    if report.figures is None:
        return
    section, study = report.section("own", "Figures of your own"), loaded(report.study)
    for figure in own_figures(report.figures):
        code = f"from {figure.module} import {figure.name}\n{figure.name}({report.loading})"
        try:
            section.pictures.append(report.picture(f"own-{figure.name}", figure.draw(study), code))
        except NotDrawn as error:
            section.warnings.append(str(error))
    yield section


def search_section(report: Report) -> Iterator[Section]:
    """What each search tried, found and spent."""
    study, rule = report.study, report.rule
    if not study.cells:
        return
    suggestions = study.suggestions(rule)
    section = report.section("suggestions", "Search", folded=len(study.cells) > MOST_OPEN_SEARCHES)
    section.lead = list(search_sentences(study))
    section.warnings = list(search_warnings(study, suggestions))
    section.tables = report.tables(suggestions=search_table(study, suggestions, rule))
    overview = overview_figures(study, suggestions)
    section.pictures = report.pictures("suggestions", overview, f'{report.loading}.plot_search(selection="{rule}")')
    for cell in study.cells:
        name, stem = search_name(cell), f"suggestions-{search_stem(cell)}"
        place = f", {cell.setting!r}" * bool(cell.setting)
        drawn = search_figures(study, cell, suggestions)
        code = f'{report.loading}.plot_search({python_literal(name)}{place}, selection="{rule}")'
        part = report.section(stem, search_title(cell), pictures=report.pictures(stem, drawn, code))
        if not drawn:
            part.note = "No suggestion of this search is complete yet."
        section.parts.append(part)
    yield section


def panel_sections(report: Report) -> Iterator[Section]:
    """A section for each panel of the study."""
    study, rule = report.study, report.rule
    epochs = study.epochs(sorted({metric for panel in study.plan.panels.values() for metric in panel.curves}))
    for name, panel in study.plan.panels.items():
        section = report.section(name, panel.title)
        yield section
        if study.panel(name).empty:
            section.note = "No trial of this panel has finished yet."
            continue
        section.tables = report.tables(**{name: panel_table(study, name, rule)})
        if laid_out := seed_tables(study, name, rule):
            section.more["As tables of papers have it"] = report.tables(**laid_out)
        if len(panel.across) > MOST_FACTORS:
            crossed = len(panel.across)
            section.note = f"Figures show at most {MOST_FACTORS} crossed factors; this panel crosses {crossed}."
            continue
        drawn = panel_figures(study, name, rule, epochs)
        section.pictures = report.pictures(name, drawn, f'{report.loading}.plot({python_literal(name)}, "{rule}")')
        recorded = set(epochs.loc[epochs["trial"].isin(study.panel(name)["trial"]), "metric"])
        asked = [metric for metric in panel.curves if not metric.endswith(HISTOGRAM_SUFFIX)]
        if absent := [metric for metric in asked if metric not in recorded]:
            section.note = f"No trial of this panel recorded {', '.join(absent)}."


def across_section(report: Report) -> Iterator[Section]:
    """All settings together, and the factorials that the arms make up, where the study has them."""
    drawn = across_figures(report.study, report.rule)
    named = across_tables(report.study, report.rule)
    if drawn or named:
        code = f'{report.loading}.plot_across("{report.rule}")'
        section = report.section("across", "Across settings", pictures=report.pictures("across", drawn, code))
        section.tables = report.tables(**{f"across-{name}": table for name, table in named.items()})
        yield section


def rules_section(report: Report) -> Iterator[Section]:
    """What a trial's accuracy is under each selection rule, and by how much the oracle flatters."""
    table = rules_table(report.study)
    if len(table.frame) and report.study.trials["epochs"].max() != 1:  # else there is no choice
        pictures = [report.picture("rules", rules_figure(table.frame), f"{report.loading}.plot_rules()")]
        yield report.section(
            "rules",
            "What the choice of epoch changes",
            pictures=pictures,
            tables=report.tables(rules=table),
            lead=list(rules_sentences(report.study.trials, table.frame)),
        )


def looks_section(report: Report) -> Iterator[Section]:
    """What each declared look showed when it was taken; a night has none."""
    taken = report.study.looks_taken()
    if taken.empty or report.study.night:
        return
    section = report.section(
        "looks", "Looks at the contrasts", tables=report.tables(looks=looks_table(report.study, taken))
    )
    key = ["arm", "against", "metric"]
    now = report.study.contrasts().set_index(key)["verdict"]
    decided = taken[~taken["verdict"].isin(OPEN_VERDICTS)].drop_duplicates(key, keep="last")
    for row in statistics.records(decided):
        if now.get(tuple(row[name] for name in key)) not in {row["verdict"], "equivalent"}:
            section.warnings.append(
                f"{readable(row['arm'])} against {readable(row['against'])} was judged '{row['verdict']}' at a "
                "look, and the rows say otherwise: they have changed since."
            )
    yield section


def inside_section(report: Report) -> Iterator[Section]:
    """What the methods believed of the labels, where they recorded it."""
    drawn = inside_figures(report.study, list(report.study.plan.arms))
    if pictures := report.pictures("inside", drawn, f"{report.loading}.plot_inside()"):
        yield report.section("inside", "Inside the methods", pictures=pictures)


def classes_section(report: Report) -> Iterator[Section]:
    """What the arms get wrong on the test set, how sure they are, and which given labels they suspect."""
    study = report.study
    measured = test_set(study)
    if measured is not None:
        section = report.section("classes", "Class by class")
        section.pictures = report.pictures("classes", class_figures(study), f"{report.loading}.plot_classes()")
        section.more["Calibration as a table"] = report.tables(calibration=calibration_table(measured))
        if len(measured.classes) > MOST_CLASSES:
            named = {"classes-hardest": hardest_table(measured), "classes-confused": confused_table(measured)}
            section.more["The hardest classes, and what is confused"] = report.tables(**named)
        if measured.left_out:
            section.note = f"Left out, because their classes are others: {listed(map(readable, measured.left_out))}."
        yield section
    suspected = {arm: table for arm in study.plan.arms if (table := suspects_table(study, arm))}
    if suspected:
        section = report.section("suspects", "Suspected labels")
        section.lead = [
            "What the arms believe of the given labels, the most suspected ones first. study.beliefs(TRIAL) has all of "
            "them in a notebook."
        ]
        for arm, table in suspected.items():
            section.more[readable(arm)] = report.tables(**{f"suspects-{arm}": table})
        yield section


def papers_section(report: Report) -> Iterator[Section]:
    """What papers report for what was measured here, and what is odd about these papers; only on data that they use."""
    if not set(report.study.trials["dataset"]) & {entry.dataset for entry in papers.entries()}:
        return
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
    section.asides = {f"{name}: {papers.paper(name).title}": notes for name in names if (notes := papers.notes(name))}
    yield section


def cost_section(report: Report) -> Iterator[Section]:
    """Device-hours per arm, of use and of none, and where the time went."""
    study = report.study
    try:
        ledger = read_ledger(study.root, study.name, study.preset, study.night)
    except LoadError:
        return
    section = report.section("cost", "What it cost")
    section.pictures = [report.picture("cost", cost_figure(ledger), f"{report.loading}.plot_cost()")]
    section.lead = [" ".join(ledger.sentences())]
    tables = {"cost": ledger.table()}
    with contextlib.suppress(LoadError):  # of attempts of an earlier version alone
        timings = read_timings(study.root, study.name, study.preset, study.night)
        section.pictures.append(report.picture("timings", timings_figure(timings), f"{report.loading}.plot_timings()"))
        section.lead.append(" ".join(timings.sentences()))
        tables["timings"] = timings.table()
    section.more["As tables"] = report.tables(**tables)
    yield section
