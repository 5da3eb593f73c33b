"""The table of compiled kernels: made, kept as CSV, and checked against a new compilation."""

import csv
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from amuse.files import write_csv
from benchmarks.static import bound, compiled_amd, compiled_cuda, compiled_triton
from benchmarks.static.binaries import SHARED_LIMIT
from benchmarks.static.cases import Case, cuda_cases, triton_cases
from benchmarks.static.sass import PIPES, count_pipes, parse

CSV = Path(__file__).with_name("kernels.csv")
IDENTITY = ("backend", "kernel", *Case._fields[1:])
PIPE_COLUMNS = tuple(f"sass_{pipe}" for pipe in PIPES)
RESULTS = ("registers", "local_bytes", "shared_bytes", *PIPE_COLUMNS, "bound", "bound_pipe")
COLUMNS = (*IDENTITY, "tile", "warps", "stages", "shared_limit", *RESULTS, "compiler", "source")
Row = dict[str, str]
TOLERATED = 16  # bytes that an fp32 kernel may spill
# What ptxas spills there at D 64 in 16 bits, and nowhere else; more is a fault
TOLERATED_FUSED = {"100": 24, "120": 40}
SAMPLE = 20  # rows that a check makes again, of Triton and of CUDA, besides those whose source has changed


def read() -> list[Row]:
    if not CSV.is_file():
        return []
    with CSV.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(rows: Iterable[Row]) -> None:
    write_csv([COLUMNS, *([row[name] for name in COLUMNS] for row in rows)], CSV)


