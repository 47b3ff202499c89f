"""What every optimizer and every setting of the loop must do, on small real networks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from groundup import config as sections
from groundup.errors import MissingExtra, StageFailed
from groundup.progress import Reporter
from groundup.training import checkpoint, devices, guard, objective
from groundup.training import log as logs
from groundup.training.arithmetic import Arithmetic
from groundup.training.choices import Choices, activation_bytes, compile_cost
from groundup.training.log import Log
from groundup.training.loop import Job, Result, train
from groundup.training.measure import Planned, measure
from groundup.training.muon import Muon, orthogonalised
from groundup.training.objective import Batch, Objective, Parts
from groundup.training.optimizers import OPTIMIZERS, Weights, load_state, state_of
from groundup.training.settings import TrainingSection, interval

CHOICES = Choices(device="cpu", device_words="cpu", threads=1, deterministic=True)
V, D, T = 11, 16, 6


class Tiny(nn.Module):
    """Embedding, a hidden layer, a norm, dropout and a head: every kind of weight there is."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, D)
        self.hidden = nn.Linear(D, D)
        self.norm = nn.LayerNorm(D)
        self.head = nn.Linear(D, V)
        self.dropout = dropout

    def forward(self, batch: Batch) -> Tensor:
        x = self.norm(torch.relu(self.hidden(self.embedding(batch["input_ids"]))))
        out: Tensor = self.head(nn.functional.dropout(x, self.dropout, self.training))
        return out


