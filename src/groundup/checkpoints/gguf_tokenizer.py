"""The tokenizer in a GGUF file, rebuilt as tokenizer.json.

A GGUF file lists tokens, their types, and merges or scores. How a text is cut into words before is
said by one name (`tokenizer.ggml.pre`); the published tokenizers behind these names are rebuilt here,
so that ids are those the model was trained with. llama.cpp's own vocabulary code is the reference for
what a name means; a name that is not known is an error, because a near miss gives wrong ids silently.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from groundup.errors import ArtifactError, UserError, nearest

if TYPE_CHECKING:
    from groundup.checkpoints.gguf import GgufFile

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""What `tokenizer.ggml.token_type` says of a token."""
ROLES = {
    "bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id",
    "sep": "seperator_token_id", "cls": "cls_token_id", "mask": "mask_token_id",
}  # fmt: skip
"""Role of a token to its field; the spelling of the separator is llama.cpp's."""
SPACE = "▁"

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _REST
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _REST
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")
"""What llama.cpp does where nothing is said; each pattern cuts what the one before left whole."""


@dataclass(frozen=True)
class Cut:
    """How a byte-level vocabulary cuts a text into words."""

    patterns: tuple[str, ...]
    digits: bool = False
    """Whether each digit is a word of its own, before the patterns are applied."""
    whole_words: bool = False
    """Whether a word that is a token is taken as it is, whatever the merges say."""
    starts: bool = False
    """Whether a text begins with the start token where the file does not say."""
    composes: bool = False
    """Whether characters are composed first (NFC)."""


CUTS = {
    **dict.fromkeys(("gpt-2", "gpt2", "mpt", "olmo", "phi-2", "jais", "trillion"), Cut((_GPT2,))),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), Cut((_GPT2,), digits=True)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3"), Cut((_LLAMA3,), whole_words=True, starts=True)),
    **dict.fromkeys(("dbrx", "smaug-bpe"), Cut((_LLAMA3,))),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), Cut((_QWEN2,), composes=True)),
    "tekken": Cut((_TEKKEN,), whole_words=True, starts=True),
    "default": Cut(_DEFAULT),
}
"""`tokenizer.ggml.pre` to what it means."""
_UNNAMED = {"gpt2": "gpt-2", "qwen2": "qwen2", "qwen3": "qwen2"}
"""What files from before the field existed mean, by architecture; otherwise `default`."""


@dataclass(frozen=True)
class GgufTokenizer:
    """A tokenizer as the files of a Hugging Face directory state it."""

    json: str
    """The text of tokenizer.json."""
    config: dict[str, Any]
    """tokenizer_config.json."""
    special_ids: dict[str, int | None]
    """bos_token_id, eos_token_id and pad_token_id, None where there is none."""
    stops: dict[str, list[int]]
    """eos_token_id as a list, where more than one token ends a text; otherwise empty."""
    size: int
    """One more than the largest id."""


@dataclass(frozen=True)
class _Vocabulary:
    """What the file lists."""

    file: GgufFile
    tokens: list[str]
    types: list[int]
    roles: dict[str, int]

    def field(self, name: str, default: Any = None) -> Any:
        return self.file.fields.get(f"tokenizer.ggml.{name}", default)

    def role(self, name: str) -> str | None:
        return self.tokens[self.roles[name]] if name in self.roles else None

    def of_type(self, *types: int) -> list[str]:
        return [token for token, kind in zip(self.tokens, self.types, strict=True) if kind in types]


