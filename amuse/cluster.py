"""A Ray cluster: the one that RAY_ADDRESS names or `ray start` started here, else one of this machine's processes."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ENGINES = ("local", "ray")
RETRIES = 3
"""How often a task whose process dies is tried again; what always crashes must not be tried forever."""


def check_engine(engine: str) -> None:
    """Raises a ValueError unless it is one of `ENGINES`."""
    if engine not in ENGINES:
        raise ValueError(f"engine: expected one of {', '.join(ENGINES)}, got {engine!r}")


@contextlib.contextmanager
def cluster() -> Iterator[Any]:
    """The package ray, connected; a connection that was there before stays.

    Raises:
        ImportError: Ray is not installed.
    """
    try:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when the package is imported
        import ray
    except ImportError:
        raise ImportError("--engine ray needs Ray: pip install amuse-kernels[cluster]") from None
    if ray.is_initialized():
        yield ray
        return
    ray.init(include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False)
    try:
        yield ray
    finally:
        ray.shutdown()


def result(ray: Any, reference: Any, what: str) -> Any:
    """The value of a task.

    Raises:
        ValueError: Its process died in every attempt.
        Exception: What the task raised.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        reason = f"{type(error).__name__} in {1 + RETRIES} attempts; what was finished is kept"
        raise ValueError(f"{what}: {reason}: {str(error).strip().splitlines()[0]}") from None


def run_tasks(
    function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], *, gpus: float = 0.0
) -> Iterator[tuple[int, Any]]:
    """Calls a function with each of `arguments` in a task with one core, and yields position and result when done.

    Args:
        function: Importable by name; relative paths are those of this process.
        arguments: Of each call.
        gpus: Share of a GPU for each; 0.25 has four calls share one.

    Raises:
        ImportError: Ray is not installed.
        ValueError: A share below 0, or a task whose process dies in every attempt.
    """
    if gpus < 0:
        raise ValueError(f"gpus: expected at least 0, got {gpus}")
    with cluster() as ray:
        task = ray.remote(max_retries=RETRIES, num_cpus=1, num_gpus=gpus)(_call)
        running = {task.remote(Path.cwd(), function, each): place for place, each in enumerate(arguments)}
        while running:
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            place = running.pop(done)
            yield place, result(ray, done, f"task {place + 1} of {len(arguments)}")


def _call(here: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    with contextlib.chdir(here):
        return function(*arguments)
