"""What fine-tuning adds to training: layers that differ, regularisers; on real small networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from groundup import catalog
from groundup import config as sections
from groundup.adapters import lora
from groundup.data.layout import flat, padded
from groundup.errors import UserError
from groundup.nn import divergences, losses
from groundup.nn.depth import depths
from groundup.nn.network import Network, Outputs, create
from groundup.progress import Reporter
from groundup.training import checkpoint, freezing, objective
from groundup.training.arithmetic import Arithmetic
from groundup.training.choices import Choices
from groundup.training.freezing import Layers, Unfreezing, lr_scales
from groundup.training.learner import Learner
from groundup.training.log import Log
from groundup.training.loop import Job, train
from groundup.training.methods import Methods
from groundup.training.objective import Batch, Objective, Parts
from groundup.training.optimizers import OPTIMIZERS, Weights, set_lr
from groundup.training.regularisers import AnyRegulariser, Fgm, Pgd, RDrop, Regulariser, directions, norms
from groundup.training.settings import TrainingSection

CHOICES = Choices(device="cpu", device_words="cpu", threads=1, deterministic=True)
CPU = Arithmetic("cpu")
REGULARISERS: dict[str, Regulariser] = {
    "r_drop": RDrop(alpha=2), "fgm": Fgm(epsilon=0.5), "pgd": Pgd(epsilon=0.5, step_size=0.3),
}  # fmt: skip


def loss(outputs: Outputs, batch: Batch) -> Parts:
    return {"loss": losses.cross_entropy(outputs.logits, batch["label"])}


TASK = Objective(loss, loss, lambda batch: {"loss": int((batch["label"] != -100).sum())})


def network(name: str = "bert", kind: str = "sequence", **sizes: Any) -> Network:
    model = catalog.load("models", name)
    config = model.Config(**{**model.TINY, "dropout": 0.0, "initialiser_std": 0.1, **sizes})
    return create(model, config, kind, outputs=3, seed=3)


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    draw = np.random.default_rng(seed)
    found = [draw.integers(5, 60, draw.integers(3, 11)) for _ in range(count)]
    return [{"input_ids": ids, "label": np.array(int(ids[0]) % 3)} for ids in sorted(found, key=len)]


def batch(of: list[dict[str, Any]], *, is_flat: bool = False) -> dict[str, Tensor]:
    return dict(flat(of) if is_flat else padded(of, {"input_ids": 0}))


class Batches:
    """Examples whose class is told by their first token; some cut into micro-batches."""

    micro_batches = 2

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at

    def micro_batch(self, step: int, micro: int) -> tuple[Batch, Any]:
        if step == self.stop_at:
            raise RuntimeError("pulled the plug")
        return batch(rows(6, step)[3 * micro : 3 * micro + 3]), np.arange(3) + 3 * micro


def go(state: Path, model: nn.Module, methods: Methods, *, steps: int = 10, stop_at: int | None = None) -> nn.Module:
    """Train; the network."""
    wanted = {"optimizer": {"name": "adamw", "lr": 3e-3}, "schedule": "constant", "save_every": 3}
    section, mistakes = sections.parse(TrainingSection, wanted)
    assert section is not None, mistakes
    job = Job(model, TASK, Batches(stop_at), steps, 60, 1e6, methods=methods)
    log = Log(state / "log", [], name="test")
    try:
        train(job, section, CHOICES, state=state, reporter=Reporter(), log=log)
    finally:
        log.close()
    return model


def learner(model: Network, methods: Methods, steps: int = 10) -> Learner:
    return Learner(model.train(), TASK, TrainingSection(), CHOICES, methods, steps)


def grads(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(autouse=True)
def settings_of_torch() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


# Depth


WITHOUT_BLOCKS = ("alexnet", "factorisation_machine", "lenet", "rnn")
"""Their layers are named one by one, as published."""


@pytest.mark.parametrize("name", catalog.names("models"))
def test_every_model_tells_how_deep_its_weights_lie(name: str) -> None:
    model = catalog.load("models", name)
    kind = next(iter(model.HEADS))
    config = model.Config(**model.TINY)
    network = create(model, config, kind, outputs=3, seed=1)
    if name in WITHOUT_BLOCKS:
        with pytest.raises(UserError, match="the model has no blocks one after the other"):
            depths(network)
        return
    found = depths(network)
    top = max(found.values())
    assert set(found.values()) >= set(range(1, top)), "no depth is left out"
    if not hasattr(config, "n_heads"):
        return
    blocks = config.n_layers + getattr(config, "decoder_layers", 0)
    assert top in (blocks, blocks + 1), "a head without weights of its own has no depth"
    assert any("embed" in each or "wte" in each or "shared" in each for each, depth in found.items() if depth == 0)


def test_depth_of_a_classifier() -> None:
    found = depths(network(n_layers=3))
    assert found["bert.embeddings.position_embeddings.weight"] == found["bert.embeddings.LayerNorm.weight"] == 0
    assert found["bert.encoder.layer.0.output.dense.weight"] == 1
    assert found["bert.encoder.layer.2.output.dense.weight"] == 3
    assert found["bert.pooler.dense.weight"] == found["classifier.weight"] == 4


# Rates by layer


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_rates_fall_with_depth_in_every_optimizer(name: str) -> None:
    model = network(n_layers=2)
    scales = lr_scales(model, Layers(lr_decay=0.5, head_lr=4e-3), 1e-3)
    optimizers = OPTIMIZERS[name]().build(Weights(model, scales), "cpu")
    set_lr(optimizers, 1e-4)  # a tenth of the peak
    found = {id(p): g["lr"] for o in optimizers for g in o.param_groups for p in g["params"]}
    assert len(found) == len(list(model.parameters()))
    by_name = {each: found[id(p)] for each, p in model.named_parameters()}
    assert by_name["classifier.weight"] == by_name["bert.pooler.dense.bias"] == pytest.approx(4e-4)
    assert by_name["bert.encoder.layer.1.attention.self.query.weight"] == pytest.approx(0.5e-4)
    assert by_name["bert.encoder.layer.0.output.LayerNorm.weight"] == pytest.approx(0.25e-4)
    assert by_name["bert.embeddings.word_embeddings.weight"] == pytest.approx(0.125e-4)


def test_layers_alike_leave_groups_as_they_were() -> None:
    model = network()
    assert lr_scales(model, Layers(), 1e-3) == {}
    (optimizer,) = OPTIMIZERS["adamw"]().build(Weights(model, {}), "cpu")
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]


# Freezing


@pytest.mark.parametrize(
    ("frozen", "learning"),
    [
        ("embeddings", {"bert.encoder.layer.0", "bert.encoder.layer.1", "bert.pooler.dense", "classifier"}),
        ("backbone", {"bert.pooler.dense", "classifier"}),
        (1, {"bert.encoder.layer.1", "bert.pooler.dense", "classifier"}),
    ],
)
def test_what_is_frozen_stays(frozen: Any, learning: set[str], tmp_path: Path) -> None:
    model, start = network(), dict(network().named_parameters())
    go(tmp_path, model, Methods(Layers(frozen=frozen)), steps=2)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, start[name])}
    assert {next(part for part in learning if name.startswith(part)) for name in changed} == learning
    saved = dict(checkpoint.read(tmp_path / "step-00000002").tensors())
    assert not any("word_embeddings" in name for name in saved), "what never trains is not saved again and again"


def test_an_adapter_keeps_its_base_frozen_under_every_method() -> None:
    model = lora.wrap(network(), lora.Config())
    learner(model, Methods(Layers(frozen="embeddings", unfreeze_every=1))).gradients([batch(rows(3))], 9)
    assert all(".lora_" in name or name.startswith(("classifier", "bert.pooler")) for name in grads(model))
    assert "bert.encoder.layer.0.output.dense.lora_B" in grads(model)


def test_layers_unfreeze_from_the_top() -> None:
    model = network(n_layers=2)
    layers = Layers(unfreeze_every=0.2)
    assert [Unfreezing(model, layers, 10).lowest(step) for step in range(10)] == [3, 3, 2, 2, 1, 1, 0, 0, 0, 0]
    found = depths(model)
    at = learner(model, Methods(layers))
    for step, lowest in ((0, 3), (2, 2), (9, 0)):
        at.gradients([batch(rows(3))], step)
        assert {found[name] for name in grads(model)} == set(range(lowest, 4))
        assert all(p.requires_grad for p in model.parameters())
        at.forget()


@pytest.mark.parametrize("lowest", [0, 2])
def test_only_what_learns_is_summed_up(lowest: int) -> None:
    shown = freezing.summary(network(), Layers(lr_decay=0.5, frozen=1 if lowest else "nothing"), 1e-3)
    assert [row["depth"] for row in shown] == list(range(lowest, 4))
    assert [row["lr"] for row in shown][-2:] == [5e-4, 1e-3]


@pytest.mark.parametrize("wrong", [{"unfreeze_every": 5}, {"lr_decay": 0.9}])
def test_a_frozen_backbone_takes_no_methods_for_layers(wrong: dict[str, Any]) -> None:
    _, mistakes = sections.parse(Layers, {"frozen": "backbone", **wrong})
    assert "leave out" in str(mistakes)


METHODS = {
    "rates": Methods(Layers(lr_decay=0.8, head_lr=1e-2)),
    "unfreezing": Methods(Layers(unfreeze_every=2)),
    **{name: Methods(regulariser=each) for name, each in REGULARISERS.items()},
}


@pytest.mark.parametrize("name", METHODS)
def test_a_stopped_run_goes_on_to_the_same_bytes(name: str, tmp_path: Path) -> None:
    methods = METHODS[name]
    whole = go(tmp_path / "whole", network(dropout=0.2), methods, steps=6)
    with pytest.raises(RuntimeError, match="pulled the plug"):
        go(tmp_path / "parts", network(dropout=0.2), methods, steps=6, stop_at=5)
    resumed = go(tmp_path / "parts", network(dropout=0.2), methods, steps=6)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters(), strict=True))


# Regularisers


def test_divergences_by_hand() -> None:
    one, two = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, np.log(3.0)]])
    # (½, ½) and (¼, ¾): ½ log 2 + ½ log ⅔ one way, ¼ log ½ + ¾ log 1½ the other.
    expected = 0.5 * np.log(2) + 0.5 * np.log(2 / 3) + 0.25 * np.log(0.5) + 0.75 * np.log(1.5)
    assert float(divergences.categorical(one, two)) == pytest.approx(expected)
    assert float(divergences.bernoulli(torch.tensor([0.0]), torch.tensor([np.log(3.0)]))) == pytest.approx(expected)
    assert float(divergences.categorical(two, two)) == 0


class Wobbling(nn.Module):
    """A network that scores differently in every second pass, as dropout does, but known."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.passes = network(), 0

    def forward(self, given: Batch) -> Outputs:
        self.passes += 1
        found: Outputs = self.inner(given)
        return Outputs(found.hidden * (1.0 if self.passes % 2 else 0.5), found.head, given)


