"""DoRA: as LoRA, and the length of each row of a matrix trains apart from its direction.

A row of the changed matrix is m · (w + s · b A) / ‖w + s · b A‖, where m begins as ‖w‖; the norm below the
line is a constant to the gradient (Liu et al. 2024, sections 4.1 and 4.3). Dropout is on the way into A
only, so that the product with the frozen matrix is made once.
"""

from __future__ import annotations

from groundup.adapters import _low_rank
from groundup.adapters._low_rank import LowRank, check_merge, describe, merge, trainable
from groundup.nn.network import Network

__all__ = ["VERSION", "Config", "check_merge", "describe", "merge", "trainable", "wrap"]

VERSION = 1


class Config(LowRank):
    """A change of low rank in direction, and lengths of rows that train apart."""


def wrap(network: Network, config: Config, *, seed: int = 0, new_tokens: bool = False) -> Network:
    """The same network, changed in place: frozen, with a trained direction and length beside each target.

    With `new_tokens` the tables of the tokens train too. Raises UserError for targets that do not exist.
    """
    return _low_rank.wrap(network, config, seed=seed, new_tokens=new_tokens, trains_magnitude=True)
