"""Adam's fused step, and nothing around it.

Before the kernel that does the work, torch's optimizers look for hooks, tell the profiler, ask whether a graph is
being captured, and sort all tensors by device and type. That is nothing beside a step of a large network and a fifth
of one of a small network. Here the lists are made once; the kernel is torch's, and so is all that happens where
something is out of the ordinary: the first step, weights without a gradient.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from groundup.training.uncompiled import Uncompiled


class _Lists(NamedTuple):
    """What the kernel wants of a group of weights, each list in the order of the weights."""

    params: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]
    steps: list[Tensor]
    counters: list[Tensor]
    """Those of `steps` that differ: weights that have learnt equally often share one, for counting takes time too."""


class _Direct(Uncompiled, torch.optim.Adam):
    """Adam or AdamW with `fused=True`, neither `amsgrad` nor `maximize`."""

    kernel: Callable[..., Any]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.lists: list[_Lists] | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update, as torch's own."""
        lists = self.lists or []
        grads = [[p.grad for p in each.params] for each in lists]
        if not lists or closure is not None or any(grad is None for each in grads for grad in each):
            return self._step_of_torch(closure)
        for group, (params, means, squares, steps, counters), each in zip(self.param_groups, lists, grads, strict=True):
            torch._foreach_add_(counters, 1)
            beta1, beta2 = group["betas"]
            rates = {"lr": group["lr"], "beta1": beta1, "beta2": beta2, "eps": group["eps"]}
            rest = {"weight_decay": group["weight_decay"], "amsgrad": False, "maximize": False}
            type(self).kernel(params, each, means, squares, [], steps, **rates, **rest)
        return None

    # torch wraps a step that is not marked so with what is left out here.
    step.hooked = True  # type: ignore[attr-defined]

    def load_state_dict(self, state_dict: Any) -> None:
        """Take back a state; the tensors of the one before are no longer those to move."""
        super().load_state_dict(state_dict)
        self.lists = None

    def _listed(self) -> list[_Lists] | None:
        """The tensors of every group; None while a weight has not had a gradient yet."""
        if not all(self.state.get(p) for group in self.param_groups for p in group["params"]):
            return None
        found = []
        for group in self.param_groups:
            states = [self.state[p] for p in group["params"]]
            counters: dict[float, Tensor] = {}
            for state in states:
                state["step"] = counters.setdefault(float(state["step"]), state["step"])
            means, squares, steps = ([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "step"))
            found.append(_Lists(list(group["params"]), means, squares, steps, list(counters.values())))
        return found

    def _step_of_torch(self, closure: Any) -> Any:
        """Torch's own step, which counts for each weight apart; then the lists anew."""
        if self.lists is not None:
            for state in self.state.values():
                state["step"] = state["step"].clone()
        found = _step_of_adam(self, closure)
        self.lists = self._listed()
        return found


_step_of_adam = inspect.unwrap(torch.optim.Adam.step)


class Adam(_Direct):
    """torch.optim.Adam(…, fused=True)."""

    kernel = staticmethod(torch._fused_adam_)


class AdamW(_Direct, torch.optim.AdamW):
    """torch.optim.AdamW(…, fused=True)."""

    kernel = staticmethod(torch._fused_adamw_)
