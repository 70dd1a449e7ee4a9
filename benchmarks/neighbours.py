"""How fast are the graph's parts: its nearest neighbours against faiss, and an iteration against SciPy's CSR?

Contestants take turns in one run, on one thread, and CPU seconds count; what counts are the ratios of the medians.
Neighbours are the 10 nearest others of some of the images among all of them; an iteration is S Y of 10 neighbours an
image and 10 classes.  Prints one Markdown table, and how long new labels for all images take after a decision.

    python benchmarks/neighbours.py [--images 50000 --width 128 --queries 8192 --repeats 5]
"""

from __future__ import annotations

import argparse
import platform
import time
import warnings
from collections.abc import Callable
from statistics import median

import faiss
import numpy as np
import scipy.sparse
import torch

from lnl.functional import graph
from lnl.labelling.propagation import Graph, propagated

K, CLASSES, DECISIONS = 10, 10, 5


def in_turn(contestants: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median CPU seconds of each, after a first call that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(repeats + 1):
        for name, call in contestants.items():
            began = time.process_time()
            call()
            if repeat:
                seconds[name].append(time.process_time() - began)
    return {name: median(times) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--queries", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    features = torch.nn.functional.normalize(torch.randn(asked.images, asked.width, generator=torch.manual_seed(0)))
    index = faiss.IndexFlatIP(asked.width)
    index.add(features.numpy())
    queries = features[: asked.queries]
    neighbours = in_turn(
        {
            "faiss, flat": lambda: index.search(queries.numpy(), K),
            "ours": lambda: graph.nearest_to(features, queries, K),
        },
        asked.repeats,
    )
    random = np.random.default_rng(0)
    edges = graph.joined(
        torch.from_numpy(random.random((asked.images, K))),
        torch.from_numpy(np.stack([random.choice(asked.images, K, replace=False) for _ in range(asked.images)])),
        0.1,
    )
    matrix = graph.normalised(edges, "symmetric").float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        by_coordinates = matrix.to_sparse_coo().coalesce()
    parts = (matrix.values().numpy(), matrix.col_indices().numpy(), matrix.crow_indices().numpy())
    by_scipy = scipy.sparse.csr_matrix(parts, shape=matrix.shape)
    scores = torch.rand(asked.images, CLASSES)
    products = in_turn(
        {
            "SciPy, CSR": lambda: by_scipy @ scores.numpy(),
            "ours": lambda: torch.sparse.mm(matrix, scores),
            "torch, COO": lambda: torch.sparse.mm(by_coordinates, scores),
        },
        8 * asked.repeats,
    )
    given = np.where(np.arange(asked.images) < 100, np.arange(asked.images) % CLASSES, -1)
    built = Graph(matrix, np.empty((asked.images, K)), np.empty((asked.images, K)), 0.1, None)
    decision = in_turn({"ours": lambda: propagated(built, given, CLASSES)}, DECISIONS)["ours"]
    print(
        f"{asked.images:,} images × {asked.width}, k = {K}, {CLASSES} classes, one thread, {platform.machine()} CPU, "
        f"torch {torch.__version__}, faiss {faiss.__version__}\n"
    )
    print("| | | ms | speed, ratio |\n|---|---|--:|--:|")
    for what, times in ((f"neighbours of {len(queries):,}", neighbours), ("an iteration", products)):
        first = next(iter(times.values()))
        for name, seconds in times.items():
            print(f"| {what} | {name} | {1000 * seconds:,.1f} | {first / seconds:.2f} |")
    print(f"\nNew labels for all after a decision, 20 iterations: {1000 * decision:,.0f} ms")


if __name__ == "__main__":
    main()
