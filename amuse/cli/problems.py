"""What was wrong with a recording, on standard error."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from amuse.data.problems import Problem, ProblemHandler


@contextmanager
def problems_shown() -> Iterator["ProblemHandler"]:
    """Collects problems and prints their table in the end; before an error too, which they may explain."""
    from amuse.data.problems import problem_table

    problems: list[Problem] = []
    try:
        yield problems.append
    except Exception:
        if problems:
            typer.echo(problem_table(problems), err=True)
        raise
    typer.echo(problem_table(problems), err=True)
