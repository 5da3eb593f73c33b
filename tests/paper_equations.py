"""The paper's equations (III-A to III-E) written out from its text: loops over plain fp64 tensors, one utterance at a
time, without padding and without any of the product's code.

`weights` are a model's, by the names of its `state_dict`. What the paper leaves open (layer norms, the residual dense
layer, the utterance's own descriptor next to its contexts) is as docs/paper.md states it.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def double(state: Weights) -> Weights:
    return {name: value.detach().double() for name, value in state.items()}


# --- parts that every network has ---


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def layer_norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + 1e-5).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def softmax(scores: Tensor) -> Tensor:
    return scores.exp() / scores.exp().sum(-1, keepdim=True)


def lstm(weights: Weights, name: str, x: Tensor, suffix: str) -> Tensor:
    """`(L, width)` to `(L, hidden)`; gates in PyTorch's order: input, forget, cell, output."""
    w_x, w_h = weights[f"{name}.weight_ih_l0{suffix}"], weights[f"{name}.weight_hh_l0{suffix}"]
    bias = weights[f"{name}.bias_ih_l0{suffix}"] + weights[f"{name}.bias_hh_l0{suffix}"]
    hidden = cell = x.new_zeros(w_h.shape[1])
    states = []
    for step in x:
        i, f, g, o = (w_x @ step + w_h @ hidden + bias).chunk(4)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        hidden = torch.sigmoid(o) * torch.tanh(cell)
        states.append(hidden)
    return torch.stack(states)


def bi_lstm(weights: Weights, name: str, x: Tensor) -> Tensor:
    """`(L, width)` to `(L, 2 * hidden)`: forwards and backwards, concatenated."""
    forwards = lstm(weights, f"{name}.lstm", x, "")
    backwards = lstm(weights, f"{name}.lstm", x.flip(0), "_reverse").flip(0)
    return torch.cat([forwards, backwards], -1)


def attention(
    weights: Weights, name: str, g: Tensor, sources: Sequence[Tensor], gates: Tensor, heads: int, merge: str
) -> Tensor:
    """The sum of Eq. 1: sum_n gate_n softmax(linear(g K_n^T / sqrt(d))) V_n for each head, heads averaged ("mean").

    `gates` `(H, P)`. The linear map mixes the heads' scores, by the weights `{name}.score_map` `(P, H, H)` where the
    model has them. A source without a token contributes nothing.
    """
    width = g.shape[-1] // heads
    score_map = weights.get(f"{name}.score_map", torch.eye(heads, dtype=g.dtype).expand(len(sources), heads, heads))
    cut = [slice(h * width, (h + 1) * width) for h in range(heads)]
    query = linear(weights, f"{name}.q_proj", g)
    results = [g.new_zeros(len(g), width) for _ in range(heads)]
    for n, source in enumerate(sources):
        if not len(source):
            continue
        key, value = (linear(weights, f"{name}.{kind}.{n}", source) for kind in ("k_proj", "v_proj"))
        scores = [query[:, cut[h]] @ key[:, cut[h]].T / width**0.5 for h in range(heads)]
        for h in range(heads):
            mapped = sum(score_map[n, h, other] * scores[other] for other in range(heads))
            results[h] = results[h] + gates[h, n] * softmax(mapped) @ value[:, cut[h]]
    merged = torch.stack(results).mean(0) if merge == "mean" else torch.cat(results, -1)
    return linear(weights, f"{name}.out_proj", merged)


def attention_layer(
    weights: Weights, name: str, g: Tensor, sources: Sequence[Tensor], gate: float, heads: int, merge: str
) -> Tensor:
    """g + attention (Eq. 1), then the dense layer of III-B."""
    normed = layer_norm(weights, f"{name}.attention_norm", g)
    gates = g.new_full((heads, len(sources)), gate)
    g = g + attention(weights, f"{name}.attention", normed, sources, gates, heads, merge)
    return g + gelu(linear(weights, f"{name}.dense", layer_norm(weights, f"{name}.dense_norm", g)))


