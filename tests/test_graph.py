import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from lnl.graph import CHUNK, neighbour_votes

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


def test_known_answer_of_the_nearest_three() -> None:
    def directions(*degrees: float) -> Tensor:
        angles = torch.tensor(degrees).deg2rad()
        return torch.stack([angles.cos(), angles.sin()], -1)

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


def test_more_queries_than_one_chunk() -> None:
    random = np.random.default_rng(0)
    bank, queries = random.normal(size=(30, 4)), random.normal(size=(2 * CHUNK + 3, 4))
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
