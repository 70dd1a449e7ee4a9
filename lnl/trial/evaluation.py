"""Evaluation at the end of an epoch: accuracies, features by their neighbours, beliefs against truth, data of figures.

In the last epoch also the test set class by class: its confusion matrix, and how well probabilities are calibrated.

Names of results are pairs (split, name).  The split `oracle` marks what uses the true labels of training images: where
these are not known, there is nothing in it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from lnl.functional import graph, noise, ranking
from lnl.labelling.problem import FIRST
from lnl.methods import Method, has_beliefs
from lnl.training.images import in_parts
from lnl.training.task import Beliefs, Task, Truth

NEIGHBOURS, NEIGHBOUR_TEMPERATURE = 20, 0.07  # of the features' evaluation in the last epoch
SAMPLE = 5000  # labelled images that are looked at before the last epoch
MANY_CLASSES, TOP = 50, 5  # from so many classes on, an image counts as right among so many likeliest ones, too
CALIBRATION_BINS = 15  # of equal width, as in Guo et al. (2017)
HISTOGRAM_BINS, EMBEDDING_COMPONENTS = 40, 50  # of the arrays for figures

Metrics = dict[tuple[str, str], float]
Arrays = dict[tuple[str, str], Tensor]  # what a figure of one epoch needs


@torch.no_grad()
def evaluate(method: Method, seen: Task, truth: Truth, *, last: bool) -> tuple[Metrics, Arrays]:
    """Accuracies, as fractions, and cross-entropies of a method's predictions.

    What is said of labelled images is measured on at most 5,000 of them before the last epoch, the same ones each time,
    and on all of them in the last: with 50,000, this would cost more than half of a supervised epoch's training.
    Where there are many classes also how often the right one is among the five likeliest (`top5_accuracy`).

    In the last epoch also the features: neighbours among the labelled images vote with their given labels
    (`test/neighbour_accuracy`) and with their true ones (`oracle/neighbour_accuracy`).  And of the test set the
    confusion matrix (see `confusion`), the bins of `reliability`, and `test/calibration_error`.  Raises
    FloatingPointError where probabilities are not finite.
    """
    metrics: Metrics = {}
    arrays: Arrays = {}
    for split, images, labels in (
        ("test", truth.test_images, truth.test_labels),
        ("validation", truth.validation_images, truth.validation_labels),
    ):
        if len(labels):
            probabilities = _finite(in_parts(images, method.predict))
            metrics[split, "accuracy"] = _share(probabilities.argmax(-1) == labels)
            if seen.classes >= MANY_CLASSES:
                nearest = probabilities.topk(TOP, dim=-1).indices
                metrics[split, f"top{TOP}_accuracy"] = _share((nearest == labels[:, None]).any(-1))
            likelihood = probabilities.gather(-1, labels[:, None]).clamp(min=1e-12)
            metrics[split, "cross_entropy"] = float(-likelihood.log().mean())
            if last and split == "test":
                arrays["test", "confusion"] = confusion(probabilities.argmax(-1), labels, seen.classes)
                arrays["test", "reliability"] = bins = reliability(probabilities, labels)
                metrics["test", "calibration_error"] = calibration_error(bins)
    index = seen.labelled if last else _sample(seen.labelled)
    given, true = seen.labels[index], truth.labels[index]
    guessed = _finite(seen.over(index, method.predict)).argmax(-1)
    metrics["train", "accuracy"] = _share(guessed == given)
    judges = [("test", given)]
    if _truth_is_known(seen, truth):
        judges.append(("oracle", true))
        metrics["oracle", "accuracy"] = _share(guessed == true)
        wrong = given != true
        if wrong.any():
            metrics["oracle", "memorised"] = _share(guessed[wrong] == given[wrong])
    if last:
        bank, queries = seen.over(index, method.features), in_parts(truth.test_images, method.features)
        k = min(NEIGHBOURS, len(index))
        # Both kinds of labels side by side, so that neighbours are searched for once.
        targets = torch.cat([functional.one_hot(labels, seen.classes).float() for _, labels in judges], 1)
        votes = graph.neighbour_votes(bank, targets, queries, k, NEIGHBOUR_TEMPERATURE, seen.classes)
        for (split, _), part in zip(judges, _finite(votes).split(seen.classes, 1), strict=True):
            metrics[split, "neighbour_accuracy"] = _share(part.argmax(-1) == truth.test_labels)
    return metrics, arrays


def _sample(index: Tensor) -> Tensor:
    """At most `SAMPLE` of many images, evenly spread: (N,) -> (at most SAMPLE,)."""
    return index[:: math.ceil(len(index) / SAMPLE)]


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Number of images of each true class (row) that are predicted as each class (column): (T,), (T,) -> (K, K)."""
    return torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)