def loss(outputs: Tensor, batch: Batch) -> Parts:
    labels = batch["labels"]
    total = nn.functional.cross_entropy(outputs.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    return {"loss": (total, (labels != -100).sum())}


OBJECTIVE = Objective(loss, loss, lambda batch: {"loss": int((batch["labels"] != -100).sum())})


class Copying:
    """Rows whose labels are their own tokens moved by one: learnt in a few steps. Some rows can be made bad."""

    def __init__(self, micro_batches: int = 1, rows: int = 4) -> None:
        self.micro_batches, self.rows = micro_batches, rows
        self.taken: list[int] = []
        self.spoil: dict[int, Callable[[dict[str, Tensor]], None]] = {}

    def micro_batch(self, step: int, micro: int) -> tuple[Batch, Any]:
        self.taken.append(step)
        ids = torch.from_numpy(np.random.default_rng([step, micro]).integers(0, V, (self.rows, T)))
        batch = {"input_ids": ids, "labels": (ids + 1) % V}
        if step in self.spoil:
            self.spoil[step](batch)
        return batch, np.arange(self.rows) + 100 * step + 10 * micro


def section(**wanted: Any) -> TrainingSection:
    given: dict[str, Any] = {"optimizer": {"name": "adamw", "lr": 1e-2}, "schedule": "constant", "save_every": 5}
    found, mistakes = sections.parse(TrainingSection, given | wanted)
    assert found is not None, mistakes
    return found


def network(dropout: float = 0.0) -> Tiny:
    torch.manual_seed(1)
    return Tiny(dropout)


def go(
    state: Path,
    *,
    steps: int = 30,
    loader: Copying | None = None,
    model: nn.Module | None = None,
    choices: Choices = CHOICES,
    held_out: bool = False,
    reporter: Reporter | None = None,
    **wanted: Any,
) -> tuple[nn.Module, Result]:
    """Train; the network and the result."""
    model, loader = model or network(), loader or Copying()
    job = Job(model, OBJECTIVE, loader, steps, 4 * T, 1e6, lambda: iter([loader.micro_batch(10**6, 0)[0]]))
    job.held_out = job.held_out if held_out else None
    log = Log(state / "log", [], name="test")
    try:
        result = train(job, section(**wanted), choices, state=state, reporter=reporter or Reporter(), log=log)
    finally:
        log.close()
    return model, result


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture(autouse=True)
def settings_of_torch() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_learns(name: str, tmp_path: Path) -> None:
    rates = {"sgd": 0.5, "momentum": 0.1, "adagrad": 0.1}
    optimizer = {"name": name, "lr": rates.get(name, 1e-2)}
    _, result = go(tmp_path, steps=150, optimizer=optimizer, save_every=100)
    assert result.loss < 1.0, "chance is 2.4"


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_the_state_of_every_optimizer_survives_being_written(name: str, tmp_path: Path) -> None:
    """Ten steps equal five, a new start, and five more, bit for bit."""
    whole, _ = go(tmp_path / "whole", steps=10, optimizer=name, schedule="cosine", model=network(0.2))
    state = tmp_path / "parts"
    with pytest.raises(RuntimeError, match="pulled the plug"):
        go(state, steps=10, optimizer=name, schedule="cosine", model=network(0.2), loader=Unplugged(7))
    resumed, _ = go(state, steps=10, optimizer=name, schedule="cosine", model=network(0.2))
    assert same(whole, resumed)


class Unplugged(Copying):
    """Fails at a step, as a machine does."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def micro_batch(self, step: int, micro: int) -> tuple[Batch, Any]:
        if step == self.at:
            raise RuntimeError("pulled the plug")
        return super().micro_batch(step, micro)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_norms_biases_and_embeddings_are_never_decayed(name: str) -> None:
    model = network()
    groups = OPTIMIZERS[name](weight_decay=0.5).build(Weights(model), "cpu")
    decay = {id(p): g["weight_decay"] for o in groups for g in o.param_groups for p in g["params"]}
    assert len(decay) == len(list(model.parameters())), "every weight belongs to one optimizer"
    names = {n for n, p in model.named_parameters() if decay[id(p)]}
    assert names == {"hidden.weight", "head.weight"}


def test_muon_takes_hidden_matrices_only() -> None:
    model = network()
    first, second = OPTIMIZERS["muon"]().build(Weights(model), "cpu")
    assert isinstance(first, Muon) and isinstance(second, torch.optim.AdamW)
    assert [p for g in first.param_groups for p in g["params"]] == [model.hidden.weight]


def test_muon_steps_as_torch_own_does() -> None:
    """torch's multiplies in bfloat16, so directions agree to its three digits."""
    torch.manual_seed(0)
    start, grad = torch.randn(24, 40), torch.randn(24, 40)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    options = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95}
    mine = Muon([ours], **options)  # type: ignore[arg-type]
    other = torch.optim.Muon([theirs], **options, adjust_lr_fn="match_rms_adamw")  # type: ignore[arg-type]
    for _ in range(3):
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        mine.step()
        other.step()
    moved, expected = (ours - start).detach(), (theirs - start).detach()
    assert torch.nn.functional.cosine_similarity(moved.flatten(), expected.flatten(), dim=0) > 0.999
    assert moved.norm() == pytest.approx(float(expected.norm()), rel=0.02)


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalised(torch.randn(3, 20, 50)))
    assert values.min() > 0.5 and values.max() < 1.3


def test_fused_optimizers_are_used_where_there_are_any() -> None:
    (optimizer,) = OPTIMIZERS["adamw"]().build(Weights(network()), "cpu")
    assert all(group["fused"] for group in optimizer.param_groups)


def test_optimizer_state_goes_to_names_and_back() -> None:
    model = network()
    optimizers = OPTIMIZERS["muon"]().build(Weights(model), "cpu")
    model({"input_ids": torch.zeros(1, T, dtype=torch.long)}).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    tensors, others = state_of(optimizers, model)
    assert "hidden.weight/momentum_buffer" in tensors and "embedding.weight/exp_avg" in tensors
    fresh = OPTIMIZERS["muon"]().build(Weights(model), "cpu")
    load_state(fresh, model, tensors | others)
    again, _ = state_of(fresh, model)
    assert all(torch.equal(tensor, again[name]) for name, tensor in tensors.items())


def test_gradients_are_clipped_to_the_norm(tmp_path: Path) -> None:
    """With plain descent a step is the clipped gradient times the rate."""
    before = weights(network())
    model, _ = go(tmp_path, steps=1, optimizer={"name": "sgd", "lr": 1.0}, schedule={"name": "constant", "warmup": 0},
                  grad_clip=1e-3)  # fmt: skip
    moved = torch.cat([(p.detach() - before[n]).flatten() for n, p in model.named_parameters()])
    assert float(moved.norm()) == pytest.approx(1e-3, rel=1e-3)


