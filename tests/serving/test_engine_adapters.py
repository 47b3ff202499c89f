"""Adapters chosen per request: each text is what its own adapter would write if it were the only one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from groundup import catalog
from groundup.checkpoints import hugging_face
from groundup.checkpoints.peft import load_adapter, save_adapter
from groundup.errors import UserError
from groundup.nn.network import Network
from groundup.runtimes.torch import TorchRuntime
from groundup.serving.engine import Engine
from groundup.serving.requests import Event, Request, Token
from groundup.serving.sampler import Sampling

LONG = Sampling(temperature=0, max_new_tokens=12)


@pytest.fixture
def base(tmp_path: Path, make_runtime: Callable[..., TorchRuntime]) -> Path:
    folder = tmp_path / "base"
    hugging_face.save(folder, make_runtime().network, generation={"eos_token_id": 2})
    return folder


def adapter_at(folder: Path, base: Path, *, seed: int, kind: str = "lora", strength: float = 0.1, **given: Any) -> Path:
    """An adapter that has moved, as training would move it."""
    module, network = catalog.load("adapters", kind), hugging_face.load(base)
    module.wrap(network, module.Config(**given), seed=seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=draw) * strength)
    save_adapter(folder, network, base=base)
    return folder


@pytest.fixture
def adapters(tmp_path: Path, base: Path) -> dict[str, Path]:
    """Three adapters of other ranks and layers."""
    return {
        "one": adapter_at(tmp_path / "one", base, seed=1),
        "two": adapter_at(tmp_path / "two", base, seed=2, rank=3, alpha=20, targets=["q_proj", "down_proj"]),
        "three": adapter_at(tmp_path / "three", base, seed=3, rank=2, rank_stabilised=True, ranks={"v_proj": 5}),
    }


def runtime_of(base: Path) -> TorchRuntime:
    return TorchRuntime(hugging_face.load(base), smallest_row=32)


def engine_of(base: Path, **given: Any) -> Engine:
    runtime = runtime_of(base)
    return Engine(runtime, cache_bytes=8192 * runtime.token_bytes, digest="base", **given)


def run(engine: Engine) -> list[Event]:
    events: list[Event] = []
    while engine.has_work:
        events += engine.step()
    return events


def written(events: Iterable[Event], number: int) -> list[int]:
    return [event.choice.id for event in events if isinstance(event, Token) and event.id == number]


@torch.inference_mode()
def logits_of(network: Network, ids: list[int]) -> Tensor:
    return network.eval()({"input_ids": torch.tensor([ids])}).logits[0]


def test_one_call_reads_each_row_with_its_own_adapter(base: Path, adapters: dict[str, Path]) -> None:
    """Prompts and single tokens of four models in one call, against each adapter alone and merged."""
    runtime = runtime_of(base)
    for name, folder in adapters.items():
        runtime.load_adapter(name, folder)
    cache = runtime.new_rows(block=32)
    draw = torch.Generator().manual_seed(0)
    texts = {name: torch.randint(0, 61, (30,), generator=draw).tolist() for name in (*adapters, None, "one again")}
    rows = {name: cache.open(32, room=10_000) for name in texts}
    uses: dict[int, str] = {rows[name]: "one" if name == "one again" else name for name in texts if name}
    first = {name: 10 + 3 * place for place, name in enumerate(texts)}
    found: dict[Any, list[Tensor]] = {name: [] for name in texts}
    spans = [{name: (0, first[name]) for name in texts}]
    spans += [{name: (first[name] + step, first[name] + step + 1) for name in texts} for step in range(5)]
    for span in spans:
        places = [(name, p) for name, (start, stop) in span.items() for p in range(start, stop)]
        ids = [texts[name][place] for name, place in places]
        logits = runtime.step(
            ids, [p for _, p in places], [rows[name] for name, _ in places], cache, every=True, adapters=uses
        )
        for (name, _), row in zip(places, logits, strict=True):
            found[name].append(row)
    for name, text in texts.items():
        folder = adapters.get("one" if name == "one again" else name)  # type: ignore[arg-type]
        single = load_adapter(hugging_face.load(base), folder) if folder else hugging_face.load(base)
        ours = torch.stack(found[name])
        torch.testing.assert_close(ours, logits_of(single, text)[: len(ours)], atol=5e-5, rtol=1e-5)
        if folder:
            merged = catalog.load("adapters", "lora").merge(single)
            difference = ours - logits_of(merged, text)[: len(ours)]
            assert difference.abs().max() < 1e-5 * ours.abs().max()
            assert not torch.allclose(ours, logits_of(hugging_face.load(base), text)[: len(ours)], atol=1e-2)


def test_texts_of_many_adapters_are_those_of_each_alone(base: Path, adapters: dict[str, Path]) -> None:
    engine = engine_of(base)
    digests = {name: engine.load_adapter(name, folder) for name, folder in adapters.items()}
    assert len(set(digests.values())) == 3
    draw = torch.Generator().manual_seed(4)
    names = ["one", None, "two", "three", "one", None, "two"]
    requests = [
        Request(
            id=n, ids=tuple(torch.randint(0, 61, (5 + 9 * n,), generator=draw).tolist()), sampling=LONG, adapter=name
        )
        for n, name in enumerate(names)
    ]
    events: list[Event] = []
    for request in requests:
        engine.add(request)
        events += engine.step()
    events += run(engine)
    for request in requests:
        alone = engine_of(base)
        if request.adapter:
            alone.load_adapter(request.adapter, adapters[request.adapter])
        alone.add(request)
        assert written(run(alone), request.id) == written(events, request.id)
    assert engine.stats()["prefix_hits"] == 0


def test_beginnings_are_shared_within_an_adapter_only_and_not_with_its_successor(
    base: Path, adapters: dict[str, Path]
) -> None:
    """The same name for another adapter finds nothing that the first one computed."""
    engine = engine_of(base)
    ids, hits = tuple(range(60)), []

    def ask(number: int, adapter: str | None) -> list[int]:
        before = engine.stats()["prefix_hits"]
        engine.add(Request(id=number, ids=ids, sampling=LONG, adapter=adapter))
        found = written(run(engine), number)
        hits.append(engine.stats()["prefix_hits"] - before)
        return found

    engine.load_adapter("mine", adapters["one"])
    plain, first, again = ask(0, None), ask(1, "mine"), ask(2, "mine")
    assert first == again and plain != first
    engine.unload_adapter("mine")
    engine.load_adapter("mine", adapters["two"])
    assert ask(3, "mine") != first
    engine.unload_adapter("mine")
    engine.load_adapter("other name", adapters["one"])
    assert ask(4, "other name") == first and ask(5, None) == plain
    assert hits == [0, 0, 32, 0, 32, 32]


def test_an_adapter_in_use_stays(base: Path, adapters: dict[str, Path]) -> None:
    engine = engine_of(base)
    engine.load_adapter("one", adapters["one"])
    engine.add(Request(id=0, ids=(1, 2), sampling=LONG, adapter="one"))
    with pytest.raises(UserError, match="1 requests use"):
        engine.unload_adapter("one")
    with pytest.raises(UserError, match="loaded already"):
        engine.load_adapter("one", adapters["two"])
    assert len(written(run(engine), 0)) == 12
    engine.unload_adapter("one")
    for wrong in (lambda: engine.unload_adapter("one"), lambda: engine.runtime.unload_adapter("one")):
        with pytest.raises(UserError, match="no adapter named"):
            wrong()
    with pytest.raises(UserError, match="no adapter named"):
        engine.add(Request(id=1, ids=(1, 2), adapter="one", sampling=LONG))


def test_what_cannot_be_chosen_per_request_is_refused(
    tmp_path: Path, base: Path, make_runtime: Callable[..., TorchRuntime]
) -> None:
    engine = engine_of(base)
    dora = adapter_at(tmp_path / "dora", base, seed=1, kind="dora")
    with pytest.raises(UserError, match=r"DoRA.*per request"):
        engine.load_adapter("dora", dora)
    whole = adapter_at(tmp_path / "whole", base, seed=1, modules_to_save=["norm"])
    with pytest.raises(UserError, match=r"norm.*per request"):
        engine.load_adapter("whole", whole)
    other = tmp_path / "other"
    hugging_face.save(other, make_runtime(seed=9).network, generation={"eos_token_id": 2})
    with pytest.raises(UserError, match="another base"):
        engine.load_adapter("stranger", adapter_at(tmp_path / "stranger", other, seed=1))
    assert not engine.adapters
    engine.add(Request(id=0, ids=(1, 2), sampling=LONG))
    assert len(written(run(engine), 0)) == 12


@torch.inference_mode()
def test_the_base_is_computed_as_before_while_adapters_are_there(base: Path, adapters: dict[str, Path]) -> None:
    runtime = runtime_of(base)
    ids = {"input_ids": torch.arange(20)[None]}
    before = runtime.forward(ids).logits
    runtime.load_adapter("one", adapters["one"])
    assert torch.equal(runtime.forward(ids).logits, before)
    assert set(runtime.network.state_dict()) == set(hugging_face.load(base).state_dict())


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_families_that_transformers_computes_take_no_adapters_but_can_be_served(
    tmp_path: Path, base: Path, adapters: dict[str, Path]
) -> None:
    import transformers

    config = transformers.GPTNeoXConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=128,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.GPTNeoXForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "theirs")
    runtime = TorchRuntime(hugging_face.load(tmp_path / "theirs"), smallest_row=32)
    with pytest.raises(UserError, match="no adapters"):
        runtime.load_adapter("one", adapters["one"])
    with pytest.raises(UserError, match="served in fp32"):
        runtime.pack("bf16")
    runtime.pack()
    engine = Engine(runtime, cache_bytes=512 * runtime.token_bytes)
    for number in range(3):
        engine.add(Request(id=number, ids=tuple(range(40 + number)), sampling=LONG))
    events = run(engine)
    for number in range(3):
        expected = model.generate(torch.arange(40 + number)[None], max_new_tokens=12, do_sample=False)
        assert written(events, number) == expected[0, 40 + number :].tolist()
    assert engine.stats()["prefix_hits"] == 64
