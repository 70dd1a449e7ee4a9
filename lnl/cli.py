"""The `lnl` command, and the flags that every study script has.

Exit codes: 0 complete, 1 error, 2 bad usage, 3 incomplete.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil
from pydantic import ValidationError
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Column, Table

from lnl import catalogue, methods
from lnl.data import DataError
from lnl.results import StorageError, Store, leases
from lnl.study import Plan, Planned, Status, Study, by_state, reconcile

COMPLETE, ERROR, USAGE, INCOMPLETE = 0, 1, 2, 3


class UsageError(ValueError):
    """The command line asks for something that does not exist."""


def main(arguments: Sequence[str] | None = None) -> int:
    """`lnl plan|run|status|report|methods|doctor …`"""
    parser = argparse.ArgumentParser(
        prog="lnl", description="A laboratory for ablation studies of learning with noisy labels."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, text in {
        "plan": "list a study's trials: done, missing or stale; starts nothing",
        "run": "run what a study still lacks",
        "status": "one line per arm",
    }.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("study", help="a study's name (studies/<name>.py) or file")
        _study_flags(command)
    report = commands.add_parser("report", help="make the HTML page, figures and tables of a study")
    report.add_argument("study")
    report.add_argument("--preset")
    _storage_flag(report)
    report.add_argument(
        "--selection",
        choices=("last", "last10", "val_selected", "best_test"),
        help="selection rule; default: the study's",
    )
    listed = commands.add_parser("methods", help="list the methods, or one method's switches")
    listed.add_argument("name", nargs="?")
    doctor = commands.add_parser("doctor", help="check the environment, unreadable files and abandoned leases")
    _storage_flag(doctor)
    doctor.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)

    def act() -> int:
        if options.command == "report":
            return _report(options.study, options.preset, options.storage, options.selection)
        if options.command == "doctor":
            return _doctor(options.storage, options.json)
        if options.command == "methods":
            return _methods(options.name)
        return _study_command(find_study(options.study), options, options.command)

    return _guarded(act)


def study_main(study: Study, arguments: Sequence[str] | None = None) -> int:
    """`python studies/<name>.py …`: runs what is missing, then makes the report; with --plan lists only."""
    parser = argparse.ArgumentParser(description=study.question)
    _study_flags(parser)
    parser.add_argument(
        "--plan", action="store_true", help="list every trial with done, missing or stale; start nothing"
    )
    parser.add_argument("--no-report", action="store_true", help="do not make the report at the end")
    options = parser.parse_args(arguments)
    return _guarded(lambda: _study_command(study, options, "plan" if options.plan else "run"))


def _study_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", help="the same study at another size")
    parser.add_argument("--arms", type=lambda text: text.split(","), metavar="A,B", help="only these arms")
    parser.add_argument("--seeds", type=int, metavar="N", help="replicates per arm and setting")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change the base: method.temperature=0.5"
    )
    _storage_flag(parser)
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="where data sets live (default: $LNL_DATA or ~/.cache/lnl)"
    )
    parser.add_argument(
        "--address",
        help="a Ray cluster (auto, host:port); default: the cluster this machine belongs to, else a Ray of our own",
    )
    parser.add_argument(
        "--gpus-per-trial",
        type=float,
        default=os.environ.get("LNL_GPUS_PER_TRIAL"),
        metavar="SHARE",
        help="default: $LNL_GPUS_PER_TRIAL, else 1 where the cluster has GPUs",
    )
    parser.add_argument("--cpus-per-trial", type=float, default=1, metavar="N")
    parser.add_argument(
        "--checkpoint-seconds", type=float, default=10, metavar="S", help="training time between checkpoints"
    )
    parser.add_argument("--rerun-stale", action="store_true", help="run trials again whose code has changed since")
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def _storage_flag(parser: argparse.ArgumentParser) -> None:
    default = Path(os.environ.get("LNL_STORAGE", "results"))
    text = "where results live (default: $LNL_STORAGE, else results)"
    parser.add_argument("--storage", type=Path, default=default, metavar="FOLDER", help=text)


def find_study(name: str) -> Study:
    """The `study` of a file, or of studies/<name>.py below the current folder or beside the package."""
    folders = [root / "studies" for root in (Path.cwd(), Path(__file__).parents[1])]
    places = [Path(name)] if name.endswith(".py") else [folder / f"{name}.py" for folder in folders]
    for path in places:
        if path.is_file():
            spec = importlib.util.spec_from_file_location(path.stem, path)
            assert spec and spec.loader
            module = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(module)
            except Exception as error:  # whatever a user's file does
                raise UsageError(f"{path} cannot be loaded ({type(error).__name__}: {_reason(error)}).") from error
            if isinstance(found := getattr(module, "study", None), Study):
                return found
            raise UsageError(f"{path} declares no `study = Study(…)`.")
    known = sorted({path.stem for folder in folders for path in folder.glob("*.py")})
    raise UsageError(f"There is no study '{name}': choose one of {', '.join(known)}, or give a file.")


def _reason(error: Exception) -> str:
    """The first complaint of pydantic, the first line of anything else, to stand within a sentence."""
    text = error.errors()[0]["msg"].removeprefix("Value error, ") if isinstance(error, ValidationError) else str(error)
    return text.split("\n")[0].rstrip(".")


def _guarded(act: Any) -> int:
    """Every expected error becomes one sentence on standard error and an exit code."""
    try:
        code: int = act()
        return code
    except (UsageError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return ERROR if isinstance(error, DataError) else USAGE
    except (StorageError, ConnectionError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return ERROR
    except KeyboardInterrupt:
        print("Interrupted: what is finished is stored; run again to go on.", file=sys.stderr)
        return INCOMPLETE


# ------------------------------------------------------------------------------------------------ plan, run, status


def _study_command(study: Study, options: argparse.Namespace, command: str) -> int:
    plan = study.plan(options.preset, changes=_changes(options.set), replicates=options.seeds)
    if unknown := set(options.arms or ()) - set(plan.record["arms"]):
        raise UsageError(f"The plan has no arm '{min(unknown)}': choose from {', '.join(plan.record['arms'])}.")
    storage: Path = options.storage.expanduser().resolve()
    store = Store(storage)
    if command == "run":
        return _run(study, plan, store, options)
    chosen = plan.of_arms(options.arms)
    statuses = [status for status in reconcile(plan, store) if status.planned.id in chosen]
    complete = all(status.state in ("done", "stale") for status in statuses)
    if options.json:
        print(json.dumps(_as_json(plan, statuses), indent=1))
    elif command == "plan":
        _print_plan(plan, statuses)
    else:
        Console().print(_arm_table(_arm_rows(statuses)))
        print(_totals(statuses))
    return COMPLETE if complete or command == "plan" else INCOMPLETE


def _changes(pairs: Sequence[str]) -> dict[str, Any]:
    """--set KEY=VALUE; the value is JSON where it parses, else text."""
    changes = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator:
            raise UsageError(f"--set takes KEY=VALUE, not '{pair}'.")
        try:
            changes[key] = json.loads(text)
        except json.JSONDecodeError:
            changes[key] = text
    return changes


def _run(study: Study, plan: Plan, store: Store, options: argparse.Namespace) -> int:
    if options.address:
        os.environ["RAY_ADDRESS"] = options.address  # the runner reads it when it is imported
    from lnl import runner  # imports Ray, which plan, status and report do without

    settings = runner.Settings(
        storage=store.root,
        data=options.data and options.data.expanduser().resolve(),
        cpus_per_trial=options.cpus_per_trial,
        gpus_per_trial=options.gpus_per_trial,
        checkpoint_s=options.checkpoint_seconds,
    )
    progress = Progress(plan, quiet=options.json)
    outcome = runner.run_plan(plan, settings, progress, arms=options.arms, rerun_stale=options.rerun_stale)
    statuses = outcome.statuses
    complete = outcome.stopped is None and all(status.state in ("done", "stale") for status in statuses)
    page = None
    if not getattr(options, "no_report", False) and any(status.state == "done" for status in statuses):
        from analysis import report

        page = report.build(store.root, plan.study, plan.preset)
    if options.json:
        print(
            json.dumps(
                {**_as_json(plan, statuses), "report": str(page) if page else None, "stopped": outcome.stopped},
                indent=1,
            )
        )
    else:
        print(_totals(statuses))
        for failure in sorted(
            {f"{s.planned.arm}: {s.failure.splitlines()[0]}" for s in statuses if s.state == "failed" and s.failure}
        ):
            print(f"failed  {failure}")
        if outcome.stopped:
            print(outcome.stopped)
        if page:
            print(f"Report: {_relative(page)}")
    if outcome.stopped and not outcome.stopped.startswith("Interrupted"):
        return ERROR
    return COMPLETE if complete else INCOMPLETE


def _report(name: str, preset: str | None, storage: Path, selection: str | None) -> int:
    from analysis import report

    page = report.build(storage.expanduser().resolve(), name, preset, **({"selection": selection} if selection else {}))
    print(f"Report: {_relative(page)}")
    return COMPLETE


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _as_json(plan: Plan, statuses: Sequence[Status]) -> dict[str, Any]:
    return {
        "study": plan.study,
        "preset": plan.preset,
        "plan": plan.hash,
        "counts": by_state(statuses),
        "trials": [
            {
                "trial": s.planned.id,
                "arm": s.planned.arm,
                "setting": json.loads(s.planned.setting),
                "replicate": s.planned.trial.replicate,
                "state": s.state,
                "accuracy": s.accuracy,
                "seconds": s.seconds,
            }
            for s in statuses
        ],
    }


def _print_plan(plan: Plan, statuses: Sequence[Status]) -> None:
    width = max((len(status.planned.arm) for status in statuses), default=0)
    for status in statuses:
        planned = status.planned
        setting = " ".join(f"{key}={value}" for key, value in json.loads(planned.setting).items())
        cost = f"{status.seconds:7.1f} s" if status.seconds is not None else "        ?"
        name = f"{planned.id}  {planned.arm:{width}}  replicate {planned.trial.replicate}"
        print(f"{status.state:8}{cost}  {name}  {setting}".rstrip())
    print(f"{plan.study}, preset {plan.preset}, plan {plan.hash}: {_totals(statuses)}")


def _totals(statuses: Sequence[Status]) -> str:
    counts = {state: count for state, count in by_state(statuses).items() if count}
    waiting = [status.seconds for status in statuses if status.state in ("missing", "failed")]
    text = f"{len(statuses)} trials: " + (", ".join(f"{count} {state}" for state, count in counts.items()) or "none")
    if waiting and (known := [seconds for seconds in waiting if seconds is not None]):
        text += f"; about {duration(fmean(known) * len(waiting))} of work left, one trial at a time"
    if counts.get("stale"):
        text += " (stale: run by code that has changed since; --rerun-stale runs them again)"
    return text + "."


def _arm_rows(statuses: Sequence[Status]) -> list[tuple[str, ...]]:
    """Arm, done/planned, running, failed, mean accuracy at the base setting ± half a 95 % interval."""
    by_arm: dict[str, list[Status]] = defaultdict(list)
    for status in statuses:
        by_arm[status.planned.arm].append(status)
    rows: list[tuple[str, ...]] = []
    for arm, mine in by_arm.items():
        counts = Counter(status.state for status in mine)
        scores = [s.accuracy for s in mine if s.planned.setting == "{}" and s.accuracy is not None]
        rows.append(
            (
                arm,
                f"{counts['done'] + counts['stale']}/{len(mine)}",
                str(counts["running"]),
                str(counts["failed"]),
                interval(scores),
            )
        )
    return rows


def interval(scores: Sequence[float]) -> str:
    """Mean ± half the 95 % t interval, in percent."""
    from scipy import stats

    if not scores:
        return "–"
    if len(scores) == 1:
        return f"{100 * scores[0]:.1f} (n=1)"
    half = float(stats.t.ppf(0.975, len(scores) - 1) * stats.sem(scores))
    return f"{100 * fmean(scores):.1f} ± {100 * half:.1f} (n={len(scores)})"


def _arm_table(rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("arm")
    for name in ("done", "running", "failed", "last test accuracy at the base, %"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def duration(seconds: float) -> str:
    """65 -> 1:05; 7,265 -> 2:01:05"""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress:
    """One line per arm: in place on a terminal, one line per finished arm and a pulse every 30 s elsewhere."""

    PULSE_S = 30.0

    def __init__(self, plan: Plan, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = Console(stderr=quiet)
        self.live: Live | None = None
        self.arm = {planned.id: planned.arm for planned in plan.trials}
        self.base = {planned.id for planned in plan.trials if planned.setting == "{}"}
        self.total: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.running: dict[str, str] = {}
        self.scores: dict[str, list[float]] = defaultdict(list)
        self.began = self.pulse = time.monotonic()
        self.started_with = 0

    def start(self, todo: Sequence[Planned], statuses: Sequence[Status]) -> None:
        self.finish()  # of an earlier round
        self.total, self.done, self.failed, self.running = Counter(), Counter(), Counter(), {}
        self.scores = defaultdict(list)
        again = {planned.id for planned in todo}  # stale ones among them
        for status in statuses:
            self.total[status.planned.arm] += 1
            if status.state in ("done", "stale") and status.planned.id not in again:
                self.done[status.planned.arm] += 1
                self._score(status.planned.id, status.accuracy)
        self.began, self.started_with = time.monotonic(), sum(self.done.values())
        self.say(f"{len(todo)} trials to run, {self.started_with} done before.")
        if self.console.is_terminal and not self.quiet:
            self.live = Live(self._table(), console=self.console, refresh_per_second=2, transient=False)
            self.live.start()

    def epoch(self, trial: str, metrics: Mapping[str, Any]) -> None:
        self.running[trial] = f"epoch {metrics['epoch']}"
        self._show()

    def end(self, trial: str, outcome: Mapping[str, Any]) -> None:
        arm = self.arm[trial]
        self.running.pop(trial, None)
        if outcome["outcome"] == "done":
            self.done[arm] += 1
            self._score(trial, outcome.get("accuracy"))
        elif outcome["outcome"] == "failed":
            self.failed[arm] += 1
            self.say(f"failed  {arm} {trial}: {(outcome.get('message') or '').splitlines()[0]}")
        if self.done[arm] + self.failed[arm] == self.total[arm] and not self.live:
            score = interval(self.scores[arm])
            self.say(f"{arm}: {self.done[arm]} of {self.total[arm]} done, last test accuracy at the base {score} %")
        self._show()

    def finish(self) -> None:
        if self.live:
            self.live.update(self._table())
            self.live.stop()
            self.live = None

    def say(self, sentence: str) -> None:
        if not self.quiet:
            self.console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    def _score(self, trial: str, accuracy: float | None) -> None:
        if accuracy is not None and trial in self.base:
            self.scores[self.arm[trial]].append(accuracy)

    def _show(self) -> None:
        if self.live:
            self.live.update(self._table())
        elif time.monotonic() - self.pulse >= self.PULSE_S:
            self.pulse = time.monotonic()
            self.say(self._summary())

    def _summary(self) -> str:
        done, total = sum(self.done.values()) + sum(self.failed.values()), sum(self.total.values())
        passed = time.monotonic() - self.began
        fresh = done - self.started_with
        left = f", about {duration(passed / fresh * (total - done))} left" if fresh else ""
        return f"{done} of {total} trials, {duration(passed)} so far{left}"

    def _table(self) -> Table:
        running = Counter(self.arm[trial] for trial in self.running)
        rows = [
            (arm, f"{self.done[arm]}/{total}", str(running[arm]), str(self.failed[arm]), interval(self.scores[arm]))
            for arm, total in self.total.items()
        ]
        table = _arm_table(rows)
        table.caption, table.caption_justify = self._summary(), "left"
        return table


# --------------------------------------------------------------------------------------------------- methods, doctor


def _methods(name: str | None) -> int:
    """All methods in a table, or what the file of one says of itself and of its switches."""
    if name is None:
        measured = catalogue.costs()
        table = Table("method", "what it is", "uses", Column("cost", justify="right"), box=None)
        for one in map(catalogue.entry, methods.names()):
            cost = f"{measured[one.name]:.1f}" if one.name in measured else ""
            table.add_row(one.name, escape(one.title), ", ".join(one.uses), cost)
    else:
        one = catalogue.entry(name)
        table = Table("switch", "default", "meaning", box=None, title=escape(one.title), title_justify="left")
        for switch in one.switches:
            table.add_row(
                f"method.{switch.name}", escape(catalogue.default_text(switch.default)), escape(switch.meaning)
            )
    Console().print(table)
    return COMPLETE


def _doctor(storage: Path, as_json: bool) -> int:
    """Environment, unreadable parts, abandoned leases, refused checkpoints: exit code 1 where something is wrong."""
    import torch

    store = Store(storage.expanduser().resolve())
    problems: list[str] = []
    versions = {name: _version(name) for name in ("ray", "torch", "torchvision", "optuna", "pandas", "pyarrow")}
    problems += [f"{name} is not installed: pip install -e ." for name, version in versions.items() if version is None]
    remedies = {
        "trials": "remove it, then run the study again",
        "epochs": "remove it and its row below trials, then run the study again",  # a trial with a row is done
        "studies": "remove it",
        "events": "remove it",
    }
    for table, remedy in remedies.items():
        _, broken = store.read(table)
        problems += [f"unreadable {path.relative_to(store.root)}: {remedy}." for path in broken]
    for trial, lease in leases(store).items():
        if not lease["alive"]:
            holder = f"process {lease['pid']} of {lease['host'].split('/')[0]}"
            problems.append(f"abandoned lease of trial {trial} ({holder} is gone): the next run takes it over.")
    problems += [
        f"refused checkpoint {path.name}: remove it once looked at."
        for path in sorted((store.root / "checkpoints").glob("*.refused-*"))
    ]
    leftovers = [path for path in store.root.rglob(".*.tmp")] if store.root.exists() else []
    problems += [
        f"half-written {path.relative_to(store.root)}: left by a killed process; remove it." for path in leftovers
    ]
    free = psutil.disk_usage(str(store.root if store.root.exists() else Path.cwd())).free / 2**30
    if free < 1:
        problems.append(f"only {free:.1f} GiB free where results are written.")
    facts = {
        "python": sys.version.split()[0],
        **versions,
        "cpus": os.cpu_count(),
        "gpus": torch.cuda.device_count(),
        "bfloat16": bool(torch.cuda.is_bf16_supported())
        if torch.cuda.is_available()
        else bool(torch.backends.cpu.get_cpu_capability().startswith("AVX512")),
        "free_gib": round(free, 1),
    }
    if as_json:
        print(json.dumps({"facts": facts, "problems": problems}, indent=1))
    else:
        print("  ".join(f"{name} {value}" for name, value in facts.items()))
        print("\n".join(problems) or "No problem found.")
    return ERROR if problems else COMPLETE


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None
