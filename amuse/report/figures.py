"""Geometry and pictures of the report's figures; the template draws them."""

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from amuse.data.clock import clock
from amuse.encoders.signal import SAMPLE_RATE
from amuse.explain import Group
from amuse.report.content import KeyFrame, Region, Turn
from amuse.report.outcome import Outcome, ink

WEAK = 0.08  # scores below this share of the utterance's strongest one are not painted
FAINT = 0.2  # and regions below this one are not drawn
NUMBERED = 4  # regions of a picture that show their number, the strongest ones
WIDTH, LANE = 960, 46  # sizes of the timeline, in its own units
LEFT = 90  # speakers' names


def times(turns: list[Turn]) -> list[tuple[float, float]]:
    """Start and end of each turn; without times, each turn counts as one second."""
    known = [(t.utterance.start, t.utterance.end) for t in turns]
    if any(start is None or end is None for start, end in known):
        return [(float(i), i + 0.9) for i in range(len(turns))]
    return [(float(start or 0), float(end or 0)) for start, end in known]


def timeline(turns: list[Turn], outcome: Outcome) -> dict[str, Any]:
    """One lane per speaker, one block per utterance."""
    spans = times(turns)
    first, last = min(s for s, _ in spans), max(e for _, e in spans)
    scale = (WIDTH - LEFT - 10) / max(last - first, 1e-6)
    speakers = list(dict.fromkeys(turn.utterance.speaker for turn in turns))
    blocks = []
    for number, (turn, (start, end)) in enumerate(zip(turns, spans, strict=True), start=1):
        prediction = turn.explanation.probabilities
        fill = outcome.colour(prediction)
        x, width = LEFT + (start - first) * scale, max((end - start) * scale, 4)
        name = outcome.name(prediction)
        fits = int((width - 4) / 6.6)
        blocks.append(
            {
                "number": number,
                "x": round(x, 1),
                "y": LANE * speakers.index(turn.utterance.speaker) + 6,
                "width": round(width, 1),
                "fill": fill,
                "ink": ink(fill),
                "emotion": name,
                "short": name if len(name) <= fits else f"{name[: fits - 1]}…" if fits > 2 else "",
                "confidence": outcome.confidence(prediction),
                "speaker": turn.utterance.speaker,
            }
        )
    step = next(s for s in (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 10**9) if s * scale >= 60)
    timed = turns[0].utterance.start is not None
    marks = np.arange(np.ceil(first / step) * step, last, step).tolist() if timed else []
    ticks = [{"x": round(LEFT + (t - first) * scale, 1), "text": clock(t)} for t in marks]
    return {"speakers": speakers, "blocks": blocks, "ticks": ticks, "height": LANE * len(speakers) + 22, "lane": LANE}


@dataclass(frozen=True)
class Paint:
    """How scores of one utterance are shown.

    Attributes:
        strongest: The largest absolute score of the utterance.
        outcome: Words a score, and decides which is too small to be shown.
        reliable: Whether the explanation is reliable; scores of others are not painted.
    """

    strongest: float
    outcome: Outcome
    reliable: bool = True

    def mark(self, score: float) -> dict[str, Any]:
        """A score's sign ("up", "down", or "" without paint), its strength from 0 to 1, and its size in words."""
        shown = self.outcome.bar(score)
        strength = abs(score) / self.strongest if self.strongest > 0 else 0.0
        sign = shown["sign"] if self.reliable and strength >= WEAK else ""
        return {"sign": sign, "strength": round(min(strength, 1.0), 2), "points": shown["points"]}