def test_r_drop_is_half_of_what_the_paper_writes() -> None:
    model, given = Wobbling(), batch(rows(4))
    share = {"loss": torch.tensor(1 / 4), "r_drop": torch.tensor(1 / 4)}
    total, parts = RDrop(alpha=3).forward(model, TASK, CPU)(given, share)
    one, two = model(given).logits, model(given).logits
    nats = sum(nn.functional.cross_entropy(each, given["label"]) for each in (one, two))
    p, q = one.log_softmax(-1), two.log_softmax(-1)
    apart = nn.functional.kl_div(q, p, log_target=True, reduction="batchmean")
    apart = apart + nn.functional.kl_div(p, q, log_target=True, reduction="batchmean")
    assert torch.allclose(2 * total, nats + 3 / 2 * apart, atol=1e-6)
    assert torch.allclose(parts.sum(), total.detach()) and RDrop().count(given) == 4


@pytest.mark.parametrize(
    ("labels", "logits"),
    [
        ({"label": torch.tensor([1, -100, 0])}, (3, 4)),
        ({"label": torch.tensor([[1, 0], [-100, -100], [0, 0]])}, (3, 2)),
        ({"label": torch.tensor([0.5, float("nan"), 2.0])}, (3, 1)),
        ({"labels": torch.tensor([[1, -100, 0]])}, (1, 3, 4)),
    ],
)
def test_divergences_look_at_what_is_trained_only(labels: Batch, logits: tuple[int, ...]) -> None:
    one, two = torch.randn(logits), torch.randn(logits)
    real = divergences.trained(labels).nonzero()

    def apart(first: Tensor, second: Tensor) -> float:
        head: Any = nn.Identity()
        return float(divergences.symmetric(Outputs(first, head), Outputs(second, head), labels))

    found, spoilt = apart(one, two), two.clone()
    spoilt[..., 1, :] = 99.0
    assert found > 0 and apart(one, spoilt) == pytest.approx(found) and len(real) in (2, 4)


