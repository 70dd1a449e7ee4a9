"""Label noise against the known answers N2–N5 of the fact sheet, its own promises, and re-derivations in numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lnl.functional.noise import CIFAR100_SUPERCLASSES, asymmetric_map, corrupt, flip_probabilities, transition_matrix

KINDS = ["symmetric", "asymmetric", "asymmetric_block", "pair", "instance"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def balanced(classes: int, each: int) -> torch.Tensor:
    return torch.arange(classes).repeat(each)


def draw(labels, kind, rate, *, classes=10, seed=0, **settings):
    if kind == "asymmetric":
        settings.setdefault("mapping", asymmetric_map("cifar10", classes))
    if kind == "instance":
        settings.setdefault("images", some_images(len(labels)))
    return corrupt(labels, kind, rate, classes, seeded(seed), **settings)


def some_images(count: int) -> torch.Tensor:
    return torch.randint(256, (count, 3, 4, 4), generator=seeded(99), dtype=torch.uint8)


def assert_one_sentence(error: pytest.ExceptionInfo) -> None:
    text = str(error.value)
    assert "\n" not in text and text.endswith(".") and ": " in text and ". " not in text


# ---- known answers


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("rate", [0.2, 0.5, 0.8, 0.9])
@pytest.mark.parametrize("exact", [True, False])
def test_symmetric_with_the_true_class_has_a_smaller_real_rate(classes, rate, exact):
    expected = {(10, 0.2): 0.18, (10, 0.5): 0.45, (10, 0.8): 0.72, (10, 0.9): 0.81}
    expected |= {(100, 0.2): 0.198, (100, 0.5): 0.495, (100, 0.8): 0.792, (100, 0.9): 0.891}
    labels = balanced(classes, 50_000 // classes)
    got = draw(labels, "symmetric", rate, classes=classes, exact=exact, include_true=True).rate
    wrong = expected[classes, rate]
    assert abs(got - wrong) < 4 * (wrong * (1 - wrong) / 50_000) ** 0.5


def test_ninety_percent_without_the_true_class_is_pure_chance():
    transition = draw(balanced(10, 5_000), "symmetric", 0.9).transition
    assert (transition - 0.1).abs().max() < 4 * (0.1 * 0.9 / 5_000) ** 0.5
    assert torch.equal(transition.diagonal(), torch.full((10,), 0.1, dtype=torch.float64))


def test_asymmetric_cifar10_at_40_percent():
    noisy = draw(balanced(10, 500), "asymmetric", 0.4)
    assert noisy.rate == 0.2
    prior = torch.bincount(noisy.labels) / 5_000
    assert prior.tolist() == pytest.approx([0.14, 0.14, 0.06, 0.10, 0.06, 0.10, 0.10, 0.14, 0.10, 0.06])
    for source, target in [(9, 1), (2, 0), (4, 7), (3, 5), (5, 3)]:
        assert noisy.transition[source, target] == pytest.approx(0.4)


def test_condition_numbers():
    symmetric = np.full((10, 10), 0.5 / 9) + np.eye(10) * (0.5 - 0.5 / 9)
    drawn = draw(balanced(10, 5_000), "symmetric", 0.5).transition.numpy()
    assert np.abs(drawn - symmetric).max() < 0.015
    inverse = np.linalg.inv(drawn)
    assert inverse.diagonal().mean() == pytest.approx(2.125, abs=0.01)
    assert inverse.sum() - inverse.trace() == pytest.approx(-0.125 * 90, abs=0.1)
    assert np.linalg.cond(draw(balanced(10, 100), "pair", 0.45).transition.numpy()) == pytest.approx(10.0)


@pytest.mark.parametrize(("rate", "mean"), [(0.1, 0.12876), (0.2, 0.20552), (0.3, 0.30044), (0.4, 0.40001), (0.5, 0.5)])
def test_mean_of_the_truncated_normal_distribution(rate, mean):
    quantiles = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    drawn = flip_probabilities(rate, quantiles)
    assert drawn.mean().item() == pytest.approx(mean, abs=1e-5)
    assert 0 <= drawn.min() and drawn.max() <= 1
    by_rejection = np.random.default_rng(0).normal(rate, 0.1, 400_000)
    by_rejection = by_rejection[(by_rejection >= 0) & (by_rejection <= 1)]
    levels = [0.05, 0.25, 0.5, 0.75, 0.95]
    assert np.quantile(drawn.numpy(), levels) == pytest.approx(np.quantile(by_rejection, levels), abs=2e-3)


def test_instance_noise_of_10_percent_is_nearly_13():
    rate = draw(balanced(10, 2_000), "instance", 0.1, exact=False).rate
    assert abs(rate - 0.12876) < 4 * (0.129 * 0.871 / 20_000) ** 0.5
    assert draw(balanced(10, 2_000), "instance", 0.1, exact=True).rate == 0.1


def test_empirical_transition():
    true, noisy = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 1, 0, 1, 1, 0])
    third = 1 / 3
    expected = torch.tensor([[2 * third, third, 0], [third, 2 * third, 0], [0, 0, 1]], dtype=torch.float64)
    assert torch.allclose(transition_matrix(true, noisy, 3), expected)  # class 2 does not occur: identity
    assert torch.allclose(corrupt(true, "human", 0, 3, seeded(), annotated=noisy).transition, expected)


def test_cifar100_map_stays_in_the_superclass_and_the_block_map_does_not():
    circular = """51 32 11 42 30 20 7 14 13 10 16 35 17 48 18 19 28 37 24 21 25 31 39 33 6 84 45 29 61 44 55 38 67 49 63
        46 50 68 15 40 86 69 43 88 78 77 98 52 58 60 65 53 56 57 62 72 59 83 90 96 71 9 70 64 66 74 75 73 76 81 82 23 95
        91 80 34 12 79 93 99 36 85 92 0 94 89 87 22 97 41 8 1 54 27 5 4 47 3 2 26"""
    mapping = asymmetric_map("cifar100", 100)
    assert list(mapping) == [int(number) for number in circular.split()]
    groups = np.array(CIFAR100_SUPERCLASSES)
    assert np.bincount(groups).tolist() == [5] * 20
    assert (groups[list(mapping)] == groups).all()
    real = corrupt(balanced(100, 10), "asymmetric", 1.0, 100, seeded(), mapping=mapping).labels
    assert real[:100].tolist() == list(mapping)
    block = corrupt(balanced(100, 10), "asymmetric_block", 1.0, 100, seeded()).labels[:100].numpy()
    assert block[:10].tolist() == [1, 2, 3, 4, 0, 6, 7, 8, 9, 5]
    assert (groups[block] == groups).sum() == 6


def test_elsewhere_the_map_is_the_next_class():
    assert asymmetric_map("digits", 4) == (1, 2, 3, 0)
    labels = balanced(4, 50)
    a = corrupt(labels, "asymmetric", 0.3, 4, seeded(), mapping=asymmetric_map("digits", 4))
    assert a.hash == corrupt(labels, "pair", 0.3, 4, seeded()).hash


@pytest.mark.parametrize(("count", "rate", "wrong"), [(250, 0.4, 100), (1000, 0.4, 400), (4000, 0.1, 400)])
def test_exact_wrong_labels_of_the_robmix_settings(count, rate, wrong):
    labels = balanced(10, count // 10)
    noisy = draw(labels, "symmetric", rate)
    assert (noisy.labels != labels).sum() == wrong
    assert torch.bincount(labels[noisy.labels != labels]).tolist() == [wrong // 10] * 10


# ---- promises


@settings(max_examples=60)
@given(
    labels=st.lists(st.integers(0, 6), min_size=1, max_size=200),
    rate=st.floats(0, 1),
    kind=st.sampled_from(["symmetric", "pair", "asymmetric", "instance"]),
    seed=st.integers(0, 1000),
)
def test_exact_counts_in_every_class(labels, rate, kind, seed):
    true = torch.tensor(labels)
    mapping = (1, 0, 2, 3, 4, 6, 5)  # classes 2, 3 and 4 map to themselves
    noisy = draw(true, kind, rate, classes=7, seed=seed, mapping=mapping)
    sizes = np.bincount(labels, minlength=7)
    if kind == "asymmetric":
        sizes[[2, 3, 4]] = 0
    flips = np.bincount(true[noisy.labels != true].numpy(), minlength=7)
    assert flips.sum() == round(rate * int(sizes.sum()))
    assert (np.abs(flips - rate * sizes) < 1 + 1e-9).all()
    up = flips > rate * sizes + 1e-9
    down = flips < rate * sizes - 1e-9
    remainder = rate * sizes - np.floor(rate * sizes)
    if up.any() and down.any():
        assert remainder[up].min() >= remainder[down].max() - 1e-8  # the largest remainders were rounded up


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kind", ["symmetric", "asymmetric", "asymmetric_block", "pair"])
def test_realised_matrix_is_that_of_the_definition(kind, exact):
    rate, each = 0.3, 4_000
    expected = torch.eye(10, dtype=torch.float64) * (1 - rate)
    if kind == "symmetric":
        expected += rate / 9 * (1 - torch.eye(10))
    else:
        targets = {
            "asymmetric": [0, 1, 0, 5, 7, 3, 6, 7, 8, 1],
            "asymmetric_block": [1, 2, 3, 4, 0, 6, 7, 8, 9, 5],
            "pair": [1, 2, 3, 4, 5, 6, 7, 8, 9, 0],
        }[kind]
        expected[torch.arange(10), targets] += rate
    got = draw(balanced(10, each), kind, rate, exact=exact).transition
    sigma = (expected * (1 - expected) / each).sqrt()
    assert ((got - expected).abs() <= 4 * sigma + 1e-12).all()
    assert got.sum(1) == pytest.approx(1)
    assert exact == (got.diagonal()[0 if kind != "asymmetric" else 2] == 0.7)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_labels_other_seed_other_labels(kind, exact):
    labels = balanced(10, 100)
    first, again, other = (draw(labels, kind, 0.4, seed=seed, exact=exact) for seed in (3, 3, 4))
    assert torch.equal(first.labels, again.labels) and first.hash == again.hash
    assert not torch.equal(first.labels, other.labels) and first.hash != other.hash
    assert torch.equal(labels, balanced(10, 100))  # the input is left as it was
    assert first.labels.dtype == torch.int64
    assert first.rate == (first.labels != labels).double().mean().item()


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_rate_0_changes_nothing_and_rate_1_everything_that_can_change(kind, exact):
    labels = balanced(10, 30)
    none = draw(labels, kind, 0.0, exact=exact)
    assert torch.equal(none.labels, labels) and none.rate == 0 and torch.equal(none.transition, torch.eye(10).double())
    if kind != "instance" or exact:  # per image, instance noise of rate 1 is about 0.92
        assert draw(labels, kind, 1.0, exact=exact).rate == (0.5 if kind == "asymmetric" else 1.0)
    assert none.hash == corrupt(labels, "none", 0, 10, seeded()).hash


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kind", ["symmetric", "asymmetric", "pair"])
def test_noise_of_a_higher_rate_contains_that_of_a_lower_one(kind, exact):
    labels = balanced(10, 25)
    previous = labels
    for rate in (0.1, 0.2, 0.25, 0.4, 0.9):
        noisy = draw(labels, kind, rate, exact=exact).labels
        changed = previous != labels
        assert torch.equal(noisy[changed], previous[changed])
        previous = noisy


@pytest.mark.parametrize("kind", ["symmetric", "asymmetric", "pair"])
def test_a_smaller_budget_has_the_noise_of_the_larger_one(kind):
    small, large = (draw(balanced(10, each), kind, 0.4, exact=False) for each in (25, 100))
    assert torch.equal(small.labels, large.labels[:250])


def test_equal_remainders_do_not_favour_the_first_classes():
    labels = balanced(10, 25)  # 10 %: 2.5 of each class
    flips = [(draw(labels, "symmetric", 0.1, seed=seed).labels != labels)[::10].sum().item() for seed in range(200)]
    assert set(flips) == {2, 3}
    assert abs(np.mean(flips) - 2.5) < 4 * (0.25 / 200) ** 0.5  # class 0


def test_rounding_errors_decide_no_ties():
    labels = torch.tensor([0] * 5 + [1] * 45)  # 70 %: 3.5 and 31.5, in floating point 31.499999999999996
    flips = [(draw(labels, "pair", 0.7, classes=2, seed=seed).labels != labels)[:5].sum().item() for seed in range(200)]
    assert abs(np.mean(flips) - 3.5) < 4 * (0.25 / 200) ** 0.5


# ---- instance-dependent noise


def test_instance_noise_rederived_image_by_image():
    labels, images = torch.randint(5, (60,), generator=seeded(1)), some_images(60)
    got = corrupt(labels, "instance", 0.4, 5, seeded(7), exact=False, images=images).labels

    generator = seeded(7)
    weights = [torch.randn(48, 5, generator=generator).double().numpy() for _ in range(5)]
    torch.rand(5, generator=generator, dtype=torch.float64)  # tie-breakers of exact counts
    rows = torch.rand(60, 3, generator=generator, dtype=torch.float64)
    chance = flip_probabilities(0.4, rows[:, 2])
    pixels = images.numpy().astype(float)
    pixels = (pixels - pixels.mean((0, 2, 3), keepdims=True)) / pixels.std((0, 2, 3), keepdims=True)
    expected = labels.tolist()
    for i, true in enumerate(labels.tolist()):
        score = pixels[i].ravel() @ weights[true]
        wrong = [k for k in range(5) if k != true]
        law = np.exp(score[wrong] - score[wrong].max())
        law /= law.sum()
        flip, where, _ = rows[i].tolist()
        if flip < chance[i]:
            expected[i] = wrong[int(np.searchsorted(law.cumsum(), where, side="right"))]
    assert got.tolist() == expected
    assert (got != labels).sum() > 10


def test_instance_noise_does_not_depend_on_the_pixels_unit():
    labels, images = balanced(10, 100), some_images(1000)
    noisy = draw(labels, "instance", 0.5, images=images)
    assert noisy.hash == draw(labels, "instance", 0.5, images=images.double() / 255).hash
    assert noisy.hash == draw(labels, "instance", 0.5, images=images.double() * 3 + 7).hash
    assert noisy.hash != draw(labels, "instance", 0.5, images=images.flip(0)).hash  # but on the image
    transition = noisy.transition.clone().fill_diagonal_(0)
    assert (transition.amax(1) / transition.sum(1)).mean() < 0.5  # not one wrong class per class, as with raw pixels


def test_instance_noise_ignores_a_constant_channel():
    images = some_images(100)
    images[:, 1] = 7
    noisy = draw(balanced(10, 10), "instance", 0.5, images=images)
    assert noisy.rate == 0.5


def test_exact_instance_noise_prefers_hard_images():
    labels = balanced(2, 20_000)
    noisy = corrupt(labels, "instance", 0.3, 2, seeded(5), images=torch.randn(40_000, 1, 1, 1, generator=seeded(1)))
    generator = seeded(5)
    for _ in range(2):
        torch.randn(1, 2, generator=generator)
    torch.rand(2, generator=generator, dtype=torch.float64)
    chance = flip_probabilities(0.3, torch.rand(40_000, 3, generator=generator, dtype=torch.float64)[:, 2])
    flipped = (noisy.labels != labels).double()
    assert flipped.sum() == 12_000
    for decile in torch.argsort(chance).chunk(10):
        wanted = chance[decile].mean()
        assert abs(flipped[decile].mean() - wanted) < 4 * (wanted * (1 - wanted) / 4_000) ** 0.5


# ---- refusals


@pytest.mark.parametrize(
    ("kind", "rate", "extra", "word"),
    [
        ("symetric", 0.2, {}, "symetric"),
        ("symmetric", 1.2, {}, "1.2"),
        ("symmetric", -0.1, {}, "-0.1"),
        ("symmetric", float("nan"), {}, "nan"),
        ("none", 0.2, {}, "takes no rate"),
        ("human", 0.2, {"annotated": balanced(10, 2)}, "takes no rate"),
        ("human", 0, {}, "20 images"),
        ("human", 0, {"annotated": balanced(10, 1)}, "20 images"),
        ("human", 0, {"annotated": balanced(10, 2) + 1}, "from 0 to 9"),
        ("pair", 0.2, {"include_true": True}, "include_true"),
        ("asymmetric", 0.2, {"mapping": None}, "mapping"),
        ("asymmetric", 0.2, {"mapping": [1, 0]}, "10 classes"),
        ("asymmetric", 0.2, {"mapping": [10] * 10}, "10 classes"),
        ("instance", 0.2, {"images": None}, "needs the images"),
        ("instance", 0.2, {"images": torch.zeros(3, 1, 2, 2)}, "20 labels"),
    ],
)
def test_refusals(kind, rate, extra, word):
    with pytest.raises(ValueError, match=word) as error:
        corrupt(balanced(10, 2), kind, rate, 10, seeded(), **extra)
    assert_one_sentence(error)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (torch.tensor([0, 1, 7]), 7),
        (torch.tensor([0, -1]), 7),
        (torch.tensor([0.0, 1.0]), 7),
        (torch.zeros(0, dtype=torch.int64), 7),
        (torch.zeros(3, 1, dtype=torch.int64), 7),
        (torch.tensor([0, 0]), 1),
    ],
)
def test_labels_that_are_none(labels, classes):
    with pytest.raises(ValueError, match=r"Noise cannot|True labels") as error:
        corrupt(labels, "symmetric", 0.2, classes, seeded())
    assert_one_sentence(error)


def test_blocks_of_five_need_a_multiple_of_five():
    with pytest.raises(ValueError, match="there are 7") as error:
        corrupt(balanced(7, 2), "asymmetric_block", 0.2, 7, seeded())
    assert_one_sentence(error)
