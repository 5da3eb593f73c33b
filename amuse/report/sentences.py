"""The words behind the vectors of a frozen text encoder, so that an explanation can leave each of them out."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from amuse.config import DataConfig
from amuse.data.conversation import Dialogue
from amuse.data.load import words_modality
from amuse.data.standardize import Standardizer
from amuse.encoders.text import WordReader, Words
from amuse.explain import Sentence
from amuse.explain.sentences import split_words


def sentences(
    dialogue: Dialogue,
    position: int,
    data: DataConfig,
    standardizer: Standardizer | None,
    reader: Callable[[], WordReader],
) -> dict[str, Sentence]:
    """Stream -> the words of one utterance, where the stream is one vector per utterance; empty for other streams.

    Args:
        dialogue: With features and words.
        position: Index of the utterance.
        data: The run's settings of the text encoder.
        standardizer: That of the run.
        reader: Gives the run's text encoder; only called if it is needed.
    """
    utterance, stream = dialogue.utterances[position], words_modality(data)
    if stream is None or stream not in utterance.features or not data.pool or data.encoder_mode != "frozen":
        return {}
    if not split_words(utterance.text or ""):
        return {}
    first = max(position - data.context, 0)
    earlier = [Words(each.speaker, each.text) for each in dialogue.utterances[first:position]]

    def encode(texts: Sequence[str]) -> Tensor:
        rows = [said[-1] for said in reader()([[*earlier, Words(utterance.speaker, text)] for text in texts])]
        vectors = torch.cat([row for row in rows if row is not None])
        if len(vectors) < len(texts):
            raise ValueError(f"utterance {utterance.id}: the text encoder reads none of the words in {texts}")
        return vectors if standardizer is None else standardizer.transform(stream, vectors)

    return {stream: Sentence(utterance.text or "", encode)}
