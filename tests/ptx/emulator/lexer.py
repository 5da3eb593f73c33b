"""PTX text to tokens."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from .errors import Unsupported

TOKEN = re.compile(
    r"""
      "(?:[^"\\]|\\.)*"                            # string
    | 0[fF][0-9a-fA-F]{8}(?![\w$])                 # float by its bits
    | 0[dD][0-9a-fA-F]{16}(?![\w$])                # double by its bits
    | \d+\.\d*(?:[eE][+-]?\d+)?(?![\w$])           # decimal real
    | \d+[eE][+-]?\d+(?![\w$])
    | 0[xX][0-9a-fA-F]+U?(?![\w$])
    | 0[bB][01]+U?(?![\w$])
    | \d+U?(?![\w$])
    | [.%$_a-zA-Z][\w$%.]*(?:::[\w.]+)*            # names, registers, directives, dotted opcodes with ::
    | [\[\]{}()<>,;:@!+\-*=|&~?/]
    | \S                                           # anything else is an error that the parser reports
    """,
    re.VERBOSE,
)
IMPLICIT = re.compile(r"//\s*implicit-def:\s*(%\w+)")


class Token(NamedTuple):
    text: str
    line: int


def tokens(text: str) -> tuple[list[Token], set[str]]:
    """All tokens, and the registers that LLVM's comments declare undefined on purpose."""
    if not isinstance(text, str):
        raise TypeError(f"ptx_text: expected a string, got {type(text).__name__}")
    implicit = set(IMPLICIT.findall(text))
    without_blocks = re.sub(r"/\*.*?\*/", lambda comment: "\n" * comment.group().count("\n"), text, flags=re.DOTALL)
    found: list[Token] = []
    for number, line in enumerate(without_blocks.split("\n"), 1):
        found.extend(Token(piece, number) for piece in _of_line(line))
    return found, implicit


@functools.lru_cache(maxsize=1 << 16)  # the mutants of a kernel have all lines but one in common
def _of_line(line: str) -> tuple[str, ...]:
    code = line.split("//", 1)[0] if '"' not in line else re.sub(r'("(?:[^"\\]|\\.)*")|//.*', r"\1", line)
    found: list[str] = []
    for match in TOKEN.finditer(code):
        # Directives may touch: `.reg.b16`.
        pieces = re.findall(r"\.[^.]+", match.group()) if match.group()[0] == "." else []
        found += pieces or [match.group()]
    return tuple(found)


def integer(token: str) -> int | None:
    """The value of an integer literal, None if `token` is not one."""
    match = re.fullmatch(r"(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?", token)
    if not match:
        return None
    digits = match[1]
    if re.fullmatch(r"0\d+", digits):
        if re.search("[89]", digits):
            raise Unsupported(f"malformed octal number {token!r}")
        return int(digits, 8)
    return int(digits, 0)
