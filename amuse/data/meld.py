"""MELD: multi-party dialogues of a TV series with emotion and sentiment labels (Poria et al. 2019), from its CSVs."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from amuse.data.conversation import Conversations, Dialogue, Utterance
from amuse.data.delimited import csv_of, read_utf8
from amuse.data.problems import Problem, ProblemHandler

logger = logging.getLogger(__name__)

SPLITS = ("train", "dev", "test")
EMOTIONS = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
SENTIMENTS = ("neutral", "positive", "negative")
TARGETS = {"emotion": ("Emotion", EMOTIONS), "sentiment": ("Sentiment", SENTIMENTS)}

_COLUMNS = ("Utterance", "Speaker", "Dialogue_ID", "Utterance_ID", "StartTime", "EndTime")
_TIME = re.compile(r"(\d{1,4}):([0-5]\d):([0-5]\d)[,.](\d{1,3})")


def read_meld(
    folder: str | PathLike[str],
    split: str,
    *,
    target: str = "emotion",
    features: Mapping[str, str | PathLike[str]] | None = None,
    report: ProblemHandler | None = None,
) -> Conversations:
    """Reads one split of MELD.

    Gaps in `Utterance_ID` are real (lines that were dropped upstream); the ids only order the utterances. Dialogue ids
    repeat between splits, so never mix the utterance ids of two splits. Characters that were decoded wrongly upstream
    are restored by ftfy.

    Args:
        folder: Holds `{split}_sent_emo.csv`, UTF-8, as the authors publish it.
        split: `"train"`, `"dev"` or `"test"`.
        target: `"emotion"` (7 classes, `EMOTIONS`) or `"sentiment"` (3 classes, `SENTIMENTS`).
        features: Modality -> safetensors file of this split, with keys `"dia{d}_utt{u}"` and floating `(L, d)`
            tensors, or `(d,)` for one vector per utterance. `{split}` in a path is replaced by the split's name. An
            utterance without an entry lacks the modality; how many do, and entries without an utterance, are logged.
        report: Takes rows that cannot be used, which are then left out; with None the first one raises.

    Returns:
        Dialogues `"dia{d}"` with utterances `"dia{d}_utt{u}"`, with text, speaker and times in seconds. The text
        becomes a modality with `amuse.data.text`.

    Raises:
        FileNotFoundError: A CSV or feature file is missing.
        ValueError: Anything malformed, naming file and line: not UTF-8, a missing column, an unknown label, a repeated
            (dialogue, utterance) pair, a bad id or time, an unreadable or malformed feature file.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    if target not in TARGETS:
        raise ValueError(f"target: expected one of {', '.join(TARGETS)}, got {target!r}")
    path = Path(folder) / f"{split}_sent_emo.csv"
    column, names = TARGETS[target]

    numbered: dict[int, dict[int, Utterance]] = {}
    for line, row in _rows(path, (*_COLUMNS, column)):
        where = f"{path}, line {line}"
        try:
            dialogue, position, utterance = _utterance(row, column, names, where)
        except ValueError as error:
            if report is None:
                raise
            report(Problem("bad_row", f"{path.name}, line {line}", str(error)))
            continue
        by_id = numbered.setdefault(dialogue, {})
        if position in by_id:
            message = f"Dialogue_ID {dialogue} with Utterance_ID {position} occurs twice in this file"
            if report is None:
                raise ValueError(f"{where}: {message}")
            report(Problem("duplicate_id", f"{path.name}, line {line}", message))
            continue
        by_id[position] = utterance
    if not numbered:
        raise ValueError(f"{path}: expected at least one utterance below the header, got none")

    conversations = Conversations(
        [Dialogue(f"dia{d}", [by_id[u] for u in sorted(by_id)]) for d, by_id in numbered.items()], names, {}
    )
    for modality, place in (features or {}).items():
        file = Path(str(place).replace("{split}", split))
        tokens = _read_features(file, modality)
        _report_coverage(conversations, modality, file, tokens)
        width = next(iter(tokens.values())).shape[1]
        try:
            conversations = conversations.with_features(modality, width, tokens)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
    return conversations


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected MELD's CSV of this split")
    reader = csv.DictReader(io.StringIO(read_utf8(path), newline=""))
    with csv_of(path):
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path}, line 1: expected the columns {', '.join(columns)}, got no {', '.join(missing)}")
        for row in reader:
            yield reader.line_num, row


