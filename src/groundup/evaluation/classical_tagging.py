"""Classical rivals of a tagger: a dictionary of the training entities, and an averaged perceptron.

The perceptron is a linear model of whole sequences (Collins 2002): every token has features of its word,
shape, ends and neighbours, tags have weights for following each other, the best sequence is found by
Viterbi's algorithm, and only sequences that keep the scheme are allowed. The number of passes is chosen
on validation rows.

Axes: T tokens, K tags, F features of a token.
"""

from __future__ import annotations

import re
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from groundup.errors import Interrupted
from groundup.evaluation.classical import HELD_BACK
from groundup.evaluation.labelled import System
from groundup.evaluation.metrics.additive import Floats, Ints
from groundup.evaluation.metrics.classification import micro
from groundup.evaluation.metrics.tagging import (
    Scheme,
    Tags,
    breaks,
    entities,
    entity_counts,
    kinds_of,
    marks_entities,
    scheme_of,
    split,
    tag_accuracy,
)
from groundup.progress import interrupt_requested

Tokens = Sequence[str]
PASSES = 8
MAX_TOKENS = 1_000_000
"""The most training tokens that are read."""
FORBIDDEN = -1e9
_HAN = re.compile("[\u3400-\u9fff]")
_RUNS = re.compile(r"(.)\1+")


@dataclass(frozen=True)
class Tagged:
    """Sentences as tokens, and the tags of each token."""

    tokens: Sequence[Tokens]
    tags: Sequence[Tags]

    def part(self, rows: Sequence[int]) -> Tagged:
        """Some of them, by number."""
        return Tagged([self.tokens[i] for i in rows], [self.tags[i] for i in rows])


def taggers(train: Tagged, validation: Tagged, test: Sequence[Tokens], *, seconds: float = 90.0) -> list[System]:
    """The rivals' tags of the test sentences; the dictionary only where tags mark entities. Raises Interrupted."""
    through = np.cumsum([len(tokens) for tokens in train.tokens])
    count = int(np.searchsorted(through, MAX_TOKENS, side="right"))
    train = train.part(range(min(len(train.tokens), max(1, count))))
    if not train.tokens:
        return []
    every_tag = sorted({tag for tags in train.tags for tag in tags})
    schemed = marks_entities(every_tag)
    found = [_dictionary(train, test) if schemed else _commonest_tag(train, test)]
    if not len(validation.tokens) and len(train.tokens) >= 2 * HELD_BACK:
        rows = range(len(train.tokens))
        validation, train = train.part(rows[::HELD_BACK]), train.part([i for i in rows if i % HELD_BACK])
    scheme = scheme_of(train.tags) if schemed else None
    model, passes = _learn(train, validation, every_tag, scheme, seconds)
    meaning = (
        "an averaged perceptron over word, shape, ends and neighbours of each token, Viterbi-decoded"
        f"{' within the scheme' if schemed else ''}; {passes} passes, chosen on validation rows"
    )
    answers = [model.tag(tokens) for tokens in test]
    rows_read = len(train.tokens)
    details = {"passes": passes, "features": len(model.numbers)}
    return [*found, System("a perceptron", answers, meaning=meaning, trained_rows=rows_read, details=details)]


def _commonest_tag(train: Tagged, test: Sequence[Tokens]) -> System:
    """Each word's commonest tag, and the commonest of all for words never seen."""
    by_word: dict[str, Counter[str]] = defaultdict(Counter)
    for tokens, tags in zip(train.tokens, train.tags, strict=True):
        for word, tag in zip(tokens, tags, strict=True):
            by_word[word][tag] += 1
    best = {word: counts.most_common(1)[0][0] for word, counts in by_word.items()}
    common = Counter(tag for tags in train.tags for tag in tags).most_common(1)[0][0]
    answers = [[best.get(word, common) for word in tokens] for tokens in test]
    return System(
        "the commonest tag",
        answers,
        meaning="gives each word the tag it most often had in training, and unseen words the commonest of all",
        trained_rows=len(train.tokens),
    )


def _dictionary(train: Tagged, test: Sequence[Tokens]) -> System:
    """Entities of the training rows, found again word for word; the longest match first."""
    scheme = scheme_of(train.tags)
    known: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for tokens, tags in zip(train.tokens, train.tags, strict=True):
        for kind, start, stop in entities(tags, strict=scheme == "BIOES", scheme=scheme):
            known[tuple(tokens[start:stop])][kind] += 1
    best = {words: counts.most_common(1)[0][0] for words, counts in known.items()}
    longest = max(map(len, best), default=0)
    middle = "M" if any(tag.startswith("M-") for tags in train.tags for tag in tags) else "I"
    answers = [_look_up(tokens, best, longest, scheme, middle) for tokens in test]
    meaning = f"finds the {len(best):,} entities of the training rows again, word for word"
    return System("a dictionary", answers, meaning=meaning, trained_rows=len(train.tokens))


