"""Families without a model file: transformers computes them, and everything else treats them alike."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import models

from groundup import catalog, generation
from groundup.artifact import Store
from groundup.checkpoints import hugging_face
from groundup.checkpoints.imported import bring
from groundup.errors import ArtifactError, UserError
from groundup.models import _bridge
from groundup.nn.losses import linear_cross_entropy
from groundup.nn.network import Network
from groundup.progress import Reporter
from groundup.serving.sampler import Sampling
from groundup.text.pipelines import SPECIALS, build, finish
from groundup.text.tokenizers import Tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "initializer_range": 0.2, "pad_token_id": 0,
}  # fmt: skip
SMALL = SIZES | {"embedding_size": 24}
FAMILIES: dict[str, dict[str, Any]] = {
    "GPTNeoX": SIZES,
    "OPT": SIZES | {"ffn_dim": 64, "word_embed_proj_dim": 24},
    "Bloom": {"vocab_size": 97, "hidden_size": 48, "n_layer": 2, "n_head": 4, "initializer_range": 0.2},
    "Gemma": SIZES | {"num_key_value_heads": 2, "head_dim": 12},
    "Mamba": {"vocab_size": 97, "hidden_size": 48, "num_hidden_layers": 2, "state_size": 4, "initializer_range": 0.2},
    "Electra": SMALL,
    "Albert": SMALL,
    "DebertaV2": SIZES,
    "MPNet": SIZES,
}  # fmt: skip
CASES = [
    ("GPTNeoX", "ForCausalLM"), ("OPT", "ForCausalLM"), ("Bloom", "ForCausalLM"), ("Gemma", "ForCausalLM"),
    ("Mamba", "ForCausalLM"), ("GPTNeoX", "ForSequenceClassification"), ("Electra", "ForMaskedLM"),
    ("Albert", "ForMaskedLM"), ("DebertaV2", "ForMaskedLM"), ("MPNet", "ForMaskedLM"),
    ("Electra", "ForSequenceClassification"), ("Albert", "ForSequenceClassification"),
    ("DebertaV2", "ForSequenceClassification"), ("Electra", "ForTokenClassification"),
    ("Electra", "ForQuestionAnswering"), ("Electra", "Model"), ("GPTNeoX", "Model"),
]  # fmt: skip


def write(family: str, purpose: str, folder: Path) -> Any:
    """A random model of transformers, saved in a folder."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family])
    model = getattr(transformers, f"{family}{purpose}")(config).eval()
    model.save_pretrained(folder)
    return model


def rows() -> dict[str, torch.Tensor]:
    """Three texts of different lengths, padded with id 0."""
    real = torch.arange(12) < torch.tensor([[12], [7], [3]])
    ids = torch.randint(3, 97, (3, 12), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids * real, "attention_mask": real}


def as_flat(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    real = batch["attention_mask"]
    positions = torch.cat([torch.arange(int(n)) for n in real.sum(1)])
    return {"input_ids": batch["input_ids"][real][None], "lengths": real.sum(1), "positions": positions[None]}


@torch.no_grad()
@pytest.mark.parametrize(("family", "purpose"), CASES)
def test_a_family_without_a_file_computes_what_transformers_computes(family: str, purpose: str, tmp_path: Path) -> None:
    theirs = write(family, purpose, tmp_path / "theirs")
    network, batch = hugging_face.load(tmp_path / "theirs"), rows()
    real = batch["attention_mask"]
    expected = theirs(input_ids=batch["input_ids"], attention_mask=real.long())
    outputs, flat = network(batch), network(as_flat(batch))
    match network.head_kind:
        case "sequence":
            torch.testing.assert_close(outputs.logits, expected.logits, atol=1e-5, rtol=0)
            torch.testing.assert_close(flat.logits, expected.logits, atol=1e-5, rtol=0)
        case "embedding":
            torch.testing.assert_close(outputs.hidden[real], expected.last_hidden_state[real], atol=1e-5, rtol=0)
        case "span":
            torch.testing.assert_close(outputs.logits[real][:, 1], expected.end_logits[real], atol=1e-5, rtol=0)
        case _:
            assert expected.logits.abs().max() > 0.2
            torch.testing.assert_close(outputs.logits[real], expected.logits[real], atol=1e-5, rtol=0)
            torch.testing.assert_close(flat.logits[0], expected.logits[real], atol=1e-5, rtol=0)
    torch.testing.assert_close(flat.hidden[0], outputs.hidden[real], atol=1e-5, rtol=0)
    assert not outputs.hidden[~real].any()
    # Saved, it is the same model to both, whichever way it is opened.
    hugging_face.save(tmp_path / "ours", network, generation={"eos_token_id": 2})
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert set(before) == set(after) and all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(hugging_face.load(tmp_path / "ours")(batch).logits, outputs.logits)
    assert json.loads((tmp_path / "ours" / "generation_config.json").read_text())["eos_token_id"] == 2
    hugging_face.save(tmp_path / "again", network, generation={"eos_token_id": 2})
    for file in (tmp_path / "ours").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def packed() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 97, (2, 12), generator=torch.Generator().manual_seed(2))
    return {"input_ids": ids, "document_ids": torch.tensor([[0] * 5 + [1] * 7, [2] * 12])}


