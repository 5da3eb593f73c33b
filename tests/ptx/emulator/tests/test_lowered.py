"""Large kernels are parsed once and kept on disk; mutants and changed emulators do not find what was kept."""

from __future__ import annotations

import pickle
import zlib

import pytest
import torch

from .. import lowered as module
from ..launch import load, run
from .snippets import kernel

BODY = "  ld.param.u64 %rd1, [x];\n  mov.u32 %r1, 7;\n  st.global.u32 [%rd1], %r1;\n" + "  mov.u32 %r2, 1;\n" * 3000
TEXT = kernel(BODY, ".u64 x")


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path)
    load.cache_clear()
    yield tmp_path
    load.cache_clear()


def result(**options):
    x = torch.zeros(1, dtype=torch.int32)
    run(TEXT, "k", 1, 1, [x], **options).assert_clean()
    return int(x)


def test_a_kernel_from_disk_does_what_the_parsed_one_did(folder, monkeypatch):
    assert result(keep=True) == 7
    [path] = folder.iterdir()
    load.cache_clear()
    monkeypatch.setattr(module, "parse", None)
    assert result(keep=True) == 7
    assert [*folder.iterdir()] == [path]
    parsed, code = pickle.loads(zlib.decompress(path.read_bytes()))
    assert parsed.kernels["k"] is code.kernel


def test_nothing_is_kept_unasked_and_another_version_is_not_read(folder, monkeypatch):
    assert result() == 7
    assert not [*folder.iterdir()]
    result(keep=True)
    load.cache_clear()
    monkeypatch.setattr(module, "_version", lambda: "another")
    assert result(keep=True) == 7
    assert len([*folder.iterdir()]) == 2