def reliability(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Images by their confidence, which is the largest probability: (T, K), (T,) -> (3, 15) on the CPU.

    Bin m of M holds confidences in ((m - 1) / M, m / M].  Rows: images, those predicted rightly, and the mean
    confidence, NaN in an empty bin.
    """
    confidence, predicted = probabilities.max(-1)
    return binned(confidence, predicted == labels)


def binned(confidence: Tensor, right: Tensor) -> Tensor:
    """The bins of `reliability`: of each of T events its probability, and whether it came, (T,) twice -> (3, 15)."""
    confidence, right = confidence.double().cpu(), right.double().cpu()
    place = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1
    images, right, total = (
        torch.bincount(place, weights, minlength=CALIBRATION_BINS)
        for weights in (torch.ones_like(right), right, confidence)
    )
    return torch.stack([images, right, total / images])


def calibration_error(bins: Tensor) -> float:
    """Expected calibration error from the bins (3, M) of `reliability`, a fraction (Guo et al. 2017, equation 3).

    The mean over images of the distance between the accuracy and the mean confidence of their bin.
    """
    images, right, confidence = bins[:, bins[0] > 0]
    return float((right - images * confidence).abs().sum() / images.sum())


def _truth_is_known(seen: Task, truth: Truth) -> bool:
    """Whether the true labels of all labelled images are known."""
    return bool((truth.labels[seen.labelled] >= 0).all())


def _finite(probabilities: Tensor) -> Tensor:
    """The argument itself.  Raises FloatingPointError where it is not finite: argmax of NaN is the first class."""
    if not probabilities.isfinite().all():
        raise FloatingPointError("class probabilities are no finite numbers")
    return probabilities


@torch.no_grad()
def diagnose(method: Method, seen: Task, truth: Truth) -> tuple[Metrics, Arrays]:
    """What the method believes of the training labels, the mean over its networks, and compared with the truth.

    Metrics: the share of images trained on as right, and precision and recall of their choice, AUC of its clean
    probability (ties count half) and average precision of wrong labels by it, precision and recall of the images not
    chosen as wrong ones, accuracy of refined and of pseudo-labels, mean absolute error of an estimated transition
    matrix, and how far the components of a mixture lie apart (in their root-mean-square deviation).
    Arrays: histograms of clean and of wrong labels, errors expected and found (`_errors_expected`), the mixture, the
    transition matrix.
    """
    if not has_beliefs(method):
        return {}, {}
    beliefs = method.beliefs()
    metrics, arrays = _summary(beliefs)
    if _truth_is_known(seen, truth):
        of_oracle, of_figures = _compared(beliefs, seen, truth)
        metrics, arrays = metrics | of_oracle, arrays | of_figures
    return metrics, arrays


def _summary(beliefs: Beliefs) -> tuple[Metrics, Arrays]:
    """What needs no true labels."""
    metrics: Metrics = {}
    arrays: Arrays = {}
    if beliefs.selected is not None:
        chosen, known = _by_network(beliefs.selected)
        metrics["train", "selected"] = float((chosen.sum(-1) / known.sum(-1).clamp(min=1)).mean())
    if beliefs.transition is not None:
        arrays["train", "transition"] = beliefs.transition
    if beliefs.mixture is not None:
        mean, deviation = beliefs.mixture[..., 1], beliefs.mixture[..., 2]
        apart = (mean[..., 1] - mean[..., 0]) / deviation.square().mean(-1).sqrt()
        metrics["train", "mixture_separation"] = float(apart.mean())
        arrays["train", "mixture"] = beliefs.mixture.reshape(-1, 2, 3)
    return metrics, arrays


def _compared(beliefs: Beliefs, seen: Task, truth: Truth) -> tuple[Metrics, Arrays]:
    """What compares beliefs with the true labels, which are known of all labelled images."""
    given, true = seen.labels[seen.labelled], truth.labels[seen.labelled]
    clean = given == true
    metrics: Metrics = {}
    arrays: Arrays = {}
    if beliefs.selected is not None:
        chosen, known = _by_network(beliefs.selected)
        right = (chosen * clean).sum(-1)
        if chosen.any(-1).all():  # where none is chosen there is no precision
            metrics["oracle", "selection_precision"] = float((right / chosen.sum(-1)).mean())
        metrics["oracle", "selection_recall"] = float((right / (known & clean).sum(-1)).mean())
        flagged = known & (chosen == 0)
        caught = (flagged & ~clean).sum(-1)
        if flagged.any(-1).all():
            metrics["oracle", "error_precision"] = float((caught / flagged.sum(-1)).mean())
        metrics["oracle", "error_recall"] = float((caught / (known & ~clean).sum(-1)).mean())
    if beliefs.clean is not None:
        scores = [ranking.roc_area(probabilities, clean) for probabilities in beliefs.clean.reshape(-1, len(clean))]
        metrics["oracle", "selection_auc"] = sum(scores) / len(scores)
        found = [
            ranking.average_precision(-probabilities, ~clean) for probabilities in beliefs.clean.reshape(-1, len(clean))
        ]
        metrics["oracle", "error_average_precision"] = sum(found) / len(found)
    if beliefs.wrong is not None and beliefs.clean is not None:
        arrays |= _errors_expected(beliefs.wrong, beliefs.clean, ~clean)
    for name, labels, index in (
        ("refined_accuracy", beliefs.labels, seen.labelled),
        ("pseudo_label_accuracy", beliefs.pseudo_labels, seen.unlabelled),
    ):
        if labels is not None and (known := labels.isfinite().all(-1) & (truth.labels[index] >= 0)).any():
            metrics["oracle", name] = _share((labels.argmax(-1) == truth.labels[index])[known])
    if beliefs.transition is not None:
        realised = noise.transition_matrix(true.cpu(), given.cpu(), seen.classes)
        metrics["oracle", "transition_error"] = float((beliefs.transition.cpu() - realised).abs().mean())
    return metrics, arrays | _histograms(beliefs, clean)


def _histograms(beliefs: Beliefs, clean: Tensor) -> Arrays:
    """Of losses, clean probabilities and coefficients: of images with right labels, and of those with wrong ones."""
    arrays: Arrays = {}
    for name in ("loss", "clean", "coefficient"):
        if (values := getattr(beliefs, name)) is not None and (known := values[values.isfinite()]).numel():
            largest = float(known.max())  # above 1: losses as they are; far below: weights of examples, such as 1 / B
            most = largest if largest > 1 or 0 < largest < 0.5 else 1.0
            kinds = [_histogram(values[..., kind], most) for kind in (clean, ~clean)]
            arrays["oracle", f"{name}_histogram"] = torch.stack(kinds)
            if most != 1:
                arrays["oracle", f"{name}_histogram_end"] = torch.tensor([most])
    return arrays


def _errors_expected(probability: Tensor, trust: Tensor, wrong: Tensor) -> Arrays:
    """How far probabilities of an error are what they say: (…, L), (…, L), (L,); of several networks their mean.

    `error_reliability`: the bins of `reliability`, of labels and wrong ones.  `error_first`: of so many of the least
    trusted, how many errors are expected and how many there are, (3, F).
    """
    probability, trust = (values.reshape(-1, len(wrong)).nanmean(0) for values in (probability, trust))
    known = probability.isfinite() & trust.isfinite()
    probability, trust, wrong = probability[known], trust[known], wrong[known]
    order = torch.argsort(trust, stable=True)
    rows = [
        torch.tensor([first, float(probability[order[:first]].double().sum()), float(wrong[order[:first]].sum())])
        for first in FIRST
        if first <= len(order)
    ]
    arrays: Arrays = {("oracle", "error_reliability"): binned(probability, wrong)} if len(order) else {}
    return arrays | ({("oracle", "error_first"): torch.stack(rows, 1)} if rows else {})


def _by_network(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values (…, L) with NaN -> (networks, L) with 0 instead, and a mask (networks, L) of the values that are known."""
    values = values.reshape(-1, values.shape[-1])
    known = values.isfinite()
    return torch.where(known, values, 0.0), known


def _histogram(values: Tensor, most: float) -> Tensor:
    """Counts of the known values over [0, most]."""
    known = values[values.isfinite()].float().cpu()
    return torch.histc(known.clamp(0, most), bins=HISTOGRAM_BINS, min=0, max=most)


def embedding_epochs(epochs: int) -> set[int]:
    """Epochs, counted from 1, in which embeddings are kept: the first, the last, and the quarters between."""
    return {1, *(max(1, round(epochs * quarter / 4)) for quarter in (1, 2, 3, 4))}


@torch.no_grad()
def embed(method: Method, truth: Truth, count: int) -> Arrays:
    """Features of `count` test images, the first ones of each class in turn, as at most 50 principal components."""
    labels = truth.test_labels
    rank = torch.zeros_like(labels)
    for k in labels.unique():
        rank[labels == k] = torch.arange(int((labels == k).sum()), device=labels.device)
    index = torch.argsort(rank, stable=True)[:count]
    features = functional.normalize(method.features(truth.test_images[index]).double(), dim=-1)
    left, scale, _ = torch.linalg.svd(features - features.mean(0), full_matrices=False)
    components = (left * scale)[:, :EMBEDDING_COMPONENTS]
    return {("test", "embeddings"): components, ("test", "embedding_labels"): labels[index]}


def _share(matches: Tensor) -> float:
    return float(matches.double().mean())
