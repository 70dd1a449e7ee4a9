"""The report of a study: one self-contained page, with its figures and tables as files beside it.

The same rows give the same bytes: nothing is dated but by the rows themselves.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import jinja2
import numpy as np
import pandas as pd

from analysis import (
    aggregate_plots,
    configuration,
    evidence,
    ledger,
    papers,
    plots,
    search_plots,
    seed_tables,
    statistics,
    tables,
)
from analysis.load import LoadError, Study, load
from lnl.filenames import file_name
from lnl.files import read_file, shown
from lnl.results import Place, Store, default_storage, place, storage_flag, write_atomically

MANIFEST = "files.json"  # what the newest build has written beside it
PIXELS_PER_INCH = 100  # on the page
MOST_OPEN = 4  # searches whose figures are open on the page; of more of them each is folded
MOST_SENTENCES = 12  # on contrasts; more of them are folded, for the figure below says the same
MOST_NAMED = 6  # searches in one sentence
MOST_FLIPS = 5  # sentences on rankings that depend on the budget
ANCHORS = ("missing", "left", "provenance", "unreadable")  # ids of the page's own
_PART = re.compile(r"[a-z0-9_.,=-]+\.(html|png|pdf|csv|md|tex)")  # of a report


@dataclass(frozen=True)
class Picture:
    """A figure on the page."""

    stem: str  # of its files
    source: str  # data: URL
    width: int  # CSS pixels
    caption: str
    rows: int  # of the frame that it draws
    code: str  # Python that draws it again

    @property
    def imports(self) -> str:
        """What the code needs of `analysis`."""
        modules = ("aggregate_plots", "ledger", "load", "plots", "tables")
        return ", ".join(name for name in modules if re.search(rf"(?<!\.)\b{name}[.(]", self.code))


@dataclass
class Section:
    """One panel, or what stands beside them, on the page.

    `lead` comes first; `note` stands where there is nothing to draw; `more` (tables) and `asides`, by heading, are
    folded; `parts`, folded if `folded`, come last.
    """

    name: str
    title: str
    pictures: list[Picture] = field(default_factory=list)
    more: dict[str, dict[str, tables.Table]] = field(default_factory=dict)
    tables: dict[str, tables.Table] = field(default_factory=dict)  # by the stem of their files
    note: str = ""
    lead: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    asides: dict[str, list[str]] = field(default_factory=dict)
    parts: list[Section] = field(default_factory=list)
    folded: bool = False

    @property
    def anchor(self) -> str:
        """The id of its heading; its only figure may have its name."""
        return self.name + "-section" * any(picture.stem == self.name for picture in self.pictures)


@dataclass(frozen=True)
class Report:
    """What every section is made from, and where its files go."""

    study: Study
    rule: str
    folder: Place
    written: set[str] = field(default_factory=set)  # names of its files so far
    anchors: set[str] = field(default_factory=lambda: set(ANCHORS))  # ids of its sections so far

    @property
    def command(self) -> str:
        night = f" --night {shlex.quote(self.study.night)}" if self.study.night else ""
        named = f"{shlex.quote(self.study.name)} --preset {shlex.quote(self.study.preset)}"
        return f"lnl report {named}{night} --selection {self.rule}{storage_flag(self.study.root)}"

    @property
    def found(self) -> str:
        """Storage, study, preset and night, as arguments in Python."""
        root = str(self.study.root) if storage_flag(self.study.root) else default_storage()
        night = f", night={python(self.study.night)}" if self.study.night else ""
        return f"{python(root)}, {python(self.study.name)}, {python(self.study.preset)}{night}"

    @property
    def loading(self) -> str:
        """The study, in Python."""
        return f"load({self.found})"

    def section(self, name: str, title: str, **content: Any) -> Section:
        """A section whose id no other has."""
        anchor = _free(name, lambda anchor: anchor not in self.anchors)
        self.anchors.add(anchor)
        return Section(anchor, title, **content)

    def picture(self, name: str, plot: plots.Plot, code: str) -> Picture:
        """Writes a figure and the rows that it draws."""
        stem, png = self._stem(name, "png"), plot.png()
        self._write(f"{stem}.png", png)
        self._write(f"{stem}.pdf", plot.pdf())
        self._write(f"{stem}.csv", plot.drawn.to_csv(index=False, float_format="%.10g", lineterminator="\n").encode())
        source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        width = round(plot.figure.get_figwidth() * PIXELS_PER_INCH)
        return Picture(stem, source, width, plot.caption, len(plot.drawn), code)

    def pictures(self, prefix: str, drawn: plots.Plots, code: str) -> list[Picture]:
        """Writes figures by name.  `code`: Python that draws all of them."""
        return [self.picture(f"{prefix}-{kind}", plot, f"{code}[{python(kind)}]") for kind, plot in drawn.items()]

    def tables(self, **named: tables.Table) -> dict[str, tables.Table]:
        """Writes tables, by name; returns them by the stem of their files."""
        stems = {}
        for name, table in named.items():
            stems[stem := self._stem(name, "md")] = table
            self._write(f"{stem}.md", table.markdown().encode())
            self._write(f"{stem}.tex", table.latex(stem).encode())
        return stems

    def _stem(self, name: str, kind: str) -> str:
        """Of a name's files, of which one has this ending: unlike all others of this report."""
        return _free(name, lambda stem: f"{stem}.{kind}" not in self.written)

    def page(self, template: str, **content: Any) -> Place:
        loader = jinja2.FileSystemLoader(Path(__file__).parent)
        environment = jinja2.Environment(
            loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_unbroken
        )
        return self._write("index.html", environment.get_template(template).render(report=self, **content).encode())

    def _write(self, name: str, content: bytes) -> Place:
        path = self.folder / name
        write_atomically(path, lambda temporary: temporary.write_bytes(content))
        self.written.add(name)
        return path


