"""Geometry and pictures of the report's figures; the template draws them."""

import base64
import io
from typing import Any

import numpy as np

from amuse.explain import Group
from amuse.report.content import KeyFrame, Turn

# Okabe and Ito's palette, told apart by colour-blind readers; the name of an emotion always stands beside its colour
COLOURS = ("#9a9a9a", "#e69f00", "#56b4e9", "#d55e00", "#f0e442", "#cc79a7", "#009e73", "#0072b2")
WEAK = 0.08  # scores below this share of the utterance's strongest one are not marked
WIDTH, LANE = 960, 46  # of the timeline, in its own units
LEFT = 90  # speakers' names


def colour(emotion: int) -> str:
    return COLOURS[emotion % len(COLOURS)]


def ink(background: str) -> str:
    """Black or white, whichever is readable on a colour `#rrggbb` (WCAG contrast)."""
    channels = [int(background[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000" if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else "#fff"


def times(turns: list[Turn]) -> list[tuple[float, float]]:
    """Start and end of each turn; without times turns count as one second each."""
    known = [(t.utterance.start, t.utterance.end) for t in turns]
    if any(start is None or end is None for start, end in known):
        return [(float(i), i + 0.9) for i in range(len(turns))]
    return [(float(start or 0), float(end or 0)) for start, end in known]


def timeline(turns: list[Turn], label_names: list[str]) -> dict[str, Any]:
    """One lane a speaker, one block an utterance."""
    spans = times(turns)
    first, last = min(s for s, _ in spans), max(e for _, e in spans)
    scale = (WIDTH - LEFT - 10) / max(last - first, 1e-6)
    speakers = list(dict.fromkeys(turn.utterance.speaker for turn in turns))
    blocks = []
    for number, (turn, (start, end)) in enumerate(zip(turns, spans, strict=True), start=1):
        explained = turn.explanation
        predicted = int(explained.probabilities.argmax())
        x, width = LEFT + (start - first) * scale, max((end - start) * scale, 4)
        name = label_names[predicted]
        fits = int((width - 4) / 6.6)
        blocks.append(
            {
                "number": number,
                "x": round(x, 1),
                "y": LANE * speakers.index(turn.utterance.speaker) + 6,
                "width": round(width, 1),
                "fill": colour(predicted),
                "ink": ink(colour(predicted)),
                "emotion": name,
                "short": name if len(name) <= fits else f"{name[: fits - 1]}…" if fits > 2 else "",
                "confidence": float(explained.probabilities.max()),
                "speaker": turn.utterance.speaker,
            }
        )
    step = next(s for s in (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 10**9) if s * scale >= 60)
    timed = turns[0].utterance.start is not None
    marks = np.arange(np.ceil(first / step) * step, last, step).tolist() if timed else []
    ticks = [{"x": round(LEFT + (t - first) * scale, 1), "text": clock(t)} for t in marks]
    return {"speakers": speakers, "blocks": blocks, "ticks": ticks, "height": LANE * len(speakers) + 22, "lane": LANE}


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def mark(score: float, strongest: float) -> dict[str, Any]:
    """How a score is shown: its sign, its strength from 0 to 1 and signed percentage points."""
    strength = abs(score) / strongest if strongest > 0 else 0.0
    sign = "" if strength < WEAK else "up" if score > 0 else "down"
    return {"sign": sign, "strength": round(strength, 2), "points": points(score)}


def points(change: float) -> str:
    """Signed percentage points, with a real minus sign."""
    return f"{100 * change:+.1f}".replace("-", "−")


def strip(scores: list[tuple[Group, float]], turn: Turn, strongest: float) -> dict[str, Any]:
    """The segments of one stream as bars along the utterance, 600 units wide, 30 up and 30 down from the middle."""
    total = sum(len(group.tokens) for group, _ in scores)
    bars, done = [], 0
    for group, score in scores:
        shown = mark(score, strongest)
        height = round(30 * shown["strength"], 1)
        x, width = 600 * done / total, 600 * len(group.tokens) / total
        done += len(group.tokens)
        when = "" if group.start is None or group.end is None else f", {group.start:.1f} to {group.end:.1f} s"
        y = 30 - height if score > 0 else 30
        bars.append(
            {**shown, "x": round(x, 1), "y": y, "width": round(width, 1), "height": height, "name": group.name + when}
        )
    ranked = sorted((b for b in bars if b["sign"]), key=lambda b: -b["strength"])[:3]
    stream = scores[0][0].stream
    sound = stream == "audio" or len({group.stream for group in turn.explanation.groups}) == 1
    return {
        "stream": stream,
        "bars": bars,
        "told": "; ".join(f"{b['name']}: {b['points']} points" for b in ranked) or "no segment stands out",
        "start": None if turn.utterance.start is None else f"{turn.utterance.start:.1f} s",
        "end": None if turn.utterance.end is None else f"{turn.utterance.end:.1f} s",
        "waveform": waveform(turn.media.waveform) if sound and turn.media.waveform is not None else None,
        "mel": spectrogram(turn.media.mel) if sound and turn.media.mel is not None else None,
    }


def waveform(samples: np.ndarray, columns: int = 200) -> str:
    """SVG path of the envelope, 600 wide, from 0 to 40."""
    parts = np.array_split(np.clip(samples, -1, 1), min(columns, len(samples)))
    peak = max(float(np.abs(samples).max()), 1e-3)
    x = np.linspace(0, 600, len(parts))
    top = [20 - 19 * float(part.max()) / peak for part in parts]
    bottom = [20 - 19 * float(part.min()) / peak for part in parts]
    there = [f"{a:.0f},{b:.1f}" for a, b in zip(x, top, strict=True)]
    back = [f"{a:.0f},{b:.1f}" for a, b in zip(x[::-1], bottom[::-1], strict=True)]
    return f"M{' '.join(there + back)}Z"


def spectrogram(mel: np.ndarray, columns: int = 240) -> str:
    """Data URI of a grey picture, low bands at the bottom, loud is dark."""
    columns = min(columns, mel.shape[1])
    shrunk = np.stack([part.mean(axis=1) for part in np.array_split(mel, columns, axis=1)], axis=1)
    low, high = np.percentile(shrunk, [5, 99.5])
    level = np.clip((shrunk - low) / max(high - low, 1e-6), 0, 1)
    return _data_uri((255 - 255 * level[::-1]).astype(np.uint8), "PNG")


def picture(frame: KeyFrame, turn: Turn, strongest: float, width: int = 240) -> dict[str, Any]:
    """A key frame, scaled, with the score of each region's segment at that time."""
    height = round(width * frame.image.shape[0] / frame.image.shape[1])
    regions = []
    for region in frame.regions:
        score = next(
            (
                score
                for group, score in turn.explanation.of_stream(region.stream)
                if group.start is not None and group.end is not None and group.start <= frame.time <= group.end
            ),
            None,
        )
        if score is not None:
            box = [round(s * v, 1) for s, v in zip((region.x, region.y), (width, height), strict=True)]
            size = [round(s * v, 1) for s, v in zip((region.width, region.height), (width, height), strict=True)]
            regions.append({**mark(score, strongest), "stream": region.stream, "box": box, "size": size})
    told = "; ".join(f"{r['stream']} {r['points']} points" for r in regions) or "no explained region"
    uri = _data_uri(frame.image, "JPEG", (width, height))
    return {"uri": uri, "width": width, "height": height, "time": frame.time, "regions": regions, "told": told}


def _data_uri(array: np.ndarray, kind: str, size: tuple[int, int] | None = None) -> str:
    try:
        from PIL import Image
    except ImportError:
        raise ImportError("pictures in reports need pillow: pip install amuse-kernels[explain]") from None
    image = Image.fromarray(array)
    if size is not None:
        image = image.resize(size)
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 70} if kind == "JPEG" else {"optimize": True}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
