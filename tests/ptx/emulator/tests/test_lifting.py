"""The folder works wherever it is copied: it imports nothing from the repository that it is in."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from .. import native

EMULATOR = Path(native.__file__).parent

# every module, tests included, and a launch; then what of the repository was imported
PROGRAM = """
import importlib, importlib.util, pathlib, sys
sys.path.insert(0, sys.argv[1])
import lifted
for path in sorted(pathlib.Path(lifted.__file__).parent.rglob("*.py")):
    if "triton" in path.stem and importlib.util.find_spec("triton") is None:
        continue
    name = ".".join(path.relative_to(sys.argv[1]).with_suffix("").parts).removesuffix(".__init__")
    importlib.import_module(name)
import torch
from lifted.tests.snippets import kernel
out = lifted.poisoned(1, torch.int32)
lifted.run(kernel("ld.param.u64 %rd1, [out]; st.global.u32 [%rd1], 7;"), "k", 1, 1, [out]).assert_clean()
assert out.item() == 7
repository = {"tests", "amuse_kernels", "amuse", "benchmarks"} & set(sys.modules)
assert not repository, repository
"""


def test_every_module_imports_alone_under_another_name(tmp_path):
    shutil.copytree(EMULATOR, tmp_path / "lifted", ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
