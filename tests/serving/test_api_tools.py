"""Calls of functions: told from a template, found in an answer however it is cut, and forced by a grammar."""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tokenizers as library
from hypothesis import given
from hypothesis import strategies as st

from groundup.serving.api.tools import Call, CallForm, CallReader, form_of
from groundup.text.prompt import Prompt
from groundup.text.templates import DEFAULT_TEMPLATE
from groundup.text.tokenizers import Specials, Tokenizer
from groundup.text.vocabulary import Wish, learn

PLACE = Path(__file__).resolve().parents[1] / "parity" / "templates.py"
SPEC = importlib.util.spec_from_file_location("chat_formats_of_calls", PLACE)
assert SPEC is not None and SPEC.loader is not None
formats = sys.modules["chat_formats_of_calls"] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(formats)

TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}},
]
NAMES = {"weather", "search"}
FORMS = {
    "qwen": CallForm("<tool_call>", "</tool_call>", "name", "arguments", is_list=False),
    "llama": CallForm("", "", "name", "parameters", is_list=False),
    "mistral": CallForm("[TOOL_CALLS]", "", "name", "arguments", is_list=True),
}


@cache
def tokenizer(name: str) -> Tokenizer:
    """A tokenizer with the template and the tokens of a published format."""
    texts = ["What is the weather in Paris?", '{"name": "weather", "arguments": {"city": "巴黎"}}\n'] * 5
    engine, _ = learn(Wish("bpe", 300, min_frequency=1), lambda: iter(texts))
    found = formats.FORMATS[name]
    engine.add_tokens([library.AddedToken(token, normalized=False) for token in found.plain])
    engine.add_special_tokens([library.AddedToken(token, special=True, normalized=False) for token in found.specials])
    return Tokenizer(engine, Specials(eos=found.eos, bos=found.bos)).with_chat(found.template)


@pytest.mark.parametrize(
    ("name", "opening", "arguments", "is_list"),
    [
        ("qwen_2_5", "<tool_call>", "arguments", False),
        ("qwen_3", "<tool_call>", "arguments", False),
        ("llama_3", "", "parameters", False),
        ("mistral", "[TOOL_CALLS]", "arguments", True),
    ],
)
def test_the_form_is_read_off_the_template(name: str, opening: str, arguments: str, is_list: bool) -> None:
    found = form_of(Prompt(tokenizer(name)))
    assert found is not None
    assert (found.opening, found.name_key, found.arguments_key, found.is_list) == (opening, "name", arguments, is_list)


@pytest.mark.parametrize("name", ["llama_2", "gemma", "zephyr", "phi_3", "chatml"])
def test_a_template_without_calls_has_no_form(name: str) -> None:
    assert form_of(Prompt(tokenizer(name))) is None


def test_the_default_template_has_one() -> None:
    plain = tokenizer("chatml").with_chat(DEFAULT_TEMPLATE)
    assert form_of(Prompt(plain)) == CallForm("<tool_call>", "</tool_call>", "name", "arguments", is_list=False)


def read(form: CallForm, text: str, cuts: list[int], **more: Any) -> tuple[str, list[Call]]:
    """The text and calls of an answer that comes in pieces."""
    reader = CallReader(form, NAMES, **more)
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    shown, calls = [], []
    for start, end in pairwise(places):
        more_text, more_calls = reader.push(text[start:end])
        shown.append(more_text)
        calls += more_calls
    return "".join(shown) + reader.flush(), calls


ARGUMENTS = st.dictionaries(
    st.text(max_size=6), st.text(max_size=8) | st.integers() | st.lists(st.text(max_size=4)), max_size=3
)
CALLS = st.lists(st.tuples(st.sampled_from(sorted(NAMES)), ARGUMENTS), min_size=1, max_size=3)


def written(form: CallForm, calls: list[tuple[str, dict[str, Any]]]) -> str:
    """Calls as a model of this form writes them."""
    entries = [json.dumps({form.name_key: name, form.arguments_key: args}, ensure_ascii=False) for name, args in calls]
    if form.is_list:
        return f"{form.opening} [{', '.join(entries)}]"
    if not form.opening:
        return "; ".join(entries)
    return "\n".join(f"{form.opening}\n{entry}\n{form.closing}" for entry in entries)


@given(st.sampled_from(sorted(FORMS)), CALLS, st.lists(st.integers(0, 500), max_size=12))
def test_calls_are_found_however_the_answer_is_cut(
    form: str, calls: list[tuple[str, dict[str, Any]]], cuts: list[int]
) -> None:
    shown, found = read(FORMS[form], written(FORMS[form], calls), cuts)
    assert [(call.name, json.loads(call.arguments)) for call in found] == calls
    assert shown.strip() == ""
    assert all(len(call.id) == 9 and call.id.isalnum() for call in found)


@given(
    st.sampled_from(sorted(FORMS)),
    st.text(alphabet="abc <tool_call>{}[]\"':字\n", max_size=60),
    st.lists(st.integers(0, 80), max_size=8),
)
def test_text_that_is_no_call_stays_text(form: str, text: str, cuts: list[int]) -> None:
    shown, found = read(FORMS[form], text, cuts)
    assert not found
    assert "".join(shown.split()) == "".join(text.split())


def test_text_before_a_call_is_shown_and_marks_are_not() -> None:
    form = FORMS["qwen"]
    text = "I look. " + written(form, [("weather", {"city": "巴黎"})])
    shown, calls = read(form, text, [3, 9, 20])
    assert shown == "I look. "
    assert calls[0].arguments == '{"city": "巴黎"}'


def test_a_function_that_nobody_offered_is_text() -> None:
    shown, calls = read(FORMS["qwen"], '<tool_call>{"name": "rm", "arguments": {}}</tool_call>', [])
    assert not calls and '"rm"' in shown


def test_only_the_first_call_counts_where_one_is_allowed() -> None:
    form = FORMS["qwen"]
    _, calls = read(form, written(form, [("weather", {}), ("search", {})]), [], several=False)
    assert [call.name for call in calls] == ["weather"]


@pytest.mark.parametrize("name", sorted(FORMS))
@pytest.mark.parametrize("several", [True, False])
def test_a_forced_call_is_a_grammar_that_its_own_writing_fits(name: str, several: bool) -> None:
    guidance = pytest.importorskip("llguidance", reason="pip install 'groundup[serve]'")
    form = FORMS[name]
    grammar = guidance.LLMatcher.grammar_from_lark(form.grammar(TOOLS, several=several))
    assert not guidance.LLMatcher.validate_grammar(grammar)
    matcher = guidance.LLMatcher(guidance.LLTokenizer("byte"), grammar)
    text = written(form, [("weather", {"city": "巴黎"})])
    assert matcher.consume_tokens(list(text.encode())) and matcher.is_accepting()
