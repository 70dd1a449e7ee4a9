import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from lnl import networks
from lnl.networks import Network, heads, interleave, preact_resnet, statistics_frozen, wide_resnet


def parameters(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def with_classifier(name: str, classes: int = 10, channels: int = 3, size: int = 32) -> Network:
    backbone = networks.backbone(name, channels, size)
    return Network(backbone, {"classifier": heads.linear(backbone.width, classes)})


@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [
        ("preact_resnet18", 10, 11_171_274),
        ("preact_resnet18", 100, 11_217_444),
        ("wide_resnet28_2", 10, 1_467_610),
        ("wide_resnet28_2", 100, 1_479_220),
        ("wide_resnet28_10", 10, 36_479_194),
        ("wide_resnet28_10", 100, 36_536_884),
    ],
)
def test_parameter_counts(name: str, classes: int, count: int) -> None:
    with torch.device("meta"):
        assert parameters(with_classifier(name, classes)) == count


@pytest.mark.parametrize(
    ("name", "convolutions", "width", "million_products"),
    [("preact_resnet18", 20, 512, 555.4), ("wide_resnet28_2", 28, 128, 214.4), ("wide_resnet28_10", 28, 640, 5243)],
)
def test_layout(name: str, convolutions: int, width: int, million_products: float) -> None:
    """The number of multiplications of one 32 × 32 image pins where the maps are halved."""
    with torch.device("meta"):
        network = with_classifier(name)
        with FlopCounterMode(display=False) as counter:
            assert network.features(torch.empty(1, 3, 32, 32)).shape == (1, width)
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == convolutions
    assert counter.get_total_flops() / 2e6 == pytest.approx(million_products, abs=0.5)


@pytest.mark.parametrize("size", [8, 28, 32, 96])
@pytest.mark.parametrize("name", networks.names())
def test_any_image_size(name: str, size: int) -> None:
    with torch.device("meta"):
        backbone = networks.backbone(name, 1, size)
        assert backbone(torch.empty(2, 1, size, size)).shape == (2, backbone.width)


@pytest.mark.parametrize("name", ["small_convnet", "preact_resnet18", "wide_resnet28_2"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_gradient_reaches_every_parameter(name: str, precision: torch.dtype) -> None:
    """The most copied Wide ResNet leaves two BatchNorm layers without a gradient."""
    torch.manual_seed(0)
    network = with_classifier(name, size=8).to(memory_format=torch.channels_last)
    images = torch.randn(16, 3, 8, 8).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        logits = network(images)
    assert logits.dtype == precision
    functional.cross_entropy(logits.float(), torch.arange(16) % 10).backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", ["small_convnet", "preact_resnet18", "wide_resnet28_2"])
def test_memory_format_changes_nothing(name: str) -> None:
    torch.manual_seed(0)
    backbone = networks.backbone(name, 3, 8)
    images = torch.randn(8, 3, 8, 8)
    expected = backbone(images)
    layout = torch.channels_last
    actual = backbone.to(memory_format=layout)(images.to(memory_format=layout))
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_preact_shortcut_is_activated() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 6, 5, 5)
    block = preact_resnet.Block(6, 6, stride=1)
    nn.init.zeros_(block.conv2.weight)
    torch.testing.assert_close(block(x), functional.batch_norm(x, None, None, training=True).clamp_min(0))


def test_wide_resnet_shortcut_is_activated_in_the_first_block_only() -> None:
    torch.manual_seed(0)
    with torch.device("meta"):
        blocks = networks.backbone("wide_resnet28_2", 3, 32).blocks
    assert [block.activated_shortcut for block in blocks] == [True] + [False] * 11

    x = torch.randn(4, 6, 5, 5)
    activated = functional.leaky_relu(functional.batch_norm(x, None, None, training=True, eps=1e-3), 0.1)
    for inputs, outputs, first, expected in [(6, 8, True, activated), (6, 8, False, x), (6, 6, False, x)]:
        block = wide_resnet.Block(inputs, outputs, activated_shortcut=first)
        nn.init.zeros_(block.conv2.weight)
        shortcut = functional.conv2d(expected, block.shortcut.weight) if inputs != outputs else expected
        torch.testing.assert_close(block(x), shortcut)


def test_wide_resnet_initialisation() -> None:
    torch.manual_seed(0)
    for module in networks.backbone("wide_resnet28_2", 3, 32).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5_000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)


