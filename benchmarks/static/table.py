"""The table of compiled kernels: made, kept as CSV, checked against a new compilation, summed up for the docs."""

import csv
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import triton

from benchmarks.static.binaries import SHARED_LIMIT, Usage, source_hash, usage
from benchmarks.static.cases import Case, cases
from benchmarks.static.occupancy import occupancy

CSV = Path(__file__).with_name("kernels.csv")
IDENTITY = ("kernel", *Case._fields)
RESULTS = ("tile", "warps", "stages", *Usage._fields)
COLUMNS = (*IDENTITY, *RESULTS, "shared_limit", "triton", "source")
Row = dict[str, str]
SAMPLE = 20  # rows that a check compiles again, and as many of those whose source has changed


def read() -> list[Row]:
    if not CSV.is_file():
        return []
    with CSV.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(rows: Iterable[Row]) -> None:
    with CSV.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def update(seconds_left: Callable[[], float], processes: int = 1) -> list[Row]:
    """Compiles what the table lacks or has from other sources, writes it as it goes, and returns its rows.

    A run that is cut short, or that `seconds_left` ends, is continued by the next one.
    """
    known = {_identity(row): row for row in read()}
    identities, pending = [], []
    for case in cases():
        expected = [_expected(case, launch) for launch in case.launches()]
        identities += map(_identity, expected)
        if not all(row.items() <= known.get(_identity(row), {}).items() for row in expected):
            pending.append(case)
    with ProcessPoolExecutor(processes) as pool:
        for future in as_completed([pool.submit(_compiled, case) for case in pending]):
            if not future.cancelled():
                for row in future.result():
                    print(describe(row), flush=True)
                    known[_identity(row)] = row
                write(known.values())
            if seconds_left() < 0:
                pool.shutdown(wait=False, cancel_futures=True)
    rows = [known[identity] for identity in identities if identity in known]
    write(rows)
    return rows


def _compiled(case: Case) -> list[Row]:
    results = [(_expected(case, launch), usage(launch, case.arch)) for launch in case.launches()]
    return [row | {name: str(value) for name, value in used._asdict().items()} for row, used in results]


def check() -> list[str]:
    """Compiles a sample of the table again, and a sample of its rows whose source has changed: what differs."""
    known = {_identity(row): row for row in read()}
    expected = [(case, launch, _expected(case, launch)) for case in cases() for launch in case.launches()]
    present = [entry for entry in expected if _identity(entry[2]) in known]
    changed = [entry for entry in present if known[_identity(entry[2])]["source"] != entry[2]["source"]]
    missing = len(expected) - len(present)
    print(f"of {len(expected)} launches, {missing} are not in the table and {len(changed)} have a new source")
    problems = []
    for case, launch, row in _spread(present) + _spread(changed):
        old = known[_identity(row)]
        new = row | {name: str(value) for name, value in usage(launch, case.arch)._asdict().items()}
        if any(old[name] != new[name] for name in RESULTS):
            problems.append(f"{describe(new)}; the table says {describe(old)}: run python -m benchmarks.static")
    return problems


def _spread(entries: list) -> list:
    """SAMPLE of them, evenly."""
    return entries[:: max(1, -(-len(entries) // SAMPLE))]


def over_limits(rows: Iterable[Row]) -> list[str]:
    """Rows that no such chip could launch, or that spill registers at a head dim of up to 128."""
    return [
        describe(row)
        for row in rows
        if int(row["shared_bytes"]) > int(row["shared_limit"]) or (int(row["local_bytes"]) and int(row["width"]) <= 128)
    ]


def describe(row: Row) -> str:
    return (
        " ".join(row[name] for name in IDENTITY if row[name])
        + f": {row['registers']} registers, {row['local_bytes']} bytes of local memory, "
        f"{row['shared_bytes']} of {row['shared_limit']} bytes of shared memory"
    )


def summary(rows: list[Row]) -> str:
    """A Markdown table: the most that any dtype, option and chip needs, and occupancies, by kernel and width."""
    lines = [
        "| kernel | width | compiled | registers | local memory: rows (bytes) | shared memory, of limit | occupancy |",
        "|---|---|---|---|---|---|---|",
    ]
    for kernel, width in sorted({(row["kernel"], int(row["width"])) for row in rows}):
        group = [row for row in rows if (row["kernel"], int(row["width"])) == (kernel, width)]
        spilled = [int(row["local_bytes"]) for row in group if int(row["local_bytes"])]
        share = max(int(row["shared_bytes"]) / int(row["shared_limit"]) for row in group)
        resident = [occupancy(*(int(row[n]) for n in ("arch", "registers", "warps", "shared_bytes"))) for row in group]
        lines.append(
            f"| {kernel} | {width} | {len(group)} | {max(int(row['registers']) for row in group)} | "
            f"{f'{len(spilled)} ({max(spilled)})' if spilled else 'none'} | {share:.0%} | "
            f"{min(resident):.0%} to {max(resident):.0%} |"
        )
    return "\n".join(lines)


def _expected(case: Case, launch: Any) -> Row:
    """What is known of a row before it is compiled."""
    blocks = [f"{name.removeprefix('BLOCK_')}={n}" for name, n in launch.constexprs.items() if "BLOCK" in name]
    row = {"kernel": launch.kernel.fn.__name__, **{k: str(v) for k, v in case._asdict().items()}}
    return row | {
        "tile": " ".join(blocks),
        "warps": str(launch.num_warps),
        "stages": str(launch.num_stages),
        "shared_limit": str(SHARED_LIMIT[case.arch]),
        "triton": triton.__version__,
        "source": source_hash(launch),
    }


def _identity(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in IDENTITY)
