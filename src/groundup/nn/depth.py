"""How deep each weight of a network lies: what comes before the blocks, the blocks in turn, what comes after.

It is read off the modules themselves: a backbone keeps its blocks in lists (`layers`, `h`,
`encoder.layer`, …), one list after the other in an encoder–decoder.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from groundup.errors import UserError
from groundup.nn.network import Network
from groundup.nn.positions import PositionTable


def depths(network: Network) -> dict[str, int]:
    """The depth of each weight by name: tables and what else comes before the blocks 0, block i of n (from 1) i.

    What follows the blocks (a last norm, a pooler, the head) has n + 1. What stands between two lists of
    blocks goes with the block before it. Raises UserError for a network without blocks.
    """
    blocks = _blocks(network)
    top, last, found = len(blocks) + 1, 0, {}
    tables = tuple(f"{name}." for name, m in network.named_modules() if isinstance(m, nn.Embedding | PositionTable))
    for name, _ in network.named_parameters():
        own = next((i for i, block in enumerate(blocks, 1) if name.startswith(f"{block}.")), None)
        last = own or last
        is_after = own is None and last == top - 1
        found[name] = 0 if name.startswith(tables) else top if is_after else last
    return found


def _blocks(network: Network) -> list[str]:
    """The names of the blocks, in their order."""
    backbone = getattr(network, network.prefix)
    blocks = [f"{name}.{i}" for name, found in _outermost_lists(backbone, network.prefix) for i in range(len(found))]
    if not blocks:
        raise UserError("the model has no blocks one after the other", fix="leave `layers` out of the recipe")
    return blocks


def _outermost_lists(module: nn.Module, name: str) -> Iterator[tuple[str, nn.ModuleList]]:
    for key, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            yield f"{name}.{key}", child
        else:
            yield from _outermost_lists(child, f"{name}.{key}")
