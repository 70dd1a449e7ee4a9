"""Writing a report into its folder, in place of the one before."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from analysis import configuration, statistics
from analysis.figures.own import own_figures
from analysis.report.page import MOST_OPEN_SENTENCES, Report
from analysis.report.sections import (
    across_section,
    classes_section,
    contrasts_section,
    cost_section,
    failures_section,
    inside_section,
    looks_section,
    own_section,
    panel_sections,
    papers_section,
    rules_section,
    search_section,
    trained_section,
)
from analysis.report.sentences import noise_rows, provenance_rows, summary_sentences, verdict_counts, verdict_in_words
from analysis.results import read_results
from analysis.tables.study import left_table, missing_table
from analysis.words import readable
from lnl.storage.atomic import write_atomically
from lnl.storage.filenames import file_name
from lnl.storage.files import read_file, shown
from lnl.storage.places import Place, place
from lnl.storage.store import Store

MANIFEST = "files.json"  # what the newest build has written beside it
_PART = re.compile(r"[a-z0-9_.,=-]+\.(html|png|pdf|csv|md|tex)")  # of a report


def build(
    root: str | Place,
    study: str,
    preset: str | None = None,
    selection: str | None = None,
    output: str | Place | None = None,
    night: str | None = None,
    figures: str | None = None,
    pdf: bool = False,
) -> Place:
    """Write the report of a study's newest plan; returns the page, `<root>/reports/<study>-<preset>/index.html`.

    `selection`: the rule by which a trial's accuracy is read; the plan's own where none is given.  `night`: the newest
    plan of that night.  Nights share a folder of their own, `<study>-<preset>-night`.  `output`: a folder to write to
    instead; nothing is written to the results then.  `figures`: a file with figures of the user's own.  `pdf`: figures
    are written as PDF, too.  What an earlier build left there and this one does not make is removed.

    Raises ValueError where the results' own folder of reports is a link to somewhere else, and where the file of
    figures cannot be loaded or has none.
    """
    if figures is not None:
        own_figures(figures)  # refuses a wrong file before anything is drawn
    loaded = read_results(root, study, preset, night)
    name = file_name(f"{loaded.name}-{loaded.preset}" + "-night" * bool(loaded.night))
    folder = place(output) if output is not None else _inside(loaded.root, loaded.root / "reports" / name)
    report = Report(loaded, loaded.rule(selection), folder, figures, pdf)
    with _replacing(report):
        return _build(report)


def _inside(root: Place, folder: Place) -> Place:
    """Results of somebody else's may hold links: no report follows one to the reader's own files."""
    if isinstance(folder, Path) and isinstance(root, Path) and not folder.resolve().is_relative_to(root):
        raise ValueError(f"{folder} is a link out of the results: remove it, or give another folder (--output).")
    return folder


@contextlib.contextmanager
def _replacing(report: Report) -> Iterator[None]:
    """Remove, after a build, what an earlier one wrote and this one did not, and keep a list of what is there."""
    before, whole = _written_before(report.folder), False
    try:
        yield
        whole = True
    finally:
        kept = report.written if whole else report.written | before
        text = json.dumps(sorted(kept), indent=1) + "\n"
        with contextlib.nullcontext() if whole else contextlib.suppress(Exception):
            write_atomically(report.folder / MANIFEST, lambda temporary: temporary.write_text(text, encoding="utf-8"))
            for name in before - kept:
                _remove(report.folder / name)


def _written_before(folder: Place) -> set[str]:
    """Names of files that an earlier build listed; never a path to elsewhere."""
    try:
        names = json.loads(read_file(folder / MANIFEST))
    except (OSError, ValueError):
        return set()
    listed = names if isinstance(names, list) else []
    return {name for name in listed if isinstance(name, str) and _PART.fullmatch(name)}


def _remove(path: Place) -> None:
    with contextlib.suppress(IsADirectoryError, PermissionError):
        path.unlink(missing_ok=True)


def _build(report: Report) -> Place:
    loaded = report.study
    contrasts, looks = loaded.contrasts(report.rule), loaded.plan.looks
    about = {(remark.arm, remark.against): remark for remark in configuration.remarks(loaded.plan, loaded.trials)}
    makers = (
        trained_section,
        own_section,
        search_section,
        panel_sections,
        across_section,
        rules_section,
        looks_section,
        inside_section,
        classes_section,
        papers_section,
        failures_section,
        cost_section,
    )
    declared_contrasts = contrasts_section(report, contrasts)
    sections = [section for make in makers for section in make(report)]
    return report.page(
        "page.html.jinja",
        study=loaded,
        title=readable(loaded.name),
        rule_in_words=statistics.SELECTION_RULES[report.rule],
        summary=" ".join(summary_sentences(loaded)),
        count=verdict_counts(contrasts),
        trained=configuration.base_sentence(loaded),
        verdicts=[
            verdict_in_words(row, len(contrasts), looks, about.get((row["arm"], row["against"])))
            for row in statistics.records(contrasts)
        ],
        most_open_sentences=MOST_OPEN_SENTENCES,
        contrasts=declared_contrasts,
        sections=sections,
        missing=missing_table(loaded) if len(loaded.missing) else None,
        left=left_table(loaded) if len(loaded.left) else None,
        provenance=list(provenance_rows(loaded.trials.drop_duplicates("trial"))),
        noise=noise_rows(loaded.trials),
        remarks=loaded.remarks,
        unreadable={shown(Store(loaded.root).within(path)): why for path, why in loaded.unreadable.items()},
    )
