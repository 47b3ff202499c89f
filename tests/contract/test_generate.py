"""Generation as a user sees it: seeds, stop strings, whole characters, limits, and clear errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import groundup
from groundup.errors import GroundupError, UserError
from groundup.generation import Model
from groundup.serving.sampler import Sampling


@pytest.fixture(scope="module")
def model(shared_data: Callable[[str], Path]) -> Model:
    opened = groundup.load(shared_data("models") / "stories260K" / "hf", device="cpu")  # type: ignore[operator]
    assert isinstance(opened, Model)
    return opened


def test_a_seed_is_a_text(model: Model) -> None:
    texts = [model.generate("Once", seed=seed, max_new_tokens=40) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert len(texts[0]) > 20


def test_the_stream_is_the_text_in_pieces(model: Model) -> None:
    settings = Sampling(seed=4, max_new_tokens=60)
    pieces = list(model.stream("Tom saw a", settings))
    done = model.complete("Tom saw a", settings)
    assert "".join(pieces) == done.text and len(pieces) > 10 and all(pieces)
    assert done.reason == "length" and "max_new_tokens (60)" in done.detail and len(done.ids) == 60


def test_a_stop_string_ends_the_text_and_is_not_shown(model: Model) -> None:
    free = model.complete("Once upon a time", Sampling(temperature=0, max_new_tokens=60))
    # Cut in the middle of words, so that the string spans tokens.
    stop = free.text[30:41]
    stopped = model.complete("Once upon a time", Sampling(temperature=0, max_new_tokens=60, stop=(stop, "never")))
    assert stopped.text == free.text[: free.text.index(stop)]
    assert (stopped.reason, stopped.detail) == ("stop", f"the stop string {stop!r}")
    assert "".join(model.stream("Once upon a time", stopped.settings)) == stopped.text


def test_chinese_and_emoji_arrive_whole(model: Model) -> None:
    """A flat distribution over byte tokens makes broken and whole characters; no piece holds half of one."""
    whole = model.complete("", Sampling(temperature=50.0, seed=1, max_new_tokens=300))
    pieces = list(model.stream("", whole.settings))
    assert "".join(pieces) == whole.text
    for piece in pieces:
        piece.encode("utf-8")
    held = model.complete("她很高兴，说：👩‍", Sampling(temperature=0, max_new_tokens=5))
    assert "👩" not in held.text and "说" not in held.text


def test_logprobs_are_reported_when_asked_for(model: Model) -> None:
    data = model.complete("The dog", Sampling(temperature=0, max_new_tokens=5, logprobs=3)).as_data()
    assert len(data["logprobs"]) == len(data["ids"]) == 5
    for entry in data["logprobs"]:
        assert entry["alternatives"][0] == [entry["id"], pytest.approx(entry["logprob"])]
        assert entry["logprob"] < 0 and len(entry["alternatives"]) == 3
    assert "logprobs" not in model.complete("The", Sampling(max_new_tokens=1)).as_data()


def test_a_full_context_ends_the_text_and_says_so(shared_data: Callable[[str], Path]) -> None:
    short = groundup.load(shared_data("models") / "stories260K" / "hf", device="cpu", max_tokens=20)  # type: ignore[operator]
    done = short.complete("Once upon a time", Sampling(temperature=0, max_new_tokens=100))
    assert done.reason == "length" and done.detail == "the context of 20 tokens is full"
    assert done.prompt_tokens + len(done.ids) == 21, "the last token is chosen but never read"
    with pytest.raises(UserError, match=r"the prompt is \d+ tokens long .* reads 20"):
        short.complete("word " * 40)


def test_nothing_is_asked_for_and_nothing_comes(model: Model) -> None:
    done = model.complete("Once", Sampling(max_new_tokens=0))
    assert (done.text, done.ids, done.reason) == ("", [], "length")


def test_an_empty_prompt_begins_a_text(model: Model) -> None:
    assert model.generate("", temperature=0, max_new_tokens=10).startswith("Once upon a time")


def test_a_lone_surrogate_is_named(model: Model) -> None:
    with pytest.raises(UserError, match=r"U\+D83D at character 3"):
        model.generate("hi \ud83d there")


def test_wrong_settings_are_explained(model: Model) -> None:
    with pytest.raises(UserError, match="temperature") as caught:
        model.generate("hi", temperature=-1)
    assert caught.value.exit_code == 2
    with pytest.raises(UserError, match="stop string cannot be empty"):
        model.generate("hi", stop="")


def test_a_causal_model_fills_no_masks(model: Model) -> None:
    with pytest.raises(UserError, match="does not fill masks"):
        model.fill("a [MASK] day")


def test_a_path_without_a_model_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        groundup.load(tmp_path)  # type: ignore[operator]
    with pytest.raises(GroundupError, match="no artefact"):
        groundup.load(tmp_path / "nowhere")  # type: ignore[operator]
