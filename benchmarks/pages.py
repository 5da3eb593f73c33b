"""Parts of pages that a command writes: they are between a mark that names the command and the end mark."""

import re
from pathlib import Path

from amuse.files import write_text

# Backends of compiled kernels, as pages name them.
BACKENDS = {"triton": "Triton", "cuda": "CUDA C++", "plain": "plain flash attention"}


def rewrite(page: Path, command: str, content: str) -> None:
    """Puts `content` between the marks that name `command`."""
    text = page.read_text(encoding="utf-8")
    write_text(_between(command).sub(lambda m: f"{m[1]}\n{content}\n\n{m[2]}", text), page)


def written(page: Path, command: str) -> str:
    """The text between those marks.

    Raises:
        ValueError: The page lacks them.
    """
    match = _between(command).search(page.read_text(encoding="utf-8"))
    if match is None:
        raise ValueError(f"{page}: expected the marks of `{command}`, found none")
    return match[0].removeprefix(match[1]).removesuffix(match[2]).strip()


def _between(command: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {re.escape(command)} writes this -->\n).*?(<!-- end -->)", re.DOTALL)
