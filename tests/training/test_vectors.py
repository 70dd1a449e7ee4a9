"""Training on vectors: their views, the methods that apply, and the refusals of those that do not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from lnl import data, methods
from lnl.functional import noise
from lnl.functional.vectors import Perturbation
from lnl.study import checks
from lnl.study.study import Study
from lnl.training import views
from lnl.training.task import VIEWS, Noise, VectorViews
from lnl.training.views import ViewSettings
from lnl.trial.config import Trial
from lnl.trial.run import run
from tests.conftest import Built

ON_VECTORS = {"dataset": "digits_vectors", "network": "mlp"}
OF_IMAGES = {
    "barlow_twins": "Barlow Twins learns from augmented images",
    "byol": "BYOL learns from augmented images",
    "s4l": "S4L's pretext task rotation turns images",
    "simclr": "SimCLR learns from augmented images",
}
CPU = torch.device("cpu")
Tiny = Callable[..., Trial]


# --------------------------------------------------------------------------------------------------------------- views


def test_views_of_vectors_have_the_strengths_that_are_asked_for() -> None:
    vectors = data.load("digits_vectors")
    settings = VectorViews(weak_dropout=0.1, strong_dropout=0.4, weak_noise=0.3, strong_noise=0.6)
    made = views.of(vectors, ViewSettings(vectors=settings), CPU)
    assert list(made) == list(VIEWS)
    strengths = {name: (view.dropout, view.noise) for name, view in made.items() if isinstance(view, Perturbation)}
    assert strengths == {"none": (0, 0), "weak": (0.1, 0.3)} | dict.fromkeys(VIEWS[2:], (0.4, 0.6))


def test_the_view_none_standardises_and_draws_nothing() -> None:
    vectors = data.load("digits_vectors")
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    seen = views.of(vectors, ViewSettings(), CPU)["none"](torch.from_numpy(np.array(vectors.train_images)), generator)
    assert torch.equal(before, generator.get_state())
    mean, std = seen.double().mean(0), seen.double().std(0, correction=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-6, rtol=0)
    torch.testing.assert_close(std[std > 0], torch.ones_like(std[std > 0]), atol=1e-5, rtol=0)


def test_dropout_keeps_the_mean_and_noise_has_its_deviation() -> None:
    mean, std = torch.full((50,), 2.0), torch.full((50,), 4.0)
    vectors, generator = torch.full((4000, 50), 6.0), torch.Generator().manual_seed(0)  # 1 after standardising
    dropped = Perturbation(mean, std, dropout=0.2)(vectors, generator)
    assert dropped.unique().tolist() == [0.0, pytest.approx(1.25)]
    assert abs(float((dropped == 0).double().mean()) - 0.2) < 5 * (0.16 / dropped.numel()) ** 0.5
    noisy = Perturbation(mean, std, noise=0.5)(vectors, generator).double()
    assert abs(float(noisy.mean()) - 1) < 5 * 0.5 / noisy.numel() ** 0.5
    assert float(noisy.std()) == pytest.approx(0.5, rel=0.02)
    assert torch.equal(vectors, torch.full((4000, 50), 6.0)), "what is stored stays as it is"


def test_views_of_other_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"was made for vectors \(batch, 5\), not \(2, 6\)"):
        Perturbation(torch.zeros(5), torch.ones(5))(torch.zeros(2, 6), torch.Generator())


def test_strengths_are_refused_for_images() -> None:
    with pytest.raises(data.Unfit, match="vector_views belong to data sets of vectors, and digits has images"):
        views.of(data.load("digits"), ViewSettings(vectors=VectorViews(weak_noise=0.1)), CPU)


def test_a_view_changes_training(tiny: Tiny) -> None:
    trial = tiny("supervised", ON_VECTORS)

    def loss(changes: dict[str, float]) -> float:
        *_, row = run(trial.override(changes))
        return row.metrics["train", "loss"]

    assert len({loss({}), loss({"vector_views.weak_dropout": 0.3}), loss({"vector_views.weak_noise": 0.1})}) == 3
    assert loss({"vector_views.strong_dropout": 0.3}) == loss({}), "it sees weak views only"


# ------------------------------------------------------------------------------------------------------------- methods


@pytest.mark.parametrize("network", ["mlp", "linear"])
@pytest.mark.parametrize("method", [name for name in methods.names() if name not in OF_IMAGES])
def test_every_other_method_trains_on_vectors(tiny: Tiny, method: str, network: str) -> None:
    """And gives the same rows again; RobMix needs a backbone with weights."""
    trial = tiny(method, ON_VECTORS | {"network": network})
    if (method, network) == ("robmix", "linear"):
        with pytest.raises(data.Unfit, match=r"gradients on a backbone, and this one has no weights: choose mlp"):
            list(run(trial))
        return
    rows, again = list(run(trial)), list(run(trial))
    assert [row.metrics for row in rows] == [row.metrics for row in again]
    assert all(np.isfinite(row.metrics["train", "loss"]) and 0 <= row.metrics["test", "accuracy"] <= 1 for row in rows)


@pytest.mark.parametrize(("method", "lesson"), OF_IMAGES.items())
def test_methods_that_need_images_are_refused_before_training(tiny: Tiny, method: str, lesson: str) -> None:
    study = Study(name="x", question="?", base=tiny(method, ON_VECTORS), arms={"a": {}})
    with pytest.raises(data.Unfit, match=rf"Arm 'a': {lesson}, and a data set of vectors has no images"):
        checks.check(study.plan(replicates=1).trials, None, read=False)


def test_s4l_tells_exemplars_apart_without_images(tiny: Tiny) -> None:
    *_, row = run(tiny("s4l", ON_VECTORS | {"method.pretext": "exemplar"}))
    assert np.isfinite(row.metrics["train", "loss"])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"network": "small_convnet"},
            "small_convnet takes images, and the data set has vectors: choose mlp or linear",
        ),
        ({"resize": 16}, "resize is for images, and the data set has vectors"),
        ({"dataset": "digits"}, "mlp takes vectors, and the data set has images"),
        ({"dataset": "digits", "network": "small_convnet", "vector_views.weak_noise": 0.1}, "vector_views belong to"),
        ({"method": "robmix", "network": "linear"}, "this one has no weights: choose mlp"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_training(tiny: Tiny, changes: dict, sentence: str) -> None:
    study = Study(name="x", question="?", base=tiny("supervised", ON_VECTORS), arms={"a": changes})
    with pytest.raises(data.Unfit, match=sentence):
        checks.check(study.plan(replicates=1).trials, None, read=False)


def test_propagation_on_linear_is_over_the_vectors_themselves(tiny: Tiny, build: Callable[[Trial], Built]) -> None:
    """On `mlp` it would be over the features of a layer that nothing has trained."""
    built = build(tiny("label_propagation", ON_VECTORS | {"network": "linear"}))
    vectors = built.task.over(built.method.nodes, lambda seen: seen)
    assert torch.equal(built.method.bank, vectors)


# --------------------------------------------------------------------------------------------------------------- noise


def test_noise_of_instances_and_of_a_teacher(tiny: Tiny) -> None:
    asked = Noise("instance", 0.4)
    *_, row = run(
        tiny("supervised", ON_VECTORS | {"labels": 500, "noise.kind": "instance"}).override({"noise.rate": 0.4})
    )
    assert row.facts["noise_realised"] == pytest.approx(asked.rate, abs=0.002)
    teacher = {"kind": "semantic", "teacher": {"labels": 100, "epochs": 1}}
    *_, row = run(tiny("supervised", ON_VECTORS | {"labels": 500, "noise": teacher}))
    assert 0 < float(str(row.facts["noise_realised"])) < 1


def test_instance_noise_standardises_each_feature() -> None:
    """A scale of its own for a feature, however large, moves no label."""
    generator = np.random.default_rng(0)
    vectors = torch.from_numpy(generator.normal(size=(300, 6)))
    labels = torch.from_numpy(generator.integers(0, 3, 300))

    def given(images: torch.Tensor) -> torch.Tensor:
        return noise.corrupt(labels, "instance", 0.4, 3, torch.Generator().manual_seed(0), images=images).labels

    scales = torch.tensor([1e-3, 1, 10, 1e3, 1e5, 1])
    assert torch.equal(given(vectors), given(vectors * scales + 4))
