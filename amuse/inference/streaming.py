"""Real time: one prediction per utterance as it arrives, equal to that of the whole dialogue in one batch.

Needs a causal model: `temporal: attention` with `causal: true`, or `temporal: none`.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor

from amuse.config import DataConfig
from amuse.data.batch import collate
from amuse.data.conversation import Dialogue, Utterance
from amuse.data.load import words_modality
from amuse.data.standardize import Standardizer
from amuse.encoders.text import WordReader, Words
from amuse.encoders.words import check_text_weights
from amuse.evaluation.calibration import load_temperature
from amuse.evaluation.load import load_best
from amuse.inference.outcome import Prediction
from amuse.model.amuse import Amuse
from amuse.model.stages import JoinedWeights, Readers, keys_and_values
from amuse.model.temporal import ContextLayer, sinusoids
from amuse_kernels.nn import ProjectedSource


def looks_ahead(model: Amuse) -> bool:
    """Whether later utterances change the prediction for earlier ones."""
    config = model.config
    return config.temporal == "bilstm" or (config.temporal == "attention" and not config.causal)


class StreamingSession:
    """One conversation, utterance by utterance.

    Of earlier utterances only the keys and values of the temporal stage are kept, so earlier utterances are not
    processed again. `model.config.context_window` bounds how many are kept, as in a batch. What can be made of the
    model's weights alone is made once, too, so it must not be trained during a conversation; `reset` begins a new one.

    Args:
        model: With a causal temporal stage.
        standardizer: The training's standardizer of features; None = features arrive as the model reads them.
        temperature: Calibrates the probabilities, see `amuse.evaluation.calibration`.
        text: The training's settings of the text encoder; None = words arrive as features.

    Raises:
        ValueError: A model that needs the future, or one with random coefficients.
    """

    needs_causal = True

    def __init__(
        self,
        model: Amuse,
        standardizer: Standardizer | None = None,
        temperature: float = 1.0,
        text: DataConfig | None = None,
    ) -> None:
        if self.needs_causal and looks_ahead(model):
            raise ValueError("model: its context looks into the future; train with temporal 'attention' and causal")
        if model.config.fusion == "random":
            raise ValueError("model: fusion 'random' draws new coefficients in each call")
        self.model, self.standardizer, self.temperature = model.eval(), standardizer, temperature
        self.device = next(model.parameters()).device
        self.words_as = None if text is None else words_modality(text)
        self.reader: WordReader | None = None
        if text is not None and self.words_as in model.spec.modalities:
            self.reader = WordReader(text, self.device)
        self.reset()

    @classmethod
    def from_run(cls, folder: str | Path) -> Self:
        """With the best model of a run, its standardizer, its temperature and its text encoder.

        Raises:
            FileNotFoundError: No such run.
            ValueError: The text encoder has other weights here than where the run's data were prepared.
        """
        model, standardizer, config = load_best(folder)
        if words_modality(config.data) in model.spec.modalities:
            check_text_weights(folder, config.data)
        return cls(model, standardizer, load_temperature(folder), config.data)

    def reset(self) -> None:
        """Begin a new conversation."""
        self.position = 0
        self.context: list[Words] = []  # the last utterances, which the text encoder reads with the next one
        self.speakers: dict[str, int] = {}
        self.joined = JoinedWeights()
        layers: Any = self.model.temporal.layers if self.model.config.temporal == "attention" else []
        window = self.model.config.context_window
        self.layers = [LayerCache(cast(ContextLayer, layer), window, self.joined) for layer in layers]

    @torch.inference_mode()
    def push(self, utterance: Utterance) -> Prediction:
        """Predict the next utterance; its label, if any, is not read.

        Raises:
            ValueError: Features of other widths than the model's, or an utterance without any modality of the model.
        """
        x = self.model.temporal.embed(self._fused(utterance))  # (1, d)
        parts = [x]
        if self.layers:
            speaker = self._speaker(utterance)
            position = torch.tensor([self.position], device=self.device)
            context = (x + sinusoids(position, x.shape[-1]).to(x.dtype))[:, None]
            for layer in self.layers:
                context = layer.step(context, torch.tensor([[speaker]], device=self.device))
            parts.append(context[:, 0])
        self.position += 1
        return self._prediction(torch.cat(parts, dim=-1))

    def _fused(self, utterance: Utterance) -> Tensor:
        """The fused descriptor `(1, F)` of an utterance, before any context."""
        model = self.model
        utterance = self._with_words(utterance)
        if not set(utterance.features) & set(model.spec.modalities):
            raise ValueError(
                f"utterance {utterance.id!r}: expected features of some of {', '.join(model.spec.modalities)}, "
                f"got {', '.join(utterance.features) or 'none'}"
                f"{'' if self.reader else '; this session cannot encode words, see text'}"
            )
        if self.standardizer is not None:
            features = {m: self.standardizer.transform(m, x) for m, x in utterance.features.items()}
            utterance = replace(utterance, features=features)
        batch = collate([Dialogue("stream", [utterance])], model.spec.modalities)
        if self.device.type != "cpu":
            batch = batch.to(self.device)
        descriptors, _, present = model.describe(batch, self.joined)
        return model.fuse(descriptors, present)[0]

    def _speaker(self, utterance: Utterance) -> int:
        """The speaker's number by first appearance."""
        return self.speakers.setdefault(utterance.speaker, len(self.speakers))

    def _prediction(self, context: Tensor) -> Prediction:
        """The prediction that follows from the temporal stage's output `(1, D)`."""
        logits = self.model.classifier(context)[0].float().cpu()
        return Prediction.of(logits, self.model.spec.label_names, self.temperature)

    def _with_words(self, utterance: Utterance) -> Utterance:
        """The utterance with its words as features, if it has words and the model reads them."""
        if self.reader is None or self.words_as is None:
            return utterance
        words = [*self.context, Words(utterance.speaker, utterance.text)]
        length = self.reader.config.context
        self.context = words[-length:] if length else []
        if not utterance.text or self.words_as in utterance.features:
            return utterance
        encoded = self.reader.newest(words)
        if encoded is None:
            return utterance
        return replace(utterance, features={**utterance.features, self.words_as: encoded})


