"""Every slip in a recipe is named with its line and key, all at once, with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from groundup.errors import Mistakes, RecipeError, UserError
from groundup.recipe import load

GOOD = """\
groundup: 1
name: small
seed: 7
vars: {folder: texts}
stages:
  corpus:
    prepare:
      source: {kind: text, paths: ["${vars.folder}/*.txt"]}
      split: {validation: 5%, test: 5%}
  words:
    tokenize: {of: corpus, kind: bpe, vocab_size: 300}
  base:
    pretrain:
      data: corpus
      tokenizer: words
      task: language_modeling
      model: {name: gpt, n_layers: 1, d_model: 32, n_heads: 2, context: 32}
      tokens: 10k
      batch_tokens: 1Ki
      optimizer: {name: adamw, lr: 1e-3}
      schedule: {name: cosine, warmup: 2%}
  report:
    evaluate: {of: base, data: corpus.test}
"""

TEN_MISTAKES = """\
groundup: 2
name: my recipe!
sede: 7
stages:
  corpus:
    prepare:
      source: {kind: txet, paths: ["texts/*.txt"]}
      split: {validation: 5%, test: 500%}
  words:
    tokenise: {of: corpus}
  base:
    pretrain:
      data: corpsu
      tokenizer: corpus
      task: language_modelling
      model: {name: gpt, n_layers: 1, d_model: 30, n_heads: 4, context: 32}
      tokens: 1X
      batch_tokens: 1Ki
      optimizer: {name: adamv, lr: 1e-3}
      warmup: 3%
  report:
    evaluate: {of: report, data: corpus.test}
"""


def written(text: str) -> Path:
    path = Path("recipe.yaml")
    path.write_text(text, encoding="utf-8")
    return path


def message(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(written(text))
    return str(caught.value)


def test_a_good_recipe_loads_in_order_with_its_variables_filled_in() -> None:
    recipe = load(written(GOOD))
    assert list(recipe.stages) == ["corpus", "words", "base", "report"]
    assert recipe.stages["base"].config.seed == 7
    assert str(recipe.stages["report"].inputs["data"]) == "corpus.test"
    assert "texts/*.txt" in str(recipe.stages["corpus"].config)


def test_all_mistakes_are_reported_at_once_each_with_its_line_and_key() -> None:
    with pytest.raises(Mistakes) as caught:
        load(written(TEN_MISTAKES))
    text = str(caught.value)
    print(text)
    for expected in (
        "recipe.yaml:1 (groundup)",
        "recipe.yaml:2 (name)",
        "recipe.yaml:3 (sede)",
        "recipe.yaml:7 (stages.corpus.prepare.source",
        "recipe.yaml:8 (stages.corpus.prepare.split.test)",
        "recipe.yaml:10 (stages.words.tokenise)",
        "recipe.yaml:13 (stages.base.pretrain.data)",
        "recipe.yaml:14 (stages.base.pretrain.tokenizer)",
        "recipe.yaml:15 (stages.base.pretrain.task.name)",
        "recipe.yaml:16 (stages.base.pretrain.model)",
        "recipe.yaml:17 (stages.base.pretrain.tokens)",
        "recipe.yaml:19 (stages.base.pretrain.optimizer.name)",
        "recipe.yaml:20 (stages.base.pretrain.warmup)",
        "recipe.yaml:22 (stages.report.evaluate.of)",
    ):
        assert expected in text, expected
    for near in ("'tokenize'", "'language_modeling'", "'adam", "'seed'", "'text'"):
        assert f"did you mean {near}" in text, near
    assert "d_model 30 cannot be shared by n_heads 4" in text
    assert len(caught.value.problems) == 15, "nothing is said twice"
    lines = [int(problem.where.split(":")[1].split(" ")[0]) for problem in caught.value.problems]
    assert lines == sorted(lines)


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ('paths: ["${vars.folder}/*.txt"]', "paths: [*.txt]", 8, "must be quoted"),
        ('paths: ["${vars.folder}/*.txt"]', "paths: [@texts]", 8, "must be quoted"),
        ("      data: corpus\n", "\tdata: corpus\n", 14, "spaces"),
        ("seed: 7", "seed: 7\nseed: 8", 4, "remove one of the two"),
        ("name: small", "name： small", 2, "half-width"),
        ('source: {kind: text, paths: ["${vars.folder}/*.txt"]}', "source: {kind: text", 9, "bracket"),
        ("  words:\n", " words:\n", 10, "indentation"),
    ],
)
def test_slips_of_yaml_say_what_to_type(old: str, new: str, line: int, words: str) -> None:
    assert old in GOOD
    text = message(GOOD.replace(old, new))
    assert f"recipe.yaml:{line}" in text
    assert words in text


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("of: base", "of: bace", "did you mean 'base'"),
        ("of: base", "of: words", "of needs a model, but 'words' is a tokenizer"),
        ("of: base", "of: ./nothing/here", "no artefact at"),
        ("data: corpus\n      tok", "data: report\n      tok", "a circle"),
        ("${vars.folder}", "${vars.foldr}", "did you mean 'folder'"),
        ("tokenize: {of: corpus, kind: bpe, vocab_size: 300}", "7", "exactly one kind"),
        ("seed: 7", "seed: seven", "(seed)"),
        ("lr: 1e-3", "lr: fast", "(stages.base.pretrain.optimizer.lr)"),
        ("d_model: 32", "dmodel: 32", "did you mean 'd_model'"),
        ("      tokenizer: words\n", "", "the key 'tokenizer' is missing"),
        ("data: corpus\n", "data: corpus.tset\n", "'corpus' has no part 'tset'"),
        ("  words:\n", "  my words:\n", "cannot be the name of a stage"),
    ],
)
def test_mistakes_name_what_would_be_right(old: str, new: str, expected: str) -> None:
    assert old in GOOD
    assert expected in message(GOOD.replace(old, new, 1))


def test_an_unknown_key_hides_no_other_mistake() -> None:
    text = message(GOOD.replace("d_model: 32, n_heads: 2", "d_model: 33, n_heads: 2, contxt: 3"))
    assert "did you mean 'context'" in text
    assert "d_model 33 cannot be shared" in text
    assert text.startswith("2 mistakes")


def test_an_override_replaces_a_value_and_is_named_in_its_mistakes() -> None:
    path = written(GOOD)
    assert load(path, ["stages.base.pretrain.tokens=20k"]).stages["base"].config.tokens == 20_000  # type: ignore[attr-defined]
    assert "other/*.txt" in str(load(path, ["vars.folder=other"]).stages["corpus"].config)
    with pytest.raises(Mistakes, match=r"--set stages\.base\.pretrain\.tokens=1X"):
        load(path, ["stages.base.pretrain.tokens=1X"])
    with pytest.raises(UserError, match="did you mean 'base'"):
        load(path, ["stages.bace.pretrain.tokens=1M"])
    with pytest.raises(UserError, match="KEY=VALUE"):
        load(path, ["tokens"])


def test_a_recipe_that_is_not_there_or_no_text() -> None:
    with pytest.raises(UserError, match="no such recipe") as caught:
        load("recepi.yaml")
    assert "groundup init" in caught.value.fix
    written(GOOD)
    with pytest.raises(UserError, match=r"did you mean 'recipe\.yaml'"):
        load("recepe.yaml")
    Path("binary.yaml").write_bytes(b"\xff\xfe\x00\x01\x80")
    with pytest.raises(RecipeError, match="UTF-8"):
        load("binary.yaml")
    assert "mapping" in message("- a list")
    assert "stages" in message("groundup: 1")
