"""Generation beside transformers: same logits with a cache, same greedy tokens, same filters in the same order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from groundup import generation
from groundup.runtimes import torch as torch_runtime
from groundup.serving.sampler import Sampling, process

transformers = pytest.importorskip("transformers", reason="transformers is the oracle here")

PROMPTS = (
    "Once upon a time",
    "Lily and Tom went to the park",
    "The",
    "One day, a little cat",
    "“Hello!” said 小 bear",
    "Mom was sad because",
)
NEW = 120
TIE = 1e-4


@pytest.fixture(scope="module")
def stories(shared_data: Callable[[str], Path]) -> Path:
    return shared_data("models") / "stories260K" / "hf"


@pytest.fixture(scope="module")
def oracle(stories: Path) -> object:
    return transformers.AutoModelForCausalLM.from_pretrained(stories).eval()


@pytest.fixture(scope="module")
def model(stories: Path) -> generation.Model:
    return generation.load(stories, device="cpu")


def test_greedy_tokens_are_those_of_transformers(stories: Path, oracle: object, model: generation.Model) -> None:
    """Until the end, or until the two best logits of the oracle are within 1e-4 (counted and printed)."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(stories)
    compared = ties = 0
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        theirs = oracle.generate(  # type: ignore[attr-defined]
            **inputs,
            do_sample=False,
            max_new_tokens=NEW,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        )
        expected = theirs.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        ours = model.complete(prompt, Sampling(temperature=0, max_new_tokens=NEW)).ids
        for place, (mine, other) in enumerate(zip(ours, expected, strict=False)):
            if mine != other:
                best = theirs.logits[place][0].topk(2).values
                assert float(best[0] - best[1]) < TIE, f"{prompt!r} differs at token {place} without a tie"
                ties += 1
                break
            compared += 1
        else:
            assert len(ours) == len(expected)
    print(f"{compared} greedy tokens equal, {ties} texts left at a tie")
    assert compared > 0.8 * NEW * len(PROMPTS) and ties <= 1


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 0.7},
        {"top_k": 7},
        {"top_p": 0.8},
        {"min_p": 0.05},
        {"repetition_penalty": 1.3, "temperature": 0.9},
        {"repetition_penalty": 1.2, "temperature": 1.4, "top_k": 40, "top_p": 0.9, "min_p": 0.02},
        {"temperature": 0.6, "top_k": 3, "top_p": 0.95, "min_p": 0.3},
    ],
)
def test_filters_and_their_order_are_those_of_transformers(oracle: object, given: dict[str, float]) -> None:
    """The processors that `generate` builds for the same settings, on random logits and histories."""
    settings = transformers.GenerationConfig(do_sample=True, **({"top_k": 0} | given))
    processors = oracle._get_logits_processor(settings, input_ids_seq_length=1)  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        logits_V = torch.randn(512, generator=generator) * 3
        history = torch.randint(0, 512, (1, 30), generator=generator)
        seen_V = torch.zeros(512, dtype=torch.bool)
        seen_V[history[0]] = True
        expected_V = processors(history, logits_V[None])[0]
        ours_V = process(logits_V, Sampling.model_validate(given), seen_V)
        assert torch.equal(torch.isfinite(ours_V), torch.isfinite(expected_V))
        torch.testing.assert_close(ours_V, expected_V)


def test_a_cache_gives_the_logits_of_the_whole_text(stories: Path, oracle: object) -> None:
    """Three sequences at once: prompts in one call, in pieces, one by one, and all phases mixed."""
    runtime = torch_runtime.load(stories, max_sequences=3, device="cpu")
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(3, 512, (length,), generator=generator).tolist() for length in (40, 23, 31)]
    with torch.no_grad():
        expected = [oracle(torch.tensor([text])).logits[0] for text in texts]  # type: ignore[operator]
    cache = runtime.new_cache()
    # Row 1 first reads 10 tokens; then row 0 reads 39, row 1 one, row 2 five; then each one by one.
    first = runtime.step(texts[1][:10], range(10), [1] * 10, cache, every=True)
    torch.testing.assert_close(first, expected[1][:10], atol=1e-4, rtol=1e-4)
    mixed = runtime.step(
        [*texts[0][:39], texts[1][10], *texts[2][:5]], [*range(39), 10, *range(5)], [0] * 39 + [1] + [2] * 5, cache
    )
    torch.testing.assert_close(
        mixed, torch.stack([expected[0][38], expected[1][10], expected[2][4]]), atol=1e-4, rtol=1e-4
    )
    pieces = runtime.step(texts[2][5:20], range(5, 20), [2] * 15, cache, every=True)
    torch.testing.assert_close(pieces, expected[2][5:20], atol=1e-4, rtol=1e-4)
    one_by_one = runtime.step([texts[2][20], texts[0][39], texts[1][11]], [20, 39, 11], [2, 0, 1], cache)
    rows = torch.stack([expected[2][20], expected[0][39], expected[1][11]])
    torch.testing.assert_close(one_by_one, rows, atol=1e-4, rtol=1e-4)


def test_tokens_that_do_not_fit_a_cache_are_refused(stories: Path) -> None:
    runtime = torch_runtime.load(stories, max_tokens=8, device="cpu")
    cache = runtime.new_cache()
    for ids, positions, rows in (
        ([5], [8], [0]),
        ([5], [0], [1]),
        ([5, 6], [0, 2], [0, 0]),
        ([5, 6, 7], [0, 0, 1], [0, 1, 0]),
    ):
        with pytest.raises(ValueError, match=r"fit|count up|together"):
            runtime.step(ids, positions, rows, cache)
    with pytest.raises(ValueError, match="at least one"):
        runtime.step([], [], [], cache)
