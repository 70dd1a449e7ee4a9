import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lnl.functional import graph
from lnl.methods.label_propagation import Config
from lnl.training.task import Noise
from lnl.trial.config import Trial
from lnl.trial.evaluation import diagnose
from lnl.trial.run import run


@pytest.fixture
def trial() -> Trial:
    return Trial(
        method="label_propagation",
        dataset="digits",
        network="small_convnet",
        labels=250,
        noise=Noise("symmetric", 0.4),
        epochs=5,
    )


def bank_of(built, index: Tensor) -> Tensor:
    still = torch.Generator()
    return built.method.features(built.task.view(index, "none", still))


def loops(built, k: int, temperature: float, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """Equation 3 without clamp, image by image: scores of all images of the task, labelled ones first, and the same
    without what comes from the image's own label."""
    seen = built.task
    nodes = torch.cat([seen.labelled, seen.unlabelled])
    features = bank_of(built, nodes).double().numpy()
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    weights = np.zeros((len(nodes), len(nodes)))
    for i, row in enumerate(features @ features.T):
        nearest = [j for j in np.argsort(-row) if j != i][:k]
        weights[i, nearest] = np.exp((row[nearest] - 1) / temperature)
    degree = weights.sum(1)
    matrix = weights / np.sqrt(np.outer(degree, degree))
    given = seen.labels[nodes].numpy()
    power = np.linalg.matrix_power(matrix, iterations)
    start = np.eye(10)[given] * (given >= 0)[:, None]
    return power @ start, power @ start - np.diag(power)[:, None] * start


def test_it_is_equation_3_over_labelled_and_unlabelled_images(trial, build):
    built = build(trial.override({"labels": 100, "unlabelled_ratio": 3, "method.iterations": 2}))
    scalars = [built.method.train_epoch(epoch) for epoch in range(2)]
    scores, others = loops(built, 10, 0.01, 4)
    others = others[:100]
    beliefs = built.method.beliefs()
    soft = scores / scores.sum(1, keepdims=True)
    np.testing.assert_allclose(torch.cat([beliefs.labels, beliefs.pseudo_labels]), soft, atol=1e-4)
    given = built.task.labels[built.task.labelled].numpy()
    likelihood = (others / others.sum(1, keepdims=True))[np.arange(100), given]
    assert np.abs(likelihood - soft[np.arange(100), given]).max() > 0.2  # the own label had come back
    np.testing.assert_allclose(beliefs.clean, likelihood, atol=1e-4)
    assert scalars[-1]["loss"].item() == pytest.approx(1 - likelihood.mean(), abs=1e-4)
    assert scalars[-1]["coverage"] == 1.0


def test_new_images_are_labelled_by_their_neighbours_soft_labels(trial, build):
    built = build(trial)
    built.method.train_epoch(0)
    seen, beliefs, images = built.task, built.method.beliefs(), built.truth.test_images[:50]
    soft = torch.cat([beliefs.labels, beliefs.pseudo_labels])
    assert soft.isnan().any()  # not all are reached at once
    bank = bank_of(built, torch.cat([seen.labelled, seen.unlabelled]))
    votes = graph.neighbour_votes(bank, soft.nan_to_num(0), built.method.features(images), 10, 0.01, 10)
    predicted = built.method.predict(images)
    reached = votes.sum(-1) > 0
    assert_close(predicted[reached], (votes / votes.sum(-1, keepdim=True))[reached])


def test_unreached_images_have_no_opinion_and_are_not_class_0(trial, build):
    built = build(trial.override({"labels": 10, "method.k": 1}))
    scalars = built.method.train_epoch(0)
    beliefs = built.method.beliefs()
    unreached = beliefs.pseudo_labels.isnan().all(-1)
    everyone = len(built.task.labelled) + len(built.task.unlabelled)
    reached = (~unreached).sum() + (~beliefs.labels.isnan().all(-1)).sum()
    assert unreached.any() and scalars["coverage"].item() == pytest.approx(reached.item() / everyone)
    predicted = built.method.predict(built.truth.test_images)
    assert_close(predicted.sum(-1), torch.ones(len(predicted)))
    assert (predicted == 0.1).all(-1).any()  # nothing known: uniform


def test_a_hard_clamp_keeps_the_given_labels_and_a_soft_one_a_share(trial, build):
    given = {}
    for clamp in ("hard", "soft", "off"):
        built = build(trial.override({"method.clamp": clamp}))
        for epoch in range(5):
            built.method.train_epoch(epoch)
        beliefs, index = built.method.beliefs(), built.task.labelled
        given[clamp] = beliefs.labels.gather(-1, built.task.labels[index, None])
        assert beliefs.clean.min() < 0.5  # what the neighbours think, whatever is kept
    assert (given["hard"] == 1).all()
    assert given["off"].mean() < given["soft"].mean() < 1


def test_neighbours_vote_with_the_given_labels_alone(trial, build):
    built = build(trial.override({"method.mode": "neighbours"}))
    seen, images = built.task, built.truth.test_images
    expected = graph.neighbour_votes(
        bank_of(built, seen.labelled), seen.labels[seen.labelled], built.method.features(images), 10, 0.01, 10
    )
    for epoch in range(2):
        built.method.train_epoch(epoch)
        assert_close(built.method.predict(images), expected)
    assert built.method.beliefs().pseudo_labels is None


@pytest.mark.parametrize("clamp", ["off", "soft", "hard"])
@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_detection_of_wrong_labels_is_blind_for_the_own_label(trial, build, clamp, iterations):
    """Another label of an image changes nothing of what the others say of it."""
    method = {"method.iterations": iterations, "method.clamp": clamp, "method.alpha": 0.7}
    built = build(trial.override({"labels": None, "epochs": 1} | method))
    built.method.train_epoch(0)
    index = built.task.labelled
    before = built.method.others.of(index)
    image = 7
    start = built.method.start.clone()
    built.method.start[image] = start[image].roll(1)
    built.method.scores.note(built.method.nodes, built.method.start)
    built.method.train_epoch(0)
    assert_close(built.method.others.of(index)[image], before[image], atol=1e-6, rtol=1e-4)
    if (clamp, iterations) != ("hard", 1):
        assert not torch.equal(built.method.others.of(index), before)  # what it says of the others changes


def test_labelled_images_alone_spread_their_labels_to_those_beside_them(trial, build):
    """The ablation of figure 1, by dense matrices: labelled and test images are the graph."""
    built = build(trial.override({"labels": 40, "epochs": 3, "method.unlabelled": False, "method.clamp": "hard"}))
    seen, images = built.task, built.truth.test_images
    features = torch.cat([bank_of(built, seen.labelled), built.method.features(images)])
    matrix = graph.normalised(graph.adjacency(features, 10, 0.01), "symmetric").to_dense()
    start = torch.zeros(len(features), 10, dtype=torch.float64)
    start[torch.arange(40), seen.labels[seen.labelled]] = 1
    scores = start
    for _ in range(3):
        scores = torch.cat([start[:40], (matrix @ scores)[40:]])
    expected = graph.soft_labels(scores[40:]).nan_to_num(0.1).float()
    assert_close(built.method.predict(images), expected, atol=1e-4, rtol=0)
    built.method.train_epoch(0)
    beliefs = built.method.beliefs()
    assert beliefs.pseudo_labels is None and beliefs.labels.shape == (40, 10)


def test_few_images_are_all_neighbours(trial, build):
    built = build(trial.override({"labels": 10, "method.mode": "neighbours", "method.k": 40}))
    built.method.train_epoch(0)
    assert built.method.matrix._nnz() == 10 * 9
    assert_close(built.method.predict(built.truth.test_images).sum(-1), torch.ones(360))


def test_it_trains_nothing(trial, build):
    built = build(trial)
    before = [tensor.clone() for tensor in built.method.learner.network.state_dict().values()]
    built.method.train_epoch(0)
    after = built.method.learner.network.state_dict().values()
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_labels_are_corrected_on_features_of_an_untrained_network(trial, build):
    """All digits labelled, 40 % wrong: the noise-reduction curve, which turns up again as labels are over-smoothed."""
    built = build(trial.override({"labels": None, "epochs": 20}))
    accuracy = []
    for epoch in range(20):
        built.method.train_epoch(epoch)
        accuracy.append(diagnose(built.method, built.task, built.truth)[0]["oracle", "refined_accuracy"])
    assert max(accuracy[:3]) > 0.9 and accuracy[-1] < max(accuracy)
    assert diagnose(built.method, built.task, built.truth)[0]["oracle", "selection_auc"] > 0.9


def test_features_come_from_the_network_that_another_trial_trained(trial):
    plain = list(run(trial.override({"epochs": 1})))
    initialised = trial.override({"epochs": 1, "init_from": {"method": "simclr", "epochs": 1, "steps": 2}})
    started = list(run(initialised))
    assert started[0].metrics["test", "cross_entropy"] != plain[0].metrics["test", "cross_entropy"]


def test_neighbours_refuse_what_belongs_to_spreading():
    for change in ({"clamp": "hard"}, {"iterations": 2}, {"unlabelled": False}):
        with pytest.raises(ValueError, match="mode 'neighbours' spreads no labels: leave clamp, iterations and unl"):
            Config(mode="neighbours", **change)


@pytest.mark.parametrize("method", ["label_propagation", "supervised", "mixmatch"])
def test_few_random_labels_may_miss_classes(trial, method):
    few = trial.override({"method": method, "labels": 4, "labels_drawn": "random", "epochs": 2, "steps": 1})
    rows = list(run(few))
    assert all(row.metrics["test", "accuracy"] < 0.6 for row in rows)
    assert rows[-1].metrics["test", "accuracy"] > 0
