import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models
from torchvision.ops import StochasticDepth
from torchvision.transforms import v2

from lnl import networks
from lnl.networks import (
    Network,
    beit,
    efficientnet_lite,
    heads,
    interleave,
    preact_bottleneck,
    preact_resnet,
    statistics_frozen,
    weights,
    wide_resnet,
)
from lnl.networks.beit import BEiT
from lnl.networks.convnet import ChannelDropout
from lnl.training.learner import without_onednn

VECTORS = ("mlp", "linear")  # networks whose inputs are vectors


def parameters(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def with_classifier(name: str, classes: int = 10, channels: int = 3, size: int = 32) -> Network:
    backbone = networks.backbone(name, (channels, size, size))
    return Network(backbone, {"classifier": heads.linear(backbone.width, classes)})


@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [
        ("preact_resnet18", 10, 11_171_274),
        ("preact_resnet18", 100, 11_217_444),
        ("resnet18", 10, 11_173_962),
        ("resnet18", 100, 11_220_132),
        ("resnet18_imagenet", 10, 11_181_642),
        ("resnet34", 10, 21_282_122),
        ("resnet34", 100, 21_328_292),
        ("resnet50", 10, 23_520_842),
        ("resnet50_imagenet", 10, 23_528_522),
        ("resnet29_ieg", 10, 840_730),
        ("resnet29_ieg", 100, 863_860),
        ("co_teaching_cnn", 10, 4_434_570),
        ("co_teaching_cnn", 100, 4_446_180),
        ("wide_resnet28_2", 10, 1_467_610),
        ("wide_resnet28_2", 100, 1_479_220),
        ("wide_resnet28_10", 10, 36_479_194),
        ("wide_resnet28_10", 100, 36_536_884),
        ("wide_resnet37_2", 10, 5_929_434),
        ("wide_resnet45_2", 10, 1_877_904 + 1_290),
        ("vit_b_16", 1000, 86_567_656),
        ("swin_t", 1000, 28_288_354),
        ("convnext_tiny", 1000, 28_589_128),
        ("beit_b_16", 1000, 86_530_984),
        ("inception_resnet_v2", 1000, 55_843_464),  # 55,813,192 are published of a BatchNorm without its 30,272 scales
    ],
)
def test_parameter_counts(name: str, classes: int, count: int) -> None:
    with torch.device("meta"):
        assert parameters(with_classifier(name, classes)) == count


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "convolutions", "width", "million_products"),
    [
        ("preact_resnet18", 32, 20, 512, 555.4),
        ("resnet18", 32, 20, 512, 555.4),
        ("resnet18_imagenet", 32, 20, 512, 37.0),
        ("resnet18_imagenet", 96, 20, 512, 333.1),
        ("resnet34", 32, 36, 512, 1159.4),
        ("resnet34_imagenet", 96, 36, 512, None),
        ("resnet50", 32, 53, 2048, 1297.8),
        ("resnet50_imagenet", 96, 53, 2048, None),
        ("resnet29_ieg", 32, 31, 256, 98.0),
        ("convnet_002", 96, 5, 512, 107.8),
        ("co_teaching_cnn", 32, 9, 128, None),
        ("wide_resnet28_2", 32, 28, 128, 214.4),
        ("wide_resnet28_10", 32, 28, 640, 5243),
        ("wide_resnet37_2", 96, 37, 256, None),
        ("wide_resnet45_2", 96, 45, 128, 827.4),
        ("vit_b_16", 224, 1, 768, None),
        ("swin_t", 224, 1, 768, None),
        ("convnext_tiny", 224, 22, 768, None),
        ("vit_small_images", 8, 1, 64, None),
        ("vit_small_images", 32, 1, 64, None),
        ("swin_small_images", 32, 1, 64, None),
        ("convnext_small_images", 32, 6, 64, None),
        ("beit_b_16", 224, 1, 768, None),
        ("inception_resnet_v2", 299, 244, 1536, 13_154.3),
    ],
)
def test_layout(name: str, size: int, convolutions: int, width: int, million_products: float | None) -> None:
    """The number of multiplications of one image pins where the maps are halved."""
    with torch.device("meta"):
        network = with_classifier(name, size=size).eval()
        with FlopCounterMode(display=False) as counter:
            assert network.features(torch.empty(1, 3, size, size)).shape == (1, width)
    assert network.backbone.width == width
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == convolutions
    if million_products is not None:
        assert counter.get_total_flops() / 2e6 == pytest.approx(million_products, abs=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("size", [8, 28])
@pytest.mark.parametrize("name", [name for name in networks.names() if name not in VECTORS])
def test_any_image_size(name: str, size: int) -> None:
    resize = 32 if name in ("co_teaching_cnn", "swin_t", "convnext_tiny", "efficientnet_lite0") else None
    with torch.device("meta"):
        backbone = networks.backbone(name, (1, size, size), resize=resize).eval()
        assert backbone(torch.empty(2, 1, size, size)).shape == (2, backbone.width)


@pytest.mark.parametrize(
    ("size", "blocks", "width", "count"),
    [
        (8, 2, 512, 151_168),
        (28, 4, 512, 446_336),
        (32, 4, 512, 446_336),
        (94, 6, 512, 741_504),
        (95, 5, 512, 593_920),
        (96, 5, 512, 593_920),
        (224, 5, 128 * 36, 593_920),
    ],
)
def test_convnet_of_document_002(size: int, blocks: int, width: int, count: int) -> None:
    """Five blocks on 96 pixels; the same width where fewer fit."""
    with torch.device("meta"):
        backbone = networks.backbone("convnet_002", (3, size, size))
        assert backbone(torch.empty(2, 3, size, size)).shape == (2, width)
    assert backbone.width == width and parameters(backbone) == count
    assert sum(isinstance(module, nn.Conv2d) for module in backbone.modules()) == blocks


SMALL_IMAGES = ["vit_small_images", "swin_small_images", "convnext_small_images"]
OWN = ["small_convnet", "convnet_002", "preact_resnet18", "resnet29_ieg", "wide_resnet28_2"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*OWN, "resnet18", "wide_resnet37_2", "wide_resnet45_2", *SMALL_IMAGES])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_gradient_reaches_every_parameter(name: str, precision: torch.dtype) -> None:
    """The most copied Wide ResNet leaves two BatchNorm layers without a gradient."""
    torch.manual_seed(0)
    network = with_classifier(name, size=8).to(memory_format=torch.channels_last)
    images = torch.randn(16, 3, 8, 8).to(memory_format=torch.channels_last)
    half = precision != torch.float32
    with without_onednn() if half else nullcontext():  # as `Learner.gradients`
        with torch.autocast("cpu", precision, enabled=half):
            logits = network(images)
        functional.cross_entropy(logits.float(), torch.arange(16) % 10).backward()
    assert logits.dtype == precision
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", [*OWN, "resnet18"])
def test_memory_format_changes_nothing(name: str) -> None:
    torch.manual_seed(0)
    backbone = networks.backbone(name, (3, 8, 8))
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
        blocks = networks.backbone("wide_resnet28_2", (3, 32, 32)).blocks
        document_002 = networks.backbone("wide_resnet45_2", (3, 32, 32)).blocks
    assert [block.activated_shortcut for block in blocks] == [True] + [False] * 11
    assert [block.activated_shortcut for block in document_002] == ([True] + [False] * 4) * 4, "in each stage's first"
    assert {block.norm1.eps for block in blocks} == {1e-3} and {block.norm2.eps for block in document_002} == {1e-5}

    x = torch.randn(4, 6, 5, 5)
    activated = functional.leaky_relu(functional.batch_norm(x, None, None, training=True, eps=1e-3), 0.1)
    for inputs, outputs, first, expected in [(6, 8, True, activated), (6, 8, False, x), (6, 6, False, x)]:
        block = wide_resnet.Block(
            inputs, outputs, wide_resnet.tensorflow_norm, first=inputs != outputs, activated_shortcut=first
        )
        nn.init.zeros_(block.conv2.weight)
        shortcut = functional.conv2d(expected, block.shortcut.weight) if inputs != outputs else expected
        torch.testing.assert_close(block(x), shortcut)


