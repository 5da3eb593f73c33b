"""Renders a report's content as one HTML file without scripts, fonts or links to the network."""

import math
from pathlib import Path
from typing import Any

from amuse.evaluation.quality import Quality, RegressionQuality
from amuse.explain.fidelity import RELIABLE_R2
from amuse.explain.groups import WORD_STREAMS
from amuse.files import write_text
from amuse.inference import expressions
from amuse.media.mesh import FACE_PARTS
from amuse.report import figures
from amuse.report.content import Content, Turn
from amuse.report.outcome import Outcome, ink, number
from amuse.report.summary import summarize
from amuse.report.templates import template

SHOWN_CONTEXT = 6  # most influential other utterances


def write_report(content: Content, path: Path, *, sound: bool = False) -> None:
    """Write the report to `path` atomically. The arguments are those of `render`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(render(content, sound=sound), path)


def render(content: Content, only: int | None = None, *, sound: bool = False) -> str:
    """The report as HTML. The conversation's texts are untrusted and escaped.

    Args:
        content: The content.
        only: Position of a turn, to render its explanation alone.
        sound: Whether to embed the sound of each utterance, about 5 kB per second.

    Raises:
        ValueError: No utterance.
        ImportError: Jinja2, or for sound PyAV, is missing.
    """
    if not content.turns:
        raise ValueError("content.turns: expected at least one utterance, got none")
    page = template("amuse.report", "report.html")
    names = content.label_names or []
    outcome = Outcome.of(content.label_names, [turn.explanation.probabilities for turn in content.turns])
    return page.render(
        content=content,
        outcome=outcome,
        emotions=[{"name": name, "fill": fill} for name, fill in zip(names, outcome.colours, strict=True)],
        summary=summarize(content.turns, outcome),
        timeline=figures.timeline(content.turns, outcome),
        whole=only is None,
        turns=[_turn(content, i, outcome, sound) for i in (range(len(content.turns)) if only is None else [only])],
        sound=sound,
        quality=_quality(content.quality) if only is None else None,
        unit=" points" if names else "",
        percent=lambda share: f"{100 * share:.0f} %",
    )


def _turn(content: Content, index: int, outcome: Outcome, sound: bool) -> dict[str, Any]:
    turn = content.turns[index]
    explained, utterance = turn.explanation, turn.utterance
    predicted = outcome.name(explained.probabilities)
    before = None if index == 0 else outcome.name(content.turns[index - 1].explanation.probabilities)
    fill = outcome.colour(explained.probabilities)
    strongest = float(explained.scores.abs().max()) if explained.groups else 0.0
    paint = figures.Paint(strongest, outcome, explained.fidelity.reliable)
    streams = list(dict.fromkeys(group.stream for group in explained.groups))
    scored = {stream: explained.of_stream(stream) for stream in streams}
    worded = [stream for stream in streams if stream in WORD_STREAMS and scored[stream][0][0].start is None]
    worded = [s for s in worded if len(scored[s]) > 1 or scored[s][0][0].cell is not None]
    # regions of the whole utterance are shown in the pictures, not along the time axis
    still = [s for s in streams if scored[s][0][0].cell is not None and len({g.tokens for g, _ in scored[s]}) == 1]
    words = [{"text": group.name, **paint.mark(score)} for stream in worded for group, score in scored[stream]]
    return {
        "number": index + 1,
        "speaker": utterance.speaker,
        "text": utterance.text or "",
        "words": words,
        "emotion": predicted,
        "fill": fill,
        "ink": ink(fill),
        "confidence": outcome.confidence(explained.probabilities),
        "change": None if before == predicted or outcome.names is None else before,
        "size": outcome.bar(float(explained.probabilities[0]))["length"] / 100,
        "label": _label(utterance.label, outcome),
        "target": outcome.target(explained.target),
        "probabilities": explained.probabilities.tolist(),
        "strips": [figures.strip(scored[s], turn, paint) for s in streams if s not in worded + still],
        "parts": _parts(turn, outcome),
        "frames": [figures.pictures(frame, turn, paint) for frame in turn.media.frames],
        "sound": figures.sound(turn.media.waveform) if sound and turn.media.waveform is not None else None,
        "modalities": _modalities(content, turn, outcome),
        "context": _context(content, index, outcome),
        "speakers": _speakers(turn, outcome),
        "attention": _attention(turn),
        "reliable": explained.fidelity.reliable,
        "fidelity": _fidelity(turn, outcome),
        "expression": expressions.strongest(turn.expression) if turn.expression else "",
        "options": str(explained.options),
    }


def _parts(turn: Turn, outcome: Outcome) -> list[dict[str, Any]]:
    """The contribution of each part of the face, the strongest first; none if the explanation is not reliable."""
    explained = turn.explanation
    scored = [
        {"name": part, "change": outcome.bar(score), "size": abs(score)}
        for group, score in explained.of_stream("face")
        for part in FACE_PARTS
        if explained.fidelity.reliable and group.cell is not None and group.name.endswith(f", {part}")
    ]
    return sorted(scored, key=lambda row: -row["size"])


def _modalities(content: Content, turn: Turn, outcome: Outcome) -> list[dict[str, Any]]:
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
                "change": outcome.bar(change),
                "instead": outcome.name(without),
            }
        )
    return rows


def _context(content: Content, index: int, outcome: Outcome) -> list[dict[str, Any]]:
    explained = content.turns[index].explanation
    own = explained.probabilities[explained.target]
    changes = (own - explained.without_utterance[:, explained.target]).tolist()
    others = [j for j in range(len(changes)) if j != index and outcome.bar(changes[j])["sign"]]
    chosen = sorted(sorted(others, key=lambda j: -abs(changes[j]))[:SHOWN_CONTEXT])
    return [
        {
            "number": j + 1,
            "speaker": content.turns[j].utterance.speaker,
            "text": content.turns[j].utterance.text or "",
            "later": j > index,
            "change": outcome.bar(changes[j]),
        }
        for j in chosen
    ]


def _speakers(turn: Turn, outcome: Outcome) -> list[dict[str, Any]]:
    explained = turn.explanation
    own = explained.probabilities[explained.target]
    return [
        {
            "name": name,
            "own": name == turn.utterance.speaker,
            "change": outcome.bar(float(own - without[explained.target])),
        }
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
                    if group.stream == peripheral and best in group.tokens and group.cell is None
                ),
                f"{peripheral} {best + 1}",
            )
            rows.append(
                {"central": central, "peripheral": peripheral, "token": token, "share": float(weights[best]) / total}
            )
    return rows


def _fidelity(turn: Turn, outcome: Outcome) -> str:
    """How far the scores of an utterance can be trusted, in a sentence or two."""
    explained, level = turn.explanation, outcome.level
    fidelity = explained.fidelity
    if not explained.groups:
        return "The utterance has no words, sound or pictures; what is predicted comes from its context."
    if math.isnan(fidelity.r2):
        return "Whatever is left out of this utterance, the prediction stays the same."
    r2, needed = fidelity.r2, f"; at least {100 * RELIABLE_R2:.0f} % are needed"
    explains = f"{100 * max(r2, 0):.0f} % of how the prediction varies when parts are left out (R² {r2:.2f})"
    if not fidelity.reliable:
        order = ", but the order of the parts matters no more than a random one"
        why = needed if r2 < RELIABLE_R2 else order
        return f"Adding up the parts' contributions explains {explains}{why}. Nothing is coloured for this reason."
    target = outcome.target(explained.target)
    return (
        f"Adding up the parts' contributions explains {explains}. {target[:1].upper()}{target[1:]} "
        f"{'is' if outcome.names is None else 'keeps'} {level(fidelity.deletion)} on average while the strongest parts "
        f"are left out one after the other, {level(fidelity.random)} when the order is random, and "
        f"{level(fidelity.insertion)} while they are put in first."
    )


def _label(label: int | float | None, outcome: Outcome) -> str | None:
    if label is None:
        return None
    return number(label) if outcome.names is None else outcome.names[int(label)]


def _quality(quality: Quality | RegressionQuality | None) -> dict[str, Any] | None:
    if quality is None:
        return None
    if isinstance(quality, RegressionQuality):
        return _scatter(quality)
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
    return {"regression": False, "metrics": metrics, "rows": rows, "bins": bins, "error": quality.calibration_error}


def _scatter(quality: RegressionQuality) -> dict[str, Any]:
    """Predictions (y) over labels (x), both scaled to 0 to 200."""
    low = float(min(quality.labels.min(), quality.predictions.min()))
    high = float(max(quality.labels.max(), quality.predictions.max()))
    step = 200 / max(high - low, 1e-6)
    pairs = zip(quality.labels.tolist(), quality.predictions.tolist(), strict=True)
    dots = "".join(f"M{(label - low) * step:.0f} {200 - (value - low) * step:.0f}h0" for label, value in pairs)
    ticks = [{"at": 100.0 * i, "text": number(low + i * (high - low) / 2)} for i in range(3)]
    return {"regression": True, "metrics": quality.metrics, "dots": dots, "ticks": ticks}
