"""How a report words and colours predictions: an emotion and its probability, or a number."""

from typing import Any

from torch import Tensor

# Okabe and Ito's palette, distinguishable for colour-blind readers; an emotion's name is always next to its colour
COLOURS = ("#9a9a9a", "#e69f00", "#56b4e9", "#d55e00", "#f0e442", "#cc79a7", "#009e73", "#0072b2")
DIVERGING = ("#0072b2", "#79b3d6", "#c9c9c9", "#e9b872", "#d98200")  # of numbers, from the lowest to the highest
NEGLIGIBLE = 0.0005  # shares of the scale below this are no change


class Outcome:
    """Words, colours and units of predictions `(C,)` of one model.

    Args:
        label_names: Emotions; None for regression.
        scale: A large value of the output in regression; 1 for probabilities.
    """

    def __init__(self, label_names: list[str] | None, scale: float = 1.0) -> None:
        self.names, self.scale = label_names, scale

    @classmethod
    def of(cls, label_names: list[str] | None, values: list[Tensor]) -> "Outcome":
        """For these predictions; in regression the largest one is the scale."""
        largest = 1.0 if label_names is not None else max(float(value.abs().max()) for value in values)
        return cls(label_names, max(largest, 1e-6))

    def name(self, prediction: Tensor) -> str:
        """The most probable emotion, or the number."""
        return number(float(prediction[0])) if self.names is None else self.names[int(prediction.argmax())]

    def target(self, target: int) -> str:
        """Name of the explained output."""
        return "the number" if self.names is None else self.names[target]

    def colour(self, prediction: Tensor) -> str:
        """`#rrggbb`"""
        if self.names is not None:
            return COLOURS[int(prediction.argmax()) % len(COLOURS)]
        share = min(max(float(prediction[0]) / self.scale, -1), 1)
        return DIVERGING[round((share + 1) / 2 * (len(DIVERGING) - 1))]

    def confidence(self, prediction: Tensor) -> float | None:
        return None if self.names is None else float(prediction.max())

    def level(self, value: float) -> str:
        """A probability in per cent, or a number."""
        return number(value) if self.names is None else f"{100 * value:.0f} %"

    def change(self, change: float) -> str:
        """Signed percentage points, or a signed number."""
        return number(change) if self.names is None else f"{100 * change:+.1f}".replace("-", "−")

    def bar(self, change: float) -> dict[str, Any]:
        """A signed change: its sign, its length in per cent of the scale, and its size in words."""
        share = change / self.scale
        sign = "up" if share >= NEGLIGIBLE else "down" if share <= -NEGLIGIBLE else ""
        return {"sign": sign, "length": round(100 * min(abs(share), 1.0), 1), "points": self.change(change)}


def number(value: float) -> str:
    """Signed, with a real minus sign."""
    return f"{value:+.2f}".replace("-", "−")


def ink(background: str) -> str:
    """Black or white, whichever is readable on a colour `#rrggbb` (WCAG contrast)."""
    channels = [int(background[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000" if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else "#fff"
