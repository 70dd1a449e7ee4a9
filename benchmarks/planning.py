"""How do `--plan` and `lnl status` grow with a study, from 100 to 10,000 trials?

Each command is a process of its own, with nothing stored and with every trial done.  Prints medians over the rounds of
CPU seconds and of the largest memory, and their ratios to the same command for a study of one trial, which is what
starting Python costs.

    python benchmarks/planning.py [--sizes 100 1000 10000 --rounds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from lnl.cli.studies import find_study
from lnl.storage.outcomes import selection_rules
from lnl.storage.places import now
from lnl.storage.schema import TRIALS
from lnl.storage.store import Store
from lnl.storage.tables import write_rows
from lnl.study.plan import Planned, plan_row
from lnl.trial.provenance import Current

STUDY = """
from lnl import Noise, Study, Trial
study = Study(
    name="many", question="How long does planning take?",
    base=Trial(method="supervised", dataset="digits", network="small_convnet", labels=50,
               noise=Noise("symmetric", 0.2)),
    arms={{f"arm_{{n}}": {{"method.optimizer.learning_rate": 0.01 * (n + 1)}} for n in range({arms})}},
    factors={{"noise.rate": [0.2 + 0.05 * n for n in range({levels})]}}, replicates={replicates},
)
if __name__ == "__main__":
    study.main()
"""
SHAPES = {1: (1, 1, 1), 100: (5, 4, 5), 1_000: (10, 10, 10), 10_000: (20, 10, 50)}  # arms, levels, replicates
COMMANDS = {
    "--plan": ["runpy.run_path(sys.argv.pop(1), run_name='__main__')", "{study}", "--plan", "--storage", "{storage}"],
    "lnl status": ["import lnl.cli.main; sys.exit(lnl.cli.main.main())", "status", "{study}", "--storage", "{storage}"],
}
# What at its end prints its CPU seconds and largest memory (MB).  Only the process itself can tell the latter: of one
# that has ended the kernel tells the peak of the process that started it, where that is larger.
MEASURED = r"""
import json, os, re, runpy, sys
try:
    exec(sys.argv.pop(1))
finally:
    status = open("/proc/self/status", encoding="utf-8").read()
    print("\n" + json.dumps([sum(os.times()[:4]), int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024]))
"""


def finish(store: Store, planned: Planned) -> None:
    """The row of a trial that ended well."""
    trial = planned.trial
    row = {
        **{name: "some text" for name, kind in zip(TRIALS.names, TRIALS.types, strict=True) if kind == "string"},
        **selection_rules([0.5] * trial.epochs, []),
        "trial": planned.id,
        "attempt": 1,
        "preset": "base",
        "arm": planned.arm,
        "setting": planned.setting,
        "replicate": trial.replicate,
        "method": trial.method_name,
        "dataset": trial.dataset,
        "network": trial.network,
        "code_hash": Current().sources(trial).code_hash,
        "config": trial.model_dump_json(),
        "status": "ok",
        "failure_class": None,
        "failure_message": None,
        "epochs_done": trial.epochs,
        "seconds": 1.0,
        "started_at": now(),
        "ended_at": now(),
    }
    write_rows(store.attempt_path("trials", "many", planned.id, 1), TRIALS, [row])


def prepare(folder: Path, size: int, done: bool) -> tuple[Path, Path]:
    """A study of that many trials, and a results folder that has all of them or nothing."""
    arms, levels, replicates = SHAPES[size]
    study, storage = folder / f"{size}.py", folder / f"{size}-{done}"
    study.write_text(STUDY.format(arms=arms, levels=levels, replicates=replicates), encoding="utf-8")
    if done and not storage.exists():
        plan, store = find_study(str(study)).plan(), Store(storage)
        store.write_plan(plan_row(plan, None))
        for planned in plan.trials:
            finish(store, planned)
    return study, storage


def cost(arguments: list[str]) -> tuple[float, float]:
    """CPU seconds and largest memory (MB) of a Python process."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURED, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", env=environment)
    assert done.returncode in (0, 3), arguments  # 3: trials are missing
    seconds, memory = json.loads(done.stdout.splitlines()[-1])
    return seconds, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", choices=sorted(SHAPES), default=[100, 1_000, 10_000])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.fsync = lambda descriptor: None  # of the rows written here
    print("| command | stored | trials | CPU seconds | ratio | MB | ratio |\n|---|---|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in COMMANDS.items():
            for done in (False, True):
                one = None
                for size in (1, *options.sizes):
                    study, storage = prepare(Path(folder), size, done)
                    asked = [argument.format(study=study, storage=storage) for argument in arguments]
                    cost(asked)  # leaves a copy of the rows, and warms the machine's caches
                    rounds = [cost(asked) for _ in range(options.rounds)]
                    seconds, memory = (median(values) for values in zip(*rounds, strict=True))
                    one = one or (seconds, memory)
                    what = f"| `{name}` | {'all' if done else 'nothing'} | {size:,}"
                    print(f"{what} | {seconds:.1f} | {seconds / one[0]:.2f} | {memory:.0f} | {memory / one[1]:.2f} |")


if __name__ == "__main__":
    main()