@torch.no_grad()
@pytest.mark.parametrize("family", ["GPTNeoX", "Electra"])
def test_packed_documents_are_as_if_alone(family: str, tmp_path: Path) -> None:
    write(family, "Model", tmp_path)
    network, batch = hugging_face.load(tmp_path), packed()
    together = network(batch).hidden
    parts = [(0, slice(0, 5)), (0, slice(5, 12)), (1, slice(0, 12))]
    for row, span in parts:
        alone = network({"input_ids": batch["input_ids"][row : row + 1, span]}).hidden[0]
        torch.testing.assert_close(together[row, span], alone, atol=1e-5, rtol=0)


def loss_of(network: Network) -> torch.Tensor:
    batch = rows()
    outputs = network(batch)
    if network.head_kind == "sequence":
        return torch.nn.functional.cross_entropy(outputs.logits, torch.tensor([0, 1, 2]))
    labels = torch.where(batch["attention_mask"], batch["input_ids"].roll(-1, 1), -100)
    features, head = outputs.head.features(outputs.hidden), outputs.head
    total, count = linear_cross_entropy(features, head.weight, labels, bias_V=head.bias)
    return total / count


@pytest.mark.parametrize(
    ("family", "purpose", "head"),
    [("GPTNeoX", "ForCausalLM", None), ("Gemma", "ForCausalLM", None), ("Albert", "ForMaskedLM", None),
     ("Electra", "ForMaskedLM", "sequence"), ("GPTNeoX", "ForCausalLM", "sequence")],
)  # fmt: skip
def test_it_trains_and_keeps_what_it_learnt(family: str, purpose: str, head: str | None, tmp_path: Path) -> None:
    write(family, purpose, tmp_path / "theirs")
    wanted: Any = {"outputs": 3, "labels": ["a", "b", "c"]} if head else {}
    network = hugging_face.load(tmp_path / "theirs", head, seed=4, **wanted).train()
    same = hugging_face.load(tmp_path / "theirs", head, seed=4, **wanted)
    assert all(torch.equal(one, other) for one, other in zip(network.parameters(), same.parameters(), strict=True))
    if family == "Albert":
        with pytest.raises(UserError, match="'albert' cannot compute its layers again"):
            network.backbone.checkpoint_activations = True
    else:
        network.backbone.checkpoint_activations = True
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(6):
        loss = loss_of(network)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    hugging_face.save(tmp_path / "ours", network.eval(), labels=["a", "b", "c"] if head else ())
    again = hugging_face.load(tmp_path / "ours")
    assert again.head_kind == network.head_kind
    assert torch.equal(again(rows()).logits, network(rows()).logits)
    if head:
        config = json.loads((tmp_path / "ours" / "config.json").read_text())
        assert config["id2label"] == {"0": "a", "1": "b", "2": "c"}
        assert config["architectures"] == [f"{family}ForSequenceClassification"]


def test_a_head_with_other_labels_begins_anew(tmp_path: Path) -> None:
    write("Electra", "ForSequenceClassification", tmp_path)
    stored = hugging_face.load(tmp_path)
    anew = hugging_face.load(tmp_path, "sequence", outputs=2, labels=["yes", "no"], seed=1)
    assert not torch.equal(
        stored.state_dict()["classifier.out_proj.weight"], anew.state_dict()["classifier.out_proj.weight"]
    )
    name = "electra.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(stored.state_dict()[name], anew.state_dict()[name])


def with_tokenizer(folder: Path) -> Path:
    engine = build("characters")
    known = [*SPECIALS["characters"].values(), *"abcdefgh "]
    engine.model = models.WordLevel({token: i for i, token in enumerate(known)}, unk_token="<|unk|>")
    finish(engine, "characters")
    Tokenizer.of_roles(engine, SPECIALS["characters"]).save(folder)
    return folder


