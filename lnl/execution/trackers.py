"""Trackers (TensorBoard, Weights & Biases, MLflow) get copies of the curves of a run; `following` starts them.

Ray has callbacks for these that do not fit here.  They log the Tune configuration, which is one JSON text per job, and
Tune's bookkeeping as metrics; their steps are reports and not epochs, so that a trial that goes on from a checkpoint
starts at 1 again; W&B's starts two actors for each trial, which take longer than a short trial; and where a server is
away, their error ends the run.

A tracker works in a thread of its own, in the driver (`Follower`).  Where it fails it says so once and the study goes
on.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, Protocol, cast

import pandas as pd

from lnl.execution.interfaces import AnyDisplay, Display, Track
from lnl.execution.job import Job
from lnl.storage.filenames import file_name
from lnl.storage.places import Place
from lnl.storage.secrets import mask, masked
from lnl.trial.reports import Metrics, TrialOutcome

SPLITS = ("train", "validation", "test", "oracle")
WAIT_S = 60.0  # at the end of a run, for what is still on its way
P = ParamSpec("P")


class Run(NamedTuple):
    """A trial as trackers know it; a trial that goes on is the same run."""

    trial: str
    group: str  # <study>-<preset>
    place: tuple[str, str, str]  # arm, setting, replicate
    config: dict[str, Any]  # dotted, without secrets

    @property
    def name(self) -> str:
        return "/".join(self.place)


class Tracker(Protocol):
    """A tracker; `log` opens a run that is not open, and its `epoch` may be lower than the last."""

    name: str
    runs: dict[str, Any]  # open ones, by trial

    def log(self, run: Run, epoch: int, metrics: Mapping[str, float]) -> None: ...

    def end(self, trial: str, fine: bool) -> None: ...


def as_run(trial: str, job: Job) -> Run:
    """A job's trial as trackers know it."""
    config = pd.json_normalize(job.trial, sep=".").to_dict("records")[0]
    setting = ",".join(f"{key}={_text(value)}" for key, value in json.loads(job.setting).items()) or "base"
    replicate = str(job.trial["replicate"])
    if job.search is not None:
        replicate = f"suggestion {job.suggestion}, {replicate}"
    return Run(trial, f"{job.study}-{job.preset}", (job.arm, setting, replicate), masked(config))


# ----------------------------------------------------------------------------------------------------------- trackers


class TensorBoard:
    """Event files below `<folder>/<study>-<preset>/<arm>/<setting>/<replicate>`."""

    name = "TensorBoard"

    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter

        logging.getLogger("tensorboardX").setLevel(logging.ERROR)  # a metric that is not finite is no news
        self.folder, self.make = folder, SummaryWriter
        self.seen: dict[str, int] = {}  # last epoch, by trial
        self.runs: dict[str, Any] = {}

    def log(self, run: Run, epoch: int, metrics: Mapping[str, float]) -> None:
        if run.trial in self.runs and epoch <= self.seen[run.trial]:
            self.end(run.trial, False)  # its worker was lost: another file, which overrules this one
        self.seen[run.trial] = epoch
        if run.trial not in self.runs:
            path = self.folder.joinpath(*map(file_name, (run.group, *run.place)))
            writer = self.runs[run.trial] = self.make(
                str(path),
                purge_step=epoch,  # where the trial goes on from, earlier files are read up to here
                filename_suffix=f".{time.time_ns()}",  # else it has the name of another one of the same second
            )
            writer.add_text("config", json.dumps(run.config, indent=1))
        for name, value in metrics.items():
            self.runs[run.trial].add_scalar(name, value, epoch)

    def end(self, trial: str, fine: bool) -> None:
        if writer := self.runs.pop(trial, None):
            writer.close()


class Wandb:
    """A run per trial in a project of Weights & Biases, grouped by study; WANDB_MODE=offline writes files only."""

    name = "W&B"

    def __init__(self, project: str, folder: Path | None) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its maker hears of runs, and of nothing else
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        if os.environ.get("WANDB_MODE", "online") == "online" and not wandb.login(prompt=False):
            raise ValueError("W&B knows no key of yours: run `wandb login` first, or set WANDB_MODE=offline.")
        # neither the command line nor the console: both may hold what must not leave this machine
        quiet = {"console": "off", "disable_git": True, "disable_code": True, "x_disable_meta": True}
        self.settings = wandb.Settings(silent=True, x_disable_stats=True, **quiet)
        self.init, self.project, self.folder = wandb.init, project, folder
        self.runs: dict[str, Any] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def log(self, run: Run, epoch: int, metrics: Mapping[str, float]) -> None:
        if run.trial not in self.runs:
            known = self.runs[run.trial] = self.init(
                project=self.project,
                group=run.group,
                name=run.name,
                id=file_name(f"{run.group}-{run.trial}"),  # it takes neither slashes nor long ones
                config=run.config,
                dir=self.folder,
                resume="allow",
                reinit="create_new",
                settings=self.settings,
            )
            known.define_metric("*", step_metric="epoch")
        self.runs[run.trial].log({"epoch": epoch, **metrics})

    def end(self, trial: str, fine: bool) -> None:
        if run := self.runs.pop(trial, None):
            run.finish(exit_code=0 if fine else 1)


