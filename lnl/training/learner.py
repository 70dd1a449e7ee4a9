"""A network in training: gradients, optimizers, averaged weights, precision.  The only place that differentiates.

A method hands over pure objectives, `objective(network, batch) -> scalar`.  `step` is the usual update; methods that
look at gradients before they use them call its parts: `gradients` (one list per objective), `apply`, `advance`.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from lnl import networks
from lnl.functional import meta, schedules
from lnl.networks import Network
from lnl.networks.convnet import dropout_repeated
from lnl.networks.heads import linear as linear_head
from lnl.settings import Settings
from lnl.storage.checkpoints import fitting
from lnl.system.timing import phase
from lnl.training import precision
from lnl.training.optimizers import eager
from lnl.training.precision import Precision
from lnl.training.state import State
from lnl.training.streams import Streams

Gradients = list[Tensor | None]  # one entry per trainable tensor; None: no gradient from this objective
Head = Callable[[int], nn.Module]  # the backbone's width -> a module on its features
Batch = TypeVar("Batch")  # what a method hands to its own objective

# Images, or vectors, at a time without gradient, and numbers in them: those of 1,024 RGB images of 32 × 32 pixels.
EVALUATION_BATCH, EVALUATION_NUMBERS = 1024, 1024 * 3 * 32**2


class Optimizer(Settings):
    """Optimizer and schedule of one learner."""

    kind: Literal["sgd", "adam", "adamw"] = "adamw"
    """the rule of an update"""
    learning_rate: Annotated[float, Field(gt=0)] = 0.002
    """of the first step; `schedule` says what becomes of it"""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """sgd only"""
    nesterov: bool = False
    """sgd only"""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """on kernels (two or more axes) only; adamw: times the rate"""
    schedule: Literal["constant", "cosine", "fixmatch", "linear", "step", "restarts"] = "constant"
    """of the learning rate, over the whole training"""
    warm_up: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """share of training over which the rate rises from 0 to what the schedule gives"""
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
        return schedules.linear_ramp(progress, self.warm_up) * self._scheduled(progress)

    def _scheduled(self, progress: float) -> float:
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
    """Builds a trial's networks: of one replicate and name they have the same initial weights on every device."""

    name: str
    shape: tuple[int, ...]  # of an image, (C, H, W), or of a vector, (D,)
    device: torch.device
    precision: Precision
    streams: Streams
    weights: str | None = None  # of the backbone, see `networks.backbone`
    resize: int | None = None  # pixels per side of the images that the backbone sees, see there
    initial: Mapping[str, Tensor] | None = None  # state of a trained backbone to start from; the heads stay new
    trains: bool = True  # False: learners have no optimizers, the first of which takes a second to import

    def build(self, heads: Mapping[str, Head], replica: str = "") -> Network:
        """Backbone and heads, each initialised from its own stream, so that one more head moves no other weight."""
        with self.streams.initialise(f"{replica}backbone"):
            backbone = networks.backbone(self.name, self.shape, self.weights, self.resize)
        if self.initial is not None:
            with fitting():
                backbone.load_state_dict(self.initial)
        modules = {}
        for name, head in heads.items():
            with self.streams.initialise(f"{replica}{name}"):
                modules[name] = head(backbone.width)
        return Network(backbone, modules).to(self.device).to(memory_format=torch.channels_last)


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
        self.device = network.device
        self.precision, self.by_onednn = precision.computed(
            network.precision, self.network.backbone, network.shape, network.device
        )
        self.evaluation_batch = evaluation_batch(network.shape, network.resize)
        self.names = [name for name, _ in self.network.named_parameters()]
        self.parameters = list(self.network.parameters())
        self.owned = {
            owner: [any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes) for name in self.names]
            for owner, prefixes in (owners or {"all": ["backbone", "heads"]}).items()
        }
        if owners and (idle := [owner for owner, mask in self.owned.items() if not any(mask)]):
            raise ValueError(f"the optimizer '{idle[0]}' has no weights in {network.name}: choose another network")
        # The last owner of a tensor decays it: with two owners it would be decayed twice a step.
        decayed = [[owner for owner, mask in self.owned.items() if mask[p]][-1:] for p in range(len(self.names))]
        self.optimizers = {
            owner: _optimizer(
                optimizer,
                [(self.parameters[p], decayed[p] == [owner]) for p, is_owned in enumerate(mask) if is_owned],
            )
            for owner, mask in self.owned.items()
            if network.trains and any(mask)  # a backbone without weights and without heads has none
        }

    @classmethod
    def classifier(
        cls, network: NetworkBuilder, optimizer: Optimizer, steps: int, classes: int, replica: str = ""
    ) -> Learner:
        """A learner with one linear head, `classifier`: (B, C, H, W) -> logits (B, classes).

        `replica`: prefix of the streams that initialise the weights of a second network.
        """
        return cls(network, optimizer, steps, {"classifier": partial(linear_head, classes=classes)}, replica=replica)

    @property
    def networks(self) -> list[Network]:
        """The network that is trained and, where there is one, its average."""
        return [self.network] if self.average is None else [self.network, self.average]

    def part(self, prefix: str) -> list[int]:
        """Positions of the parameters below `prefix` in every gradient list."""
        return [position for position, name in enumerate(self.names) if name.startswith(prefix + ".")]

    def gradients(self, objective: Callable[[Network, Batch], Tensor], batch: Batch) -> tuple[Tensor, Gradients]:
        """Value (detached) and gradient of an objective (network, batch) -> scalar, in training mode."""
        self.network.train()
        with self._kernels():
            with phase("forward"), self._precision():
                loss = objective(self.network, batch)
            with phase("backward"):
                gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        return loss.detach(), list(gradients)

    def apply(self, gradients: Gradients, owner: str | None = None) -> None:
        """One update by `owner`'s optimizer (default: by each).  A tensor whose gradient is None stays as it is."""
        with phase("update"):
            scale = self.settings.scale(min(self.done / max(self.steps, 1), 1.0))
            for name in [owner] if owner else self.optimizers:
                optimizer = self.optimizers[name]
                for group in optimizer.param_groups:
                    group["lr"] = self.settings.learning_rate * scale
                for tensor, gradient, is_owned in zip(self.parameters, gradients, self.owned[name], strict=True):
                    tensor.grad = gradient if is_owned else None
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

    def advance(self) -> None:
        """Count one step and move the average towards the weights."""
        self.done += 1
        if self.average is not None:
            weight = 1 - schedules.average_decay(self.done, self.settings.average)
            with phase("update"):
                torch._foreach_lerp_(_averaged(self.average), _averaged(self.network), weight)

    def step(self, objective: Callable[[Network, Batch], Tensor], batch: Batch) -> Tensor:
        """One update on an objective (network, batch) -> scalar; returns its value."""
        loss, gradients = self.gradients(objective, batch)
        self.apply(gradients)
        self.advance()
        return loss

    def virtual(
        self,
        loss: Callable[..., Tensor],
        coefficients: Sequence[Tensor],
        images: Tensor,
        probe: Callable[[meta.Classifier, Batch], Tensor],
        batch: Batch,
        *,
        rate: float | None,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        mode: meta.MetaGradient = "jvp",
    ) -> list[Tensor]:
        """Gradient of `probe` after one virtual step of SGD with respect to the step's `coefficients`, one per tensor.

        `loss`: (logits of `images`, *coefficients) -> scalar, which the virtual step descends.  `probe`: (classifier,
        `batch`) -> scalar.  `rate` None: a step without length, see `lnl.functional.meta.gradients`.  `momentum`:
        share of the optimizer's momentum buffer in the step.  `weight_decay` counts in both losses.  Computed in
        float32, by batch statistics, with one dropout mask for `images`; changes neither weights nor BatchNorm's
        running statistics nor the next draws of dropout.
        """
        weights = [tensor.detach() for tensor in self.parameters]
        decays = [weight_decay * (tensor.ndim > 1) for tensor in weights]
        (optimizer,) = self.optimizers.values()
        drift = [decay * tensor for decay, tensor in zip(decays, weights, strict=True)]
        if momentum:
            buffers = [optimizer.state[tensor]["momentum_buffer"] for tensor in self.parameters]
            drift = [decay + momentum * buffer for decay, buffer in zip(drift, buffers, strict=True)]

        def at(weights: Sequence[Tensor]) -> meta.Classifier:
            named = dict(zip(self.names, weights, strict=True))
            return lambda images: functional_call(self.network, named, (images,))

        def logits(weights: Sequence[Tensor]) -> Tensor:
            with dropout_repeated(self.network):  # the same function of the weights in every pass
                return at(weights)(images)

        def probe_loss(weights: Sequence[Tensor]) -> Tensor:
            penalties = [
                decay / 2 * tensor.square().sum() for decay, tensor in zip(decays, weights, strict=True) if decay
            ]
            with dropout_repeated(self.network, ahead=1):  # other masks, so that images do not match by their position
                return probe(at(weights), batch) + sum(penalties)

        self.network.train()
        precise = torch.autocast(self.device.type, enabled=False)
        plain = sdpa_kernel(SDPBackend.MATH)  # fused attention has no second derivative
        with phase("meta"), networks.statistics_frozen(self.network), precise, plain:
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
        moves = update_statistics and network is self.network  # the average's statistics are averages, too
        with phase("inference"), nullcontext() if moves else networks.statistics_frozen(network), self._precision():
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
        network = self.network if self.average is None else self.average
        network.eval()
        with phase("inference"), self._precision():
            return torch.cat([call(network, part).float() for part in images.split(self.evaluation_batch)])

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")

    def _kernels(self) -> AbstractContextManager[None]:
        """Without oneDNN where its gradients in bfloat16 are wrong, see `precision`."""
        return nullcontext() if self.by_onednn else without_onednn()

    # ------------------------------------------------------------------------------------------------------- state

    def state_dict(self) -> State:
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "done": self.done,
        }

    def load_state_dict(self, state: State) -> None:
        self.network.load_state_dict(state["network"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.done = state["done"]


def _averaged(network: Network) -> list[Tensor]:
    """What an average of the network averages: its weights and BatchNorm's running statistics, but no counters.

    The statistics of the last few batches are those of other weights.
    """
    tensors = [*network.parameters(), *(buffer for buffer in network.buffers() if buffer.is_floating_point())]
    return [tensor.detach() for tensor in tensors]


def evaluation_batch(shape: tuple[int, ...], resize: int | None) -> int:
    """How many images or vectors of a shape go through a network at a time without gradient."""
    numbers = math.prod(shape) if resize is None else shape[0] * resize**2
    return max(1, min(EVALUATION_BATCH, EVALUATION_NUMBERS // numbers))


def trained_backbone(parts: Mapping[str, State]) -> dict[str, Tensor]:
    """The backbone of a method's first learner, by its averaged weights where there are any, from a stored snapshot."""
    state = next(part for part in parts.values() if "network" in part and "optimizers" in part)
    prefix = "backbone."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in (state["average"] or state["network"]).items()
        if name.startswith(prefix)
    }


def _optimizer(settings: Optimizer, parameters: Sequence[tuple[Tensor, bool]]) -> torch.optim.Optimizer:
    """An optimizer of (tensor, whether this optimizer decays it); only kernels, of two axes or more, are decayed."""
    kernels = [tensor for tensor, decays in parameters if decays and tensor.ndim > 1]
    others = [tensor for tensor, decays in parameters if not (decays and tensor.ndim > 1)]
    groups: list[dict[str, Any]] = [
        {"params": kernels, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    rate = settings.learning_rate
    if settings.kind != "sgd":
        adam = eager(torch.optim.Adam if settings.kind == "adam" else torch.optim.AdamW)
        return adam(groups, lr=rate, fused=True)
    sgd = eager(torch.optim.SGD)
    optimizer = sgd(groups, lr=rate, momentum=settings.momentum, nesterov=settings.nesterov, fused=True)
    if settings.momentum:  # torch's fused step breaks where some tensors have a momentum already and others do not
        for tensor, _ in parameters:
            optimizer.state[tensor]["momentum_buffer"] = torch.zeros_like(tensor)
    return optimizer


@contextmanager
def without_onednn() -> Iterator[None]:
    """Compute without oneDNN, PyTorch's fast kernels on CPUs."""
    flags = torch.backends.mkldnn.flags(enabled=False)
    with warnings.catch_warnings():  # of a flag for Intel GPUs, which is set along with this one
        warnings.simplefilter("ignore", UserWarning)
        flags.__enter__()
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            flags.__exit__(None, None, None)