def strip(scores: list[tuple[Group, float]], turn: Turn, paint: Paint) -> dict[str, Any]:
    """The segments of one stream as bars along the utterance, 600 units wide, 30 up and 30 down from the middle.

    The regions of a picture form one bar, the sum of their scores.
    """
    segments: dict[tuple[int, ...], tuple[Group, float]] = {}
    for group, score in scores:
        before = segments.get(group.tokens, (group, 0.0))[1]
        segments[group.tokens] = (group, before + score)
    total = sum(len(tokens) for tokens in segments)
    bars, done = [], 0
    for group, score in segments.values():
        shown = paint.mark(score)
        height = round(30 * shown["strength"], 1)
        x, width = 600 * done / total, 600 * len(group.tokens) / total
        done += len(group.tokens)
        name = group.name if group.cell is None else f"{group.stream} {group.tokens[0] + 1}"
        when = "" if group.start is None or group.end is None else f", {group.start:.1f} to {group.end:.1f} s"
        y = 30 - height if score > 0 else 30
        bars.append(
            {**shown, "x": round(x, 1), "y": y, "width": round(width, 1), "height": height, "name": name + when}
        )
    ranked = sorted((b for b in bars if b["sign"]), key=lambda b: -b["strength"])[:3]
    stream = scores[0][0].stream
    sound = stream == "audio" or len({group.stream for group in turn.explanation.groups}) == 1
    return {
        "stream": stream,
        "bars": bars,
        "told": "; ".join(f"{b['name']}: {b['points']}" for b in ranked) or "no segment stands out",
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


def sound(samples: np.ndarray) -> str:
    """Data URI of MP3, 32 kbit/s, of float samples at 16 kHz."""
    from amuse.media.tracks import pyav

    buffer = io.BytesIO()
    with pyav().open(buffer, "w", format="mp3") as out:
        stream = out.add_stream("mp3", rate=SAMPLE_RATE)
        stream.bit_rate = 32_000
        frame = pyav().AudioFrame.from_ndarray((np.clip(samples, -1, 1) * 32767).astype(np.int16)[None], "s16", "mono")
        frame.sample_rate = SAMPLE_RATE
        out.mux([*stream.encode(frame), *stream.encode(None)])
    return f"data:audio/mpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def spectrogram(mel: np.ndarray, columns: int = 240) -> str:
    """Data URI of a grey picture, low bands at the bottom, loud is dark."""
    columns = min(columns, mel.shape[1])
    shrunk = np.stack([part.mean(axis=1) for part in np.array_split(mel, columns, axis=1)], axis=1)
    low, high = np.percentile(shrunk, [5, 99.5])
    level = np.clip((shrunk - low) / max(high - low, 1e-6), 0, 1)
    return _data_uri((255 - 255 * level[::-1]).astype(np.uint8), "PNG")


def pictures(frame: KeyFrame, turn: Turn, paint: Paint) -> list[dict[str, Any]]:
    """Each stream's crop of a key frame, side by side, with the regions of large scores."""
    streams: dict[str, list[Region]] = {}
    for region in frame.regions:
        streams.setdefault(turn.explanation.groups[region.group].stream, []).append(region)
    if not streams:
        return [_picture("", frame, [], turn, paint)]
    return [_picture(stream, frame, regions, turn, paint) for stream, regions in sorted(streams.items(), reverse=True)]


def _picture(
    stream: str, frame: KeyFrame, regions: list[Region], turn: Turn, paint: Paint, width: int = 240
) -> dict[str, Any]:
    image, (left, top, right, bottom) = frame.image, (0.0, 0.0, 1.0, 1.0)
    if regions:
        left, top = min(r.x for r in regions), min(r.y for r in regions)
        right, bottom = max(r.x + r.width for r in regions), max(r.y + r.height for r in regions)
        rows, columns = image.shape[:2]
        image = image[round(top * rows) : round(bottom * rows), round(left * columns) : round(right * columns)]
    height = round(width * image.shape[0] / image.shape[1])
    groups, scores = turn.explanation.groups, turn.explanation.scores.tolist()
    shown = []
    for region in regions:
        mark = paint.mark(scores[region.group])
        if mark["sign"] and mark["strength"] >= FAINT:
            x, w = ((region.x - left) / (right - left) * width, region.width / (right - left) * width)
            y, h = ((region.y - top) / (bottom - top) * height, region.height / (bottom - top) * height)
            box = {"x": round(x, 1), "y": round(y, 1), "width": round(w, 1), "height": round(h, 1)}

            def inside(points: np.ndarray) -> np.ndarray:
                return (points - (left, top)) / (right - left, bottom - top) * (width, height)

            plate = 8.5 * len(mark["points"]) + 4
            place = (x + 2.5, y + 2.5)
            if region.number is not None:
                cx, cy = inside(np.array(region.number))
                place = (min(max(cx - plate / 2, 0), width - plate), min(max(cy - 9, 0), height - 18))
            shown.append(
                {
                    **mark,
                    **box,
                    "name": groups[region.group].name,
                    "numbered": False,
                    "path": "".join(_path(inside(polygon)) for polygon in region.outline),
                    "plate": {"x": round(place[0], 1), "y": round(place[1], 1), "width": plate},
                }
            )
    shown.sort(key=lambda r: r["strength"])  # the strongest are on top
    for strong in shown[-NUMBERED:]:
        strong["numbered"] = True
    return {
        "stream": stream,
        "uri": _data_uri(np.ascontiguousarray(image), "WEBP", width),
        "width": width,
        "height": height,
        "time": frame.time,
        "regions": shown,
        "told": "; ".join(f"{r['name']} {r['points']}" for r in shown[:-4:-1]) or "no region stands out",
    }


def _path(points: np.ndarray) -> str:
    """SVG path of a polygon."""
    return f"M{' '.join(f'{x:.1f},{y:.1f}' for x, y in points)}Z"


def _data_uri(array: np.ndarray, kind: str, width: int | None = None) -> str:
    """A picture, not wider than `width`."""
    try:
        from PIL import Image
    except ImportError:
        raise ImportError("pictures in reports need pillow: pip install amuse-kernels[explain]") from None
    image = Image.fromarray(array)
    if width is not None and image.width > width:
        image = image.resize((width, max(round(width * image.height / image.width), 1)))
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 70} if kind == "WEBP" else {"optimize": True}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