def build(
    root: str | Place,
    study: str,
    preset: str | None = None,
    selection: str | None = None,
    output: str | Place | None = None,
    night: str | None = None,
) -> Place:
    """Write the report of a study's newest plan; returns the page, `<root>/reports/<study>-<preset>/index.html`.

    `selection`: the rule by which a trial's accuracy is read; the plan's own where none is given.  `night`: the newest
    plan of that night.  Nights share a folder of their own, `<study>-<preset>-night`.  `output`: a folder to write to
    instead; nothing is written to the results then.  What an earlier build left there and this one does not make is
    removed.  Raises ValueError where the results' own folder of reports is a link to somewhere else.
    """
    loaded = load(root, study, preset, night)
    name = file_name(f"{loaded.name}-{loaded.preset}" + "-night" * bool(loaded.night))
    folder = place(output) if output is not None else _inside(loaded.root, loaded.root / "reports" / name)
    report = Report(loaded, loaded.rule(selection), folder)
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
        there = report.written if whole else report.written | before
        text = json.dumps(sorted(there), indent=1) + "\n"
        with contextlib.nullcontext() if whole else contextlib.suppress(Exception):
            write_atomically(report.folder / MANIFEST, lambda temporary: temporary.write_text(text, encoding="utf-8"))
            for name in before - there:
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
    contrasts, looks = loaded.contrasts(report.rule), loaded.plan.get("looks", [])
    about = {(one.arm, one.against): one for one in configuration.remarks(loaded.plan, loaded.trials)}
    makers = (trained, search, panels, across, rules, looks_taken, inside, beside, failures, cost)
    declared_contrasts = declared(report, contrasts)
    sections = [section for make in makers for section in make(report)]
    return report.page(
        "report.html.jinja",
        study=loaded,
        title=plots.words(loaded.name),
        rule_in_words=statistics.SELECTION[report.rule],
        summary=" ".join(summary(loaded)),
        count=count_sentence(contrasts),
        trained=configuration.in_short(loaded),
        verdicts=[
            verdict(row, len(contrasts), looks, about.get((row["arm"], row["against"])))
            for row in statistics.records(contrasts)
        ],
        most_open_sentences=MOST_SENTENCES,
        contrasts=declared_contrasts,
        sections=sections,
        missing=tables.of_missing(loaded) if len(loaded.missing) else None,
        left=tables.of_left(loaded) if len(loaded.left) else None,
        provenance=list(provenance(loaded.trials.drop_duplicates("trial"))),
        noise=realised_noise(loaded.trials),
        remarks=loaded.remarks,
        unreadable={shown(Store(loaded.root).within(path)): why for path, why in loaded.unreadable.items()},
    )


# ------------------------------------------------------------------------------------------------------------ sentences