# --- III-A and III-B: features to cross-attended descriptors ---


def unimodal(weights: Weights, name: str, features: Tensor, layers: int, heads: int, merge: str) -> Tensor:
    """Bi-LSTM, then stacked self-attention: `(L, d_m)` to f_m `(L, d)`."""
    x = layer_norm(weights, f"{name}.norm", bi_lstm(weights, f"{name}.lstm", features))
    for layer in range(layers):
        x = attention_layer(weights, f"{name}.layers.{layer}", x, [x], 1.0, heads, merge)
    return x


def central(
    weights: Weights, name: str, f_m: Tensor, others: Sequence[Tensor], layers: int, heads: int, merge: str
) -> Tensor:
    """Eq. 1, `layers` times: the other modalities' f_n give each layer its keys and values; weight 1 / |M|."""
    g = f_m
    for layer in range(layers):
        g = attention_layer(weights, f"{name}.layers.{layer}", g, others, 1 / (len(others) + 1), heads, merge)
    return g


def descriptors(
    weights: Weights,
    features: Sequence[Tensor | None],
    *,
    unimodal_layers: int,
    man_layers: int,
    heads: int,
    merge: str,
    man_lstm: bool = False,
) -> Tensor:
    """f_m^CA of one utterance, `(M, d)`; an absent modality (None) is 0 and is no source of another one.

    With `man_lstm` a Bi-LSTM runs over the tokens between the Central network and the average (Fig. 1).
    """
    d = weights["unimodal.0.norm.weight"].shape[0]
    f = [
        torch.zeros(0, d, dtype=torch.float64)
        if tokens is None
        else unimodal(weights, f"unimodal.{m}", tokens.double(), unimodal_layers, heads, merge)
        for m, tokens in enumerate(features)
    ]
    pooled = []
    for m, f_m in enumerate(f):
        if not len(f_m):
            pooled.append(f_m.new_zeros(d))
            continue
        g = central(weights, f"central.{m}", f_m, f[:m] + f[m + 1 :], man_layers, heads, merge)
        pooled.append((bi_lstm(weights, f"central.{m}.lstm", g) if man_lstm else g).mean(0))
    return torch.stack(pooled)


# --- III-C and III-E2: adaptive fusion ---


def focal(logits: Tensor, label: int, gamma: float = 1.0) -> Tensor:
    """Eq. 5 with its logarithm."""
    p = softmax(logits)[label]
    return -((1 - p) ** gamma) * p.log()


def loss_gradient(weights: Weights, m: int, f: Tensor, label: int | None) -> Tensor:
    """Gradient at f of modality m's own focal loss, for its predicted label where none is given."""
    f = f.detach().clone().requires_grad_()
    logits = linear(weights, f"heads.{m}", f)
    chosen = int(logits.argmax()) if label is None else label
    (gradient,) = torch.autograd.grad(focal(logits, chosen), f)
    return gradient


def equation_6(f_1: Tensor, f_2: Tensor, gradient_2: Tensor, epsilon: float) -> Tensor:
    """The coefficient of f_1, `(d,)`: epsilon |f_1 - f_2| gradient_2 / |gradient_2| over (f_1 - f_2), in [0, 1]."""
    step = epsilon * (f_1 - f_2).norm() * gradient_2 / gradient_2.norm()
    return torch.where(f_1 == f_2, 0.0, step / (f_1 - f_2)).clamp(0, 1)


def closed_form(
    weights: Weights, f: Tensor, present: Sequence[bool], epsilon: float, label: int | None = None
) -> Tensor:
    """alpha^m_n of Eq. 2 by Eq. 6, `(M, M, d)`: f_n is its f_1 and f_m its f_2; 0 for an absent modality."""
    count, d = f.shape
    alpha = f.new_zeros(count, count, d)
    for m in range(count):
        for n in range(count):
            if m != n and present[m] and present[n]:
                alpha[m, n] = equation_6(f[n], f[m], loss_gradient(weights, m, f[m], label), epsilon)
    return alpha


