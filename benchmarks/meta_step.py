"""What does a meta step cost, exact and fast, beside a plain training step, and do its gradients agree?

First the meta step alone (`Learner.virtual`, as IEG asks for it) on random 32 × 32 images, then whole training steps.
All are measured in turn, many times in one run; times are medians, ratios are to the plain step.  Agreement is the
cosine with double backward, averaged over weights and label coefficients.

    python benchmarks/meta_step.py [--network wide_resnet28_2 --batch 64 --device cuda]
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, get_args

import torch
from torch import Tensor

from lnl.functional import losses, meta, targets
from lnl.networks import heads
from lnl.training.learner import Learner, NetworkBuilder, Optimizer
from lnl.training.streams import Streams
from lnl.training.task import Noise
from lnl.trial.config import Trial
from lnl.trial.run import Execution, assemble

CLASSES = 10


def seconds(calls: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, float]:
    """Median time of each call, all called in turn `rounds` times after one round of warm-up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            began = _now(device)
            call()
            if turn:
                times[name].append(_now(device) - began)
    return {name: median(values) for name, values in times.items()}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()  # other processes do not count


def meta_steps(network: str, batch: int, device: torch.device, rounds: int) -> None:
    """Print a table of the meta step alone."""
    builder = NetworkBuilder(network, (3, 32, 32), device, "float32", Streams(0, device))
    optimizer = Optimizer(kind="sgd", learning_rate=0.05)
    learner = Learner(builder, optimizer, 1000, {"classifier": partial(heads.linear, classes=CLASSES)})
    generator = torch.Generator(device).manual_seed(0)
    images, probe = torch.randn(2, batch, 3, 32, 32, generator=generator, device=device)
    images, probe = (tensor.to(memory_format=torch.channels_last) for tensor in (images, probe))
    labels = torch.arange(batch, device=device) % CLASSES
    given, guess = targets.one_hot(labels, CLASSES), targets.one_hot(labels.flip(0), CLASSES) * 0.9 + 0.01

    def objective(network: meta.Classifier, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return losses.cross_entropy(network(images), labels).mean()

    def loss(logits: Tensor, weights: Tensor, shares: Tensor) -> Tensor:
        soft = torch.lerp(guess, given, shares[:, None])
        return (weights * losses.soft_cross_entropy(logits, soft)).sum()

    def virtual(mode: meta.MetaGradient, rate: float | None) -> list[Tensor]:
        start = [torch.full((batch,), 1 / batch, device=device), torch.full((batch,), 0.9, device=device)]
        momentum = 0.9 if rate else 0.0
        return learner.virtual(loss, start, images, objective, (probe, labels), rate=rate, momentum=momentum, mode=mode)

    for _ in range(20):  # the first weights are not typical
        learner.step(objective, (images, labels))
    calls: dict[str, Callable[[], Any]] = {"plain training step": lambda: learner.step(objective, (images, labels))}
    agreement = {}
    for mode in get_args(meta.MetaGradient):
        for rate, words in ((0.1, ""), (None, ", no virtual step")):
            calls[f"meta step, {mode}{words}"] = partial(virtual, mode, rate)
            pairs = zip(virtual(mode, rate), virtual("exact", rate), strict=True)
            cosines = [torch.cosine_similarity(one, other, dim=0).item() for one, other in pairs]
            agreement[f"meta step, {mode}{words}"] = sum(cosines) / 2
    times = seconds(calls, rounds, device)
    print(f"{network}, random 3×32×32 images, batch {batch} and as many probe images\n")
    print("| alone | ms | ratio | agreement |\n|---|---|---|---|")
    plain = times["plain training step"]
    for name, value in times.items():
        cosine = f"{agreement[name]:.6f}" if name in agreement else ""
        print(f"| {name} | {1000 * value:.1f} | {value / plain:.2f} | {cosine} |")


def training_steps(network: str, batch: int, device: torch.device, rounds: int) -> None:
    """Print a table of whole training steps on digits."""

    def trainer(method: dict[str, Any]) -> Callable[[], Any]:
        trial = Trial(
            method={"batch_size": batch, **method}, dataset="digits", network=network, labels=500,
            noise=Noise("symmetric", 0.4), probe=100, epochs=rounds + 1, steps=5,
        )  # fmt: skip
        built, _, _ = assemble(trial, Execution(str(device), 1))
        return partial(built.train_epoch, 0)

    no_meta = {"use_weights": False, "use_coefficients": False}
    calls = {"supervised": trainer({"name": "supervised"})}
    for name in ("learning_to_reweight", "ieg"):
        for mode in get_args(meta.MetaGradient):
            calls[f"{name}, {mode}"] = trainer({"name": name, "meta_gradient": mode, "probe_batch_size": batch})
    calls["ieg without its meta step"] = trainer({"name": "ieg", **no_meta})
    times = seconds(calls, rounds, device)
    print(f"\n{network}, digits, batch {batch}, augmentation included\n")
    print("| training step | ms | ratio |\n|---|---|---|")
    for name, value in times.items():
        print(f"| {name} | {1000 * value / 5:.1f} | {value / times['supervised']:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="small_convnet")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU, one thread"
    print(f"float32, {name}, torch {torch.__version__}; medians of {options.rounds}\n")
    meta_steps(options.network, options.batch, device, options.rounds)
    training_steps(options.network, options.batch, device, options.rounds)


if __name__ == "__main__":
    main()
