"""Matrix products of linear layers in fp32 on a CPU, by whichever library is faster on it.

torch multiplies fp32 matrices with the library it was built with, on x86 usually MKL, and carries
oneDNN beside it for other uses. Neither wins everywhere: on AMD's Zen 4 oneDNN takes 0.65 of MKL's
time for `x wᵀ` and `g w`, and about the same for `gᵀ x`. Within `multiplying("onednn")` every
`F.linear` on fp32 tensors on a CPU takes oneDNN for the first two.

Axes: N positions, I inputs, O outputs.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Matmul = Literal["torch", "onednn"]
"""Which library multiplies: the one torch takes by itself, or oneDNN where that is possible."""

_active = False
KERNELS = 128
"""Sizes of products that a server remembers the kernels of."""


@contextmanager
def multiplying(library: Matmul) -> Iterator[None]:
    """A block whose linear layers multiply with `library`, in the forward pass and in the backward pass of it.

    "torch" changes nothing, also not inside another block.
    """
    global _active
    if library == "torch":
        yield
        return
    before, _active = _active, True
    try:
        with _OneDnn():
            yield
    finally:
        _active = before


def current() -> Matmul:
    """The library of the block this is called in."""
    return "onednn" if _active else "torch"


def recomputed() -> dict[str, Any]:
    """Options of torch's `checkpoint`: what is computed again in the backward pass is multiplied as the first time.

    The second computation happens outside the block that chose a library; a compiled one has it built in.
    """
    library = current()
    if torch.compiler.is_compiling() or library == "torch":
        return {}
    return {"context_fn": lambda: (nullcontext(), multiplying(library))}


def remember_few_sizes() -> None:
    """Have oneDNN remember the kernels of KERNELS sizes, unless the environment says; before the first product.

    It and torch's layer over it each keep 1024 of themselves, together nearly a megabyte apiece, and a server meets a
    new size with every new number of tokens. To make a kernel again takes about a millisecond.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(KERNELS))


def product(x_NI: Tensor, weight_OI: Tensor, library: Matmul) -> Tensor:
    """x wᵀ by a library, (N, O), not differentiable. For measuring: both may be transposed views."""
    return _multiply(x_NI, weight_OI, None) if library == "onednn" else F.linear(x_NI, weight_OI)


def libraries(device: str, dtype: torch.dtype = torch.float32) -> tuple[Matmul, ...]:
    """What there is to choose from: both only on a CPU, in fp32, where torch carries oneDNN's operator."""
    carried = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]
    return ("torch", "onednn") if carried and device == "cpu" and dtype == torch.float32 else ("torch",)


def gain(d_model: int = 512, budget_s: float = 0.3) -> float:
    """How many times faster oneDNN multiplies here in layers of a width; 0 without it.

    Both take turns at the products of a feed-forward layer's forward and backward pass; the medians are
    compared, because MKL's times differ by a third with where its matrices lie.
    """
    if "onednn" not in libraries("cpu"):
        return 0.0
    times: dict[Matmul, list[float]] = {"torch": [], "onednn": []}
    end, rounds = time.perf_counter() + budget_s, 0
    while rounds < 6 or time.perf_counter() < end:
        x_NI, weight_OI = torch.randn(1024, d_model), torch.randn(3 * d_model, d_model)
        slope_NO = torch.randn(1024, 3 * d_model)
        for library in times:
            start = time.perf_counter()
            product(x_NI, weight_OI, library)
            product(slope_NO, weight_OI.t(), library)
            times[library].append(time.perf_counter() - start)
        rounds += 1
    # The first products pay for loading the libraries and waking the threads.
    return statistics.median(times["torch"][1:]) / statistics.median(times["onednn"][1:])


class _OneDnn(TorchFunctionMode):
    """Sends `F.linear` to oneDNN where it can take it, and leaves every other call as it is."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.linear and not kwargs and _suits(args[0], args[1]):
            bias_O = args[2] if len(args) > 2 else None
            if torch.compiler.is_compiling():
                return _linear(args[0], args[1], bias_O)
            return _Linear.apply(args[0], args[1], bias_O)  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


def _suits(x: Tensor, weight: Tensor) -> bool:
    return x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu" and x.dim() >= 2


def _multiply(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight_OI, bias_O, "none", [], "")
    return out


@torch.library.custom_op("groundup::linear", mutates_args=())
def _linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """x wᵀ + bias as an operator of its own, which torch.compile keeps whole."""
    return _multiply(x, weight_OI, bias_O)


@_linear.register_fake
def _(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight_OI.shape[0])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    x, weight_OI, bias_O = inputs
    ctx.save_for_backward(x, weight_OI)
    ctx.has_bias = bias_O is not None


def _backward(context: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    return _slopes(context, slope, _linear)


_linear.register_autograd(_backward, setup_context=_keep)


class _Linear(torch.autograd.Function):
    """The same without the operator, which costs a tenth of a millisecond a layer where nothing is compiled."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        out = _multiply(x, weight_OI, bias_O)
        _keep(ctx, (x, weight_OI, bias_O), out)
        return out

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return _slopes(ctx, slope, _multiply)


def _slopes(
    context: Any, slope: Tensor, multiply: Callable[[Tensor, Tensor, Tensor | None], Tensor]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """What the loss changes by with x, weight and bias, as far as each is asked for."""
    x, weight_OI = context.saved_tensors
    by_x, by_weight, by_bias = context.needs_input_grad
    slope_NO = slope.reshape(-1, slope.shape[-1])
    return (
        multiply(slope, weight_OI.t(), None) if by_x else None,
        # torch's own library is as fast here, and needs no copies of the two transposed matrices.
        slope_NO.t() @ x.reshape(-1, x.shape[-1]) if by_weight else None,
        slope_NO.sum(0) if context.has_bias and by_bias else None,
    )
