"""Chats out of rows: every layout people keep them in, and what is said about a row that holds none."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from groundup.errors import DataError
from groundup.text.conversations import conversation, reply

ASK = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "it"}}}


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": [ASK, ANSWER]}, [ASK, ANSWER]),
        ({"messages": json.dumps([ASK, ANSWER])}, [ASK, ANSWER]),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}, [ASK, ANSWER]),
        ({"instruction": "Hi", "input": "", "output": "Hello"}, [ASK, ANSWER]),
        ({"instruction": "Hi", "input": "you", "output": "Hello"}, [{"role": "user", "content": "Hi\nyou"}, ANSWER]),
        ({"instruction": "Hi", "output": "Hello", "history": [["a", "b"]]}, [
            {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, ASK, ANSWER]),
        ({"prompt": "Hi", "completion": "Hello"}, [ASK, ANSWER]),
        ({"prompt": [ASK], "completion": [ANSWER]}, [ASK, ANSWER]),
        ({"prompt": "Hi", "completion": "[1, 2]", "system": "Be kind."}, [
            {"role": "system", "content": "Be kind."}, ASK, {"role": "assistant", "content": "[1, 2]"}]),
        ({"messages": [{"role": "system", "content": "A"}, ASK], "system": "B"}, [
            {"role": "system", "content": "A"}, ASK]),
        ({"conversations": [
            {"from": "function_call", "value": '{"name": "look", "arguments": {"at": "it"}}'},
            {"from": "observation", "value": "a cat"}]},
            [{"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "a cat"}]),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [
            {"id": "x", "type": "function", "function": {"name": "look", "arguments": '{"at": "it"}'}}]}]},
            [{"role": "assistant", "tool_calls": [{"id": "x", **CALL}]}]),
    ],
)  # fmt: skip
def test_a_row_becomes_messages(row: dict[str, Any], messages: list[dict[str, Any]]) -> None:
    assert conversation(row).messages == messages


def test_tools_come_as_a_list_or_as_json() -> None:
    tool = {"name": "look", "parameters": {}}
    for given in ([tool], json.dumps([tool]), tool):
        assert conversation({"messages": [ASK], "tools": given}).tools == [tool]
    empty: list[Any] = [None, "", [], "[]"]
    for nothing in empty:
        assert conversation({"messages": [ASK], "tools": nothing}).tools is None


def test_an_answer_is_a_string_or_messages() -> None:
    said = {"from": "gpt", "value": "Hello"}
    for given in ("Hello", said, [said], [ANSWER], json.dumps([ANSWER])):
        assert reply({"chosen": given}, "chosen") == [ANSWER]
    assert conversation({"prompt": "Hi", "chosen": "Hello"}, needs_answer=False).messages == [ASK]
    assert conversation({"instruction": "Hi"}, needs_answer=False).messages == [ASK]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"text": "Hi", "topic": "x"}, "holds no chat"),
        ({"messages": ["Hi"]}, "a message is a mapping"),
        ({"messages": [{"content": "Hi"}]}, "without a role"),
        ({"messages": 5}, "a list of messages, not int"),
        ({"instruction": "Hi"}, "no 'output' in the row"),
        ({"prompt": "Hi"}, "no 'completion' in the row"),
        ({"conversations": [{"from": "function_call", "value": "look()"}]}, "cannot be read"),
        ({"conversations": [{"from": "function_call", "value": '{"arguments": {}}'}]}, "without a name"),
        ({"messages": [ASK], "tools": "{]"}, "cannot be read"),
        ({"messages": [ASK], "tools": "[1]"}, "list of JSON schemas"),
    ],
)
def test_a_row_without_a_chat_is_named(row: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError, match=what) as caught:
        conversation({"source": "chats.jsonl:7", **row})
    assert caught.value.where == "chats.jsonl:7" and caught.value.fix


def test_real_files_are_read(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("sft")
    for name, has_tools in [
        ("alpaca_en_demo", 0),
        ("alpaca_zh_demo", 0),
        ("identity", 0),
        ("instruction-data", 0),
        ("kto_en_demo", 0),
        ("glaive_toolcall_en_demo", 100),
    ]:
        with gzip.open(folder / f"{name}.json.gz", "rt", encoding="utf-8") as file:
            rows = json.load(file)
        found = [conversation(row) for row in rows]
        assert all(chat.messages[-1]["role"] == "assistant" for chat in found)
        assert sum(chat.tools is not None for chat in found) >= has_tools
    for name in ("dpo_en_demo", "dpo_zh_demo", "instruction-data-with-preference"):
        with gzip.open(folder / f"{name}.json.gz", "rt", encoding="utf-8") as file:
            for row in json.load(file):
                assert conversation(row, needs_answer=False).messages[-1]["role"] == "user"
                assert reply(row, "chosen")[0]["role"] == reply(row, "rejected")[0]["role"] == "assistant"
