"""The model as a function of the remaining parts of one utterance, or of its dialogue.

Up to the fusion the model processes each utterance on its own; only the temporal stage combines them. So the other
utterances are described once, the perturbed copies of this one are described together as the rows of a batch, and the
temporal stage reads each copy among the stored descriptors of its neighbours. The result is exactly the whole model's
output for the perturbed dialogue (tested), at a fraction of the cost.

A token that is left out is removed from its stream, and later tokens move up: the model sees a shorter stream, as it
does in training, and a stream without tokens is an absent modality. No substitute has to be chosen, and token ids and
features are treated alike. A region of a picture that is left out is covered, and the picture is encoded again; a
picture without any region left is a token that is left out. The words behind a single vector are encoded again without
those that are left out; where the encoder reads nothing in the others, the token is left out. Features of words that
were computed in context (by a frozen text encoder) still carry traces of the words that are left out.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from amuse.data.batch import Batch, collate
from amuse.data.conversation import Dialogue
from amuse.explain.groups import Group
from amuse.explain.pictures import Pictures
from amuse.explain.sentences import Sentence
from amuse.model.amuse import Amuse


class Perturbation:
    """One utterance of a dialogue, and the model's output for parts of it.

    Args:
        model: Trained; put into evaluation mode.
        dialogue: The whole dialogue, prepared as in training.
        position: Index of the utterance.
        groups: Those of `feature_groups`.
        chunk: Perturbations that are computed at once; bounds the memory.
        temperature: Divides the logits of a classifier.
        pictures: Stream -> the pictures of its tokens, for groups that are regions.
        sentences: Stream -> the words of its token, for groups that are words of it.

    Raises:
        ValueError: A position outside the dialogue, regions or words of a stream without pictures or sentence, whole
            tokens of one that has them, or a model that draws random coefficients in each call.
    """

    def __init__(
        self,
        model: Amuse,
        dialogue: Dialogue,
        position: int,
        groups: Sequence[Group],
        chunk: int = 128,
        temperature: float = 1.0,
        pictures: Mapping[str, Pictures] | None = None,
        sentences: Mapping[str, Sentence] | None = None,
    ) -> None:
        if not 0 <= position < len(dialogue):
            raise ValueError(f"position: expected 0 to {len(dialogue) - 1}, got {position}")
        if chunk < 1:
            raise ValueError(f"chunk: expected at least 1, got {chunk}")
        if model.config.fusion == "random":
            raise ValueError("model: fusion 'random' draws new coefficients in each call, so nothing explains it")
        self.model = model.eval()
        self.position, self.groups, self.chunk, self.temperature = position, list(groups), chunk, temperature
        self.regression = model.spec.label_names is None
        device = next(model.parameters()).device
        batch = collate([dialogue], model.spec.modalities, self.regression).to(device)
        self.speaker = batch.speaker
        shown = {name for name, layout in batch.layouts.items() if layout.lengths[position]}
        sources: dict[str, Pictures | Sentence] = {**(pictures or {}), **(sentences or {})}
        self.sources = {name: each for name, each in sources.items() if name in shown}
        self.features, self.masks, self.group_of = {}, {}, {}
        for name in batch.tokens:
            features, mask = batch.padded(name)
            length = max(int(batch.layouts[name].lengths[position]), 1)
            self.features[name], self.masks[name] = features[position, :length], mask[position, :length]
            cells = (self.sources[name].count,) if name in self.sources else ()
            self.group_of[name] = torch.full((length, *cells), -1, device=device)  # -1: never left out
        for index, group in enumerate(self.groups):
            if (group.cell is None) == (group.stream in self.sources):
                expected = "a region or word where the stream has pictures or a sentence, whole tokens elsewhere"
                raise ValueError(f"groups: expected {expected}, got {group.name!r} of {group.stream!r}")
            tokens = list(group.tokens)
            self.group_of[group.stream][tokens if group.cell is None else (tokens, group.cell)] = index
        with torch.no_grad():
            descriptors, _, present = model.describe(batch)
            self.fused, alpha = model.fuse(descriptors, present)  # (N, F)
        self.alpha = None if alpha is None else alpha[position]
        self.present = present[position]

    @torch.no_grad()
    def __call__(self, kept: Tensor) -> Tensor:
        """Probabilities `(S, C)` (regression: values `(S, 1)`) for bool `(S, G)`, True = the group is kept."""
        outputs = [
            self.evaluate(*self._remains(rows.to(self.speaker.device))) for rows in kept.bool().split(self.chunk)
        ]
        return torch.cat(outputs).cpu()

    @torch.no_grad()
    def without(self, modality: str) -> Tensor:
        """The output `(C,)` when the utterance lacks a modality of the model."""
        absent = self.model.groups[modality]
        masks = {name: mask[None] & (name not in absent) for name, mask in self.masks.items()}
        features = {name: tokens[None] for name, tokens in self.features.items()}
        return self.evaluate(features, masks)[0].cpu()

    @torch.no_grad()
    def among(self, kept: Tensor) -> Tensor:
        """The outputs `(S, C)` when the dialogue has only the utterances in each row of `kept`, bool `(S, N)`.

        Raises:
            ValueError: The utterance itself is not kept.
        """
        if not kept[:, self.position].all():
            raise ValueError(f"kept: expected utterance {self.position} itself in every row")
        kept = kept.cpu()
        _, utterance = kept.nonzero(as_tuple=True)
        return self._predict(self.fused[utterance.to(self.fused.device)], kept).cpu()

    def evaluate(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor:
        """The outputs `(S, C)` for S versions of the utterance: features `(S, L, d)`, bool masks `(S, L)`."""
        count, size = len(next(iter(masks.values()))), len(self.speaker)
        apart = torch.ones(count, dtype=torch.int64)
        versions = Batch.of_padded(features, masks, apart, self.speaker.new_zeros(count))
        descriptors, _, present = self.model.describe(versions)
        own, _ = self.model.fuse(descriptors, present)
        rows = self.fused.repeat(count, 1, 1)  # (S, N, F)
        rows = torch.cat([rows[:, : self.position], own[:, None], rows[:, self.position + 1 :]], dim=1)
        return self._predict(rows.flatten(0, 1), torch.ones(count, size, dtype=torch.bool))

    def _predict(self, fused: Tensor, kept: Tensor) -> Tensor:
        """The probabilities of the explained utterance in several versions of the dialogue.

        Args:
            fused: `(R, F)`, the utterances of the versions, one version after the other.
            kept: bool `(S, N)` on the host, which utterances each of the S versions has.
        """
        _, utterance = kept.nonzero(as_tuple=True)
        device = self.speaker.device
        batch = Batch.of({}, {}, kept.sum(1), self.speaker.cpu()[utterance]).to(device)
        context = self.model.temporal(fused, batch)
        logits = self.model.classifier(context[(utterance == self.position).to(device)]).float()
        return logits if self.regression else (logits / self.temperature).softmax(-1)

    def _remains(self, kept: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Features `(S, L, d)` or ids `(S, L)`, and which of these tokens are kept, bool `(S, L)`."""
        padded = torch.cat([kept, kept.new_ones(len(kept), 1)], dim=1)  # group -1 is the last column
        features, masks = {}, {}
        for name, group in self.group_of.items():
            visible = padded[:, group]  # (S, L), or (S, L, R) of pictures and sentences
            tokens = self.features[name]
            features[name] = tokens.expand(len(kept), *tokens.shape)
            if name in self.sources:
                features[name] = self.sources[name](visible)
                visible = self.sources[name].shown(visible)
            masks[name] = self.masks[name] & visible
        return features, masks
