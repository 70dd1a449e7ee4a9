"""A network in training: gradients, optimizers, averaged weights, precision.  The only place that differentiates.

A method hands over pure objectives, `objective(network, batch) -> scalar`.  `step` is the usual update; methods that
look at gradients before they use them call its parts: `gradients` (one list per objective), `apply`, `advance`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, linear

from lnl import networks
from lnl.functional import meta, schedules
from lnl.networks import Network
from lnl.networks.convnet import dropout_repeated
from lnl.settings import Settings
from lnl.storage.checkpoints import fitting
from lnl.training.streams import Streams

Precision = Literal["float32", "bfloat16"]
Gradients = list[Tensor | None]  # one entry per trainable tensor; None: no gradient from this objective
Head = Callable[[int], nn.Module]  # features -> module

EVALUATION_BATCH = 1024  # images of up to 32 × 32 pixels at a time without gradient; fewer larger ones


class Optimizer(Settings):
    """Optimizer and schedule of one learner."""

    kind: Literal["sgd", "adam", "adamw"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 0.002
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """sgd only"""
    nesterov: bool = False
    """sgd only"""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """on kernels (two or more axes) only; adamw: times the rate"""
    schedule: Literal["constant", "cosine", "fixmatch", "linear", "step", "restarts"] = "constant"
    milestones: Annotated[tuple[float, ...], Field(min_length=1)] = (0.5, 0.75)
    """step: shares of training after which the rate is multiplied by `factor`; linear: the first is where it starts to
    fall, to 0 at the end."""
    factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """step only"""
    first_cycle: Annotated[float, Field(gt=0, le=1)] = 1 / 400
    """restarts only: share of training; see `schedules`"""
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """decay of the weight average that predicts; 0: none"""

    def scale(self, progress: float) -> float:
        """Factor of the learning rate at `progress` in [0, 1] of training."""
        if self.schedule == "cosine":
            return schedules.cosine(progress)
        if self.schedule == "fixmatch":
            return schedules.fixmatch(progress)
        if self.schedule == "linear":
            return schedules.linear_decay(progress, self.milestones[0])
        if self.schedule == "step":
            return schedules.step_decay(progress, self.milestones, self.factor)
        if self.schedule == "restarts":
            return schedules.restarts(progress, self.first_cycle)
        return 1.0


@dataclass(frozen=True)
class NetworkBuilder:
    """Makes a trial's networks: same replicate, same name, same initial weights, on every device.

    `initial`: a trained backbone's state, from which every network of the trial starts; the heads stay new.
    """

    name: str
    channels: int
    size: int
    device: torch.device
    precision: Precision
    streams: Streams
    weights: str | None = None  # of the backbone, see `networks.backbone`
    resize: int | None = None  # images to so many pixels, there
    initial: Mapping[str, Tensor] | None = None
    trains: bool = True  # else its learners have no optimizers, whose first one takes a second to import

    def build(self, heads: Mapping[str, Head], replica: str = "") -> Network:
        """Backbone and heads, each initialised from its own stream, so that one more head moves no other weight."""
        with self.streams.initialise(f"{replica}backbone"):
            backbone = networks.backbone(self.name, self.channels, self.size, self.weights, self.resize)
        if self.initial is not None:
            with fitting():
                backbone.load_state_dict(self.initial)
        made = {}
        for name, head in heads.items():
            with self.streams.initialise(f"{replica}{name}"):
                made[name] = head(backbone.width)
        return Network(backbone, made).to(self.device).to(memory_format=torch.channels_last)


class Learner:
    """One network with its optimizer(s) and its average.

    `owners`: name -> prefixes of the parameters (`backbone`, `heads.projection`, …) that this optimizer owns; a
    parameter may have two owners.  Default: one optimizer, `all`, owns everything.  `steps`: length of training, for
    the schedule.
    """

    def __init__(
        self,
        network: NetworkBuilder,
        optimizer: Optimizer,
        steps: int,
        heads: Mapping[str, Head],
        owners: Mapping[str, Sequence[str]] | None = None,
        replica: str = "",
    ) -> None:
        self.settings, self.steps, self.done = optimizer, steps, 0
        self.network = network.build(heads, replica)
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False) if optimizer.average else None
        self.precision, self.device = network.precision, network.device
        pixels = (network.resize or network.size) ** 2
        self.evaluation_batch = max(1, min(EVALUATION_BATCH, EVALUATION_BATCH * 32**2 // pixels))
        self.names = [name for name, _ in self.network.named_parameters()]
        self.parameters = list(self.network.parameters())
        self.owned = {
            owner: [any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes) for name in self.names]
            for owner, prefixes in (owners or {"all": ["backbone", "heads"]}).items()
        }
        # The last owner of a tensor decays it: with two owners it would be decayed twice a step.
        decayed = [[owner for owner, mask in self.owned.items() if mask[p]][-1:] for p in range(len(self.names))]
        self.optimizers = {
            owner: _optimizer(
                optimizer,
                [(self.parameters[p], decayed[p] == [owner]) for p, mine in enumerate(mask) if mine],
            )
            for owner, mask in self.owned.items()
            if network.trains
        }

    @property
    def networks(self) -> list[Network]:
        """The one that is trained and, where there is one, its average."""
        return [self.network] if self.average is None else [self.network, self.average]

    def part(self, prefix: str) -> list[int]:
        """Positions of the parameters below `prefix` in every gradient list."""
        return [position for position, name in enumerate(self.names) if name.startswith(prefix + ".")]

    def gradients(self, objective: Callable[[Network, Any], Tensor], batch: Any) -> tuple[Tensor, Gradients]:
        """Value (detached) and gradient of one objective in training mode."""
        self.network.train()
        with self._precision():
            loss = objective(self.network, batch)
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        return loss.detach(), list(gradients)

    def apply(self, gradients: Gradients, owner: str | None = None) -> None:
        """One update by `owner`'s optimizer (default: by all).  A tensor whose gradient is None stays as it is."""
        scale = self.settings.scale(min(self.done / max(self.steps, 1), 1.0))
        for name in [owner] if owner else self.optimizers:
            optimizer = self.optimizers[name]
            for group in optimizer.param_groups:
                group["lr"] = self.settings.learning_rate * scale
            for tensor, gradient, mine in zip(self.parameters, gradients, self.owned[name], strict=True):
                tensor.grad = gradient if mine else None
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def advance(self) -> None:
        """Count one step and move the average towards the weights."""
        self.done += 1
        if self.average is not None:
            weight = 1 - schedules.average_decay(self.done, self.settings.average)
            torch._foreach_lerp_(
                list(self.average.parameters()), [tensor.detach() for tensor in self.parameters], weight
            )

    def step(self, objective: Callable[[Network, Any], Tensor], batch: Any) -> Tensor:
        """One update on one objective; returns its value."""
        loss, gradients = self.gradients(objective, batch)
        self.apply(gradients)
        self.advance()
        return loss

    def virtual(
        self,
        loss: Callable[..., Tensor],
        coefficients: Sequence[Tensor],
        images: Tensor,
        probe: Callable[[Callable[[Tensor], Tensor], Any], Tensor],
        batch: Any,
        *,
        rate: float | None,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        mode: meta.MetaGradient = "jvp",
    ) -> list[Tensor]:
        """Gradient of the objective `probe` after one virtual step of SGD, by the step's `coefficients`.

        `loss`: (logits of `images`, *coefficients) -> scalar, what the virtual step descends; `rate` None: it stands
        still there, see `lnl.functional.meta.gradients`.  The step goes on with the optimizer's momentum;
        `weight_decay` counts in both losses.  In float32, by batch statistics, with one dropout mask for `images`;
        moves neither weights nor BatchNorm's running statistics nor what dropout draws next.
        """
        weights = [tensor.detach() for tensor in self.parameters]
        kernels = [weight_decay * (tensor.ndim > 1) for tensor in weights]
        (optimizer,) = self.optimizers.values()
        drift = [decay * tensor for decay, tensor in zip(kernels, weights, strict=True)]
        if momentum:
            buffers = [optimizer.state[tensor]["momentum_buffer"] for tensor in self.parameters]
            drift = [one + momentum * buffer for one, buffer in zip(drift, buffers, strict=True)]

        def at(weights: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
            named = dict(zip(self.names, weights, strict=True))
            return lambda images: functional_call(self.network, named, (images,))

        def logits(weights: Sequence[Tensor]) -> Tensor:
            with dropout_repeated(self.network):  # the same function of the weights in every pass
                return at(weights)(images)

        def probe_loss(weights: Sequence[Tensor]) -> Tensor:
            lengths = [decay / 2 * one.square().sum() for decay, one in zip(kernels, weights, strict=True) if decay]
            with dropout_repeated(self.network, ahead=1):  # other masks, lest images match by their place in the batch
                return probe(at(weights), batch) + sum(lengths)

        self.network.train()
        precise = torch.autocast(self.device.type, enabled=False)
        plain = sdpa_kernel(SDPBackend.MATH)  # fused attention has no second derivative
        with networks.statistics_frozen(self.network), precise, plain:
            return meta.gradients(
                logits,
                loss,
                coefficients,
                probe_loss,
                weights,
                rate=rate,
                drift=drift,
                mode=mode,
            )

    # -------------------------------------------------------------------------------------------- without gradient

    @torch.no_grad()
    def batch_logits(self, images: Tensor, averaged: bool = False, update_statistics: bool = False) -> Tensor:
        """Logits by BatchNorm's batch statistics. (B, C, H, W) -> (B, K)."""
        network = self.average if averaged and self.average is not None else self.network
        network.train()
        with nullcontext() if update_statistics else networks.statistics_frozen(network), self._precision():
            return network(images).float()

    def guess(self, images: Tensor, averaged: bool = False, update_statistics: bool = False) -> Tensor:
        """Class probabilities by BatchNorm's batch statistics, for guessing labels. (B, C, H, W) -> (B, K)."""
        return self.batch_logits(images, averaged, update_statistics).softmax(dim=-1)

    def logits(self, images: Tensor) -> Tensor:
        """Inference mode, by the averaged weights where there are any. (B, C, H, W) -> (B, K)."""
        return self._inference(images, lambda network, part: network(part))

    def features(self, images: Tensor) -> Tensor:
        """Backbone features in inference mode. (B, C, H, W) -> (B, D)."""
        return self._inference(images, lambda network, part: network.features(part))

    @torch.no_grad()
    def _inference(self, images: Tensor, call: Callable[[Network, Tensor], Tensor]) -> Tensor:
        network = self.network
        if self.average is not None:
            network = self.average
            for mine, theirs in zip(network.buffers(), self.network.buffers(), strict=True):
                mine.copy_(theirs)  # the average has no BatchNorm statistics of its own
        network.eval()
        with self._precision():
            return torch.cat([call(network, part).float() for part in images.split(self.evaluation_batch)])

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")

    # ------------------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "done": self.done,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.done = state["done"]


def trained_backbone(parts: Mapping[str, Any]) -> dict[str, Tensor]:
    """The backbone of a method's first learner, by its averaged weights where there are any, from a stored snapshot."""
    state = next(part for part in parts.values() if "network" in part and "optimizers" in part)
    averaged = state["average"] or {}
    prefix = "backbone."
    statistics = ("running_mean", "running_var", "num_batches_tracked")  # the average has none of its own
    return {
        name.removeprefix(prefix): tensor if name.endswith(statistics) else averaged.get(name, tensor)
        for name, tensor in state["network"].items()
        if name.startswith(prefix)
    }


def _optimizer(settings: Optimizer, parameters: Sequence[tuple[Tensor, bool]]) -> torch.optim.Optimizer:
    """Over (tensor, whether this optimizer decays it); only kernels are ever decayed."""
    kernels = [tensor for tensor, decays in parameters if decays and tensor.ndim > 1]
    others = [tensor for tensor, decays in parameters if not (decays and tensor.ndim > 1)]
    groups: list[dict[str, Any]] = [
        {"params": kernels, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    rate = settings.learning_rate
    if settings.kind != "sgd":
        kind = torch.optim.Adam if settings.kind == "adam" else torch.optim.AdamW
        return kind(groups, lr=rate, fused=True)
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=settings.momentum, nesterov=settings.nesterov, fused=True)
    if settings.momentum:  # torch's fused step breaks where some tensors have a momentum already and others do not
        for tensor, _ in parameters:
            optimizer.state[tensor]["momentum_buffer"] = torch.zeros_like(tensor)
    return optimizer


def linear_probe(features: Tensor, labels: Tensor, classes: int) -> Callable[[Tensor], Tensor]:
    """Multinomial logistic regression on frozen features: a function features -> class probabilities (…, K).

    The problem of scikit-learn's LogisticRegression with C = 1, on standardised features, solved on their own device:
    the sum of the cross-entropies and half the squared length of the weights, with free intercepts.  A class without an
    example gets 0.  Raises ValueError for fewer than two classes, FloatingPointError for features that are not finite.
    """
    present, given = labels.to(features.device).unique(return_inverse=True)
    if len(present) < 2:
        raise ValueError("A linear probe needs labelled images of at least two classes.")
    if not features.isfinite().all():
        raise FloatingPointError("a linear probe needs finite features, but some are not")
    bank = features.detach().double()
    mean, deviation = bank.mean(0), bank.std(0, correction=0)
    deviation[bank.amin(0) == bank.amax(0)] = 1.0  # a constant feature stays unscaled, so that no weight reaches it
    bank = (bank - mean) / deviation
    weights, intercepts = bank.new_zeros(len(present), bank.shape[1]), bank.new_zeros(len(present))
    optimizer = torch.optim.LBFGS(
        [weights.requires_grad_(), intercepts.requires_grad_()],
        max_iter=1000,
        tolerance_grad=1e-6,  # of the mean over images: on digits probabilities are within 1e-3
        tolerance_change=1e-12,
        history_size=10,
        line_search_fn="strong_wolfe",
    )
    # Of two classes scikit-learn penalises w₁ - w₀ = w alone: |w|² / 2 = |w₀|² + |w₁|² where w₁ = -w₀.
    strength = 1.0 if len(present) == 2 else 0.5

    @torch.enable_grad()
    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(linear(bank, weights, intercepts), given) + strength / len(bank) * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)

    @torch.no_grad()
    def probabilities(queries: Tensor) -> Tensor:
        found = linear((queries.double() - mean) / deviation, weights, intercepts).softmax(-1)
        result = torch.zeros(len(queries), classes, device=features.device)
        result[:, present] = found.float()
        return result

    return probabilities
