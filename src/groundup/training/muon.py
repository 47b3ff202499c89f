"""Muon: momentum whose update is made orthogonal, for the hidden weight matrices.

Jordan et al. 2024 (Muon: an optimizer for hidden layers). The scale of the update follows Liu et al.
2025 (Muon is scalable for LLM training, section 2.2): 0.2 * sqrt(max(rows, columns)) brings its root
mean square to that of AdamW, so one learning rate and one weight decay serve both. torch has a Muon of
its own, which always multiplies in bfloat16 and one matrix at a time; where bfloat16 is slow (most
CPUs) that costs more than it saves, so here the products are in the precision of the device and
matrices of equal shape are multiplied in one batch. A test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from groundup.training.uncompiled import Uncompiled

# The quintic of Jordan et al.: largest slope at zero, so that five steps bring singular values of
# any size near 1 (to within about 0.7 to 1.2, which trains as well as exactly 1).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


class Muon(Uncompiled):
    """The optimizer; every parameter must be a matrix. `lr` is on AdamW's scale."""

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        precision: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.precision = precision
        if any(p.ndim != 2 for group in self.param_groups for p in group["params"]):
            raise ValueError("Muon takes matrices only; give vectors and embeddings to AdamW")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None, "Muon needs no closure"
        for group in self.param_groups:
            for params in _by_shape(p for p in group["params"] if p.grad is not None):
                self._update(params, group)

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        momenta = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in params]
        grads = [p.grad for p in params if p.grad is not None]
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        # Nesterov's look ahead: the gradient mixed once more with the new momentum.
        ahead = torch._foreach_lerp(grads, momenta, group["momentum"])
        updates = orthogonalised(torch.stack(list(ahead)), precision=self.precision)
        rows, columns = params[0].shape
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(params, list(updates.unbind()), alpha=-group["lr"] * 0.2 * max(rows, columns) ** 0.5)


def orthogonalised(matrices_NRC: Tensor, *, precision: torch.dtype = torch.float32) -> Tensor:
    """The nearest orthogonal matrices, roughly: the same singular vectors, singular values near 1.

    matrices_NRC: (matrices, rows, columns). Five Newton–Schulz steps in `precision`; the result has
    the dtype of the input.
    """
    a, b, c = COEFFICIENTS
    x = matrices_NRC.to(precision)
    is_tall = x.size(1) > x.size(2)
    x = x.mT if is_tall else x  # the smaller Gram matrix
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.mT if is_tall else x
    return result.to(matrices_NRC.dtype)


def _by_shape(params: Iterable[Tensor]) -> list[list[Tensor]]:
    groups: dict[torch.Size, list[Tensor]] = {}
    for p in params:
        groups.setdefault(p.shape, []).append(p)
    return list(groups.values())
