"""The words behind the vectors of a frozen text encoder, so that an explanation can leave each of them out."""

from bisect import bisect_left
from collections.abc import Callable, Sequence

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

    Words beyond `data.max_tokens`, which the encoder did not read, are none of them. Whatever is left out, the encoder
    reads the same context.

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
    first = max(position - data.context, 0)
    said = [Words(each.speaker, each.text) for each in dialogue.utterances[first : position + 1]]
    text, words = utterance.text or "", reader()
    sequence = words.sequence(said)
    if sequence is None or not split_words(text):
        return {}

    def encode(texts: Sequence[str]) -> list[Tensor | None]:
        vectors = words.versions(sequence, texts)
        if standardizer is not None:
            vectors = [None if each is None else standardizer.transform(stream, each) for each in vectors]
        return [None if each is None else each[0] for each in vectors]

    return {stream: Sentence(_read_part(text, sequence.stop - sequence.start, words), encode)}


def _read_part(text: str, length: int, reader: WordReader) -> str:
    """The words of a text that its first `length` word pieces are in."""
    if len(reader.pieces([text])[0]) <= length:
        return text
    parts = split_words(text)
    last = bisect_left(range(len(parts)), length, key=lambda i: len(reader.pieces(["".join(parts[: i + 1])])[0]))
    return "".join(parts[: last + 1])
