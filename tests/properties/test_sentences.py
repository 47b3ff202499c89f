"""Where sentences begin: nothing lost, and the cases that rules usually get wrong."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.text.sentences import sentence_starts, token_starts, word_starts


def cut(text: str) -> list[str]:
    starts = sentence_starts(text)
    return [text[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from("aB.!?。！…”』\n\r\t 中，:;3()"), max_size=60))
def test_sentences_put_together_are_the_text(text: str) -> None:
    pieces = cut(text) if text else []
    assert "".join(pieces) == text and all(pieces)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("It rained. We left! Why? Nobody knows", ["It rained. ", "We left! ", "Why? ", "Nobody knows"]),
        ("Dr. Smith met J. K. Rowling at 3.14 p.m. today.", ["Dr. Smith met J. K. Rowling at 3.14 p.m. today."]),
        ("He said “stop.” Then he left.", ["He said “stop.” ", "Then he left."]),
        ("Wait ... what? yes", ["Wait ... what? yes"]),
        ("So did I. Then we ate.", ["So did I. ", "Then we ate."]),
        ("A title\n\nThe text.\nMore", ["A title\n\n", "The text.\n", "More"]),
        ("a line\nwrapped here", ["a line\nwrapped here"]),
        ("今天很好。我们走！他说：“不行。”真的？是", ["今天很好。", "我们走！", "他说：“不行。”", "真的？", "是"]),
        ("等等……好吧。", ["等等……", "好吧。"]),
        ("春眠不觉晓，\n处处闻啼鸟。\n夜来", ["春眠不觉晓，\n", "处处闻啼鸟。\n", "夜来"]),
        ("用 v1.2 版。OK. 再见", ["用 v1.2 版。", "OK. ", "再见"]),
        ("", []),
    ],
)
def test_sentences_are_found_where_a_reader_finds_them(text: str, pieces: list[str]) -> None:
    assert (cut(text) if text else sentence_starts(text)) == pieces


def test_places_in_the_text_become_places_among_the_tokens() -> None:
    offsets = [(0, 3), (3, 7), (7, 8), (8, 12)]
    assert token_starts([0, 8], offsets) == [0, 3]
    assert token_starts([0, 4], offsets) == [0, 1], "the token that holds the character"
    assert token_starts([5, 12, 40], offsets) == [0, 1], "the first token always, nothing past the end"
    assert token_starts([0], []) == []


def test_words_begin_where_the_tokenizer_says_and_at_chinese_characters() -> None:
    text = "cats 我们走"
    offsets = [(0, 3), (3, 4), (4, 5), (5, 6), (5, 6), (6, 8)]
    words = [0, 0, 1, 2, 2, 2]
    # The second token of 我 (one character in two byte-level tokens) begins nothing.
    assert word_starts(text, words, offsets) == [1, 0, 1, 1, 0, 1]
