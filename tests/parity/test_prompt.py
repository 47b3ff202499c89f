"""Ten chat formats, ours beside transformers': the same text, the same ids; and turns read back from ids."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers as library
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.text.prompt import Prompt
from groundup.text.tokenizers import Specials, Tokenizer
from groundup.text.vocabulary import Wish, learn

Message = dict[str, Any]
SPEC = importlib.util.spec_from_file_location("chat_formats", Path(__file__).with_name("templates.py"))
assert SPEC is not None and SPEC.loader is not None
formats = sys.modules["chat_formats"] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(formats)
FORMATS: dict[str, Any] = formats.FORMATS

TEXTS = [
    "The cat sat on the mat, and asked: what is the capital of France?",
    "第一天，天气很好，我们去公园玩。你想一起来吗？",
    '{"name": "get_weather", "arguments": {"city": "Paris"}}\n\n',
] * 5
CALL = {
    "id": "abc123abc",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "巴黎", "days": 2}},
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "What the weather <is> & 'will' be: 天气",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def system(content: str) -> Message:
    return {"role": "system", "content": content}


def assistant(content: str, **more: Any) -> Message:
    return {"role": "assistant", "content": content, **more}


WEATHER = [
    user("What is the weather?"),
    assistant("", tool_calls=[CALL]),
    {"role": "tool", "content": "18", "name": "get_weather", "tool_call_id": "abc123abc"},
    assistant("18 degrees."),
    user("Thank you"),
    assistant("不客气！"),
]
CHATS: dict[str, list[Message]] = {
    "one": [user("Hi"), assistant("Hello there")],
    "rounds": [
        user("Hi"),
        assistant("Hello"),
        user("And now?"),
        assistant("Well, 42."),
        user("See you"),
        assistant("Bye"),
    ],
    "system": [system("Be brief."), user("What?"), assistant("A cat."), user("Where?"), assistant("On the mat.")],
    "chinese": [system("你是一个助手。"), user("第一天天气怎么样？👩‍👩‍👧"), assistant("天气很好，我们去公园玩。🎉")],
    "spaces": [user("  What?\n"), assistant(" It is 42. \n\n"), user("\n\nso?"), assistant("\tyes")],
    "empty": [user(""), assistant("x"), user("y"), assistant("zed zed")],
    "alike": [user("yes"), assistant("yes"), user("yes"), assistant("yes")],
    "thoughts": [user("Hi"), assistant("<think>\nHm.\n</think>\n\nHello"), user("So?"), assistant("So.")],
    "thought": [user("Hi"), assistant("Hello", reasoning_content="Hm.")],
    "templating": [user("{{ bos_token }} {% if %}"), assistant("{# not a comment #} {{ 1 + 1 }}")],
}
QUESTIONS = {name: chat[:-1] for name, chat in CHATS.items()}


@cache
def stand_in() -> library.Tokenizer:
    engine, _ = learn(Wish("bpe", 360), lambda: iter(TEXTS))
    return engine


@cache
def tokenizer(name: str) -> Tokenizer:
    """The stand-in tokenizer with the special tokens and the template of a format."""
    form = FORMATS[name]
    engine = library.Tokenizer.from_str(stand_in().to_str())
    engine.add_special_tokens([_added(token, special=True, **form.options) for token in form.specials])
    engine.add_tokens([_added(token, special=False) for token in form.plain])
    return Tokenizer(engine, Specials(bos=form.bos, eos=form.eos), config={"chat_template": form.template})


def _added(token: str, **flags: bool) -> library.AddedToken:
    return library.AddedToken(token, normalized=False, **flags)


@pytest.fixture(params=FORMATS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Prompt, Any]]:
    """A function from a format to our renderer and transformers', both opened from one directory."""
    from transformers import AutoTokenizer

    @cache
    def open_both(name: str) -> tuple[Prompt, Any]:
        folder = tmp_path_factory.mktemp(name)
        tokenizer(name).save(folder)
        return Prompt.load(folder), AutoTokenizer.from_pretrained(folder)

    return open_both


def chats_of(name: str) -> dict[str, list[Message]]:
    """The chats that a format has words for."""
    form = FORMATS[name]
    return {key: chat for key, chat in CHATS.items() if form.has_system or chat[0]["role"] != "system"}


