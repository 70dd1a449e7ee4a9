"""What `precision="auto"` becomes, and in which convolutions oneDNN's bfloat16 gradient is trusted."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from lnl import networks
from lnl.training import precision
from lnl.training.learner import Learner, NetworkBuilder, Optimizer
from lnl.training.precision import all_positions_meet_the_image, computed
from lnl.training.streams import Streams
from lnl.trial.config import Trial
from lnl.trial.run import run

CPU = torch.device("cpu")
# Of malloc.h: new memory is filled with the complement, 0x7f, which is 3e38 in both precisions.
M_PERTURB, HUGE = -6, 0x80
checked_kernels = pytest.mark.skipif(
    not precision.has_checked_kernels(), reason="this CPU's kernels were not looked at"
)


@contextmanager
def new_memory_is_huge() -> Iterator[None]:
    """Within it whatever is read before it is written is 3.4e38."""
    mallopt = ctypes.CDLL("libc.so.6").mallopt
    mallopt(M_PERTURB, HUGE)
    try:
        assert torch.empty(1000)[500] > 3e38
        yield
    finally:
        mallopt(M_PERTURB, 0)


def error(convolution: nn.Conv2d, size: tuple[int, int], batch: int) -> float:
    """Relative error of the gradient of the weights in bfloat16, NaN and infinity included."""
    images = torch.randn(batch, convolution.in_channels, *size).to(memory_format=torch.channels_last)
    gradients = []
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            outputs = convolution(images)
        drawn = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1)).to(outputs)
        gradients.append(torch.autograd.grad(outputs, convolution.weight, drawn)[0])
    return float((gradients[1] - gradients[0]).norm() / gradients[0].norm())


def is_right(convolution: nn.Module, shape: tuple[int, int, int]) -> bool:
    return computed("bfloat16", convolution, shape, CPU)[1]


@checked_kernels
@pytest.mark.slow
def test_gradients_that_are_trusted_read_no_memory_that_nobody_wrote() -> None:
    """In every trusted shape the gradient is right though all new memory is huge; in others it is not always."""
    torch.manual_seed(0)
    doubted = []
    kernels = [(1, 1), (1, 2), (3, 1), (3, 2), (5, 1), (5, 2), (7, 2)]  # size, stride
    sizes = [(1, 1), (2, 1), (2, 2), (3, 3), (4, 4), (7, 7), (8, 8), (16, 16), (32, 32)]
    with new_memory_is_huge():
        for (channels, filters), (kernel, stride), size, batch in itertools.product(
            [(3, 32), (16, 16), (32, 64), (128, 256)], kernels, sizes, [2, 16]
        ):
            convolution = nn.Conv2d(channels, filters, kernel, stride, kernel // 2, bias=False)
            convolution.to(memory_format=torch.channels_last)
            about = (channels, filters, kernel, stride, size, batch)
            if is_right(convolution, (channels, *size)):
                assert error(convolution, size, batch) < 0.02, about
            elif kernel > 1:  # of a single pixel it may read beyond its images, which can end a process
                doubted.append(error(convolution, size, batch))
    assert max(doubted) > 1 or any(wrong != wrong for wrong in doubted), "torch is mended: trust these, too"


def test_a_position_that_meets_padding_alone() -> None:
    assert all_positions_meet_the_image(size=32, kernel=3, stride=1, padding=1)
    assert all_positions_meet_the_image(size=2, kernel=3, stride=1, padding=1)
    assert not all_positions_meet_the_image(size=1, kernel=3, stride=1, padding=1)  # its first position is at -1 alone
    assert not all_positions_meet_the_image(size=2, kernel=3, stride=2, padding=1)
    assert all_positions_meet_the_image(size=3, kernel=3, stride=2, padding=1)
    assert all_positions_meet_the_image(size=1, kernel=1, stride=2, padding=0)


def test_convolutions_that_are_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_checked_kernels", lambda: True)
    assert is_right(nn.Conv2d(16, 16, 3, padding=1), (16, 8, 8))
    assert not is_right(nn.Conv2d(16, 16, 3, padding=1), (16, 1, 8))
    assert not is_right(nn.Conv2d(16, 16, 3, padding=2, dilation=2), (16, 8, 8))
    assert not is_right(nn.ConvTranspose2d(16, 16, 3), (16, 8, 8))
    assert is_right(nn.Conv2d(16, 16, 1, stride=2), (16, 8, 8))
    assert not is_right(nn.Conv2d(3, 16, 1, stride=2), (3, 8, 8))
    assert is_right(networks.backbone("wide_resnet37_2", (3, 32, 32)), (3, 32, 32))
    assert not is_right(networks.backbone("wide_resnet37_2", (3, 8, 8)), (3, 8, 8))
    monkeypatch.setattr(precision, "has_checked_kernels", lambda: False)
    assert not is_right(nn.Conv2d(16, 16, 3, padding=1), (16, 8, 8))


def test_auto_is_bfloat16_for_large_networks_on_hardware_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {("small_convnet", 8): "float32", ("small_convnet", 32): "bfloat16", ("wide_resnet28_2", 32): "bfloat16"}
    monkeypatch.setattr(precision, "has_checked_kernels", lambda: True)
    for (name, size), expected in cases.items():
        shape = (3, size, size)
        assert computed("auto", networks.backbone(name, shape), shape, CPU) == (expected, True), name
    tiny = networks.backbone("wide_resnet37_2", (3, 8, 8))
    assert computed("auto", tiny, (3, 8, 8), CPU) == ("float32", True)  # where it would compute without oneDNN
    mlp = networks.backbone("mlp", (512,))
    assert computed("auto", mlp, (512,), CPU) == ("float32", True)
    monkeypatch.setattr(precision, "has_checked_kernels", lambda: False)
    large = networks.backbone("wide_resnet28_2", (3, 32, 32))
    assert computed("auto", large, (3, 32, 32), CPU) == ("float32", True)
    assert computed("float32", large, (3, 32, 32), CPU) == ("float32", True)


def test_multiplications_are_counted() -> None:
    """Known answer: 8 × 8 outputs of 4 filters of 3 × 3 × 3, then 256 numbers to 10."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 10))
    assert precision.multiplications(network, (3, 8, 8), CPU) == 64 * 4 * 27 + 256 * 10


