"""How a report words and colours predictions: an emotion and its probability, or a number."""

from typing import Any

from torch import Tensor

EMOTIONS = {
    "#9aa0a6": ("neutral", "neu"),
    "#b8cfc4": ("calm", "relaxed"),
    "#e4572e": ("anger", "angry", "ang"),
    "#9c5a3c": ("frustration", "frustrated", "fru"),
    "#8a9a2c": ("disgust", "disgusted", "dis"),
    "#9b72cf": ("fear", "fearful", "fea", "anxiety"),
    "#4f8fcf": ("sadness", "sad"),
    "#33b5b5": ("surprise", "surprised", "sur", "surprise-positive", "surprise-negative"),
    "#f2c12e": ("joy", "joyful", "happiness", "happy", "hap", "positive", "enjoyment", "amusement"),
    "#f59a3e": ("excitement", "excited", "exc", "enthusiasm"),
    "#c77fb0": ("contempt", "negative"),
}
"""Colour -> the names of the emotion that has it in every report. The name always appears next to its colour."""
OTHERS = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#0072b2", "#d8c84a", "#d55e00", "#7f8c8d")
"""Okabe and Ito's palette, for classes that are no emotion known here."""
DIVERGING = ("#0072b2", "#79b3d6", "#c9c9c9", "#e9b872", "#d98200")  # for numbers, from the lowest to the highest
FLOOR = 0.01  # share of the scale; smaller contributions are not painted, smaller effects not listed


def colours(names: list[str]) -> list[str]:
    """One colour `#rrggbb` per class: an emotion's own, another one where that is unknown or taken."""
    chosen: list[str] = []
    for name in names:
        own = [colour for colour, same in EMOTIONS.items() if name.strip().lower() in same]
        free = [colour for colour in (*own, *OTHERS, *EMOTIONS) if colour not in chosen]
        chosen.append(free[0] if free else OTHERS[len(chosen) % len(OTHERS)])
    return chosen


class Outcome:
    """Words, colours and units of predictions `(C,)` of one model.

    Args:
        label_names: Emotions; None for regression.
        scale: A large value of the output in regression; 1 for probabilities.
    """

    def __init__(self, label_names: list[str] | None, scale: float = 1.0) -> None:
        self.names, self.scale = label_names, scale
        self.colours = colours(label_names or [])

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
            return self.colours[int(prediction.argmax())]
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

    @property
    def floor(self) -> str:
        """The smallest change that is shown, in words."""
        return f"{FLOOR * self.scale:.2g}" if self.names is None else f"{100 * FLOOR:.0f} point"

    def bar(self, change: float) -> dict[str, Any]:
        """A signed change: its sign, its length in per cent of the scale, and its size in words."""
        share = change / self.scale
        sign = "up" if share >= FLOOR else "down" if share <= -FLOOR else ""
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
