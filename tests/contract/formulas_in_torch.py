"""What torch makes of the inputs on the pages of mathematics: forward passes, and `backward` for every gradient.

A function gets the names that a page's code has defined so far and returns, under the page's names, what autograd
finds. `REFERENCES` says which function belongs to which section. No derivative is written down here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian
from torch.nn import functional as F

Names = dict[str, Any]


def leaves(names: Names, wanted: str) -> list[Tensor]:
    """Arrays of the page as tensors that gather gradients."""
    return [torch.tensor(names[name], dtype=torch.float64, requires_grad=True) for name in wanted.split()]


def kept(*tensors: Tensor) -> None:
    """Keep the gradients of what is computed, too."""
    for tensor in tensors:
        tensor.retain_grad()


def slope(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The derivative of a function of one number, by autograd."""

    def derivative(points: Tensor) -> Tensor:
        points = points.clone().requires_grad_()
        function(points).sum().backward()
        assert points.grad is not None
        return points.grad

    return derivative


def two_hidden_layers(names: Names) -> Names:
    weights = leaves(names, "W1 b1 W2 b2 W3 b3 x")
    W1, b1, W2, b2, W3, b3, x = weights
    a1 = F.linear(x, W1, b1)
    h1 = a1.sigmoid()
    a2 = F.linear(h1, W2, b2)
    h2 = a2.sigmoid()
    a3 = F.linear(h2, W3, b3)
    L = F.cross_entropy(a3, torch.tensor(names["y"]))
    kept(a1, a2, a3, h2)
    L.backward()
    found = {"a1": a1, "h1": h1, "a2": a2, "h2": h2, "a3": a3, "p": a3.softmax(0), "L": L, "L_from_scores": L}
    found |= {"dW1": W1.grad, "db1": b1.grad, "dW2": W2.grad, "db2": b2.grad, "dW3": W3.grad, "db3": b3.grad}
    found |= {"delta1": a1.grad, "delta2": a2.grad, "delta3": a3.grad, "dh2": h2.grad, "dx": x.grad}
    found |= {"dW3_by_numbers": W3.grad, "dh2_by_numbers": h2.grad, "slope_of_one_weight": W1.grad[2, 3]}
    return found | {"sigma": torch.sigmoid, "sigma_prime": slope(torch.sigmoid)}


def one_step(names: Names) -> Names:
    weights = leaves(names, "W1 b1 W2 b2 W3 b3")
    a3 = torch.tensor(names["x"])
    for number in (0, 2, 4):
        a3 = F.linear(a3 if number == 0 else a3.sigmoid(), weights[number], weights[number + 1])
    F.cross_entropy(a3, torch.tensor(names["y"])).backward()
    torch.optim.SGD(weights, lr=names["eta"]).step()
    return {"W1_after": weights[0]}


def batch(names: Names) -> Names:
    W1, b1, W2, b2, W3, b3 = leaves(names, "W1 b1 W2 b2 W3 b3")
    A1 = F.linear(torch.tensor(names["X"]), W1, b1)
    A2 = F.linear(A1.sigmoid(), W2, b2)
    A3 = F.linear(A2.sigmoid(), W3, b3)
    kept(A2, A3)
    F.cross_entropy(A3, torch.tensor(names["Y"])).backward()
    return {"A1": A1, "Delta3": A3.grad, "dW3_batch": W3.grad, "db3_batch": b3.grad, "Delta2": A2.grad}


def other_losses(names: Names) -> Names:
    (scores,) = leaves(names, "a3")
    squared = F.mse_loss(scores.sigmoid(), torch.tensor(names["y"]), reduction="sum") / 2
    by_squared = torch.autograd.grad(squared, scores)[0]
    # torch divides by the number of classes.
    hinge = F.multi_margin_loss(scores, torch.tensor(names["c"])) * len(scores)
    by_hinge = torch.autograd.grad(hinge, scores)[0]
    return {"L_squared": squared, "delta3_squared": by_squared, "L_hinge": hinge, "delta3_hinge": by_hinge}