def test_a_network_that_is_looked_at_stays_as_it_is() -> None:
    network = networks.backbone("small_convnet", (3, 32, 32)).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    computed("auto", network, (3, 32, 32), CPU)
    assert network.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(("has_kernels", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_what_auto_became_is_in_the_row(monkeypatch: pytest.MonkeyPatch, has_kernels: bool, expected: str) -> None:
    monkeypatch.setattr(precision, "has_checked_kernels", lambda: has_kernels)
    monkeypatch.setattr(precision, "WORTH_IT", 100_000)
    trial = Trial(
        method="supervised", dataset="digits", network="small_convnet", labels=50, epochs=1, steps=1, precision="auto"
    )
    (row,) = run(trial)
    assert row.facts["computed_in"] == expected


@checked_kernels
@pytest.mark.slow
def test_what_new_memory_holds_is_no_part_of_a_networks_gradient() -> None:
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def gradient(asked: precision.Precision) -> Tensor:
        builder = NetworkBuilder("wide_resnet28_2", (3, 32, 32), CPU, asked, Streams(0))
        learner = Learner.classifier(builder, Optimizer(kind="sgd"), 10, 10)
        assert learner.by_onednn and learner.precision == asked
        _, found = learner.gradients(
            lambda network, batch: nn.functional.cross_entropy(network(batch).float(), torch.arange(16) % 10), images
        )
        return torch.cat([gradient.flatten() for gradient in found if gradient is not None])

    expected = gradient("bfloat16")
    with new_memory_is_huge():
        assert torch.equal(gradient("bfloat16"), expected)
    assert nn.functional.cosine_similarity(gradient("float32"), expected, dim=0) > 0.95