def _utterance(row: dict[str, str], column: str, names: tuple[str, ...], where: str) -> tuple[int, int, Utterance]:
    if None in row or None in row.values():
        raise ValueError(
            f"{where}: expected {len(row) - (None in row)} cells as in the header, got another number; "
            "is a quotation mark missing?"
        )
    from ftfy import fix_encoding  # here, so that models train on prepared features without it

    dialogue, position = (_id(row[name], name, where) for name in ("Dialogue_ID", "Utterance_ID"))
    utterance = Utterance(
        id=f"dia{dialogue}_utt{position}",
        speaker=fix_encoding(row["Speaker"]).strip(),
        features={},
        label=_label(row[column], names, column, where),
        text=fix_encoding(row["Utterance"]).strip(),
        start=_seconds(row["StartTime"], "StartTime", where),
        end=_seconds(row["EndTime"], "EndTime", where),
    )
    if not utterance.speaker:
        raise ValueError(f"{where}, Speaker: expected a name, got an empty cell")
    return dialogue, position, utterance


def _id(cell: str, column: str, where: str) -> int:
    if not cell.strip().isdecimal() or len(cell) > 18:  # no corpus has ids this long
        raise ValueError(f"{where}, {column}: expected a non-negative integer, got {cell!r}")
    return int(cell)


def _label(cell: str, names: tuple[str, ...], column: str, where: str) -> int:
    name = cell.strip().lower()
    if name not in names:
        raise ValueError(f"{where}, {column}: expected one of {', '.join(names)}, got {cell!r}")
    return names.index(name)


def _seconds(cell: str, column: str, where: str) -> float:
    match = _TIME.fullmatch(cell.strip())
    if match is None:
        raise ValueError(f"{where}, {column}: expected a time such as 00:16:21,940, got {cell!r}")
    hours, minutes, seconds, fraction = match.groups()
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + float(f"0.{fraction}")


def _read_features(path: Path, modality: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"features[{modality!r}]: {path}: no such file; expected a safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            tokens = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (safe_open is not a mapping)
    except SafetensorError as error:
        raise ValueError(f"features[{modality!r}]: {path}: expected a safetensors file, got {error}") from None
    if not tokens:
        raise ValueError(f"features[{modality!r}]: {path}: expected at least one tensor, got none")
    for key, value in tokens.items():
        if not value.is_floating_point() or value.dim() not in (1, 2):
            where, got = f"features[{modality!r}]: {path}, key {key!r}", f"{value.dtype} {tuple(value.shape)}"
            raise ValueError(f"{where}: expected floating (L, d) or (d,), got {got}")
        tokens[key] = torch.atleast_2d(value).to(torch.float32)
    return tokens


def _report_coverage(conversations: Conversations, modality: str, path: Path, tokens: dict[str, Tensor]) -> None:
    wanted = {utterance.id for utterance in conversations.utterances()}
    absent = [utterance for utterance in wanted if utterance not in tokens or not len(tokens[utterance])]
    stray = tokens.keys() - wanted
    if absent:
        count, examples = f"{len(absent)} of {len(wanted)}", ", ".join(sorted(absent)[:3])
        logger.warning("%s: %s utterances have no %s: %s, ...", path, count, modality, examples)
    if stray:
        examples = ", ".join(sorted(stray)[:3])
        logger.warning("%s: %d entries belong to no utterance and are left out: %s, ...", path, len(stray), examples)
