"""Triton kernels compiled ahead of time for AMD GPUs, on which nothing of the package has ever run."""

import importlib.util
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests import triton_interpreter

if importlib.util.find_spec("triton") is None or triton_interpreter.requested():
    pytest.skip("needs Triton's compiler", allow_module_level=True)

from amuse_kernels.dispatch import choose_backend, unavailable_reason
from amuse_kernels.launch import architecture
from benchmarks.static import compiled_amd
from benchmarks.static.binaries import SHARED_LIMIT
from benchmarks.static.cases import AMD, Case

CASES = [
    ("attention forward", "fp16", 64, "masks"),
    ("attention forward", "fp32", 128, "all options"),
    ("attention backward", "bf16", 128, "masks"),
    ("attention backward", "fp32", 64, "packed"),
    ("fusion forward", "fp32", 256, "gate"),
    ("fusion backward", "fp16", 256, "gate"),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("arch", AMD)
def test_kernels_compile_for_amd_within_64_kib_and_on_gfx942_without_spilling(arch, case):
    call, dtype, width, options = case
    normalization = "per_source" if "attention" in call else ""
    for launch in Case("triton", call, dtype, width, normalization, options, arch).launches():
        used = compiled_amd.usage(launch, arch)
        assert used.shared_bytes <= SHARED_LIMIT[arch] == 64 * 1024
        if arch == "gfx942":
            assert used.local_bytes == 0


def test_a_rocm_build_of_torch_chooses_triton_and_says_why_not_cuda(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "7.0")
    with FakeTensorMode():
        assert choose_backend("p2c_attention", torch.empty(1, device="cuda"), None) == "triton"
    assert "NVIDIA" in unavailable_reason("cuda", "cuda")
    properties = mock.Mock(gcnArchName="gfx942:sramecc+:xnack-")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert architecture(torch.device("cuda", 0)) == "gfx942"