def _look_up(tokens: Tokens, known: dict[tuple[str, ...], str], longest: int, scheme: Scheme, middle: str) -> list[str]:
    tags, place = ["O"] * len(tokens), 0
    while place < len(tokens):
        lengths = range(min(longest, len(tokens) - place), 0, -1)
        length = next((n for n in lengths if tuple(tokens[place : place + n]) in known), 0)
        if length:
            kind = known[tuple(tokens[place : place + length])]
            tags[place : place + length] = _spelled(kind, length, scheme, middle)
        place += max(1, length)
    return tags


def _spelled(kind: str, length: int, scheme: Scheme, middle: str) -> list[str]:
    if scheme == "BIO":
        return [f"B-{kind}"] + [f"I-{kind}"] * (length - 1)
    if length == 1:
        return [f"S-{kind}"]
    return [f"B-{kind}", *[f"{middle}-{kind}"] * (length - 2), f"E-{kind}"]


@dataclass
class Perceptron:
    """Weights of features and of tags that follow each other; feature 0 is every unknown one and weighs 0."""

    tags: list[str]
    numbers: dict[str, int]
    emit: Floats
    """(F, K)."""
    follow: Floats
    """(K + 1, K + 1); row K is the beginning of a sentence, column K its end."""
    allowed: Floats
    """0 where one tag may follow another, else far below it."""

    def ids(self, tokens: Tokens) -> Ints:
        """The numbers of each token's features, (T, F)."""
        rows = features(tokens)
        return np.array([[self.numbers.get(name, 0) for name in row] for row in rows], np.int64)

    def tag(self, tokens: Tokens) -> list[str]:
        """The best sequence of tags."""
        if not len(tokens):
            return []
        return [self.tags[k] for k in self.best(self.ids(tokens))]

    def best(self, ids_TF: Ints) -> Ints:
        """The best sequence as numbers, by Viterbi's algorithm."""
        emitted_TK = self.emit[ids_TF].sum(1)
        end = len(self.tags)
        follow_KK = self.follow + self.allowed
        score_K, back = follow_KK[end, :end] + emitted_TK[0], []
        between_KK = follow_KK[:end, :end]
        for emitted_K in emitted_TK[1:]:
            through_KK = score_K[:, None] + between_KK
            back.append(through_KK.argmax(0))
            score_K = through_KK.max(0) + emitted_K
        path = [int((score_K + follow_KK[:end, end]).argmax())]
        for pointers in reversed(back):
            path.append(int(pointers[path[-1]]))
        return np.array(path[::-1])


def _learn(
    train: Tagged, validation: Tagged, tags: list[str], scheme: Scheme | None, seconds: float
) -> tuple[Perceptron, int]:
    """The averaged weights after the number of passes that serves the validation rows best."""
    rows = [features(tokens) for tokens in train.tokens]
    seen = Counter(name for row in rows for token in row for name in token)
    numbers = {name: place for place, name in enumerate((n for n, count in seen.items() if count > 1), start=1)}
    size = len(tags)
    model = Perceptron(
        tags, numbers, np.zeros((len(numbers) + 1, size)), np.zeros((size + 1, size + 1)), _allowed(tags, scheme)
    )
    ids = [np.array([[numbers.get(n, 0) for n in token] for token in row], np.int64) for row in rows]
    place = {tag: number for number, tag in enumerate(tags)}
    truth = [np.array([place[tag] for tag in row], np.int64) for row in train.tags]
    # The average of all steps is W - A / steps, where A sums each change times the step it was made at.
    emit_sum, follow_sum = np.zeros_like(model.emit), np.zeros_like(model.follow)
    step, until, best = 1, time.monotonic() + seconds, (-1.0, model, 0)
    order = np.arange(len(ids))
    for passed in range(1, PASSES + 1):
        np.random.default_rng(passed).shuffle(order)
        for row in order:
            if interrupt_requested():
                raise Interrupted("stopped while fitting a classical tagger", fix="run again: evaluation starts afresh")
            if len(ids[row]):
                _correct(model, ids[row], truth[row], step, emit_sum, follow_sum)
            step += 1
        model.emit[0] = emit_sum[0] = 0
        mean = Perceptron(tags, numbers, model.emit - emit_sum / step, model.follow - follow_sum / step, model.allowed)
        score = _quality(mean, validation, scheme)
        if score > best[0]:
            best = (score, mean, passed)
        if time.monotonic() > until:
            break
    return best[1], best[2]


