"""Linear layers of a network that only answers, laid out once as the library reads them that multiplies.

A product of few tokens with a large matrix is mostly the reading of that matrix. Libraries read it in blocks that fit
their registers, and copy a matrix of plain rows into such blocks at every call; for a server, which computes a token
for each of a few texts at a time and the same matrices for days, that is most of the work. oneDNN, which torch
carries, takes matrices that were laid out before. Measured on AMD's Zen 4, two threads, the linear layers of a
Llama-type model of 134 million parameters: 22 ms in the place of 34 for one token, 44 in the place of 101 for 32.

Layers that read the same input, as those of queries, keys and values do, are laid out as one and multiplied at once:
each call has a price of its own. A module says of which layers that is true in `together`, tuples of their names.
Measured in turns on Zen 3, two threads, a server's steps for eight texts with 30 million parameters: 41 ms in the place
of 47 to 50; for one text and for 32 the same within the noise.

What is laid out can be multiplied with and nothing else, so such a network neither trains nor is saved. Weights can
be rounded to bf16 on the way, which halves what is read and, where the processor multiplies bf16, what is computed: 13
and 24 ms for the same two, were the last layer rounded too. That is for who serves a model to decide, since it changes
what the model says a little.

Axes: N tokens of a call, I inputs, O outputs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groundup.errors import UserError
from groundup.nn import products
from groundup.nn.adapted import BEFORE, NUMBERS, digest
from groundup.nn.layers import LanguageHead, ResidualLinear, TiedLanguageHead

Precision = Literal["fp32", "bf16"]
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ROWS = 32
"""Tokens of a call for which the blocks are chosen; they serve for any number."""
PLAIN = (nn.Linear, ResidualLinear, LanguageHead)
"""Layers that compute x wᵀ + b and nothing else."""
LEAST = 1 << 18
"""Numbers of the largest layer of a network that is worth it: in a smaller one chance would decide what is faster."""
TRIES = 5


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """x wᵀ + b in the precision of x, whether w was laid out or not, and whether it was rounded or not."""
    if not weight_OI.is_mkldnn:
        return F.linear(x, weight_OI, bias_O)
    if not x.numel():
        return x.new_empty(*x.shape[:-1], len(weight_OI))
    is_alike = x.dtype == weight_OI.dtype  # as nearly always; converting to what it is takes microseconds, too
    given = x if is_alike else x.to(weight_OI.dtype)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(given, weight_OI, bias_O, "none", [], "")
    return out if is_alike else out.to(x.dtype)


class PackedLinear(nn.Linear):
    """A linear layer whose `weight` is laid out, rounded to bf16 where that is asked for.

    `weight` has its shape, and `to_dense` gives its numbers, bit for bit unless they were rounded.
    """

    def __init__(self, plain: nn.Linear, precision: Precision = "fp32") -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        dtype, bias_O = TYPES[precision], plain.bias
        laid_out = torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach().to(dtype), ROWS)
        self.weight = nn.Parameter(laid_out, requires_grad=False)
        self.bias = None if bias_O is None else nn.Parameter(bias_O.detach().to(dtype), requires_grad=False)
        if precision != "fp32":
            for rounded, exact in ((self.weight, plain.weight), (self.bias, bias_O)):
                if rounded is not None:
                    setattr(rounded, BEFORE, digest(exact))
        self.train(plain.training)

    def forward(self, input: Tensor) -> Tensor:
        """(…, I) to (…, O)."""
        return linear(input, self.weight, self.bias)


class Together:
    """Layers that read the same input, laid out as one: who is called first computes for all of them."""

    def __init__(self, layers: Sequence[nn.Linear], precision: Precision = "fp32") -> None:
        weight_OI = torch.cat([layer.weight.detach() for layer in layers]).to(TYPES[precision])
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI, ROWS)
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self.bias = torch.cat(biases).to(TYPES[precision]) if biases else None
        self.sizes = [layer.out_features for layer in layers]
        self._read: Tensor | None = None
        self._parts: list[Tensor | None] = []

    def part(self, number: int, x: Tensor) -> Tensor:
        """What the layer of this number gives for x, (…, I) to (…, O), a view."""
        found = self._parts[number] if self._read is x else None
        if found is None:
            self._read, self._parts = x, [*torch.split(linear(x, self.weight, self.bias), self.sizes, -1)]
            found = self._parts[number]
            assert found is not None
        self._parts[number] = None
        if not any(part is not None for part in self._parts):
            self._read = None
        return found

    def rows(self, number: int) -> Tensor:
        """The matrix of the layer of this number, (O, I), in the precision that it is kept in."""
        return torch.split(self.weight.to_dense(), self.sizes)[number]


class PartLinear(nn.Linear):
    """A linear layer that is multiplied together with others.

    `weight` has its shape and gives no numbers; they lie in `whole`.
    """

    def __init__(self, plain: nn.Linear, together: Together, number: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.whole, self.number = together, number
        # Whoever multiplies with it by mistake shall see that.
        nothing = torch.full((1, 1), torch.nan, dtype=plain.weight.dtype).expand(plain.weight.shape)
        self.weight, self.bias = nn.Parameter(nothing, requires_grad=False), plain.bias
        if together.weight.dtype == plain.weight.dtype:
            setattr(self.weight, NUMBERS, partial(together.rows, number))
        else:
            setattr(self.weight, BEFORE, digest(plain.weight))
        self.train(plain.training)

    def forward(self, input: Tensor) -> Tensor:
        """(…, I) to (…, O), a view."""
        return self.whole.part(self.number, input)


class TableHead(nn.Module):
    """Scores by the table of embeddings, which looks tokens up too and so stays as it is; oneDNN reads it plain."""

    def __init__(self, head: TiedLanguageHead) -> None:
        super().__init__()
        self.source = head.source

    def forward(self, hidden: Tensor) -> Tensor:
        """(…, D) to (…, V)."""
        table_VD = self.source[0].weight
        if not hidden.numel():
            return hidden.new_empty(*hidden.shape[:-1], len(table_VD))
        return products.product(hidden, table_VD, "onednn")


def pack(network: nn.Module, precision: Precision = "fp32") -> int:
    """Lay out every linear layer of a network in place, if that makes it faster here; how many there were.

    In bf16 the weights of all layers but the last, which scores tokens, are rounded: its scores must tell apart what
    is nearly as likely. Products are summed in fp32 and rounded once; all that is no product stays in fp32.
    Otherwise nothing happens to a network that is small, elsewhere than on a CPU, in another precision, or quantised.
    Raises UserError for bf16 on a machine that has no products of it.
    """
    modules = dict(network.named_modules())
    layers = {name: layer for name, layer in modules.items() if type(layer) in PLAIN and isinstance(layer, nn.Linear)}
    heads = {name: head for name, head in modules.items() if isinstance(head, TiedLanguageHead)}
    del modules
    largest = max(layers.values(), key=lambda layer: layer.weight.numel(), default=None)
    if precision == "bf16":
        _require_bf16(largest)
    if largest is None or not _is_for(largest.weight):
        return 0
    if precision == "fp32" and (largest.weight.numel() < LEAST or gain(largest) <= 1.0):
        return 0
    count, largest = len(layers), None
    for names in _groups(network, layers):
        together = Together([layers[name] for name in names], precision)
        for number, name in enumerate(names):
            network.set_submodule(name, PartLinear(layers.pop(name), together, number))
    while layers:  # one after the other: of no other layer are both forms in memory
        name, layer = layers.popitem()
        network.set_submodule(name, PackedLinear(layer, "fp32" if isinstance(layer, LanguageHead) else precision))
    for name, head in heads.items():
        network.set_submodule(name, TableHead(head))
    return count


def _groups(network: nn.Module, layers: Mapping[str, nn.Linear]) -> list[list[str]]:
    """Names of the layers that are multiplied together, of each group."""
    found = []
    for place, module in network.named_modules():
        for names in getattr(module, "together", ()):
            full = [f"{place}.{name}" if place else name for name in names]
            if all(name in layers for name in full) and len({layers[name].bias is None for name in full}) == 1:
                found.append(full)
    return found


def _require_bf16(layer: nn.Linear | None) -> None:
    if layer is None or not _is_for(layer.weight) or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        fix = "leave `precision` out; on GPUs a language model can be served with --engine vllm"
        raise UserError("weights in bf16 need a CPU that multiplies them (AVX512-BF16 or AMX)", fix=fix)


def _is_for(weight: Tensor) -> bool:
    return "onednn" in products.libraries(weight.device.type, weight.dtype)


@torch.inference_mode()
def gain(layer: nn.Linear) -> float:
    """How many times faster a layer is when it is laid out, for one token and for ROWS of them together."""
    packed = PackedLinear(layer)
    times: dict[nn.Module, list[float]] = {layer: [], packed: []}
    for _ in range(TRIES):
        for each in times:
            start = time.perf_counter()
            for rows in (1, ROWS):
                each(torch.ones(rows, layer.in_features))
            times[each].append(time.perf_counter() - start)
    # The first products pay for loading the libraries and waking the threads.
    return statistics.median(times[layer][1:]) / statistics.median(times[packed][1:])
