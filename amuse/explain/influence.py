"""Influences on a prediction beyond single tokens: attention, fusion, modalities, the rest of the dialogue."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from amuse.data.batch import Batch
from amuse.data.conversation import Dialogue
from amuse.explain.perturbation import Perturbation
from amuse.model.amuse import Amuse
from amuse.model.score_map import MappedScoresAttention
from amuse.model.stages import Attention, CentralNetwork
from amuse_kernels import p2c_attention_weights
from amuse_kernels.nn import Packed, ProjectedSource


def attention_flow(model: Amuse, batch: Batch) -> dict[tuple[str, str], Tensor]:
    """How much each Central network m attends to the tokens of each Peripheral modality n (Eq. 1).

    The weights of `p2c_attention_weights`, gates applied, averaged over heads, layers and the tokens of m: they sum to
    the gate, 1 / |M| in the paper, or with joint normalisation to 1 over all n. High attention to a token does not
    imply that it changed the prediction.

    Args:
        model: Put into evaluation mode.
        batch: Of U utterances.

    Returns:
        (m, n) -> `(U, L_n)`; empty for a model without the Multimodal Attention Network.
    """
    if model.central is None:
        return {}
    seen: dict[nn.Module, tuple[Tensor, ...]] = {}

    def record(module: nn.Module, arguments: Any, _: Any) -> None:
        seen[module] = attention_weights(cast(Attention, module), *arguments)

    networks = [cast(CentralNetwork, network) for network in model.central]
    attentions = [[network.attention(layer) for layer in range(len(network.layers))] for network in networks]
    hooks = [module.register_forward_hook(record) for of_network in attentions for module in of_network if module]
    try:
        with torch.no_grad():
            model.eval().describe(batch)
    finally:
        for hook in hooks:
            hook.remove()
    flow = {}
    for central, layers in zip(model.modalities, attentions, strict=True):
        others = [name for name in model.modalities if name != central]
        tokens = torch.stack([batch.layouts[stream].cu_seq.diff() for stream in model.groups[central]]).sum(0)  # (U,)
        for p, peripheral in enumerate(others):
            weights = [seen[attention][p] for attention in layers]  # each (U, L_m, L_n)
            if weights:
                flow[central, peripheral] = torch.stack(weights).mean(0).sum(1) / tokens.clamp(min=1)[:, None]
    return flow


def attention_weights(attention: Attention, query: Packed, sources: Sequence[ProjectedSource]) -> tuple[Tensor, ...]:
    """Weights of a layer for each source, gates applied, averaged over heads: `(U, Lq, Lp)`, 0 where padded."""
    if isinstance(attention, MappedScoresAttention):
        keys, scale, normalization = attention.mapped_keys(sources), attention.softmax_scale, "per_source"
    else:
        keys, scale, normalization = [source.key for source in sources], None, attention.normalization
    heads, is_query = _padded_heads(query._replace(values=attention.project_query(query.values)))
    layouts: list[Any] = [(source.cu_seq, source.max_len) for source in sources]
    padded = [_padded_heads(Packed(key, *layout)) for key, layout in zip(keys, layouts, strict=True)]
    weights: Any = p2c_attention_weights(
        heads,
        [key for key, _ in padded],
        gates=attention.gates(query),
        normalization=normalization,
        key_masks=[mask for _, mask in padded],
        softmax_scale=scale,
    )
    return tuple(weight.mean(1) * is_query[..., None] for weight in weights)


def _padded_heads(tokens: Packed) -> tuple[Tensor, Tensor]:
    """`(T, H, D)` as `(U, H, L, D)`, 0 where padded, and the bool mask `(U, L)` of the tokens; L is at least 1."""
    places = tokens.cu_seq[:-1, None] + torch.arange(max(tokens.max_len, 1), device=tokens.cu_seq.device)
    mask = places < tokens.cu_seq[1:, None]
    padding = tokens.values.new_zeros(1, *tokens.values.shape[1:])
    rows = torch.cat([tokens.values, padding])[torch.where(mask, places, len(tokens.values))]
    return rows.transpose(1, 2), mask


def fusion_weights(alpha: Tensor | None, present: Tensor) -> Tensor | None:
    """The share of each modality's descriptor in A(u), `(M,)`, summing to 1; None for a fusion without alpha.

    Eq. 2 mixes alpha[m, n] of f_n and 1 - alpha[m, n] of f_m into slot m; element-wise coefficients are averaged.

    Args:
        alpha: `(M, M)` or `(M, M, d)` of one utterance.
        present: bool `(M,)`.
    """
    if alpha is None:
        return None
    if alpha.dim() == 3:
        alpha = alpha.mean(-1)
    pairs = present[:, None] & present[None] & ~torch.eye(len(present), dtype=torch.bool, device=present.device)
    taken = torch.where(pairs, alpha.double(), 0.0)
    kept = torch.where(pairs, 1 - alpha.double(), 0.0)
    weights = taken.sum(0) + kept.sum(1)
    if int(present.sum()) < 2:  # a lone modality passes unchanged
        weights = present.double()
    return (weights / weights.sum().clamp(min=1)).cpu()


def modality_effects(perturbation: Perturbation) -> dict[str, Tensor]:
    """The prediction without each present modality: modality -> probabilities `(C,)`."""
    names = perturbation.model.modalities
    return {
        name: perturbation.without(name) for name, here in zip(names, perturbation.present, strict=True) if bool(here)
    }


def context_effects(perturbation: Perturbation) -> Tensor:
    """The prediction without each other utterance, `(N, C)`; its own row is the prediction itself."""
    size = len(perturbation.speaker)
    kept = ~torch.eye(size, dtype=torch.bool)
    kept[perturbation.position, perturbation.position] = True
    return perturbation.among(kept)


def speaker_effects(perturbation: Perturbation, dialogue: Dialogue) -> dict[str, Tensor]:
    """The prediction without a speaker's other utterances: speaker -> probabilities `(C,)`."""
    speakers = list(dict.fromkeys(utterance.speaker for utterance in dialogue.utterances))
    kept = torch.tensor([[u.speaker != name for u in dialogue.utterances] for name in speakers])
    kept[:, perturbation.position] = True
    return dict(zip(speakers, perturbation.among(kept), strict=True))
