"""What a training step of each method costs beside a step of cross-entropy, at the same batch size.

Methods take turns with the reference in one process; a ratio is the median over turns.  Prints a Markdown table and
writes `benchmarks/methods.json`, from which `docs/methods.md` takes its column.

    python benchmarks/methods.py [--network small_convnet --dataset digits --batch-size 64 --device cuda]
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from lnl import methods
from lnl.training.task import Noise
from lnl.trial.config import Trial
from lnl.trial.run import Execution, assemble

STEPS, TURNS = 10, 5
# The parts whose price is asked for, where a method comes to them later in training only.
LATER = {
    "dividemix": {"warm_up": 0},
    "dynamic_bootstrapping": {"bootstrap_from": 0.0},
    "mentornet": {"mentor": "data_driven", "burn_in": 0.0},
    "co_teaching": {"ramp": 1},
}


def build(name: str, options: argparse.Namespace) -> Any:
    config = methods.load(name).Config
    batch = {"method.batch_size": options.batch_size} if "batch_size" in config.model_fields else {}
    later = {f"method.{key}": value for key, value in LATER.get(name, {}).items()}
    trial = Trial(
        method=methods.configure(name),
        dataset=options.dataset,
        network=options.network,
        labels=640,
        noise=Noise("symmetric", 0.4),
        probe=100,
        epochs=1000,
        steps=STEPS,
    ).override({**batch, **later})
    return assemble(trial, Execution(device=options.device, threads=1))[0]


def seconds(method: Any, epoch: int, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    method.train_epoch(epoch)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="small_convnet")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = Execution(device=options.device).torch_device()
    reference = build("supervised", options)
    ratios: dict[str, float] = {}
    for name in methods.names():
        method, found = build(name, options), []
        for turn in range(TURNS + 1):
            mine, theirs = seconds(method, turn, device), seconds(reference, turn, device)
            if turn:  # the first is warm-up
                found.append(mine / theirs)
        ratios[name] = round(median(found), 2)
        print(f"| {name} | {ratios[name]:.1f} |", flush=True)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU, 1 thread"
    about = {"device": where, "network": options.network, "dataset": options.dataset, "batch_size": options.batch_size}
    Path(__file__).with_suffix(".json").write_text(
        json.dumps({**about, "ratios": ratios}, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
