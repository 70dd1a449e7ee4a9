"""How images reach the device: the one place that decides it, so that methods do not see the difference.

`held` gives what a task takes its images from by `images[index]`:

    a tensor   the images lie on the device, where they take at most half of its memory
    `Mapped`   they stay in a memory-mapped array, and what is taken is copied to the device
    `Decoded`  they stay in their files (`lnl.data.files`), which worker processes decode, ahead of training

The same index gives the same images in all three.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from lnl.data import DataError
from lnl.data.dataset import Stored
from lnl.data.files import ImageFiles

PART, PART_NUMBERS = 1024, 1024 * 3 * 96**2  # images, and numbers in them, in one forward pass that trains nothing
RESIDENT_SHARE = 0.5  # of the device's memory that images may take
CHUNK = 16  # images that a worker decodes at a time
CHUNKS_AHEAD = 4  # for each worker
KEPT_BYTES = 2**28  # of decoded images that are kept, because methods look at an image more than once
PASSES = 8  # through images that are followed at a time: more than a method goes through together


class Images(Protocol):
    """What images are taken from: (N, C, H, W), or vectors (N, D), wherever they are.  A tensor is one, too."""

    @property
    def shape(self) -> Sequence[int]: ...

    @property
    def ndim(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor | slice, /) -> Tensor:
        """The images at these positions (B,), on the device: (B, C, H, W)."""


def held(stored: Stored, index: np.ndarray, device: torch.device, workers: int) -> Images:
    """The images of a data set at these positions (n,).  `workers`: processes that decode, where they must be."""
    if isinstance(stored, ImageFiles):
        return Decoded(stored.at(index), device, workers)
    if not fits(len(index) * stored[:1].nbytes, device):
        return Mapped(stored, index, device)
    return torch.from_numpy(np.ascontiguousarray(stored[index])).to(device)


def fits(size: int, device: torch.device) -> bool:
    """Whether images of so many bytes may lie on the device."""
    return size <= RESIDENT_SHARE * _memory(device)


def _memory(device: torch.device) -> int:
    """Bytes that a device has in all."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return int(psutil.virtual_memory().total)


def expect(images: Images, rows: Tensor | Sequence[Tensor]) -> None:
    """Say in which batches, one row each (B,), images will be taken, so that they may be decoded before."""
    if isinstance(images, Decoded):
        images.expect([row.cpu() for row in rows])


def parts_of(images: Images) -> int:
    """How many of these images go through a network together where nothing is trained."""
    return max(1, min(PART, PART_NUMBERS // int(np.prod(images.shape[1:]))))


def in_parts(images: Images, call: Callable[[Tensor], Tensor]) -> Tensor:
    """`call` on all images, in parts, one after the other: (N, …) -> (N, …)."""
    rows = torch.arange(len(images), device=images.device).split(parts_of(images))
    expect(images.images if isinstance(images, Viewed) else images, rows)
    return torch.cat([call(images[row]) for row in rows])


@dataclass(frozen=True, eq=False)
class Viewed:
    """Images as a network takes them: `view` of those that are taken, float32."""

    images: Images
    view: Callable[[Tensor], Tensor]

    @property
    def shape(self) -> Sequence[int]:
        return self.images.shape

    @property
    def ndim(self) -> int:
        return self.images.ndim

    @property
    def device(self) -> torch.device:
        return self.images.device

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor | slice, /) -> Tensor:
        return self.view(self.images[index])


@dataclass(frozen=True, eq=False)
class Mapped:
    """Images of a memory-mapped array (M, …) at the positions `index` (N,)."""

    stored: np.ndarray
    index: np.ndarray
    device: torch.device

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.index), *self.stored.shape[1:]

    @property
    def ndim(self) -> int:
        return self.stored.ndim

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: Tensor | slice, /) -> Tensor:
        place = index if isinstance(index, slice) else index.cpu().numpy()
        return torch.from_numpy(np.ascontiguousarray(self.stored[self.index[place]])).to(self.device)