def test_wide_resnet_initialisation() -> None:
    torch.manual_seed(0)
    for module in networks.backbone("wide_resnet28_2", (3, 32, 32)).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5_000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)


def test_ieg_block_activates_all_but_its_first_convolution() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 6, 5, 5)
    block = preact_bottleneck.Block(6, 3, 8, stride=2)

    def normalised(values: Tensor) -> Tensor:
        return functional.batch_norm(values, None, None, training=True)

    hidden = functional.conv2d(normalised(x), block.conv1.weight, stride=2)
    hidden = functional.conv2d(normalised(hidden).clamp_min(0), block.conv2.weight, padding=1)
    hidden = functional.conv2d(normalised(hidden).clamp_min(0), block.conv3.weight)
    torch.testing.assert_close(block(x), hidden + functional.conv2d(x, block.shortcut.weight, stride=2))
    with torch.device("meta"):
        first, second, *_ = networks.backbone("resnet29_ieg", (3, 32, 32)).blocks
    assert isinstance(first.norm1, nn.Identity) and isinstance(second.norm1, nn.BatchNorm2d)


def test_stem_for_small_images_is_initialised_as_torchvision_s() -> None:
    torch.manual_seed(0)
    weight = networks.backbone("resnet18", (3, 32, 32)).network.conv1.weight
    assert weight.shape == (64, 3, 3, 3)
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)


