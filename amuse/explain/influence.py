"""Influences on a prediction beyond single tokens: attention, fusion, modalities, the rest of the dialogue."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from amuse.data.batch import Batch
from amuse.data.conversation import Dialogue
from amuse.explain.perturbation import Perturbation
from amuse.model.amuse import Amuse
from amuse.model.stages import AttentionLayer


def attention_flow(model: Amuse, batch: Batch) -> dict[tuple[str, str], Tensor]:
    """How much each Central network m attends to the tokens of each Peripheral modality n (Eq. 1).

    The weights of `p2c_attention_weights`, gates applied, averaged over heads, layers and the tokens of m: they sum to
    the gate, 1 / |M| in the paper. High attention to a token does not imply that it changed the prediction.

    Args:
        model: Put into evaluation mode.
        batch: Of U utterances.

    Returns:
        (m, n) -> `(U, L_n)`; empty for a model without the Multimodal Attention Network.
    """
    if model.central is None:
        return {}
    masks = {
        name: torch.cat([batch.masks[stream] for stream in streams], dim=1) for name, streams in model.groups.items()
    }
    seen: dict[nn.Module, Any] = {}

    def record(module: nn.Module, arguments: Any, options: Any, _: Any) -> None:
        seen[module] = cast(Any, module).forward(*arguments, **options, need_weights=True)[1]

    attentions = [[cast(AttentionLayer, layer).attention for layer in cast(Any, net).layers] for net in model.central]
    modules = [attention for layers in attentions for attention in layers if attention is not None]
    hooks = [module.register_forward_hook(record, with_kwargs=True) for module in modules]
    try:
        with torch.no_grad():
            model.eval().describe(batch)
    finally:
        for hook in hooks:
            hook.remove()
    flow = {}
    for central, layers in zip(model.modalities, attentions, strict=True):
        others = [name for name in model.modalities if name != central]
        for p, peripheral in enumerate(others):
            weights = [seen[a][p] for a in layers if a is not None]  # each (U, L_m, L_n)
            if weights:
                rows = masks[central][..., None]
                total = torch.stack(weights).mean(0).masked_fill(~rows, 0.0).sum(1)
                flow[central, peripheral] = total / rows.sum(1).clamp(min=1)
    return flow


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
