"""Label noise: the true labels of a training set -> labels as wrong annotators would give them.

    symmetric         any wrong class, all alike
    asymmetric        each class to the one it is mistaken for (`asymmetric_map`), or to none
    asymmetric_block  the next class within blocks of five by number: what much published code takes for the
                      super-classes of CIFAR-100, though only 6 of its 100 flips stay inside one
    pair              the next class, i -> i+1 mod K; from rate 0.5 on the wrong label is the more frequent one
    instance          depends on the image (Xia et al. 2020, "Part-dependent label noise", algorithm 2)
    given             labels that people gave, as the data set has them
    human             the same: CIFAR-10N and CIFAR-100N were the first
    semantic          labels that a network gave (Lee et al. 2019, RoG)

Each label has its own row of uniform numbers: whether it flips, where to, and how hard its image is.  So the noise of a
higher rate contains that of a lower one, and the first labels of a longer vector get the noise of a shorter one (exact
counts per class and noise that depends on the images change a few).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

KINDS = ("none", "symmetric", "asymmetric", "asymmetric_block", "pair", "instance", "human", "given", "semantic")
ANNOTATED = ("human", "given", "semantic")  # kinds whose labels are not drawn, but there
CHUNK = 1024  # images in float64 at a time

# Patrini et al. 2017, section 5: truck -> automobile, bird -> airplane, deer -> horse, cat <-> dog.
CIFAR10_MAP = (0, 1, 0, 5, 7, 3, 6, 7, 8, 1)
# The super-class (0..19) of each of CIFAR-100's classes, in the order of its python version.
# fmt: off
CIFAR100_SUPERCLASSES = (
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7,
    6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10,
    16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16,
    12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
)
# fmt: on


@dataclass(frozen=True, eq=False)
class Corrupted:
    """Given labels.  `transition[i, j]` is the realised share of true class i that is labelled j."""

    labels: Tensor  # (N,) int64
    transition: Tensor | None  # (K, K) float64, rows sum to 1; the identity's row where a class does not occur
    rate: float | None  # realised share of wrong labels; it and the matrix are None where a true label is not known
    hash: str  # first 16 hexadecimal digits of the SHA-256 of the labels


def corrupt(
    labels: Tensor,
    kind: str,
    rate: float,
    classes: int,
    generator: Generator,
    *,
    exact: bool = True,
    include_true: bool = False,
    images: Tensor | None = None,
    mapping: Sequence[int] | None = None,
    annotated: Tensor | None = None,
) -> Corrupted:
    """True labels (N,) int64 -> given labels.  Raises `ValueError` for what cannot be drawn.

    `exact`: round(rate · N) labels flip, each class by its share (largest remainders); otherwise each with probability
    `rate`.  N leaves out the classes that map to themselves.  `include_true` (symmetric): the new label is uniform over
    all K classes as in DivideMix (Li et al. 2020), so that the realised rate is about rate · (K-1)/K.  `images`
    (N, C, H, W), or vectors (N, D), are needed by instance noise, `mapping` (K) by asymmetric noise, `annotated` (N,),
    the labels themselves, by `ANNOTATED` kinds; with these, a true label may be -1: not known.
    """
    _check(labels, kind, rate, classes, include_true)
    if kind == "none":
        return _corrupted(labels, labels, classes)
    if kind in ANNOTATED:
        complete = annotated is not None and annotated.shape == labels.shape
        if annotated is None or not complete or annotated.min() < 0 or annotated.max() >= classes:
            raise ValueError(
                f"{kind.capitalize()} noise lacks its labels: "
                f"pass one from 0 to {classes - 1} for each of the {len(labels)} images."
            )
        return _corrupted(labels, annotated.to(torch.int64), classes)

    law = _instance_law(images, labels, classes, generator) if kind == "instance" else None
    ties = torch.rand(classes, generator=generator, dtype=torch.float64)
    flip, where, hardness = torch.rand(len(labels), 3, generator=generator, dtype=torch.float64).unbind(1)
    probability = torch.full_like(flip, rate)
    if kind == "symmetric":
        span = classes if include_true else classes - 1
        target = (labels + (classes - span) + (where * span).long()) % classes
    elif law is not None:
        probability = flip_probabilities(rate, hardness)
        cumulative = law.cumsum(1)
        target = (cumulative <= where[:, None] * cumulative[:, -1:]).sum(1)
    else:
        target = _map(kind, classes, mapping)[labels]

    if exact:
        movable = labels if include_true else labels[target != labels]  # a class that maps to itself takes no share
        quota = _apportion(rate, torch.bincount(movable, minlength=classes), ties)
        chosen = _exactly(labels, quota, probability, flip)
    else:
        chosen = flip < probability
    return _corrupted(labels, torch.where(chosen, target, labels), classes)


def asymmetric_map(dataset: str, classes: int) -> tuple[int, ...]:
    """The class that each class is mistaken for.

    CIFAR-10: Patrini et al. 2017.  CIFAR-100: the next of the same super-class, circularly.  Elsewhere: the next class.
    """
    if dataset == "cifar10":
        return CIFAR10_MAP
    if dataset == "cifar100":
        members = [[i for i in range(100) if CIFAR100_SUPERCLASSES[i] == group] for group in range(20)]
        following = {i: group[(rank + 1) % 5] for group in members for rank, i in enumerate(group)}
        return tuple(following[i] for i in range(100))
    return tuple((i + 1) % classes for i in range(classes))


def transition_matrix(labels: Tensor, given: Tensor, classes: int) -> Tensor:
    """Empirical P(given | true): two (N,) -> (K, K) float64; identity rows for classes that do not occur."""
    counts = torch.bincount(labels * classes + given, minlength=classes**2).view(classes, classes).double()
    total = counts.sum(1, keepdim=True)
    return torch.where(total > 0, counts / total.clamp(min=1), torch.eye(classes, dtype=torch.float64))


def flip_probabilities(rate: float, uniform: Tensor) -> Tensor:
    """Xia et al. 2020, algorithm 2: q ~ N(rate, 0.1²) truncated to [0, 1], from its quantiles: float64 -> float64.

    The truncation moves the mean near the ends: 0.129 at rate 0.1.  Rate 0 is no noise at all.
    """
    low, high = torch.special.ndtr((torch.tensor([0.0, 1.0], dtype=torch.float64) - rate) / 0.1)
    drawn = rate + 0.1 * torch.special.ndtri(low + uniform * (high - low))
    return drawn.clamp(0, 1) if rate else torch.zeros_like(uniform)  # the clamp is for rounding errors only


def _check(labels: Tensor, kind: str, rate: float, classes: int, include_true: bool) -> None:
    """Raise `ValueError` for a kind, a rate or labels that no noise can be drawn for."""
    if kind not in KINDS:
        raise ValueError(f"There is no noise '{kind}': choose one of {', '.join(KINDS)}.")
    if not 0 <= rate <= 1:
        raise ValueError(f"The noise rate {rate} is not a share of the labels: choose it from 0 to 1.")
    if rate and kind in ("none", *ANNOTATED):
        raise ValueError(f"Noise '{kind}' takes no rate, but got {rate}: leave the rate at 0 or choose another kind.")
    if include_true and kind != "symmetric":
        raise ValueError(f"include_true belongs to symmetric noise: leave it out for '{kind}'.")
    if classes < 2 or labels.ndim != 1 or not len(labels) or labels.dtype != torch.int64:
        raise ValueError(
            f"Noise cannot be put on {labels.dtype} {tuple(labels.shape)} of {classes} classes: "
            "pass int64 (N,) of two classes or more."
        )
    if labels.min() < (-1 if kind in ANNOTATED else 0) or labels.max() >= classes:
        raise ValueError(
            f"True labels go from {int(labels.min())} to {int(labels.max())}: noise needs them in 0..{classes - 1}."
        )


def _map(kind: str, classes: int, mapping: Sequence[int] | None) -> Tensor:
    """The class that each class flips to: (K,) int64.  Raises `ValueError` where the kind does not suit the classes."""
    index = torch.arange(classes)
    if kind == "pair":
        return (index + 1) % classes
    if kind == "asymmetric_block":
        if classes % 5:
            raise ValueError(
                f"Noise 'asymmetric_block' needs blocks of five classes, but there are {classes}: choose 'asymmetric'."
            )
        return index - index % 5 + (index + 1) % 5
    if mapping is None or len(mapping) != classes or not all(0 <= target < classes for target in mapping):
        raise ValueError(
            f"Asymmetric noise needs a mapping of {classes} classes to classes: pass that of asymmetric_map()."
        )
    return torch.tensor(mapping)


def _exactly(labels: Tensor, quota: Tensor, probability: Tensor, flip: Tensor) -> Tensor:
    """Choose `quota` (K,) labels of each class, with chances in the proportion of `probability` (N,): -> (N,) bool.

    Pareto sampling (Rosén 1997): smallest odds(flip) / odds(probability); a simple random sample where all are equal.
    """
    order = torch.argsort(torch.logit(flip) - torch.logit(probability), stable=True)
    order = order[torch.argsort(labels[order], stable=True)]  # by class, then by odds
    sizes = torch.bincount(labels, minlength=len(quota))
    rank = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[labels[order]]
    chosen = torch.empty(len(labels), dtype=torch.bool)
    chosen[order] = rank < quota[labels[order]]
    return chosen


def _apportion(rate: float, sizes: Tensor, ties: Tensor) -> Tensor:
    """round(rate · Σ sizes) in shares of rate · sizes, rounded by largest remainders: (K,) int64 -> (K,) int64.

    Equal remainders go by `ties`: by the order of the classes the first ones would always get more noise.
    """
    share = rate * sizes.double()
    quota = share.floor().long()
    remainder = (share - quota).round(decimals=9)  # 0.7 · 5 = 3.5, but 0.7 · 45 = 31.499999999999996
    missing = round(rate * int(sizes.sum())) - int(quota.sum())
    order = torch.argsort(ties)
    order = order[torch.argsort(remainder[order], descending=True, stable=True)]
    quota[order[:missing]] += 1
    return quota


def _instance_law(images: Tensor | None, labels: Tensor, classes: int, generator: Generator) -> Tensor:
    """Xia et al. 2020, algorithm 2: P(wrong class | image) = softmax(x W_y) without y, W_y ~ N(0, 1) of (CHW, K).

    (N, C, H, W), (N,) -> (N, K) float64.  Pixels are standardised per channel over `images`, vectors (N, D) per
    feature.  The law depends on this scaling: with pixels in 0..255 or 0..1 most flips of a class would go to one and
    the same wrong class.
    """
    if images is None or len(images) != len(labels):
        raise ValueError(f"Instance noise needs the images: pass one for each of the {len(labels)} labels.")
    mean, std = _moments(images)
    law = torch.empty(len(labels), classes, dtype=torch.float64)
    for k in range(classes):
        weights = torch.randn(images[0].numel(), classes, generator=generator).double()
        for index in (labels == k).nonzero()[:, 0].split(CHUNK):
            pixels = ((images[index].double() - mean) / std).flatten(1)
            scores = pixels @ weights  # float64, so that no label depends on the order of summation
            scores[:, k] = -torch.inf
            law[index] = scores.softmax(1)
    return law


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation per channel or feature: (N, C, …) -> two (C, 1, …) float64."""
    total, squares = torch.zeros(2, images.shape[1], dtype=torch.float64)
    others = (0, *range(2, images.ndim))
    for part in images.split(CHUNK):
        total = total + part.double().sum(others)
        squares = squares + part.double().square().sum(others)
    count = images.numel() // images.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    std = torch.where(std > 0, std, 1)  # a constant channel is 0 after centring, whatever it is divided by
    shape = (-1, *[1] * (images.ndim - 2))
    return mean.view(shape), std.view(shape)


def _corrupted(labels: Tensor, given: Tensor, classes: int) -> Corrupted:
    """The given labels (N,) with what was realised, compared with the true ones (N,)."""
    known = bool((labels >= 0).all())
    return Corrupted(
        labels=given,
        transition=transition_matrix(labels, given, classes) if known else None,
        rate=(given != labels).double().mean().item() if known else None,
        hash=hashlib.sha256(given.numpy().tobytes()).hexdigest()[:16],
    )
