"""compute-sanitizer over one call of each CUDA C++ kernel, and ncu over the same calls, where they are installed."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import torch

from amuse.files import write_text
from amuse_kernels import adaptive_fusion, interpolation_coefficients
from benchmarks.gpu.checked import call_attention
from benchmarks.gpu.journal import Record
from benchmarks.gpu.smoke import QUERIES
from benchmarks.gpu.stage import Context, Item
from tests.attention_cases import make_case

TOOLS = ("memcheck", "racecheck", "synccheck")
CALLS = [sys.executable, "-m", "benchmarks.gpu.sanitizer"]
COUNTERS = (
    *("gpu__time_duration.sum", "dram__bytes_read.sum", "dram__bytes_write.sum", "launch__registers_per_thread"),
    *("sm__warps_active.avg.pct_of_peak_sustained_active", "smsp__inst_executed_pipe_tensor.sum"),
)
SECONDS = 60


def items(context: Context) -> Iterator[Item]:
    for tool in TOOLS:
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *CALLS]
        yield Item(f"compute-sanitizer {tool}", partial(_sanitized, command))
    ncu = ["ncu", "--clock-control", "none", "--kernel-name", "regex:attention|amuse", "--csv"]
    yield Item("ncu", partial(_counted, context, [*ncu, "--metrics", ",".join(COUNTERS), *CALLS]))


def _sanitized(command: list[str]) -> Iterator[Record]:
    if not shutil.which(command[0]):
        yield {"status": "not run", "reason": f"{command[0]} is not installed"}
        return
    run = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    text = run.stdout + run.stderr
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY.*", text)
    if run.returncode == 0 and summary:
        yield {"summary": summary[-1]}
    else:
        reason = summary[-1] if summary else f"ended with {run.returncode}"
        yield {"status": "wrong" if run.returncode == 9 else "failed", "reason": reason, "output": text}


def _counted(context: Context, command: list[str]) -> Iterator[Record]:
    if not shutil.which(command[0]):
        yield {"status": "not run", "reason": f"{command[0]} is not installed"}
        return
    run = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    write_text(run.stdout, context.folder / "ncu.csv")
    if run.returncode:
        yield {"status": "failed", "reason": f"ncu ended with {run.returncode}", "output": run.stdout + run.stderr}
    else:
        yield {"lines": run.stdout.count("\n"), "file": "ncu.csv"}


def calls() -> None:
    """One call, forward and backward, of each kernel of the backend that sanitizers can blame: the one in CUDA C++."""
    device = torch.device("cuda")
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for head_dim in (32, 64, 128, 256):
            for queries in QUERIES if head_dim <= 64 else QUERIES[:1]:
                for options in ({"masks": "holes"}, {"causal": True, "groups": True, "dropout_p": 0.3, "seed": 5}):
                    case = make_case(1, 2, queries, (queries, queries), head_dim, dtype, layouts=True, **options)
                    call_attention(case, "cuda", device)
        descriptors = torch.randn(20, 3, 40, device=device, dtype=dtype, requires_grad=True)
        weight, bias = torch.randn(6, 2, 40, device=device), torch.zeros(6, device=device)
        a, b, g = descriptors.unbind(1)
        mixed = interpolation_coefficients(a, b, g, 0.2, backend="cuda")
        fused, _ = adaptive_fusion(
            descriptors, pair_weight=weight.requires_grad_(), pair_bias=bias.requires_grad_(), backend="cuda"
        )
        (fused.sum() + mixed.sum()).backward()
    torch.cuda.synchronize()


if __name__ == "__main__":
    calls()