def test_text_and_ids_are_those_of_transformers(name: str, opened: Callable[[str], tuple[Prompt, Any]]) -> None:
    ours, theirs = opened(name)
    whole = [(chat, None, False) for chat in chats_of(name).values()]
    asking = [(chat[:-1], None, True) for chat in chats_of(name).values()]
    calling = [(WEATHER[:end], TOOLS, end % 2 == 1) for end in range(1, 7)] if FORMATS[name].has_tools else []
    for chat, tools, asks in [*whole, *asking, *calling]:
        text = theirs.apply_chat_template(chat, tools=tools, add_generation_prompt=asks, tokenize=False)
        ids = theirs.apply_chat_template(chat, tools=tools, add_generation_prompt=asks)["input_ids"]
        mine = ours.render(chat, tools, add_generation_prompt=asks)
        assert mine.text == text
        assert mine.ids == ids
        starts = [token for token in mine.ids if token == ours.tokenizer.bos_id]
        assert len(starts) <= text.count(FORMATS[name].bos or "\0"), "no start token is added to the template's"


def test_what_is_trained_is_what_a_model_in_use_would_write(name: str) -> None:
    """A turn begins where the question with its generation prompt ends, and ends after a stop token."""
    prompt = Prompt(tokenizer(name))
    for key, chat in chats_of(name).items():
        rendered = prompt.render(chat, mark_turns=True)
        written = [prompt.tokenizer.decode(rendered.ids[turn.first : turn.stop]) for turn in rendered.turns]
        answers = [message for message in chat if message["role"] == "assistant"]
        assert [turn.message for turn in rendered.turns] == [i for i, m in enumerate(chat) if m["role"] == "assistant"]
        for text, answer, turn in zip(written, answers, rendered.turns, strict=True):
            assert answer["content"].split("</think>")[-1].strip() in text
            ends = any(text.endswith(stop) for stop in (*FORMATS[name].stops, "<|observation|>"))
            assert ends is turn.is_closed
            assert turn.is_closed or (turn is rendered.turns[-1] and not FORMATS[name].closes_last)
        asked = prompt.render(chat[:-1], add_generation_prompt=True).text
        if rendered.text.startswith(asked):
            tail = rendered.text.removeprefix(asked)
            assert _dense(tail).startswith(_dense(written[-1])), (
                "trained from the very character at which generation begins"
            )
        others = [text for text, is_trained in _runs(prompt, rendered) if not is_trained]
        assert not any(answer["content"] in text for text in others for answer in answers if key == "rounds")


@pytest.mark.smoke
def test_turns_of_awkward_templates_read_as_written() -> None:
    wanted = {
        "llama_2": [" A cat. </s>", " On the mat. </s>"],
        "mistral": [" A cat.</s>", " On the mat.</s>"],
        "qwen_3": ["A cat.<|im_end|>", "<think>\n\n</think>\n\nOn the mat.<|im_end|>"],
        "phi_3": ["A cat.<|end|>", "On the mat.<|end|>"],
        "glm_4": ["\nA cat.<|user|>", "\nOn the mat."],
        "deepseek": ["A cat.<｜end▁of▁sentence｜>", "On the mat.<｜end▁of▁sentence｜>"],
    }
    for name, turns in wanted.items():
        assert _written(name, CHATS["system"]) == turns
    assert _written("qwen_3", CHATS["thought"]) == ["<think>\nHm.\n</think>\n\nHello<|im_end|>"]
    assert _written("qwen_3", CHATS["thoughts"])[0] == "Hello<|im_end|>", "earlier thoughts are left out, and untrained"
    assert _written("deepseek", CHATS["thoughts"])[0] == "\n\nHello<｜end▁of▁sentence｜>"
    end = "<｜end▁of▁sentence｜>"
    calls = {
        "mistral": ["[TOOL_CALLS] [{", "</s>", " 18 degrees.</s>"],
        "qwen_2_5": ["\n<tool_call>\n{", "}\n</tool_call><|im_end|>", "18 degrees.<|im_end|>"],
        "glm_4": ["get_weather\n{", "<|observation|>", "\n18 degrees.<|user|>"],
        "llama_3": ['{"name": "get', "<|eot_id|>", "18 degrees.<|eot_id|>"],
        "deepseek": [
            "<｜tool▁calls▁begin｜>",
            f"<｜tool▁calls▁end｜>{end}",
            f"18 degrees.{end}",
        ],
    }
    for name, (start, stop, answer) in calls.items():
        called, answered, _ = _written(name, WEATHER, TOOLS)
        assert called.startswith(start.lstrip("\n")) and called.endswith(stop) and answered == answer, (name, called)


def test_stop_tokens_come_from_the_rendering(name: str) -> None:
    prompt = Prompt(tokenizer(name))
    stops = {prompt.tokenizer.token(token) for token in prompt.stop_ids}
    assert stops == set(FORMATS[name].stops) | {FORMATS[name].eos}
    assert prompt.tokenizer.pad_id not in prompt.stop_ids or prompt.tokenizer.pad_id is None


