"""What a run shows: on a terminal a table that is updated in place; elsewhere a line per event, and a regular summary.

`Progress` shows the trials of a plan, with a row per arm, and `SearchProgress` its searches.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table

from lnl.execution.job import Job
from lnl.storage.objects import StorageError
from lnl.study.plan import Plan, Planned
from lnl.study.status import Status
from lnl.trial.reports import Metrics, TrialOutcome

if TYPE_CHECKING:  # a run without searches does not import Optuna
    from lnl.search.scores import Standing
    from lnl.search.searches import Searches

Row = tuple[str, str, str, str, str]  # of a table of arms


def interval(scores: Sequence[float]) -> str:
    """Return the mean ± half the 95 % t interval, in percent; without one that is wider than all accuracies are."""
    from scipy.special import stdtrit  # scipy.stats takes half a second

    if not scores:
        return "–"
    n, middle = len(scores), f"{100 * fmean(scores):.1f}"
    half = float(stdtrit(n - 1, 0.975) * stdev(scores) / n**0.5) if n > 1 else math.inf
    return f"{middle} (n={n})" if half > 0.5 else f"{middle} ± {100 * half:.1f} (n={n})"


def arm_row(arm: str, done: int, total: int, diverged: int, running: int, failed: int, scores: Sequence[float]) -> Row:
    """Return a row of `arm_table`.  `scores`: of trials in the base setting, where diverged ones count as chance."""
    of_these = f", {diverged} diverged" if diverged else ""
    return arm, f"{done}/{total}{of_these}", str(running), str(failed), interval(scores)


def score_name(rule: str) -> str:
    """Return what an arm's score is called under a selection rule."""
    return f"{rule} test accuracy at the base"


