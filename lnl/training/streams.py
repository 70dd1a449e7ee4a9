"""Named random streams: every purpose (`noise`, `split`, `init`, `order`, …) draws from its own generator.

A stream is seeded by (replicate, name) alone, so that one more draw of a method does not change another method's noise,
and two arms of one replicate share every draw that they both make.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor


class Streams:
    """Generators by name, made on first use on `device`.  Its state can be stored and restored."""

    def __init__(self, replicate: int, device: torch.device | str = "cpu") -> None:
        self.replicate = replicate
        self.device = torch.device(device)
        self._generators: dict[str, Generator] = {}

    def seed(self, name: str) -> int:
        """The seed of the stream `name`: 63 bits of a hash of replicate and name."""
        digest = hashlib.sha256(f"{self.replicate}/{name}".encode()).digest()
        return int.from_bytes(digest[:8], "little") >> 1  # torch accepts 63 bits

    def __getitem__(self, name: str) -> Generator:
        if name not in self._generators:
            self._generators[name] = torch.Generator(self.device).manual_seed(self.seed(name))
        return self._generators[name]

    def of_network(self, name: str, network: int) -> Generator:
        """The stream `name` of the first (0) or the second (1) of two networks that are trained side by side."""
        return self[name if network == 0 else f"second/{name}"]

    @contextmanager
    def initialise(self, name: str) -> Iterator[None]:
        """Within the block, torch's global CPU generator is the stream `init/<name>`: modules initialise from it."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed(f"init/{name}"))
            yield

    def state_dict(self) -> dict[str, Tensor]:
        return {name: generator.get_state() for name, generator in self._generators.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in [*self._generators.keys() - state.keys()]:
            self[name].manual_seed(self.seed(name))
        for name, value in state.items():
            self[name].set_state(value.cpu())


def digest(*tensors: Tensor) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the tensors' shapes, types and bytes."""
    total = hashlib.sha256()
    for tensor in tensors:
        array = tensor.detach().cpu().contiguous()
        total.update(f"{tuple(array.shape)}{array.dtype}".encode())
        total.update(array.flatten().view(torch.uint8).numpy().tobytes() if array.numel() else b"")
    return total.hexdigest()[:16]