def summary(study: Study) -> Iterator[str]:
    """What was asked for and what is there, in plain words."""
    if study.night:
        yield f"The night of {study.night}, whose replicates are its own."
    planned = pd.DataFrame(study.plan["trials"], columns=["trial", "arm", "setting", "replicate"])
    settings = planned["setting"].map(str).nunique()
    counts = planned.groupby(["arm", planned["setting"].map(str)])["replicate"].nunique()
    replicates = _count(counts.max(), "replicate")
    if counts.min() < counts.max():
        replicates = f"{counts.min()} to {replicates}"
    trials = study.trials.drop_duplicates("trial")  # a search that found nothing better shares its arm's
    yield (
        f"{_count(planned['arm'].nunique(), 'arm')} in {_count(settings, 'setting')} with "
        f"{replicates}: {_count(planned['trial'].nunique(), 'trial')} planned, "
        f"{len(trials)} finished."
    )
    if count := int(statistics.at_chance(trials).sum()):
        yield f"Diverged, and counted as chance accuracy: {count}."
    if unknown := int(statistics.diverged(trials).sum()) - count:
        yield f"Diverged, and left out, as nothing tells how many classes there are: {unknown}."
    if len(study.missing):
        reasons = study.missing["failure_class"].fillna(study.missing["status"]).value_counts().sort_index()
        yield f"Missing: {', '.join(f'{count} {plots.words(str(reason))}' for reason, count in reasons.items())}."
    if outside := sum(not {one["arm"], one["against"]} <= set(study.plan["arms"]) for one in study.plan["contrasts"]):
        yield f"Left out: {_count(outside, 'declared contrast')} of arms that this preset does not have."
    if study.earlier:
        before = " and ".join(str(count) for count in study.earlier)
        yield (
            f"Submitted before with {before} replicates: if there are more because of what those showed, verdicts err "
            "more often than they say; --until-decided, from the start, adds replicates without that."
        )
    if len(study.left):
        yield f"Shown apart, at the end: {_count(len(study.left), 'trial')} that the plan no longer asks for."


def count_sentence(contrasts: pd.DataFrame) -> str:
    """How many declared contrasts came out how."""
    if contrasts.empty:
        return ""
    counts = {word: int((contrasts["verdict"] == word).sum()) for word in plots.VERDICTS}
    several = {"helps": "help", "hurts": "hurt"}
    said = [f"{n} {several.get(word, word) if n > 1 else word}" for word, n in counts.items() if n]
    text = f"Of {_count(len(contrasts), 'declared contrast')}: {', '.join(said)}."
    return text.replace("no verdict", "without a verdict")


class Verdict(NamedTuple):
    """One declared contrast in plain words."""

    word: str
    said: str
    numbers: str  # by which it is said
    doubts: str = ""  # what a reader must know before believing it


def verdict(
    row: Mapping[str, Any], family: int, looks: Sequence[int] = (), remark: configuration.Remark | None = None
) -> Verdict:
    """`row`: of `Study.contrasts`.  `family`: how many are declared.  `looks`: replicates at every declared look.

    `remark`: what else the two arms differ in.
    """
    arm, against, word = plots.words(row["arm"]), plots.words(row["against"]), row["verdict"]
    said = {
        "equivalent": f"{arm} is equivalent to {against}",
        "undecided": f"{arm} against {against} is undecided",
        "no verdict": f"no verdict on {arm} against {against}",
    }.get(word, f"{arm} {word} compared with {against}")
    parts = [_numbers(row, word, family)] if not np.isnan(row["difference"]) else []
    if row["why"]:
        parts.append(row["why"])
    elif looks and row["looked"] == looks[-1] and row["more"] <= evidence.MOST:
        parts.append(f"the last look is taken: a new study would need about {round(row['more'] + row['n'])} replicates")
    elif row["more"] > evidence.MOST:
        parts.append(f"not even {evidence.MOST:,} more replicates would decide it")
    elif row["more"] > 0:
        parts.append(f"about {_count(round(row['more']), 'more replicate')} would decide it")
    if not np.isnan(row["look"]):
        declared = f"looks at {', '.join(map(str, looks))}"
        parts.append(f"decided at the look after {_count(int(row['look']), 'replicate')} ({declared})")
    elif looks and not row["why"]:
        so_far = "no look yet" if np.isnan(row["looked"]) else f"looked after {_count(int(row['looked']), 'replicate')}"
        parts.append(f"{so_far} (looks at {', '.join(map(str, looks))})")
    for name, count in ((arm, row["diverged"]), (against, row["diverged_against"])):
        if count:
            parts.append(
                f"{_count(count, 'trial')} of {name} diverged and {'counts' if count == 1 else 'count'} as chance"
            )
    if row["smallest_effect"] > 0:
        least = f"{100 * row['smallest_effect']:g}"
        parts.append(f"declared to matter from {least} {'point' if least == '1' else 'points'}")
    if row["direction"] != "any":
        agrees = "as declared" if word == row["direction"] else "against the declared direction"
        parts.append(agrees if word in ("helps", "hurts") else f"declared: {row['direction']}")
    doubts = [late] if (late := tables.declared_late(row)) else []
    doubts += [f"the two arms also differ in {remark.in_words()}"] if remark else []
    return Verdict(word, said, f"{'; '.join(parts)}.", plots.sentence(f"{'; '.join(doubts)}.") if doubts else "")


