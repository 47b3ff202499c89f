"""The gradient of a loss that compares the examples of a whole step, when the step is cut into micro-batches.

The vectors of all micro-batches are computed without keeping what a backward pass needs; the loss and its
gradient by the vectors follow; then each micro-batch is computed again and its part of that gradient is
sent back through it (Gao et al. 2021, GradCache). The result is that of one large batch, in the memory of a
small one, for one more forward pass.

E vectors of a micro-batch, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from groundup.training.objective import Batch, Parts

Vectors = Callable[[Batch], Tensor]
Joint = Callable[[Sequence[Tensor], Sequence[Batch]], Parts]


def gradients(
    vectors: Vectors, joint: Joint, parts: Sequence[Batch], share: dict[str, Tensor], seed: Callable[[int], None]
) -> Tensor:
    """Leaves the gradients of the joint loss in place; returns each part of the loss, detached.

    vectors(batch): (E,D), differentiable. joint(all vectors, all batches): sums and counts by part.
    `share` is one over each part's count. `seed(i)` sets the random state before micro-batch i, so that
    both of its passes draw the same dropout.
    """
    held = []
    for micro, batch in enumerate(parts):
        seed(micro)
        with torch.no_grad():
            held.append(vectors(batch))
    leaves = [vector.detach().requires_grad_() for vector in held]
    losses = torch.stack([total * share[part] for part, (total, _) in joint(leaves, parts).items()])
    wanted = torch.autograd.grad(losses.sum(), leaves, allow_unused=True)
    for micro, (batch, gradient) in enumerate(zip(parts, wanted, strict=True)):
        if gradient is not None:
            seed(micro)
            torch.autograd.backward(vectors(batch), gradient)
    return losses.detach()
