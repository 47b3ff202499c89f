"""How each kind of tokenizer cuts text before its vocabulary is applied, and joins it again after.

Four kinds. `bpe` and `unigram` work on bytes, so nothing is ever unknown and every text comes back
unchanged; `wordpiece` is BERT's, down to its cleaning of the text; `characters` has one entry a
character. What is built here is what `tokenizer.json` holds, so transformers cuts text the same way.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

KINDS = ("bpe", "wordpiece", "unigram", "characters")
ROLES = ("pad", "unk", "bos", "eos", "cls", "sep", "mask")
BERT_SPECIALS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
SPECIALS = {
    "bpe": {"pad": "<|pad|>", "bos": "<|bos|>", "eos": "<|eos|>", "mask": "<|mask|>"},
    "unigram": {"pad": "<|pad|>", "bos": "<|bos|>", "eos": "<|eos|>", "mask": "<|mask|>"},
    "characters": {"pad": "<|pad|>", "unk": "<|unk|>", "bos": "<|bos|>", "eos": "<|eos|>", "mask": "<|mask|>"},
    "wordpiece": BERT_SPECIALS,
}
"""The special tokens of each kind by role, in the order of their ids. pad is a token of its own."""
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The pieces that no token of `bpe` and `unigram` crosses: the split that Qwen2's tokenizer publishes.

It is taken unchanged because GGUF readers know it by name. A digit is a piece of its own: numbers
then always have one token a digit, which keeps place value visible to the model (Singh & Strouse
2024) and leaves no half of the vocabulary to numbers. A space belongs to the word after it.
"""


def build(kind: str, *, lowercase: bool = False) -> Tokenizer:
    """The cutting and joining of a kind around an empty vocabulary, special tokens not yet marked."""
    return _BUILDERS[kind](lowercase)


def _byte_level(lowercase: bool) -> Tokenizer:
    engine = Tokenizer(models.BPE())
    if lowercase:
        engine.normalizer = normalizers.Lowercase()
    split = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)]
    )
    engine.decoder = decoders.ByteLevel()
    return engine


def _bert(lowercase: bool) -> Tokenizer:
    engine = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    engine.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece(cleanup=False)
    return engine


def _characters(lowercase: bool) -> Tokenizer:
    engine = Tokenizer(models.WordLevel(unk_token="<|unk|>"))
    if lowercase:
        engine.normalizer = normalizers.Lowercase()
    engine.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    engine.decoder = decoders.Fuse()
    return engine


_BUILDERS = {"bpe": _byte_level, "unigram": _byte_level, "wordpiece": _bert, "characters": _characters}


def finish(engine: Tokenizer, kind: str, extra: Sequence[str] = ()) -> Tokenizer:
    """The engine with its special tokens marked, and with the frame transformers puts around an input.

    wordpiece: `[CLS] text [SEP]` and `[CLS] first [SEP] second [SEP]`; the others: `<|bos|> text`,
    as the published Llama tokenizers do.
    """
    names = [*SPECIALS[kind].values(), *extra]
    engine.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    single, pair = _FRAMES["wordpiece" if kind == "wordpiece" else "other"]
    used = sorted({piece.partition(":")[0] for piece in pair.split()} - {"$A", "$B"})
    ids = [(name, engine.token_to_id(name)) for name in used]
    engine.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    return engine


_FRAMES = {
    "wordpiece": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
    "other": ("<|bos|> $A", "<|bos|> $A $B:1"),
}


def bert_pipeline(vocab: Path, *, lowercase: bool | None = None) -> Tokenizer:
    """A WordPiece tokenizer from BERT's `vocab.txt`, one entry a line, the line number its id.

    `lowercase` unless given follows the vocabulary: one without a capital letter was made lower-cased.
    """
    # Not splitlines: entries such as U+2028 count as line ends there.
    entries = vocab.read_text(encoding="utf-8").replace("\r\n", "\n").split("\n")
    ids = {entry: position for position, entry in enumerate(entries) if entry}
    if "[UNK]" not in ids:
        raise ValueError(f"{vocab.name} has no line [UNK], so it is no BERT vocabulary")
    lower = lowercase if lowercase is not None else not ids.keys() & set(string.ascii_uppercase)
    engine = _bert(lower)
    engine.model = models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100)
    return finish(engine, "wordpiece") if {"[CLS]", "[SEP]", "[PAD]", "[MASK]"} <= ids.keys() else engine


def gpt2_pipeline(vocab: Path, merges: Path) -> Tokenizer:
    """A byte-level BPE tokenizer from GPT-2's pair of files, with the splitting of GPT-2."""
    engine = Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    if engine.token_to_id("<|endoftext|>") is not None:
        engine.add_special_tokens(["<|endoftext|>"])
    return engine
