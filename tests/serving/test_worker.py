"""The engine's loop behind a real client, in a thread of this process: every frame, and every way to misuse one."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

import groundup
from groundup.nn import packed
from groundup.serving import wire
from groundup.serving.client import EngineFault, EngineGone, Token
from groundup.serving.local import LocalClient
from groundup.serving.models import Options
from groundup.serving.sampler import Sampling
from groundup.serving.wire import Finished

Runs = Callable[[Coroutine[Any, Any, None]], None]
Make = Callable[..., Path]
OPTIONS = Options(device="cpu", cache_bytes=8 << 20)
GREEDY = {"temperature": 0, "max_new_tokens": 24}


async def text(client: LocalClient, request: wire.Generate) -> tuple[list[int], Finished]:
    """All tokens of a request, and how it ended."""
    ids: list[int] = []
    async for event in client.generate(request):
        if isinstance(event, Finished):
            return ids, event
        ids.append(event.id)
    raise AssertionError("a text without an end")


async def quiet(client: LocalClient) -> dict[str, float]:
    """The figures of the model `m`, once nothing runs and nothing waits."""
    for _ in range(200):
        stats = (await client.ping()).stats["m"]
        if not stats["running"] and not stats["waiting"]:
            return dict(stats)
        await asyncio.sleep(0.01)
    raise AssertionError(f"requests are left behind: {stats}")


def alone(path: Path, ids: list[int], settings: dict[str, Any]) -> list[int]:
    """The tokens that the model gives without any server."""
    from groundup.serving.decoding import Continuation

    model = groundup.load(path, device="cpu")  # type: ignore[operator]
    return Continuation(model.runtime, model.tokenizer, "", Sampling(**settings), prompt_ids=ids).finish().ids


def test_a_text_is_the_one_the_model_gives_alone(make_model: Make, runs: Runs) -> None:
    path = make_model()
    wanted = {seed: alone(path, [5, 9, 11, seed], {"seed": seed, "max_new_tokens": 30}) for seed in range(6)}
    greedy = alone(path, [5, 9, 11], GREEDY)

    async def body() -> None:
        async with LocalClient() as client:
            facts = await client.load("m", str(path), OPTIONS)
            assert (facts.kind, facts.task, facts.context, facts.licences) == (
                "generate", "language_modeling", 256, {"rows": "CC0-1.0"},
            )  # fmt: skip
            assert len(facts.digest) == 64 and client.models == {"m": facts}
            eos = groundup.load(path, device="cpu").tokenizer.stop_ids  # type: ignore[operator]
            both = [
                text(client, wire.Generate("m", [5, 9, 11, s], {"seed": s, "max_new_tokens": 30}, stop_ids=eos))
                for s in range(6)
            ]
            found = await asyncio.gather(*both, text(client, wire.Generate("m", [5, 9, 11], GREEDY, stop_ids=eos)))
            assert [ids for ids, _ in found] == [*wanted.values(), greedy]
            assert all(end.reason in ("length", "stop") and end.decode_s >= 0 for _, end in found)
            stats = await quiet(client)
            assert stats["generated_tokens"] == sum(len(ids) for ids, _ in found)
            assert client.stats is not None and client.stats.steps > 0

    runs(body())


def test_logprobs_and_scores_are_the_models_own(make_model: Make, runs: Runs) -> None:
    path = make_model()

    async def body() -> None:
        async with LocalClient() as client:
            await client.load("m", str(path), OPTIONS)
            request = wire.Generate("m", [5, 9, 11], {"temperature": 0, "max_new_tokens": 8, "logprobs": 2})
            async with aclosing(client.generate(request)) as events:
                tokens = [event async for event in events if isinstance(event, Token)]
            ids = [5, 9, 11, *(token.id for token in tokens)]
            scores = await client.score(wire.Score("m", ids, from_position=3))
            assert scores == pytest.approx([token.logprob for token in tokens], abs=1e-4)
            assert all(token.alternatives[0][0] == token.id and len(token.alternatives) == 2 for token in tokens)

    runs(body())


@pytest.mark.parametrize(("precision", "within"), [("fp32", 1e-4), ("bf16", 0.3)])
def test_weights_that_are_laid_out_judge_a_text_alike(
    make_model: Make, runs: Runs, monkeypatch: pytest.MonkeyPatch, precision: Literal["fp32", "bf16"], within: float
) -> None:
    if precision == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor does not multiply bf16")
    path, request = str(make_model()), wire.Score("m", [5, 9, 11, 40, 8, 77, 12, 3, 60], from_position=1)
    found: list[list[float]] = []

    async def body() -> None:
        async with LocalClient() as client:
            await client.load("m", path, OPTIONS)
            found.append(await client.score(request))
            await client.unload("m")
            monkeypatch.setattr(packed, "LEAST", 1)
            monkeypatch.setattr(packed, "gain", lambda layer: 2.0)
            await client.load("m", path, replace(OPTIONS, precision=precision))
            found.append(await client.score(request))

    runs(body())
    assert found[0] == pytest.approx(found[1], abs=within)
    assert precision == "fp32" or found[0] != found[1], "it was rounded"


def test_models_of_all_kinds_share_an_engine(
    make_model: Make, rows_of: Callable[[str, int], list[dict[str, Any]]], runs: Runs
) -> None:
    async def body() -> None:
        async with LocalClient() as client:
            classify, embed = str(make_model("text_classification")), str(make_model("embedding"))
            await asyncio.gather(
                client.load("m", str(make_model()), OPTIONS),
                client.load("classify", classify, OPTIONS),
                client.load("embed", embed, OPTIONS),
            )
            assert client.models["classify"].labels == ("Hanoi", "Lima", "Oslo", "Peking")
            assert client.models["classify"].columns == {"text": "text"}
            rows = rows_of("text_classification", 9)
            long = asyncio.create_task(text(client, wire.Generate("m", [5], {"max_new_tokens": 200, "temperature": 0})))
            labels, vectors = await asyncio.gather(
                client.answer(wire.Answer("classify", rows)), client.answer(wire.Answer("embed", rows))
            )
            assert [a["label"] for a in labels.answers] == [
                a["label"]
                for a in groundup.load(classify, device="cpu").predict(rows)  # type: ignore[operator]
            ]
            assert all(len(a["vector"]) > 40 for a in vectors.answers) and len(labels.tokens) == 9
            assert len((await long)[0]) > 0
            for request in (wire.Answer("m", rows), wire.Answer("nobody", rows)):
                with pytest.raises(EngineFault) as caught:
                    await client.answer(request)
                assert caught.value.fix
            assert caught.value.code == "unknown_model"
            with pytest.raises(EngineFault, match="answers rows"):
                await text(client, wire.Generate("classify", [1]))

    runs(body())


POISON: list[dict[str, Any]] = [
    {"ids": []},
    {"ids": [-1]},
    {"ids": [10**30]},
    {"ids": [1.5]},
    {"ids": ["a"]},
    {"ids": [True]},
    {"ids": [1] * 100_000},
    {"sampling": {"temperature": "hot"}},
    {"sampling": {"temperature": float("nan")}},
    {"sampling": {"temprature": 1}},
    {"sampling": {"seed": 2**200}},
    {"sampling": {"max_new_tokens": -1}},
    {"sampling": {"logit_bias": {"7": 1e308}}},
    {"sampling": {"logit_bias": {"a": 1}}},
    {"sampling": {"logit_bias": {10**9: 1}}},
    {"sampling": {"\ud800": 1}},
    {"sampling": {"stop": ["x"]}},
    {"stop_ids": [10**12]},
    {"stop_ids": [[1]]},
    {"adapter": "nobody"},
    {"grammar": "\ud800 nonsense {{{"},
    {"grammar": "x" * 1_000_000},
]


def test_poisoned_requests_harm_no_other(make_model: Make, runs: Runs) -> None:
    path = make_model()
    wanted = alone(path, [5, 9, 11], {"temperature": 0, "max_new_tokens": 120})

    async def body() -> None:
        async with LocalClient() as client:
            await client.load("m", str(path), OPTIONS)
            eos = groundup.load(path, device="cpu").tokenizer.stop_ids  # type: ignore[operator]
            good = wire.Generate("m", [5, 9, 11], {"temperature": 0, "max_new_tokens": 120}, stop_ids=eos)
            running = [asyncio.create_task(text(client, good)) for _ in range(2)]

            async def bad(case: dict[str, Any]) -> None:
                request = wire.Generate(**{"model": "m", "ids": [5], **case})
                with pytest.raises(EngineFault) as caught:
                    await text(client, request)
                assert caught.value.code in ("bad_request", "unknown_adapter"), case
                assert caught.value.what and len(caught.value.what) < 1000, case

            await asyncio.gather(*map(bad, POISON))
            for task in running:
                assert (await task)[0] == wanted
            assert (await text(client, good))[0] == wanted
            await quiet(client)

    runs(body())


def test_a_thousand_cancels_leave_nothing_behind(make_model: Make, runs: Runs) -> None:
    path = make_model()
    wanted = alone(path, [5, 9, 11], GREEDY)

    async def body() -> None:
        async with LocalClient() as client:
            await client.load("m", str(path), Options(device="cpu", cache_bytes=8 << 20, max_waiting=2000))
            eos = groundup.load(path, device="cpu").tokenizer.stop_ids  # type: ignore[operator]

            async def left(number: int) -> None:
                request = wire.Generate("m", [5, number % 60 + 1], {"max_new_tokens": 200, "seed": number})
                async with aclosing(client.generate(request)) as events:
                    if number % 3 == 0:
                        return  # never begun
                    if number % 3 == 1:
                        await asyncio.wait_for(anext(events), 60)

            tasks = [asyncio.create_task(left(number)) for number in range(1000)]
            stays = asyncio.create_task(text(client, wire.Generate("m", [5, 9, 11], GREEDY, stop_ids=eos, priority=-1)))
            await asyncio.sleep(0.2)
            for task in tasks[::2]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert (await stays)[0] == wanted
            stats = await quiet(client)
            assert client.in_flight == 0 and stats["waiting_tokens"] == 0

    runs(body())


def test_a_full_queue_says_when_to_come_again(make_model: Make, runs: Runs) -> None:
    async def body() -> None:
        async with LocalClient() as client:
            options = Options(device="cpu", cache_bytes=8 << 20, max_sequences=1, max_waiting=2)
            await client.load("m", str(make_model()), options)
            many = [text(client, wire.Generate("m", [5], {"max_new_tokens": 60})) for _ in range(12)]
            found = await asyncio.gather(*many, return_exceptions=True)
            full = [one for one in found if isinstance(one, EngineFault)]
            assert full and all(one.code == "queue_full" and one.retry_after_s for one in full)
            assert len(full) < 12, "some were served"

    runs(body())


def test_a_deadline_ends_a_text_where_it_is(make_model: Make, runs: Runs) -> None:
    async def body() -> None:
        async with LocalClient() as client:
            await client.load("m", str(make_model()), OPTIONS)
            request = wire.Generate("m", [5], {"max_new_tokens": 250, "ignore_eos": True}, deadline_s=0.05)
            ids, end = await text(client, request)
            assert end.reason == "deadline" and len(ids) < 250
            await quiet(client)

    runs(body())


def test_a_model_that_is_unloaded_tells_those_it_served_and_can_come_back(make_model: Make, runs: Runs) -> None:
    async def body() -> None:
        async with LocalClient() as client:
            path = str(make_model())
            await client.load("m", path, OPTIONS)
            with pytest.raises(EngineFault, match="loaded already"):
                await client.load("m", path, OPTIONS)
            task = asyncio.create_task(text(client, wire.Generate("m", [5], {"max_new_tokens": 250})))
            await asyncio.sleep(0.05)
            await client.unload("m")
            with pytest.raises(EngineFault) as caught:
                await task
            assert caught.value.code == "unknown_model" and not client.models
            await client.load("m", path, OPTIONS)
            assert (await text(client, wire.Generate("m", [5], GREEDY)))[0]

    runs(body())


def test_a_load_that_nobody_waits_for_leaves_nothing_loaded(make_model: Make, runs: Runs) -> None:
    async def body() -> None:
        async with LocalClient() as client:
            path = str(make_model())
            task = asyncio.create_task(client.load("m", path, OPTIONS))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await client.load("other", path, OPTIONS)  # one after the other: the first is over by now
            assert set((await client.ping()).stats) == {"other"}
            await client.load("m", path, OPTIONS)

    runs(body())


def test_rows_that_come_together_are_computed_together(make_model: Make, runs: Runs) -> None:
    async def body() -> None:
        async with LocalClient() as client:
            await client.load("m", str(make_model("text_classification")), OPTIONS)
            asked = [wire.Answer("m", [{"text": "the red train"}], key=str(i % 7)) for i in range(200)]
            found = await asyncio.gather(*map(client.answer, asked))
            assert len({answered.answers[0]["label"] for answered in found}) == 1
            stats = (await client.ping()).stats["m"]
            assert stats["rows"] == 200 and stats["batches"] < 50

    runs(body())


def test_a_step_that_breaks_fails_its_requests_and_nothing_after(
    make_model: Make, runs: Runs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from groundup.serving.engine import Engine

    whole, breaks = Engine.step, threading.Event()

    def step(engine: Engine) -> Any:
        if breaks.is_set():
            breaks.clear()
            raise ZeroDivisionError("a fault of ours")
        return whole(engine)

    monkeypatch.setattr(Engine, "step", step)

    async def body() -> None:
        async with LocalClient() as client:
            await client.load("m", str(make_model()), OPTIONS)
            tasks = [asyncio.create_task(text(client, wire.Generate("m", [5], {"max_new_tokens": 250}))) for _ in "ab"]
            await asyncio.sleep(0.05)
            breaks.set()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert [one.code for one in found if isinstance(one, EngineFault)] == ["internal", "internal"]
            assert (await text(client, wire.Generate("m", [5], GREEDY)))[0]

    runs(body())
    assert "ZeroDivisionError" in caplog.text


def test_a_reader_that_stops_reading_holds_the_engine_and_loses_nothing(make_model: Make) -> None:
    """Without reading, 30 texts of 200 tokens are more than the buffers hold; afterwards all of it is there."""
    from groundup.serving import worker

    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    thread = threading.Thread(target=worker.serve, args=(theirs,), daemon=True)
    thread.start()
    frames, got = wire.Frames(), []
    ours.settimeout(60)

    def until(kind: str, count: int) -> None:
        while sum(frame.kind == kind for frame in got) < count:
            got.extend(frames.feed(ours.recv(1 << 16)))

    until("Ready", 1)
    ours.sendall(wire.encode(wire.Load(1, "m", str(make_model()), OPTIONS.as_data())))
    until("Loaded", 1)
    sampling = {"max_new_tokens": 200, "ignore_eos": True, "logprobs": 5}
    asked = [wire.Generate("m", [5, 9], sampling | {"seed": number}, id=10 + number) for number in range(30)]
    sending = threading.Thread(target=ours.sendall, args=(b"".join(map(wire.encode, asked)),))
    sending.start()
    threading.Event().wait(1.0)
    until("Finished", 30)
    sending.join()
    counts = dict.fromkeys(range(10, 40), 0)
    for frame in got:
        if isinstance(frame, wire.Tokens):
            for number, *_ in frame.tokens:
                counts[number] += 1
    assert set(counts.values()) == {200}
    ours.close()
    thread.join(10)
    assert not thread.is_alive(), "the end of the connection is the end of the loop"


def test_nonsense_on_the_socket_ends_the_loop(make_model: Make) -> None:
    from groundup.serving import worker

    ours, theirs = socket.socketpair()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            worker.serve(theirs)
        except wire.WireError as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    ours.sendall(b"\x00\x00\x00\x04oops")
    thread.join(10)
    assert failed and not thread.is_alive()
    ours.close()


def damaged(path: Path, folder: Path) -> Path:
    """A copy of an artefact with one byte of its weights changed, which its size and time do not show."""
    import shutil

    shutil.copytree(path, folder)
    weights = folder / "model.safetensors"
    stat = weights.stat()
    data = bytearray(weights.read_bytes())
    data[-3] ^= 0x40
    weights.write_bytes(data)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return folder


def test_what_is_damaged_unsigned_absent_or_too_large_is_not_opened(
    make_model: Make, tmp_path: Path, runs: Runs
) -> None:
    path = make_model()
    key = tmp_path / "key.pem"

    async def body() -> None:
        async with LocalClient() as client:

            async def refused(where: Path | str, options: Options, match: str) -> None:
                with pytest.raises(EngineFault, match=match) as caught:
                    await client.load("m", str(where), options)
                assert caught.value.code == "bad_request" and caught.value.fix

            await refused(damaged(path, tmp_path / "damaged"), OPTIONS, "digest mismatch")
            await refused(tmp_path / "nowhere", OPTIONS, "no artefact")
            await refused(tmp_path, OPTIONS, "no config.json")
            await refused(path, Options(device="cpu", cache_bytes=1 << 50), "are needed")
            await refused(path, Options(device="tpu"), "no device 'tpu'")
            if pytest.importorskip("cryptography"):
                from groundup import signing
                from groundup.artifact import Artifact

                public = signing.new_keys(key)
                await refused(path, Options(device="cpu", public_key=str(public)), "not signed")
                signing.sign(Artifact(path), key)
                facts = await client.load("m", str(path), Options(device="cpu", public_key=str(public)))
                assert facts.signed_by
                (path / "signature.json").unlink()

    runs(body())


def test_adapters_are_chosen_by_request(make_model: Make, tmp_path: Path, runs: Runs) -> None:
    from groundup import catalog
    from groundup.checkpoints import hugging_face, peft

    path = make_model()
    adapters = catalog.load("adapters", "lora")
    network = adapters.wrap(hugging_face.load(path), adapters.Config(rank=2))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.5)
    peft.save_adapter(tmp_path / "adapter", network, base=str(path))

    async def body() -> None:
        async with LocalClient() as client:
            await client.load("m", str(path), OPTIONS)
            found = await client.load_adapter("m", "poet", str(tmp_path / "adapter"))
            assert len(found["digest"]) == 64
            plain, _ = await text(client, wire.Generate("m", [5, 9], GREEDY))
            tuned, _ = await text(client, wire.Generate("m", [5, 9], GREEDY, adapter="poet"))
            assert plain != tuned
            with pytest.raises(EngineFault, match="nobody"):
                await client.load_adapter("m", "nobody", str(tmp_path / "nobody"))
            await client.unload_adapter("m", "poet")
            with pytest.raises(EngineFault) as caught:
                await text(client, wire.Generate("m", [5, 9], GREEDY, adapter="poet"))
            assert caught.value.code == "unknown_adapter" and not client.adapters

    runs(body())


def test_a_closed_client_is_gone(make_model: Make, runs: Runs) -> None:
    async def body() -> None:
        async with LocalClient() as client:
            await client.load("m", str(make_model()), OPTIONS)
        with pytest.raises(EngineGone):
            await client.ping()

    runs(body())