def activations(names: Names) -> Names:
    return {f"{each.__name__}_prime": slope(each) for each in (torch.tanh, torch.relu, F.gelu, F.silu)}


def correlation(names: Names) -> Names:
    X, K, b = leaves(names, "X K b")
    strided = F.conv2d(X, K, b, stride=names["s"], padding=names["p"])
    return {"Y": F.conv2d(X, K, b), "Y_strided": strided, "size": strided.shape[-1]}


def convolution(names: Names) -> Names:
    """torch's transposed convolution is the true one, with every place where the kernel touches the image."""
    whole = F.conv_transpose2d(torch.tensor(names["image"])[None], torch.tensor(names["kernel"])[None, None])
    inside = whole[0, 2:-2, 2:-2]
    return {"convolved": inside, "convolved_by_correlating": inside}


def line(names: Names) -> Names:
    (pixels,) = leaves(names, "line")
    y = F.conv1d(pixels[None], torch.tensor(names["k_line"])[None, None])[0]
    y.backward(torch.tensor(names["g_line"]))
    return {"y_line": y, "dline": pixels.grad}


def convolution_backward(names: Names) -> Names:
    X, K, b = leaves(names, "X K b")
    F.conv2d(X, K, b).backward(torch.tensor(names["G"]))
    found = {"db": b.grad, "dK": K.grad, "dX": X.grad}
    X, K, b = leaves(names, "X K b")
    every = F.conv2d(X, K, b, padding=names["p"])
    kept(every)
    taken = every[:, :: names["s"], :: names["s"]]
    taken.backward(torch.tensor(names["G_strided"]))
    assert torch.allclose(taken, F.conv2d(X, K, b, stride=names["s"], padding=names["p"]))
    return found | {"G_bar": every.grad, "dX_strided": X.grad}


def pooling(names: Names) -> Names:
    found: Names = {}
    for kind, pool in (("max", F.max_pool2d), ("mean", F.avg_pool2d)):
        (Z,) = leaves(names, "Z")
        Y = pool(Z, 2)
        Y.backward(torch.tensor(names["G_pool"]))
        found |= {f"Y_{kind}": Y, f"dZ_{kind}": Z.grad}
    return found


def weights_of_a_network(names: Names) -> Names:
    second = nn.Conv2d(32, 64, 3)
    layers = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    network = nn.Sequential(*layers, nn.Linear(1600, 128), nn.ReLU(), nn.Linear(128, 10))
    assert network(torch.zeros(1, 1, 28, 28)).shape == (1, 10)
    return {"N": number_of(second.parameters()), "N_all": number_of(network.parameters())}


