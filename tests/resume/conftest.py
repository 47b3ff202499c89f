"""A corpus and tokenizers to train on, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from cells import Material

import groundup
from groundup.artifact import Artifact, Store
from groundup.data.corpus import Corpus
from groundup.runner import run
from groundup.text import vocabulary

RECIPE = """\
groundup: 1
name: material
stages:
  corpus:
    prepare:
      source: {{kind: text, paths: ["{sources}"]}}
      split: {{validation: 20%, test: 0%}}
"""
KINDS = {"gpt": "bpe", "bert": "wordpiece"}


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """The package's own sources as a corpus, with a tokenizer for each kind of model."""
    place = tmp_path_factory.mktemp("material")
    recipe = place / "material.yaml"
    sources = Path(groundup.__file__).parent / "training" / "*.py"
    recipe.write_text(RECIPE.format(sources=sources), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("GROUNDUP_STORE", str(place / "store"))
        corpus = run(recipe)["corpus"]
        tokenizers = {model: _tokenizer(Store(), corpus, kind) for model, kind in KINDS.items()}
    return Material(corpus.path.absolute(), {model: made.path.absolute() for model, made in tokenizers.items()})


def _tokenizer(store: Store, corpus: Artifact, kind: str) -> Artifact:
    texts = [str(document["text"]) for document in Corpus(corpus).documents("train")]
    with store.draft("tokenizer", f"tokenizer-{kind}") as out:
        engine, _ = vocabulary.learn(vocabulary.Wish(kind, 400), lambda: texts)
        engine.save(str(out.path("tokenizer.json")))
    found = store.find(f"tokenizer-{kind}")
    assert found is not None
    return found
