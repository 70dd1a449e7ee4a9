"""How fast are whole epochs, evaluation included, beside the authors' code and the most used re-implementations?

References are checkouts that you give, and for SimCLR the package lightly (`pip install lightly`), whose views, head
and loss train our network by its own loop; none of their code is here.  A reference runs by its own functions for
training, division and evaluation, with its own data sets and image-by-image augmentation, ours by `lnl.trial.run`;
both on the same images of CIFAR-10, with the same network and batch, each in a process of its own, in turn, on one CPU
thread or one GPU.  An epoch looks at `--images` training images and evaluates on a fifth as many test images, as
CIFAR-10 has them, and ours on a tenth of the training images, as it does there.  Half of the labels pass for clean in
DivideMix, on both sides, after the losses were computed and fitted.
Prints one Markdown table: medians over the rounds of the epoch after one of warm-up.

    python benchmarks/official.py --dividemix PATH --mixmatch PATH --fixmatch PATH --simclr [--precision bfloat16]

PATH: https://github.com/LiJunnan1992/DivideMix, https://github.com/YU1ut/MixMatch-pytorch and
https://github.com/kekmodel/FixMatch-pytorch, as they are.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from timing import machine
from torch.utils.data import DataLoader, Dataset, dataloader

from lnl import data, networks
from lnl.methods import dividemix
from lnl.system import memory
from lnl.system.timing import Clock
from lnl.training.division import Divider, Division
from lnl.training.task import Noise
from lnl.trial import evaluation
from lnl.trial.config import Trial, Validation
from lnl.trial.run import Execution, run

BATCH = 64
WIDE = "wide_resnet28_2"
NETWORKS = {"dividemix": "preact_resnet18", "mixmatch": WIDE, "fixmatch": WIDE, "simclr": WIDE}
RATIO = {"mixmatch": 1, "fixmatch": 7}  # images without a label for each with one
EPOCHS = 2  # that a process trains; the first is warm-up, and none the last of a training, which has more to evaluate


class Images(NamedTuple):
    """CIFAR-10, the first images of each part: uint8 (N, 32, 32, 3) and labels (N,)."""

    train: np.ndarray
    labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


def cifar10(folder: Path | None, count: int) -> Images:
    source = data.load("cifar10", folder)
    test = count // 5
    return Images(
        np.asarray(source.train_images[:count]).transpose(0, 2, 3, 1),
        np.asarray(source.train_labels[:count]),
        np.asarray(source.test_images[:test]).transpose(0, 2, 3, 1),
        np.asarray(source.test_labels[:test]),
    )


# --------------------------------------------------------------------------------------------------------- references


def definitions(checkout: Path, file: str, replaced: dict[str, str] | None = None) -> dict[str, Any]:
    """Imports, functions, classes and command-line defaults of a script, without the training that it starts.

    `replaced`: numbers that are written into it, such as that of all images.
    """
    source = (checkout / file).read_text(encoding="utf-8")
    for old, new in (replaced or {}).items():
        source = source.replace(old, new)
    kept = [node for node in ast.parse(source).body if _defines(node)]
    names: dict[str, Any] = {"__name__": "reference"}
    exec(compile(ast.Module(kept, []), file, "exec"), names)
    return names


def _defines(node: ast.stmt) -> bool:
    if isinstance(node, ast.Assign):
        return isinstance(node.targets[0], ast.Name) and node.targets[0].id in ("parser", "args")
    if isinstance(node, ast.Expr):
        return ast.unparse(node).startswith("parser.")
    return isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef)


def stand_in(name: str, **content: Any) -> None:
    """Put a module that the reference imports, and that measures or prints something else, out of the way."""
    for depth in range(name.count(".")):
        outer = ".".join(name.split(".")[: depth + 1])
        sys.modules.setdefault(outer, types.ModuleType(outer))
    module = types.ModuleType(name)
    vars(module).update(content)
    sys.modules[name] = module


class Nothing:
    """Takes every call and does nothing: a progress bar, a log."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __call__(self, *_: Any, **__: Any) -> None: ...

    def __getattr__(self, _: str) -> Callable[..., Any]:
        return lambda *_, **__: (0, 0, 0)


def accuracy(output: torch.Tensor, target: torch.Tensor, topk: tuple[int, ...]) -> list[torch.Tensor]:
    """What the reference computes by a `view` that newer versions of PyTorch refuse."""
    ranked = output.topk(max(topk)).indices == target[:, None]
    return [100 * ranked[:, :k].any(1).float().mean() for k in topk]


