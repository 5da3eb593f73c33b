"""The process-wide state that a test must leave as it found it; `tests/conftest.py` checks it after every test.

pytest itself restores the warning filters after each phase of a test, and every test starts from seeded generators.
"""

import contextlib
import logging
import os
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

LOGGERS = ("amuse", "amuse_kernels")

# What pytest, torch's compiler and scikit-learn set for themselves, whichever test imports them first
THEIR_VARIABLES = (
    "PYTEST_CURRENT_TEST",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "KMP_DUPLICATE_LIB_OK",
    "KMP_INIT_AT_FORK",
)


class Switch(NamedTuple):
    """One piece of global state."""

    name: str
    read: Callable[[], Any]
    restore: Callable[[Any], None]


def _attribute(path: str) -> Switch:
    """The switch behind an attribute of torch, such as `backends.cudnn.deterministic`."""
    *parents, name = path.split(".")
    owner: Any = torch
    for parent in parents:
        owner = getattr(owner, parent)
    return Switch(f"torch.{path}", lambda: getattr(owner, name), lambda value: setattr(owner, name, value))


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in THEIR_VARIABLES}


def _restore_environment(value: dict[str, str]) -> None:
    for name in _environment().keys() - value.keys():
        del os.environ[name]
    os.environ.update(value)


def _log_levels() -> tuple[int, dict[str, int]]:
    root = logging.root
    return root.manager.disable, {"root": root.level} | {name: logging.getLogger(name).level for name in LOGGERS}


def _restore_log_levels(value: tuple[int, dict[str, int]]) -> None:
    logging.disable(value[0])
    for name, level in value[1].items():
        (logging.root if name == "root" else logging.getLogger(name)).setLevel(level)


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


# The wider switches come first, as the narrower ones inherit from them; allow_tf32 before fp32_precision, since it sets
# both and reading it raises while they differ.
SWITCHES = (
    _attribute("backends.fp32_precision"),
    _attribute("backends.cudnn.fp32_precision"),
    _attribute("backends.mkldnn.fp32_precision"),
    _attribute("backends.cuda.matmul.allow_tf32"),
    _attribute("backends.cudnn.allow_tf32"),
    _attribute("backends.cuda.matmul.fp32_precision"),
    _attribute("backends.cudnn.conv.fp32_precision"),
    _attribute("backends.cudnn.rnn.fp32_precision"),
    _attribute("backends.mkldnn.matmul.fp32_precision"),
    _attribute("backends.cuda.matmul.allow_fp16_reduced_precision_reduction"),
    _attribute("backends.cuda.matmul.allow_bf16_reduced_precision_reduction"),
    _attribute("backends.cudnn.enabled"),
    _attribute("backends.cudnn.deterministic"),
    _attribute("backends.cudnn.benchmark"),
    _attribute("utils.deterministic.fill_uninitialized_memory"),
    Switch(
        "torch.use_deterministic_algorithms",
        _deterministic,
        lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
    ),
    Switch("torch.set_default_dtype", torch.get_default_dtype, torch.set_default_dtype),
    Switch("torch.set_num_threads", torch.get_num_threads, torch.set_num_threads),
    Switch("torch.set_grad_enabled", torch.is_grad_enabled, torch._C._set_grad_enabled),
    Switch("os.environ", _environment, _restore_environment),
    Switch("the working directory", os.getcwd, os.chdir),
    Switch("the log levels", _log_levels, _restore_log_levels),
)


class _Unreadable(str):
    """Why a switch has no value."""


def _read(switch: Switch) -> Any:
    try:
        return switch.read()
    except (RuntimeError, OSError) as error:  # switches that contradict each other; a working directory that is gone
        return _Unreadable(error)


def _difference(before: Any, after: Any) -> str:
    if isinstance(before, dict) and isinstance(after, dict):  # only the entries that changed
        names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        return "; ".join(f"{name} was {before.get(name)!r}, is {after.get(name)!r}" for name in names)
    return f"was {before!r}, is {after!r}"


def _restore(values: list[Any]) -> None:
    """Sets every switch: those that are bound to one another come right only together and in order."""
    for switch, value in zip(SWITCHES, values, strict=True):
        if not isinstance(value, _Unreadable):
            switch.restore(value)


@contextlib.contextmanager
def kept(owner: str) -> Iterator[None]:
    """Checks that the block leaves every switch as it was; restores those that it changed.

    Raises:
        AssertionError: The block changed a switch. The message names `owner` and each changed switch.
    """
    before = [_read(switch) for switch in SWITCHES]
    yield
    after = [_read(switch) for switch in SWITCHES]
    if after == before:
        return
    _restore(before)
    changes = [
        f"{switch.name}: {_difference(old, new)}"
        for switch, old, new in zip(SWITCHES, before, after, strict=True)
        if new != old
    ]
    raise AssertionError(f"{owner} left global state changed:\n  " + "\n  ".join(changes))


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """A block that may change any switch: all are as before when it ends."""
    before = [_read(switch) for switch in SWITCHES]
    try:
        yield
    finally:
        _restore(before)


def seed_generators(seed: int = 0) -> None:
    """Seeds every global generator, so that no test depends on what an earlier one drew."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (libraries draw from it)
    torch.manual_seed(seed)
