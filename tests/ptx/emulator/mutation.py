"""Do the checks catch broken kernels? Plants one bug at a time in a kernel's PTX and runs it over several lengths.

`python -m tests.ptx.emulator.mutation` runs every mutant of the fixtures and prints the table; the tests run a sample.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import importlib.util
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from .errors import Unsupported
from .fixtures import cases
from .launch import Launch
from .nvcc_kernels import nvcc

# Several residues of the tile sizes, full tiles, one row, more tiles than stages.
LENGTHS = ((17, 33), (64, 64), (5, 9), (100, 77), (33, 65))
# Off-by-one bounds and missing guards show at some lengths only: a sweep over all residues of a tile.
BOUNDARY_LENGTHS = tuple((length, length) for length in range(2, 34)) + tuple(
    (length, 130 - length) for length in range(34, 98)
)
AT_BOUNDARIES = ("compare off by one", "copy without guard", "drop guard")
OPPOSITE = {"lt": "le", "le": "lt", "gt": "ge", "ge": "gt"}


@dataclass(frozen=True)
class Mutant:
    kind: str
    line: int
    original: str
    text: str


def _rules(line: str) -> Iterator[tuple[str, str]]:
    """(kind of bug, changed line) for each bug that can be planted in a line."""
    if re.search(r"\bbar(rier)?\.sync", line):
        yield "drop barrier", ""
    if "cp.async.wait_group" in line:
        yield "wait for one group less", re.sub(r"(wait_group\s+)(\d+)", lambda m: m[1] + str(int(m[2]) + 1), line)
        yield "drop wait_group", ""
    if re.search(r"\bcp\.async\.c[ag]\.", line):
        yield "drop copy", ""
        yield "copy without guard", re.sub(r",\s*%r\d+\s*;", ";", line)
    if re.search(r"@!?%p\d+\s+(ld|st|atom|red)\.global", line):
        yield "drop guard", re.sub(r"@!?%p\d+\s+", "", line)
    if re.search(r"\bst\.(shared|global)", line):
        yield "drop store", ""
    if re.search(r"\bstmatrix", line):
        yield "drop store", ""
    if "ldmatrix" in line:
        yield (
            "swap transposition",
            line.replace(".trans", "") if ".trans" in line else line.replace(".m8n8.x4", ".m8n8.x4.trans"),
        )
        yield (
            "wrong tile row",
            re.sub(r"\[\s*(%r\d+)(\+\d+)?\s*\]", lambda m: f"[{m[1]}+{int((m[2] or '+0')[1:]) + 16}]", line),
        )
    if "shfl.sync.bfly" in line:
        yield "wrong shuffle lane", re.sub(r",\s*(\d+),\s*31", lambda m: f", {int(m[1]) * 2 % 31}, 31", line)
    if "wgmma.fence" in line:
        yield "drop wgmma.fence", ""
    if re.search(r"\bmma\.sync|\bwgmma\.mma", line):
        yield "drop mma", ""
    if re.search(r"\bxor\.b32\s+%r\d+, %r\d+, \d+;", line):
        yield "wrong swizzle", re.sub(r", (\d+);", lambda m: f", {int(m[1]) ^ 16};", line)
    if re.search(r"\bsetp\.(lt|le|gt|ge)\.[su]", line):
        yield "compare off by one", re.sub(r"setp\.(lt|le|gt|ge)\.", lambda m: f"setp.{OPPOSITE[m[1]]}.", line)


def mutants(text: str, entry: str) -> list[Mutant]:
    """Every mutant of a kernel. Consecutive lines of one instruction are not considered: compilers write one a line."""
    lines = text.split("\n")
    inside, found = False, []
    for number, line in enumerate(lines):
        if ".entry" in line:
            inside = entry in line
        if not inside:
            continue
        for kind, changed in _rules(line):
            if changed != line:
                found.append(
                    Mutant(kind, number + 1, line.strip(), "\n".join([*lines[:number], changed, *lines[number + 1 :]]))
                )
    return found


# (lengths) -> launches, and the error of their results in units of what is allowed, once they have run
Build = Callable[[tuple[int, int]], tuple[list[Launch], Callable[[], float]]]


@dataclass
class Subject:
    name: str
    build: Build
    which: int  # the launch that is mutated
    ptx: str  # compiled for lengths without special divisibility, so that it runs at every length
    entry: str
    boundaries: tuple[tuple[int, int], ...] = BOUNDARY_LENGTHS  # for comparisons and guards, beside LENGTHS

    @staticmethod
    def of(name: str, build: Build, which: int = 0) -> Subject:
        launch = build((17, 33))[0][which]
        return Subject(name, build, which, launch.ptx, launch.entry)

    def reached(self) -> set[int]:
        """The lines that the original executes at some length; raises if the original is not clean and right."""
        lines: set[int] = set()
        for pair in LENGTHS + self.boundaries:
            launches, error = self.build(pair)
            for position, launch in enumerate(launches):
                report = launch.run(self.ptx if position == self.which else None)
                report.assert_clean()
                if position == self.which:
                    lines |= {line for line, count in report.executions.items() if count}
            if not error() <= 1:
                raise AssertionError(f"{self.name} is wrong at lengths {pair}")
        return lines

    def mutants(self, reached: set[int]) -> list[Mutant]:
        """The mutants of lines that some length reaches."""
        return [mutant for mutant in mutants(self.ptx, self.entry) if mutant.line in reached]

    def is_equivalent(self, mutant: Mutant) -> bool:
        """Whether no lane ever compares equal numbers, so that `<` is `<=`, or a guard always holds, at any length."""
        lines = self.ptx.split("\n")
        probe = _probe(mutant.kind, lines[mutant.line - 1])
        if not probe:
            return False
        text = "\n".join([*lines[: mutant.line - 1], probe + lines[mutant.line - 1], *lines[mutant.line :]])
        try:
            for pair in LENGTHS + self.boundaries:
                for launch in self.build(pair)[0][self.which : self.which + 1]:  # none where the call is too small
                    launch.run(text, races=False)
        except RuntimeError:
            return False
        return True

    def verdict(self, mutant: Mutant) -> str:
        """How a mutant is caught: kinds of findings, "numbers", or "" if it is not."""
        for pair in LENGTHS + (self.boundaries if mutant.kind in AT_BOUNDARIES else ()):
            launches, error = self.build(pair)
            kinds: set[str] = set()
            for position, launch in enumerate(launches):
                try:
                    kinds |= launch.run(mutant.text if position == self.which else None).kinds
                except Unsupported:
                    return "rejected at load"
            if kinds:
                return ", ".join(sorted(kinds))
            if not error() <= 1:
                return "numbers"
        return ""


def _probe(kind: str, line: str) -> str:
    """PTX before a line that traps where the line and its mutant differ; empty where none can tell."""
    compare = re.match(r"\s*setp\.\w+\.(\w+)\s+%p\d+,\s*([^;]*);", line)
    if compare and kind == "compare off by one":
        return f"{{ .reg .pred %probe; setp.ne.{compare[1]} %probe, {compare[2]}; @!%probe trap; }}"
    copied = re.match(r"\s*cp\.async\.c[ag]\..*,\s*(%r\d+)\s*;", line)
    if copied and kind == "copy without guard":
        return f"{{ .reg .pred %probe; setp.ne.b32 %probe, {copied[1]}, 0; @!%probe trap; }}"
    guarded = re.match(r"\s*@(!?)(%p\d+)\s", line)
    if guarded and kind == "drop guard":
        return f"@{'' if guarded[1] else '!'}{guarded[2]} trap; "
    return ""


def subjects_by_name(part: str = "") -> list[Subject]:
    """Fixtures that can be compiled here, of those whose name contains `part`."""
    builds: list[tuple[str, Build, int]] = []
    if nvcc():
        builds += [("nvcc forward", of_fixture(lambda problem: _one(cases.nvcc_forward(problem))), 0)]
    if importlib.util.find_spec("triton"):
        builds += [("Triton forward", of_fixture(lambda problem: _one(cases.triton_forward(problem))), 0)]
        builds += [("Triton backward", of_fixture(cases.triton_backward), 1)]
    return [Subject.of(name, build, which) for name, build, which in builds if part in name]


Outputs = dict[str, torch.Tensor]


def _one(made: tuple[Launch, Outputs]) -> tuple[list[Launch], Outputs]:
    return [made[0]], made[1]


def of_fixture(make: Callable[[cases.Problem], tuple[list[Launch], Outputs]]) -> Build:
    def build(pair: tuple[int, int]) -> tuple[list[Launch], Callable[[], float]]:
        problem = cases.Problem.random(torch.float16, *pair)
        launches, outputs = make(problem)
        return launches, lambda: problem.error(outputs)

    return build


def _spread(mutants: list[Mutant], count: int) -> list[Mutant]:
    """`count` of each kind, or all."""
    kinds: dict[str, list[Mutant]] = collections.defaultdict(list)
    for mutant in mutants:
        kinds[mutant.kind].append(mutant)
    return [
        found[(2 * i + 1) * len(found) // (2 * count)] if len(found) > count else found[i]
        for found in kinds.values()
        for i in range(min(count, len(found)))
    ]


def main(subjects: Callable[[str], list[Subject]] = subjects_by_name) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="run only every n-th mutant")
    parser.add_argument("--sample", type=int, help="run only so many mutants of each kind and subject, evenly spread")
    parser.add_argument(
        "--boundaries", type=int, default=1, help="of the lengths for comparisons and guards take every n-th"
    )
    parser.add_argument("--subject", default="", help="only subjects whose name contains this")
    options = parser.parse_args()
    for subject in subjects(options.subject):
        subject = dataclasses.replace(subject, boundaries=subject.boundaries[:: options.boundaries])
        start = time.perf_counter()
        table: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        survivors, equivalent = [], 0
        live = subject.mutants(subject.reached())
        for mutant in _spread(live, options.sample) if options.sample else live[:: options.every]:
            verdict = subject.verdict(mutant)
            if not verdict and subject.is_equivalent(mutant):
                equivalent += 1
                continue
            table[mutant.kind][verdict or "NOT CAUGHT"] += 1
            if not verdict:
                survivors.append(mutant)
        total = sum(counter.total() for counter in table.values())
        unreached = len(mutants(subject.ptx, subject.entry)) - len(live)
        print(
            f"{subject.name}: caught {total - len(survivors)} of {total} ({time.perf_counter() - start:.0f} s); "
            f"equivalent: "
            f"{unreached} in code that no length reaches, {equivalent} comparisons of numbers that are never equal and "
            "guards that always hold",
            flush=True,
        )
        for kind, counter in table.items():
            print(f"  {kind}: " + "; ".join(f"{count} {verdict}" for verdict, count in counter.most_common()))
        for mutant in survivors:
            print(f"    not caught: line {mutant.line}, {mutant.kind}: {mutant.original[:110]}")


if __name__ == "__main__":
    main()