def prepare_for(checkout: Path) -> None:
    """Let code for older versions of PyTorch run as it is, on a CPU, too."""
    sys.path.insert(0, str(checkout))
    sys.argv = ["reference"]
    dataloader._BaseDataLoaderIter.next = dataloader._BaseDataLoaderIter.__next__  # type: ignore[attr-defined]
    if not torch.cuda.is_available():
        torch.Tensor.cuda = lambda tensor, *_, **__: tensor  # type: ignore[method-assign]
        torch.nn.Module.cuda = lambda module, *_, **__: module  # type: ignore[method-assign]
    stand_in("torchnet.meter", AUCMeter=Nothing)
    stand_in("tensorboardX", SummaryWriter=Nothing)
    stand_in("progress.bar", Bar=Nothing)


def dividemix_epoch(checkout: Path, images: Images) -> Callable[[], None]:
    count = len(images.train)
    names = definitions(checkout, "Train_cifar.py", {"50000": str(count)})
    args, read = names["args"], names["dataloader"]
    transforms = read.cifar_dataloader("cifar10", 0.5, "sym", BATCH, 0, "", None)

    def loader(mode: str, kept: np.ndarray, transform: Any, shuffle: bool) -> DataLoader[Any]:
        part = read.cifar_dataset.__new__(read.cifar_dataset)
        part.mode, part.transform = mode, transform
        if mode == "test":
            part.test_data, part.test_label = images.test, images.test_labels.tolist()
        else:
            part.train_data, part.noise_label = images.train[kept], images.labels[kept].tolist()
            part.probability = [0.9] * len(kept)
        return DataLoader(part, batch_size=args.batch_size, shuffle=shuffle, num_workers=0)

    everything = np.arange(count)
    clean, suspect = everything[::2], everything[1::2]
    networks = [names["create_model"]() for _ in range(2)]
    optimizers = [names["optim"].SGD(net.parameters(), lr=args.lr, momentum=0.9, weight_decay=5e-4) for net in networks]
    names |= {
        "criterion": names["SemiLoss"](),
        "CE": torch.nn.CrossEntropyLoss(reduction="none"),
        "warm_up": 10,
        "test_log": Nothing(),
    }

    def epoch() -> None:
        names["eval_loader"] = loader("all", everything, transforms.transform_test, False)
        names["test_loader"] = loader("test", everything, transforms.transform_test, False)
        for net in networks:
            names["eval_train"](net, [])
        for net, other, optimizer in zip(networks, reversed(networks), optimizers, strict=True):
            labelled = loader("labeled", clean, transforms.transform_train, True)
            unlabelled = loader("unlabeled", suspect, transforms.transform_train, True)
            names["train"](20, net, other, optimizer, labelled, unlabelled)
        names["test"](20, *networks)

    return epoch


def mixmatch_epoch(checkout: Path, images: Images) -> Callable[[], None]:
    names = definitions(checkout, "train.py")
    args, read, transforms = names["args"], names["dataset"], names["transforms"]
    args.batch_size = BATCH
    augment = transforms.Compose([read.RandomPadandCrop(32), read.RandomFlip(), read.ToTensor()])
    half = len(images.train) // 2

    def part(kind: Any, pixels: np.ndarray, labels: np.ndarray, transform: Any, shuffle: bool) -> DataLoader[Any]:
        content = kind.__new__(kind)
        content.data, content.targets = read.transpose(read.normalize(pixels)), labels
        content.transform, content.target_transform = transform, None
        return DataLoader(content, batch_size=BATCH, shuffle=shuffle, drop_last=shuffle)

    labelled = part(read.CIFAR10_labeled, images.train[:half], images.labels[:half], augment, True)
    unlabelled = part(
        read.CIFAR10_unlabeled, images.train[half:], images.labels[half:], read.TransformTwice(augment), True
    )
    test = part(read.CIFAR10_labeled, images.test, images.test_labels, read.ToTensor(), False)
    args.train_iteration = half // BATCH
    names["accuracy"] = accuracy
    network, average = (names["models"].WideResNet(num_classes=10).cuda() for _ in range(2))
    for parameter in average.parameters():
        parameter.detach_()
    optimizer = names["optim"].Adam(network.parameters(), lr=args.lr)
    averaging = names["WeightEMA"](network, average, alpha=args.ema_decay)
    plain, cuda = torch.nn.CrossEntropyLoss(), torch.cuda.is_available()

    def epoch() -> None:
        names["train"](labelled, unlabelled, network, optimizer, averaging, names["SemiLoss"](), 100, cuda)
        for loader in (labelled, test):
            names["validate"](loader, average, plain, 100, cuda, mode="")

    return epoch


