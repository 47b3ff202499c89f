"""LoRA: a trained change of low rank beside each frozen matrix (Hu et al. 2021, section 4.1).

`rank_stabilised` makes it rsLoRA (Kalajdzievski 2023), `base_bits` QLoRA (Dettmers et al. 2023). At first
the change is zero: A is drawn from a normal distribution and B is zero.
"""

from __future__ import annotations

from groundup.adapters import _low_rank
from groundup.adapters._low_rank import LowRank, check_merge, describe, merge, trainable
from groundup.nn.network import Network

__all__ = ["VERSION", "Config", "check_merge", "describe", "merge", "trainable", "wrap"]

VERSION = 1


class Config(LowRank):
    """A change of low rank beside frozen matrices."""


def wrap(network: Network, config: Config, *, seed: int = 0, new_tokens: bool = False) -> Network:
    """The same network, changed in place: frozen, with a trained change of low rank beside each target.

    With `new_tokens` the tables of the tokens train too. Raises UserError for targets that do not exist.
    """
    return _low_rank.wrap(network, config, seed=seed, new_tokens=new_tokens)