def test_l1_makes_weights_smaller(tmp_path: Path) -> None:
    sizes = []
    for amount in (0.0, 0.05):
        model, _ = go(tmp_path / str(amount), steps=60, l1=amount)
        sizes.append(float(model.get_parameter("hidden.weight").detach().abs().sum()))
    assert sizes[1] < 0.5 * sizes[0]


def test_the_average_is_the_result_and_lags_behind(tmp_path: Path) -> None:
    plain, _ = go(tmp_path / "plain", steps=40)
    averaged, _ = go(tmp_path / "averaged", steps=40, ema=0.99)
    start = network()
    for name in ("hidden.weight", "embedding.weight"):
        far = (plain.get_parameter(name) - start.get_parameter(name)).norm()
        near = (averaged.get_parameter(name) - start.get_parameter(name)).norm()
        assert 0 < near < far


def test_accumulation_changes_nothing_but_the_cutting(tmp_path: Path) -> None:
    class Halved(Copying):
        def micro_batch(self, step: int, micro: int) -> tuple[Batch, Any]:
            batch, indices = Copying.micro_batch(self, step, 0)
            half = slice(2 * micro, 2 * micro + 2)
            return {k: v[half] for k, v in batch.items()}, indices[half]

    whole, _ = go(tmp_path / "whole", steps=10)
    cut, _ = go(tmp_path / "cut", steps=10, loader=Halved(micro_batches=2))
    for (name, p), q in zip(whole.named_parameters(), cut.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-5), name


def test_early_stopping_keeps_the_best_weights(tmp_path: Path) -> None:
    """At a rate that blows up, the first validation stays the best."""
    model, result = go(
        tmp_path,
        steps=200,
        held_out=True,
        evaluate_every=5,
        early_stopping={"patience": 3},
        optimizer={"name": "adamw", "lr": 1.0},
        spike_deviations=None,
    )
    assert result.stopped_early and result.steps < 200
    lines = [json.loads(line) for line in (tmp_path / "log" / "metrics.jsonl").read_text().splitlines()]
    validations = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    assert result.validation["validation_loss"] == min(validations.values())
    best = min(validations, key=lambda step: validations[step])
    saved = dict(checkpoint.read(tmp_path / f"step-{best:08d}").tensors())
    assert torch.equal(saved["network.hidden.weight"], model.get_parameter("hidden.weight"))


def spoil_labels(batch: dict[str, Tensor]) -> None:
    batch["input_ids"][2] = V - 1
    batch["labels"][2] = 0


