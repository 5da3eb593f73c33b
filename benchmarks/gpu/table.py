"""A sweep's records as text."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from benchmarks.gpu.journal import Record

OURS = "ours"
SHORT = 160


def table(records: list[Record]) -> str:
    """Results by stage, times of ours against the fastest other, then everything that is wrong, failed or missing."""
    lines = ["stage        done  wrong  failed  not run"]
    for stage in dict.fromkeys(record["stage"] for record in records):
        counts = Counter(record["status"] for record in records if record["stage"] == stage)
        numbers = [counts[status] for status in ("done", "wrong", "failed", "not run")]
        lines.append(f"{stage:11}{numbers[0]:6}{numbers[1]:7}{numbers[2]:8}{numbers[3]:9}")
    lines += ["", *_times(records)]
    for word in ("wrong", "failed", "not run"):
        for record in records:
            if record["status"] == word:
                lines.append(_line(word, record))
    if any(record.get("dry_run") for record in records):
        lines.append("DRY RUN: nothing was measured on a GPU; every time is made up by a clock that ticks.")
    return "\n".join(lines)


def has_failed(records: Iterable[Record]) -> bool:
    """Whether something of ours was wrong or failed; a contender that does not run here is no failure."""
    return any(
        record["status"] in ("wrong", "failed") and record.get("contender", OURS).startswith(OURS) for record in records
    )


def _times(records: list[Record]) -> list[str]:
    groups: dict[tuple[Any, Any], list[Record]] = defaultdict(list)
    for record in records:
        if record["status"] == "ok" and "wall_ms" in record:
            groups[record.get("workload", record["item"]), record["mode"]].append(record)
    lines = []
    for (workload, mode), group in groups.items():
        ours = [record for record in group if record["contender"].startswith(OURS)]
        others = [record for record in group if not record["contender"].startswith(OURS)]
        fastest = [min(part, key=_milliseconds) for part in (ours, others) if part]
        text = " | ".join(f"{_milliseconds(r):.3f} ms {r['contender']}" for r in fastest)
        if ours and others:
            text += f" | {_milliseconds(fastest[1]) / _milliseconds(fastest[0]):.2f}x"
        lines.append(f"{workload}, {mode}: {text}")
    return [*lines, ""] if lines else []


def _milliseconds(record: Record) -> float:
    return record.get("graph_ms") or record["wall_ms"]


def _line(word: str, record: Record) -> str:
    contender = f", {record['contender']}" if "contender" in record else ""
    reason = " ".join(str(record.get("reason", "")).split())[:SHORT]
    return f"{word.upper()}: {record['stage']}: {record['item']}{contender}: {reason}"
