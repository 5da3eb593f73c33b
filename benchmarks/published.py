"""The table of published scores, from results/published.csv, beside ours and what differs."""

import csv
from pathlib import Path

FILE = Path(__file__).parent / "results" / "published.csv"
PERCENT = ("meld_weighted_f1", "meld_accuracy", "iemocap_weighted_f1", "iemocap_accuracy")


def published() -> list[dict[str, str]]:
    """The rows: system, year, modalities, scores in per cent (empty where none is given), source, certainty."""
    with FILE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def published_table(ours: str, accuracy: str) -> str:
    """Our MELD scores first, then the published ones, best weighted F1 on MELD first.

    Args:
        ours, accuracy: Weighted F1 and accuracy of AMuSE here.
    """
    head = ["", "year", "modalities", "MELD, w-F1", "accuracy", "IEMOCAP, w-F1", "accuracy", "source", "known from"]
    rows = sorted(published(), key=lambda row: -float(row["meld_weighted_f1"]))
    command = "`amuse repeat --config meld`, MPNet"
    lines = [["**AMuSE here**", "2026", "T", f"**{ours}**", accuracy, "", "", command, "measured"]]
    for row in rows:
        scores = [row[name] for name in PERCENT]
        lines.append([row["system"], row["year"], row["modalities"], *scores, row["source"], row["certainty"]])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *lines))
