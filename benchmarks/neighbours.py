"""How fast are the graph's parts: its nearest neighbours against faiss, and an iteration against SciPy's CSR?

Contestants take turns in one run, on one thread, and CPU seconds count; what counts are the ratios of the medians.
Neighbours are the 10 nearest others of some of the images among all of them; an iteration is S Y of 10 neighbours an
image and 10 classes.  Prints one Markdown table, and how long new labels for all images take after a decision.

    python benchmarks/neighbours.py [--images 50000 --width 128 --queries 8192 --repeats 5]
"""

from __future__ import annotations

import argparse
import time
import warnings

import faiss
import numpy as np
import scipy.sparse
import torch
from timing import in_turn, machine

from lnl.functional import graph
from lnl.labelling.propagation import Graph, propagated

K, CLASSES, DECISIONS = 10, 10, 5


def measure(images: int, width: int, queries: int, repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median CPU seconds by contestant: of searching the neighbours of `queries` images, and of one iteration."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    features = torch.nn.functional.normalize(torch.randn(images, width, generator=torch.manual_seed(0)))
    index = faiss.IndexFlatIP(width)
    index.add(features.numpy())
    asked = features[:queries]
    search = {
        "faiss, flat": lambda: index.search(asked.numpy(), K),
        "ours": lambda: graph.nearest_to(features, asked, K),
    }
    matrix, scores = edges(images), torch.rand(images, CLASSES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        by_coordinates = matrix.to_sparse_coo().coalesce()
    parts = (matrix.values().numpy(), matrix.col_indices().numpy(), matrix.crow_indices().numpy())
    by_scipy = scipy.sparse.csr_matrix(parts, shape=matrix.shape)
    iteration = {
        "SciPy, CSR": lambda: by_scipy @ scores.numpy(),
        "ours": lambda: torch.sparse.mm(matrix, scores),
        "torch, COO": lambda: torch.sparse.mm(by_coordinates, scores),
    }
    return in_turn(search, repeats, time.process_time), in_turn(iteration, 8 * repeats, time.process_time)


def edges(images: int) -> torch.Tensor:
    """A normalised sparse graph of made-up neighbours: (N, N)."""
    random = np.random.default_rng(0)
    similarities = torch.from_numpy(random.random((images, K)))
    neighbours = torch.from_numpy(np.stack([random.choice(images, K, replace=False) for _ in range(images)]))
    return graph.normalised(graph.joined(similarities, neighbours, 0.1), "symmetric").float()


def decision(images: int) -> float:
    """Median CPU seconds until all images have new labels after one more was given."""
    given = np.where(np.arange(images) < 100, np.arange(images) % CLASSES, -1)
    built = Graph(edges(images), np.empty((images, K)), np.empty((images, K)), 0.1, None)
    return in_turn({"ours": lambda: propagated(built, given, CLASSES)}, DECISIONS, time.process_time)["ours"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--queries", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    neighbours, iteration = measure(asked.images, asked.width, asked.queries, asked.repeats)
    print(
        f"{asked.images:,} images × {asked.width}, k = {K}, {CLASSES} classes, one thread, "
        f"{machine(torch.device('cpu'))}, faiss {faiss.__version__}\n"
    )
    print("| | | ms | speed, ratio |\n|---|---|--:|--:|")
    for what, times in ((f"neighbours of {asked.queries:,}", neighbours), ("an iteration", iteration)):
        first = next(iter(times.values()))
        for name, seconds in times.items():
            print(f"| {what} | {name} | {1000 * seconds:,.1f} | {first / seconds:.2f} |")
    print(f"\nNew labels for all after a decision, 20 iterations: {1000 * decision(asked.images):,.0f} ms")


if __name__ == "__main__":
    main()
