"""From conversations to the inputs of AMuSE's transformers models."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature
from transformers.feature_extraction_utils import FeatureExtractionMixin

from amuse.config import DataConfig, from_dict
from amuse.data.batch import UNLABELLED, Batch, collate
from amuse.data.conversation import TOKEN_IDS, Conversations, Dialogue, Utterance
from amuse.data.standardize import Standardizer
from amuse.encoders.text import WordReader, Words
from amuse.inference.outcome import Prediction

EXAMPLE = '{"speaker": "Ann", "text": "Really?", "features": {...}}'


class AmuseProcessor(FeatureExtractionMixin):
    """Turns dialogues into one padded batch; also the `data_collator` of a Trainer.

    Args:
        modalities: Modality -> width of its features (0 = token ids), as the model's `data["modalities"]`.
        label_names: Class names in the order of the model; None = regression.
        text: Options of the text encoder, those of `amuse.config.DataConfig`: encoder, encoder_mode, layers, merge,
            pool, context, speakers, max_tokens. None = text arrives as features, or not at all. The encoder is not
            saved with the processor, only its name or folder.
        text_modality: The modality that words become.
        standardizer: Mean, deviation and clip of features, see `standardizer_dict`; None = features arrive as the model
            reads them.
        temperature: Divides the logits in `predictions`, see `amuse.evaluation.calibration`.
    """

    model_input_names = ("features", "masks", "utterances", "speakers")

    def __init__(
        self,
        modalities: Mapping[str, int],
        label_names: Sequence[str] | None = None,
        text: Mapping[str, Any] | None = None,
        text_modality: str = "text",
        standardizer: Mapping[str, Any] | None = None,
        temperature: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.modalities = dict(modalities)
        self.label_names = None if label_names is None else list(label_names)
        self.text = None if text is None else dict(text)
        self.text_modality = text_modality
        self.standardizer = None if standardizer is None else dict(standardizer)
        self.temperature = temperature
        if text is not None and text_modality not in modalities:
            raise ValueError(f"text_modality: expected one of {', '.join(modalities)}, got {text_modality!r}")
        self._text_config()
        self._transform()

    def __call__(
        self, dialogues: Sequence[Dialogue | Sequence[Mapping[str, Any]]], labels: bool = True
    ) -> BatchFeature:
        """One batch of dialogues, padded to the longest.

        Args:
            dialogues: `amuse.data.Dialogue`s, or lists of utterances as mappings with the fields of
                `amuse.data.Utterance`: `speaker`, `features` (modality -> `(tokens, width)`, or `(width,)`), `text`,
                `label` (name, index, or number of a regression; None = unlabelled).
            labels: False leaves the labels out, so that no loss is computed.

        Returns:
            `features`, `masks`, `utterances`, `speakers` and `labels`, see `AmuseForUtteranceClassification.forward`.

        Raises:
            ValueError: No dialogue, an unknown field, modality or label, or features of another width; of utterances as
                mappings, words that the model does not read, or a dialogue without anything that it reads. Says where.
        """
        given = [
            Dialogue(str(d), [self._utterance(entry, f"{d}_{u}") for u, entry in enumerate(_entries(dialogue, d))])
            for d, dialogue in enumerate(dialogues)
        ]
        pending = self._pending(given)
        modalities = {m: width for m, width in self.modalities.items() if not (pending and m == self.text_modality)}
        conversations = Conversations(given, self.label_names, modalities)
        for plain, dialogue in zip(dialogues, given, strict=True):
            if not isinstance(plain, Dialogue):  # a data set may have words and utterances that the model does not read
                self._check_readable(dialogue, pending)
        config = self._text_config()
        if config is not None and self.text_modality not in conversations.modalities:
            conversations = _with_text(conversations, config, self.text_modality, self.modalities[self.text_modality])
        standardizer = self._transform()
        if standardizer is not None:
            conversations = standardizer.apply(conversations)
        batch = collate(conversations.dialogues, self.modalities, conversations.regression)
        padded = _padded(batch, [len(dialogue) for dialogue in given], conversations.regression)
        if not labels:
            del padded["labels"]
        return padded

    def predictions(self, logits: Tensor, utterances: Tensor) -> list[list[dict[str, Any]]]:
        """For each utterance of each dialogue, its `label` and `probabilities`, or its `value`."""
        return [[self._prediction(row) for row in rows[real]] for rows, real in zip(logits, utterances, strict=True)]

    def _prediction(self, row: Tensor) -> dict[str, Any]:
        found = Prediction.of(row, self.label_names, self.temperature)
        return (
            {"value": found.value}
            if found.label is None
            else {"label": found.label, "probabilities": found.probabilities}
        )

    def _utterance(self, entry: Utterance | Mapping[str, Any], name: str) -> Utterance:
        """The utterance with a new id, since one dialogue may be in a batch twice."""
        if not isinstance(entry, Utterance):
            if not isinstance(entry, Mapping):
                raise ValueError(f"utterance {name}: expected {EXAMPLE}, got {entry!r}"[:200])
            unknown = set(entry) - {"id", "speaker", "features", "text", "label", "start", "end"}
            if unknown:
                raise ValueError(f"utterance {name}: unknown field {sorted(unknown)[0]!r}")
            entry = Utterance(**{"id": name, "speaker": "unknown", "features": {}, **entry})
        features = {modality: _tokens(value) for modality, value in entry.features.items()}
        return replace(entry, id=name, features=features, label=self._label(entry.label, name))

    def _label(self, label: Any, name: str) -> int | float | None:
        if isinstance(label, str):
            if self.label_names is None or label not in self.label_names:
                expected = "a number" if self.label_names is None else f"one of {', '.join(self.label_names)}"
                raise ValueError(f"utterance {name}, label: expected {expected}, got {label!r}")
            return self.label_names.index(label)
        if self.label_names is None and label == UNLABELLED:
            raise ValueError(f"utterance {name}, label: {label} means unlabelled in transformers; shift the labels")
        return cast(int | float | None, label.item() if isinstance(label, np.generic) else label)

    def _pending(self, dialogues: list[Dialogue]) -> bool:
        """Whether words are to be encoded: there is an encoder, and no utterance brings features of them."""
        there = any(self.text_modality in u.features for dialogue in dialogues for u in dialogue.utterances)
        return self.text is not None and not there

    def _check_readable(self, dialogue: Dialogue, pending: bool) -> None:
        """Refuse words that nothing encodes, and a dialogue of which the model would read nothing."""
        readable = ", ".join(f"{name!r} {_shape(width)}" for name, width in self.modalities.items())
        for utterance in dialogue.utterances:
            if utterance.text and not pending and self.text_modality not in utterance.features:
                if self.text is None:
                    raise ValueError(
                        f"utterance {utterance.id}, text: this model reads no words, expected features of {readable}, "
                        f"got {utterance.text[:40]!r}"
                    )
                raise ValueError(
                    f"utterance {utterance.id}, text: expected words in all utterances, or features of "
                    f"{self.text_modality!r} in all, got both"
                )
        if not any(
            (pending and u.text) or any(u.num_tokens(name) for name in self.modalities) for u in dialogue.utterances
        ):
            words = "words, or " if pending else ""
            raise ValueError(
                f"dialogue {dialogue.id}: expected an utterance with {words}features of {readable}, got none"
            )

    def _text_config(self) -> DataConfig | None:
        return None if self.text is None else from_dict(DataConfig, self.text, "text")

    def _transform(self) -> Standardizer | None:
        if self.standardizer is None:
            return None
        mean, std = (
            {name: torch.tensor(values) for name, values in self.standardizer[key].items()} for key in ("mean", "std")
        )
        return Standardizer(mean, std, self.standardizer["clip"])


def _with_text(conversations: Conversations, config: DataConfig, modality: str, width: int) -> Conversations:
    words = [[Words(u.speaker, u.text) for u in dialogue.utterances] for dialogue in conversations.dialogues]
    rows = [row for dialogue in _reader(json.dumps(asdict(config)))(words) for row in dialogue]
    named = zip(conversations.utterances(), rows, strict=True)
    return conversations.with_features(modality, width, {u.id: row for u, row in named if row is not None})


@lru_cache(maxsize=1)
def _reader(config: str) -> WordReader:
    """The encoder stays loaded between batches, but not in the processor, whose attributes are saved."""
    return WordReader(from_dict(DataConfig, json.loads(config)))


def standardizer_dict(standardizer: Standardizer) -> dict[str, Any]:
    """A standardizer as `AmuseProcessor` keeps it."""
    mean, std = (
        {name: values.tolist() for name, values in part.items()} for part in (standardizer.mean, standardizer.std)
    )
    return {"mean": mean, "std": std, "clip": standardizer.clip}


def _entries(dialogue: Dialogue | Sequence[Mapping[str, Any]], number: int) -> Sequence[Utterance | Mapping[str, Any]]:
    if isinstance(dialogue, Dialogue):
        return dialogue.utterances
    if isinstance(dialogue, str | bytes | Mapping) or not isinstance(dialogue, Sequence):
        raise ValueError(f"dialogue {number}: expected a list of utterances such as {EXAMPLE}, got {dialogue!r}"[:200])
    return dialogue


def _shape(width: int) -> str:
    return "token ids (L,)" if width == TOKEN_IDS else f"(L, {width})"


def _tokens(value: Any) -> Tensor:
    tokens = torch.as_tensor(np.asarray(value) if not isinstance(value, Tensor) else value)
    if not tokens.is_floating_point():
        return tokens.long()
    return torch.atleast_2d(tokens.float())


def _padded(batch: Batch, lengths: list[int], regression: bool) -> BatchFeature:
    utterances = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]

    def padded(rows: Tensor, filling: float = 0) -> Tensor:
        out = rows.new_full((*utterances.shape, *rows.shape[1:]), filling)
        out[utterances] = rows
        return out

    streams = {name: batch.padded(name) for name in batch.tokens}
    labels = batch.labels
    if labels is None:
        labels = torch.full((len(batch),), UNLABELLED, dtype=torch.float32 if regression else torch.int64)
    return BatchFeature(
        {
            "features": {name: padded(tokens) for name, (tokens, _) in streams.items()},
            "masks": {name: padded(mask) for name, (_, mask) in streams.items()},
            "utterances": utterances,
            "speakers": padded(batch.speaker),
            "labels": padded(labels.nan_to_num(nan=UNLABELLED), UNLABELLED),
        }
    )
