"""The encoder–decoder is transformers' MarianMTModel: logits, greedy tokens and beams, in both directions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from groundup import catalog
from groundup.checkpoints import hugging_face
from groundup.errors import ArtifactError, UserError
from groundup.nn import beam_search, token_tables
from groundup.nn.network import Network, create
from groundup.nn.writing import Writer

encoder_decoder: Any = catalog.load("models", "encoder_decoder")
PAD, END, VOCABULARY, MOST = 96, 0, 97, 20
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": 48, "encoder_layers": 3, "decoder_layers": 3, "encoder_ffn_dim": 80,
    "decoder_ffn_dim": 80, "encoder_attention_heads": 6, "decoder_attention_heads": 6, "max_position_embeddings": 64,
    "init_std": 0.12, "pad_token_id": PAD, "decoder_start_token_id": PAD, "eos_token_id": END, "scale_embedding": True,
    "forced_eos_token_id": None,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "as published": {"activation_function": "swish"},
    "a small decoder": {"decoder_layers": 1, "activation_function": "relu"},
    "embeddings as they are": {"scale_embedding": False, "init_std": 0.4, "activation_function": "gelu"},
    "one head": {"encoder_attention_heads": 1, "decoder_attention_heads": 1, "activation_function": "gelu_new"},
}


def theirs_at_random(**options: Any) -> Any:
    torch.manual_seed(5)
    model: Any = transformers.MarianMTModel(transformers.MarianConfig(**SIZES | options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # position tables are fixed
                parameter.add_(torch.randn(parameter.shape) * 0.1)
        model.final_logits_bias.normal_()
    model.eval()
    return model


def batch(rows: int = 4) -> dict[str, torch.Tensor]:
    """Sources of several lengths, padded on the right, and targets."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, PAD, (rows, 11), generator=generator)
    mask = torch.arange(11) < torch.tensor([11, 7, 9, 3, 11, 5, 8, 2])[:rows, None]
    targets = torch.randint(1, PAD, (rows, 9), generator=generator)
    return {"input_ids": torch.where(mask, ids, PAD), "attention_mask": mask, "decoder_input_ids": targets}


def agree(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert theirs.abs().max() > 0.5, "logits this small would agree by accident"
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def generated(theirs: Any, given: dict[str, torch.Tensor], **options: Any) -> list[list[int]]:
    """What transformers writes, without the start, the end and the filling."""
    inputs = {"input_ids": given["input_ids"], "attention_mask": given["attention_mask"].long()}
    rows = theirs.generate(**inputs, max_new_tokens=MOST, bad_words_ids=[[PAD]], do_sample=False, **options)[:, 1:]
    found = [[token for token in row if token != PAD] for row in rows.tolist()]
    return [row[: row.index(END)] if END in row else row for row in found]


@torch.no_grad()
def written(ours: Network, given: dict[str, torch.Tensor], **options: Any) -> list[beam_search.Found]:
    outputs = ours({key: given[key] for key in ("input_ids", "attention_mask")})
    writer = Writer(outputs, beams=options["beams"], max_tokens=MOST)
    common: dict[str, Any] = {"start": PAD, "end": END, "max_tokens": MOST, "forbidden": [PAD]}
    return beam_search.search(writer, writer.examples, **common, **options)


@torch.no_grad()
@pytest.mark.parametrize("kind", VARIANTS)
def test_logits_and_greedy_tokens_agree_both_ways(kind: str, tmp_path: Path) -> None:
    theirs, given = theirs_at_random(**VARIANTS[kind]), batch()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = hugging_face.load(tmp_path / "theirs")
    agree(ours(given).logits, theirs(**given).logits)
    assert [found.ids for found in written(ours, given, beams=1)] == generated(theirs, given, num_beams=1)

    hugging_face.save(tmp_path / "ours", ours, generation={"pad_token_id": PAD, "eos_token_id": END})
    opened: Any = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    again, report = opened
    again.eval()
    assert not any(report.values())
    assert type(again) is transformers.MarianMTModel
    assert again.config.decoder_start_token_id == PAD
    agree(ours(given).logits, again(**given).logits)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, Network]]:
    """Models that prefer the end more and more: from targets that are cut to very short ones."""
    found, folder = [], tmp_path_factory.mktemp("pairs")
    for seed, bias in enumerate([0.0, 3.0, 5.0]):
        theirs = theirs_at_random(init_std=0.1 + 0.02 * seed)
        theirs.final_logits_bias[0, END] = bias
        theirs.save_pretrained(folder / str(seed))
        found.append((theirs, hugging_face.load(folder / str(seed))))
    return found


