"""Optimizers by name, which weights they decay, and their state as plain tensors.

The rule for weight decay (and L1) is one sentence: matrices are decayed; norms, biases and
embeddings are not. Muon takes the matrices inside the network; embeddings, the output head, norms and
biases go to AdamW. torch's own implementations are used, the fused ones where a device has them: one
pass over each tensor instead of several, which also pays on CPU.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, SerializeAsAny
from torch import Tensor, nn

from groundup.config import OneOf, Section
from groundup.training import fused, uncompiled
from groundup.training.muon import Muon as MuonOptimizer

Rate = Annotated[float, Field(gt=0)]
Amount = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Group = dict[str, Any]

FUSED = {
    "cpu": (uncompiled.SGD, uncompiled.Adagrad, fused.Adam, fused.AdamW),
    "cuda": (uncompiled.SGD, fused.Adam, fused.AdamW),
    "mps": (uncompiled.SGD, fused.Adam, fused.AdamW),
}
"""Which optimizers have a fused step on which device."""


class Optimizer(Section):
    """What every optimizer has."""

    lr: Rate = 1e-3
    """The peak learning rate; the schedule scales it."""
    weight_decay: Amount = 0.0
    """Decay of matrices towards zero; norms, biases and embeddings are never decayed."""

    @abstractmethod
    def build(self, weights: Weights, device: str) -> list[torch.optim.Optimizer]:
        """The torch optimizers that together hold every weight once."""


class Sgd(Optimizer):
    """Plain stochastic gradient descent."""

    name: Literal["sgd"] = "sgd"
    lr: Rate = 0.1
    """The peak learning rate."""

    def build(self, weights: Weights, device: str) -> list[torch.optim.Optimizer]:
        return [_torch(uncompiled.SGD, weights.groups(self.weight_decay), device, lr=self.lr)]


class Momentum(Optimizer):
    """Gradient descent with momentum, Nesterov's form by default (Sutskever et al. 2013)."""

    name: Literal["momentum"] = "momentum"
    lr: Rate = 0.05
    """The peak learning rate."""
    momentum: Fraction = 0.9
    """How much of the last step's velocity is kept."""
    nesterov: bool = True
    """Look ahead along the velocity before taking the gradient."""

    def build(self, weights: Weights, device: str) -> list[torch.optim.Optimizer]:
        options = {"lr": self.lr, "momentum": self.momentum, "nesterov": self.nesterov and self.momentum > 0}
        return [_torch(uncompiled.SGD, weights.groups(self.weight_decay), device, **options)]


class Adagrad(Optimizer):
    """Rates that fall with the sum of squared gradients (Duchi et al. 2011)."""

    name: Literal["adagrad"] = "adagrad"
    lr: Rate = 1e-2
    """The peak learning rate."""
    eps: Rate = 1e-10
    """Keeps the division finite."""

    def build(self, weights: Weights, device: str) -> list[torch.optim.Optimizer]:
        return [_torch(uncompiled.Adagrad, weights.groups(self.weight_decay), device, lr=self.lr, eps=self.eps)]


class RmsProp(Optimizer):
    """Rates scaled by a running mean of squared gradients (Tieleman & Hinton 2012)."""

    name: Literal["rmsprop"] = "rmsprop"
    alpha: Fraction = 0.99
    """How slowly the running mean forgets."""
    eps: Rate = 1e-8
    """Keeps the division finite."""

    def build(self, weights: Weights, device: str) -> list[torch.optim.Optimizer]:
        options = {"lr": self.lr, "alpha": self.alpha, "eps": self.eps}
        return [_torch(uncompiled.RMSprop, weights.groups(self.weight_decay), device, **options)]


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015); its weight decay is L2, part of the gradient."""

    name: Literal["adam"] = "adam"
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """How slowly the running means of the gradient and of its square forget."""
    eps: Rate = 1e-8
    """Keeps the division finite."""

    def build(self, weights: Weights, device: str) -> list[torch.optim.Optimizer]:
        options = {"lr": self.lr, "betas": self.betas, "eps": self.eps}
        return [_torch(fused.Adam, weights.groups(self.weight_decay), device, **options)]


class AdamW(Optimizer):
    """Adam with weight decay apart from the gradient (Loshchilov & Hutter 2019)."""

    name: Literal["adamw"] = "adamw"
    weight_decay: Amount = 0.1
    """Decay of matrices towards zero, times the rate; norms, biases and embeddings are not decayed."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """How slowly the running means of the gradient and of its square forget."""
    eps: Rate = 1e-8
    """Keeps the division finite."""

    def build(self, weights: Weights, device: str) -> list[torch.optim.Optimizer]:
        options = {"lr": self.lr, "betas": self.betas, "eps": self.eps}
        return [_torch(fused.AdamW, weights.groups(self.weight_decay), device, **options)]


class Muon(Optimizer):
    """Muon for the hidden matrices, AdamW for the rest (Jordan et al. 2024; Liu et al. 2025)."""

    name: Literal["muon"] = "muon"
    weight_decay: Amount = 0.1
    """Decay of matrices towards zero, times the rate; norms, biases and embeddings are not decayed."""
    momentum: Fraction = 0.95
    """How much of the running mean of the gradient is kept."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """AdamW's, for embeddings, head, norms and biases."""
    eps: Rate = 1e-8
    """AdamW's; keeps the division finite."""

    def build(self, weights: Weights, device: str) -> list[torch.optim.Optimizer]:
        hidden = {"lr": self.lr, "weight_decay": self.weight_decay, "momentum": self.momentum}
        # Newton–Schulz tolerates bfloat16, which GPUs multiply far faster; CPUs mostly do not.
        precision = torch.bfloat16 if device == "cuda" else torch.float32
        rest = {"lr": self.lr, "betas": self.betas, "eps": self.eps}
        found: list[torch.optim.Optimizer] = []
        if weights.hidden:
            found.append(MuonOptimizer(by_scale(weights.hidden, weights.scales), precision=precision, **hidden))
        found.append(_torch(fused.AdamW, weights.groups(self.weight_decay, but_hidden=True), device, **rest))
        return found


OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": Sgd,
    "momentum": Momentum,
    "adagrad": Adagrad,
    "rmsprop": RmsProp,
    "adam": Adam,
    "adamw": AdamW,
    "muon": Muon,
}

AnyOptimizer = Annotated[SerializeAsAny[Optimizer], OneOf("optimizer", OPTIMIZERS)]
"""The type of a recipe field that names an optimizer."""


class Weights:
    """A network's trainable weights, sorted by how optimizers treat them.

    `decayed`: matrices and larger, except embeddings. `plain`: norms, biases, embeddings. `hidden`:
    the two-dimensional ones of `decayed` outside the output head.
    """

    def __init__(self, network: nn.Module, scales: Mapping[str, float] | None = None) -> None:
        """`scales` gives, by name, what the learning rate of a weight is multiplied by; 1 for the others."""
        named = dict(network.named_parameters())
        self.scales = {id(named[name]): scale for name, scale in (scales or {}).items()}
        trained = [p for p in network.parameters() if p.requires_grad]
        embeddings = _identities(m for m in network.modules() if isinstance(m, nn.Embedding))
        head = getattr(network, "head", None)
        in_head = _identities([head]) if isinstance(head, nn.Module) else set()
        self.decayed = [p for p in trained if p.ndim >= 2 and id(p) not in embeddings]
        self.plain = [p for p in trained if p.ndim < 2 or id(p) in embeddings]
        self.hidden = [p for p in self.decayed if p.ndim == 2 and id(p) not in in_head]

    def groups(self, weight_decay: float, *, but_hidden: bool = False) -> list[Group]:
        """Parameter groups with and without decay, and by their scale of the rate; empty ones are left out."""
        left_out = {id(p) for p in self.hidden} if but_hidden else set()
        if not weight_decay:
            alike = [p for p in (*self.decayed, *self.plain) if id(p) not in left_out]
            return [group | {"weight_decay": 0.0} for group in by_scale(alike, self.scales)]
        decayed = [p for p in self.decayed if id(p) not in left_out]
        with_decay = [group | {"weight_decay": weight_decay} for group in by_scale(decayed, self.scales)]
        return with_decay + [group | {"weight_decay": 0.0} for group in by_scale(self.plain, self.scales)]


def by_scale(weights: Iterable[nn.Parameter], scales: Mapping[int, float]) -> list[Group]:
    """Groups of weights with the same scale of the learning rate, told by identity; the fastest first."""
    found: dict[float, list[nn.Parameter]] = {}
    for p in weights:
        found.setdefault(scales.get(id(p), 1.0), []).append(p)
    return [{"params": found[scale], "lr_scale": scale} for scale in sorted(found, reverse=True)]


def set_lr(optimizers: list[torch.optim.Optimizer], lr: float) -> None:
    """Give every parameter group a learning rate, times the group's own scale."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr * float(group.get("lr_scale", 1.0))


def state_of(optimizers: list[torch.optim.Optimizer], network: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizers' state as tensors named `PARAMETER/KEY`, and the entries that are no tensors."""
    names = {id(p): name for name, p in network.named_parameters()}
    tensors: dict[str, Tensor] = {}
    others: dict[str, Any] = {}
    for optimizer in optimizers:
        for p, entries in optimizer.state.items():
            for key, value in entries.items():
                place = tensors if isinstance(value, Tensor) else others
                # Weights may share a counter (`fused.py`); in a file each has its own.
                place[f"{names[id(p)]}/{key}"] = value.clone() if key == "step" and place is tensors else value
    return tensors, others


def load_state(optimizers: list[torch.optim.Optimizer], network: nn.Module, entries: dict[str, Tensor | Any]) -> None:
    """Put back what `state_of` gave, onto the devices the parameters are on."""
    names = {id(p): name for name, p in network.named_parameters()}
    by_name: dict[str, dict[str, Any]] = {}
    for place, value in entries.items():
        name, _, key = place.rpartition("/")
        by_name.setdefault(name, {})[key] = value
    for optimizer in optimizers:
        ordered = [p for group in optimizer.param_groups for p in group["params"]]
        state = {i: by_name[names[id(p)]] for i, p in enumerate(ordered) if names[id(p)] in by_name}
        # torch's own loader knows which entries follow the parameter's device and which do not.
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _identities(modules: Any) -> set[int]:
    return {id(p) for module in modules for p in module.parameters()}


def _torch(
    kind: Callable[..., torch.optim.Optimizer], groups: list[Group], device: str, **options: Any
) -> torch.optim.Optimizer:
    if kind in FUSED.get(device, ()):
        options["fused"] = True
    return kind(groups, **options)