def number_of(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def rows(tensors: Iterable[Tensor | None], *, after: int = 0) -> Tensor:
    """One row a step, and rows of zeros before, for step 0, and after."""
    found = [tensor for tensor in tensors if tensor is not None]
    nothing = torch.zeros_like(found[0])
    return torch.stack([nothing, *found, *[nothing] * after])


def elman(names: Names) -> Names:
    x, W, U, b, V, c, first = leaves(names, "x W U b V c h")
    h, a, s = [first[0]], [], []
    for t in range(1, names["T"] + 1):
        a.append(F.linear(x[t], W, b) + F.linear(h[-1], U))
        h.append(a[-1].tanh())
        s.append(F.linear(h[-1], V, c))
    kept(*a, *h[1:], *s)
    p = rows(each.softmax(0) for each in s)
    L = F.cross_entropy(torch.stack(s), torch.tensor(names["y"][1:]), reduction="sum")
    L.backward()
    found = {"a": rows(a), "h": torch.stack(h), "s": rows(s), "p": p, "L": L}
    found |= {"delta_s": rows(each.grad for each in s), "delta": rows((each.grad for each in a), after=1)}
    found |= {"dh": rows(each.grad for each in h[1:]), "dx": x.grad}
    return found | {"dW": W.grad, "dU": U.grad, "db": b.grad, "dV": V.grad, "dc": c.grad}


def elman_far_back(names: Names) -> Names:
    x, W, U, b = (each.detach() for each in leaves(names, "x W U b"))

    def last_state(h: Tensor) -> Tensor:
        for t in range(1, names["T"] + 1):
            h = (F.linear(x[t], W, b) + F.linear(h, U)).tanh()
        return h

    return {"dh_last_by_first": jacobian(last_state, torch.tensor(names["h"][0]))}


def lstm(names: Names) -> Names:
    x, W, U, b = leaves(names, "x W U b")
    z: list[Tensor] = []
    gates: list[Tensor] = []
    c, h = [torch.zeros(4, dtype=torch.float64)], [torch.zeros(4, dtype=torch.float64)]
    for t in range(1, names["T"] + 1):
        z.append(F.linear(x[t], W, b) + F.linear(h[-1], U))
        i, f, g, o = z[-1].chunk(4)
        gates.append(torch.stack([i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()]))
        c.append(gates[-1][1] * c[-1] + gates[-1][0] * gates[-1][2])
        h.append(gates[-1][3] * c[-1].tanh())
    kept(*z, *c[1:], *h[1:])
    found: Names = {"z": rows(z, after=1), "c": rows(c[1:], after=1), "h": rows(h[1:], after=1)}
    for number, name in enumerate("ifgo"):
        found[name] = rows((each[number] for each in gates), after=1)
    if "G" in names:  # defined where the way back begins
        torch.stack(h[1:]).backward(torch.tensor(names["G"][1:]))
        delta = rows((each.grad for each in z), after=1)
        found |= {f"delta_{name}": part for name, part in zip("ifgo", delta.chunk(4, dim=1), strict=True)}
        found |= {
            "dh": rows((each.grad for each in h[1:]), after=1),
            "dc": rows((each.grad for each in c[1:]), after=1),
        }
    return found | {"dW": W.grad, "dU": U.grad, "db": b.grad}


def gru(names: Names) -> Names:
    x, W, U, b, d = leaves(names, "x W U b d")
    A: list[Tensor] = []
    B: list[Tensor] = []
    gates: list[Tensor] = []
    h = [torch.zeros(4, dtype=torch.float64)]
    for t in range(1, names["T"] + 1):
        A.append(F.linear(x[t], W, b))
        B.append(F.linear(h[-1], U, d))
        (Ar, Az, An), (Br, Bz, Bn) = A[-1].chunk(3), B[-1].chunk(3)
        r, z = (Ar + Br).sigmoid(), (Az + Bz).sigmoid()
        gates.append(torch.stack([r, z, (An + r * Bn).tanh()]))
        h.append(torch.lerp(gates[-1][2], h[-1], z))
    kept(*A, *B, *h[1:])
    torch.stack(h[1:]).backward(torch.tensor(names["G"][1:]))
    found: Names = {"A": rows(A), "B": rows(B), "h": rows(h[1:], after=1)}
    for number, name in enumerate("rzn"):
        found[name] = rows((each[number] for each in gates), after=1)
    for side, sums in (("A", A), ("B", B)):
        parts = rows((each.grad for each in sums), after=1).chunk(3, dim=1)
        found |= {f"d{side}{name}": part for name, part in zip("rzn", parts, strict=True)}
    found["dh"] = rows((each.grad for each in h[1:]), after=1)
    return found | {"dW": W.grad, "dU": U.grad, "db": b.grad, "dd": d.grad}


def one_head(names: Names) -> Names:
    Q, K, V = leaves(names, "Q K V")
    S = Q @ K.T / names["d"] ** 0.5
    A = S.softmax(1)
    found = {"S": S, "A": A, "O": F.scaled_dot_product_attention(Q, K, V)}
    if "G" not in names:
        return found
    kept(S, A)
    (A @ V).backward(torch.tensor(names["G"]))
    every = jacobian(lambda scores: scores.softmax(1), S.detach())
    by_row = torch.stack([every[row, :, row] for row in range(len(every))])
    found |= {"dV": V.grad, "dA": A.grad, "dS": S.grad, "dQ": Q.grad, "dK": K.grad, "jacobian": by_row}
    assert A.grad is not None
    return found | {"average": (A * A.grad).sum(1, keepdim=True)}


def signs(names: Names) -> Names:
    keys = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=names["d"])), dtype=torch.float64)
    return {"variance": (keys @ torch.tensor(names["q"])).var(correction=0)}


