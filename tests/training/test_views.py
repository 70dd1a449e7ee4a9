"""Views of images: each method's own, as published, made at the size that the network sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from lnl import data, methods, networks
from lnl.functional import augment
from lnl.training import views
from lnl.training.learner import NetworkBuilder
from lnl.training.streams import Streams
from lnl.training.task import VIEWS, Transform, View
from lnl.training.views import ContrastiveView, Resized, StrongView, ViewSettings, WeakView
from lnl.trial.config import Trial
from lnl.trial.run import Execution, draw

CPU = torch.device("cpu")
REFLECT = WeakView()
ZEROS = WeakView(padding="zeros")
ZEROS_2 = WeakView(shift=1 / 16, padding="zeros")  # 2 of 32 pixels
# What the official codes do; that of co_teaching has no augmentation, loss_correction's repeats the border, and the
# papers of clean_net and deep_self_learning cut larger photographs.
PUBLISHED = {
    **dict.fromkeys(("fixmatch", "mixmatch", "pseudo_label", "robmix", "selfmatch", "supervised"), REFLECT),
    **dict.fromkeys(("clean_net", "co_teaching", "deep_self_learning", "loss_correction", "s4l"), REFLECT),
    **dict.fromkeys(("dividemix", "dynamic_bootstrapping", "gce", "glc", "mixup", "rog"), ZEROS),
    **dict.fromkeys(("ieg", "learning_to_reweight", "mentornet"), ZEROS_2),
}
WITHOUT_WEAK = {"barlow_twins", "byol", "label_errors", "label_propagation", "simclr"}


def test_weak_views_are_those_of_each_method_s_official_code() -> None:
    for name in methods.names():
        assert getattr(methods.load(name).Config(), "weak", None) == PUBLISHED.get(name)
    assert {*methods.names()} - PUBLISHED.keys() == WITHOUT_WEAK


@pytest.mark.parametrize("method", methods.names())
def test_a_method_has_settings_of_the_views_that_it_may_ask_for(method: str, tiny: Callable[..., Trial]) -> None:
    config = methods.load(method).Config()
    asked = {value for name, field in type(config).model_fields.items() for value in get_args(field.annotation)} & {
        *VIEWS
    }
    for drawn in _drawn(tiny(method, {"epochs": 2, "steps": 1})) | asked:
        if drawn in ("strong", "contrastive"):
            assert hasattr(config, drawn), drawn
        elif drawn != "none":
            assert isinstance(config.weak, WeakView), drawn  # type: ignore[attr-defined]
    kinds = {"strong": StrongView, "contrastive": ContrastiveView}
    for name, kind in kinds.items():
        if isinstance(getattr(config, name, None), kind):
            assert name in asked or method in ("barlow_twins", "byol", "robmix", "s4l", "selfmatch", "simclr"), name


def _drawn(trial: Trial) -> set[str]:
    """The names of the views that a trial's method draws in its first epoch."""

    class Noted(Mapping[View, Transform]):
        def __getitem__(self, name: View) -> Transform:
            names.add(name)
            return seen.views[name]

        def __iter__(self) -> Iterator[View]:
            return iter(seen.views)

        def __len__(self) -> int:
            return len(seen.views)

    names: set[str] = set()
    seen, _ = draw(trial, Execution(device="cpu"))
    streams = Streams(0)
    network = NetworkBuilder(trial.network, tuple(seen.images.shape[1:]), CPU, "float32", streams)
    built = methods.load(trial.method_name).Method(trial.method, replace(seen, views=Noted()), network, streams)
    built.train_epoch(0)
    return names


def test_a_trial_asks_for_its_method_s_views_and_its_network_s_size() -> None:
    plain = Trial(method="ieg", network="small_convnet")
    assert plain.view_settings == ViewSettings(weak=ZEROS_2)
    asked = plain.override({"method.weak.padding": "reflect", "method.strong.rand_augment": "paper", "resize": 48})
    assert asked.view_settings == ViewSettings(
        weak=WeakView(shift=1 / 16), strong=StrongView(rand_augment="paper"), size=48
    )
    assert Trial(method="byol").view_settings.contrastive.jitter == 0.5, "its code's, on blurred images"
    assert Trial(method="simclr").view_settings == Trial(method="label_errors").view_settings == ViewSettings()
    assert Trial(method="simclr", network="vit_b_16").view_settings.size == 224


def made(settings: ViewSettings) -> Mapping[View, Any]:
    return views.of(data.load("digits"), settings, CPU)


def test_settings_reach_each_view() -> None:
    images = torch.from_numpy(np.array(data.load("digits").train_images[:200]))

    def view(name: View, **settings: Any) -> Tensor:
        return made(ViewSettings(**settings))[name](images, torch.Generator().manual_seed(0))

    changes: dict[str, tuple[Any, tuple[View, ...]]] = {
        "weak": (ZEROS, ("weak", "strong", "autoaugment")),
        "strong": (StrongView(rand_augment="paper"), ("strong",)),
        "contrastive": (ContrastiveView(jitter=1.0), ("contrastive",)),
    }
    for field, (settings, changed) in changes.items():
        for name in VIEWS:
            assert torch.equal(view(name, **{field: settings}), view(name)) == (name not in changed), (field, name)


@pytest.mark.parametrize("size", [4, 8, 20])
def test_images_are_augmented_at_the_size_that_the_network_sees(size: int) -> None:
    """Resized between pixel centres first, in numpy, and then shifted by an eighth of the new size."""
    digits = data.load("digits")
    stored = torch.from_numpy(np.array(digits.train_images[:6]))
    seen = made(ViewSettings(size=size))
    for name in VIEWS:
        assert seen[name](stored, torch.Generator()).shape[-1] == (8 if name == "none" else size)
    if size == 8:
        assert not isinstance(seen["weak"], Resized)
        return
    view = seen["weak"]
    assert isinstance(view, Resized) and view.augmentation.size == size
    resized: list[Tensor] = []

    def remember(images: Tensor, _: Any) -> Tensor:
        resized.append(images)
        return images

    Resized(replace(view.augmentation, apply=remember))(stored, torch.Generator())
    assert resized[0].dtype == torch.uint8
    if size > 8:
        places = np.clip((np.arange(size) + 0.5) * 8 / size - 0.5, 0, 7)  # of the new centres among the old ones
        low = np.minimum(places.astype(int), 6)
        weights = np.zeros((size, 8))
        weights[np.arange(size), low], weights[np.arange(size), low + 1] = 1 - (places - low), places - low
        expected = weights @ stored.numpy().astype(float) @ weights.T
        assert np.abs(resized[0].numpy() - expected).max() <= 0.5 + 1e-3
    weak = augment.pipeline(
        "weak", size=size, channels=1, flip=digits.flip, mean=digits.mean, std=digits.std, largest_shift=0.125
    )
    expected_view = weak(resized[0], torch.Generator().manual_seed(1))
    assert torch.equal(view(stored, torch.Generator().manual_seed(1)), expected_view)


def test_a_network_takes_images_that_are_resized_already_as_they_are() -> None:
    network = networks.backbone("small_convnet", (1, 8, 8), resize=16).eval()
    assert isinstance(network, networks.Resized)
    images = torch.rand(3, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(network(images), network.network(images))
