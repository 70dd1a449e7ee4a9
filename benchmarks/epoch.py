"""Which share of an epoch, its evaluation included, is spent outside the network's passes?

Outside are views, drawing batches, mixing, selection, optimizer, average and evaluation.  Inside are forward and
backward passes, virtual steps, and passes without a gradient by which a method guesses or selects.

Timed are passes over `--labels` images and as many without a label; what training takes is told for as many images as
the data set has, beside one evaluation.  Medians over epochs, after one of warm-up.  Prints one Markdown table.

    python benchmarks/epoch.py [--network wide_resnet28_2 --dataset cifar10 --device cuda --precision bfloat16]
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path
from statistics import median

import torch

from lnl import data, methods
from lnl.system.timing import PHASES, Clock, Phase
from lnl.training.task import Noise
from lnl.trial.config import Trial
from lnl.trial.run import Execution, run

NETWORK: tuple[Phase, ...] = ("forward", "backward", "meta", "inference")
BATCH = 64
NO_STEPS = ("label_errors", "label_propagation")  # methods that train no network
AT_ONCE: dict[
    str, dict[str, float]
] = {  # the parts that methods come to later in training, which are what an epoch costs
    "dividemix": {"warm_up": 1},
    "dynamic_bootstrapping": {"bootstrap_from": 0.0},
    "selfmatch": {"pretrain_epochs": 0},
    "co_teaching": {"ramp": 1},
}


class Waiting(Clock):
    """A clock that waits for the GPU at the end of each phase."""

    def _count(self) -> None:
        torch.cuda.synchronize()
        super()._count()


def measure(trial: Trial, execution: Execution) -> dict[Phase, float]:
    """Median seconds of each phase of an epoch, the first left out"""
    clock = Waiting() if execution.torch_device().type == "cuda" else Clock()
    before, epochs = dict(clock.seconds), []
    for _ in run(trial, execution, clock=clock):
        epochs.append({name: clock.seconds[name] - before[name] for name in PHASES})
        before = dict(clock.seconds)
    return {name: median(epoch[name] for epoch in epochs[1:]) for name in PHASES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--network", default="small_convnet")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--labels", type=int, default=640)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=[name for name in methods.names() if name not in NO_STEPS])
    options = parser.parse_args()
    device, execution = torch.device(options.device), Execution(options.device, 1, options.data)
    images = len(data.load(options.dataset, options.data).train_images)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU, one thread"
    setting = (
        options.dataset,
        options.network,
        options.precision,
        f"batch {BATCH}",
        where,
        f"torch {torch.__version__}",
    )
    print(f"{', '.join(setting)}\n")
    print("| method | training, s | outside the network | evaluation, s | an epoch, s | outside the network |")
    print("|--|--:|--:|--:|--:|--:|")
    shares = []
    for name in options.methods:
        module = methods.load(name)
        batch = {"batch_size": BATCH} if "batch_size" in module.Config.model_fields else {}
        trial = Trial(
            method={"name": name, **batch, **AT_ONCE.get(name, {})}, dataset=options.dataset, network=options.network,
            noise=Noise("symmetric", 0.4), labels=options.labels, unlabelled_ratio=1, probe=100,
            epochs=options.epochs + 1, precision=options.precision,
        )  # fmt: skip
        phases = measure(trial, execution)
        evaluation = phases.pop("evaluation")
        scale = images / options.labels / (2 if "unlabelled" in module.USES else 1)
        training = scale * sum(phases.values())
        outside = training - scale * sum(phases[phase] for phase in NETWORK)
        epoch = training + evaluation
        shares.append((outside + evaluation) / epoch)
        row = (f"{training:.2f}", f"{outside / training:.0%}", f"{evaluation:.2f}", f"{epoch:.2f}", f"{shares[-1]:.0%}")
        print(f"| {' | '.join((name, *row))} |", flush=True)
    print(f"\nThe most: {max(shares):.0%}.")


if __name__ == "__main__":
    main()
