"""How fast is the mixture that DivideMix fits once an epoch, against scikit-learn's, whose numbers it has?

Two Gaussians are fitted to the losses of one network and of two; contestants take turns in one run, on one thread; what
counts are the ratios of the medians.  Losses are made up: exponential ones of right labels, normal ones of wrong ones.

    python benchmarks/mixtures.py [--images 50000 --repeats 9]
"""

from __future__ import annotations

import argparse
import warnings
from functools import partial

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from timing import in_turn, machine

from lnl.functional import mixtures


def made_up(networks: int, images: int) -> torch.Tensor:
    random = np.random.default_rng(0)
    right = random.random((networks, images)) < 0.6
    losses = np.where(right, random.exponential(0.3, right.shape), random.normal(3, 0.8, right.shape))
    return mixtures.normalise(torch.from_numpy(losses))


def by_scikit_learn(losses: torch.Tensor) -> np.ndarray:
    """Weights, means and deviations (networks, 2, 3), the lower mean first."""
    fitted = []
    for row in losses.unsqueeze(-1).numpy():
        model = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0).fit(row)
        components = np.stack([model.weights_, model.means_[:, 0], np.sqrt(model.covariances_[:, 0, 0])], -1)
        fitted.append(components[components[:, 1].argsort()])
    return np.stack(fitted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # ten iterations may not converge
    print(f"{options.images:,} images, one thread, {machine(torch.device('cpu'))}\n")
    print("| networks | ours, ms | scikit-learn, ms | scikit-learn / ours | largest difference of a parameter |")
    print("|--|--:|--:|--:|--:|")
    for networks in (1, 2):
        losses = made_up(networks, options.images)
        apart = np.abs(mixtures.fit_gaussians(losses, 0).numpy() - by_scikit_learn(losses)).max()
        times = in_turn(
            {"ours": partial(mixtures.fit_gaussians, losses, 0), "theirs": partial(by_scikit_learn, losses)},
            options.repeats,
        )
        ours, theirs = 1000 * times["ours"], 1000 * times["theirs"]
        print(f"| {networks} | {ours:.1f} | {theirs:.1f} | {theirs / ours:.1f} | {apart:.0e} |")


if __name__ == "__main__":
    main()
