"""Explanation of the prediction for one utterance: attribution, fidelity, fusion, attention, counterfactuals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amuse.data.batch import collate
from amuse.data.conversation import Dialogue
from amuse.explain.attribution import METHODS, Attribution
from amuse.explain.fidelity import Fidelity, measure
from amuse.explain.groups import Group, feature_groups
from amuse.explain.influence import attention_flow, context_effects, fusion_weights, modality_effects, speaker_effects
from amuse.explain.perturbation import Perturbation
from amuse.explain.pictures import Pictures
from amuse.explain.sentences import Sentence
from amuse.model.amuse import Amuse


@dataclass(frozen=True)
class ExplainOptions:
    """How scores are computed; the same options give the same scores.

    Attributes:
        method: "lime" | "shap" | "occlusion" | "gradients".
        samples: Perturbations (lime, shap) or steps of the integral (gradients) per utterance.
        seed: Seed of the perturbations and of the fidelity.

    Raises:
        ValueError: An unknown method, or fewer than two samples.
    """

    method: str = "lime"
    samples: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {self.method!r}")
        if self.samples < 2:
            raise ValueError(f"samples: expected at least 2, got {self.samples}")

    def __str__(self) -> str:
        return f"{self.method}, {self.samples} samples, seed {self.seed}"


DEFAULTS = ExplainOptions()


@dataclass
class Explanation:
    """Why one utterance got its prediction. C classes (1 for regression), G groups, N utterances, M modalities.

    Attributes:
        probabilities: `(C,)`, or the value of a regression `(1,)`.
        target: The explained class; 0 for regression.
        groups: Words, segments, frames or regions, one per score.
        scores: float64 `(G,)` in units of the output; positive raised it, negative lowered it.
        options: How the scores were computed.
        fidelity: How far they can be trusted.
        fusion: `(M,)` share of each modality in the fused descriptor; None for a fusion without coefficients.
        attention: (central, peripheral) modality -> `(L,)` mean weight that each peripheral token receives.
        without_modality: Modality -> the output `(C,)` without it.
        without_utterance: `(N, C)`, the outputs without each other utterance; its own row is `probabilities`.
        without_speaker: Speaker -> the output `(C,)` without their other utterances.
    """

    probabilities: Tensor
    target: int
    groups: list[Group]
    scores: Tensor
    options: ExplainOptions
    fidelity: Fidelity
    fusion: Tensor | None
    attention: dict[tuple[str, str], Tensor]
    without_modality: dict[str, Tensor]
    without_utterance: Tensor
    without_speaker: dict[str, Tensor]

    def of_stream(self, stream: str) -> list[tuple[Group, float]]:
        """Groups of one stream with their scores."""
        pairs = zip(self.groups, self.scores.tolist(), strict=True)
        return [(group, score) for group, score in pairs if group.stream == stream]


def explain(
    model: Amuse,
    dialogue: Dialogue,
    position: int,
    options: ExplainOptions = DEFAULTS,
    *,
    target: int | None = None,
    pieces: Mapping[str, Sequence[str | None]] | None = None,
    max_segments: int = 24,
    chunk: int = 128,
    temperature: float = 1.0,
    pictures: Mapping[str, Pictures] | None = None,
    sentences: Mapping[str, Sentence] | None = None,
) -> Explanation:
    """Explain the prediction for one utterance in its dialogue.

    Args:
        model: Trained; put into evaluation mode.
        dialogue: Prepared as in training (standardised).
        position: Index of the utterance in it.
        options: Method, number of samples and seed.
        target: Class to explain; None = the predicted one.
        pieces, max_segments: See `feature_groups`.
        chunk: Perturbations that are computed at once; bounds the memory.
        temperature: Divides the logits of a classifier.
        pictures: Stream -> the pictures of its tokens, to explain their regions; "gradients" explains whole tokens.
        sentences: Stream -> the words of its only token, to explain these; "gradients" explains the token.

    Raises:
        ValueError: An argument out of its range.
    """
    utterance = dialogue.utterances[position]
    used = {name: utterance.features[name] for name in model.spec.modalities if name in utterance.features}
    if options.method == "gradients":
        pictures, sentences = None, None
    groups = [g for g in feature_groups(utterance, pieces, max_segments, pictures, sentences) if g.stream in used]
    perturbation = Perturbation(model, dialogue, position, groups, chunk, temperature, pictures, sentences)
    without_utterance = context_effects(perturbation)
    probabilities = without_utterance[position]
    if target is None:
        target = int(probabilities.argmax())
    elif not 0 <= target < len(probabilities):
        raise ValueError(f"target: expected 0 to {len(probabilities) - 1}, got {target}")
    if groups:
        attribution = METHODS[options.method](perturbation, target, options.samples, options.seed)
        fidelity = measure(perturbation, attribution, options.seed)
    else:  # without a token, the prediction comes from the context alone
        value = float(probabilities[target])
        attribution = Attribution(options.method, target, torch.zeros(0, dtype=torch.float64), value)
        fidelity = Fidelity(float("nan"), value, value, value)
    alone = collate([Dialogue(dialogue.id, [utterance])], model.spec.modalities, perturbation.regression)
    flow = attention_flow(model, alone.to(perturbation.speaker.device))
    return Explanation(
        probabilities=probabilities,
        target=target,
        groups=groups,
        scores=attribution.scores,
        options=options,
        fidelity=fidelity,
        fusion=fusion_weights(perturbation.alpha, perturbation.present),
        attention={pair: weights[0].cpu() for pair, weights in flow.items()},
        without_modality=modality_effects(perturbation),
        without_utterance=without_utterance,
        without_speaker=speaker_effects(perturbation, dialogue),
    )
