"""A recording as HTML for the page. The conversation's texts are untrusted and escaped."""

import html
from collections import Counter
from typing import Any

import torch

from amuse.data.clock import clock
from amuse.data.problems import LOSSES, NOTES, Problem
from amuse.demo.talk import Talk, row_prediction
from amuse.inference.prediction import PredictedUtterance, lacking
from amuse.report.outcome import Outcome, ink
from amuse.report.templates import template

SHOWN_CLASSES = 4  # bars per utterance, the most probable classes


def talk_html(talk: Talk) -> str:
    """A timeline with a lane per speaker, and the utterances with bars of their probabilities.

    Words, speakers and labels can be corrected once the whole recording is processed.
    """
    predictions = [row_prediction(row) for row in talk.rows]
    outcome = Outcome.of(talk.label_names, predictions)
    end = max(row.end for row in talk.rows)
    shown = [
        row_cells(number, row, prediction, outcome, end)
        for number, (row, prediction) in enumerate(zip(talk.rows, predictions, strict=True), 1)
    ]
    _, absent = lacking(talk.rows)
    for row, utterance, missing in zip(shown, talk.dialogue.utterances, absent, strict=True):
        row["absent"] = ", ".join(missing)
        row["label"] = utterance.label if talk.label_names is None or utterance.label is None else int(utterance.label)
    return template("amuse.demo", "talk.html").render(
        rows=shown,
        speakers=list(dict.fromkeys(row.speaker for row in talk.rows)),
        label_names=talk.label_names,
        complete=talk.complete,
        end=end,
        length=clock(end),
    )


def progress_html(stage: str, done: int = 0, count: int = 0) -> str:
    """The current activity, with a progress bar if the amount of work is known."""
    bar = f'<progress max="{count}" value="{done}"></progress>' if count else ""
    steps = f" {done} of {count}" if count else ""
    return f'<p role="status" class="stage">{html.escape(stage)}{steps}</p>{bar}'


def finished_html(talk: Talk) -> str:
    """The result for a recording in sentences: the number of utterances, and the problems."""
    utterances = f"{talk.count} utterance{'s' if talk.count != 1 else ''}"
    nowhere, _ = lacking(talk.rows)
    without = f" without {html.escape(', '.join(nowhere))}, which the model reads too" if nowhere else ""
    text = f"{utterances}{without}. Click a block to play it; <b>Why?</b> explains a prediction."
    return f'<p role="status" class="stage">{text}</p>{problems_html(talk.problems)}'


def problems_html(problems: list[Problem]) -> str:
    """One sentence per kind of problem, with the places where it occurred; empty without any."""
    if not problems:
        return ""
    lines = []
    for kind, count in Counter(problem.kind for problem in problems).items():
        sentence = (NOTES | LOSSES)[kind]
        first = next(problem for problem in problems if problem.kind == kind)
        places = f"{first.place}: {first.message}" + (f", and {count - 1} more" if count > 1 else "")
        lines.append(
            f"<li>{html.escape(sentence[:1].upper() + sentence[1:])}. <small>{html.escape(places)}</small></li>"
        )
    lost = any(problem.kind in LOSSES for problem in problems)
    title = "Something could not be used" if lost else "Notes"
    return (
        f'<details class="notes"{" open" if lost else ""}><summary>{title}</summary><ul>{"".join(lines)}</ul></details>'
    )


def error_html(message: str) -> str:
    return f'<p role="alert" class="stage failed">{html.escape(message)}</p>'


def frame_html(page: str, number: int) -> str:
    """A page in a frame without scripts, whose height the surrounding page may measure."""
    return (
        f'<iframe sandbox="allow-same-origin" title="Explanation of utterance {number}" '
        f'srcdoc="{html.escape(page)}"></iframe>'
    )


def row_cells(
    number: int,
    row: PredictedUtterance,
    prediction: torch.Tensor,
    outcome: Outcome,
    end: float,
    begin: float = 0.0,
) -> dict[str, Any]:
    """The page's values of an utterance, on a timeline from `begin` to `end` seconds."""
    left, right = max(row.start - begin, 0.0), max(row.end - begin, 0.0)
    fill = outcome.colour(prediction)
    ranked = sorted(row.probabilities.items(), key=lambda pair: -pair[1])
    return {
        "number": number,
        "start": row.start,
        "end": row.end,
        "clock": clock(row.start),
        "speaker": row.speaker,
        "text": row.text or "",
        "emotion": outcome.name(prediction),
        "sure": "" if row.probability is None else f"{100 * row.probability:.0f} %",
        "fill": fill,
        "ink": ink(fill),
        "left": round(100 * left / (end - begin), 2),
        "width": round(max(100 * (right - left) / (end - begin), 0.4), 2),
        "bars": [
            {"name": name, "percent": round(100 * p), "fill": outcome.colours[outcome.names.index(name)]}
            for name, p in ranked[:SHOWN_CLASSES]
            if outcome.names is not None
        ],
    }