@pytest.mark.parametrize(("beams", "length_penalty"), [(2, 1.0), (4, 1.0), (4, 0.0), (5, 0.6), (3, 2.0)])
def test_beams_are_those_of_transformers(beams: int, length_penalty: float, pairs: list[tuple[Any, Network]]) -> None:
    ended, given = 0, batch(rows=8)
    for theirs, ours in pairs:
        expected = generated(theirs, given, num_beams=beams, length_penalty=length_penalty)
        found = written(ours, given, beams=beams, length_penalty=length_penalty)
        assert [one.ids for one in found] == expected
        ended += sum(one.is_ended for one in found)
    assert 0 < ended <= 24


@torch.no_grad()
def test_writing_token_by_token_is_the_whole_pass(tmp_path: Path) -> None:
    """The log-probabilities of each step are those of the full target, for padded and for flat sources."""
    network = create(encoder_decoder, encoder_decoder.Config(**encoder_decoder.TINY), "translation", seed=2).eval()
    ids = batch()["input_ids"].remainder(61)
    given = batch() | {"input_ids": ids, "decoder_input_ids": batch()["decoder_input_ids"].remainder(61)}
    expected = network(given).logits.log_softmax(-1)
    mask = given["attention_mask"]
    positions = torch.arange(11).expand(4, -1)[mask][None]
    flat = {"input_ids": ids[mask][None], "positions": positions, "lengths": mask.sum(1)}
    for sources in ({"input_ids": ids, "attention_mask": mask}, flat):
        writer = Writer(network(sources), beams=1, max_tokens=9)
        for step in range(9):
            log_probs = writer(given["decoder_input_ids"][:, step], torch.arange(4) if step else None)
            torch.testing.assert_close(log_probs, expected[:, step], atol=1e-5, rtol=0)


def test_checkpoints_with_their_constants_and_copies_open(tmp_path: Path) -> None:
    """transformers 4 wrote position tables; others write shared tables under every name they have."""
    theirs = theirs_at_random()
    theirs.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    shared = weights.get("model.shared.weight", theirs.model.shared.weight.detach())
    copies = dict.fromkeys(["lm_head.weight", *(f"model.{s}.embed_tokens.weight" for s in ("encoder", "decoder"))])
    tables = {f"model.{s}.embed_positions.weight": torch.zeros(64, 48) for s in ("encoder", "decoder")}
    weights |= {name: shared.clone() for name in (*copies, "model.shared.weight")} | tables
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    agree(hugging_face.load(tmp_path)(batch()).logits, theirs(**batch()).logits)

    save_file(weights | {"lm_head.weight": shared + 1}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match=r"lm_head\.weight should be tied"):
        hugging_face.load(tmp_path)


@torch.no_grad()
def test_a_grown_vocabulary_leaves_the_scores_of_old_tokens(tmp_path: Path) -> None:
    theirs_at_random().save_pretrained(tmp_path)
    network = hugging_face.load(tmp_path)
    before = network(batch()).logits
    after = token_tables.grow(network, VOCABULARY + 3)(batch()).logits
    torch.testing.assert_close(after[..., :VOCABULARY], before)
    assert after.shape[-1] == VOCABULARY + 3


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"decoder_start_token_id": 3}, "'decoder_start_token_id' to 3"),
        ({"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings"),
        ({"decoder_ffn_dim": 64}, "decoder_ffn_dim"),
        ({"decoder_layerdrop": 0.1}, "decoder_layerdrop"),
        ({"activation_function": "tanh"}, "activation_function"),
    ],
)
def test_options_that_would_compute_something_else_are_refused(options: dict[str, Any], what: str) -> None:
    given = json.loads(transformers.MarianConfig(**SIZES).to_json_string()) | options
    with pytest.raises(UserError, match=what):
        encoder_decoder.Config.from_hugging_face(given)


def test_norms_before_the_sublayers_have_no_published_class(tmp_path: Path) -> None:
    config = encoder_decoder.Config(**encoder_decoder.TINY, norm_order="pre")
    hugging_face.save(tmp_path, create(encoder_decoder, config, "translation", seed=0))
    assert hugging_face.load(tmp_path).config == config
    with pytest.raises((KeyError, ValueError), match="groundup_marian"):
        transformers.AutoConfig.from_pretrained(tmp_path)
