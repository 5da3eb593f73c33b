"""How right transcripts of bare recordings are: `python -m benchmarks.speech [--measure]`.

Conversations of `benchmarks.spoken` are transcribed with nothing given. With --measure the numbers in
results/speech.csv are measured again; without it, their table in docs/results_speech.md is written.
"""

import argparse
import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment
from tqdm import tqdm

from amuse.files import write_csv
from amuse.speech import SpeechOptions, SpokenUtterance, Transcriber
from benchmarks.pages import rewrite
from benchmarks.spoken import Spoken, SpokenLine, conversation

COMMAND = "python -m benchmarks.speech"
RESULTS = Path(__file__).parent / "results" / "speech.csv"
PAGE = Path(__file__).parents[1] / "docs" / "results_speech.md"
PAUSES = {"0.2 to 1.2 s": (0.2, 1.2), "0 to 0.3 s": (0.0, 0.3)}
TALKS, TURNS, FIRST_SEED = 5, 10, 100
"""Conversations of each kind; those of `amuse.speech.speakers` were chosen on seeds 0 to 7 and other voices."""
COLLAR = 0.25  # seconds around a true border that do not count for the diarization error
TOLERANCE = 0.3  # seconds that a right border may be off


@dataclass
class Quality:
    """How right a transcription is.

    Attributes:
        word_errors: Substitutions, insertions and deletions, by the number of true words.
        diarization_error: Missed speech, false alarms and wrong speakers, by the seconds of true speech.
        right_borders: Share of true utterances whose begin and end are both those of one that was found.
        right_count: Whether the number of speakers is right.
    """

    word_errors: float
    diarization_error: float
    right_borders: float
    right_count: float

    @classmethod
    def measure(cls, truth: Sequence[SpokenLine], found: Sequence[SpokenUtterance]) -> "Quality":
        true_words = [word for line in truth for word in plain_words(line.text)]
        words = [word for utterance in found for word in plain_words(utterance.text)]
        return cls(
            word_errors=edits(true_words, words) / len(true_words),
            diarization_error=diarization_error(truth, found),
            right_borders=right_borders(truth, found),
            right_count=float(len({u.speaker for u in found}) == len({line.speaker for line in truth})),
        )


def plain_words(text: str) -> list[str]:
    """Words without case, punctuation and contractions, so that "I'm" is "I am"."""
    text = text.lower().replace("\u2019", "'")
    for short, long in (("can't", "cannot"), ("won't", "will not"), ("n't", " not"), ("'m", " am"), ("'re", " are")):
        text = text.replace(short, long)
    return re.findall(r"\w+", text)


def edits(expected: Sequence[str], got: Sequence[str]) -> int:
    """Levenshtein's distance."""
    row = list(range(len(got) + 1))
    for i, word in enumerate(expected, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(got, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1]


def diarization_error(truth: Sequence[SpokenLine], found: Sequence[SpokenUtterance]) -> float:
    """With the best of all one-to-one mappings between true and found speakers, and `COLLAR`."""
    end = max([*(line.end for line in truth), *(utterance.end for utterance in found)]) + 1
    expected, got = _speakers_over_time(truth, end), _speakers_over_time(found, end)
    scored = np.ones(expected.shape[1], bool)
    for line in truth:
        for border in (line.start, line.end):
            scored[max(round(100 * (border - COLLAR)), 0) : round(100 * (border + COLLAR))] = False
    expected, got = expected[:, scored], got[:, scored]
    together = (expected[:, None] & got[None]).sum(-1)
    right = together[linear_sum_assignment(-together)].sum()
    # where somebody speaks and somebody was found, but not the same one; and where only one of both is so
    return float((np.maximum(expected.sum(0), got.sum(0)).sum() - right) / expected.sum())


def right_borders(truth: Sequence[SpokenLine], found: Sequence[SpokenUtterance]) -> float:
    return float(
        np.mean(
            [
                any(abs(u.start - line.start) <= TOLERANCE and abs(u.end - line.end) <= TOLERANCE for u in found)
                for line in truth
            ]
        )
    )


def _speakers_over_time(lines: Sequence[SpokenLine] | Sequence[SpokenUtterance], end: float) -> np.ndarray:
    """bool `(speakers, T)`, one column a hundredth of a second."""
    names = sorted({line.speaker for line in lines})
    active = np.zeros((len(names), round(100 * end)), bool)
    for line in lines:
        active[names.index(line.speaker), round(100 * line.start) : round(100 * line.end)] = True
    return active


def talks(speakers: int, pauses: tuple[float, float]) -> list[Spoken]:
    return [conversation(speakers, TURNS, FIRST_SEED + i, pauses) for i in range(TALKS)]


def measure(models: Sequence[str]) -> list[dict[str, str]]:
    rows = []
    for model in models:
        transcriber = Transcriber(SpeechOptions(model))
        for (pauses, limits), speakers in tqdm(list(product(PAUSES.items(), (1, 2, 3, 4))), desc=model):
            qualities = [
                Quality.measure(talk.lines, transcriber(talk.samples).utterances) for talk in talks(speakers, limits)
            ]
            means = {name: np.mean([getattr(q, name) for q in qualities]) for name in vars(qualities[0])}
            rows.append(
                {"model": model, "pauses": pauses, "speakers": str(speakers)}
                | {name: f"{100 * mean:.1f}" for name, mean in means.items()}
            )
    return rows


def table() -> str:
    heads = {
        "model": "model",
        "pauses": "pauses",
        "speakers": "speakers",
        "word_errors": "word errors",
        "diarization_error": "diarization error",
        "right_borders": "right borders",
        "right_count": "right number of speakers",
    }
    with RESULTS.open(encoding="utf-8", newline="") as file:
        rows = [[row[name] for name in heads] for row in csv.DictReader(file)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (list(heads.values()), ["---"] * len(heads), *rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", action="store_true", help="measure again, instead of only writing the page")
    parser.add_argument("--models", nargs="+", default=["base", "tiny.en"], help="speech-to-text models")
    arguments = parser.parse_args()
    if arguments.measure:
        rows = measure(arguments.models)
        write_csv([rows[0].keys(), *(row.values() for row in rows)], RESULTS)
    rewrite(PAGE, COMMAND, table())


if __name__ == "__main__":
    main()