def test_special_tokens_in_messages_stay_text(name: str) -> None:
    """Whatever a user types, the number of turns a model sees is the number of messages."""
    prompt, form = Prompt(tokenizer(name)), FORMATS[name]
    control = {token for token in (*form.specials, *form.plain) if "think" not in token and "tool" not in token}
    ids = {prompt.tokenizer.token_id(token) for token in control}
    plain = prompt.render([user("a b"), assistant("c d"), user("e")], mark_turns=True)
    typed = "".join(sorted(control))
    hostile = prompt.render([user(f"a {typed} b"), assistant("c d"), user("e")], mark_turns=True)
    assert typed in hostile.text
    assert [i for i in hostile.ids if i in ids] == [i for i in plain.ids if i in ids]
    assert _dense(prompt.tokenizer.decode(hostile.ids)) == _dense(hostile.text)
    assert [prompt.tokenizer.decode(hostile.ids[t.first : t.stop]) for t in hostile.turns] == [
        prompt.tokenizer.decode(plain.ids[t.first : t.stop]) for t in plain.turns
    ]


AWKWARD = [
    "a", "b c", "  ", "\n", "\n\n", "第一", "<think>", "</think>", "{{x}}", "<|im_end|>", "<|", "|>", "</s>", "<",
    "user\n", "[INST]", "<｜User｜>", "<|user|>", "\t", "👩‍👧", "\U000f0000", "\U000ff000", "\U00100001",
    '"', "\\", "\u3000",
]  # fmt: skip
awkward = st.lists(st.sampled_from(AWKWARD), max_size=6).map("".join)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.lists(st.tuples(awkward, awkward), min_size=1, max_size=3), awkward)
def test_no_text_moves_a_turn(name: str, rounds: list[tuple[str, str]], prologue: str) -> None:
    """Whatever is typed, the template's tokens stay as many, and each turn holds its answer."""
    prompt, form = Prompt(tokenizer(name)), FORMATS[name]
    chat = [system("S" + prologue)] if form.has_system else []
    chat += [message for asked, said in rounds for message in (user(asked + "q"), assistant("w" + said + "."))]
    control = {prompt.tokenizer.token_id(token) for token in form.specials}
    plain = prompt.render([message | {"content": "zz"} for message in chat])
    rendered = prompt.render(chat, mark_turns=True)
    assert [i for i in rendered.ids if i in control] == [i for i in plain.ids if i in control]
    for turn, (_, said) in zip(rendered.turns, rounds, strict=True):
        written = prompt.tokenizer.decode(rendered.ids[turn.first : turn.stop])
        assert _dense(f"w{said}.".split("</think>")[-1]) in _dense(written)
        assert sum(rendered.ids[place] in control for place in range(turn.first, turn.stop)) == turn.is_closed


def test_the_date_is_told_or_fixed() -> None:
    import datetime

    template = "{{ strftime_now('%Y-%m-%d') }}|" + FORMATS["chatml"].template
    dated = tokenizer("chatml").with_chat(template)
    fixed = Prompt(dated, today=datetime.date(2026, 1, 2)).render(CHATS["one"]).text
    assert fixed.startswith("2026-01-02|<|im_start|>")
    assert Prompt(dated).render(CHATS["one"]).text.startswith(f"{datetime.date.today()}|")


def test_a_template_that_marks_generation_itself_is_read_as_well() -> None:
    written = "{{ '<|assistant|>\\n'  + message['content'] + eos_token }}"
    assert written in FORMATS["zephyr"].template
    tagged = "{{ '<|assistant|>\\n' }}{% generation %}{{ message['content'] + eos_token }}\n{% endgeneration %}"
    prompt = Prompt(tokenizer("zephyr").with_chat(FORMATS["zephyr"].template.replace(written, tagged)))
    plain = Prompt(tokenizer("zephyr"))
    assert prompt.render(CHATS["rounds"], mark_turns=True) == plain.render(CHATS["rounds"], mark_turns=True)


def _written(name: str, chat: list[Message], tools: list[Message] | None = None) -> list[str]:
    prompt = Prompt(tokenizer(name))
    rendered = prompt.render(chat, tools, mark_turns=True)
    return [prompt.tokenizer.decode(rendered.ids[turn.first : turn.stop]) for turn in rendered.turns]


def _dense(text: str) -> str:
    """Without spaces, which some special tokens swallow."""
    return "".join(text.split())


def _runs(prompt: Prompt, rendered: Any) -> list[tuple[str, bool]]:
    """The text in runs, each trained or not."""
    runs: list[tuple[list[int], bool]] = []
    for token, is_trained in zip(rendered.ids, rendered.trained, strict=True):
        if not runs or runs[-1][1] != is_trained:
            runs.append(([], is_trained))
        runs[-1][0].append(token)
    return [(prompt.tokenizer.decode(ids), is_trained) for ids, is_trained in runs]
