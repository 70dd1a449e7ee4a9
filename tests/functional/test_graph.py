from functools import cache

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import average_precision_score, f1_score
from sklearn.semi_supervised import LabelPropagation, LabelSpreading
from torch import Tensor
from torch.testing import assert_close

from lnl.functional import graph
from lnl.functional.graph import (
    QUERIES,
    adjacency,
    nearest,
    neighbour_votes,
    normalised,
    propagate,
    returns,
    soft_labels,
    symmetrised,
    without_own,
)

COSINES = torch.tensor([0.9, 0.8, 0.75, 0.7, 0.6])
BANK = torch.stack([COSINES, (1 - COSINES**2).sqrt()], -1)
QUERY = torch.tensor([[1.0, 0]])
LABELS = torch.tensor([0, 1, 1, 2, 1])


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (0.01, [0.999954, 0.000046, 0]),
        (0.07, [0.700198, 0.259587, 0.040214]),
        (0.1, [0.563021, 0.360782, 0.076197]),
        (0.5, [0.264643, 0.557962, 0.177395]),
        (1.0, [0.231209, 0.579493, 0.189298]),
        (float("inf"), [0.2, 0.6, 0.2]),
    ],
)
def test_known_answers(temperature: float, expected: list[float]) -> None:
    votes = neighbour_votes(BANK, LABELS, QUERY, 5, temperature, 3)
    assert_close(votes, torch.tensor([expected]), atol=5e-6, rtol=0)


def test_known_answer_with_soft_labels() -> None:
    soft = torch.tensor([[0.9, 0.1, 0], [0.2, 0.8, 0], [0.4, 0.6, 0], [0, 0.1, 0.9], [0.5, 0.5, 0]])
    expected = torch.tensor([[0.612410, 0.319013, 0.068577]])
    assert_close(neighbour_votes(BANK, soft, QUERY, 5, 0.1, 3), expected, atol=2e-6, rtol=0)


def directions(*degrees: float) -> Tensor:
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], -1)


def test_known_answer_of_the_nearest_three() -> None:
    bank, labels = directions(0, 20, 50, 160, 180), torch.tensor([0, 0, 0, 1, 1])
    votes = neighbour_votes(bank, labels, directions(110), 3, 0.1, 2)
    assert_close(votes, torch.tensor([[0.186017, 0.813983]]), atol=2e-6, rtol=0)


def votes_by_loops(
    bank: np.ndarray, targets: np.ndarray, queries: np.ndarray, k: int, temperature: float
) -> np.ndarray:
    rows = []
    for query in queries:
        cosines = bank @ query / np.linalg.norm(bank, axis=1) / np.linalg.norm(query)
        nearest = np.argsort(-cosines)[:k]
        weights = np.exp((cosines[nearest] - 1) / temperature)
        rows.append(weights @ targets[nearest] / weights.sum())
    return np.stack(rows)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    k=st.integers(1, 12),
    temperature=st.sampled_from([0.05, 0.2, 1.0]),
    lengths=st.floats(0.01, 100),
)
def test_against_numpy(seed: int, k: int, temperature: float, lengths: float) -> None:
    random = np.random.default_rng(seed)
    bank, queries, labels = random.normal(size=(12, 5)), random.normal(size=(4, 5)), random.integers(3, size=12)
    expected = votes_by_loops(bank, np.eye(3)[labels], queries, k, temperature)
    actual = neighbour_votes(
        torch.tensor(lengths * bank), torch.tensor(labels), torch.tensor(queries), k, temperature, 3
    )
    np.testing.assert_allclose(actual.numpy(), expected, atol=1e-4)
    soft = neighbour_votes(torch.tensor(bank), torch.eye(3)[labels], torch.tensor(queries), k, temperature, 3)
    assert_close(soft, actual, atol=1e-4, rtol=0)


