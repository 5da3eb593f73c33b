"""A sample of the mutants (all: `python -m tests.ptx.emulator.mutation`): planted bugs are caught, by name."""

from __future__ import annotations

import pytest

from .. import mutation
from ..nvcc_kernels import nvcc

# What every bug of a kind has to be reported as; "numbers" alone would be luck.
BY_NAME = {
    "drop barrier": {"race", "uninitialised_read", "pending_async_access"},
    "wait for one group less": {"pending_async_access"},
    "drop wait_group": {"pending_async_access"},
    "copy without guard": {"out_of_bounds"},
    "drop guard": {"out_of_bounds"},
}


@pytest.mark.skipif(nvcc() is None, reason="nvcc was not found on PATH nor below $CUDA_HOME")
def test_planted_bugs_in_the_nvcc_kernel_are_caught_by_name():
    subject = next(subject for subject in mutation.subjects_by_name("nvcc"))
    launches, _ = subject.build((100, 77))
    executions = launches[0].run(subject.ptx).executions
    mutants = [mutant for mutant in mutation.mutants(subject.ptx, subject.entry) if executions.get(mutant.line)]
    by_kind: dict[str, list[mutation.Mutant]] = {}
    for mutant in mutants:
        by_kind.setdefault(mutant.kind, []).append(mutant)
    caught = total = 0
    for kind, found in by_kind.items():
        if kind == "compare off by one":  # needs the sweep over lengths
            continue
        for mutant in found[:: max(1, len(found) // 3)][:3]:
            verdict = subject.verdict(mutant)
            total += 1
            caught += bool(verdict)
            if verdict and kind in BY_NAME:
                assert BY_NAME[kind] & set(verdict.split(", ")), (kind, mutant.line, verdict)
    assert total >= 15
    assert caught / total >= 0.95
