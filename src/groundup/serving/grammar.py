"""Texts held to a grammar: JSON of a schema, a regular expression, or a grammar in Lark's notation.

llguidance reads a grammar and says after each token which may come next. It needs the bytes that each token stands
for; where a tokenizer has none (WordPiece, which writes spaces by rules of its own), grammars are refused when the
model is opened. A grammar comes from a user, so its size and depth are limited before it is read, it is read on
trial first (`grammar_trial.py`), and in a thread of its own while others' texts go on.

Nothing here needs torch: the front makes grammars, the engine applies them.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundup.errors import GroundupError, MissingExtra, UserError
from groundup.serving.grammar_trial import LIMITS, SIMPLER, Trial, in_deep_thread, refused
from groundup.text.byte_pairs import LETTERS
from groundup.text.tokenizers import Tokenizer

MAX_BYTES = 65_536
"""The longest grammar or schema that is read."""
MAX_DEPTH = 64
"""How deep a schema may be nested."""
COMPILE_S = 10.0
"""Seconds after which a grammar that is still being read, or waits for others to be, is given up."""
MASKS_S = 1.0
"""Seconds that a text's grammar may take, beside MASK_S for every token."""
MASK_S = 0.05
IDLE_S = 60.0
"""Seconds without a new grammar after which the thread and the process that read them end."""
KEPT = 16
"""Grammars that are kept ready, for the next request with the same."""
WHITESPACE = r"[\x20\x0A\x0D\x09]{0,16}"
"""Between the parts of JSON. Bounded: a small model can fall into writing spaces for ever."""
MARK = "▁"
"""How SentencePiece writes a space."""