def update(seconds_left: Callable[[], float], processes: int = 1) -> list[Row]:
    """Makes what the table lacks or has from other sources, writes it as it goes, and returns its rows.

    A run that is cut short, or that `seconds_left` ends, is continued by the next one. Rows of CUDA that the installed
    library has no code for are kept as they are.
    """
    known = {_identity(row): row for row in read()}
    entries = list(_triton_entries())
    cases = {case: None for case, _, row in entries if not _made(row, known)}
    # One thread per forked worker: a parent that has used its OpenMP threads leaves none to the child, which would wait
    # for them.
    with ProcessPoolExecutor(processes, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for future in as_completed([pool.submit(_rows, case) for case in cases]):
            for row in future.result():
                print(describe(row), flush=True)
                known[_identity(row)] = row
            write(known.values())
            if seconds_left() < 0:
                pool.shutdown(cancel_futures=True)
                break  # futures that were cancelled never complete
    for case, launch, row in _cuda_entries():
        if compiled_cuda.code_for(case.arch) and not _made(row, known):
            known[_identity(row)] = _complete(case, launch, row)
            write(known.values())
    identities = [_identity(row) for _, _, row in entries]
    identities += [_identity(row) for _, _, row in _cuda_entries()] or [i for i in known if i[0] == "cuda"]
    rows = [known[identity] for identity in dict.fromkeys(identities) if identity in known]
    write(rows)
    return rows


def check() -> list[str]:
    """The differences in a sample of the rows, and in all whose source has changed: Triton's are compiled again, CUDA's
    compared with the installed library where it has code for the chip by the same nvcc."""
    known = {_identity(row): row for row in read()}
    entries = [*_triton_entries(), *_cuda_entries()]
    present = [entry for entry in entries if _complete_in(entry[2], known)]
    checkable = [entry for entry in present if _checkable(entry[0], known[_identity(entry[2])])]
    changed = [entry for entry in checkable if known[_identity(entry[2])]["source"] != entry[2]["source"]]
    missing = len(entries) - len(present)
    print(f"of {len(entries)} launches, {missing} are not in the table and {len(changed)} have a new source")
    print(f"CUDA code in the installed library: {', '.join(compiled_cuda.architectures().values()) or 'none'}")
    sample = _spread([entry for entry in checkable if entry[0].backend != "cuda"])
    sample += _spread([entry for entry in checkable if entry[0].backend == "cuda"])
    problems = []
    for case, launch, row in {_identity(row): (case, launch, row) for case, launch, row in sample + changed}.values():
        old, new = known[_identity(row)], _complete(case, launch, row)
        differing = [name for name in ("tile", "warps", "stages", *RESULTS) if old[name] != new[name]]
        if differing:
            found = ", ".join(f"{name} {new[name]} (the table says {old[name]})" for name in differing)
            problems.append(f"{describe(new)}; {found}: run python -m benchmarks.static")
    return problems


def over_limits(rows: Iterable[Row]) -> list[str]:
    """The package's kernels that no such chip could launch, or that spill at a head dim of up to 128.

    fp32 kernels may spill `TOLERATED` bytes: their sums of large scores in fp64 take registers. The CUDA backward of
    one launch, which holds both sides' gradients, may spill `TOLERATED_FUSED` by architecture. Tiles for AMD were
    chosen for the registers of gfx942; on gfx1100 the table lists what spills.
    """
    ours = [row for row in rows if row["backend"] != "plain"]
    return [
        describe(row)
        for row in ours
        if int(row["shared_bytes"]) > int(row["shared_limit"])
        or (row["arch"] != "gfx1100" and int(row["width"]) <= 128 and int(row["local_bytes"]) > _tolerated(row))
    ]


def _tolerated(row: Row) -> int:
    if row["dtype"] == "fp32":
        return TOLERATED
    return TOLERATED_FUSED.get(row["arch"], 0) if row["kernel"] == "attention_backward_fused" else 0


def describe(row: Row) -> str:
    return (
        " ".join(row[name] for name in IDENTITY if row[name])
        + f": {row['registers']} registers, {row['local_bytes']} bytes of local memory, "
        f"{row['shared_bytes']} of {row['shared_limit']} bytes of shared memory"
    )


def _triton_entries() -> Iterator[tuple[Case, Any, Row]]:
    """The launches of Triton's cases, with what is known of their rows before they are compiled."""
    for case in triton_cases():
        for launch in case.launches():
            yield case, launch, _expected(case, compiled_triton.facts(launch))


def _cuda_entries() -> Iterator[tuple[Case, Any, Row]]:
    """As above; none where the library has no CUDA, whose plans say what is launched."""
    for case in cuda_cases() if compiled_cuda.architectures() else ():
        for launch in case.launches():
            yield case, launch, _expected(case, compiled_cuda.facts(launch))


def _expected(case: Case, facts: Row) -> Row:
    return {**{k: str(v) for k, v in case._asdict().items()}, **facts, "shared_limit": str(SHARED_LIMIT[case.arch])}


def _rows(case: Case) -> list[Row]:
    return [_complete(case, launch, _expected(case, compiled_triton.facts(launch))) for launch in case.launches()]


def _complete(case: Case, launch: Any, expected: Row) -> Row:
    """A row with its results: compiled by Triton, looked up in the library for CUDA."""
    found = None
    if isinstance(case.arch, str):
        used = compiled_amd.usage(launch, case.arch)
        counts = count_pipes(compiled_amd.parse(used.code))
    else:
        module = compiled_cuda if case.backend == "cuda" else compiled_triton
        used = module.usage(launch, case.arch)
        instructions = parse(used.code)
        counts, found = count_pipes(instructions), bound.of_main_loop(instructions, case.arch)
    row = expected | {name: str(getattr(used, name)) for name in ("registers", "local_bytes", "shared_bytes")}
    row |= {f"sass_{pipe}": str(count) for pipe, count in counts.items()}
    return row | {"bound": f"{found.percent:.0f}" if found else "", "bound_pipe": found.limiter if found else ""}


def _made(expected: Row, known: dict[tuple[str, ...], Row]) -> bool:
    """Whether a row is there, whole, and of these sources."""
    return _complete_in(expected, known) and expected.items() <= known[_identity(expected)].items()


def _complete_in(expected: Row, known: dict[tuple[str, ...], Row]) -> bool:
    row = known.get(_identity(expected))
    return row is not None and all(row.get(name) for name in PIPE_COLUMNS)


def _checkable(case: Case, old: Row) -> bool:
    return case.backend != "cuda" or (
        compiled_cuda.code_for(case.arch) is not None and old["compiler"] == compiled_cuda.compiler()
    )


def _spread(entries: list) -> list:
    """SAMPLE of them, evenly."""
    return entries[:: max(1, -(-len(entries) // SAMPLE))]


def _identity(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in IDENTITY)