def equation_2(f: Tensor, alpha: Tensor, present: Sequence[bool]) -> Tensor:
    """A(u), `(M * d,)`: concat_m 1/|M| sum_(n != m) (alpha[m, n] f_n + (1 - alpha[m, n]) f_m) over those present."""
    here = [m for m in range(len(f)) if present[m]]
    fused = torch.zeros_like(f)
    for m in here:
        mixed = [alpha[m, n] * f[n] + (1 - alpha[m, n]) * f[m] for n in here if n != m]
        fused[m] = sum(mixed) / len(here) if mixed else f[m]
    return fused.flatten()


def chain(weights: Weights, f: Tensor, present: Sequence[bool], epsilon: float) -> Tensor:
    """III-E2: u_1 = a_1 f_1 + (1 - a_1) f_2, u_2 = a_2 u_1 + (1 - a_2) f_3, over the modalities present, `(d,)`."""
    first, *rest = [m for m in range(len(f)) if present[m]] or [0]
    u = f[first]
    for m in rest:
        a = equation_6(u, f[m], loss_gradient(weights, m, f[m], None), epsilon)
        u = a * u + (1 - a) * f[m]
    return u


# --- III-D: dialogue and speaker context ---


def own_descriptor(weights: Weights, fused: Tensor) -> Tensor:
    return gelu(layer_norm(weights, "temporal.norm", linear(weights, "temporal.project", fused)))


def dialogue_context(weights: Weights, x: Tensor) -> Tensor:
    """A Bi-LSTM over all utterances of one dialogue, `(N, d)` to `(N, d)`."""
    return bi_lstm(weights, "temporal.dialogue_lstm", x)


def speaker_context(weights: Weights, x: Tensor, speakers: Sequence[str]) -> Tensor:
    """A Bi-LSTM over each speaker's own utterances of one dialogue, `(N, d)` to `(N, d)`."""
    context = torch.zeros_like(x)
    for speaker in set(speakers):
        own = [i for i, name in enumerate(speakers) if name == speaker]
        context[own] = bi_lstm(weights, "temporal.speaker_lstm", x[own])
    return context


def sinusoids(count: int, width: int) -> Tensor:
    """sin(p / 10000^(2i / width)) and cos at positions p, columns 2i and 2i + 1, `(count, width)`."""
    code = torch.zeros(count, width, dtype=torch.float64)
    for position in range(count):
        for i in range(width // 2):
            angle = position / 10000 ** (2 * i / width)
            code[position, 2 * i], code[position, 2 * i + 1] = math.sin(angle), math.cos(angle)
    return code


def attended_context(
    weights: Weights, x: Tensor, speakers: Sequence[str], layers: int, heads: int, causal: bool
) -> Tensor:
    """Attention over the sources "same speaker" and "any speaker" of one dialogue, `(N, d)` to `(N, d)`."""
    y = x + sinusoids(*x.shape)
    for layer in range(layers):
        name = f"temporal.layers.{layer}"
        normed = layer_norm(weights, f"{name}.attention_norm", y)
        gates = weights[f"{name}.attention.log_gate"].exp()
        rows = []
        for i, speaker in enumerate(speakers):
            seen = range(i + 1) if causal else range(len(speakers))
            same = [j for j in seen if speakers[j] == speaker]
            sources = [normed[same], normed[list(seen)]]
            rows.append(attention(weights, f"{name}.attention", normed[i : i + 1], sources, gates, heads, "concat"))
        y = y + torch.cat(rows)
        wide = gelu(linear(weights, f"{name}.dense.0", layer_norm(weights, f"{name}.dense_norm", y)))
        y = y + linear(weights, f"{name}.dense.3", wide)
    return y
