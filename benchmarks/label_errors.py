"""How well detectors find wrong labels, beside each other on the same images, where the true labels are known.

Paired bootstrap over images, 95 %.  Prints Markdown tables.  Give it the features that you would use:

    python benchmarks/label_errors.py features:cifar10-lite0.npz --labels worse random1 aggre --images 10000
    python benchmarks/label_errors.py digits_vectors --labels symmetric:0.2 pair:0.3 none:0

CPU seconds and memory are those of the process, beside the features; memory is told on Linux only.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from lnl import data
from lnl.functional import noise
from lnl.labelling.calibration import after_reviews, expected_errors
from lnl.labelling.detectors import DETECTORS
from lnl.labelling.problem import FIRST, Labels, Suspicion

RESAMPLES, BATCH = 1000, 50
REVIEWS = 20


@dataclass(frozen=True, eq=False)
class Answer:
    """What a detector said, and what it cost."""

    detector: str
    found: Suspicion
    seconds: float  # of CPU
    megabytes: float  # at the peak, above what was there before; NaN where the system does not tell


def given_labels(dataset: data.Dataset, asked: str, seed: int) -> np.ndarray:
    """A column of labels that people gave, or noise such as `symmetric:0.2`: (N,) int64."""
    kind, _, rate = asked.partition(":")
    if not rate:
        return data.given_labels(dataset, asked)
    true, classes = torch.from_numpy(np.array(dataset.train_labels)), len(dataset.class_names)
    generator = torch.Generator().manual_seed(seed)
    return noise.corrupt(true, kind, float(rate), classes, generator).labels.numpy()


def ask(detector: str, labels: Labels, seed: int) -> Answer:
    process, counter = psutil.Process(), Path("/proc/self/clear_refs")
    before = process.memory_info().rss
    if counter.exists():
        counter.write_text("5", encoding="utf-8")  # the kernel's record of the peak begins anew
    began = time.process_time()
    found = DETECTORS[detector](labels, seed, lambda done, of: None)
    seconds = time.process_time() - began
    return Answer(detector, found, seconds, (peak() - before) / 2**20)


def peak() -> float:
    """The largest resident memory since the record began, in bytes."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), np.nan)


def resampled(score: np.ndarray, wrong: np.ndarray, seed: int) -> np.ndarray:
    """AUROC and average precision of bootstrap samples of images, (RESAMPLES, 2); the seed decides which."""
    generator = np.random.default_rng(seed)
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)  # of images with the same score
    results = []
    for _ in range(0, RESAMPLES, BATCH):
        weights = generator.multinomial(len(score), np.full(len(score), 1 / len(score)), size=BATCH)[:, order]
        right = np.pad((weights * wrong[order]).cumsum(1)[:, ends], ((0, 0), (1, 0)))
        false = np.pad((weights * ~wrong[order]).cumsum(1)[:, ends], ((0, 0), (1, 0)))
        gained, flagged = np.diff(right), right[:, 1:] + false[:, 1:]
        precision = (gained * right[:, 1:] / flagged.clip(min=1)).sum(1) / right[:, -1]
        area = (np.diff(false) * (right[:, 1:] + right[:, :-1]) / 2).sum(1) / (right[:, -1] * false[:, -1])
        results.append(np.stack([area, precision], 1))
    return np.concatenate(results)


def ranking_row(answer: Answer, wrong: np.ndarray, true: np.ndarray, samples: dict[str, np.ndarray], base: str) -> str:
    found, flags = answer.found, answer.found.flagged
    cells = [answer.detector]
    if wrong.any():
        for column, score in enumerate((roc_auc_score, average_precision_score)):
            cells.append(f"{score(wrong, found.score):.4f}")
            lead = samples[answer.detector][:, column] - samples[base][:, column]
            low, high = np.quantile(lead, (0.025, 0.975))
            cells.append("" if answer.detector == base else f"{lead.mean():+.3f} [{low:+.3f}, {high:+.3f}]")
        right = (found.proposed == true)[wrong].mean()
        cells += [f"{wrong[flags].mean():.3f} / {flags[wrong].mean():.3f}", f"{right:.3f}"]
    else:
        cells += ["", "", "", "", "", ""]
    share = found.wrong
    cells += [f"{flags.mean():.3f}", f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}]"]
    return " | ".join([*cells, f"{answer.seconds:.1f}", f"{answer.megabytes:.0f}"])


def calibration_row(answer: Answer, wrong: np.ndarray) -> str:
    """Expected and found shares of errors among the first, before reviews and after those of the first 20."""
    order = np.argsort(-answer.found.score, kind="stable")
    cells = [answer.detector]
    for first in FIRST:
        expected = expected_errors(answer.found.score, answer.found.probability, first) / min(first, len(order))
        cells.append(f"{expected:.3f} → {wrong[order[:first]].mean():.3f}")
    for reviewed in (order[:REVIEWS], np.random.default_rng(0).permutation(len(order))[:REVIEWS]):
        after = after_reviews(answer.found, reviewed, wrong[reviewed])
        cells.append(f"{after.wrong.value:.3f} [{after.wrong.low:.3f}, {after.wrong.high:.3f}]")
        following = order[REVIEWS : REVIEWS + 100]
        cells.append(f"{after.probability[following].mean():.3f} → {wrong[following].mean():.3f}")
    return " | ".join(cells)


def compare(dataset: data.Dataset, asked: str, images: int, seed: int, detectors: Sequence[str]) -> None:
    """Print both tables of one set of labels and one draw of images."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(dataset.train_labels))[:images])
    true, given = dataset.train_labels[chosen], given_labels(dataset, asked, seed)[chosen]
    labels = Labels(np.array(dataset.train_images[chosen], np.float32), given, len(dataset.class_names))
    wrong = given != true
    answers = [ask(detector, labels, seed) for detector in detectors]
    samples = {answer.detector: resampled(answer.found.score, wrong, seed) for answer in answers} if wrong.any() else {}
    base = "cleanlab" if "cleanlab" in detectors else detectors[-1]
    print(f"\n**{asked}**: {len(given):,} images, {wrong.mean():.3f} wrong, seed {seed}\n")
    print(
        f"| detector | AUROC | minus {base} | average precision | minus {base} | precision / recall of flags | "
        "proposals right | flagged | wrong, estimated | CPU s | MB |"
    )
    print("|--|--|--|--|--|--|--|--|--|--|--|")
    for answer in answers:
        print(f"| {ranking_row(answer, wrong, true, samples, base)} |", flush=True)
    firsts = " | ".join(f"first {first}, expected → found" for first in FIRST)
    print(f"\n| detector | {firsts} | wrong after {REVIEWS} first reviews | next 100", end=" | ")
    print(f"wrong after {REVIEWS} random reviews | 21st to 120th |\n|--|--|--|--|--|--|--|--|")
    for answer in answers:
        print(f"| {calibration_row(answer, wrong)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset", help="of vectors, such as features:FILE.npz or digits_vectors")
    parser.add_argument("--labels", nargs="+", required=True, help="columns of given labels, or noise as symmetric:0.2")
    parser.add_argument("--images", type=int, default=10_000, help="drawn at random")
    parser.add_argument("--seeds", type=int, default=1, help="draws of images, noise and folds")
    parser.add_argument("--detectors", nargs="+", default=list(DETECTORS), choices=list(DETECTORS))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dataset = data.load(options.dataset)
    for asked in options.labels:
        for seed in range(options.seeds):
            compare(dataset, asked, options.images, seed, options.detectors)


if __name__ == "__main__":
    main()