def _correct(model: Perceptron, ids_TF: Ints, truth_T: Ints, step: int, emit_sum: Floats, follow_sum: Floats) -> None:
    """Move the weights towards the true sequence and away from the one that was found, if they differ."""
    found_T = model.best(ids_TF)
    wrong = found_T != truth_T
    if not wrong.any():
        return
    width = ids_TF.shape[1]
    features_N = ids_TF[wrong].ravel()
    for tags_T, sign in ((truth_T, 1.0), (found_T, -1.0)):
        tags_N = np.repeat(tags_T[wrong], width)
        np.add.at(model.emit, (features_N, tags_N), sign)
        np.add.at(emit_sum, (features_N, tags_N), sign * step)
        edge = np.array([len(model.tags)])
        before, after = np.concatenate([edge, tags_T]), np.concatenate([tags_T, edge])
        np.add.at(model.follow, (before, after), sign)
        np.add.at(follow_sum, (before, after), sign * step)
    model.emit[0] = 0


def _quality(model: Perceptron, held_out: Tagged, scheme: Scheme | None) -> float:
    answers = [model.tag(tokens) for tokens in held_out.tokens]
    if not answers:
        return 0.0
    if scheme is None:
        return tag_accuracy(held_out.tags, answers).value
    kinds = kinds_of(held_out.tags, answers)
    return micro(entity_counts(held_out.tags, answers, kinds, scheme), "f1").value


def _allowed(tags: Sequence[str], scheme: Scheme | None) -> NDArray[np.float64]:
    """0 where one tag may follow another, else far below it; with the edges of the sentence last."""
    size = len(tags)
    made = np.zeros((size + 1, size + 1))
    if scheme is None:
        return made
    # A neighbour that would break the scheme by itself is put right first, so only the pair is judged.
    for here, tag in enumerate(tags):
        starts = bool(breaks([tag], "BIO"))
        made[size, here] = FORBIDDEN if starts else 0.0
        prefix, _ = split(tag)
        made[here, size] = FORBIDDEN if scheme == "BIOES" and prefix in ("B", "I") else 0.0
        for there, after in enumerate(tags):
            made[here, there] = 0.0 if _may_follow(tag, after, scheme) else FORBIDDEN
    return made


def _may_follow(tag: str, after: str, scheme: Scheme) -> bool:
    (prefix, kind), (next_prefix, next_kind) = split(tag), split(after)
    continues = next_prefix in ("I", "E")
    is_open = prefix in ("B", "I")
    if continues:
        return is_open and kind == next_kind
    return not (scheme == "BIOES" and is_open)


def features(tokens: Tokens) -> list[list[str]]:
    """What is known of each token: the same number of named features for every one."""
    words = ["<s>", "<s>", *tokens, "</s>", "</s>"]
    low = [word.lower() for word in words]
    shapes = [_shape(word) for word in words]
    return [_of_token(low, shapes, words, place) for place in range(2, len(tokens) + 2)]


def _of_token(low: list[str], shapes: list[str], words: list[str], at: int) -> list[str]:
    word = low[at]
    return [
        "bias",
        f"w={word}",
        f"w-1={low[at - 1]}",
        f"w+1={low[at + 1]}",
        f"w-2={low[at - 2]}",
        f"w+2={low[at + 2]}",
        f"w-1,w={low[at - 1]} {word}",
        f"w,w+1={word} {low[at + 1]}",
        f"w-1,w+1={low[at - 1]} {low[at + 1]}",
        f"w-2,w-1={low[at - 2]} {low[at - 1]}",
        f"w+1,w+2={low[at + 1]} {low[at + 2]}",
        f"s={shapes[at]}",
        f"s-1,s={shapes[at - 1]} {shapes[at]}",
        f"s,s+1={shapes[at]} {shapes[at + 1]}",
        *(f"p{n}={word[:n]}" for n in (1, 2, 3)),
        *(f"e{n}={word[-n:]}" for n in (1, 2, 3)),
        f"W={words[at]}",
    ]


def _shape(word: str) -> str:
    """`Xx`, `d`, `X.X`, …: what kinds of characters a word is made of, runs written once."""
    signs = (
        "汉" if _HAN.match(c) else "X" if c.isupper() else "x" if c.isalpha() else "d" if c.isdigit() else c
        for c in word[:20]
    )
    return _RUNS.sub(r"\1", "".join(signs))
