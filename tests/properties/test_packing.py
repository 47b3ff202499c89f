"""Rows cut from documents: nothing lost, nothing twice, no label across a border, every label accounted for."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from groundup.data.masking import MaskedOnce, MaskedRows, Masking
from groundup.data.packing import IGNORED, CausalRows, DocumentRows, Row, Rows, Stream, require_context, spread
from groundup.data.segments import (
    SENTENCES,
    PairLayout,
    SegmentLayout,
    Specials,
    StreamLayout,
    Targets,
    chunk_starts,
)
from groundup.errors import DataError

PAD, CLS, SEP, MASK, START, END = 0, 1, 2, 3, 4, 5
FIRST = 10
unhurried = settings(deadline=None, max_examples=60)
SPECIALS = Specials(cls=CLS, sep=SEP, pad=PAD)


class Held:
    """Documents in memory, as shards: every token of the text is another number, so it can be traced."""

    def __init__(self, sizes: list[int], *, frame: tuple[int, int] | None = None, sentence: int = 0) -> None:
        fresh = iter(range(FIRST, FIRST + sum(sizes)))
        texts = [[next(fresh) for _ in range(size)] for size in sizes]
        framed = [[frame[0], *text, frame[1]] if frame and text else text for text in texts]
        self.texts, self.documents = texts, len(sizes)
        self.bytes = np.array([3 * size for size in sizes], np.int64)
        self._columns = {"input_ids": framed}
        if sentence:
            self._columns[SENTENCES] = [list(range(0, size, sentence)) for size in sizes]

    def column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        values = self._columns[name]
        flat = np.array([token for value in values for token in value], np.uint32)
        return flat, np.cumsum([0, *map(len, values)], dtype=np.int64)

    @property
    def stream(self) -> list[int]:
        return self.column("input_ids")[0].tolist()

    @property
    def owner(self) -> dict[int, int]:
        return {token: i for i, text in enumerate(self.texts) for token in text}


SIZES = st.lists(st.integers(0, 30), min_size=1, max_size=12)
CONTEXT = st.integers(1, 20)


def every_row(rows: Rows, epoch: int = 0) -> list[Row]:
    return [rows.row(index, epoch) for index in range(len(rows))]


def pairs(row: Row) -> list[tuple[int, int]]:
    """(position, label) of each trained label."""
    return [(place, label) for place, label in enumerate(row["labels"].tolist()) if label != IGNORED]


def check_ledger(rows: Rows, context: int) -> None:
    ledger = rows.ledger()
    labels = sum(len(pairs(row)) for row in every_row(rows))
    assert ledger.trained == labels
    assert ledger.rows == len(rows)
    assert ledger.rows * context == ledger.trained + ledger.masked + ledger.padded


@unhurried
@given(SIZES, CONTEXT)
def test_concatenated_rows_predict_every_token_but_the_first_once(sizes: list[int], context: int) -> None:
    assume(sum(sizes) > 1)
    held = Held(sizes)
    rows = CausalRows(held, context=context, pad_id=PAD, packing="concatenate")
    read = [token for row in every_row(rows) for token in row["input_ids"].tolist()]
    predicted = [label for row in every_row(rows) for _, label in pairs(row)]
    assert predicted == held.stream[1:]
    assert read[: len(held.stream) - 1] == held.stream[:-1]
    assert set(read[len(held.stream) - 1 :]) <= {PAD}
    check_ledger(rows, context)
    assert sum(rows.bytes_of(i) for i in range(len(rows))) <= held.bytes.sum()


@unhurried
@given(SIZES, CONTEXT)
def test_rows_of_documents_never_look_or_predict_across_a_border(sizes: list[int], context: int) -> None:
    assume(max(sizes) > 1)
    held = Held(sizes)
    rows = CausalRows(held, context=context, pad_id=PAD, packing="documents")
    predicted = []
    for row in every_row(rows):
        ids, owners, positions = (row[key].tolist() for key in ("input_ids", "document_ids", "positions"))
        for place, label in pairs(row):
            assert held.owner[ids[place]] == held.owner[label]
            predicted.append(label)
        for place, token in enumerate(ids):
            inside = place > 0 and token != PAD and ids[place - 1] != PAD
            if inside and held.owner[token] == held.owner[ids[place - 1]]:
                assert owners[place] == owners[place - 1] and positions[place] == positions[place - 1] + 1
            elif place > 0 and (token != PAD or ids[place - 1] != PAD):
                assert owners[place] == owners[place - 1] + 1 and positions[place] == 0
    assert predicted == [token for text in held.texts for token in text[1:]]
    check_ledger(rows, context)


@unhurried
@given(SIZES, CONTEXT, st.data())
def test_document_rows_predict_every_token_once_with_enough_before_it(
    sizes: list[int], context: int, data: st.DataObject
) -> None:
    assume(sum(sizes) > 0)
    stride = data.draw(st.integers(1, context))
    held = Held(sizes, frame=(START, END))
    rows = DocumentRows(held, context=context, stride=stride, start_id=START, pad_id=PAD, heads=1, tails=1)
    by_document: dict[int, list[int]] = {}
    paid = 0.0
    for index, row in enumerate(every_row(rows)):
        unit, ids = rows.unit_of(index), row["input_ids"].tolist()
        paid += rows.bytes_of(index)
        text = held.texts[unit]
        for place, label in pairs(row):
            at = text.index(label)
            assert ids[place] == (text[at - 1] if at else START)
            assert place >= min(at, context - stride), "history before the token"
            by_document.setdefault(unit, []).append(label)
    assert {unit: sorted(found) for unit, found in by_document.items()} == {
        i: text for i, text in enumerate(held.texts) if text
    }
    assert paid == held.bytes.sum()
    ledger = rows.ledger()
    widths = sum(len(row["labels"]) for row in every_row(rows))
    assert (ledger.trained, ledger.trained + ledger.masked + ledger.padded) == (sum(sizes), widths)


def test_document_rows_predict_the_end_too_when_asked() -> None:
    held = Held([3], frame=(START, END))
    rows = DocumentRows(held, context=8, stride=4, start_id=START, pad_id=PAD, heads=1, tails=0)
    assert [label for _, label in pairs(rows.row(0, 0))] == [10, 11, 12, END]


@pytest.mark.parametrize("packing", ["concatenate", "documents"])
def test_a_split_that_trains_nothing_names_its_documents(packing: str) -> None:
    with pytest.raises(DataError, match=r"no trained labels: 3 documents with 1 tokens .*without labels: 0, 1, 2\)"):
        CausalRows(Held([0, 1, 0]), context=4, pad_id=PAD, packing=packing)
    with pytest.raises(DataError, match="no trained labels"):
        DocumentRows(Held([0, 0]), context=4, stride=2, start_id=START, pad_id=PAD, heads=0, tails=0)


def test_a_context_longer_than_the_split_is_refused_with_numbers() -> None:
    with pytest.raises(DataError, match="context of 9 tokens is longer than all: 7 tokens in 2 documents") as caught:
        require_context(Stream(Held([3, 4])), 9, what="all")
    assert "6 or less" in caught.value.fix


@unhurried
@given(st.integers(0, 200), st.integers(1, 250))
def test_a_spread_is_even_and_without_repeats(count: int, most: int) -> None:
    chosen = spread(count, most)
    assert len(chosen) == min(count, most) == len(set(chosen.tolist()))
    if len(chosen) > 1:
        gaps = np.diff(chosen)
        assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1


# Masked rows


def masking(share: float = 0.3, vocabulary: int = 30_000, seed: int = 0) -> Masking:
    ordinary = np.arange(vocabulary) >= FIRST
    return Masking(share, as_mask=0.8, as_random=0.1, mask_id=MASK, is_ordinary=ordinary, seed=seed)


def restored(row: Row) -> list[int]:
    """The row before masking."""
    return [token if label == IGNORED else label for token, label in zip(row["input_ids"], row["labels"], strict=True)]


@unhurried
@given(SIZES, st.integers(3, 24), st.integers(1, 8), st.floats(0, 1), st.integers(0, 5))
def test_segments_show_every_token_once_and_end_with_sentences(
    sizes: list[int], context: int, sentence: int, short: float, seed: int
) -> None:
    assume(sum(sizes) > 0)
    held = Held(sizes, sentence=sentence)
    starts = chunk_starts(held, Targets(context - 2, short, seed))
    layout = SegmentLayout(Stream(held), starts[:-1], starts[1:], context=context, specials=SPECIALS)
    shown: list[int] = []
    for row in every_row(MaskedRows(layout, masking())):
        whole = restored(row)
        real = int(row["attention_mask"].sum())
        text = whole[1 : real - 1]
        assert (whole[0], whole[real - 1]) == (CLS, SEP) and set(whole[real:]) <= {PAD}
        assert len({held.owner[token] for token in text}) == 1
        assert all(token not in (CLS, SEP, PAD) for token in text)
        shown += text
    assert shown == [token for text in held.texts for token in text]
    if sentence <= context - 2:
        inside = np.asarray(held.column("input_ids")[1])
        begins = starts[:-1] - inside[np.searchsorted(inside, starts[:-1], side="right") - 1]
        assert (begins % sentence == 0).all(), "no sentence that fits is cut"


def test_short_targets_come_as_often_as_asked() -> None:
    found = Targets(room=100, short=0.1, seed=3).at(np.arange(50_000))
    assert abs((found < 100).mean() - 0.1 * 98 / 99) < 0.006
    assert found.min() == 2 and found.max() == 100
    assert abs(found[found < 100].mean() - 50.5) < 1.5


def pair_layout(sizes: list[int], context: int = 32, seed: int = 0) -> tuple[Held, PairLayout]:
    held = Held(sizes, sentence=5)
    return held, PairLayout(held, Targets(context - 3, 0.1, seed), context=context, specials=SPECIALS)


@unhurried
@given(st.lists(st.integers(0, 90), min_size=2, max_size=8), st.integers(5, 40), st.integers(0, 3), st.integers(0, 3))
def test_pairs_follow_each_other_or_come_from_two_documents(
    sizes: list[int], context: int, seed: int, epoch: int
) -> None:
    assume(sum(size > 0 for size in sizes) > 1)
    held, layout = pair_layout(sizes, context, seed)
    for row in every_row(MaskedRows(layout, masking()), epoch):
        whole, real, types = restored(row), int(row["attention_mask"].sum()), row["token_type_ids"].tolist()
        middle = whole.index(SEP)
        first, second = whole[1:middle], whole[middle + 1 : real - 1]
        assert first and whole[0] == CLS and whole[real - 1] == SEP
        assert types == [0] * (middle + 1) + [1] * (real - middle - 1) + [0] * (len(whole) - real)
        if row["next_sentence_label"] == 0:
            assert first + second == list(range(first[0], first[0] + len(first + second)))
            assert held.owner[first[0]] == held.owner[second[-1]]
        else:
            assert second and len({held.owner[token] for token in second}) == 1
            assert held.owner[first[0]] != held.owner[second[0]]


def test_half_of_the_pairs_are_false_and_their_length_does_not_tell() -> None:
    _, layout = pair_layout([400] * 60, context=64)
    found = [layout.spans(index, epoch) for epoch in range(4) for index in range(len(layout))]
    labels = np.array([label for _, _, label in found])
    lengths = np.array([len(first) + len(second) for first, second, _ in found])
    assert abs(labels.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(labels) / 2)
    true, false = lengths[labels == 0], lengths[labels == 1]
    assert abs(true.mean() - false.mean()) < 0.05 * true.mean()
    best = max((np.mean(true >= cut) + np.mean(false < cut)) / 2 for cut in range(1, 65))
    assert max(best, 1 - best) < 0.56, "no length separates true pairs from false ones"


def test_pairs_differ_by_epoch_and_show_nearly_every_token() -> None:
    held, layout = pair_layout([400] * 60, context=64)
    rows = MaskedRows(layout, masking())
    shown = [Counter(t for row in every_row(rows, epoch) for t in restored(row) if t >= FIRST) for epoch in (0, 1)]
    assert shown[0] != shown[1]
    tokens = sum(map(len, held.texts))
    unseen = tokens - len(shown[0])
    assert unseen < 0.05 * tokens
    assert abs(rows.ledger().cropped - unseen) < 0.02 * tokens


@unhurried
@given(SIZES, st.integers(3, 20), st.sampled_from(["documents", "concatenate"]))
def test_packed_masked_rows_count_every_token_as_text_once(sizes: list[int], context: int, packing: str) -> None:
    assume(sum(sizes) > 0)
    held = Held(sizes, frame=(CLS, SEP))
    layout = StreamLayout(Stream(held), context=context, specials=SPECIALS, packing=packing)
    counted = []
    for index in range(len(layout)):
        made = layout.unmasked(index, 0)
        counted += made.row["input_ids"][made.text].tolist()
        if len(held.stream) >= context:
            assert PAD not in made.row["input_ids"]
    assert counted == [token for text in held.texts for token in text]


def test_a_split_shorter_than_a_row_is_padded_out_of_sight() -> None:
    stream = Stream(Held([2, 1], frame=(CLS, SEP)))
    plain = StreamLayout(stream, context=9, specials=SPECIALS, packing="concatenate").unmasked(0, 0)
    assert plain.row["attention_mask"].tolist() == [True] * 7 + [False] * 2
    assert plain.row["input_ids"].tolist() == [CLS, 10, 11, SEP, CLS, 12, SEP, PAD, PAD]
    blocks = StreamLayout(stream, context=9, specials=SPECIALS, packing="documents").unmasked(0, 0)
    assert blocks.row["document_ids"].tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2]
    assert blocks.row["positions"].tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1]
    assert blocks.text.tolist() == plain.text.tolist() == [token >= FIRST for token in plain.row["input_ids"]]


@unhurried
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.floats(0.05, 0.6), st.booleans())
def test_measured_rows_hide_every_token_exactly_once(sizes: list[int], share: float, words: bool) -> None:
    held = Held(sizes, sentence=4)
    starts = chunk_starts(held, Targets(14, 0.0, 0))
    layout = SegmentLayout(Stream(held), starts[:-1], starts[1:], context=16, specials=SPECIALS, fit=True)
    word_starts = np.arange(sum(sizes)) % 3 == 0 if words else None
    rows = MaskedOnce(layout, masking(share), word_starts)
    found = Counter(label for row in every_row(rows) for _, label in pairs(row))
    assert found == Counter(held.stream)
    assert rows.ledger().trained == len(held.stream)
    assert all(row["input_ids"][place] == MASK for row in every_row(rows) for place, _ in pairs(row))


@unhurried
@given(st.integers(1, 60), st.floats(0.05, 0.9), st.integers(0, 50), st.booleans())
def test_masking_keeps_within_its_share_and_leaves_special_tokens(
    size: int, share: float, epoch: int, words: bool
) -> None:
    held = Held([size], sentence=7)
    layout = SegmentLayout(Stream(held), np.array([0]), np.array([size]), context=64, specials=SPECIALS)
    drawn = masking(share)
    rows = MaskedRows(layout, drawn, np.arange(size) % 4 == 0 if words else None)
    row = rows.row(0, epoch)
    labels = pairs(row)
    assert 1 <= len(labels) <= max(1, int(np.ceil(share * size))) <= drawn.most(64)
    assert restored(row)[: size + 2] == [CLS, *held.texts[0], SEP]
    again = rows.row(0, epoch)
    assert all((row[key] == again[key]).all() for key in row)


def test_whole_words_are_hidden_whole() -> None:
    held = Held([60], sentence=60)
    layout = SegmentLayout(Stream(held), np.array([0]), np.array([60]), context=62, specials=SPECIALS)
    rows = MaskedRows(layout, masking(0.3), np.arange(60) % 4 == 0)
    for epoch in range(30):
        hidden = {label - FIRST for _, label in pairs(rows.row(0, epoch))}
        assert hidden and all(hidden >= set(range(token - token % 4, token - token % 4 + 4)) for token in hidden)


def test_blocks_of_documents_are_chunked_as_if_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held([17, 0, 40, 3, 99, 0, 0, 25], sentence=6)
    targets = Targets(20, 0.2, 1)
    whole = chunk_starts(held, targets)
    for block in (1, 3, 10):
        monkeypatch.setattr("groundup.data.segments.BLOCK", block)
        assert (chunk_starts(held, targets) == whole).all()
