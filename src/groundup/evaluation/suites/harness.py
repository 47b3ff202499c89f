"""Our models under lm-evaluation-harness, for its many other tests and to check ours against it.

The harness asks for three things (likelihoods of continuations, of whole texts, and greedy texts); this
gives it a model that answers them with the same functions that our own suites use. It is an extra:
`pip install 'groundup[bridges]'`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from groundup.errors import MissingExtra, UserError
from groundup.evaluation.suites.likelihood import log_likelihoods, token_likelihoods
from groundup.evaluation.suites.running import Model


def model(asked: Model) -> Any:
    """An `lm_eval.api.model.LM`, to be given to `lm_eval.simple_evaluate(model=…)`.

    `asked` is what our own suites ask; its `write` is needed by tests that have the model write. Raises
    MissingExtra without the package lm-eval.
    """
    try:
        from lm_eval.api.model import LM  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise MissingExtra("lm-eval", "bridges", needed_for="lm-evaluation-harness") from error

    def ask(requests: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        rows = log_likelihoods(
            [(prompt, [continuation]) for prompt, continuation in requests],
            asked.encode,
            asked.forward,
            start=asked.start,
            context=asked.context,
            batch_tokens=asked.batch_tokens,
        )
        return [(row[0].nats, row[0].is_greedy) for row in rows]

    class Ours(LM):  # type: ignore[misc, unused-ignore]
        """A model of groundup as the harness sees it."""

        def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return ask([request.args for request in requests])

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            start = list(asked.start(""))
            cut = [windows(start, asked.encode(request.args[0]), asked.context) for request in requests]
            rows = token_likelihoods(cut, asked.forward, context=asked.context, batch_tokens=asked.batch_tokens)
            return [sum(one.nats for one in row) for row in rows]

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            if asked.write is None:
                raise UserError("this model was given no way to write", fix="give Model a `write`")
            found = []
            for request in requests:
                prompt, settings = request.args
                until = settings.get("until", ())
                stops = [until] if isinstance(until, str) else list(until)
                found.append(asked.write(prompt, stops, int(settings.get("max_gen_toks", 256))))
            return found

    return Ours()


def windows(start: list[int], ids: list[int], context: int) -> list[tuple[list[int], list[int]]]:
    """A whole text as (tokens before, tokens to score), each within the context, every token scored once.

    As the harness cuts: the first window begins with the start tokens, each later one scores as many new
    tokens as fit, and the last reaches back as far as the context allows.
    """
    if not ids:
        return []
    cut = [(start[-1:], ids[:context])]
    for at in range(context, len(ids), context):
        end = min(at + context, len(ids))
        cut.append((ids[end - context - 1 : at], ids[at:end]))
    return cut
