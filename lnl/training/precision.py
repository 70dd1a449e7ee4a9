"""The numbers in which a network's passes are computed: what `auto` becomes, and where a CPU's bfloat16 is right.

With torch 2.14 oneDNN, PyTorch's fast kernels on CPUs, leaves some of a bfloat16 gradient unwritten: of a filter's
positions that meet nothing but padding, as in a 3 × 3 convolution with stride 2 of a single pixel, and of dilated
convolutions; and it reads past the images of 1 × 1 convolutions with a stride and fewer than 16 channels.  What is in
that memory is then part of the gradient.  Found by filling all newly allocated memory with NaN in some 12,000 shapes of
convolutions and linear layers on an AMD EPYC with avx512_bf16; all others were finite and within 2 % of float32.
Networks with such a convolution compute without oneDNN, ten times as slowly, and so do all on processors whose kernels
were not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

Precision = Literal["float32", "bfloat16", "auto"]
Computed = Literal["float32", "bfloat16"]

# From so many multiplications an image on, bfloat16 pays.  A training step of 64 images on an AMD EPYC with
# avx512_bf16, float32 over bfloat16: 0.97 at 0.4 million (small_convnet, 8 × 8 pixels) and 1.17 at 0.6 million; 1.34 at
# 6 million (small_convnet, 32 × 32), 1.63 at 13, 1.78 at 214 (wide_resnet28_2), 1.92 at 555 (preact_resnet18).
WORTH_IT = 5_000_000
FEW_CHANNELS = 16


def computed(asked: Precision, network: nn.Module, shape: Sequence[int], device: torch.device) -> tuple[Computed, bool]:
    """In what a network's passes on one `device` are computed, and whether by oneDNN where that is a CPU.

    `shape`: of an image, (C, H, W), or of a vector, (D,); looked at is `network` in evaluation mode, which stays as it
    is.  `auto` becomes bfloat16 where the device has it in hardware
    and the network has `WORTH_IT` multiplications an image, on a CPU only where oneDNN computes it right.
    """
    if asked == "float32" or (asked == "bfloat16" and device.type != "cpu"):
        return asked, True
    passes = _look_at(network, shape, device)
    is_right = device.type != "cpu" or (has_checked_kernels() and passes.is_right)
    if asked == "bfloat16":
        return asked, is_right
    pays = passes.multiplications >= WORTH_IT and is_right and _has_bfloat16(device)
    return ("bfloat16" if pays else "float32"), True


def has_checked_kernels() -> bool:
    """Whether this machine's CPU computes bfloat16 by the kernels that were looked at: avx512_bf16, not AMX."""
    return bool(torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported())


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and has_checked_kernels()


class _Passes(TorchDispatchMode):
    """Within it, multiplications are counted, and convolutions looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.multiplications = 0
        self.is_right = True  # oneDNN's bfloat16 gradient of each convolution so far

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Sequence[Any] = (), options: Mapping[str, Any] | None = None
    ) -> Any:
        result = operation(*arguments, **(options or {}))
        aten = torch.ops.aten
        if operation is aten.convolution.default:
            images, filters, _, stride, padding, dilation, transposed = arguments[:7]
            self.multiplications += result.numel() * filters[0].numel()
            self.is_right &= not transposed and max(dilation) == 1
            self.is_right &= max(filters.shape[2:]) > 1 or max(stride) == 1 or filters.shape[1] >= FEW_CHANNELS
            sizes = zip(images.shape[2:], filters.shape[2:], stride, padding, strict=True)
            self.is_right &= all(all_positions_meet_the_image(*along_axis) for along_axis in sizes)
        elif operation in (aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default):
            self.multiplications += result.numel() * arguments[-1].shape[-2]
        return result


def all_positions_meet_the_image(size: int, kernel: int, stride: int, padding: int) -> bool:
    """Whether along one axis every position of a filter meets a pixel somewhere, and not always padding."""
    starts = range(-padding, size + padding - kernel + 1, stride)
    return all(any(0 <= start + position < size for start in starts) for position in range(kernel))


def multiplications(network: nn.Module, shape: Sequence[int], device: torch.device) -> int:
    """How many a forward pass of one image, or vector, of this shape takes."""
    return _look_at(network, shape, device).multiplications


@torch.no_grad()
def _look_at(network: nn.Module, shape: Sequence[int], device: torch.device) -> _Passes:
    """One blank image through a network, which stays as it is."""
    blank = torch.zeros(1, *shape, device=device)
    training = network.training
    network.eval()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), _Passes() as passes:
        network(blank)
    network.train(training)
    return passes
