"""SASRec's blocks against torch's, a factorisation machine against its double sum, towers against plain arithmetic."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from groundup import catalog
from groundup.errors import UserError
from groundup.nn.attention import Causal
from groundup.nn.item_losses import in_batch_softmax, sampled_binary
from groundup.nn.network import Network, create

LENGTH = 9


def network(name: str, head: str = "language", **changes: object) -> Network:
    model = catalog.load("models", name)
    sizes = model.TINY | {"initialiser_std": 0.3} | changes
    return create(model, model.Config(**sizes), head, seed=5).eval()


def ids(rows: int = 3, items: int = 61) -> torch.Tensor:
    return torch.randint(1, items, (rows, LENGTH), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def test_a_block_of_sasrec_is_that_of_torch() -> None:
    """nn.TransformerEncoderLayer with the norm first, ReLU and a causal mask, given the same weights."""
    ours = network("sasrec").backbone.blocks[0]  # type: ignore[attr-defined]
    theirs = torch.nn.TransformerEncoderLayer(32, 4, 48, 0.0, F.relu, ours.ln_1.eps, batch_first=True, norm_first=True)
    for name, parameter in (
        ("self_attn.in_proj_weight", ours.attn.c_attn.weight),
        ("self_attn.in_proj_bias", ours.attn.c_attn.bias.add_(0.1)),
        ("self_attn.out_proj.weight", ours.attn.c_proj.weight),
        ("self_attn.out_proj.bias", ours.attn.c_proj.bias.add_(0.1)),
        ("linear1.weight", ours.mlp.c_fc.weight),
        ("linear1.bias", ours.mlp.c_fc.bias.add_(0.1)),
        ("linear2.weight", ours.mlp.c_proj.weight),
        ("linear2.bias", ours.mlp.c_proj.bias.add_(0.1)),
        *((f"norm{n}.{key}", getattr(getattr(ours, f"ln_{n}"), key)) for n in (1, 2) for key in ("weight", "bias")),
    ):
        theirs.get_parameter(name).copy_(parameter)
    x_BTD = torch.randn(3, LENGTH, 32, generator=torch.Generator().manual_seed(1))
    mask_TT = torch.nn.Transformer.generate_square_subsequent_mask(LENGTH)
    expected = theirs.train()(x_BTD, src_mask=mask_TT)  # training keeps torch off its fused path; dropout is 0
    torch.testing.assert_close(ours(x_BTD, Causal()), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_sasrec_enlarges_items_adds_positions_and_scores_by_the_same_table() -> None:
    sasrec = network("sasrec", n_layers=1)
    backbone, given = sasrec.backbone, ids()
    table = backbone.item_embeddings.weight  # type: ignore[attr-defined]
    x_BTD = table[given] * 32**0.5 + backbone.position_embeddings.weight[:LENGTH]  # type: ignore[attr-defined]
    hidden = backbone.last_norm(backbone.blocks[0](x_BTD, Causal()))  # type: ignore[attr-defined]
    torch.testing.assert_close(sasrec({"input_ids": given}).logits, hidden @ table.T, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["sasrec", "two_tower"])
def test_no_item_from_the_future_is_seen(name: str) -> None:
    model, given = network(name), ids()
    changed = given.clone()
    changed[:, 5:] = (changed[:, 5:] + 7) % 60 + 1
    before, after = model({"input_ids": given}).logits, model({"input_ids": changed}).logits
    torch.testing.assert_close(before[:, :5], after[:, :5], atol=1e-6, rtol=0)
    assert not torch.allclose(before[:, 5:], after[:, 5:])


@torch.no_grad()
@pytest.mark.parametrize("item_widths", [(), (24, 40)])
def test_both_towers_end_in_one_space(item_widths: tuple[int, ...]) -> None:
    """The mean of the items so far beside the newest, and items with the mean of their features, written out."""
    model = network("two_tower", item_widths=item_widths, temperature=0.25)
    items, users, given = model.backbone.items, model.backbone.users, ids()  # type: ignore[attr-defined]
    features = model.config.item_features  # type: ignore[attr-defined]
    own = items.item_embeddings.weight.clone()
    for item, numbers in enumerate(features):
        if numbers:
            own[item] += items.feature_embeddings.weight[torch.tensor(numbers) - 1].mean(0)
    x_BTD = own[given]
    mean = x_BTD.cumsum(1) / torch.arange(1, LENGTH + 1)[:, None]
    towers = []
    for layers, x in ((users.layers, torch.cat([mean, x_BTD], -1)), (items.tower.layers, own)):
        for number, layer in enumerate(layers):
            x = layer(x.relu() if number else x)
        towers.append(F.normalize(x, dim=-1))
    torch.testing.assert_close(model({"input_ids": given}).logits, towers[0] @ towers[1].T / 0.25, atol=1e-5, rtol=0)


@torch.no_grad()
def test_pairs_in_one_pass_are_the_double_sum() -> None:
    """Rendle's lemma 3.1, against the sum over all pairs of entries."""
    machine = network("factorisation_machine", "click")
    weights, factors = machine.backbone.weights.weight, machine.backbone.factors.weight  # type: ignore[attr-defined]
    machine.head.bias.fill_(0.7)  # type: ignore[union-attr]
    generator = torch.Generator().manual_seed(3)
    entries = torch.randint(0, 61, (6, 5), generator=generator)
    entries[0] = entries[0, 0]  # an entry may stand in several columns
    values = torch.randn(6, 5, generator=generator)
    for row, score in enumerate(machine({"entries": entries, "values": values}).logits[:, 0]):
        chosen, x = entries[row], values[row]
        expected = 0.7 + (weights[chosen, 0] * x).sum()
        for i, j in itertools.combinations(range(5), 2):
            expected = expected + factors[chosen[i]] @ factors[chosen[j]] * x[i] * x[j]
        torch.testing.assert_close(score, expected, atol=1e-5, rtol=0)
    ones = machine({"entries": entries, "values": torch.ones(6, 5)}).logits
    assert torch.equal(machine({"entries": entries}).logits, ones)


