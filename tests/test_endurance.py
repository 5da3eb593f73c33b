"""Many steps take no more memory than few, threads do not disturb each other, and forked processes do not hang."""

import gc
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from amuse_kernels import adaptive_fusion, interpolation_coefficients, p2c_attention
from amuse_kernels.nn import AdaptiveFusion, PeripheralCentralAttention
from tests.attention_cases import make_case
from tests.processes import run_module

STEPS = int(os.environ.get("AMUSE_SOAK_STEPS", 300))
SLACK = 4 * 2**20  # bytes; a leak of one small tensor a step would pass it in some thousand steps


def training_step(step):
    """Everything that a step of a small model calls, of sizes that change from step to step."""
    torch.manual_seed(step)
    batch, length = 1 + step % 5, 1 + step % 7
    attention = PeripheralCentralAttention(32, 2, [16, 8], gate="input", dropout=0.1)
    fusion = AdaptiveFusion(32, 2)
    sources = [torch.randn(batch, length, 16), torch.randn(batch, 2, 8)]
    mask = torch.rand(batch, length) < 0.7
    output, _ = attention(torch.randn(batch, 4, 32), sources, key_masks=[mask, None])
    fused, alpha = fusion(output.unflatten(1, (2, 2)).mean(1))
    coefficients = interpolation_coefficients(fused[:, 0], fused[:, 1], fused[:, 1], 0.1)
    (fused.sum() + alpha.sum() + coefficients.sum()).backward()
    with pytest.raises(ValueError, match="query"):
        p2c_attention(torch.zeros(1), sources, sources)


def resident_bytes():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells a process's memory this way")
def test_memory_does_not_grow_with_steps():
    for step in range(STEPS // 5):
        training_step(step)
    before = resident_bytes()
    for step in range(STEPS):
        training_step(step)
    grown = resident_bytes() - before
    assert grown < SLACK, f"{grown / 2**20:.1f} MB more after {STEPS} steps"


def results(seed):
    """Outputs and gradients of all ops for one seed."""
    case = make_case(queries=9, lengths=(33, 5), groups=True, dtype=torch.float32, seed=seed, dropout_p=0.2).leaves()
    descriptors = torch.randn(6, 3, 8, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    out, lse = case.run(return_lse=True, seed=seed)
    fused, _ = adaptive_fusion(descriptors, descriptors.detach()[..., :3].sigmoid())
    outputs = [out, torch.where(lse.isfinite(), lse, 0.0), fused]
    outputs.append(interpolation_coefficients(descriptors[:, 0], descriptors[:, 1], descriptors[:, 2], 0.1))
    return [*outputs, *torch.autograd.grad([x.sum() for x in outputs], [*case.floating(), descriptors])]


def test_eight_threads_give_the_bits_of_one():
    seeds = [seed % 20 for seed in range(160)]
    expected = {seed: results(seed) for seed in set(seeds)}
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(results, seeds))
    for seed, tensors in zip(seeds, found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(tensors, expected[seed], strict=True)), f"seed {seed}"


class Attended(Dataset):
    """Items that are computed by the ops, in the process that loads them."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return results(index)[0].detach()


def fork_after_a_call_with_many_threads():
    """The parent's OpenMP team exists before the workers are forked, which is what makes many libraries hang."""
    torch.set_num_threads(4)
    case = make_case(batch=4, queries=64, lengths=(128, 64), head_dim=32, dtype=torch.float32).leaves()
    case.run().sum().backward()
    expected = [Attended()[index] for index in range(8)]
    for _ in range(2):
        loader = DataLoader(Attended(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
        assert all(torch.equal(a, b) for a, b in zip(loader, expected, strict=True))
        case.run().sum().backward()
    child = os.fork()
    if child == 0:  # a worker that asks for more threads itself
        torch.set_num_threads(2)
        case.run().sum().backward()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    print("the same in every process")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_workers_give_the_bits_of_their_parent():
    assert "the same in every process" in run_module("tests.test_endurance")


if __name__ == "__main__":
    fork_after_a_call_with_many_threads()