def from_json_schema(schema: Mapping[str, Any] | bool) -> str:
    """The grammar of JSON that a schema describes; `{"type": "object"}` is any object.

    Raises UserError for a schema that is too large, too deep or no schema. What llguidance does not support in it
    is refused when the grammar is compiled.
    """
    _check_depth(schema)
    try:
        text = json.dumps(schema)
        _check_size(text, "JSON schema")
        matcher = _library("JSON schemas").LLMatcher
        return str(matcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": WHITESPACE}))
    except (TypeError, ValueError) as error:
        raise UserError(f"the JSON schema cannot be read: {error}", fix="send a JSON object") from error


def from_regex(pattern: str) -> str:
    """The grammar of texts that a regular expression matches as a whole (the syntax of Rust's regex).

    Raises UserError for one that is too long; mistakes in it show when it is compiled.
    """
    _check_size(pattern, "regular expression")
    return str(_library("regular expressions").LLMatcher.grammar_from_regex(pattern))


def from_lark(text: str) -> str:
    """The grammar of a text in Lark's notation, whose first rule is `start`.

    Raises UserError for one that is too long; mistakes in it show when it is compiled.
    """
    _check_size(text, "grammar")
    return str(_library("grammars").LLMatcher.grammar_from_lark(text))


class Constraint:
    """Where one text stands in its grammar."""

    def __init__(self, matcher: Any, vocab_size: int, stop_ids: Collection[int], eos_id: int) -> None:
        self._spent_s = -MASKS_S
        self._matcher, self._vocab_size, self._eos_id = matcher, vocab_size, eos_id
        self._stop_ids = [token for token in stop_ids if token < vocab_size]

    @property
    def is_complete(self) -> bool:
        """Whether nothing can follow."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next, (vocabulary,). Raises UserError if the grammar asks for too much work."""
        begun = time.perf_counter()
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._require_sound()
        self._spent_s += time.perf_counter() - begun - MASK_S
        if self._spent_s > 0:
            raise UserError("the grammar takes too long at each token: it would hold others up", fix=SIMPLER)
        bits = np.unpackbits(packed, bitorder="little").astype(np.bool_)
        found = np.zeros(self._vocab_size, dtype=np.bool_)
        found[: len(bits)] = bits[: self._vocab_size]
        if found[self._eos_id]:  # the text may end here, by whichever token ends it
            found[self._stop_ids] = True
        return found

    def accept(self, token: int) -> None:
        """Go on by a token. Raises UserError for one that was not allowed."""
        if token in self._stop_ids and token != self._eos_id:
            token = self._eos_id
        self._matcher.consume_token(token)
        self._require_sound()

    def _require_sound(self) -> None:
        if self._matcher.is_error():
            raise refused(self._matcher.get_error())


class Pending:
    """A grammar that is being read."""

    def __init__(self, future: Future[Any], give_up: float) -> None:
        self._future, self._give_up = future, give_up

    def is_done(self, now: float) -> bool:
        """Whether `matcher` has an answer: the grammar was read, or refused, or took too long."""
        return self._future.done() or now >= self._give_up

    def wait(self, seconds: float) -> None:
        """Wait until it is read, for so long at most."""
        wait_for([self._future], seconds)

    def matcher(self) -> Any:
        """The grammar, read. Raises UserError for one that has mistakes, asks for too much, or took too long."""
        if not self._future.done():
            raise UserError(f"the grammar was not read within {COMPILE_S:g} s", fix=SIMPLER)
        return self._future.result()


class Grammars:
    """Reads grammars for one model.

    `vocab_size` is the length of its logits. Raises UserError for a tokenizer whose tokens do not stand for bytes,
    and MissingExtra where llguidance is not installed.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        library = _library("grammars")
        self.vocab_size = vocab_size
        ends = tokenizer.stop_ids
        if not ends:
            fix = "name an end-of-text token in tokenizer_config.json (eos_token)"
            raise UserError("a text held to a grammar needs a token that ends it, and the tokenizer has none", fix=fix)
        self.eos_id = ends[0] if tokenizer.eos_id is None else tokenizer.eos_id
        self._library = library
        self._limits = library.LLParserLimits(**LIMITS)
        self._tokenizer = library.LLTokenizer(library.TokenizerWrapper(_Vocabulary(tokenizer, self.eos_id)))
        self._ready: OrderedDict[str, Any] = OrderedDict()
        self._trial = Trial()
        self._lock = threading.Lock()
        self._asked: queue.SimpleQueue[tuple[str, Future[Any]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self, grammar: str, now: float) -> Pending:
        """Begin to read a grammar. Raises UserError for one that is too long."""
        _check_size(grammar, "grammar")
        if grammar in self._ready:
            self._ready.move_to_end(grammar)
            done: Future[Any] = Future()
            done.set_result(self._ready[grammar])
            return Pending(done, now)
        asked: Future[Any] = Future()
        with self._lock:
            self._asked.put((grammar, asked))
            self._thread = self._thread or in_deep_thread(self._read_all)
        return Pending(asked, now + COMPILE_S)

    def constrain(self, grammar: str, matcher: Any, stop_ids: Collection[int]) -> Constraint:
        """A text at the beginning of a grammar that was read."""
        self._ready[grammar] = matcher
        while len(self._ready) > KEPT:
            self._ready.popitem(last=False)
        return Constraint(matcher.deep_copy(), self.vocab_size, stop_ids, self.eos_id)

    def _read_all(self) -> None:
        """Read what is asked for, one after the other, until nobody has asked for a while."""
        while True:
            try:
                grammar, asked = self._asked.get(timeout=IDLE_S)
            except queue.Empty:
                with self._lock:
                    if self._asked.empty():
                        self._trial.close()
                        self._thread = None
                        return
                continue
            try:
                asked.set_result(self._read(grammar))
            except BaseException as error:  # a panic in the library is no Exception
                asked.set_exception(error if isinstance(error, GroundupError) else refused(repr(error)))

    def _read(self, grammar: str) -> Any:
        self._trial.read(grammar)
        matcher = self._library.LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise refused(matcher.get_error())
        return matcher


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, eos_id: int) -> None:
        self.eos_token_id, self.bos_token_id = eos_id, tokenizer.bos_id
        self.tokens = token_bytes(tokenizer)
        self.special_token_ids = sorted(tokenizer.special_ids)
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes that each token stands for, by id; those of special tokens are their names.

    Raises UserError for a tokenizer whose tokens do not each stand for bytes of the text.
    """
    kinds = _decoders(json.loads(tokenizer.to_json()).get("decoder"))
    if "WordPiece" in kinds or "BPEDecoder" in kinds or "CTC" in kinds:
        fix = (
            "ask it without a grammar or schema; models with a byte-level vocabulary (bpe, unigram) can be held to one"
        )
        raise UserError(f"grammars need the bytes of each token, and a {kinds[0]} vocabulary has none", fix=fix)
    letters = {letter: byte for byte, letter in enumerate(LETTERS)} if "ByteLevel" in kinds else {}
    found = [b""] * tokenizer.vocab_size
    for token, number in tokenizer.vocabulary().items():
        if token in tokenizer.added_tokens or number in tokenizer.special_ids:
            found[number] = token.encode()
        elif letters and all(letter in letters for letter in token):
            found[number] = bytes(letters[letter] for letter in token)
        elif "ByteFallback" in kinds and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            found[number] = bytes([int(token[3:5], 16)])
        else:
            found[number] = (token.replace(MARK, " ") if {"Replace", "Metaspace"} & set(kinds) else token).encode()
    return found


def _decoders(decoder: Mapping[str, Any] | None) -> list[str]:
    """The types of a decoder of tokenizer.json, a sequence's one by one."""
    if decoder is None:
        return []
    inner = decoder.get("decoders")
    return [kind for one in inner for kind in _decoders(one)] if inner else [str(decoder["type"])]


def _check_size(text: str, what: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        fix = "write whole characters: it was cut or decoded wrongly on its way here"
        raise UserError(f"the {what} holds half of a pair that stands for one character", fix=fix) from error
    if size > MAX_BYTES:
        raise UserError(f"the {what} is {size} bytes long", fix=f"send one of at most {MAX_BYTES}")


def _check_depth(value: Any) -> None:
    """Raise UserError for plain data nested deeper than MAX_DEPTH, without recursion."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [one for one in level if isinstance(one, Mapping | list)]
        level = [inner for one in level for inner in (one.values() if isinstance(one, Mapping) else one)]
        if not level:
            return
    raise UserError(f"the JSON schema is nested deeper than {MAX_DEPTH}", fix="use definitions: $defs and $ref")


def _library(what: str) -> ModuleType:
    try:
        import llguidance
    except ImportError as error:
        raise MissingExtra("llguidance", "serve", needed_for=what) from error
    return llguidance
