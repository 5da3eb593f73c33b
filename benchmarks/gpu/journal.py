"""The journal of a sweep: a line of JSON for everything that was done, on disk before the next thing starts."""

import json
import os
import time
from pathlib import Path
from typing import Any

Record = dict[str, Any]
LONGEST_TEXT = 4000


class Journal:
    """Appends records of one stage to a file.

    Args:
        path: Of the JSONL file; several processes may append to it in turn.
        stage: Is written into every record.
        began: `time.time()` of the sweep's start; records say when they were made.
    """

    def __init__(self, path: Path, stage: str, began: float) -> None:
        self.path, self.stage, self.began = path, stage, began

    def write(self, status: str, item: str, **record: Any) -> None:
        """status: started, done, ok (a result), wrong (a result out of bounds), failed or not run."""
        texts = {name: _short(value) for name, value in record.items()}
        line = {"stage": self.stage, "item": item, "status": status, "at_s": round(time.time() - self.began, 2)} | texts
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _short(value: Any) -> Any:
    """Long texts keep their beginning and their end."""
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        half = LONGEST_TEXT // 2
        return f"{value[:half]} [...] {value[-half:]}"
    return value


def read(path: Path) -> list[Record]:
    """All records; a last line that was cut off is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def reason_of(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
