"""What our methods do otherwise than their authors' code, as their docstrings declare it.

They are differences of protocol that no setting takes away, or only the one that stands beside them.  Where a number is
compared with a reported one they are told; they forbid no comparison, or no method could ever be compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from lnl.dotted import lookup


class Departure(NamedTuple):
    """One departure of a method, and where it holds: dotted fields of a trial, as stored, with their values."""

    text: str  # part of a sentence
    where: Mapping[str, object] = {}


KERNELS = Departure("weight decay on kernels only here, on all weights in the official code")
LARS = Departure("SGD here, LARS in the paper", {"method.optimizer.kind": "sgd"})
NO_WARM_UP = Departure(
    "no warm-up of the learning rate here, 10 of 1,000 epochs in the paper", {"method.optimizer.warm_up": 0.0}
)
HUE = Departure("hue is turned in YIQ here, in HSV in the official code")
ALIKE = Departure("both views are drawn alike here; unlike blur, and solarisation of the second, in the official code")
SIMCLR_HEAD = Departure("a projection head of two layers without BatchNorm here, of three with it in the official code")
PAPER_RANGES = Departure(
    "RandAugment by the paper's ranges here, the official code's in the paper's numbers",
    {"method.strong.rand_augment": "paper"},
)

DEPARTURES: dict[str, tuple[Departure, ...]] = {
    "barlow_twins": (
        Departure("Adam here, LARS in the paper", {"method.optimizer.kind": "adam"}),
        NO_WARM_UP,
        HUE,
        ALIKE,
    ),
    "byol": (LARS, NO_WARM_UP, HUE, ALIKE),
    "co_teaching": (
        Departure("images are augmented here, not in the paper", {"method.augmentation": "weak"}),
        Departure(
            "Adam's first momentum stays here, and falls in the official code", {"method.optimizer.kind": "adam"}
        ),
        Departure("the number of kept images is rounded here, and cut off in the official code"),
    ),
    "dividemix": (
        KERNELS,
        Departure("the ramp of lambda_u counts shares of an epoch here, ⌊n / B⌋ + 1 steps in the official code"),
        Departure("labels are refined before others are guessed here, after it in the official code"),
    ),
    "dynamic_bootstrapping": (
        KERNELS,
        Departure("the mixture's posteriors are of each epoch here, of each batch in the official code"),
        Departure("losses are kept within [0.001, 0.999] before the beta mixture here, only those beyond in the code"),
    ),
    "fixmatch": (PAPER_RANGES,),
    "gce": (
        Departure("weight decay on kernels only here, on all weights in the re-implementation"),
        Departure("pruned by the present weights here, by the best so far in the paper", {"method.truncated": True}),
    ),
    "glc": (
        KERNELS,
        Departure("both phases share the epochs here, and have as many each in the paper"),
        Departure("no dropout here, 0.3 in the official code"),
    ),
    "ieg": (
        KERNELS._replace(where={"network": "wide_resnet28_10"}),
        Departure(
            "weight decay is 5e-4 here, 2e-4 for the light network in the official code",
            {"network": "resnet29_ieg", "method.optimizer.weight_decay": 5e-4},
        ),
        Departure(
            "strong views have no cutout, and 2 pixels of shift, here; cutout and up to 6 in the official code",
            {"method.strong_view": "autoaugment"},
        ),
    ),
    "learning_to_reweight": (Departure("probe batches are class-balanced here, and random in the official code"),),
    "loss_correction": (
        Departure("both phases share the epochs here, and have as many each in the paper"),
        Departure("shifts of an eighth with reflection here, of a tenth that repeats the border in the official code"),
    ),
    "mentornet": (
        Departure("weight decay is not scaled by the mean weight of the images here, as it is in the official code"),
    ),
    "mixup": (KERNELS,),
    "pseudo_label": (
        Departure("the loss is averaged over the images here, over all pairs of loss and mask in the official code"),
    ),
    "rog": (KERNELS, Departure("features before the classifier alone here, of several layers in the paper")),
    "s4l": (
        NO_WARM_UP._replace(text="no warm-up of the learning rate here, 5 of 200 epochs in the paper"),
        Departure("SimCLR's views here, inception crops in the paper", {"method.pretext": "exemplar"}),
    ),
    "selfmatch": (PAPER_RANGES, HUE, SIMCLR_HEAD),
    "simclr": (LARS, NO_WARM_UP, HUE, SIMCLR_HEAD),
}


def departures(config: Mapping[str, Any]) -> list[str]:
    """How the method of a stored configuration departs from its authors' code, as parts of sentences."""
    return [
        text
        for text, where in DEPARTURES.get(config["method"]["name"], ())
        if all(lookup(config, key, None) == value for key, value in where.items())
    ]
