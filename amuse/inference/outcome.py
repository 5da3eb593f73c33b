"""The prediction that follows from the logits of one utterance."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor


@dataclass
class Prediction:
    """The prediction that follows from one utterance's logits.

    Attributes:
        label: Name of the most probable class; None for regression.
        confidence: Its probability, with the temperature; None for regression.
        probabilities: Class name -> probability; empty for regression.
        value: The regression output; None for classes.
        logits: `(C,)`.
    """

    label: str | None
    confidence: float | None
    probabilities: dict[str, float]
    value: float | None
    logits: Tensor

    @classmethod
    def of(cls, logits: Tensor, label_names: Sequence[str] | None, temperature: float) -> Self:
        """From logits `(C,)`, or `(1,)` for regression, where `label_names` is None."""
        if label_names is None:
            return cls(None, None, {}, logits.item(), logits)
        probabilities = (logits.float() / temperature).softmax(-1)
        named = dict(zip(label_names, probabilities.tolist(), strict=True))
        label = label_names[int(probabilities.argmax())]
        return cls(label, named[label], named, None, logits)
