"""A stage of the sweep: items that are run one after the other, whatever becomes of each."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu.device import Gpu, Nothing
from benchmarks.gpu.journal import Journal, Record, reason_of

LOST = 3  # exit code of a stage whose GPU context is gone: what follows needs a new process


class Item(NamedTuple):
    name: str
    run: Callable[[], Iterable[Record]]  # each record is written as soon as it is made


@dataclass
class Context:
    device: Gpu | Nothing
    folder: Path  # where the results go
    until: float  # time.time() when nothing new is started

    @property
    def left(self) -> float:
        return self.until - time.time()

    @property
    def backends(self) -> tuple[str, str]:
        return ("cpu", "reference") if self.device.dry else ("triton", "cuda")


def run(items: Iterable[Item], context: Context, journal: Journal, skip: int = 0) -> int:
    """Runs all items but the first `skip`; whatever an item raises is written down, and the next one follows.

    Returns:
        0, or LOST where the GPU does not answer any more.
    """
    for number, item in enumerate(items):
        if number < skip:
            continue
        if context.left <= 0:
            journal.write("not run", item.name, reason="out of time: this item and those after it")
            return 0
        journal.write("started", item.name)
        began = time.perf_counter()
        try:
            for record in item.run():
                journal.write(record.pop("status", "ok"), item.name, **record)
        except Exception as error:  # Triton's and ptxas's own errors too, which share no base class
            journal.write("failed", item.name, reason=reason_of(error), seconds=time.perf_counter() - began)
            if context.device.is_lost():
                return LOST
        else:
            journal.write("done", item.name, seconds=time.perf_counter() - began)
    return 0
