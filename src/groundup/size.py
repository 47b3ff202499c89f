"""A size for the model: what data and a time budget can train best on this machine.

Two real measurements (the planned model, and one of half its width) give the seconds per token as a
straight line in FLOPs per token. For every width and depth of a grid the budget then buys a number of
tokens, and a scaling law says which pair of parameters N and tokens D reaches the lowest loss:
L(N, D) = E + A / N^α + B / D^β with the constants of Besiroglu et al. 2024 ("Chinchilla Scaling: A
replication attempt", §4), who refitted Hoffmann et al. 2022. Repeated data counts less: D is replaced
by the effective tokens of Muennighoff et al. 2023 (§5, eq. 5). The law was fitted on much larger
models and other data, so the order of proposals means more than the losses, which are not printed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from groundup import catalog
from groundup.config import Named
from groundup.errors import UserError
from groundup.plan import Plan, Step

E, A, B, ALPHA, BETA = 1.8172, 482.01, 2085.43, 0.3478, 0.3658
HALF_LIFE = 15.39
"""R*_D of Muennighoff et al. 2023: after this many repetitions a token is worth 1/e of a new one."""
WIDTHS = (64, 96, 128, 192, 256, 320, 384, 512, 640, 768, 1024, 1280, 1536, 2048)
SHAPES = (32, 64, 96)
"""Width divided by depth; Kaplan et al. 2020 (§3.1) find loss nearly flat between these."""
HEAD = 64


@dataclass(frozen=True)
class Proposal:
    """A model and a number of tokens for the budget."""

    d_model: int
    n_layers: int
    n_heads: int
    parameters: int
    tokens: int
    epochs: float
    seconds: float
    score: float
    """The law's loss, for ordering only."""

    def as_data(self) -> dict[str, Any]:
        """The proposal as plain data."""
        return asdict(self)


def propose(plan: Plan, seconds: float, *, count: int = 3) -> list[Proposal]:
    """The best sizes for `seconds` of training the recipe's first pretraining stage.

    Raises UserError if the recipe has none, or if the budget is too small for any size.
    """
    step = _pretraining(plan)
    measure: Callable[..., float] = step.stage.module.seconds_per_token
    facts = step.forecast.facts
    model = step.stage.config.model  # type: ignore[attr-defined]
    model = model.model_copy(update={"vocab_size": facts["vocab_size"]})
    family = catalog.load("models", model.name)
    small = _resized(model, max(64, model.d_model // 2), model.n_layers)
    known = [(_flops(family, m), measure(step.stage.config, m)) for m in (model, small)]
    cost = _line(known[1], known[0])
    available = max(1, int(facts["data_tokens"]))
    found = [_proposal(family, candidate, cost, seconds, available) for candidate in _candidates(model)]
    possible = sorted((p for p in found if p.tokens >= p.parameters), key=lambda p: p.score)
    if not possible:
        raise UserError("the budget is too small to train even the smallest size", fix="give more time")
    return possible[:count]


def effective_tokens(tokens: float, unique: float) -> float:
    """What `tokens` drawn from `unique` different ones are worth in new ones (Muennighoff et al. 2023)."""
    if tokens <= unique:
        return tokens
    repeats = tokens / unique - 1
    return unique + unique * HALF_LIFE * (1 - math.exp(-repeats / HALF_LIFE))


def expected_loss(parameters: float, tokens: float) -> float:
    """The law's loss in nats per token of its own data, for `parameters` and (effective) `tokens`."""
    return float(E + A / parameters**ALPHA + B / tokens**BETA)


def _pretraining(plan: Plan) -> Step:
    for step in plan.steps.values():
        if hasattr(step.stage.module, "seconds_per_token") and "data_tokens" in step.forecast.facts:
            return step
    fix = "a fresh stage has nothing to choose; change its `model`, or plan a recipe with a `pretrain` stage"
    raise UserError("the recipe has no stage left to pretrain", where=str(plan.recipe.path), fix=fix)


def _candidates(model: Named) -> Iterator[Named]:
    for width in WIDTHS:
        depths = {max(2, round(width / shape)) for shape in SHAPES}
        yield from (_resized(model, width, depth) for depth in sorted(depths))


def _resized(model: Named, width: int, depth: int) -> Named:
    """The same family at another width and depth: what depends on the width follows its defaults."""
    kept = model.model_dump(exclude_unset=True)
    for key in ("d_ff", "d_hidden", "head_dim", "n_kv_heads"):
        kept.pop(key, None)
    heads = {"n_heads": max(1, width // HEAD)} if "n_heads" in type(model).model_fields else {}
    return type(model)(**{**kept, "d_model": width, "n_layers": depth, **heads})


def _flops(family: Any, model: Named) -> float:
    return 3 * float(family.flops_per_token(model, model.context))  # type: ignore[attr-defined]


def _line(small: tuple[float, float], large: tuple[float, float]) -> Callable[[float], float]:
    """Seconds per token through two measured points; never below the better rate of the two."""
    slope = max(0.0, (large[1] - small[1]) / max(1.0, large[0] - small[0]))
    fixed = max(0.0, small[1] - slope * small[0])
    if slope == 0:
        slope, fixed = large[1] / large[0], 0.0

    def seconds_per_token(flops: float) -> float:
        return fixed + slope * flops

    return seconds_per_token


def _proposal(family: Any, model: Named, cost: Callable[[float], float], seconds: float, available: int) -> Proposal:
    tokens = int(seconds / cost(_flops(family, model)))
    parameters = int(family.parameters(model))
    score = expected_loss(parameters, effective_tokens(max(1, tokens), available))
    shape = {key: int(getattr(model, key)) for key in ("d_model", "n_layers", "n_heads")}
    return Proposal(
        **shape, parameters=parameters, tokens=tokens, epochs=tokens / available, seconds=seconds, score=score
    )
