"""The words behind a stream that has one vector per utterance, encoded again without some of them."""

from collections.abc import Callable, Sequence
from unicodedata import east_asian_width

import torch
from torch import Tensor


class Sentence:
    """Words as features of a stream, each of which can be left out.

    Where an encoder gives one vector per utterance, no word has a token of its own: what it contributed shows when the
    others are encoded without it. Each selection of words is encoded once.

    Args:
        text: The words of the utterance.
        encode: From texts to features `(N, d)` as the model reads them (standardised).

    Raises:
        ValueError: No word.
    """

    def __init__(self, text: str, encode: Callable[[Sequence[str]], Tensor]) -> None:
        self.parts = split_words(text)
        if not self.parts:
            raise ValueError(f"text: expected at least one word, got {text!r}")
        self.encode = encode
        self._known: dict[tuple[bool, ...], Tensor] = {}

    @property
    def words(self) -> list[str]:
        return [part.strip() for part in self.parts]

    @property
    def count(self) -> int:
        """Number of words."""
        return len(self.parts)

    def __call__(self, kept: Tensor) -> Tensor:
        """Features `(S, 1, d)` of S selections of the words, bool `(S, 1, count)`; anything for one without a word."""
        rows = [tuple(row) for row in kept[:, 0].tolist()]
        missing = [row for row in dict.fromkeys([*rows, (True,) * self.count]) if any(row) and row not in self._known]
        if missing:
            texts = ["".join(part for part, stays in zip(self.parts, row, strict=True) if stays) for row in missing]
            self._known.update(zip(missing, self.encode([text.strip() for text in texts]), strict=True))
        nothing = torch.zeros_like(self._known[(True,) * self.count])
        return torch.stack([self._known.get(row, nothing) for row in rows])[:, None].to(kept.device)


def split_words(text: str) -> list[str]:
    """The words of a text, each with the spaces after it; Chinese, Japanese and Korean signs are words of their own."""
    parts: list[str] = []
    for i, sign in enumerate(text):
        begins = i == 0 or text[i - 1].isspace() or "W" in (east_asian_width(text[i - 1]), east_asian_width(sign))
        if begins and not sign.isspace() and sign.isprintable():
            parts.append(sign)
        elif parts:
            parts[-1] += sign
    return parts