def test_grey_images_become_three_equal_channels() -> None:
    torch.manual_seed(0)
    backbone = networks.backbone("resnet18", (1, 8, 8)).eval()
    grey = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(backbone(grey), backbone.network(torch.cat([grey] * 3, 1)), atol=0, rtol=0)


@pytest.mark.slow
def test_nothing_is_drawn_in_training() -> None:
    """Draws from no stream of the trial would make two runs of it differ."""
    torch.manual_seed(0)
    backbone = networks.backbone("convnext_tiny", (3, 32, 32)).train()
    images = torch.randn(2, 3, 32, 32)
    state = torch.random.get_rng_state()
    torch.testing.assert_close(backbone(images), backbone(images), atol=0, rtol=0)
    assert torch.equal(torch.random.get_rng_state(), state)
    with torch.device("meta"):
        swin = networks.backbone("swin_t", (3, 32, 32))
    assert {module.p for module in swin.modules() if isinstance(module, StochasticDepth)} == {0.0}


@pytest.mark.slow
def test_dropout_draws_from_its_own_stream_and_goes_on_after_a_checkpoint() -> None:
    def make(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return networks.backbone("co_teaching_cnn", (3, 28, 28))

    first, images = make(0), torch.randn(2, 3, 28, 28)
    state = torch.random.get_rng_state()
    outputs = [first(images) for _ in range(3)]
    assert torch.equal(torch.random.get_rng_state(), state), "no draw from the global generator"
    assert not torch.equal(outputs[0], outputs[1])
    torch.testing.assert_close(make(0)(images), outputs[0], atol=0, rtol=0)
    again = make(0)
    again.load_state_dict(first.state_dict())
    torch.testing.assert_close(again(images), first(images), atol=0, rtol=0)
    torch.testing.assert_close(first.eval()(images), first(images), atol=0, rtol=0)


def test_dropout_sets_channels_to_zero_and_keeps_the_mean() -> None:
    ones = torch.ones(200, 100, 2, 2)
    one, other = (ChannelDropout(0.25, place)(ones) for place in (0, 1))
    assert one.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert torch.equal(one, one[..., :1, :1].expand_as(one)) and not torch.equal(one, other)
    assert abs((one == 0).float().mean() - 0.25) < 5 * (0.25 * 0.75 / 20_000) ** 0.5
    assert ChannelDropout(0.25, 0)(ones.bfloat16()).dtype == torch.bfloat16
    assert ChannelDropout(0.25, 0).eval()(ones) is ones


def test_images_are_resized_before_the_network() -> None:
    torch.manual_seed(0)
    for size in (8, 32, 16):
        images = torch.randn(2, 1, size, size)
        backbone = networks.backbone("small_convnet", (1, size, size), resize=16)
        expected = v2.functional.resize(images, [16, 16], antialias=size > 16)
        inner = getattr(backbone, "network", backbone)
        torch.testing.assert_close(backbone(images), inner(expected))
        assert backbone.width == 96


def test_vision_transformer_sees_224_pixels() -> None:
    with torch.device("meta"):
        assert networks.backbone("vit_b_16", (1, 8, 8)).size == networks.backbone("beit_b_16", (1, 8, 8)).size == 224
        assert networks.backbone("vit_b_16", (1, 8, 8), resize=32).size == 32
        with pytest.raises(ValueError, match=r"patches of 16 pixels, not images of 40: resize them to 224"):
            networks.backbone("vit_b_16", (1, 8, 8), resize=40)
        with pytest.raises(ValueError, match=r"beit_b_16 cuts .* not images of 40: resize them to 224"):
            networks.backbone("beit_b_16", (1, 8, 8), resize=40)


def test_patches_of_small_images() -> None:
    with torch.device("meta"):
        for size, patch in [(8, 2), (16, 2), (28, 4), (32, 4), (96, 4)]:
            vit, swin, convnext = (networks.backbone(name, (3, size, size)).network for name in SMALL_IMAGES)
            strides = (vit.conv_proj.stride, swin.features[0][0].stride, convnext.features[0][0].stride)
            assert strides == ((patch, patch),) * 3
            assert swin.features[1][0].attn.window_size == [min(4, size // patch // 2)] * 2
        with pytest.raises(ValueError, match=r"patches of 4 pixels, not images of 30: resize them to 32\."):
            networks.backbone("vit_small_images", (3, 30, 30))


def waves(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights that a formula gives, the same on every machine: of one dimension about 1/2, of more with deviation 1."""
    filled = {}
    for place, (name, tensor) in enumerate(sorted(state.items())):
        wave = torch.cos(torch.arange(tensor.numel(), dtype=torch.float64) * (1 + place / 7)).reshape(tensor.shape)
        filled[name] = (wave * (3 / tensor[0].numel()) ** 0.5 if tensor.ndim > 1 else 0.5 + wave / 2).to(tensor.dtype)
    return filled


def beit_of(state: Mapping[str, Tensor]) -> BEiT:
    """A narrow BEiT of two blocks for images of 48 pixels, with these published weights."""
    network = BEiT(48, 24, 2, 3).eval()
    network.load_state_dict(beit.renamed(state))
    return network


SINE = torch.sin(torch.arange(3 * 48 * 48, dtype=torch.float64) / 5).reshape(1, 3, 48, 48).float()


@pytest.mark.parametrize(
    ("shared", "recorded"),
    [
        (False, [4.9932, 1.2331, 0.0357, 0.6587, 0.6707, -0.3552, -0.0787, 0.9449]),
        (True, [4.5845, 0.0961, 0.7466, -0.0220, 0.1382, 0.6262, -0.0415, 0.7153]),
    ],
)
def test_beit_computes_what_the_published_code_does(shared: bool, recorded: list[float]) -> None:
    """Recorded: features by timm 1.0.31, of the same weights, with a table of biases a block or one for all."""
    state = BEiT(48, 24, 2, 3).state_dict()
    if shared:
        state = {name: tensor for name, tensor in state.items() if not name.endswith("bias_table")}
        state["rel_pos_bias.relative_position_bias_table"] = torch.zeros(28, 3)
    with torch.no_grad():
        features = beit_of(waves(state))(SINE)[0]
    torch.testing.assert_close(features[::3], torch.tensor(recorded), atol=1e-4, rtol=0)


def test_beit_s_attention_by_its_formula() -> None:
    """softmax(q·k / √d + bias of the relative position) v, with no bias of the keys: eq. of Bao et al., in numpy."""
    torch.manual_seed(0)
    side, heads, depth = 3, 2, 4
    attention = beit.Attention(heads * depth, heads, side).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    tokens = torch.randn(2, 1 + side**2, heads * depth, dtype=torch.float64)
    weights = {name: parameter.detach().numpy() for name, parameter in attention.named_parameters()}
    table, places = weights["relative_position_bias_table"], [(row, col) for row in range(side) for col in range(side)]

    def bias(query: int, key: int) -> np.ndarray:
        if 0 in (query, key):
            return table[{(True, False): 25, (False, True): 26, (True, True): 27}[query == 0, key == 0]]
        (row, col), (other_row, other_col) = places[query - 1], places[key - 1]
        return table[(row - other_row + side - 1) * (2 * side - 1) + col - other_col + side - 1]

    biases = np.array([[bias(query, key) for key in range(1 + side**2)] for query in range(1 + side**2)])
    query, key, value = np.split(tokens.numpy() @ weights["qkv.weight"].T, 3, axis=-1)
    query, value = query + weights["q_bias"], value + weights["v_bias"]
    mixed = []
    for head in range(heads):
        part = slice(head * depth, (head + 1) * depth)
        scores = query[..., part] @ key[..., part].transpose(0, 2, 1) / depth**0.5 + biases[..., head]
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        mixed.append(shares / shares.sum(-1, keepdims=True) @ value[..., part])
    expected = np.concatenate(mixed, -1) @ weights["proj.weight"].T + weights["proj.bias"]
    np.testing.assert_allclose(attention(tokens).detach().numpy(), expected, rtol=1e-10)


def test_beit_without_a_bias_is_torch_s_attention() -> None:
    torch.manual_seed(0)
    attention, reference = beit.Attention(12, 3, 2), nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(attention.qkv.weight)
        reference.out_proj.load_state_dict(attention.proj.state_dict())
        reference.in_proj_bias.copy_(
            torch.cat([attention.q_bias.normal_(), torch.zeros(12), attention.v_bias.normal_()])
        )
    tokens = torch.randn(2, 5, 12)
    torch.testing.assert_close(attention(tokens), reference(tokens, tokens, tokens)[0])


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_gradient_reaches_every_parameter_of_beit(precision: torch.dtype) -> None:
    network = beit_of(waves(BEiT(48, 24, 2, 3).state_dict()))
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        features = network(SINE)
    (features.float() * torch.arange(24)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def in_transformers_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict as Hugging Face's transformers names and cuts it."""
    named = {}
    for name, tensor in state.items():
        name = re.sub(r"^blocks\.", "beit.encoder.layer.", name)
        name = re.sub(r"^patch_embed\.proj\.", "beit.embeddings.patch_embeddings.projection.", name)
        name = re.sub(r"^(cls|mask)_token", r"beit.embeddings.\1_token", name)
        name = re.sub(r"^fc_norm\.", "beit.pooler.layernorm.", name)
        name = re.sub(r"^rel_pos_bias\.", "beit.encoder.relative_position_bias.", name)
        name = re.sub(r"\.gamma_", ".lambda_", name)
        name = re.sub(r"\.norm1\.", ".layernorm_before.", name)
        name = re.sub(r"\.norm2\.", ".layernorm_after.", name)
        name = re.sub(r"\.attn\.proj\.", ".attention.output.dense.", name)
        name = re.sub(r"\.mlp\.fc1\.", ".intermediate.dense.", name)
        name = re.sub(r"\.mlp\.fc2\.", ".output.dense.", name)
        name = re.sub(r"\.attn\.relative", ".attention.attention.relative_position_bias.relative", name)
        name = re.sub(r"\.attn\.q_bias", ".attention.attention.query.bias", name)
        name = re.sub(r"\.attn\.v_bias", ".attention.attention.value.bias", name)
        if name.endswith("qkv.weight"):
            prefix = name.replace("attn.qkv.weight", "attention.attention.")
            parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
            named |= {f"{prefix}{part}.weight": third for part, third in parts}
        else:
            named[name] = tensor
    return named


def test_beit_reads_published_files_under_both_names(tmp_path: Path) -> None:
    """A file of the authors, with its wrapping and the parts of pre-training, and one of transformers."""
    with torch.device("meta"):
        own = networks.backbone("beit_b_16", (3, 224, 224)).state_dict()
    tables = [name for name in own if name.endswith("bias_table")]
    assert (own[tables[0]].shape, len(tables)) == ((27 * 27 + 3, 12), 12)
    of_pre_training = {name: tensor for name, tensor in own.items() if name not in tables and "fc_norm" not in name}
    of_pre_training |= {
        "rel_pos_bias.relative_position_bias_table": own[tables[0]],
        "rel_pos_bias.relative_position_index": torch.zeros(197, 197, dtype=torch.int64),
        "mask_token": own["cls_token"],
        "norm.weight": own["fc_norm.weight"],
        "norm.bias": own["fc_norm.bias"],
        "lm_head.weight": torch.empty(8192, 768, device="meta"),
    }
    fine_tuned = own | {
        "blocks.3.attn.relative_position_index": torch.zeros(197, 197, dtype=torch.int64),
        "head.weight": torch.empty(1000, 768, device="meta"),
    }
    for published in (of_pre_training, fine_tuned, in_transformers_names(of_pre_training | fine_tuned)):
        shapes = {
            name: tensor.shape for name, tensor in beit.renamed(published).items() if not name.startswith("head.")
        }
        assert shapes == {name: tensor.shape for name, tensor in own.items()}

    path, state = str(tmp_path / "beit.pth"), waves(BEiT(48, 24, 2, 3).state_dict())
    torch.save({"model": state}, path)
    read = weights.read(path)
    with torch.no_grad():
        torch.testing.assert_close(beit_of(in_transformers_names(read))(SINE), beit_of(state)(SINE), atol=0, rtol=0)
    assert not (beit.renamed({"cls_token": state["cls_token"]})["fc_norm.weight"] != 1).any()


def test_efficientnet_lite0_computes_what_the_published_code_does() -> None:
    """Recorded: features by efficientnet_lite_pytorch 0.1.0 with these weights, whose state dict has the same order."""
    backbone = networks.backbone("efficientnet_lite0", (3, 64, 64)).eval()
    state = {}
    for place, (name, tensor) in enumerate(backbone.state_dict().items()):
        waves = torch.cos(torch.arange(tensor.numel(), dtype=torch.float64) * (1 + place / 7)).reshape(tensor.shape)
        if tensor.ndim > 1:
            waves = waves * (3 / tensor[0].numel()) ** 0.5
        elif tensor.ndim:
            waves = (1 + waves / 2) if name.endswith(("weight", "var")) else waves / 2
        state[name] = waves.to(tensor.dtype)
    backbone.load_state_dict(state)
    images = torch.sin(torch.arange(3 * 64 * 64, dtype=torch.float64) / 5).reshape(1, 3, 64, 64).float()
    with torch.no_grad():
        features = backbone(images)[0]
    recorded = torch.tensor([0.40921, 0.0, 0.25429, 0.0, 0.0, 0.01971, 0.0, 0.65401])
    torch.testing.assert_close(features[::160], recorded, atol=2e-5, rtol=0)


def test_efficientnet_lite0_reads_the_names_of_the_published_weights(tmp_path: Path) -> None:
    published = {
        "_conv_stem.weight": "stem.convolution.weight",
        "_bn0.running_var": "stem.norm.running_var",
        "_blocks.0._depthwise_conv.weight": "blocks.0.depthwise.convolution.weight",
        "_blocks.15._bn0.bias": "blocks.15.expand.norm.bias",
        "_blocks.15._bn1.weight": "blocks.15.depthwise.norm.weight",
        "_blocks.15._bn2.weight": "blocks.15.project.norm.weight",
        "_conv_head.weight": "head.convolution.weight",
        "_bn1.bias": "head.norm.bias",
    }
    renamed = efficientnet_lite.renamed(dict.fromkeys([*published, "_fc.bias"], torch.zeros(1)))
    assert list(renamed) == [*published.values(), "fc.bias"]
    with torch.device("meta"):
        own = networks.backbone("efficientnet_lite0", (3, 32, 32)).state_dict()
    assert set(published.values()) <= set(own)


def test_networks_of_vectors() -> None:
    mlp, linear = (networks.backbone(name, (20,)) for name in VECTORS)
    vectors = torch.randn(3, 20)
    assert (mlp.width, linear.width, parameters(mlp), parameters(linear)) == (512, 20, 512 * 21, 0)
    assert linear(vectors) is vectors
    expected = (vectors @ mlp.hidden.weight.T + mlp.hidden.bias).clamp(min=0)
    torch.testing.assert_close(mlp(vectors), expected)


def test_networks_refuse_the_other_kind_of_input(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"small_convnet takes images, and the data set has vectors: choose mlp or lin"
    ):
        networks.backbone("small_convnet", (20,))
    with pytest.raises(
        ValueError, match=r"mlp takes vectors, and the data set has images: choose one of small_convnet"
    ):
        networks.backbone("mlp", (3, 8, 8))
    with pytest.raises(ValueError, match="resize is for images, and the data set has vectors: leave it out"):
        networks.backbone("mlp", (20,), resize=32)
    with pytest.raises(ValueError, match="no ImageNet weights for linear"):
        networks.backbone("linear", (20,), weights="imagenet")
    path = str(tmp_path / "weights.pt")
    torch.save(networks.backbone("mlp", (20,)).state_dict(), path)
    networks.backbone("mlp", (20,), weights=path)
    with pytest.raises(ValueError, match=r"of another network: hidden.weight is 512 × 20 there and 512 × 21 here"):
        networks.backbone("mlp", (21,), weights=path)


def test_bad_names_and_sizes_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"'resnet' is unknown: choose one of small_convnet, convnet_002, co_teaching_"
    ):
        networks.backbone("resnet", (3, 32, 32))
    for name, size, smallest in [("preact_resnet18", 7, 8), ("co_teaching_cnn", 27, 28), ("swin_t", 31, 32)]:
        sentence = f"{size} × {size} pixels are too small for {name}: resize them to at least {smallest} pixels"
        with pytest.raises(ValueError, match=sentence):
            networks.backbone(name, (3, size, size))
        with torch.device("meta"):
            networks.backbone(name, (3, size, size), resize=smallest)


# -------------------------------------------------------------------------------------------------------------- weights


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A network of torchvision, with its head, that somebody trained."""
    torch.manual_seed(7)
    network = models.resnet18()
    network.bn1.running_mean.normal_()
    return network.eval()


def test_weights_of_torchvision_from_a_file(trained: nn.Module, tmp_path: Path) -> None:
    path = str(tmp_path / "resnet18.pth")
    torch.save(trained.state_dict(), path)
    backbone = networks.backbone("resnet18_imagenet", (3, 32, 32), weights=path).eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(trained.fc(backbone(images)), trained(images))
    resized = networks.backbone("resnet18_imagenet", (1, 8, 8), weights=path, resize=32).eval()
    torch.testing.assert_close(resized.network(images), backbone(images), atol=0, rtol=0)


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t", "convnext_tiny"])
def test_only_the_head_of_a_file_is_left_out(name: str) -> None:
    with torch.device("meta"):
        state = models.get_model(name).state_dict()
        backbone = networks.backbone(name, (3, 224, 224))
        weights.load(backbone.network, state, "a file")
    heads_only = [key for key in state if key not in backbone.network.state_dict()]
    assert len(heads_only) == 2 and all(state[key].shape[0] == 1000 for key in heads_only)


@pytest.mark.parametrize("name", OWN)
def test_weights_of_our_own_networks_from_a_file(name: str, tmp_path: Path) -> None:
    path = str(tmp_path / "weights.pt")
    torch.manual_seed(0)
    first, images = networks.backbone(name, (1, 8, 8)).eval(), torch.randn(2, 1, 8, 8)
    torch.save(first.state_dict(), path)
    second = networks.backbone(name, (1, 8, 8), weights=path).eval()
    torch.testing.assert_close(second(images), first(images), atol=0, rtol=0)


def test_weights_from_a_file_of_safetensors(tmp_path: Path) -> None:
    path = str(tmp_path / "weights.safetensors")
    first = networks.backbone("small_convnet", (1, 8, 8))
    save_file(first.state_dict(), path)
    second = networks.backbone("small_convnet", (1, 8, 8), weights=path).state_dict()
    assert all(torch.equal(second[name], tensor) for name, tensor in first.state_dict().items())
    Path(path).write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"weights.safetensors cannot be read \(SafetensorError\)"):
        networks.backbone("small_convnet", (1, 8, 8), weights=path)


def test_bad_weights_are_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    good = networks.backbone("small_convnet", (1, 8, 8)).state_dict()

    def refused(sentence: str, name: str = "small_convnet") -> None:
        with pytest.raises(ValueError, match=sentence) as error:
            networks.backbone(name, (1, 8, 8), weights=str(path))
        assert "\n" not in str(error.value)

    refused(r"weights .*weights.pt cannot be read \(FileNotFoundError\): give the path of a file that torch.save")
    torch.save(good, path)
    path.write_bytes(path.read_bytes()[:-500])
    refused(r"cannot be read \(RuntimeError\)")
    for content in (b"", b"not a state dict at all"):
        path.write_bytes(content)
        refused("cannot be read")
    for content in ([1, 2], {"epoch": 3, "state_dict": good}):
        torch.save(content, path)
        refused("are no state dict: write them by torch.save")
    torch.save({key: value for key, value in good.items() if key != "layers.4.weight"}, path)
    refused(r"are of another network: layers\.4\.weight is missing there\.")
    torch.save(good | {"layers.0.weight": torch.zeros(24, 3, 3, 3)}, path)
    refused(r"layers\.0\.weight is 24 × 3 × 3 × 3 there and 24 × 1 × 3 × 3 here")
    torch.save(good | {"fc.weight": torch.zeros(1), "head.bias": torch.zeros(1)}, path)
    networks.backbone("small_convnet", (1, 8, 8), weights=str(path))
    torch.save(good | {"fc.weight": torch.zeros(1), "extra.weight": torch.zeros(1)}, path)
    refused(r"extra\.weight does not exist here")


def test_weights_of_the_other_stem_are_refused(trained: nn.Module, tmp_path: Path) -> None:
    path = str(tmp_path / "resnet18.pth")
    torch.save(trained.state_dict(), path)
    with pytest.raises(ValueError, match=r"conv1\.weight is 64 × 3 × 7 × 7 there and 64 × 3 × 3 × 3 here"):
        networks.backbone("resnet18", (3, 32, 32), weights=path)
    for name in ("resnet18", "small_convnet"):
        with pytest.raises(ValueError, match=f"no ImageNet weights for {name}: choose one of resnet18_imagenet, "):
            networks.backbone(name, (3, 32, 32), weights="imagenet")


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder behind a server on this machine from which torchvision gets its ResNet-18."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(QuietHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        models.ResNet18_Weights.IMAGENET1K_V1.value, "url", f"http://127.0.0.1:{server.server_port}/resnet18.pth"
    )
    yield folder
    server.shutdown()
    thread.join()
    server.server_close()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.slow
def test_imagenet_weights_are_downloaded_once(
    trained: nn.Module, served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(trained.state_dict(), served / "unnamed.pth")
    content = (served / "unnamed.pth").read_bytes()
    name = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (served / name).write_bytes(content)
    value = models.ResNet18_Weights.IMAGENET1K_V1.value
    monkeypatch.setattr(value, "url", value.url.replace("resnet18.pth", name))
    images = torch.randn(2, 3, 32, 32)
    for _ in range(2):
        backbone = networks.backbone("resnet18_imagenet", (3, 32, 32), weights="imagenet").eval()
        torch.testing.assert_close(trained.fc(backbone(images)), trained(images))
        (served / name).unlink(missing_ok=True)


def test_imagenet_weights_that_cannot_be_had(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(reason: str) -> None:
        sentence = (
            f"ImageNet weights of resnet18 cannot be downloaded .*{reason}.*: fetch the file elsewhere and give its"
        )
        with pytest.raises(ValueError, match=sentence):
            networks.backbone("resnet18_imagenet", (3, 32, 32), weights="imagenet")

    refused("404")
    value = models.ResNet18_Weights.IMAGENET1K_V1.value
    (served / "resnet18-00000000.pth").write_bytes(b"half a file")
    monkeypatch.setattr(value, "url", value.url.replace("resnet18.pth", "resnet18-00000000.pth"))
    refused("invalid hash value")
    monkeypatch.setattr(value, "url", "http://127.0.0.1:9/resnet18.pth")
    refused("URLError")


def test_heads_share_the_backbone() -> None:
    torch.manual_seed(0)
    backbone = networks.backbone("small_convnet", (1, 8, 8))
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


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (0, 0),
        (1, 12 * 5 + 5),
        (2, 12 * 20 + 2 * 20 + 20 * 5 + 5),
        (3, 12 * 20 + 20 * 20 + 2 * 2 * 20 + 20 * 5 + 5),
    ],
)
def test_head_of_several_layers(layers: int, expected: int) -> None:
    """No bias before BatchNorm, which would take it out again."""
    head = heads.mlp(12, 20, 5, layers)
    assert parameters(head) == expected
    assert head(torch.randn(4, 12)).shape == (4, 5 if layers else 12)


@pytest.mark.slow
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
    backbone = networks.backbone("small_convnet", (1, 8, 8))
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


@given(size=st.integers(1, 20), count=st.integers(1, 6))
def test_interleave_twice_is_identity(size: int, count: int) -> None:
    groups = list(torch.arange(2 * size * count).reshape(count, size, 2))
    once = interleave(groups)
    assert torch.equal(torch.cat(once).sort(0).values, torch.cat(groups))  # nothing lost, nothing doubled
    assert torch.equal(torch.stack(interleave(once)), torch.stack(groups))


def test_interleave_refuses_unequal_groups() -> None:
    with pytest.raises(ValueError, match=r"must have one length, not \[4, 3\]"):
        interleave([torch.zeros(4), torch.zeros(3)])