class LayerCache:
    """A `ContextLayer` with the keys and values of the utterances so far, at most the last `window` ones."""

    def __init__(self, layer: ContextLayer, window: int | None, joined: JoinedWeights) -> None:
        self.layer, self.window, self.joined = layer, window, joined
        self.readers: Readers = [(layer.attention, p) for p in range(len(layer.RELATIONS))]
        self.heads: Tensor | None = None  # keys and values of each source in turn, (2 P, 1, H, n, D)
        self.speakers: Tensor | None = None  # (1, n)

    def step(self, x: Tensor, speaker: Tensor) -> Tensor:
        """The layer's output for the newest utterance, from its state `(1, 1, d)` and speaker `(1, 1)`."""
        attention = self.layer.attention
        y = self.layer.attention_norm(x)
        new = keys_and_values(y[0], self.readers, self.joined)  # (1, 2 P, H, D)
        self.heads = self._grown(self.heads, new.permute(1, 0, 2, 3)[:, :, :, None], dim=3)
        self.speakers = self._grown(self.speakers, speaker, dim=1)
        heads = self.heads.unbind()
        attended = attention.attend(
            attention.project_query(y),
            [ProjectedSource(key, value) for key, value in zip(heads[::2], heads[1::2], strict=True)],
            gates=attention.gates(y),
            query_groups=speaker,
            key_groups=[self.speakers] * len(self.readers),
            relations=self.layer.RELATIONS,
        )
        return self.layer.finish(x, attention.finish(attended))

    def _grown(self, old: Tensor | None, new: Tensor, dim: int) -> Tensor:
        grown = new if old is None else torch.cat([old, new], dim)
        if self.window is None:
            return grown
        count = min(grown.shape[dim], self.window)
        return grown.narrow(dim, grown.shape[dim] - count, count)