@torch.no_grad()
@pytest.mark.parametrize("family", ["GPTNeoX", "Bloom"])
def test_it_generates_as_transformers_does(family: str, tmp_path: Path) -> None:
    theirs = write(family, "ForCausalLM", tmp_path)
    model = generation.load(with_tokenizer(tmp_path))
    ids = [*model.beginning.before("a bad cab"), *model.tokenizer.encode("a bad cab")]
    prompt = torch.tensor([ids])
    wanted: Any = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None}
    told = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), **wanted)
    settings = Sampling(temperature=0.0, max_new_tokens=9)
    assert list(model.complete("a bad cab", settings).ids) == told[0, len(ids) :].tolist()
    cache = model.runtime.new_cache(sequences=2)
    first = model.runtime.step([5, 6, 7, 8], [0, 1, 2, 0], [0, 0, 0, 1], cache)
    torch.testing.assert_close(first[0], theirs(torch.tensor([[5, 6, 7]])).logits[0, -1], atol=1e-5, rtol=0)
    second = model.runtime.step([9, 9], [3, 1], [0, 1], cache)
    torch.testing.assert_close(second[1], theirs(torch.tensor([[8, 9]])).logits[0, -1], atol=1e-5, rtol=0)


class Notes(Reporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def test_it_is_brought_in_and_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _bridge.say_once.cache_clear()
    write("GPTNeoX", "ForCausalLM", tmp_path / "theirs")
    notes = Notes()
    with caplog.at_level(logging.WARNING, logger="groundup"):
        made = bring(with_tokenizer(tmp_path / "theirs"), Store(tmp_path / "store"), licence="mit", reporter=notes)
        generation.load(made.path)
    said = [record.getMessage() for record in caplog.records if "transformers computes it" in record.getMessage()]
    assert len(said) == 1 and "'gpt_neox'" in said[0]
    assert notes.said == ["the family 'gpt_neox' has no model file here: transformers computes it"]
    assert made.metrics["computed_by"] == "transformers" and made.metrics["family"] == "gpt_neox"


def test_a_head_that_does_more_is_refused(tmp_path: Path) -> None:
    """Gemma 2 bends its scores after the last layer, which a loss over features would miss."""
    FAMILIES["Gemma2"] = FAMILIES["Gemma"] | {"final_logit_softcapping": 0.5}
    write("Gemma2", "ForCausalLM", tmp_path)
    with pytest.raises(UserError, match="cannot carry the head 'language' of the family 'gemma2'"):
        hugging_face.load(tmp_path)


def test_mistakes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"model_type": "t5", "is_encoder_decoder": True, "vocab_size": 9}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="encoder–decoders do not come through"):
        hugging_face.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(UserError, match="no model opens the family 'nothing'"):
        hugging_face.load(tmp_path)
    write("GPTNeoX", "ForCausalLM", tmp_path / "a")
    with pytest.raises(UserError, match="longer than the model's context of 64"):
        hugging_face.load(tmp_path / "a")({"input_ids": torch.zeros(1, 65, dtype=torch.long)})
    with pytest.raises(UserError, match="no head for 'masked_language' of the family 'gpt_neox'"):
        hugging_face.load(tmp_path / "a", "masked_language")
    (tmp_path / "a" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ArtifactError, match="cannot be read"):
        hugging_face.load(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"no model opens the family 'gpt_neox'") as caught:
        hugging_face.load(tmp_path / "a")
    assert "pip install 'groundup[bridges]'" in str(caught.value)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # peft asks transformers by an old name
def test_an_adapter_of_it_is_one_that_peft_opens(tmp_path: Path) -> None:
    import peft as library

    from groundup.checkpoints import peft

    theirs = write("GPTNeoX", "ForCausalLM", tmp_path / "theirs")
    lora = catalog.load("adapters", "lora")
    network = lora.wrap(hugging_face.load(tmp_path / "theirs"), lora.Config(rank=4, targets="all"), seed=1)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.1)
    expected = network.eval()(rows()).logits
    peft.save_adapter(tmp_path / "adapter", network, base="theirs")
    opened: Any = library.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    batch = rows()
    found = opened(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"].long()).logits
    real = batch["attention_mask"]
    torch.testing.assert_close(expected[real], found[real], atol=1e-5, rtol=0)
    torch.testing.assert_close(lora.merge(network)(batch).logits, expected, atol=1e-5, rtol=0)