def fixmatch_epoch(checkout: Path, images: Images) -> Callable[[], None]:
    sys.modules.setdefault("tensorboard", types.ModuleType("tensorboard"))
    stand_in("torch.utils.tensorboard", SummaryWriter=Nothing)
    names = definitions(checkout, "train.py")
    read = sys.modules["dataset.cifar"]
    wide = __import__("models.wideresnet", fromlist=["build_wideresnet"])
    averages = __import__("models.ema", fromlist=["ModelEMA"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    few = len(images.train) // (1 + RATIO["fixmatch"])
    steps = few // BATCH
    args = types.SimpleNamespace(
        amp=False, world_size=1, start_epoch=0, epochs=1, eval_step=steps, no_progress=True, local_rank=-1, mu=7, T=1,
        threshold=0.95, lambda_u=1, use_ema=True, device=device, out="", writer=Nothing(),
    )  # fmt: skip
    names |= {"save_checkpoint": Nothing(), "logger": Nothing(), "best_acc": 0}  # ours writes nothing here either
    weak = read.transforms.Compose(
        [
            read.transforms.RandomHorizontalFlip(),
            read.transforms.RandomCrop(size=32, padding=4, padding_mode="reflect"),
            normalise := read.transforms.Compose(
                [read.transforms.ToTensor(), read.transforms.Normalize(read.cifar10_mean, read.cifar10_std)]
            ),
        ]
    )

    def part(
        pixels: np.ndarray, labels: np.ndarray, transform: Any, batch: int, shuffle: bool = True
    ) -> DataLoader[Any]:
        content = read.CIFAR10SSL.__new__(read.CIFAR10SSL)
        content.data, content.targets, content.transform, content.target_transform = pixels, labels, transform, None
        return DataLoader(content, batch_size=batch, shuffle=shuffle, drop_last=shuffle)

    two = read.TransformFixMatch(mean=read.cifar10_mean, std=read.cifar10_std)
    labelled = part(images.train[:few], images.labels[:few], weak, BATCH)
    unlabelled = part(images.train[few:], images.labels[few:], two, BATCH * 7)
    test = part(images.test, images.test_labels, normalise, BATCH, shuffle=False)
    network = wide.build_wideresnet(28, 2, 0, 10).to(device)
    optimizer = names["optim"].SGD(network.parameters(), lr=0.03, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = names["get_cosine_schedule_with_warmup"](optimizer, 0, 2**20)
    average = averages.ModelEMA(args, network, 0.999)

    def epoch() -> None:
        network.train()
        names["train"](args, labelled, unlabelled, test, network, optimizer, average, schedule)

    return epoch


class Viewed(Dataset[list[torch.Tensor]]):
    """Images through a transform of PIL images."""

    def __init__(self, pixels: np.ndarray, transform: Callable[[Image.Image], list[torch.Tensor]]) -> None:
        self.pixels, self.transform = pixels, transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        return self.transform(Image.fromarray(self.pixels[index]))


def simclr_epoch(_: Path, images: Images) -> Callable[[], None]:
    """As in lightly's own examples; it evaluates nothing before training has ended, and neither does ours."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    views = Viewed(images.train, SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0))
    loader = DataLoader(views, batch_size=BATCH, shuffle=True, drop_last=True)
    backbone = networks.backbone(WIDE, (3, 32, 32))
    network = torch.nn.Sequential(backbone, SimCLRProjectionHead(backbone.width, 128, 128)).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4)
    criterion = NTXentLoss(temperature=0.5)

    def epoch() -> None:
        network.train()
        total = 0.0
        for first, second in loader:
            loss = criterion(network(first.to(device)), network(second.to(device)))
            total += loss.detach()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return epoch


REFERENCES = {
    "dividemix": dividemix_epoch,
    "mixmatch": mixmatch_epoch,
    "fixmatch": fixmatch_epoch,
    "simclr": simclr_epoch,
}


def reference(method: str, checkout: Path | None, images: Images) -> list[float]:
    """Seconds of each epoch of the reference."""
    if checkout:
        prepare_for(checkout)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        epoch = REFERENCES[method](checkout, images)
        return [_seconds(epoch) for _ in range(EPOCHS)]


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


# --------------------------------------------------------------------------------------------------------------- ours


class HalfClean(Divider):
    """Divides as ever, and then takes every other label for clean, so that both sides train as many steps."""

    def divide(self) -> Division:
        division = super().divide()
        half = torch.zeros_like(division.selected)
        half[:, ::2] = True
        return dataclasses.replace(division, selected=half)


def ours(method: str, images: Images, precision: str) -> list[float]:
    """Seconds of each epoch by `lnl`, its evaluation included, but for SimCLR's, whose reference has none."""
    memory.keep_freed()  # as workers do
    dividemix.Divider = HalfClean  # type: ignore[misc]
    evaluation.SAMPLE = len(images.train) // 10  # as 5,000 are of CIFAR-10's 50,000
    more: dict[str, Any] = {"warm_up": 1} if method == "dividemix" else {"batch_size": BATCH}
    ratio = RATIO.get(method)
    labels = len(images.train) // (1 + ratio) if ratio else None
    with tempfile.TemporaryDirectory() as folder:
        np.savez(
            Path(folder) / "images.npz",
            x_train=images.train, y_train=images.labels, x_test=images.test, y_test=images.test_labels,
        )  # fmt: skip
        trial = Trial(
            method={"name": method, **more},
            dataset=f"npz:{folder}/images.npz",
            network=NETWORKS[method],
            noise=Noise("symmetric", 0.4),
            labels=labels,
            unlabelled_ratio=ratio,
            validation=Validation(images=0),
            epochs=EPOCHS + 1 + (method == "dividemix"),  # its first is its own warm-up
            steps=labels // BATCH if labels else None,  # one pass, as the references'
            precision=precision,
        )
        clock, seconds, evaluated = Clock(), [], 0.0
        rows: Iterator[Any] = run(trial, Execution("auto", 1, Path(folder)), clock=clock)
        for _ in range(trial.epochs - 1):
            whole = _seconds(lambda: next(rows))
            before, evaluated = evaluated, clock.seconds["evaluation"]
            seconds.append(whole - (evaluated - before) if method == "simclr" else whole)
        return seconds[-EPOCHS:]


def in_process(*arguments: str) -> float:
    """Seconds of the last epoch, measured in a process of its own."""
    command = [sys.executable, __file__, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    told = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment, encoding="utf-8").stdout
    return float(json.loads(told.splitlines()[-1])[-1])


def compare(
    method: str, checkout: Path | None, precisions: Sequence[str], rounds: int, count: int, folder: Path | None
) -> list[dict[str, float]]:
    """Seconds of an epoch of the reference and of ours in each precision, once for each round."""
    shared = ["--images", str(count), *(["--data", str(folder)] if folder else [])]
    shared += [f"--{method}", *([str(checkout)] if checkout else [])]
    sides = ["reference", *precisions]
    return [{side: in_process(*shared, "--only", f"{method} {side}") for side in sides} for _ in range(rounds)]


def add_references(parser: argparse.ArgumentParser) -> None:
    """The arguments that name the references."""
    for name in REFERENCES:
        if name == "simclr":
            parser.add_argument("--simclr", action="store_true", help="beside the package lightly")
        else:
            parser.add_argument(f"--{name}", type=Path, metavar="PATH", help="a checkout of the reference")
    parser.add_argument("--images", type=int, default=1280)
    parser.add_argument("--data", type=Path)


def given(options: argparse.Namespace) -> dict[str, Path | None]:
    """The checkouts of the references that were asked for, by method; None for SimCLR's, which is a package."""
    asked = {name: getattr(options, name) for name in REFERENCES}
    return {name: None if path is True else path for name, path in asked.items() if path}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_references(parser)
    parser.add_argument("--precision", nargs="+", default=["float32"], choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help=argparse.SUPPRESS)  # of a process: METHOD and reference or precision
    options = parser.parse_args()
    asked = given(options)
    if options.only:
        torch.set_num_threads(1)
        method, side = options.only.split()
        images = cifar10(options.data, options.images)
        print(
            json.dumps(reference(method, asked[method], images) if side == "reference" else ours(method, images, side))
        )
        return
    if not asked:
        parser.error("give at least one reference, such as --dividemix PATH")
    where = machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    print(f"{options.images:,} images, batch {BATCH}, {options.rounds} rounds, one thread, {where}\n")
    print("| method | network | reference, s | ours, precision | s | times as fast | lowest to highest |")
    print("|--|--|--:|--|--:|--:|--:|")
    for method, path in asked.items():
        rounds = compare(method, path, options.precision, options.rounds, options.images, options.data)
        theirs = median(seconds["reference"] for seconds in rounds)
        for precision in options.precision:
            mine = median(seconds[precision] for seconds in rounds)
            ratios = sorted(seconds["reference"] / seconds[precision] for seconds in rounds)
            print(
                f"| {method} | {NETWORKS[method]} | {theirs:.2f} | {precision} | {mine:.2f} | {median(ratios):.2f} | "
                f"{ratios[0]:.2f} to {ratios[-1]:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
