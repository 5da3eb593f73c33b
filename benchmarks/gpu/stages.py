"""The stages of the sweep by name, and the process of one of them."""

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

from benchmarks.gpu import stage
from benchmarks.gpu.device import Gpu, Nothing
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.stage import Context, Item


def items_of(name: str) -> Callable[[Context], Iterator[Item]]:
    """`items` of the stage's module: its imports are its own, so that one that is missing stops no other stage."""
    return import_module(f"benchmarks.gpu.{name}").items


def run_stage(name: str, folder: Path, until: float, began: float, *, skip: int, dry: bool) -> int:
    device = Nothing() if dry else Gpu()
    context = Context(device, folder, until)
    return stage.run(items_of(name)(context), context, Journal(folder / "records.jsonl", name, began), skip)