def read(file: GgufFile) -> GgufTokenizer:
    """The tokenizer of a GGUF file. Raises UserError for a kind or a cutting that is not known."""
    listed = _vocabulary(file)
    kind = str(listed.field("model"))
    if kind not in _BUILDERS:
        what = f"the file's tokenizer is of the kind {kind!r}, which is not known here"
        raise UserError(what, where=str(file.path), fix=nearest(kind, _BUILDERS))
    engine, starts = _BUILDERS[kind](listed)
    _mark(engine, listed)
    adds = {"bos": bool(listed.field("add_bos_token", starts)), "eos": bool(listed.field("add_eos_token", False))}
    if kind != "bert":
        _frame(engine, listed, adds)
    names = {f"{role}_token": listed.tokens[token] for role, token in listed.roles.items()}
    config = names | {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if kind != "bert":
        config |= {f"add_{role}_token": value for role, value in adds.items()}
    template = file.fields.get("tokenizer.chat_template")
    return GgufTokenizer(
        json=engine.to_str(pretty=True),
        config=config | ({"chat_template": template} if template else {}),
        special_ids={f"{role}_token_id": listed.roles.get(role) for role in ("bos", "eos", "pad")},
        stops=_stops(listed),
        size=len(listed.tokens),
    )


def _vocabulary(file: GgufFile) -> _Vocabulary:
    tokens = file.fields.get("tokenizer.ggml.tokens")
    if not tokens:
        fix = "use the Hugging Face directory of the model, or a file with its tokenizer"
        raise UserError("the file has no tokenizer", where=str(file.path), fix=fix)
    types = file.fields.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    if len(types) != len(tokens):
        what = f"{len(tokens)} tokens and {len(types)} types of tokens"
        raise ArtifactError(what, where=str(file.path), fix="convert the model again")
    found = {role: file.fields.get(f"tokenizer.ggml.{name}") for role, name in ROLES.items()}
    roles = {role: int(token) for role, token in found.items() if token is not None and int(token) < len(tokens)}
    return _Vocabulary(file, list(tokens), [int(kind) for kind in types], roles)


def _stops(listed: _Vocabulary) -> dict[str, list[int]]:
    """Where a turn of a chat ends with another token than a text does, generation ends at both."""
    stops = {listed.roles.get("eos"), listed.field("eot_token_id")} - {None}
    return {"eos_token_id": sorted(int(stop) for stop in stops if stop is not None)} if len(stops) > 1 else {}


def _byte_level(listed: _Vocabulary) -> tuple[Tokenizer, bool]:
    """Byte-level BPE (`gpt2`): merges are listed, the cutting is named."""
    named = listed.field("pre") or _UNNAMED.get(listed.file.architecture, "default")
    if named not in CUTS:
        what = f"the tokenizer cuts texts as {named!r} does, which is not known here"
        raise UserError(what, where=str(listed.file.path), fix=nearest(str(named), CUTS))
    cut = CUTS[named]
    merges = [tuple(merge.split(" ", 1)) for merge in listed.field("merges") or []]
    engine = Tokenizer(models.BPE(_ids(listed.tokens), merges, ignore_merges=cut.whole_words))
    if cut.composes:
        engine.normalizer = normalizers.NFC()
    digits = [pre_tokenizers.Digits(individual_digits=True)] if cut.digits else []
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in cut.patterns]
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [*digits, *splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    engine.decoder = decoders.ByteLevel()
    return engine, cut.starts


def _sentence_pieces(listed: _Vocabulary) -> tuple[Tokenizer, bool]:
    """SentencePiece BPE (`llama`): merges follow from the scores, unknown characters become bytes."""
    scores = listed.field("scores") or [0.0] * len(listed.tokens)
    unk = listed.role("unk") or next(iter(listed.of_type(UNKNOWN)), None)
    merges = merges_of(listed.tokens, listed.types, scores)
    engine = Tokenizer(models.BPE(_ids(listed.tokens), merges, unk_token=unk, fuse_unk=True, byte_fallback=True))
    has_prefix = bool(listed.field("add_space_prefix", True))
    prefix = [normalizers.Prepend(SPACE)] if has_prefix else []
    engine.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if has_prefix else []
    engine.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip],
    )
    return engine, True