def arm_table(rows: Sequence[Row], rule: str) -> Table:
    """Return a table of arms: done of planned, running, failed, and the accuracy under the plan's selection rule."""
    table = Table(box=None, pad_edge=False)
    table.add_column("arm")
    for name in ("done", "running", "failed", f"{score_name(rule)}, %"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def duration(seconds: float) -> str:
    """Return a time as text: 65 -> 1:05; 7,265 -> 2:01:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Display:
    """A table that is updated in place on a terminal; elsewhere sentences."""

    PULSE_S = 30.0  # between two summaries where there is no terminal

    def __init__(self, quiet: bool, show: Callable[[str], str] = str) -> None:
        """`quiet`: print nothing; `show`: trial -> the command that prints its log."""
        self.quiet = quiet
        self.show = show
        self.console = Console(stderr=quiet)
        self.live: Live | None = None
        self.began = self.pulse = time.monotonic()

    def begin(self, trial: str, job: Job) -> None:
        """A worker is given the trial; again where an earlier worker was lost."""

    def finish(self) -> None:
        """Leave the last table on the terminal."""
        if self.live:
            self.live.update(self._table())
            self.live.stop()
            self.live = None

    def say(self, sentence: str) -> None:
        """Print a sentence, above the table where there is one."""
        if not self.quiet:
            self.console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    def _failed(self, name: str, trial: str, outcome: TrialOutcome) -> None:
        reason = (outcome.get("message") or "without a message").splitlines()[0]
        self.say(f"failed  {name}: {reason} ({self.show(trial)})")

    def _begin(self) -> None:
        self.began = time.monotonic()
        if self.console.is_terminal and not self.quiet:
            self.live = Live(self._table(), console=self.console, refresh_per_second=2, transient=False)
            self.live.start()

    def _show(self) -> None:
        if self.live:
            self.live.update(self._table())
        elif time.monotonic() - self.pulse >= self.PULSE_S:
            self.pulse = time.monotonic()
            self.say(self._summary())

    def _left(self, done: int, fresh: int, total: int) -> str:
        """The time so far and, once something has ended in this run (`fresh` of them), an estimate of the rest."""
        elapsed = time.monotonic() - self.began
        left = f", about {duration(elapsed / fresh * (total - done))} left" if fresh > 0 else ""
        return f"{duration(elapsed)} so far{left}"

    def _table(self) -> Table:
        raise NotImplementedError

    def _summary(self) -> str:
        raise NotImplementedError


class Progress(Display):
    """The trials of a plan: one line per arm."""

    def __init__(self, plan: Plan, quiet: bool = False, show: Callable[[str], str] = str) -> None:
        super().__init__(quiet, show)
        self.arm = {planned.id: planned.arm for planned in plan.trials}
        self.base = {planned.id for planned in plan.trials if planned.setting == "{}"}
        self.total: Counter[str] = Counter()
        self.rule = plan.record.selection
        self.done: Counter[str] = Counter()
        self.diverged: Counter[str] = Counter()  # of those that are done
        self.failed: Counter[str] = Counter()
        self.running: dict[str, str] = {}
        self.scores: dict[str, list[float]] = defaultdict(list)
        self.started_with = 0

    def start(self, todo: Sequence[Planned], statuses: Sequence[Status]) -> None:
        """Begin a round, or another one: of a plan with looks, or after trials that another driver held."""
        self.finish()
        self.total, self.done, self.failed, self.running = Counter(), Counter(), Counter(), {}
        self.diverged = Counter()
        self.scores = defaultdict(list)
        to_run = {planned.id for planned in todo}  # which may be stale: those are not done before
        for status in statuses:
            self.total[status.planned.arm] += 1
            if status.state in ("done", "stale") and status.planned.id not in to_run:
                self.done[status.planned.arm] += 1
                self.diverged[status.planned.arm] += status.diverged
                self._score(status.planned.id, status.accuracy)
        self.started_with = sum(self.done.values())
        self.say(f"{len(todo)} trials to run, {self.started_with} done before.")
        self._begin()

    def epoch(self, trial: str, metrics: Metrics) -> None:
        self.running[trial] = f"epoch {metrics['epoch']:.0f}"
        self._show()

    def end(self, trial: str, outcome: TrialOutcome) -> None:
        arm = self.arm[trial]
        self.running.pop(trial, None)
        if outcome["outcome"] == "done":
            self.done[arm] += 1
            self.diverged[arm] += outcome.get("failure") is not None
            self._score(trial, outcome.get("accuracy"))
        elif outcome["outcome"] == "failed":
            self.failed[arm] += 1
            self._failed(arm, trial, outcome)
        if self.done[arm] + self.failed[arm] == self.total[arm] and not self.live:
            of_these = f", {self.diverged[arm]} diverged" if self.diverged[arm] else ""
            score = f"{score_name(self.rule)} {interval(self.scores[arm])} %"
            self.say(f"{arm}: {self.done[arm]} of {self.total[arm]} done{of_these}, {score}")
        self._show()

    def _score(self, trial: str, accuracy: float | None) -> None:
        if accuracy is not None and trial in self.base:
            self.scores[self.arm[trial]].append(accuracy)

    def _summary(self) -> str:
        done, total = sum(self.done.values()) + sum(self.failed.values()), sum(self.total.values())
        return f"{done} of {total} trials, {self._left(done, done - self.started_with, total)}"

    def _table(self) -> Table:
        running = Counter(self.arm[trial] for trial in self.running)
        rows = [
            arm_row(arm, self.done[arm], total, self.diverged[arm], running[arm], self.failed[arm], self.scores[arm])
            for arm, total in self.total.items()
        ]
        table = arm_table(rows, self.rule)
        table.caption, table.caption_justify = self._summary(), "left"
        return table


class SearchProgress(Display):
    """The searches of a plan: one line per searched arm."""

    LOOK_S = 1.0  # between two requests to Optuna's storage

    def __init__(self, searches: Searches, quiet: bool = False, show: Callable[[str], str] = str) -> None:
        super().__init__(quiet, show)
        self.searches = searches
        self.standing: Sequence[Standing] = ()  # of each search, when last looked at
        self.started_with = 0
        self.looked = 0.0
        self.announced: set[str] = set()  # searches that have ended

    def start(self) -> None:
        standing = self.standing = self.searches.standing()
        self.started_with = sum(search.finished for search in standing)
        budget = sum(search.budget for search in standing)
        searches = "search" if len(standing) == 1 else "searches"
        self.say(f"{budget} suggestions in {len(standing)} {searches}, {self.started_with} evaluated before.")
        if rebuilt := sum(search.rebuilt for search in standing):
            self.say(f"Optuna's storage was made anew from {rebuilt} suggestions in the results.")
        if stale := sum(search.stale for search in standing):
            self.say(
                f"{stale} suggestions were evaluated by code that has changed since; they count.  A search with "
                "another seed (--search-seed 1 --new-search) starts anew."
            )
        self._begin()

    def epoch(self, trial: str, metrics: Metrics) -> None:
        self._look()

    def end(self, trial: str, outcome: TrialOutcome) -> None:
        if outcome["outcome"] == "failed":
            self._failed("suggestion", trial, outcome)
        self._look()

    def finish(self) -> None:
        """Leave the last table, or that of the last look where the storage cannot be read."""
        with contextlib.suppress(StorageError):
            self._read()
        super().finish()

    def _look(self) -> None:
        """Update the display, at most once in `LOOK_S`: the state of all searches is read from Optuna's storage."""
        if time.monotonic() - self.looked >= self.LOOK_S:
            self._read()
            self._show()
            self.looked = time.monotonic()

    def _read(self) -> None:
        """Read the state of all searches, and announce those that have ended."""
        self.standing = self.searches.standing()
        for search in self.standing:
            if search.finished + search.failed >= search.budget and search.name not in self.announced:
                self.announced.add(search.name)
                if not self.console.is_terminal:
                    count = f"{search.finished} of {search.budget} suggestions"
                    self.say(f"{search.name}: {count}, validation accuracy {search.scores}")

    def _summary(self) -> str:
        done = sum(search.finished + search.failed for search in self.standing)
        total = sum(search.budget for search in self.standing)
        return f"{done} of {total} suggestions, {self._left(done, done - self.started_with, total)}"

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        table.add_column("search")
        for name in ("evaluated", "running", "pruned", "failed", "validation accuracy, %"):
            table.add_column(name, justify="right")
        for search in self.standing:
            evaluated = f"{search.finished}/{search.budget}"
            counts = (evaluated, str(search.running), str(search.pruned), str(search.failed))
            table.add_row(search.name, *counts, search.scores)
        table.caption, table.caption_justify = self._summary(), "left"
        return table
