"""The views that a data set has: of images their augmentations, of vectors dropout and noise."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from lnl.data import Dataset, Unfit
from lnl.functional import augment
from lnl.functional.vectors import Perturbation
from lnl.training.task import VIEWS, Transform, VectorViews, View


def of(data: Dataset, settings: VectorViews, device: torch.device) -> Mapping[View, Transform]:
    """The views of a data set by name.

    Of vectors `none` only standardises, `weak` has the weak strengths of `settings`, and all others the strong ones.
    Raises `Unfit` where `settings` are given for images.
    """
    if len(data.shape) == 1:
        mean, std = (torch.tensor(moments, dtype=torch.float32, device=device) for moments in (data.mean, data.std))
        perturbed = partial(Perturbation, mean, std)
        strengths = {"none": (0.0, 0.0), "weak": (settings.weak_dropout, settings.weak_noise)}
        strong = (settings.strong_dropout, settings.strong_noise)
        return {name: perturbed(*strengths.get(name, strong)) for name in VIEWS}
    if settings != VectorViews():
        raise Unfit(f"vector_views belong to data sets of vectors, and {data.name} has images: leave them out.")
    channels, size, _ = data.shape
    return {
        name: augment.pipeline(name, size=size, channels=channels, flip=data.flip, mean=data.mean, std=data.std)
        for name in VIEWS
    }
