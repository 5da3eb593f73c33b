"""Progress of long work: a bar on a terminal, one line elsewhere."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(
    what: str,
    total: int,
    unit: str = "it",
    *,
    over: Iterable[Any] | None = None,
    initial: int = 0,
    shown: bool = True,
    leave: bool = True,
) -> "tqdm[Any]":
    """A bar on a terminal; elsewhere, such as in a log, `what` is printed to standard error once, as the work begins.

    Args:
        what: The work, such as `"encoding the words of 20 utterances"`.
        total: Steps of the bar.
        unit: Name of a step.
        over: What the bar iterates over, a step each; None leaves its steps to `update`.
        initial: Steps done before, which count as done but not towards the rate.
        shown: False shows and prints nothing.
        leave: Whether the finished bar stays on the terminal.
    """
    if shown and not sys.stderr.isatty():
        print(what, file=sys.stderr, flush=True)
    return tqdm(over, total=total, initial=initial, desc=what, unit=unit, leave=leave, disable=None if shown else True)