@pytest.mark.parametrize("copied", [True, False])
def test_blocks_of_the_bank_change_nothing(copied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.randn(700, 5, generator=torch.Generator().manual_seed(0))
    unit = features / features.norm(dim=-1, keepdim=True)
    similarity = unit @ unit.T
    monkeypatch.setattr(graph, "COPY_BYTES", 10**9 if copied else 0)
    for rows, columns in ((512, 700), (512, 333), (100, 200), (7, 4)):
        monkeypatch.setattr(graph, "QUERIES", rows)
        monkeypatch.setattr(graph, "BLOCK_BYTES", (4 if copied else 16) * rows * columns)
        heard: list[int] = []
        cosines, neighbours = nearest(features, 6, tell=lambda done, of: heard.append(done))  # noqa: B023
        expected, order = similarity.clone().fill_diagonal_(-1).topk(6)
        assert torch.equal(neighbours, order)
        assert_close(cosines, expected)
        assert heard[-1] == 700 and len(heard) == -(-700 // (rows if copied else 4 * rows))


def test_more_queries_than_one_chunk() -> None:
    random = np.random.default_rng(0)
    bank, queries = random.normal(size=(30, 4)), random.normal(size=(2 * QUERIES + 3, 4))
    labels = random.integers(3, size=30)
    actual = neighbour_votes(torch.tensor(bank), torch.tensor(labels), torch.tensor(queries), 5, 0.1, 3)
    np.testing.assert_allclose(actual.numpy(), votes_by_loops(bank, np.eye(3)[labels], queries, 5, 0.1), atol=1e-5)


def test_no_underflow_far_from_the_bank_and_no_lost_classes() -> None:
    votes = neighbour_votes(-QUERY.repeat(3, 1), torch.tensor([1, 1, 1]), QUERY, 2, 0.001, 4)  # exp(-2000)
    assert_close(votes, torch.tensor([[0.0, 1, 0, 0]]))


def test_full_precision_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(50, 64, generator=generator), torch.randn(8, 64, generator=generator)
    labels = torch.randint(3, (50,), generator=generator)
    expected = neighbour_votes(bank, labels, queries, 10, 0.1, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(neighbour_votes(bank, labels, queries, 10, 0.1, 3), expected, atol=0, rtol=0)


def test_more_neighbours_than_features_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"k = 6 neighbours are more than the 5 features in the bank: choose a smaller"
    ):
        neighbour_votes(BANK, LABELS, QUERY, 6, 0.1, 3)


# ---------------------------------------------------------------------------------------------------- label propagation

NO_CLAMP = torch.zeros(1, 1, dtype=torch.float64)
FIVE = torch.tensor(
    [[0, 0.9, 0.2, 0, 0], [0.9, 0, 0.6, 0, 0], [0, 0.6, 0, 0.7, 0], [0, 0, 0.7, 0, 0.8], [0, 0.1, 0, 0.8, 0]],
    dtype=torch.float64,
)
ENDS = torch.zeros(5, 2, dtype=torch.float64)  # node 0 is labelled A, node 4 is labelled B
ENDS[0, 0] = ENDS[4, 1] = 1
CLAMPED = ENDS.sum(-1, keepdim=True)


def iterated(matrix: Tensor, start: Tensor, kept: Tensor, iterations: int) -> Tensor:
    scores = start
    for _ in range(iterations):
        _, scores = propagate(matrix, scores, start, kept)
    return scores


def test_known_answers_of_five_directions() -> None:
    features = directions(0, 20, 50, 160, 180)
    assert nearest(features, 2)[1].tolist() == [[1, 2], [0, 2], [1, 0], [4, 2], [3, 2]]
    weights = adjacency(features, 2, 0.1)
    dense = weights.to_dense()
    expected = {(0, 1): 0.547127, (0, 2): 0.028096, (1, 2): 0.261912, (3, 4): 0.547127, (0, 0): 0, (0, 3): 0}
    assert {edge: pytest.approx(dense[edge].item(), abs=2e-6) for edge in expected} == expected
    matrix = normalised(weights, "symmetric")
    expected = {(0, 1): 0.802020, (0, 2): 0.068790, (1, 2): 0.540712}
    assert {edge: pytest.approx(matrix.to_dense()[edge].item(), abs=2e-6) for edge in expected} == expected
    for iterations, expected in ((1, [0.802020, 0.068790]), (2, [0.839215, 0.502451]), (3, [1.073701, 0.522563])):
        scores = iterated(matrix, ENDS, CLAMPED, iterations)
        assert scores[1:3, 0].tolist() == pytest.approx(expected, abs=3e-6)
        assert scores[3, 1].item() == pytest.approx(0.999999, abs=2e-6)


@pytest.mark.parametrize(
    ("iterations", "expected"),
    [
        (1, [[0.700649, 0], [0, 0], [0, 0.688530]]),
        (2, [[0.700649, 0], [0.301047, 0.345147], [0, 0.688530]]),
        (3, [[0.830000, 0.148299], [0.301047, 0.345147], [0.150909, 0.861546]]),
        (20, [[0.929822, 0.262744], [0.533542, 0.611700], [0.267369, 0.995065]]),
    ],
)
def test_known_answers_of_a_directed_graph(iterations: int, expected: list[list[float]]) -> None:
    scores = iterated(normalised(FIVE.to_sparse().coalesce(), "symmetric"), ENDS, CLAMPED, iterations)
    assert_close(scores[1:4], torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)
    assert torch.equal(scores[[0, 4]], ENDS[[0, 4]])  # a hard clamp gives the given labels back, exactly


def test_known_answer_of_a_random_walk() -> None:
    scores = iterated(normalised(FIVE.to_sparse().coalesce(), "random_walk"), ENDS, CLAMPED, 3)
    expected = torch.tensor([[0.710769, 0.114872], [0.276923, 0.287179], [0.129231, 0.667350]], dtype=torch.float64)
    assert_close(scores[1:4], expected, atol=1e-6, rtol=0)


def test_known_answer_of_a_symmetric_path() -> None:
    path = torch.zeros(5, 5, dtype=torch.float64)
    for node, weight in enumerate((1, 0.5, 0.5, 1)):
        path[node, node + 1] = path[node + 1, node] = weight
    matrix = normalised(path.to_sparse(), "symmetric")
    assert iterated(matrix, ENDS, CLAMPED, 2)[2].tolist() == pytest.approx([1 / 3, 1 / 3])
    third = iterated(matrix, ENDS, CLAMPED, 3)
    assert third[1].tolist() == pytest.approx([0.952579, 0.136083], abs=1e-6)
    assert third[3].tolist() == pytest.approx([0.136083, 0.952579], abs=1e-6)


def test_known_answer_of_two_noisy_triangles() -> None:
    triangle = 1 - torch.eye(3, dtype=torch.float64)
    weights = torch.block_diag(triangle, triangle)
    weights[2, 3] = weights[3, 2] = 0.1
    matrix, start = normalised(weights.to_sparse(), "symmetric"), torch.eye(2).double()[[0, 0, 1, 1, 1, 0]]
    first, second = (iterated(matrix, start, NO_CLAMP, iterations) for iterations in (1, 2))
    assert first[2].tolist() == pytest.approx([0.975900, 0.047619], abs=1e-6)
    true = torch.tensor([0, 0, 0, 1, 1, 1])
    assert (first.argmax(-1) != true).sum() == 1 and torch.equal(second.argmax(-1), true)


def test_what_returns_to_five_nodes_by_hand() -> None:
    """Of a graph with the edges 0-1, 0-2, 1-2, 2-3, 3-4 all of weight 1 the walker comes back, by hand, so often."""
    joined = torch.zeros(5, 5, dtype=torch.float64)
    for one, other in ((0, 1), (0, 2), (1, 2), (2, 3), (3, 4)):
        joined[one, other] = joined[other, one] = 1
    twice = [1 / 2 * 1 / 2 + 1 / 2 * 1 / 3, 1 / 2 * 1 / 2 + 1 / 2 * 1 / 3, 1 / 3 * (1 / 2 + 1 / 2 + 1 / 2)]
    twice += [1 / 2 * 1 / 3 + 1 / 2, 1 / 2]
    thrice = [2 * 1 / 2 * 1 / 2 * 1 / 3, 2 * 1 / 2 * 1 / 2 * 1 / 3, 2 * 1 / 3 * 1 / 2 * 1 / 2, 0, 0]  # both ways round
    for how in ("symmetric", "random_walk"):
        found = returns(normalised(joined.to_sparse().coalesce(), how), NO_CLAMP.expand(5, 1), torch.arange(5), 3)
        assert found.tolist() == [[0] * 5, pytest.approx(twice), pytest.approx(thrice)]


@pytest.mark.parametrize("how", ["symmetric", "random_walk"])
@pytest.mark.parametrize("clamp", ["off", "soft", "hard", "all"])
@pytest.mark.parametrize("self_loops", [False, True])
def test_returns_against_dense_matrices(how: str, clamp: str, self_loops: bool, blobs: tuple[Tensor, Tensor]) -> None:
    matrix = normalised(adjacency(blobs[0], 5, 0.2, self_loops), how)
    kept = {
        "off": torch.zeros(60, 1),
        "soft": torch.full((60, 1), 0.3),
        "hard": blobs[1].sum(-1, keepdim=True),
        "all": torch.ones(60, 1),
    }[clamp].double()
    dense, shares = matrix.to_dense().numpy(), kept.numpy()
    reach, expected = np.eye(60), []
    for _ in range(4):
        expected.append(np.diag(dense @ reach))
        reach = (1 - shares) * (dense @ reach) + np.diag(shares[:, 0])
    nodes = torch.tensor([3, 50, *range(20)])
    for iterations in (1, 2, 4):
        found = returns(matrix, kept, nodes, iterations)
        np.testing.assert_allclose(found, np.stack(expected)[:iterations, nodes], rtol=1e-12, atol=1e-15)


def test_an_image_that_only_its_own_label_has_reached_hears_nothing_from_others() -> None:
    pair = torch.tensor([[0, 1.0], [1, 0]]).to_sparse().coalesce()
    matrix, start, kept = normalised(pair, "symmetric"), torch.tensor([[0, 1.0], [0, 0]]), torch.zeros(2, 1)
    spread, _ = propagate(matrix, propagate(matrix, start, start, kept)[1], start, kept)
    assert spread.tolist() == [[0, 1], [0, 0]]
    others = without_own(spread * (1 + 1e-6), start, returns(matrix, kept, torch.arange(2), 2)[1])
    assert others.tolist() == [[0, 0], [0, 0]] and soft_labels(others).isnan().all()


@pytest.fixture(scope="module")
def blobs() -> tuple[Tensor, Tensor]:
    """Features of 60 images of three classes, and their one-hot labels, of which every fifth is given."""
    random = np.random.default_rng(0)
    classes = np.arange(60) % 3
    features = 2 * np.eye(6)[classes] + random.normal(size=(60, 6))
    start = np.eye(3)[classes] * (np.arange(60) % 5 == 0)[:, None]
    return torch.tensor(features), torch.tensor(start)


def given_to_sklearn(start: Tensor) -> np.ndarray:
    return np.where(start.sum(-1) > 0, start.argmax(-1), -1)


def test_equal_to_label_propagation_of_sklearn(blobs: tuple[Tensor, Tensor]) -> None:
    """Its rows are divided by their sums before each iteration."""
    features, start = blobs
    weights = adjacency(features, 5, 0.2)
    matrix, scores = normalised(weights, "random_walk"), start
    kept = start.sum(-1, keepdim=True)
    for _ in range(30):
        scores = soft_labels(propagate(matrix, scores, start, kept)[1]).nan_to_num(0)
    model = LabelPropagation(kernel=lambda *_: weights.to_dense().numpy(), max_iter=30, tol=0)
    with pytest.warns(ConvergenceWarning):
        model.fit(features.numpy(), given_to_sklearn(start))
    np.testing.assert_allclose(scores, model.label_distributions_, atol=1e-12)


def test_equal_to_label_spreading_of_sklearn(blobs: tuple[Tensor, Tensor]) -> None:
    """Its degrees are column sums, so that the two agree on symmetric graphs; and the limit is Zhou's closed form."""
    features, start = blobs
    weights = symmetrised(adjacency(features, 5, 0.2), "mean")
    matrix, kept = normalised(weights, "symmetric"), torch.full((60, 1), 0.2, dtype=torch.float64)
    model = LabelSpreading(kernel=lambda *_: weights.to_dense().numpy(), alpha=0.8, max_iter=25, tol=0)
    with pytest.warns(ConvergenceWarning):
        model.fit(features.numpy(), given_to_sklearn(start))
    np.testing.assert_allclose(soft_labels(iterated(matrix, start, kept, 25)), model.label_distributions_, atol=1e-12)
    closed = 0.2 * np.linalg.solve(np.eye(60) - 0.8 * matrix.to_dense().numpy(), start.numpy())
    np.testing.assert_allclose(iterated(matrix, start, kept, 200), closed, atol=1e-12)


def test_symmetrised_against_dense_matrices(blobs: tuple[Tensor, Tensor]) -> None:
    weights = adjacency(blobs[0], 5, 0.2)
    dense = weights.to_dense()
    assert not torch.equal(dense, dense.T)
    assert torch.equal(symmetrised(weights, "none").to_dense(), dense)
    assert_close(symmetrised(weights, "mean").to_dense(), (dense + dense.T) / 2)
    assert_close(symmetrised(weights, "max").to_dense(), torch.maximum(dense, dense.T))
    assert_close(symmetrised(weights, "mutual").to_dense(), torch.minimum(dense, dense.T))
    assert symmetrised(weights, "mutual")._nnz() < weights._nnz() < symmetrised(weights, "max")._nnz()


@pytest.mark.parametrize("how", ["symmetric", "random_walk"])
def test_normalised_against_dense_matrices(how: str, blobs: tuple[Tensor, Tensor]) -> None:
    weights = adjacency(blobs[0], 5, 0.05)
    dense = weights.to_dense().numpy()
    degree = dense.sum(1)
    power = {"symmetric": (-0.5, -0.5), "random_walk": (-1, 0)}[how]
    expected = degree[:, None] ** power[0] * dense * degree ** power[1]
    np.testing.assert_allclose(normalised(weights, how).to_dense(), expected, rtol=1e-12)
    assert np.abs(np.linalg.eigvals(expected)).max() == pytest.approx(1)
    np.testing.assert_allclose(normalised(7 * weights, how).to_dense(), expected, rtol=1e-12)  # scale does not matter


def test_the_order_of_images_does_not_matter(blobs: tuple[Tensor, Tensor]) -> None:
    features, start = blobs
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))

    def spread(features: Tensor, start: Tensor) -> Tensor:
        return iterated(normalised(adjacency(features, 5, 0.1), "symmetric"), start, NO_CLAMP, 4)

    assert_close(spread(features[order], start[order]), spread(features, start)[order])


