"""The chunked loss is the plain one: same value, same gradients, whatever is trained."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from groundup.nn.losses import cross_entropy, linear_cross_entropy, token_losses

quick = settings(deadline=None, max_examples=40)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features (N,D), weight (V,D), bias (V), labels (N), float64; some or all labels untrained."""
    positions, vocabulary, width = draw(st.integers(1, 12)), draw(st.integers(2, 9)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    labels = draw(st.lists(st.integers(-1, vocabulary - 1), min_size=positions, max_size=positions))

    def normal(*shape: int) -> Tensor:
        return (2 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()

    targets = torch.tensor([-100 if label < 0 else label for label in labels])
    return normal(positions, width), normal(vocabulary, width), normal(vocabulary), targets


def gradients(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs))


@quick
@given(problems(), st.sampled_from([0.0, 0.1, 0.7]), st.integers(1, 5), st.booleans())
def test_chunking_changes_neither_value_nor_gradients(
    problem: tuple[Tensor, Tensor, Tensor, Tensor], smoothing: float, chunk: int, has_bias: bool
) -> None:
    features, weight, bias, labels = problem
    inputs = [features, weight, bias] if has_bias else [features, weight]
    logits = F.linear(features, weight, bias if has_bias else None)
    expected = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
    total, count = linear_cross_entropy(
        features, weight, labels, bias_V=bias if has_bias else None, label_smoothing=smoothing, chunk=chunk
    )
    torch.testing.assert_close(total, expected, atol=1e-9, rtol=1e-9)
    assert count == (labels >= 0).sum()
    # Scaled as a training step scales it, by a factor known only after the loss.
    ours, theirs = gradients(total * 0.37, inputs), gradients(expected * 0.37, inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


@quick
@given(problems(), st.floats(0.0, 0.9))
def test_plain_cross_entropy_is_torchs(problem: tuple[Tensor, Tensor, Tensor, Tensor], smoothing: float) -> None:
    features, weight, bias, labels = problem
    logits = F.linear(features, weight, bias)
    total, count = cross_entropy(logits[None], labels[None], label_smoothing=smoothing)
    expected = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(total, expected)
    assert count == (labels >= 0).sum()


@quick
@given(problems(), st.integers(1, 5))
def test_losses_of_single_positions_add_up(problem: tuple[Tensor, Tensor, Tensor, Tensor], chunk: int) -> None:
    features, weight, bias, labels = problem
    losses = token_losses(features[None], weight, labels[None], bias_V=bias, chunk=chunk)
    assert losses.shape == (1, len(labels))
    assert not losses[labels[None] < 0].any()
    total, _ = linear_cross_entropy(features, weight, labels, bias_V=bias)
    torch.testing.assert_close(losses.sum(), total.detach(), atol=1e-9, rtol=1e-9)


@quick
@given(problems(), st.integers(0, 12))
def test_sums_and_counts_of_pieces_are_those_of_the_whole(
    problem: tuple[Tensor, Tensor, Tensor, Tensor], cut: int
) -> None:
    features, weight, bias, labels = problem
    whole = linear_cross_entropy(features, weight, labels, bias_V=bias)
    first = linear_cross_entropy(features[:cut], weight, labels[:cut], bias_V=bias)
    second = linear_cross_entropy(features[cut:], weight, labels[cut:], bias_V=bias)
    torch.testing.assert_close(first[0] + second[0], whole[0], atol=1e-9, rtol=1e-9)
    assert first[1] + second[1] == whole[1]


def test_the_gradients_pass_torchs_own_check() -> None:
    torch.manual_seed(0)
    features, weight = torch.randn(7, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    bias, labels = torch.randn(5, dtype=torch.float64), torch.tensor([0, 4, -100, 2, 2, -100, 1])
    inputs = [tensor.requires_grad_() for tensor in (features, weight, bias)]
    assert torch.autograd.gradcheck(
        lambda f, w, b: linear_cross_entropy(f, w, labels, bias_V=b, label_smoothing=0.1, chunk=2)[0], inputs
    )


def test_frozen_parts_get_no_gradient_and_scoring_needs_none() -> None:
    features, weight = torch.randn(6, 4, requires_grad=True), torch.randn(9, 4)
    labels = torch.randint(0, 9, (6,))
    linear_cross_entropy(features, weight, labels)[0].backward()
    assert features.grad is not None
    assert weight.grad is None
    with torch.no_grad():
        assert not linear_cross_entropy(features, weight, labels)[0].requires_grad


def test_bfloat16_features_are_summed_in_float32() -> None:
    torch.manual_seed(0)
    features, weight = torch.randn(64, 32, requires_grad=True), torch.randn(500, 32, requires_grad=True)
    labels = torch.randint(0, 500, (64,))
    expected = F.cross_entropy(F.linear(features, weight), labels, reduction="sum")
    total, _ = linear_cross_entropy(features.bfloat16(), weight, labels)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, expected, rtol=0.01, atol=0)
    (by_weight,) = torch.autograd.grad(total, [weight])
    (wanted,) = torch.autograd.grad(expected, [weight])
    assert by_weight.dtype == torch.float32
    assert (by_weight - wanted).norm() < 0.02 * wanted.norm()


def test_autocast_multiplies_in_its_precision_and_sums_in_float32() -> None:
    torch.manual_seed(0)
    features, weight = torch.randn(64, 32, requires_grad=True), torch.randn(500, 32, requires_grad=True)
    labels = torch.randint(0, 500, (64,))
    expected = F.cross_entropy(F.linear(features, weight), labels, reduction="sum")
    wanted = torch.autograd.grad(expected, [features, weight])

    def summed(features: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return linear_cross_entropy(features, weight, labels, chunk=16)[0]

    for function in (summed, torch.compile(summed, fullgraph=True, backend="aot_eager")):
        total = function(features, weight, labels)
        torch.testing.assert_close(total, expected.detach(), rtol=0.01, atol=0, check_dtype=True)
        for ours, theirs in zip(gradients(total, [features, weight]), wanted, strict=True):
            assert ours.dtype == torch.float32
            assert (ours - theirs).norm() < 0.02 * theirs.norm()


def test_all_scores_are_never_held_at_once() -> None:
    """One operation's largest tensor, seen by torch's dispatcher, stays far below positions × vocabulary."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **kwargs or {})
            for item in result if isinstance(result, tuple) else (result,):
                if isinstance(item, Tensor):
                    self.elements = max(self.elements, item.numel())
            return result

    features, weight = torch.randn(512, 8, requires_grad=True), torch.randn(1000, 8, requires_grad=True)
    labels = torch.randint(0, 1000, (512,))
    with Largest() as seen:
        linear_cross_entropy(features, weight, labels, chunk=16)[0].backward()
    assert seen.elements < 20_000
    with Largest() as seen:
        cross_entropy(F.linear(features, weight), labels)[0].backward()
    assert seen.elements == 512 * 1000


def test_torch_compile_keeps_the_loss_whole() -> None:
    """No graph break, and one compilation serves any number of trained labels."""
    compiles = 0

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        nonlocal compiles
        compiles += 1
        return graph

    torch.manual_seed(0)
    features, weight = torch.randn(40, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)
    compiled = torch.compile(lambda f, w, y: linear_cross_entropy(f.tanh(), w, y), fullgraph=True, backend=counting)
    for trained in (40, 6, 0):
        labels = torch.randint(0, 30, (40,))
        labels[trained:] = -100
        total, count = compiled(features, weight, labels)
        expected, _ = linear_cross_entropy(features.tanh(), weight, labels)
        torch.testing.assert_close(gradients(total, [features, weight]), gradients(expected, [features, weight]))
        assert count == trained
    assert compiles == 1


def test_the_operator_keeps_the_rules_of_its_kind() -> None:
    features, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((6, 4), (9, 4), (9,)))
    labels, wanted = torch.tensor([0, 3, -100, 8, 2, -100]), [True, True, True]
    given = (features, weight, bias, labels, 0.1, 2, wanted, "torch")
    torch.library.opcheck(torch.ops.groundup.linear_cross_entropy, given)
