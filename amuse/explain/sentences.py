"""The words behind a stream that has one vector per utterance, encoded again without some of them."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from unicodedata import category, east_asian_width

import torch
from torch import Tensor

MARKS = ("Mn", "Me", "Cf")  # accents, emoji variations, joiners


class Sentence:
    """Words as features of a stream, each of which can be left out.

    Where an encoder gives one vector per utterance, no word has a token of its own: what it contributed shows when the
    others are encoded without it. Each selection of words is encoded once.

    Args:
        text: The words of the utterance.
        encode: From texts to features `(d,)` of each as the model reads them (standardised); None for a text in which
            the encoder reads nothing, as without any word.

    Raises:
        ValueError: No word.
    """

    def __init__(self, text: str, encode: Callable[[Sequence[str]], Iterable[Tensor | None]]) -> None:
        self.parts = split_words(text)
        if not self.parts:
            raise ValueError(f"text: expected at least one word, got {text!r}")
        self.encode = encode
        self._known: dict[tuple[bool, ...], Tensor | None] = {(False,) * len(self.parts): None}

    @property
    def words(self) -> list[str]:
        return [part.strip() for part in self.parts]

    @property
    def count(self) -> int:
        """Number of words."""
        return len(self.parts)

    def __call__(self, kept: Tensor) -> Tensor:
        """Features `(S, 1, d)` of S selections of the words, bool `(S, 1, count)`; zeros where `shown` is False.

        Raises:
            ValueError: The encoder reads nothing in the whole text.
        """
        whole = self._vectors([(True,) * self.count])[0]
        if whole is None:
            raise ValueError("encode: expected features of the whole text, got None")
        nothing = torch.zeros_like(whole)
        vectors = self._vectors(self._rows(kept))
        return torch.stack([nothing if each is None else each for each in vectors])[:, None].to(kept.device)

    def shown(self, kept: Tensor) -> Tensor:
        """Which selections have features, bool `(S, 1)`: those in which the encoder reads something."""
        return torch.tensor([[each is not None] for each in self._vectors(self._rows(kept))], device=kept.device)

    def _rows(self, kept: Tensor) -> list[tuple[bool, ...]]:
        return [tuple(row) for row in kept[:, 0].tolist()]

    def _vectors(self, rows: list[tuple[bool, ...]]) -> list[Tensor | None]:
        missing = [row for row in dict.fromkeys(rows) if row not in self._known]
        if missing:
            texts = ["".join(part for part, stays in zip(self.parts, row, strict=True) if stays) for row in missing]
            self._known.update(zip(missing, self.encode([text.strip() for text in texts]), strict=True))
        return [self._known[row] for row in rows]


def split_words(text: str) -> list[str]:
    """The words of a text as `begins_word` tells them, each with what follows it; together they are the text."""
    begins = [index for index in range(len(text)) if begins_word(text, index)]
    return [text[begin:end] for begin, end in pairwise([0, *begins[1:], len(text)])] if begins else []


def begins_word(text: str, index: int) -> bool:
    """Whether a word begins at `text[index]`: at the start, after a space, and on either side of a wide sign.

    Wide signs (Chinese, Japanese and Korean ones, and emoji) are thus words of their own. Accents, variations of emoji
    and signs that cannot be seen begin no word, and what follows them is judged by the sign before them.
    """
    sign = text[index : index + 1]
    if sign and (sign.isspace() or _attaches(sign)):
        return False
    before = index - 1
    while before >= 0 and _attaches(text[before]):
        before -= 1
    return before < 0 or text[before].isspace() or "W" in map(east_asian_width, text[before] + sign)


def _attaches(sign: str) -> bool:
    return category(sign) in MARKS or not (sign.isspace() or sign.isprintable())