def test_rows_of_another_width_and_unknown_sizes_are_refused() -> None:
    machine = network("factorisation_machine", "click")
    with pytest.raises(UserError, match="an example has 4 entries, and the model reads 5"):
        machine({"entries": torch.zeros(2, 4, dtype=torch.long)})
    model = catalog.load("models", "factorisation_machine")
    with pytest.raises(UserError, match="does not know the columns of its rows"):
        create(model, model.Config(), "click", seed=0)
    tower = catalog.load("models", "two_tower")
    with pytest.raises(ValueError, match="item_features of 2 items for a table of 9"):
        tower.Config(vocab_size=9, item_features=((), (1,)))


def test_the_losses_of_items_are_what_their_formulas_say() -> None:
    """Label by label, against loops; positions without a label add nothing."""
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    table = torch.randn(9, 6, generator=generator, dtype=torch.float64)
    labels = torch.tensor([[3, -100, 5, 3], [1, 2, -100, 8]])
    negatives = torch.randint(1, 9, (2, 4, 3), generator=generator)
    real = [(row, place) for row in range(2) for place in range(4) if labels[row, place] >= 0]

    total, count = sampled_binary(features, table, labels, negatives)
    expected = sum(
        -F.logsigmoid(features[at] @ table[labels[at]]) - F.logsigmoid(-(table[negatives[at]] @ features[at])).sum()
        for at in real
    )
    assert int(count) == len(real) == 6
    torch.testing.assert_close(total.double(), expected, atol=1e-5, rtol=0)

    log_share = torch.linspace(-5, -1, 9, dtype=torch.float64)
    total, count = in_batch_softmax(features, table, labels, log_share)
    expected = torch.zeros((), dtype=torch.float64)
    for number, at in enumerate(real):
        others = [labels[o] for n, o in enumerate(real) if n == number or labels[o] != labels[at]]
        scores = torch.stack([features[at] @ table[item] - log_share[item] for item in others])
        own = features[at] @ table[labels[at]] - log_share[labels[at]]
        expected = expected + scores.logsumexp(0) - own
    assert int(count) == 6
    torch.testing.assert_close(total.double(), expected, atol=1e-5, rtol=0)
