"""The parts that an explanation scores: words, segments of the voice, frames or regions of the picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from amuse.data.conversation import Utterance
from amuse.explain.pictures import Pictures
from amuse.explain.sentences import Sentence

WORD_STREAMS = ("text", "words")
JOINED = "##"  # WordPiece: continues a word
SPACES = ("Ġ", "▁")  # byte-level BPE and SentencePiece: begins a word


@dataclass(frozen=True)
class Group:
    """Tokens of one stream, or a region or word of what they were made from, that are kept or left out together.

    Attributes:
        stream: Name of the token stream.
        tokens: Their indices in the stream.
        name: A word, the number of a segment or frame, or the region of a picture.
        start, end: Seconds of the recording if all tokens are equally long; None for words and unknown times.
        cell: Number of the region of its pictures, see `amuse.explain.Pictures`, or of the word of its sentence, see
            `amuse.explain.Sentence`; a token is left out with its last one. None for whole tokens.
    """

    stream: str
    tokens: tuple[int, ...]
    name: str
    start: float | None = None
    end: float | None = None
    cell: int | None = None


def feature_groups(
    utterance: Utterance,
    pieces: Mapping[str, Sequence[str | None]] | None = None,
    max_segments: int = 24,
    pictures: Mapping[str, Pictures] | None = None,
    sentences: Mapping[str, Sentence] | None = None,
) -> list[Group]:
    """The groups of an utterance, stream after stream; every token or region is in one group, or in none.

    Args:
        utterance: With features.
        pieces: Stream -> the word piece of each token, as a tokenizer writes it; the pieces of a word form one group,
            and a token whose piece is None (a special token) is in no group and never left out. Without pieces, the
            words of `utterance.text` name the tokens of a text stream if there are equally many.
        max_segments: Longer streams without words are divided into this many segments of neighbouring tokens.
        pictures: Stream -> the pictures of its tokens, whose regions are then the groups.
        sentences: Stream -> the words that its only token was made from, which are then the groups.

    Raises:
        ValueError: The number of pieces or pictures differs from the number of tokens, or a sentence has several.
    """
    if max_segments < 1:
        raise ValueError(f"max_segments: expected at least 1, got {max_segments}")
    groups: list[Group] = []
    for stream, tokens in utterance.features.items():
        if pictures is not None and stream in pictures:
            groups += _regions(stream, len(tokens), utterance, pictures[stream])
            continue
        if sentences is not None and stream in sentences:
            if len(tokens) != 1:
                raise ValueError(f"sentences[{stream!r}]: expected a stream with one token, got {len(tokens)}")
            groups += [Group(stream, (0,), word, cell=i) for i, word in enumerate(sentences[stream].words)]
            continue
        named = (pieces or {}).get(stream)
        if named is not None:
            if len(named) != len(tokens):
                raise ValueError(f"pieces[{stream!r}]: expected {len(tokens)}, one per token, got {len(named)}")
            groups += _words(stream, named)
            continue
        words = (utterance.text or "").split() if stream in WORD_STREAMS else []
        if words and len(words) == len(tokens):
            groups += [Group(stream, (i,), word) for i, word in enumerate(words)]
        else:
            groups += _segments(stream, len(tokens), utterance, max_segments)
    return groups


def _words(stream: str, pieces: Sequence[str | None]) -> list[Group]:
    marked = any(piece and piece.startswith(SPACES) for piece in pieces)
    words: list[tuple[str, list[int]]] = []
    for index, piece in enumerate(pieces):
        if piece is None:
            continue
        continues = not piece.startswith(SPACES) if marked else piece.startswith(JOINED)
        text = piece.removeprefix(JOINED).lstrip("".join(SPACES))
        if continues and words and words[-1][1][-1] == index - 1:
            words[-1] = (words[-1][0] + text, [*words[-1][1], index])
        else:
            words.append((text, [index]))
    return [Group(stream, tuple(tokens), text) for text, tokens in words]


def _segments(stream: str, length: int, utterance: Utterance, limit: int) -> list[Group]:
    return [
        Group(stream, tuple(range(first, stop)), f"{stream} {number}", *_times(utterance, length, first, stop))
        for number, (first, stop) in enumerate(_cuts(length, limit), start=1)
    ]


def _regions(stream: str, length: int, utterance: Utterance, pictures: Pictures) -> list[Group]:
    if len(pictures.images) != length:
        raise ValueError(f"pictures[{stream!r}]: expected {length}, one per token, got {len(pictures.images)}")
    cuts = _cuts(length, pictures.moments)
    groups = []
    for number, (first, stop) in enumerate(cuts, start=1):
        name = stream if len(cuts) == 1 else f"{stream} {number}"
        for cell, region in enumerate(pictures.regions.names):
            tokens, times = tuple(range(first, stop)), _times(utterance, length, first, stop)
            groups.append(Group(stream, tokens, f"{name}, {region}", *times, cell))
    return groups


def _cuts(length: int, limit: int) -> list[tuple[int, int]]:
    """Begin and end of at most `limit` equal runs of neighbours."""
    count = min(length, limit)
    return list(pairwise(i * length // count for i in range(count + 1))) if count else []


def _times(utterance: Utterance, length: int, first: int, stop: int) -> tuple[float | None, float | None]:
    if utterance.start is None or utterance.end is None:
        return None, None
    step = (utterance.end - utterance.start) / length
    return utterance.start + first * step, utterance.start + stop * step