def test_no_image_is_its_own_neighbour_even_among_duplicates() -> None:
    features = torch.ones(2 * QUERIES + 3, 4)
    index = torch.arange(len(features))[:, None]
    assert not (nearest(features, 5)[1] == index).any()
    distinct = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(nearest(distinct, 5, self_loops=True)[1][:, 0], torch.arange(40))
    assert torch.equal(nearest(distinct, 5, self_loops=True)[1][:, 1:], nearest(distinct, 4)[1])


def test_full_precision_of_the_graph_under_autocast(blobs: tuple[Tensor, Tensor]) -> None:
    expected = adjacency(blobs[0], 5, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(adjacency(blobs[0], 5, 0.1).to_dense(), expected.to_dense())


def test_a_small_temperature_neither_overflows_nor_loses_far_neighbours() -> None:
    matrix = normalised(adjacency(directions(0, 100, 200, 300), 2, 0.01), "symmetric").to_dense()
    assert matrix.isfinite().all() and (matrix.sum(-1) > 0).all()  # weights of exp(-117): 0 in float32


def test_what_no_label_has_reached_is_no_class() -> None:
    soft = soft_labels(iterated(normalised(FIVE.to_sparse().coalesce(), "symmetric"), ENDS, CLAMPED, 1))
    assert soft[2].isnan().all() and soft[[0, 1, 3, 4]].sum(-1).tolist() == pytest.approx([1, 1, 1, 1])


def test_more_neighbours_than_others_are_refused() -> None:
    with pytest.raises(ValueError, match=r"k = 5 neighbours are more than the 4 that each image has: choose a smaller"):
        adjacency(BANK, 5, 0.1)
    assert adjacency(BANK, 5, 0.1, self_loops=True)._nnz() == 25


# ------------------------------------------------------------------- scikit-learn's digits: raw pixels, centred, k = 10


@cache
def digits_matrix(temperature: float, self_loops: bool = False) -> Tensor:
    pixels = torch.tensor(load_digits().data)
    return normalised(adjacency(pixels - pixels.mean(0), 10, temperature, self_loops), "symmetric")


def noisy_digits(rate: float, seed: int) -> tuple[np.ndarray, Tensor]:
    """Which labels are wrong, and all labels one-hot: flips of exactly that share to other classes."""
    random = np.random.default_rng(seed)
    labels = load_digits().target
    wrong = random.permutation(len(labels)) < round(rate * len(labels))
    given = (labels + wrong * random.integers(1, 10, len(labels))) % 10
    return wrong, torch.eye(10, dtype=torch.float64)[torch.tensor(given)]


@pytest.mark.parametrize(
    ("temperature", "rate", "expected"),  # noise after t iterations without clamp
    [
        (0.1, 0.2, {1: 0.0184, 2: 0.0137, 5: 0.0201, 10: 0.0283, 20: 0.0564}),
        (0.1, 0.5, {1: 0.1378, 2: 0.0287, 3: 0.0195, 10: 0.0275, 20: 0.0577}),
        (0.01, 0.2, {1: 0.1873, 2: 0.1507, 5: 0.1231, 10: 0.1011, 20: 0.0863}),
        (0.01, 0.5, {1: 0.4786, 3: 0.4125, 10: 0.3017, 20: 0.2541}),
    ],
)
def test_noise_reduction_on_digits(temperature: float, rate: float, expected: dict[int, float]) -> None:
    labels = torch.tensor(load_digits().target)
    noise = {iterations: 0.0 for iterations in expected}
    for seed in range(5):
        _, scores = noisy_digits(rate, seed)
        for iteration in range(1, max(expected) + 1):
            _, scores = propagate(digits_matrix(temperature), scores, scores, NO_CLAMP)
            if iteration in expected:
                noise[iteration] += (scores.argmax(-1) != labels).double().mean().item() / 5
    assert noise == pytest.approx(expected, abs=0.01)


def test_labels_without_signal_stay_so() -> None:
    """At 0.9 of ten classes every class is as likely."""
    labels = torch.tensor(load_digits().target)
    scores = iterated(digits_matrix(0.1), noisy_digits(0.9, 0)[1], NO_CLAMP, 3)
    assert (scores.argmax(-1) != labels).double().mean() == pytest.approx(0.9, abs=0.05)


def test_self_loops_correct_almost_nothing_at_a_small_temperature() -> None:
    labels, start = torch.tensor(load_digits().target), noisy_digits(0.2, 0)[1]
    scores = iterated(digits_matrix(0.01, self_loops=True), start, NO_CLAMP, 20)
    assert (scores.argmax(-1) != labels).double().mean() == pytest.approx(0.198, abs=0.005)


@pytest.mark.parametrize(("temperature", "expected"), [(0.01, 2.2), (0.02, 4.0), (0.05, 7.5), (0.1, 9.2), (0.2, 9.8)])
def test_effective_neighbours_on_digits(temperature: float, expected: float) -> None:
    """The exponential of the entropy of a row's weights."""
    pixels = torch.tensor(load_digits().data)
    weights = adjacency(pixels - pixels.mean(0), 10, temperature).values().view(-1, 10)
    assert np.exp(scipy.stats.entropy(weights.numpy(), axis=1)).mean() == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize(
    ("iterations", "rate", "precision", "f1"),
    [
        (1, 0.05, 0.957, 0.896),
        (1, 0.4, 0.988, 0.949),
        (3, 0.2, 0.977, 0.972),
        (3, 0.6, 0.994, 0.983),
        (20, 0.2, 0.988, 0.899),
    ],
)
def test_label_errors_of_digits(iterations: int, rate: float, precision: float, f1: float) -> None:
    """Average precision of 1 - p(given label), and F1 of: another class is more probable."""
    found = []
    for seed in range(3):
        wrong, start = noisy_digits(rate, seed)
        soft = soft_labels(iterated(digits_matrix(0.1), start, NO_CLAMP, iterations))
        suspicion = 1 - (soft * start).sum(-1).numpy()
        flagged = (soft.argmax(-1) != start.argmax(-1)).numpy()
        found.append((average_precision_score(wrong, suspicion), f1_score(wrong, flagged)))
    assert tuple(np.mean(found, axis=0)) == pytest.approx((precision, f1), abs=0.012)
