"""A commented recipe for a user's own files."""

from __future__ import annotations

import json
from pathlib import Path

from groundup.artifact import write_whole
from groundup.errors import UserError
from groundup.schema import schema

SCHEMA = Path(".groundup/recipe.schema.json")
HEAD = """\
# yaml-language-server: $schema={schema}
# A recipe: one file, the whole life of a model. `groundup plan {file}` checks it and says what it
# will cost; `groundup run {file}` does it, and continues where it stood when run again.
# `groundup explain KEY` explains any key, for example `groundup explain pretrain.tokens`.
groundup: 1
name: {name}
seed: 7                           # the same seed gives the same model, to the byte
vars:
  data: {data}
stages:
  corpus:
    prepare:                      # read, clean, remove duplicates, split
      source: {{kind: auto, paths: ["${{vars.data}}"]}}   # .txt .jsonl .csv .tsv .parquet, also .gz and .zst
      clean: {{near_duplicates: 0.8}}   # drop documents that are 80 % alike
      split: {{validation: 5%, test: 5%}}
"""
GPT = """\
  words:
    tokenize: {of: corpus, kind: bpe, vocab_size: 4096}
  base:
    pretrain:
      data: corpus
      tokenizer: words
      task: language_modeling
      model: {name: gpt, n_layers: 6, d_model: 256, n_heads: 4, context: 256}
      tokens: 2M                  # `groundup plan --budget 30min` proposes a size and a number of tokens
      batch_tokens: 8Ki
      optimizer: {name: adamw, lr: 1e-3}
      schedule: {name: cosine, warmup: 2%}
  report:
    evaluate: {of: base, data: corpus.test}   # the only stage that opens the test split
"""
BERT = """\
  words:
    tokenize: {of: corpus, kind: wordpiece, vocab_size: 8000}
  base:
    pretrain:
      data: corpus
      tokenizer: words
      task: {name: masked_language_modeling, whole_word: true}
      model: {name: bert, n_layers: 4, d_model: 256, n_heads: 4, context: 128}
      tokens: 2M
      batch_tokens: 8Ki
      optimizer: {name: adamw, lr: 5e-4}
      schedule: {name: linear, warmup: 5%}
  report:
    evaluate: {of: base, data: corpus.test}
"""
BODIES = {"gpt": GPT, "bert": BERT}


def write(folder: Path, data: str, kind: str) -> Path:
    """Write `groundup.yaml` and the schema its first line names; the path of the recipe.

    Raises UserError if the file exists, or for a kind that has no template.
    """
    if kind not in BODIES:
        raise UserError(f"no template named {kind!r}", fix=f"--kind {' or '.join(BODIES)}")
    path = folder / "groundup.yaml"
    if path.exists():
        raise UserError(f"{path} exists already", fix="edit it, or choose another folder")
    (folder / SCHEMA).parent.mkdir(parents=True, exist_ok=True)
    write_whole(folder / SCHEMA, json.dumps(schema(), indent=1, ensure_ascii=False))
    head = HEAD.format(schema=SCHEMA, file=path.name, name=_name(folder), data=json.dumps(data, ensure_ascii=False))
    write_whole(path, head + BODIES[kind])
    return path


def _name(folder: Path) -> str:
    word = "".join(c if c.isalnum() or c in "-_" else "-" for c in folder.absolute().name).strip("-")
    return json.dumps(word or "my-model", ensure_ascii=False)
