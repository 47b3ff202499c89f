"""A tokenizer as the rest of groundup sees it: text to ids, ids to text, and the ids with a meaning.

It is a thin wrapper over the `tokenizers` library, whose `tokenizer.json` is the whole truth about
how text is cut. `Tokenizer.load` opens what groundup wrote and what others published: a Hugging Face
directory, a bare BERT `vocab.txt`, or GPT-2's `vocab.json` with `merges.txt`.

Text is data, never a command: `encode` does not turn the characters `<|eos|>` inside a document into
the special token, unless it is asked to (a chat renderer does, for the tokens it wrote itself).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers as library

from groundup.errors import DataError
from groundup.text import word_cache
from groundup.text.pipelines import ROLES, bert_pipeline, gpt2_pipeline
from groundup.text.templates import Template, read_templates

NO_LIMIT = 1_000_000_000_000_000_019_884_624_838_656
"""What transformers writes for "no maximum length": int(1e30)."""
KNOWN_SPECIALS = {
    "pad": ("<|pad|>", "[PAD]", "<pad>", "<|endofpad|>"),
    "unk": ("<|unk|>", "[UNK]", "<unk>"),
    "bos": ("<|bos|>", "<s>", "<|begin_of_text|>", "<|startoftext|>", "<bos>", "<|endoftext|>"),
    "eos": ("<|eos|>", "</s>", "<|end_of_text|>", "<|endoftext|>", "<eos>"),
    "cls": ("[CLS]", "<cls>"),
    "sep": ("[SEP]", "<sep>"),
    "mask": ("<|mask|>", "[MASK]", "<mask>"),
}
"""Published names by role, for directories that name none themselves."""


class Encoded(NamedTuple):
    """One text as ids, with what whole-word masking and span tasks need; the lists are equally long."""

    ids: list[int]
    word_ids: list[int]
    """The number of the word each token belongs to, as the pre-tokenizer cuts words."""
    offsets: list[tuple[int, int]]
    """The characters of the text each token covers, as (start, end)."""


@dataclass(frozen=True)
class Specials:
    """The tokens with a role, by name; None where a tokenizer has none."""

    pad: str | None = None
    unk: str | None = None
    bos: str | None = None
    eos: str | None = None
    cls: str | None = None
    sep: str | None = None
    mask: str | None = None

    def named(self) -> dict[str, str]:
        """Role to token, only those there are."""
        pairs = ((role, getattr(self, role)) for role in ROLES)
        return {role: token for role, token in pairs if token}


class Tokenizer:
    """Text to ids and back. Picklable; safe to use from several processes."""

    def __init__(
        self,
        engine: library.Tokenizer,
        specials: Specials,
        *,
        stops: Sequence[int] = (),
        config: Mapping[str, Any] = {},
    ) -> None:
        engine.no_truncation()
        engine.no_padding()
        self._engine, self.specials, self._stops, self._config = engine, specials, tuple(stops), dict(config or {})
        engine.encode_special_tokens = True

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """The tokenizer in a directory, ours or a published one.

        Raises DataError if there is none, or if its files cannot be read.
        """
        place = Path(folder)
        place = place.parent if place.is_file() else place
        config = _read_json(place / "tokenizer_config.json")
        engine = _open_engine(place, config)
        specials = _find_specials(engine, config | _read_json(place / "special_tokens_map.json"))
        template = read_templates(place, config)
        config |= {} if template is None else {"chat_template": template}
        stops = _read_json(place / "generation_config.json").get("eos_token_id")
        listed = stops if isinstance(stops, list) else [] if stops is None else [stops]
        return cls(engine, specials, stops=[int(stop) for stop in listed], config=config)

    @classmethod
    def find(cls, folder: str | Path) -> Tokenizer | None:
        """The tokenizer in a model's directory, or None for an artefact without one: its model reads no tokens.

        Raises what `load` raises.
        """
        place = Path(folder)
        is_whole = (place / "manifest.json").is_file()  # nothing can be missing from an artefact
        return None if is_whole and not (place / "tokenizer.json").is_file() else cls.load(place)

    @classmethod
    def of_roles(cls, engine: library.Tokenizer, roles: Mapping[str, str]) -> Tokenizer:
        """A tokenizer around a trained engine of the library; `roles` as in `pipelines.SPECIALS`."""
        return cls(engine, Specials(**roles))

    def save(self, folder: str | Path, *, model_max_length: int | None = None) -> None:
        """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json into a directory.

        transformers' AutoTokenizer opens it, in its versions 4 and 5, with the same ids.
        `model_max_length` is the longest input of the model that goes with it, in tokens.
        """
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        (place / "tokenizer.json").write_text(self.to_json(), encoding="utf-8")
        names = {f"{role}_token": token for role, token in self.specials.named().items()}
        kept = {"model_max_length": NO_LIMIT, **self._config}
        config = kept | names | {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        if isinstance(self.chat_template, Mapping):
            named = [{"name": name, "template": text} for name, text in sorted(self.chat_template.items())]
            config["chat_template"] = named
        if self.specials.cls is not None:
            config.setdefault("model_input_names", ["input_ids", "token_type_ids", "attention_mask"])
        config["added_tokens_decoder"] = _describe_added(self._engine)
        if model_max_length is not None:
            config["model_max_length"] = model_max_length
        config.pop("backend", None)
        _write_json(place / "tokenizer_config.json", config)
        _write_json(place / "special_tokens_map.json", names)

    @property
    def chat_template(self) -> Template | None:
        """The Jinja template that turns messages into text, by name where there are several; see `text/prompt.py`."""
        return self._config.get("chat_template")

    def with_chat(self, template: Template, tokens: Sequence[str] = ()) -> Tokenizer:
        """The same tokenizer with a chat template, and with special tokens added where it lacks them."""
        engine = library.Tokenizer.from_str(self._engine.to_str())
        engine.add_special_tokens([library.AddedToken(token, special=True, normalized=False) for token in tokens])
        config = self._config | {"chat_template": template}
        return Tokenizer(engine, self.specials, stops=self._stops, config=config)

    def to_json(self) -> str:
        """The text of tokenizer.json: the same bytes for the same tokenizer."""
        return self._engine.to_str(pretty=True)

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The ids of a text, no special tokens added.

        With `allow_special` the special tokens written out in the text become their ids.
        """
        if not allow_special and self._words is not None:
            ids = self._words.encode(text)
            if ids is not None:
                return ids
        engine = self._with_special if allow_special else self._engine
        # A batch of one: the library then keeps no offsets, which makes it a third to a half faster.
        return list(engine.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of several texts, faster than one by one."""
        return [found.ids for found in self._engine.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_with_offsets(self, text: str) -> Encoded:
        """The ids of a text with the word and the characters each stands for."""
        found = self._engine.encode(text, add_special_tokens=False)
        words = [-1 if word is None else word for word in found.word_ids]
        return Encoded(list(found.ids), words, list(found.offsets))

    def around(self, *, pair: bool) -> list[tuple[int | None, int]]:
        """What the tokenizer puts around a text, or around two: (id, token type) for each special token in order,
        with (None, token type) where a text itself stands. As tokenizer.json's post-processor says."""
        one = self._engine.encode("a", add_special_tokens=False)
        found = self._engine.post_process(one, one if pair else None, add_special_tokens=True)
        kept: list[tuple[int | None, int]] = []
        seen = set()
        for token, kind, special, sequence in zip(
            found.ids, found.type_ids, found.special_tokens_mask, found.sequence_ids, strict=True
        ):
            if special:
                kept.append((int(token), int(kind)))
            elif sequence not in seen:
                seen.add(sequence)
                kept.append((None, int(kind)))
        return kept

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """The text of ids. Bytes that are no UTF-8 become U+FFFD, one for each broken sequence."""
        plain = [int(token) for token in ids]
        if self._bytes_by_id:
            plain = self._repaired(plain)
        return str(self._engine.decode(plain, skip_special_tokens=skip_special))

    def token(self, token_id: int) -> str | None:
        """The vocabulary entry of an id, in the tokenizer's own spelling, or None."""
        return self._engine.id_to_token(token_id)

    def spelling(self, token_id: int) -> str:
        """What an id looks like to a reader: its text, or its entry where the text alone is no whole character."""
        text = self.decode([token_id])
        return text if text and "\ufffd" not in text else self.token(token_id) or ""

    def token_id(self, token: str) -> int | None:
        """The id of a vocabulary entry, or None."""
        return self._engine.token_to_id(token)

    def vocabulary(self) -> dict[str, int]:
        """Every entry with its id, special tokens included."""
        return dict(self._engine.get_vocab(with_added_tokens=True))

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id, which is what an embedding needs."""
        return max(self.vocabulary().values(), default=-1) + 1

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids that carry a role or are marked special, none of which stands for text."""
        return frozenset(i for i, token in self._engine.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def added_tokens(self) -> frozenset[str]:
        """The tokens found whole in a text, special ones and others."""
        return frozenset(token.content for token in self._engine.get_added_tokens_decoder().values())

    @property
    def bos_id(self) -> int | None:
        """The id that begins a text, or None."""
        return self._role("bos")

    @property
    def eos_id(self) -> int | None:
        """The id that ends a text, or None."""
        return self._role("eos")

    @property
    def pad_id(self) -> int | None:
        """The id that fills short rows, or None. Never the one that ends a text."""
        pad = self._role("pad")
        return None if pad == self.eos_id else pad

    @property
    def unk_id(self) -> int | None:
        """The id for what the vocabulary cannot spell, or None."""
        return self._role("unk")

    @property
    def cls_id(self) -> int | None:
        """The id that opens a BERT input, or None."""
        return self._role("cls")

    @property
    def sep_id(self) -> int | None:
        """The id that closes a segment of a BERT input, or None."""
        return self._role("sep")

    @property
    def mask_id(self) -> int | None:
        """The id that hides a token in masked language modelling, or None."""
        return self._role("mask")

    @property
    def stop_ids(self) -> list[int]:
        """The ids after which generation ends: eos and those a generation_config.json names."""
        eos = [] if self.eos_id is None else [self.eos_id]
        return sorted({*eos, *self._stops})

    def __getstate__(self) -> dict[str, Any]:
        return {
            "json": self._engine.to_str(),
            "specials": self.specials,
            "stops": self._stops,
            "config": self._config,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        engine = library.Tokenizer.from_str(state["json"])
        Tokenizer.__init__(self, engine, state["specials"], stops=state["stops"], config=state["config"])

    def _role(self, role: str) -> int | None:
        token = getattr(self.specials, role)
        return None if token is None else self._engine.token_to_id(token)

    @cached_property
    def _with_special(self) -> library.Tokenizer:
        """The same engine, finding special tokens in text. A second one, as the flag is not per call."""
        engine = library.Tokenizer.from_str(self._engine.to_str())
        engine.encode_special_tokens = False
        return engine

    @cached_property
    def _words(self) -> word_cache.WordCache | None:
        return word_cache.for_engine(self._engine)

    @cached_property
    def _bytes_by_id(self) -> dict[int, int]:
        """The byte each byte-fallback token (`<0xE4>`) stands for; empty where decoding knows none."""
        if '"ByteFallback"' not in self._engine.to_str():
            return {}
        ids = {byte: self._engine.token_to_id(f"<0x{byte:02X}>") for byte in range(256)}
        found = {token: byte for byte, token in ids.items() if token is not None}
        return found if len(found) == 256 else {}

    def _repaired(self, ids: list[int]) -> list[int]:
        """Runs of byte tokens rewritten to valid UTF-8.

        The library gives up a whole run for one bad byte in it, so that a character already shown
        would vanish when a later byte is wrong; here only the broken sequence becomes U+FFFD.
        """
        out: list[int] = []
        run = bytearray()
        by_byte = {byte: token for token, byte in self._bytes_by_id.items()}
        for token in [*ids, -1]:
            byte = self._bytes_by_id.get(token)
            if byte is not None:
                run.append(byte)
                continue
            out += (by_byte[b] for b in run.decode("utf-8", "replace").encode("utf-8"))
            run.clear()
            out.append(token)
        return out[:-1]


def _open_engine(place: Path, config: Mapping[str, Any]) -> library.Tokenizer:
    """The library's tokenizer from whichever files a directory has."""
    try:
        if (place / "tokenizer.json").is_file():
            return library.Tokenizer.from_file(str(place / "tokenizer.json"))
        if (place / "vocab.json").is_file() and (place / "merges.txt").is_file():
            return gpt2_pipeline(place / "vocab.json", place / "merges.txt")
        if (place / "vocab.txt").is_file():
            return bert_pipeline(place / "vocab.txt", lowercase=config.get("do_lower_case"))
    except Exception as error:  # the library raises bare Exception for every unreadable file
        fix = "the file is damaged or of an unknown format; write or download it again"
        raise DataError(f"the tokenizer cannot be read: {error}", where=str(place), fix=fix) from error
    fix = "give a directory with tokenizer.json, with vocab.json and merges.txt, or with a BERT vocab.txt"
    raise DataError("no tokenizer here", where=str(place), fix=fix)


def _find_specials(engine: library.Tokenizer, config: Mapping[str, Any]) -> Specials:
    """The roles a directory names; where it names none at all, those with a well-known name."""
    named = {role: _content(config.get(f"{role}_token")) for role in ROLES}
    found = {role: token for role, token in named.items() if token and engine.token_to_id(token) is not None}
    if not found:
        for role, tokens in KNOWN_SPECIALS.items():
            known = next((token for token in tokens if engine.token_to_id(token) is not None), None)
            found |= {role: known} if known else {}
        if found.get("bos") == found.get("eos") and "cls" in found:
            found = {role: token for role, token in found.items() if role not in ("bos", "eos")}
    missing = [token for token in found.values() if token not in _added(engine)]
    engine.add_special_tokens(missing)
    return Specials(**found)


def _added(engine: library.Tokenizer) -> set[str]:
    return {token.content for token in engine.get_added_tokens_decoder().values() if token.special}


def _content(entry: Any) -> str | None:
    """A special token's text; published files give a string or a mapping with `content`."""
    return entry if isinstance(entry, str) else entry.get("content") if isinstance(entry, Mapping) else None


def _describe_added(engine: library.Tokenizer) -> dict[str, dict[str, Any]]:
    keys = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    added = engine.get_added_tokens_decoder()
    return {str(i): {key: getattr(added[i], key) for key in keys} for i in sorted(added)}


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"not valid JSON: {error}", where=str(path), fix="write or download the file again") from error
    return data if isinstance(data, dict) else {}


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