def test_r_drop_over_a_vocabulary_and_where_it_cannot_be() -> None:
    model = network("gpt", "language", dropout=0.3).train()
    given = {"input_ids": torch.arange(12).reshape(2, 6), "labels": torch.arange(12).reshape(2, 6)}
    given["labels"][0] = -100
    torch.manual_seed(1)
    one, two = model(given), model(given)
    found = divergences.symmetric(one, two, given)
    assert torch.allclose(found, divergences.categorical(one.logits[1], two.logits[1]), rtol=1e-4)
    with pytest.raises(UserError, match="this task has none of these"):
        RDrop().count({"input_ids": given["input_ids"], "starts": torch.zeros(2)})


class Linear(nn.Module):
    """A loss that is a plane over embeddings, so that its worst perturbation is known."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(2, 2)
        self.table.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        self.slope = nn.Parameter(torch.tensor([3.0, 4.0]))

    def forward(self, given: Batch) -> Tensor:
        out: Tensor = self.table(given["input_ids"]) @ self.slope
        return out


PLANE = Objective(
    lambda out, given: {"loss": (out.sum(), torch.tensor(len(out)))}, lambda out, given: {}, lambda given: {}
)


@pytest.mark.parametrize("regulariser", [Fgm(epsilon=2.0), Pgd(epsilon=2.0, step_size=0.9, steps=4)])
def test_perturbations_by_hand(regulariser: Fgm) -> None:
    """Two tokens with slope (3, 4) each: the gradient of an example is 5√2 long, so the loss rises by 2 · 5√2."""
    model = Linear()
    given = {"input_ids": torch.tensor([[0, 1], [1, 1]])}
    share = {"loss": torch.tensor(0.5), "adversarial": torch.tensor(1.0)}
    disturbed, parts = regulariser.forward(model, PLANE, CPU)(given, share)
    plain = (7 + 8) / 2
    assert parts.tolist() == pytest.approx([plain, plain + 10 * 2**0.5])
    assert model.slope.grad is not None and model.slope.grad.tolist() == [0.5, 1.5], "the plain gradient is there"
    disturbed.backward()  # type: ignore[no-untyped-call]
    # Each of four moved tokens adds 2 · (3, 4) / 5√2, halved by the share.
    more = [0.5 + 2 * 2 * 3 / (5 * 2**0.5), 1.5 + 2 * 2 * 4 / (5 * 2**0.5)]
    assert model.slope.grad.tolist() == pytest.approx([a + b for a, b in zip([0.5, 1.5], more, strict=True)])
    assert not model.table._forward_hooks


def test_a_step_of_pgd_that_is_too_long_ends_on_the_ball() -> None:
    assert Pgd(steps=1, step_size=9.0, epsilon=0.5)._worst([torch.ones(1, 2, 2)], list, {})[0].norm() == 0.5


def test_examples_are_sized_alone_in_both_layouts() -> None:
    one, two = torch.randn(1, 3, 4), torch.randn(1, 2, 4)
    end_to_end, lengths = torch.cat([one, two], 1), torch.tensor([3, 2])
    found = norms(end_to_end, lengths)[0, :, 0]
    assert torch.allclose(found, torch.tensor([float(one.norm())] * 3 + [float(two.norm())] * 2))
    unit = directions(end_to_end, lengths)
    assert unit[:, :3].norm() == pytest.approx(1) and unit[:, 3:].norm() == pytest.approx(1)
    assert torch.equal(directions(torch.zeros(2, 3, 4), None), torch.zeros(2, 3, 4))


@pytest.mark.smoke
@pytest.mark.parametrize("name", [*REGULARISERS, "none"])
def test_how_a_batch_is_cut_and_laid_out_changes_nothing(name: str) -> None:
    examples = rows(6)
    methods = Methods(regulariser=REGULARISERS.get(name))
    cuts: dict[str, Callable[[], list[dict[str, Tensor]]]] = {
        "whole": lambda: [batch(examples)],
        "cut": lambda: [batch(examples[:1]), batch(examples[1:])],
        "flat": lambda: [batch(examples, is_flat=True)],
        "flat and cut": lambda: [batch(examples[:4], is_flat=True), batch(examples[4:], is_flat=True)],
    }
    found = {}
    for cut, parts in cuts.items():
        model = network()
        figures = learner(model, methods).gradients(parts(), 0)
        found[cut] = (figures, grads(model))
    for cut, (figures, slopes) in found.items():
        assert figures.loss == pytest.approx(found["whole"][0].loss, abs=1e-6), cut
        for key, slope in slopes.items():
            assert torch.allclose(slope, found["whole"][1][key], atol=1e-5), (cut, key)
    parts_of_loss = {"r_drop": {"loss", "r_drop"}, "none": {"loss"}}.get(name, {"loss", "adversarial"})
    assert set(found["whole"][0].parts) == parts_of_loss


def test_the_perturbed_loss_is_the_higher_one_and_frozen_tables_are_no_hindrance() -> None:
    model = lora.wrap(network(), lora.Config())
    found = {}
    for name in ("fgm", "pgd"):
        at = learner(model, Methods(regulariser=REGULARISERS[name]))
        found[name] = at.gradients([batch(rows(6))], 0).parts
        at.forget()
        assert found[name]["adversarial"] > found[name]["loss"]
    assert found["pgd"]["loss"] == found["fgm"]["loss"]


class Recipe(sections.Section):
    """A section with one key."""

    regulariser: AnyRegulariser | None = None
    """Which."""


@pytest.mark.parametrize("name", REGULARISERS)
def test_regularisers_are_named_in_recipes(name: str) -> None:
    found, mistakes = sections.parse(Recipe, {"regulariser": {"name": name}})
    assert found is not None and not mistakes
    assert sections.dump(found)["regulariser"]["name"] == name
    assert objective.shares([{"loss": 2}], "cpu")["loss"] == 0.5
