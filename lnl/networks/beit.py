"""BEiT (Bao, Dong & Wei 2021, arXiv:2106.08254): a vision transformer of 16×16 patches, for its published weights.

As published for ViT-B/16: attention has a learned bias for each relative position of two patches (and three for the
class token) in place of position embeddings, no bias of the keys, and each residual branch is scaled by channel (layer
scale, γ).  Its features are the normalised mean of the patches.  Parameters have the names of the authors' state dicts,
which timm uses, too; `renamed` reads them, and those of Hugging Face's transformers.  Stochastic depth is off, and
weight decay, which goes by the number of axes here, holds for the class token, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, scaled_dot_product_attention

PATCH = 16  # pixels
LAYER_SCALE = 0.1  # γ before training
EPSILON = 1e-6  # of LayerNorm
_TABLE = "relative_position_bias_table"
_SHARED = f"rel_pos_bias.{_TABLE}"  # one for all blocks, in weights that are only pre-trained
_NAMES = (  # in transformers, here
    (r"^(beit\.)?embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(beit\.)?embeddings\.", ""),
    (r"^(beit\.)?encoder\.relative_position_bias\.", "rel_pos_bias."),
    (r"^(beit\.)?encoder\.layer\.", "blocks."),
    (r"^(beit\.)?pooler\.layernorm\.", "fc_norm."),
    (r"^(beit\.)?layernorm\.", "norm."),
    (r"\.lambda_", ".gamma_"),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.attention\.attention\.relative_position_bias\.", ".attn."),
    (r"\.attention\.attention\.", ".attn."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)
_OF_PRE_TRAINING = ("mask_token", "lm_head.", "norm.")  # and not of the network that starts from it


class Attention(nn.Module):
    """Multi-head attention with a bias for each relative position: (B, 1 + side², D) -> the same."""

    relative_position: Tensor

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * side - 1) ** 2 + 3, heads))
        self.proj = nn.Linear(width, width)
        self.register_buffer("relative_position", relative_positions(side), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        parts = linear(tokens, self.qkv.weight, bias).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each (B, heads, 1 + side², D / heads)
        positions = self.relative_position_bias_table[self.relative_position].permute(2, 0, 1).to(query.dtype)
        attended = scaled_dot_product_attention(query, key, value, attn_mask=positions)
        mixed: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return mixed


class Perceptron(nn.Module):
    """Two linear layers with GELU between them, four times as wide inside: (…, D) -> (…, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        mixed: Tensor = self.fc2(gelu(self.fc1(tokens)))
        return mixed


class Block(nn.Module):
    """Attention, then a perceptron, each normalised before, scaled after, and added: (B, T, D) -> the same."""

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, EPSILON), nn.LayerNorm(width, EPSILON)
        self.attn, self.mlp = Attention(width, heads, side), Perceptron(width)
        self.gamma_1 = nn.Parameter(torch.full((width,), LAYER_SCALE))
        self.gamma_2 = nn.Parameter(torch.full((width,), LAYER_SCALE))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.gamma_1 * self.attn(self.norm1(tokens))
        return tokens + self.gamma_2 * self.mlp(self.norm2(tokens))


class BEiT(nn.Module):
    """BEiT for images of `size` pixels, a multiple of 16: (B, C, size, size) -> (B, width).

    Grey images become three channels.  Raises ValueError for another size.
    """

    def __init__(self, size: int = 224, width: int = 768, depth: int = 12, heads: int = 12) -> None:
        super().__init__()
        if size % PATCH:
            raise ValueError(
                f"beit_b_16 cuts images into patches of 16 pixels, not images of {size}: resize them to 224."
            )
        self.width = width
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, PATCH, PATCH)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        blocks = [Block(width, heads, size // PATCH) for _ in range(depth)]
        self.blocks = nn.Sequential(*blocks)
        self.fc_norm = nn.LayerNorm(width, EPSILON)
        self._initialise(blocks)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embed["proj"](images.expand(-1, 3, -1, -1)).flatten(2).transpose(1, 2)
        first = self.cls_token.to(patches.dtype).expand(len(patches), -1, -1)
        tokens = self.blocks(torch.cat([first, patches], 1))
        features: Tensor = self.fc_norm(tokens[:, 1:].mean(1))
        return features

    def _initialise(self, blocks: Sequence[Block]) -> None:
        """As published: N(0, .02²), cut at ±2; the last layers of block l divided by √(2l)."""
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for layer, block in enumerate(blocks, 1):
            for last in (block.attn.proj, block.mlp.fc2):
                with torch.no_grad():
                    last.weight /= (2 * layer) ** 0.5


def relative_positions(side: int) -> Tensor:
    """Which row of the table of biases belongs to two tokens: (1 + side², 1 + side²) int64, the class token first.

    Rows go by the difference of the lines of query and key, then of their columns.  The last three are for the class
    token to a patch, for a patch to the class token, and for the class token to itself.
    """
    line, column = torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)
    lines, columns = (place[:, None] - place[None] + side - 1 for place in (line, column))
    count = (2 * side - 1) ** 2
    rows = torch.full((1 + side**2, 1 + side**2), count)
    rows[1:, 1:] = lines * (2 * side - 1) + columns
    rows[1:, 0] = count + 1
    rows[0, 0] = count + 2
    return rows


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict in our names and shapes; names that are nobody's stay.

    A table of biases that all blocks share becomes one for each, as in the authors' fine-tuning.  Weights that are only
    pre-trained have no normalisation of the mean, which then starts anew, and parts that nothing here needs.
    """
    ours = {_renamed(name): tensor for name, tensor in state.items()}
    ours = {
        name: tensor
        for name, tensor in ours.items()
        if not name.startswith(_OF_PRE_TRAINING) and not name.endswith("relative_position_index")
    }
    blocks = sorted({name.split(".")[1] for name in ours if name.startswith("blocks.")}, key=int)
    shared = ours.pop(_SHARED, None)
    for block in blocks:
        _join_projections(ours, f"blocks.{block}.attn.")
        if shared is not None:
            ours[f"blocks.{block}.attn.{_TABLE}"] = shared.clone()
    token = ours.get("cls_token")
    if token is not None and "fc_norm.weight" not in ours:
        ours |= {"fc_norm.weight": torch.ones(token.shape[-1]), "fc_norm.bias": torch.zeros(token.shape[-1])}
    return ours


def _join_projections(state: dict[str, Tensor], prefix: str) -> None:
    """In place: transformers' three projections of a block become the authors' one."""
    parts = [state.pop(f"{prefix}{part}.weight", None) for part in ("query", "key", "value")]
    whole = [part for part in parts if part is not None]
    if len(whole) == len(parts):
        state[f"{prefix}qkv.weight"] = torch.cat(whole)
    for part in ("query", "value"):
        if (bias := state.pop(f"{prefix}{part}.bias", None)) is not None:
            state[f"{prefix}{part[0]}_bias"] = bias


def _renamed(name: str) -> str:
    for pattern, ours in _NAMES:
        name = re.sub(pattern, ours, name)
    return name