def test_bad_names_and_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'resnet18' is unknown: choose one of small_convnet, preact_resnet18, wide_"):
        networks.backbone("resnet18", 3, 32)
    with pytest.raises(ValueError, match=r"7 × 7 pixels are too small: resize them to at least 8"):
        networks.backbone("preact_resnet18", 3, 7)


def test_heads_share_the_backbone() -> None:
    torch.manual_seed(0)
    backbone = networks.backbone("small_convnet", 1, 8)
    network = Network(
        backbone, {"classifier": heads.linear(backbone.width, 10), "projection": heads.projection(backbone.width)}
    )
    images = torch.randn(4, 1, 8, 8)
    features = network.features(images)
    torch.testing.assert_close(network(images), network.heads["classifier"](features))
    torch.testing.assert_close(network(images, "projection"), network.heads["projection"](features))
    assert network(images).shape == (4, 10)
    assert network(images, "projection").shape == (4, 128)
    assert parameters(network) == parameters(backbone, *network.heads.values())


def test_projection_head() -> None:
    head = heads.projection(128)
    assert parameters(head) == 33_024
    first, activation, second = head
    assert isinstance(first, nn.Linear) and isinstance(activation, nn.ReLU) and isinstance(second, nn.Linear)


def test_small_convnet_learns_digits() -> None:
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.as_tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16 - 0.3
    labels = torch.as_tensor(digits.target)
    order = torch.randperm(len(images))
    train, test = order[360:], order[:360]
    network = with_classifier("small_convnet", channels=1, size=8)
    epochs, batch = 12, 128
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for rows in train[torch.randperm(len(train))].split(batch):
            loss = functional.cross_entropy(network(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        decay.step()
    network.eval()
    with torch.no_grad():
        accuracy = (network(images[test]).argmax(1) == labels[test]).float().mean()
    assert accuracy > 0.97


def buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


@pytest.mark.parametrize("training", [True, False])
def test_statistics_frozen(training: bool) -> None:
    torch.manual_seed(0)
    backbone = networks.backbone("small_convnet", 1, 8)
    images = 3 + torch.randn(16, 1, 8, 8)
    untouched = buffers(backbone)
    backbone.train(training)
    with statistics_frozen(backbone):
        frozen = backbone(images)
    assert len(untouched) == 9
    torch.testing.assert_close(buffers(backbone), untouched, atol=0, rtol=0)
    assert all(module.training == training for module in backbone.modules())

    torch.testing.assert_close(backbone.train()(images), frozen, atol=0, rtol=0)  # by the statistics of the batch
    for name, buffer in backbone.named_buffers():
        assert not torch.equal(buffer, untouched[name]), name  # and outside the block they are tracked again


def test_statistics_are_tracked_again_after_an_exception() -> None:
    layer = nn.BatchNorm2d(3)
    with pytest.raises(RuntimeError, match="interrupted"), statistics_frozen(layer):
        assert not layer.track_running_stats
        raise RuntimeError("interrupted")
    assert layer.track_running_stats


def rows(groups: list[Tensor]) -> list[list[str]]:
    return [[f"{'xuvwyz'[value // 100]}{value % 100}" for value in group.tolist()] for group in groups]


def test_interleave_known_answers() -> None:
    assert rows(interleave([torch.arange(5) + 100 * group for group in range(3)])) == [
        ["x0", "u1", "u2", "v3", "v4"],
        ["u0", "x1", "x2", "u3", "u4"],
        ["v0", "v1", "v2", "x3", "x4"],
    ]
    for size, count, offsets in [(64, 3, [0, 21, 42, 64]), (7, 2, [0, 3, 7]), (6, 4, [0, 1, 2, 4, 6])]:
        mixed = interleave([torch.full((size,), group) for group in range(count)])[0]
        starts = [int((mixed == group).nonzero()[0]) for group in range(count)]
        assert [*starts, size] == offsets


@settings(deadline=None)
@given(size=st.integers(1, 20), count=st.integers(1, 6))
def test_interleave_twice_is_identity(size: int, count: int) -> None:
    groups = list(torch.arange(2 * size * count).reshape(count, size, 2))
    once = interleave(groups)
    assert torch.equal(torch.cat(once).sort(0).values, torch.cat(groups))  # nothing lost, nothing doubled
    assert torch.equal(torch.stack(interleave(once)), torch.stack(groups))


def test_interleave_refuses_unequal_groups() -> None:
    with pytest.raises(ValueError, match=r"must have one length, not \[4, 3\]"):
        interleave([torch.zeros(4), torch.zeros(3)])
