"""The CPU workloads under pytest-benchmark: `pytest benchmarks`.

For statistics, histograms and comparing commits on one machine. The ratios that the docs quote come from
`python -m benchmarks.cpu`, which runs the contenders alternately.
"""

import pytest
import torch

from benchmarks import workloads

SHAPES = ("1", "2", "3", "4", "5")
MODES = ("forward", "forward+backward")


def _workload(name: str) -> workloads.Workload:
    torch.manual_seed(0)
    if name in SHAPES:
        return workloads.attention(name)
    return workloads.layer() if name == "layer" else workloads.fusion()


CASES = [
    (name, contender)
    for name in (*SHAPES, "layer", "fusion")
    for contender in (
        "ours",
        "eager",
        *(["SDPA per stream"] if name in SHAPES else []),
        *(["nn.MultiheadAttention per source"] if name == "layer" else []),
    )
]


@pytest.mark.parametrize(("name", "contender"), CASES)
@pytest.mark.parametrize("mode", MODES)
def test_workload(benchmark, name, contender, mode):
    work = _workload(name)
    upstream = work.check()
    benchmark.group = f"{work.name}, {mode}"

    def forward():
        with torch.no_grad():
            work.contenders[contender]()

    benchmark(forward if mode == "forward" else lambda: work.gradients(contender, upstream))