def masked(names: Names) -> Names:
    T = names["T"]
    hidden = torch.ones(T, T, dtype=torch.bool).triu(diagonal=1)
    Q, K, V = (torch.tensor(names[key]) for key in "QKV")
    seen = F.scaled_dot_product_attention(Q, K, V, is_causal=True)
    assert np.allclose(names["A_masked"] @ names["V"], seen)
    return {"S_masked": (Q @ K.T / names["d"] ** 0.5).masked_fill(hidden, float("-inf"))}


def several_heads(names: Names) -> Names:
    """Heads by torch's own module, whose matrices are stored turned, and head after head."""
    H, D, d = names["H"], names["D"], names["d"]
    (X,) = leaves(names, "X")
    module = nn.MultiheadAttention(D, H, bias=False, batch_first=True, dtype=torch.float64)
    sides = [torch.tensor(np.concatenate(list(names[key]), axis=1).T) for key in ("WQ", "WK", "WV")]
    module.in_proj_weight.data = torch.cat(sides)
    module.out_proj.weight.data = torch.tensor(names["WO"]).T.contiguous()
    Y = module(X[None], X[None], X[None], need_weights=False)[0][0]
    Qh, Kh, Vh = (F.linear(X, side).view(-1, H, d).transpose(0, 1) for side in sides)
    Oh = F.scaled_dot_product_attention(Qh, Kh, Vh)
    found = {"Qh": Qh, "Kh": Kh, "Vh": Vh, "Oh": Oh, "Y": Y, "Y_as_sum": Y, "N": number_of(module.parameters())}
    if "djoined" not in names:
        return found
    joined = Oh.transpose(0, 1).flatten(1).detach().requires_grad_()
    module.out_proj(joined).backward(torch.tensor(names["G"]))
    module.zero_grad()
    Y.backward(torch.tensor(names["G"]))
    gradients = module.in_proj_weight.grad
    assert gradients is not None and module.out_proj.weight.grad is not None
    found |= {"djoined": joined.grad, "dWO": module.out_proj.weight.grad.T, "dX": X.grad}
    by_head = gradients.view(3, H, d, D).transpose(2, 3)
    return found | {"dWQ": by_head[0], "dWK": by_head[1], "dWV": by_head[2]}


REFERENCES: dict[str, dict[str, Callable[[Names], Names]]] = {
    "back-propagation.md": {
        "Forward": two_hidden_layers,
        "The gradient of the scores": two_hidden_layers,
        "One layer back, number by number": two_hidden_layers,
        "Through the activation": two_hidden_layers,
        "And again": two_hidden_layers,
        "Is it right?": two_hidden_layers,
        "The step": one_step,
        "A batch": batch,
        "Other losses": other_losses,
        "Other activations": activations,
    },
    "convolution.md": {
        "What the layer computes": correlation,
        "Convolution, or cross-correlation?": convolution,
        "As a matrix": line,
        "Backward": convolution_backward,
        "Pooling": pooling,
        "How many weights": weights_of_a_network,
    },
    "recurrence.md": {
        "Elman's network": elman,
        "Back through time": elman,
        "Why long memory is hard": elman_far_back,
        "LSTM": lstm,
        "LSTM, backward": lstm,
        "GRU": gru,
        "GRU, backward": gru,
    },
    "attention.md": {
        "Scaled dot products": one_head,
        "Why the root": signs,
        "Who may look at whom": masked,
        "Backward": one_head,
        "Several heads": several_heads,
        "Several heads, backward": several_heads,
    },
}