class MLflow:
    """A run per trial in the experiment `<study>-<preset>` of a tracking server, or of a file or data base."""

    name = "MLflow"

    def __init__(self, uri: str) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # else it tries for minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import entities
        from mlflow.tracking import MlflowClient

        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        self.client, self.entities = MlflowClient(uri), entities
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, str] = {}

    def log(self, run: Run, epoch: int, metrics: Mapping[str, float]) -> None:
        if run.trial not in self.runs:
            self.runs[run.trial] = self._open(run)
        at = round(1000 * time.time())
        rows = [self.entities.Metric(name, value, at, epoch) for name, value in metrics.items()]
        self.client.log_batch(self.runs[run.trial], metrics=rows)

    def end(self, trial: str, fine: bool) -> None:
        if run := self.runs.pop(trial, None):
            self.client.set_terminated(run, "FINISHED" if fine else "FAILED")

    def _open(self, run: Run) -> str:
        if run.group not in self.experiments:
            known = self.client.get_experiment_by_name(run.group)
            self.experiments[run.group] = known.experiment_id if known else self.client.create_experiment(run.group)
        experiment = self.experiments[run.group]
        before = self.client.search_runs([experiment], f"tags.`lnl.trial` = '{run.trial}'", max_results=1)
        if before:
            self.client.update_run(before[0].info.run_id, "RUNNING")
            return str(before[0].info.run_id)
        opened = self.client.create_run(experiment, tags={"lnl.trial": run.trial}, run_name=run.name).info.run_id
        params = [self.entities.Param(key, str(value)) for key, value in run.config.items()]
        for start in range(0, len(params), 100):  # the most that it takes at once
            self.client.log_batch(opened, params=params[start : start + 100])
        return str(opened)


# -------------------------------------------------------------------------------------------------------------- thread


class Follower:
    """A tracker in its own thread."""

    def __init__(self, make: Callable[[], Tracker], say: Callable[[str], None]) -> None:
        """`make` is called here, so that mistakes are reported before anything starts."""
        self.say = say
        try:
            self.tracker = make()
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(f"The tracker cannot begin: {_why(error)}.") from None
        self.waiting: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self.failed = False
        self.thread = threading.Thread(target=self._work, daemon=True, name=f"tracker {self.tracker.name}")
        self.thread.start()

    def later(self, act: Callable[P, None], *arguments: P.args, **options: P.kwargs) -> None:
        """Call a function in the thread, unless the tracker has failed."""
        if not self.failed:
            self.waiting.put(lambda: act(*arguments, **options))

    def close(self) -> None:
        """End what is open and wait for the thread, up to `WAIT_S`."""
        self.later(self._end_open_runs)
        self.waiting.put(None)
        self.thread.join(WAIT_S)
        if self.thread.is_alive():
            self.say(f"{self.tracker.name} has not taken everything within {WAIT_S:.0f} s; the results have all of it.")

    def _end_open_runs(self) -> None:
        """End the runs that an interrupted study has left open."""
        for trial in list(self.tracker.runs):
            self.tracker.end(trial, False)

    def _work(self) -> None:
        while act := self.waiting.get():
            try:
                if not self.failed:
                    act()
            except Exception as error:  # a server or its client may raise anything
                self.failed = True
                self.say(f"{self.tracker.name} gets no more of this run ({_why(error)}); the study goes on.")


class Tracked:
    """A display that trackers follow: whatever it does not do itself, the display does."""

    def __init__(self, display: Display, followers: Sequence[Follower]) -> None:
        self.display, self.followers = display, followers
        self.runs: dict[str, Run] = {}

    def __getattr__(self, name: str) -> object:
        return getattr(self.display, name)

    def begin(self, trial: str, job: Job) -> None:
        self.display.begin(trial, job)
        self.runs[trial] = as_run(trial, job)

    def epoch(self, trial: str, metrics: Metrics) -> None:
        self.display.epoch(trial, metrics)
        curves = {name.replace("_", "/", 1): value for name, value in metrics.items() if name.split("_")[0] in SPLITS}
        for follower in self.followers:
            follower.later(follower.tracker.log, self.runs[trial], int(metrics["epoch"]), curves)

    def end(self, trial: str, outcome: TrialOutcome) -> None:
        self.display.end(trial, outcome)
        for follower in self.followers:
            follower.later(follower.tracker.end, trial, outcome["outcome"] in ("done", "pruned"))


class _Track:
    """See `lnl.execution.interfaces.Track`."""

    def __init__(self, followers: Sequence[Follower]) -> None:
        self.followers = followers

    def __call__(self, display: AnyDisplay) -> AnyDisplay:
        return cast(AnyDisplay, Tracked(display, self.followers)) if self.followers else display


@contextlib.contextmanager
def following(
    root: Place, say: Callable[[str], None], *, tensorboard: bool, wandb: str | None, mlflow: str | None
) -> Iterator[Track]:
    """The trackers that are asked for, as a function that makes a display one that they follow.

    `root`: the results.  Raises `ValueError` where a tracker is not installed or cannot begin.
    """
    local = root if isinstance(root, Path) else None
    makers: list[Callable[[], Tracker]] = []
    if tensorboard:
        folder = (local or Path.cwd()) / "tensorboard"
        if local is None:
            say(f"TensorBoard's files are written below {folder}, not on object storage.")
        makers.append(lambda: TensorBoard(folder))
    if wandb is not None:
        _need("wandb", "W&B")
        makers.append(lambda: Wandb(wandb, local))
    if mlflow is not None:
        _need("mlflow", "MLflow", "mlflow-skinny")
        makers.append(lambda: MLflow(mlflow))
    with contextlib.ExitStack() as stack:
        followers = [Follower(make, say) for make in makers]
        for follower in followers:
            stack.callback(follower.close)
        yield _Track(followers)


def _need(module: str, name: str, package: str | None = None) -> None:
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"{name} is not installed: pip install {package or module}.")


def _why(error: Exception) -> str:
    return mask(f"{type(error).__name__}: {error}").splitlines()[0].rstrip(".")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
