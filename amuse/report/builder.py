"""From a report's content to one HTML file without scripts, fonts or links to the network."""

from pathlib import Path
from typing import Any

from amuse.explain.groups import WORD_STREAMS
from amuse.files import write_text
from amuse.report import figures
from amuse.report.content import Content, Quality, Turn

SHOWN_CONTEXT = 6  # most influential other utterances


def write_report(content: Content, path: Path) -> None:
    """Write the report to `path`, at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(render(content), path)


def render(content: Content) -> str:
    """The report as HTML. All texts of the conversation are escaped: they are untrusted.

    Raises:
        ValueError: No utterance.
        ImportError: jinja2 is missing.
    """
    if not content.turns:
        raise ValueError("content.turns: expected at least one utterance, got none")
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError:
        raise ImportError("reports need jinja2: pip install amuse-kernels[explain]") from None
    environment = Environment(
        loader=PackageLoader("amuse.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = content.label_names
    return environment.get_template("report.html").render(
        content=content,
        emotions=[{"name": name, "fill": figures.colour(i)} for i, name in enumerate(names)],
        timeline=figures.timeline(content.turns, names),
        turns=[_turn(content, index) for index in range(len(content.turns))],
        quality=None if content.quality is None else _quality(content.quality),
        percent=lambda share: f"{100 * share:.0f} %",
    )


def _turn(content: Content, index: int) -> dict[str, Any]:
    turn, names = content.turns[index], content.label_names
    explained, utterance = turn.explanation, turn.utterance
    target = explained.target
    predicted = int(explained.probabilities.argmax())
    before = None if index == 0 else int(content.turns[index - 1].explanation.probabilities.argmax())
    label = utterance.label if isinstance(utterance.label, int) else None
    strongest = float(explained.scores.abs().max())
    streams = list(dict.fromkeys(group.stream for group in explained.groups))
    scored = {stream: explained.of_stream(stream) for stream in streams}
    worded = [stream for stream in streams if stream in WORD_STREAMS and len(scored[stream]) > 1]
    worded = [stream for stream in worded if scored[stream][0][0].start is None]
    words = [
        {"text": group.name, **figures.mark(score, strongest)} for stream in worded for group, score in scored[stream]
    ]
    return {
        "number": index + 1,
        "speaker": utterance.speaker,
        "text": utterance.text or "",
        "words": words,
        "emotion": names[predicted],
        "fill": figures.colour(predicted),
        "ink": figures.ink(figures.colour(predicted)),
        "confidence": float(explained.probabilities[predicted]),
        "change": None if before is None or before == predicted else names[before],
        "label": None if label is None else names[label],
        "right": label == predicted,
        "target": names[target],
        "probabilities": explained.probabilities.tolist(),
        "strips": [figures.strip(scored[s], turn, strongest) for s in streams if s not in worded],
        "frames": [figures.picture(frame, turn, strongest) for frame in turn.media.frames],
        "modalities": _modalities(content, turn),
        "context": _context(content, index),
        "speakers": _speakers(turn),
        "attention": _attention(turn),
        "fidelity": explained.fidelity,
        "method": explained.method,
        "samples": explained.samples,
        "seed": explained.seed,
    }


def _modalities(content: Content, turn: Turn) -> list[dict[str, Any]]:
    explained = turn.explanation
    rows = []
    for m, name in enumerate(content.modalities):
        without = explained.without_modality.get(name)
        if without is None:
            rows.append({"name": name, "present": False})
            continue
        change = float(explained.probabilities[explained.target] - without[explained.target])
        rows.append(
            {
                "name": name,
                "present": True,
                "share": None if explained.fusion is None else float(explained.fusion[m]),
                "change": _bar(change),
                "instead": content.label_names[int(without.argmax())],
            }
        )
    return rows


def _context(content: Content, index: int) -> list[dict[str, Any]]:
    explained = content.turns[index].explanation
    own = explained.probabilities[explained.target]
    changes = (own - explained.without_utterance[:, explained.target]).tolist()
    others = [j for j in range(len(changes)) if j != index and abs(changes[j]) >= 0.0005]
    chosen = sorted(sorted(others, key=lambda j: -abs(changes[j]))[:SHOWN_CONTEXT])
    return [
        {
            "number": j + 1,
            "speaker": content.turns[j].utterance.speaker,
            "text": content.turns[j].utterance.text or "",
            "later": j > index,
            "change": _bar(changes[j]),
        }
        for j in chosen
    ]


def _speakers(turn: Turn) -> list[dict[str, Any]]:
    explained = turn.explanation
    own = explained.probabilities[explained.target]
    return [
        {"name": name, "own": name == turn.utterance.speaker, "change": _bar(float(own - without[explained.target]))}
        for name, without in explained.without_speaker.items()
    ]


def _attention(turn: Turn) -> list[dict[str, Any]]:
    rows = []
    for (central, peripheral), weights in turn.explanation.attention.items():
        total = float(weights.sum())
        if total > 0:
            best = int(weights.argmax())
            token = next(
                (
                    group.name
                    for group in turn.explanation.groups
                    if group.stream == peripheral and best in group.tokens
                ),
                f"token {best + 1}",
            )
            rows.append(
                {"central": central, "peripheral": peripheral, "token": token, "share": float(weights[best]) / total}
            )
    return rows


def _bar(change: float) -> dict[str, Any]:
    """A signed change of a probability: its sign, its length in per cent and its points."""
    sign = "up" if change >= 0.0005 else "down" if change <= -0.0005 else ""
    return {"sign": sign, "length": round(100 * min(abs(change), 1.0), 1), "points": figures.points(change)}


def _quality(quality: Quality) -> dict[str, Any]:
    metrics = quality.metrics
    rows = [
        {
            "name": name,
            "f1": f1,
            "cells": [{"count": n, "share": n / max(sum(counts), 1), "hit": i == j} for j, n in enumerate(counts)],
        }
        for i, (name, f1, counts) in enumerate(zip(metrics.label_names, metrics.f1, metrics.confusion, strict=True))
    ]
    most = max(b.count for b in quality.bins)
    bins = [
        {"x": 200 * b.confidence, "y": 200 - 200 * b.accuracy, "radius": 3 + 7 * (b.count / most) ** 0.5, "bin": b}
        for b in quality.bins
    ]
    return {"metrics": metrics, "rows": rows, "bins": bins, "error": quality.calibration_error}
