"""What a method believes, compared with the truth: known answers, by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from lnl.training.task import Beliefs
from lnl.trial.evaluation import diagnose, embed

NAN = math.nan


def compare(beliefs: Beliefs, given: list[int], true: list[int], unlabelled: list[int] = [], classes: int = 2):  # type: ignore[no-untyped-def]  # noqa: B006
    """Metrics and arrays for labelled images with these given and true labels, then unlabelled ones."""
    count = len(given)
    seen = SimpleNamespace(
        labels=torch.tensor([*given, *[-1] * len(unlabelled)]),
        labelled=torch.arange(count),
        unlabelled=torch.arange(count, count + len(unlabelled)),
        classes=classes,
    )
    truth = SimpleNamespace(labels=torch.tensor([*true, *unlabelled]))
    return diagnose(SimpleNamespace(beliefs=lambda: beliefs), seen, truth)


def as_labels(clean: list[int]) -> tuple[list[int], list[int]]:
    return [0] * len(clean), [0 if right else 1 for right in clean]


def test_a_method_without_beliefs_is_not_asked() -> None:
    assert diagnose(SimpleNamespace(), None, None) == ({}, {})  # type: ignore[arg-type]


def test_selection_is_scored_as_in_the_fact_sheet() -> None:
    weight = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.4, 0.3, 0.2, 0.1])
    clean = [1, 1, 0, 1, 1, 0, 0, 0]
    metrics, _ = compare(Beliefs(clean=weight, selected=(weight > 0.5).float()), *as_labels(clean))
    assert metrics["oracle", "selection_precision"] == pytest.approx(0.75)
    assert metrics["oracle", "selection_recall"] == pytest.approx(0.75)
    assert metrics["oracle", "selection_auc"] == pytest.approx(0.875)
    assert metrics["train", "selected"] == 0.5
    assert metrics["oracle", "error_precision"] == metrics["oracle", "error_recall"] == pytest.approx(0.75)
    assert metrics["oracle", "error_average_precision"] == pytest.approx((1 + 1 + 1 + 4 / 6) / 4)


def test_errors_expected_and_found() -> None:
    """Of 1,200 labels, the second half of whose probabilities is right, and of those that are judged alone."""
    generator = torch.Generator().manual_seed(0)
    probability = torch.rand(1200, generator=generator)
    clean = [int(p < 0.6) for p in probability.tolist()]
    trust = 2 - probability  # another scale, the same order
    probability[5], trust[5] = NAN, NAN
    _, arrays = compare(Beliefs(wrong=probability, clean=trust), *as_labels(clean))
    known = torch.tensor([place for place in range(1200) if place != 5])
    ranked = probability[known].sort(descending=True).values
    first, expected, found = arrays["oracle", "error_first"]
    assert first.tolist() == [100, 500, 1000]
    assert expected.tolist() == pytest.approx([float(ranked[:n].double().sum()) for n in (100, 500, 1000)], rel=1e-6)
    above = int((ranked >= 0.6).sum())
    assert found.tolist() == [min(n, above) for n in (100, 500, 1000)]
    labels, wrong, mean = arrays["oracle", "error_reliability"]
    assert labels.sum() == 1199 and wrong[:9].sum() == 0  # probabilities up to 9 / 15
    assert torch.equal(wrong[9:], labels[9:]) and float((labels * mean).sum()) == pytest.approx(float(ranked.sum()))


def test_of_few_labels_none_are_called_the_first_hundred() -> None:
    half = torch.full((4,), 0.5)
    _, arrays = compare(Beliefs(wrong=half, clean=half), *as_labels([1, 0, 1, 0]))
    assert ("oracle", "error_first") not in arrays
    assert arrays["oracle", "error_reliability"][:2, 7].tolist() == [4, 2]


def test_ties_count_half() -> None:
    metrics, _ = compare(Beliefs(clean=torch.tensor([0.9, 0.5, 0.5, 0.1])), *as_labels([1, 1, 0, 0]))
    assert metrics["oracle", "selection_auc"] == pytest.approx(0.875)


def test_networks_are_averaged_and_unknown_images_left_out() -> None:
    clean = torch.tensor([[0.9, 0.1, NAN, 0.2], [0.1, 0.9, NAN, 0.2]])
    selected = torch.tensor([[1.0, 0.0, NAN, 0.0], [1.0, 1.0, NAN, 1.0]])
    metrics, _ = compare(Beliefs(clean=clean, selected=selected), *as_labels([1, 0, 1, 0]))
    assert metrics["oracle", "selection_auc"] == pytest.approx((1 + 0) / 2)
    assert metrics["oracle", "error_average_precision"] == pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 2)
    assert metrics["oracle", "selection_precision"] == pytest.approx((1 + 1 / 3) / 2)
    assert metrics["oracle", "selection_recall"] == pytest.approx(1.0)
    assert metrics["train", "selected"] == pytest.approx((1 / 3 + 1) / 2)


def test_nothing_selected_and_nothing_wrong_have_no_score() -> None:
    metrics, _ = compare(Beliefs(selected=torch.zeros(3), clean=torch.ones(3)), *as_labels([1, 1, 1]))
    assert ("oracle", "selection_precision") not in metrics and metrics["oracle", "selection_recall"] == 0
    assert math.isnan(metrics["oracle", "selection_auc"])


def test_refined_and_pseudo_labels_are_scored_where_there_is_an_opinion() -> None:
    refined = torch.tensor([[0.9, 0.1], [0.2, 0.8], [NAN, NAN], [0.6, 0.4]])
    guessed = torch.tensor([[0.9, 0.1], [0.9, 0.1], [NAN, NAN], [0.1, 0.9]])
    beliefs = Beliefs(labels=refined, pseudo_labels=guessed)
    metrics, _ = compare(beliefs, [0, 0, 0, 1], [0, 1, 0, 1], unlabelled=[0, 1, 1, -1])
    assert metrics["oracle", "refined_accuracy"] == pytest.approx(2 / 3)
    assert metrics["oracle", "pseudo_label_accuracy"] == pytest.approx(1 / 2), "nobody knows the last one's class"


def test_a_transition_matrix_is_compared_with_the_realised_one() -> None:
    """The fact sheet's: against [[.9 .1] [.2 .8]] the estimate is wrong by .1 on average."""
    given = [0] * 9 + [1] + [0] * 2 + [1] * 8
    true = [0] * 10 + [1] * 10
    estimate = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
    metrics, arrays = compare(Beliefs(transition=estimate), given, true)
    assert metrics["oracle", "transition_error"] == pytest.approx(0.1)
    assert torch.equal(arrays["train", "transition"], estimate)