def merges_of(tokens: Sequence[str], types: Sequence[int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """The merges of a SentencePiece BPE vocabulary, best first.

    SentencePiece joins the neighbours whose union has the best score, so each way of cutting a token
    into two others is a merge of the token's rank; ways of equal rank come in the order of their ids.
    Tokens that are no text (control tokens, bytes) take no part.
    """
    plain = {token: number for number, token in enumerate(tokens) if types[number] in (NORMAL, USER_DEFINED, UNUSED)}
    found = []
    for token, number in plain.items():
        for cut in range(1, len(token)):
            left, right = plain.get(token[:cut]), plain.get(token[cut:])
            if left is not None and right is not None:
                found.append((-scores[number], number, left, right))
    return [(tokens[left], tokens[right]) for _, _, left, right in sorted(found)]


def _word_pieces(listed: _Vocabulary) -> tuple[Tokenizer, bool]:
    """BERT's WordPiece (`bert`): llama.cpp marks the beginnings of words, BERT their continuations."""
    entries = [_word_piece(token, kind) for token, kind in zip(listed.tokens, listed.types, strict=True)]
    ids = _ids(entries)
    names = {role: listed.role(role) or f"[{role.upper()}]" for role in ("unk", "cls", "sep")}
    names["cls"] = names["cls"] if names["cls"] in ids else listed.role("bos") or names["cls"]
    missing = [name for name in names.values() if name not in ids]
    if missing:
        fix = "convert the model again with its own tokenizer"
        raise UserError(f"the tokenizer has no {missing[0]}", where=str(listed.file.path), fix=fix)
    engine = Tokenizer(models.WordPiece(ids, unk_token=names["unk"], max_input_chars_per_word=100))
    # The file does not say whether letters are made small; a vocabulary without capitals does.
    engine.normalizer = normalizers.BertNormalizer(lowercase=not ids.keys() & set(string.ascii_uppercase))
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece(cleanup=False)
    cls, sep = names["cls"], names["sep"]
    engine.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, ids[cls]), (sep, ids[sep])],
    )
    for role in ("unk", "cls", "sep", "pad", "mask"):
        name = names.get(role, f"[{role.upper()}]")
        if name in ids:
            listed.roles[role] = ids[name]
    for role in ("bos", "eos"):
        listed.roles.pop(role, None)  # BERT has none; llama.cpp names its [CLS] and [SEP] so
    engine.add_special_tokens([AddedToken(listed.tokens[token], special=True) for token in listed.roles.values()])
    return engine, False


def _word_piece(token: str, kind: int) -> str:
    if kind == CONTROL or re.fullmatch(r"\[.+\]", token):
        return token
    return token.removeprefix(SPACE) if token.startswith(SPACE) else f"##{token}"


_BUILDERS: dict[str, Callable[[_Vocabulary], tuple[Tokenizer, bool]]] = {
    "gpt2": _byte_level,
    "llama": _sentence_pieces,
    "bert": _word_pieces,
}
"""`tokenizer.ggml.model` to what builds it, and whether its texts begin with the start token unless told."""


def _mark(engine: Tokenizer, listed: _Vocabulary) -> None:
    """Make control tokens special, and those that users defined whole."""
    special = [*listed.of_type(CONTROL), *([listed.tokens[listed.roles["unk"]]] if "unk" in listed.roles else [])]
    make = partial(AddedToken, normalized=False)
    engine.add_special_tokens([make(token, special=True) for token in dict.fromkeys(special)])
    engine.add_tokens([make(token, special=False) for token in listed.of_type(USER_DEFINED)])


def _frame(engine: Tokenizer, listed: _Vocabulary, adds: dict[str, bool]) -> None:
    """Let the engine put the start and end tokens around a text, if the model wants them."""
    used = {role: token for role in adds if adds[role] and (token := listed.role(role)) is not None}
    if not used:
        return
    bos, eos = used.get("bos", ""), used.get("eos", "")
    # Pieces as a list: a token may hold the characters that a template is written with.
    single = [piece for piece in (bos, "$A", eos) if piece]
    pair = [piece for piece in (bos, "$A", eos, f"{bos}:1" if bos else "", "$B:1", f"{eos}:1" if eos else "") if piece]
    engine.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(token, listed.roles[role]) for role, token in used.items()]
    )


def _ids(tokens: Sequence[str]) -> dict[str, int]:
    """Token to id; of two alike, the first."""
    return {token: number for number, token in reversed(list(enumerate(tokens)))}