def _numbers(row: Mapping[str, Any], word: str, family: int) -> str:
    """Difference, interval, n and the p value that decided."""
    low, high = plots.points(row["low"]), plots.points(row["high"])
    interval = ", no interval" if np.isnan(row["low"]) else f" [{low}, {high}]"
    if row["paired"]:
        n = f"n = {_count(row['n'], 'pair')}"
    else:
        n = f"n = {row['n']} and {row['n_against']}, unpaired: {row['reason']}"
    p = row["p_equivalence_holm"] if word == "equivalent" else row["p_holm"]
    tested = " against a difference that matters," * (word == "equivalent")
    over = f" after Holm over {family} contrasts" * (family > 1)
    tests = "" if np.isnan(p) else f" ({plots.p_text(p)}{tested}{over})"
    return f"{plots.points(row['difference'])} points{interval}, {n}{tests}"


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


def rules_sentences(trials: pd.DataFrame, rules: pd.DataFrame) -> Iterator[str]:
    """By how much the oracle flatters, and where last10 says little.  `rules`: of `statistics.rule_table`."""
    ahead = 100 * rules["ahead_of_last"].dropna()
    if len(ahead):
        low, high = f"{ahead.min():.1f}", f"{ahead.max():.1f}"
        span = f"{low} points on average" if low == high else f"{low} to {high} points on average, by arm"
        yield f"Choosing each trial's epoch by its test accuracy would lift it above its last epoch by {span}."
    if trials["epochs"].max() <= 10:
        yield "Trials have at most ten epochs: last10 averages all of them, the first ones too."


def papers_sentence(found: pd.DataFrame) -> str:
    """How many of the reported numbers can be compared.  `found`: of `papers.beside`."""
    reported = found[found["entry"].notna()]
    count, comparable = len(reported), int(reported["comparable"].sum())
    numbers = f"{count} reported {plots.plural('number', count)} nearest to what was measured here"
    if not comparable:
        return f"Nothing to compare: of the {numbers}, none comes from the same protocol; the table says what differs."
    return f"Of the {numbers}, {comparable} {'comes' if comparable == 1 else 'come'} from the same protocol."


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


# ------------------------------------------------------------------------------------------------------------- sections


def declared(report: Report, contrasts: pd.DataFrame) -> Section:
    """Every declared contrast: the figure at the top of the page, and its table."""
    section = report.section("contrasts", "Declared contrasts")
    if contrasts.empty:
        section.note = "No contrast is declared between arms of this preset."
        return section
    section.tables = report.tables(contrasts=tables.of_contrasts(report.study, report.rule))
    if contrasts["difference"].isna().all():
        section.note = "No contrast has finished replicates of both its arms yet."
        return section
    code = f'plots.forest({report.loading}.contrasts("{report.rule}"))'
    section.pictures = [report.picture("contrasts", plots.forest(contrasts), code)]
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
    section.tables = report.tables(suggestions=tables.of_search(study, suggestions, rule))
    overview = search_plots.overview(study, suggestions)
    section.pictures = report.pictures("suggestions", overview, f'{report.loading}.plot_search(selection="{rule}")')
    for cell in study.cells:
        name, stem = search_plots.name_of(cell), f"suggestions-{search_plots.stem(cell)}"
        place = f", {cell['setting']!r}" * bool(cell["setting"])
        drawn = search_plots.of_cell(study, cell, suggestions)
        code = f'{report.loading}.plot_search({python(name)}{place}, selection="{rule}")'
        part = report.section(stem, search_plots.title(cell), pictures=report.pictures(stem, drawn, code))
        if not drawn:
            part.note = "No suggestion of this search is complete yet."
        section.parts.append(part)
    yield section


