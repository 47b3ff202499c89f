"""Recurrent networks beside torch.nn: weights copied both ways, sequences of any lengths, and hand-derived steps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from groundup import catalog
from groundup.checkpoints import hugging_face
from groundup.errors import UserError
from groundup.nn.attention import Causal
from groundup.nn.losses import linear_cross_entropy
from groundup.nn.network import Network, create
from groundup.runtimes.torch import TorchRuntime
from groundup.training.labelled import matrix_sizes

rnn = catalog.load("models", "rnn")
THEIRS = {"elman": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
LENGTHS = torch.tensor([4, 9, 1, 9, 6])
SIZES = {"vocab_size": 61, "d_model": 12, "d_hidden": 16, "n_layers": 2, "context": 64}


def network(head: str = "tokens", outputs: int | None = 5, **changes: Any) -> Network:
    ours = create(rnn, rnn.Config(**SIZES | changes), head, outputs=outputs, seed=1)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():  # biases begin at zero, which could hide a mistake
        for name, parameter in ours.named_parameters():
            if "bias" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return ours.eval()


def padded() -> dict[str, Tensor]:
    ids = torch.randint(0, 61, (5, 9), generator=torch.Generator().manual_seed(2))
    return {"input_ids": ids, "attention_mask": torch.arange(9) < LENGTHS[:, None]}


def flat() -> dict[str, Tensor]:
    batch = padded()
    positions = torch.cat([torch.arange(int(length)) for length in LENGTHS])
    return {
        "input_ids": batch["input_ids"][batch["attention_mask"]][None],
        "positions": positions[None],
        "lengths": LENGTHS,
    }


def same_in_torch(ours: Network) -> nn.RNNBase:
    config = ours.config
    options: dict[str, Any] = {
        "batch_first": True,
        "bidirectional": config.bidirectional,
        "num_layers": config.n_layers,
    }
    theirs = THEIRS[config.cell](config.d_model, config.d_hidden, **options)
    theirs.load_state_dict(ours.backbone.recurrent.state_dict())  # type: ignore[attr-defined]
    return theirs


CASES = [(cell, both) for cell in THEIRS for both in (False, True)]


@pytest.mark.parametrize(("cell", "both"), CASES)
def test_states_and_gradients_are_those_of_torch(cell: str, both: bool) -> None:
    ours = network(cell=cell, bidirectional=both)
    theirs, batch = same_in_torch(ours), padded()
    x = ours.backbone.embeddings(batch["input_ids"]).detach()  # type: ignore[attr-defined]
    packed = pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)
    expected, _ = pad_packed_sequence(theirs(packed)[0], batch_first=True)
    found = ours(batch).hidden
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    wanted = torch.randn(found.shape, generator=torch.Generator().manual_seed(3))
    ((found - wanted) ** 2).sum().backward()
    ((expected - wanted) ** 2).sum().backward()
    own = dict(ours.backbone.recurrent.named_parameters())  # type: ignore[attr-defined]
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(own[name].grad, parameter.grad, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("cell", "both"), CASES)
def test_weights_of_torch_open_here(cell: str, both: bool) -> None:
    ours = network(cell=cell, bidirectional=both)
    torch.manual_seed(8)
    theirs = THEIRS[cell](12, 16, num_layers=2, batch_first=True, bidirectional=both)
    ours.backbone.recurrent.load_state_dict(theirs.state_dict())  # type: ignore[attr-defined]
    ids = padded()["input_ids"]
    expected = theirs(ours.backbone.embeddings(ids))[0]  # type: ignore[attr-defined]
    torch.testing.assert_close(ours({"input_ids": ids}).hidden, expected, atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("cell", "both"), CASES)
def test_padded_flat_and_single_sequences_agree(cell: str, both: bool) -> None:
    ours = network(cell=cell, bidirectional=both)
    batch, real = padded(), padded()["attention_mask"]
    hidden = ours(batch).hidden
    assert not hidden[~real].any(), "there is no state where there is no token"
    torch.testing.assert_close(ours(flat()).hidden[0], hidden[real], atol=1e-6, rtol=0)
    alone = [
        ours({"input_ids": row[None, :length]}).hidden[0]
        for row, length in zip(batch["input_ids"], LENGTHS, strict=True)
    ]
    torch.testing.assert_close(torch.cat(alone), hidden[real], atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("both", [False, True])
def test_documents_packed_in_a_row_know_nothing_of_each_other(both: bool) -> None:
    ours = network(bidirectional=both)
    ids = torch.randint(0, 61, (2, 10), generator=torch.Generator().manual_seed(4))
    documents = torch.tensor([[0] * 3 + [1] * 7, [0] * 5 + [1] * 2 + [2] * 3])
    found = ours({"input_ids": ids, "document_ids": documents}).hidden
    parts = [ids[:1].split([3, 7], 1), ids[1:].split([5, 2, 3], 1)]
    alone = [torch.cat([ours({"input_ids": part}).hidden[0] for part in row]) for row in parts]
    torch.testing.assert_close(found, torch.stack(alone), atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("batch", [padded(), flat()], ids=["padded", "flat"])
def test_a_whole_sequence_is_judged_where_it_has_been_read(batch: dict[str, Tensor]) -> None:
    """The last state; of two directions, each where it has read all; or the mean."""
    hidden = network(bidirectional=True)(padded()).hidden
    both = network("sequence", 3, bidirectional=True)
    ends = torch.stack([torch.cat([row[n - 1, :16], row[0, 16:]]) for row, n in zip(hidden, LENGTHS, strict=True)])
    torch.testing.assert_close(both(batch).logits, both.head(ends), atol=1e-6, rtol=0)
    one = network("sequence", 3)
    last = torch.stack([row[n - 1] for row, n in zip(one(padded()).hidden, LENGTHS, strict=True)])
    torch.testing.assert_close(one(batch).logits, one.head(last), atol=1e-6, rtol=0)
    mean = network("sequence", 3, pooling="mean")
    means = torch.stack([row[:n].mean(0) for row, n in zip(mean(padded()).hidden, LENGTHS, strict=True)])
    torch.testing.assert_close(mean(batch).logits, mean.head(means), atol=1e-6, rtol=0)


def test_one_step_of_each_cell_by_hand() -> None:
    """One unit, input x = 1 and state h = 0.5, c = -1; every weight is a round number."""
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    state = torch.tensor([[0.5]])
    (h,) = rnn.elman(torch.tensor([[1.0]]), state * 2 + 0.25, (state,))
    assert h.item() == pytest.approx(math.tanh(1 + 2 * 0.5 + 0.25))
    before = state * torch.tensor([[1.0, 2.0, -1.0, 0.5]])
    h, c = rnn.lstm(torch.tensor([[0.1, 0.2, 0.3, 0.4]]), before, (state, torch.tensor([[-1.0]])))
    expected = sigmoid(0.2 + 1.0) * -1 + sigmoid(0.1 + 0.5) * math.tanh(0.3 - 0.5)
    assert c.item() == pytest.approx(expected)
    assert h.item() == pytest.approx(sigmoid(0.4 + 0.25) * math.tanh(expected))
    (h,) = rnn.gru(torch.tensor([[0.1, 0.2, 0.3]]), before[:, :3] + torch.tensor([0.0, 0.0, 0.7]), (state,))
    reset, keep = sigmoid(0.1 + 0.5), sigmoid(0.2 + 1.0)
    new = math.tanh(0.3 + reset * (-0.5 + 0.7))
    assert h.item() == pytest.approx((1 - keep) * new + keep * 0.5)


def test_forget_gates_begin_open_and_each_gate_has_its_own_spread() -> None:
    ours = create(rnn, rnn.Config(**SIZES | {"d_model": 300, "d_hidden": 200}), "language", seed=1)
    weights = dict(ours.backbone.recurrent.named_parameters())  # type: ignore[attr-defined]
    assert weights["bias_ih_l0"].tolist() == [0.0] * 200 + [1.0] * 200 + [0.0] * 400
    assert not weights["bias_hh_l0"].any()
    for gate in weights["weight_ih_l0"].chunk(4):  # Glorot & Bengio 2010: uniform, of variance 2 / (fan in + fan out)
        assert gate.std().item() == pytest.approx(math.sqrt(2 / (300 + 200)), rel=0.02)


@pytest.mark.parametrize("cell", THEIRS)
def test_a_language_model_learns_what_follows(cell: str) -> None:
    ours = network("language", None, cell=cell, n_layers=1, tie_embeddings=True, d_model=24, d_hidden=24).train()
    ids = torch.arange(60)[None] % 7
    optimizer = torch.optim.Adam(ours.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        outputs = ours({"input_ids": ids[:, :-1]})
        total, count = linear_cross_entropy(outputs.hidden, outputs.head.weight, ids[:, 1:])
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
        losses.append((total / count).item())
    assert losses[-1] < 0.3 < math.log(7) < losses[0]


def test_what_a_recurrent_network_cannot_do_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a language model must not read ahead"):
        network("language", None, bidirectional=True)
    with pytest.raises(ValueError, match=r"set d_hidden \(16\) to d_model \(12\)"):
        rnn.Config(**SIZES, tie_embeddings=True)
    ours = network("language", None)
    with pytest.raises(UserError, match="looks at nothing but its own states"):
        ours(padded(), Causal())
    hugging_face.save(tmp_path, ours)
    again = hugging_face.load(tmp_path)
    assert torch.equal(again(padded()).logits, ours(padded()).logits)


@torch.no_grad()
@pytest.mark.parametrize("cell", THEIRS)
def test_a_cache_keeps_the_states_so_that_texts_go_on_where_they_were(cell: str) -> None:
    """Two sequences of different lengths, a prompt in pieces and tokens one by one: as if each were read at once."""
    runtime = TorchRuntime(network("language", None, cell=cell), max_tokens=20, max_sequences=2)
    ids = torch.randint(0, 61, (2, 12), generator=torch.Generator().manual_seed(6))
    cache = runtime.new_cache()
    runtime.step(ids[0, :5].tolist(), range(5), [0] * 5, cache)
    runtime.step([*ids[0, 5:8].tolist(), *ids[1, :4].tolist()], [*range(5, 8), *range(4)], [0] * 3 + [1] * 4, cache)
    for step in range(4):
        given = [int(ids[0, 8 + step]), int(ids[1, 4 + step])]
        found = runtime.step(given, [8 + step, 4 + step], [0, 1], cache)
    whole = torch.stack(
        [runtime.forward({"input_ids": row[None, :n]}).logits[0, -1] for row, n in zip(ids, (12, 8), strict=True)]
    )
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=0)


def test_the_matrices_of_all_layers_are_counted_as_work() -> None:
    ours = network("sequence", 3, bidirectional=True, n_layers=2)
    matrices = sum(p.numel() for name, p in ours.named_parameters() if p.ndim == 2 and "embeddings" not in name)
    assert matrix_sizes(ours) == (matrices, matrices)
    ours.backbone.requires_grad_(False)
    assert matrix_sizes(ours) == (matrices, ours.head.weight.numel())
