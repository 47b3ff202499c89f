"""Torch's optimizers without torch's compiler.

Torch's own import it, a second or two, to have what they do left out of graphs; ours are never part of one. What they
compute is untouched.
"""

from __future__ import annotations

import inspect

import torch


class Uncompiled(torch.optim.Optimizer):
    """An optimizer that never asks for the compiler; a `step` of torch's is unwrapped beside it."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)


class SGD(Uncompiled, torch.optim.SGD):
    """torch.optim.SGD."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class Adagrad(Uncompiled, torch.optim.Adagrad):
    """torch.optim.Adagrad."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.Adagrad.step))


class RMSprop(Uncompiled, torch.optim.RMSprop):
    """torch.optim.RMSprop."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.RMSprop.step))
