"""The tables of a network that have one row for each token, and how they grow with a tokenizer.

Axes: V vocabulary, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from groundup.errors import UserError
from groundup.nn.network import Network


def embeddings(network: Network) -> dict[str, nn.Embedding]:
    """The tables that token ids are looked up in, by name; none of a network that reads no tokens."""
    size = getattr(network.config, "vocabulary", None)
    found = network.named_modules()
    return {name: m for name, m in found if isinstance(m, nn.Embedding) and m.num_embeddings == size}


def outputs(network: Network) -> dict[str, nn.Module]:
    """The modules of the head with a row of their own for each token, by name; a tied head has none."""
    size = network.config.vocabulary  # type: ignore[attr-defined]
    inside = getattr(network, network.head_name).named_modules(prefix=network.head_name)
    return {
        name: module
        for name, module in inside
        if any(p.shape[0] == size and key in ("weight", "bias") for key, p in module.named_parameters(recurse=False))
    }


@torch.no_grad()
def grow(network: Network, vocab_size: int) -> Network:
    """The same network, in place, for a larger vocabulary: each new row is the mean of the old ones.

    So a new token begins neither likelier nor stranger than the average one (Hewitt 2021). Raises UserError
    for a vocabulary that is smaller: its tokens would lose their rows.
    """
    before: int = network.config.vocabulary  # type: ignore[attr-defined]
    if vocab_size < before:
        fix = "use the tokenizer that the model was trained with, or one made by adding tokens to it"
        raise UserError(f"the tokenizer has {vocab_size} tokens and the model {before}", fix=fix)
    if vocab_size == before:
        return network
    tables = list(embeddings(network).values())
    for module in [*tables, *outputs(network).values()]:
        for key, parameter in list(module.named_parameters(recurse=False)):
            if parameter.shape[0] == before:
                setattr(module, key, nn.Parameter(_longer(parameter, vocab_size), parameter.requires_grad))
        if isinstance(module, nn.Linear):
            module.out_features = vocab_size
    for key, fixed in list(network.named_buffers(recurse=False)):
        if fixed.shape[-1] == before:  # a fixed number for each token: Marian's bias
            setattr(network, key, nn.functional.pad(fixed, (0, vocab_size - before)))
    for table in tables:
        table.num_embeddings = vocab_size
    for key, constant in list(network.named_buffers(recurse=False)):
        if constant.shape[-1] == before:  # a bias of scores that never trains
            setattr(network, key, _longer(constant.t(), vocab_size).t())
    network.config = network.config.model_copy(update={"vocab_size": vocab_size})
    return network


def _longer(rows: Tensor, length: int) -> Tensor:
    mean = rows.float().mean(0, keepdim=True).to(rows.dtype)
    return torch.cat([rows, mean.expand(length - len(rows), *rows.shape[1:])])