def panels(report: Report) -> Iterator[Section]:
    """A section for each panel of the study."""
    study, rule = report.study, report.rule
    epochs = study.epochs(sorted({metric for panel in study.plan["panels"].values() for metric in panel["curves"]}))
    for name, panel in study.plan["panels"].items():
        section = report.section(name, panel["title"])
        yield section
        if study.panel(name).empty:
            section.note = "No trial of this panel has finished yet."
            continue
        section.tables = report.tables(**{name: tables.of_panel(study, name, rule)})
        if laid_out := seed_tables.of_panel(study, name, rule):
            section.more["As tables of papers have it"] = report.tables(**laid_out)
        if len(panel["across"]) > plots.MOST_FACTORS:
            crossed = len(panel["across"])
            section.note = f"Figures show at most {plots.MOST_FACTORS} crossed factors; this panel crosses {crossed}."
            continue
        drawn = plots.of_panel(study, name, rule, epochs)
        section.pictures = report.pictures(name, drawn, f'{report.loading}.plot({python(name)}, "{rule}")')
        recorded = set(epochs.loc[epochs["trial"].isin(study.panel(name)["trial"]), "metric"])
        asked = [metric for metric in panel["curves"] if not metric.endswith(plots.HISTOGRAM)]
        if absent := [metric for metric in asked if metric not in recorded]:
            section.note = f"No trial of this panel recorded {', '.join(absent)}."


def across(report: Report) -> Iterator[Section]:
    """All settings together, and the factorials that the arms make up, where the study has them."""
    drawn = aggregate_plots.of_study(report.study, report.rule)
    named = aggregate_plots.tables_of(report.study, report.rule)
    if drawn or named:
        code = f'aggregate_plots.of_study({report.loading}, "{report.rule}")'
        section = report.section("across", "Across settings", pictures=report.pictures("across", drawn, code))
        section.tables = report.tables(**{f"across-{name}": table for name, table in named.items()})
        yield section


def rules(report: Report) -> Iterator[Section]:
    """What a trial's accuracy is under each selection rule, and by how much the oracle flatters."""
    table = tables.of_rules(report.study)
    if len(table.frame):
        code = f"plots.selection_rules(tables.of_rules({report.loading}).frame)"
        pictures = [report.picture("rules", plots.selection_rules(table.frame), code)]
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
        "looks", "Looks at the contrasts", tables=report.tables(looks=tables.of_looks(report.study, taken))
    )
    now = report.study.contrasts().set_index(["arm", "against"])["verdict"]
    decided = taken[~taken["verdict"].isin(evidence.OPEN)].drop_duplicates(["arm", "against"], keep="last")
    for row in statistics.records(decided):
        if now.get((row["arm"], row["against"])) not in {row["verdict"], "equivalent"}:
            section.warnings.append(
                f"{plots.words(row['arm'])} against {plots.words(row['against'])} was judged '{row['verdict']}' at a "
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
        found = ledger.of(study.root, study.name, study.preset, study.night)
    except LoadError:
        return
    code = f"ledger.of({report.found}).figure()"
    section = report.section("cost", "What it cost", pictures=[report.picture("cost", found.figure(), code)])
    section.more["As a table"] = report.tables(cost=found.table())
    section.lead = [" ".join(found.sentences())]
    yield section


# ---------------------------------------------------------------------------------------------------------- small parts


def python(text: str) -> str:
    """A text as Python spells it."""
    return json.dumps(text, ensure_ascii=False)


def _free(name: str, is_free: Callable[[str], bool]) -> str:
    """The file name of this name, or of the name with the first number with which it is free."""
    candidates = (file_name(name if number == 1 else f"{name} ({number})") for number in itertools.count(1))
    return next(filter(is_free, candidates))


def _unbroken(value: Any) -> Any:
    """Numbers stay together on the page."""
    return tables.unbroken(value) if type(value) is str else value  # markup stays as it is


def _several(parts: Iterable[str]) -> str:
    """The first of them, and how many more there are."""
    named = list(parts)
    more = len(named) - MOST_NAMED
    return "; ".join([*named[:MOST_NAMED], *([f"and {more} more"] if more > 0 else [])])


def _count(count: int, noun: str) -> str:
    return f"{count} {plots.plural(noun, count)}"