def test_components_are_apart_by_their_deviations() -> None:
    mixture = torch.tensor([[[0.6, 0.1, 0.1], [0.4, 0.5, 0.1]], [[0.5, 0.0, 0.3], [0.5, 0.5, 0.4]]])
    metrics, arrays = compare(Beliefs(mixture=mixture), *as_labels([1, 0]))
    assert metrics["train", "mixture_separation"] == pytest.approx((4 + 0.5 / math.sqrt((0.09 + 0.16) / 2)) / 2)
    assert torch.equal(arrays["train", "mixture"], mixture)


def test_histograms_count_clean_and_wrong_labels_apart() -> None:
    loss = torch.tensor([0.0, 0.01, 0.99, NAN, 1.0])
    _, arrays = compare(Beliefs(loss=loss, coefficient=torch.full((5,), NAN)), *as_labels([1, 1, 0, 1, 0]))
    counts = arrays["oracle", "loss_histogram"]
    assert counts.shape == (2, 40) and counts.sum() == 4
    assert counts[0, 0] == 2 and counts[1, 39] == 2
    assert ("oracle", "coefficient_histogram") not in arrays, "nothing is known of it"
    _, raw = compare(Beliefs(loss=torch.tensor([0.0, 8.0])), *as_labels([1, 0]))
    assert raw["oracle", "loss_histogram"][1, 39] == 1, "losses beyond 1 are drawn to their own scale"
    assert raw["oracle", "loss_histogram_end"] == 8 and ("oracle", "loss_histogram_end") not in arrays
    weights = torch.tensor([0.0, 0.01, 0.02, 0.04])  # of a hundred examples: all are below one bin of forty in [0, 1]
    _, small = compare(Beliefs(clean=weights), *as_labels([1, 0, 1, 1]))
    assert small["oracle", "clean_histogram_end"] == weights.max()
    assert small["oracle", "clean_histogram"].nonzero().tolist() == [[0, 0], [0, 20], [0, 39], [1, 10]]
    _, none = compare(Beliefs(clean=torch.zeros(2)), *as_labels([1, 0]))
    assert ("oracle", "clean_histogram_end") not in none


def test_an_embedding_keeps_distances_of_a_balanced_sample() -> None:
    features = torch.nn.functional.normalize(torch.randn(30, 7, generator=torch.Generator().manual_seed(0)), dim=-1)
    labels = torch.tensor([0] * 20 + [1] * 10)

    class Method:
        def features(self, images: Tensor) -> Tensor:
            return 3 * features[images.long()]

    truth = SimpleNamespace(test_images=torch.arange(30), test_labels=labels)
    found = embed(Method(), truth, 12)
    kept = found["test", "embedding_labels"]
    assert kept.bincount().tolist() == [6, 6]
    points, mine = found["test", "embeddings"], features[[0, 20, 1, 21, 2, 22, 3, 23, 4, 24, 5, 25]]
    assert points.shape == (12, 7)
    torch.testing.assert_close(torch.cdist(points, points).float(), torch.cdist(mine, mine), atol=1e-5, rtol=0)
