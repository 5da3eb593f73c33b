"""How long after the end of speech the emotion is there: `python -m benchmarks.live [--measure | --check]`.

Conversations of `benchmarks.spoken` are replayed in real time, with the model of `amuse pretrained`. With --measure
they are heard again, which takes as long as they last, and each utterance is a row of results/live.csv. With --check
these rows are compared with the truth, and with `amuse predict` on the finished recordings, in
results/live_quality.csv. Without either, the table in docs/performance.md is written.
"""

import argparse
import csv
import tempfile
import wave
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from amuse.encoders.signal import SAMPLE_RATE
from amuse.files import write_csv
from amuse.inference.prediction import PredictedUtterance, predict_recording
from amuse.inference.recording import Recognizer
from amuse.live import Live, LiveOptions, Lost, Spoken
from amuse.live.sources import replay
from amuse.pretrained import find
from amuse.speech import SpeechOptions, SpokenUtterance, Word
from benchmarks import spoken
from benchmarks.pages import rewrite
from benchmarks.speech import Quality

COMMAND = "python -m benchmarks.live"
RESULTS = Path(__file__).parent / "results" / "live.csv"
QUALITY = RESULTS.with_name("live_quality.csv")
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
SPEAKERS, TURNS, PAUSES, FIRST_SEED = (2, 3), 14, (0.6, 1.4), 300


class LiveRow(NamedTuple):
    """An utterance as it was heard: seconds, and the `delay` from its end to its emotion."""

    model: str
    talk: int
    start: float
    end: float
    speaker: str
    text: str
    emotion: str
    delay: float


def talk(number: int) -> spoken.Spoken:
    return spoken.conversation(SPEAKERS[number], TURNS, FIRST_SEED + number, PAUSES)


def measure(model: str) -> list[LiveRow]:
    recognizer, found = Recognizer(find()), []
    for number in range(len(SPEAKERS)):
        with tempfile.TemporaryDirectory() as folder:
            recording = _write(talk(number), Path(folder) / "talk.wav")
            heard: list[Spoken | Lost] = []
            live = Live(recognizer, heard.append, LiveOptions(SpeechOptions(model)))
            replay(recording, live)
            live.finish()
        if live.lost:
            raise ValueError(f"talk {number}: expected a machine that keeps up, {len(live.lost)} stretches were lost")
        for event in heard:
            assert isinstance(event, Spoken)
            row = event.understood.row
            words = row.text or "", row.emotion or ""
            found.append(LiveRow(model, number, row.start, row.end, row.speaker, *words, round(event.delay, 3)))
    return found


def check(rows: list[LiveRow]) -> dict[str, str]:
    """Mean quality over the talks of one model's rows, in per cent."""
    qualities, same, changed = [], [], []
    for number in range(len(SPEAKERS)):
        ours, truth = [row for row in rows if row.talk == number], talk(number)
        heard = [SpokenUtterance(r.start, r.end, r.speaker, (Word(r.start, r.end, r.text, None),)) for r in ours]
        qualities.append(Quality.measure(truth.lines, heard))
        with tempfile.TemporaryDirectory() as folder:
            finished = predict_recording(find(), _write(truth, Path(folder) / "talk.wav"), None, lambda problem: None)
        pairs = [(row, _closest(row, finished)) for row in ours]
        same += [row.emotion == other.emotion for row, other in pairs]
        changed += [row.text != other.text for row, other in pairs]
    means = {name: f"{100 * np.mean([getattr(q, name) for q in qualities]):.1f}" for name in vars(qualities[0])}
    return {
        "model": rows[0].model,
        **means,
        "other_words": f"{100 * np.mean(changed):.1f}",
        "same_emotion": f"{100 * np.mean(same):.1f}",
    }


def _closest(row: LiveRow, others: list[PredictedUtterance]) -> PredictedUtterance:
    return min(others, key=lambda other: abs(other.start - row.start) + abs(other.end - row.end))


def _write(talk: spoken.Spoken, path: Path) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((talk.samples.clip(-1, 1) * 32767).astype("<i2").tobytes())
    return path


def read_rows() -> list[LiveRow]:
    with RESULTS.open(encoding="utf-8", newline="") as file:
        return [
            LiveRow(
                r["model"],
                int(r["talk"]),
                float(r["start"]),
                float(r["end"]),
                r["speaker"],
                r["text"],
                r["emotion"],
                float(r["delay"]),
            )
            for r in csv.DictReader(file)
        ]


def table() -> str:
    heads = (
        "speech to text", "utterances", "delay p50, s", "p99, s", "word errors", "diarization error", "right borders",
        "right number of speakers", "utterances with other words than by `predict`", "utterances with the same emotion",
    )  # fmt: skip
    with QUALITY.open(encoding="utf-8", newline="") as file:
        quality = {row.pop("model"): row for row in csv.DictReader(file)}
    rows = read_rows()
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for model in dict.fromkeys(row.model for row in rows):
        delays = [row.delay for row in rows if row.model == model]
        p50, p99 = np.percentile(delays, [50, 99])
        cells = [f"Whisper {model}", str(len(delays)), f"**{p50:.2f}**", f"**{p99:.2f}**"]
        lines.append("| " + " | ".join([*cells, *(f"{value} %" for value in quality[model].values())]) + " |")
    return "\n".join(lines)


def _save(path: Path, rows: list[dict[str, object]]) -> None:
    write_csv([rows[0].keys(), *(row.values() for row in rows)], path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--measure", action="store_true", help="replay the conversations again")
    what.add_argument("--check", action="store_true", help="compare the measured rows with the truth again")
    parser.add_argument("--models", nargs="+", default=["base", "tiny.en"], help="speech-to-text models")
    parser.add_argument("--threads", type=int, default=2, help="of every model")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.measure:
        others = [row for row in read_rows() if row.model not in arguments.models] if RESULTS.exists() else []
        rows = [row for model in arguments.models for row in measure(model)]
        _save(RESULTS, [row._asdict() for row in [*rows, *others]])
    elif arguments.check:
        models = dict.fromkeys(row.model for row in read_rows())
        _save(QUALITY, [dict(check([row for row in read_rows() if row.model == model])) for model in models])
    else:
        rewrite(PAGE, COMMAND, table())


if __name__ == "__main__":
    main()