class Decoded:
    """Images that are decoded when they are taken, by worker processes that go ahead where batches are expected.

    Memory is bounded: `KEPT_BYTES` of images that were taken last, and `CHUNKS_AHEAD` · `CHUNK` images for each worker.
    Without workers this process decodes, in threads.
    """

    def __init__(self, files: ImageFiles, device: torch.device, workers: int) -> None:
        self.files, self.device, self.workers = files, device, workers
        self.most = KEPT_BYTES // int(np.prod(files.shape[1:]))
        self.ahead = workers * CHUNKS_AHEAD * CHUNK
        self.kept: OrderedDict[int, np.ndarray] = OrderedDict()  # the image that was taken last stands last
        self.asked: set[int] = set()  # positions that wait in `queue`, or that a worker has
        self.queue: deque[list[int]] = deque()
        self.passes: deque[Pass] = deque(maxlen=PASSES)
        self.results: Iterator[list[tuple[int, np.ndarray | DataError]]] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.files.shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Tensor | slice, /) -> Tensor:
        """Raises `DataError` where a file is missing or is no image."""
        wanted = list(range(len(self))[index]) if isinstance(index, slice) else index.tolist()
        if not wanted:
            return torch.empty((0, *self.shape[1:]), dtype=torch.uint8, device=self.device)
        self._ask(wanted, first=True)
        for going in self.passes:
            self._ask(going.ahead_of(wanted, self.ahead))
        while not all(position in self.kept for position in wanted):
            self._receive()
        batch = torch.from_numpy(np.stack([self.kept[position] for position in wanted]))
        for position in wanted:
            self.kept.move_to_end(position)
        while len(self.kept) > max(self.most, self.ahead + len(wanted)):
            self.kept.popitem(last=False)
        return batch.to(self.device)

    def expect(self, rows: Sequence[Tensor]) -> None:
        """These batches (B,) each will be taken, in this order; other images may be taken between them."""
        if self.workers:
            self.passes.append(Pass(rows))

    def _ask(self, positions: Sequence[int], first: bool = False) -> None:
        """Put images that are not here into the queue; `first`: before all others."""
        new = [place for place in dict.fromkeys(positions) if place not in self.kept and place not in self.asked]
        self.asked.update(new)
        chunks = [new[start : start + CHUNK] for start in range(0, len(new), CHUNK)]
        if first:
            self.queue.extendleft(reversed(chunks))
        else:
            self.queue.extend(chunks)

    def _receive(self) -> None:
        """Wait for the next chunk.  Raises `DataError` where one of its files cannot be read."""
        if self.results is None:
            self.results = iter(self._loader())
        received = next(self.results)
        self.asked.difference_update(position for position, _ in received)
        self.kept.update((position, image) for position, image in received if not isinstance(image, DataError))
        for _, image in received:
            if isinstance(image, DataError):
                raise image

    def _loader(self) -> DataLoader[tuple[int, np.ndarray | DataError]]:
        return DataLoader(
            _Chunks(self.files),
            batch_sampler=_Queue(self.queue),
            num_workers=self.workers,
            prefetch_factor=CHUNKS_AHEAD if self.workers else None,
            collate_fn=list,  # as they are: through a pipe, because shared memory is small in containers
            generator=torch.Generator(),  # else it would draw from the global one
        )


class Pass:
    """Batches that are expected one after the other, and how many of them have been taken."""

    def __init__(self, rows: Sequence[Tensor]) -> None:
        self.rows, self.done = rows, 0

    def ahead_of(self, taken: Sequence[int], count: int) -> list[int]:
        """If the next batch is among the images that are taken now, at least `count` that follow it, else none."""
        if self.done == len(self.rows):
            return []
        row = self.rows[self.done]
        if len(row) and int(row[0]) not in taken:
            return []
        self.done += 1
        following = islice(self.rows, self.done, self.done + -(-count // max(len(row), 1)))
        return [position for row in following for position in row.tolist()]


class _Queue:
    """What is to be decoded next, without end: nothing where the queue is empty."""

    def __init__(self, queue: deque[list[int]]) -> None:
        self.queue = queue

    def __iter__(self) -> Iterator[list[int]]:
        while True:
            yield self.queue.popleft() if self.queue else []


class _Chunks(Dataset[tuple[int, "np.ndarray | DataError"]]):
    """Images by their position, several at once."""

    def __init__(self, files: ImageFiles) -> None:
        self.files = files

    def __getitems__(self, positions: list[int]) -> list[tuple[int, np.ndarray | DataError]]:
        threads = 1 if get_worker_info() else None
        decoded = self.files.at(np.array(positions, dtype=np.int64)).decode(threads)
        return list(zip(positions, decoded, strict=True))