def test_a_loss_that_is_no_number_goes_back_and_leaves_the_batch_out(tmp_path: Path) -> None:
    """A weight of infinity stands in for an overflow that one batch provokes."""
    loader, notes = Overflow(at=12), Notes()
    model, result = go(tmp_path, steps=20, loader=loader, model=loader.model, reporter=notes, save_every=5)
    assert result.steps == 20
    assert [t["batches"] for t in result.troubles] == [[12]]
    assert any("row 1200" in note or "1200" in note for note in notes.said), "the rows are named"
    assert any("back at step 10, leaving out batch 12" in note for note in notes.said)
    lines = [json.loads(line)["step"] for line in (tmp_path / "log" / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(1, 21)), "no step is there twice"
    assert all(torch.isfinite(p).all() for p in model.parameters())
    without = Skipping(12)
    clean, _ = go(tmp_path / "clean", steps=20, loader=without, model=network())
    assert same(model, clean), "as if that batch had never been there"


class Notes(Reporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


class Explosive(Tiny):
    """Gives infinity for a certain token, as an overflow would."""

    def forward(self, batch: Batch) -> Tensor:
        overflow = (batch["input_ids"] == 0).all(1)[:, None, None]
        return super().forward(batch) * torch.where(overflow, float("inf"), 1.0)


class Overflow(Copying):
    """One batch (or every one from there on) has a row of zeros, on which the network overflows."""

    def __init__(self, at: int, and_after: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.at, self.and_after, self.model = at, and_after, Explosive()

    def micro_batch(self, step: int, micro: int) -> tuple[Batch, Any]:
        batch, indices = super().micro_batch(step, micro)
        if step == self.at or (self.and_after and step > self.at):
            batch["input_ids"][0] = 0  # type: ignore[index]
        return batch, indices


class Skipping(Copying):
    def __init__(self, left_out: int) -> None:
        super().__init__()
        self.left_out = left_out

    def micro_batch(self, step: int, micro: int) -> tuple[Batch, Any]:
        return super().micro_batch(step + (step >= self.left_out), micro)


def test_repeated_trouble_stops_and_says_so(tmp_path: Path) -> None:
    loader = Overflow(at=7, and_after=True)
    with pytest.raises(StageFailed, match=f"keeps failing: {guard.REPEATED} times") as caught:
        go(tmp_path, steps=20, loader=loader, model=loader.model)
    assert "optimizer.lr" in caught.value.fix
    assert checkpoint.newest(tmp_path, Reporter()) is not None, "the last good state is kept"


def test_a_spike_goes_back_past_the_update_that_led_to_it(tmp_path: Path) -> None:
    loader = Copying()

    def shuffle(batch: dict[str, Tensor]) -> None:
        batch["labels"].copy_((batch["input_ids"] + 5) % V)

    loader.spoil[60] = shuffle
    _, result = go(tmp_path, steps=70, loader=loader, optimizer={"name": "adamw", "lr": 2e-2})
    assert [t["batches"] for t in result.troubles] == [[59, 60]]
    assert "jumped" in result.troubles[0]["reason"]
    assert result.steps == 70


def test_states_are_kept_to_a_number(tmp_path: Path) -> None:
    go(tmp_path, steps=33, save_every=5, keep_states=3)
    assert checkpoint.steps(tmp_path) == [25, 30, 33]


def test_a_damaged_state_is_passed_over_with_a_notice(tmp_path: Path) -> None:
    whole, _ = go(tmp_path / "a", steps=20)
    state, notes = tmp_path / "b", Notes()
    with pytest.raises(RuntimeError):
        go(state, steps=20, loader=Unplugged(17))
    newest = state / "step-00000015" / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    resumed, _ = go(state, steps=20, reporter=notes)
    assert any("step-00000015 is damaged" in note for note in notes.said)
    assert any("going on from step 10" in note for note in notes.said)
    assert same(whole, resumed)


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors"])
def test_any_changed_byte_of_a_state_is_noticed(name: str, tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 3, {"a": torch.arange(5.0)}, {"x": 1})
    assert dict(checkpoint.read(path).tensors())["a"].tolist() == [0, 1, 2, 3, 4]
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (path / name).write_bytes(bytes(data))
    assert checkpoint.newest(tmp_path, Reporter()) is None


def test_activations_are_counted_without_weights() -> None:
    model = network()
    batch, _ = Copying().micro_batch(0, 0)
    one = activation_bytes(model, OBJECTIVE, {k: v[:1] for k, v in batch.items()}, Arithmetic("cpu"))
    four = activation_bytes(model, OBJECTIVE, batch, Arithmetic("cpu"))
    assert one > T * D * 4
    assert 3 * one < four <= 4 * one


def test_validation_is_a_mean_over_labels(tmp_path: Path) -> None:
    model = network()
    batches = [Copying(rows=rows).micro_batch(0, 0)[0] for rows in (1, 7)]
    found = objective.validate(model, OBJECTIVE, batches, Arithmetic("cpu"))
    with torch.no_grad():
        sums = [loss(model.eval()(b), b)["loss"] for b in batches]
    expected = sum(float(total) for total, _ in sums) / sum(int(count) for _, count in sums)
    assert found == {"validation_loss": pytest.approx(expected)}


def test_tensorboard_receives_every_figure(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra 'tracking' is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = Log(tmp_path, ["tensorboard"], name="test")
    log.begin(0, -1)
    for step in (1, 2):
        log.figures(step, {"loss": 3.0 - step})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 2.0), (2, 1.0)]


def test_a_sink_that_is_not_installed_names_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'groundup\[tracking\]'"):
        logs.require(["mlflow"])


@pytest.mark.parametrize(("text", "found"), [(500, (500, None)), ("2k", (2000, None)), ("10min", (None, 600.0))])
def test_intervals_are_steps_or_time(text: str | int, found: tuple[int | None, float | None]) -> None:
    assert interval(text) == found


# What torch's compiler imports warns of what it is made of.
OWN_WARNINGS = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@OWN_WARNINGS
def test_compiled_training_is_the_same_and_a_compiler_that_fails_is_gone_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One test of two parts: torch remembers a compiler that failed for the rest of the process."""
    import dataclasses

    from groundup.training.choices import missing_compiler

    if missing_compiler("cpu"):
        pytest.skip("there is no C++ compiler on this machine")
    eager, _ = go(tmp_path / "eager", steps=5)
    compiled, result = go(tmp_path / "compiled", steps=5, choices=dataclasses.replace(CHOICES, compile=True))
    assert result.choices.compile
    for p, q in zip(eager.parameters(), compiled.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-5)

    torch.compiler.reset()
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    notes, choices = Notes(), dataclasses.replace(CHOICES, compile=True)
    _, result = go(tmp_path / "state", steps=3, choices=choices, reporter=notes)
    assert not result.choices.compile
    assert any("torch.compile failed" in note for note in notes.said)
    assert json.loads((tmp_path / "state" / "choices.json").read_text())["compile"] is False


def planned_tiny(steps: int) -> Planned:
    loader = Copying()
    job = Job(network(), OBJECTIVE, loader, steps, 4 * T, 1e6, lambda: iter([loader.micro_batch(0, 0)[0]]))
    return Planned(job, section(), CHOICES)


def test_a_run_is_measured_in_a_process_of_its_own() -> None:
    found = measure(planned_tiny, 100)
    assert 0 < found.wall_s_per_step < 1
    assert found.peak_bytes > 50e6, "torch alone takes more"
    assert found.save_bytes > 0
    assert found.tokens_s == pytest.approx(4 * T / found.wall_s_per_step)


def test_a_peak_that_was_measured_too_low_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may have had the cores at the start; what is told in the end is a share of the best that was seen."""
    found = iter([1.0])
    monkeypatch.setattr(devices, "gemm_rate", lambda *given, **more: next(found, 1e15))
    _, result = go(tmp_path, steps=3)
    assert 0 < result.mfu < 1


IN_FULL = """\
groundup: 1
name: full
stages:
  corpus:
    prepare:
      source: {kind: text, paths: texts.txt, document: line}
      split: {validation: 30%, test: 0%}
      workers: 1
  words: {tokenize: {of: corpus, kind: bpe, vocab_size: 265}}
  base:
    pretrain:
      data: corpus
      tokenizer: words
      task: language_modeling
      model: {name: gpt, n_layers: 1, d_model: 16, n_heads: 2, context: 16, dropout: 0.1}
      tokens: 128
      batch_tokens: 64
      optimizer: {name: muon, lr: 1e-3}
"""


def test_a_run_that_compiles_nothing_imports_no_compiler(tmp_path: Path) -> None:
    """From the recipe to the weights: torch's compiler and its symbolic shapes would add two seconds to each start."""
    (tmp_path / "texts.txt").write_text("\n".join(f"{i} {i * i} is a square" for i in range(300)), encoding="utf-8")
    (tmp_path / "full.yaml").write_text(IN_FULL, encoding="utf-8")
    script = (
        "import sys, groundup\n"
        "groundup.run('full.yaml')\n"
        "groundup.load('runs/full/base').generate('4 16', max_new_tokens=2)\n"
        "compiler = {'torch._dynamo', 'torch.fx.experimental.symbolic_shapes', 'sympy'}\n"
        "sys.exit(', '.join(compiler & {*sys.modules}) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "full" / "base" / "model.safetensors").is_file()


def test_compiling_is_taken_to_cost_more_for_larger_graphs() -> None:
    assert compile_cost(nn.Sequential(*[nn.Linear(2, 2) for _ in range(50)])) > compile_cost(network())
