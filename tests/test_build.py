"""The build degrades in one clear line, the strict switch forbids it, and `info` tells the truth about the result."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from amuse_kernels import info as info_module
from amuse_kernels.dispatch import BACKENDS, native_module
from amuse_kernels.info import info

ROOT = Path(__file__).resolve().parents[1]

needs_native = pytest.mark.skipif(native_module() is None, reason="the native library is not built")


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """setup.py as a module; importing it builds nothing."""
    pytest.importorskip("setuptools")
    spec = importlib.util.spec_from_file_location("amuse_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["amuse_setup"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fake_build(build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """A build whose C++ compiler works and whose nvcc, where one is found, fails."""

    def fake(folder: Path, nvcc: str | None, environment: object) -> Path:
        if nvcc:
            raise build.CMakeError("nvcc: broken")
        return tmp_path / "_C.so"

    monkeypatch.setattr(build, "_build", fake)
    monkeypatch.setattr(build, "find_compiler", lambda environment: "/usr/bin/c++")
    return build


def options(build: ModuleType, **environment: str) -> object:
    return build.Options.from_environment(environment)


# --- setup.py ---


def test_missing_compiler_gives_a_pure_python_install_and_says_so_once(build, capsys):
    outcome, module = build.build_native(options(build), {"CXX": "/no/such/compiler"})
    assert module is None
    assert not outcome.native
    assert "CXX=/no/such/compiler does not exist" in outcome.native_reason
    assert len(capsys.readouterr().out.strip().splitlines()) == 1


def test_missing_nvcc_gives_a_cpu_library_and_says_so_once(fake_build, monkeypatch, capsys):
    monkeypatch.setattr(fake_build, "find_nvcc", lambda environment: (None, "no nvcc found"))
    outcome, module = fake_build.build_native(options(fake_build), {})
    assert module is not None
    assert (outcome.native, outcome.cuda, outcome.cuda_reason) == (True, False, "no nvcc found")
    assert len(capsys.readouterr().out.strip().splitlines()) == 1


def test_failing_nvcc_gives_a_cpu_library_and_says_so_once(fake_build, capsys):
    outcome, module = fake_build.build_native(options(fake_build), {"CUDACXX": sys.executable})
    assert module is not None
    assert outcome.native
    assert not outcome.cuda
    assert "nvcc: broken" in outcome.cuda_reason
    assert len(capsys.readouterr().out.strip().splitlines()) == 1


@pytest.mark.parametrize("switch", [{"AMUSE_STRICT_BUILD": "1"}, {"AMUSE_CUDA": "1"}])
def test_strict_builds_refuse_what_cannot_be_built(fake_build, monkeypatch, switch):
    strict = options(fake_build, **switch)
    with pytest.raises(fake_build.BuildError, match="nvcc: broken"):
        fake_build.build_native(strict, {"CUDACXX": sys.executable})
    with pytest.raises(fake_build.BuildError, match="CUDACXX=/no/such/nvcc does not exist"):
        fake_build.build_native(strict, {"CUDACXX": "/no/such/nvcc"})
    monkeypatch.setattr(fake_build, "find_compiler", lambda environment: None)
    with pytest.raises(fake_build.BuildError, match="no C\\+\\+ compiler found"):
        fake_build.build_native(strict, {})


def test_strict_build_without_cuda_is_fine_when_cuda_is_turned_off(fake_build):
    outcome, module = fake_build.build_native(options(fake_build, AMUSE_STRICT_BUILD="1", AMUSE_CUDA="0"), {})
    assert module is not None
    assert outcome.cuda_reason == "turned off by AMUSE_CUDA=0"
    assert outcome.messages == []


@pytest.mark.parametrize("name", ["AMUSE_CUDA", "AMUSE_STRICT_BUILD"])
def test_misspelt_switch_is_an_error_that_names_it(build, name):
    with pytest.raises(build.BuildError, match=f"{name}: expected .* got 'maybe'"):
        options(build, **{name: "maybe"})


def test_failed_tool_is_summarised_by_the_line_that_says_most(build):
    log = ["CMake Error at CMakeLists.txt:3:\n", "  a.cpp:1:2: error: unknown type\n", "ninja: build stopped\n"]
    assert build._summary(log) == "a.cpp:1:2: error: unknown type"


def test_source_distribution_holds_every_native_source(build):
    listed = set(build.native_sources())
    present = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    assert present <= listed


# --- info ---


def test_info_is_json_and_covers_every_backend():
    facts = json.loads(json.dumps(info()))
    assert set(facts["backends"]) == set(BACKENDS)
    assert facts["backends"]["reference"] is None
    assert facts["torch"] == torch.__version__


def test_info_agrees_with_what_can_be_imported():
    facts = info()
    assert facts["native"]["built"] == (native_module() is not None)
    if facts["native"]["built"]:
        assert facts["native"]["isa"] in facts["native"]["isas_compiled"]
    for part in ("native", "cuda"):
        assert facts[part]["built"] == (facts[part]["reason"] is None)


def test_info_explains_a_missing_library(monkeypatch, capsys):
    record = {"native": {"built": False, "reason": "no C++ compiler found"}, "cuda": {"built": False, "reason": "same"}}
    monkeypatch.setattr(info_module, "_import_native", lambda: (None, "No module named 'amuse_kernels._C'"))
    monkeypatch.setattr(info_module, "_build_record", lambda: record)
    facts = info()
    assert facts["native"] == {"built": False, "reason": "no C++ compiler found"}
    info_module._print(facts)
    assert "not built: no C++ compiler found" in capsys.readouterr().out


def test_info_explains_a_library_that_does_not_import(monkeypatch):
    monkeypatch.setattr(info_module, "_import_native", lambda: (None, "undefined symbol: x"))
    monkeypatch.setattr(info_module, "_build_record", lambda: {"native": {"built": True, "reason": None}})
    assert info()["native"]["reason"] == "it was built and cannot be imported: undefined symbol: x"


def test_info_runs_as_a_command():
    done = subprocess.run([sys.executable, "-m", "amuse_kernels.info"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert "native library:" in done.stdout
    assert "backend reference  can run" in done.stdout


# --- the native module ---


@needs_native
def test_native_module_imports_without_torch_and_without_a_driver():
    native = native_module()
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('_C', {native.__file__!r})\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "facts = module.build_info()\n"
        "report = module.cuda_info() if facts['cuda'] else None\n"
        "assert report is None or report['devices'] or report['error'], report\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_native
def test_kernels_obey_torch_set_num_threads():
    native = native_module()
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert native.team_size(torch.get_num_threads(), 10**8) == threads
            # OpenMP's own default agrees, since both libraries share one OpenMP runtime.
            assert native.team_size(0, 10**8) == threads
    finally:
        torch.set_num_threads(before)


@needs_native
def test_wild_arguments_are_value_errors_that_name_the_argument():
    native = native_module()
    x, stray = torch.zeros(4, 8), torch.frombuffer(bytearray(129), dtype=torch.float32, count=32, offset=1).view(4, 8)
    interpolation, fusion = native.interpolation_coefficients_forward, native.adaptive_fusion_forward
    for arguments, message in (
        ((x.int(), x, x, x), "a: expected a floating dtype"),
        ((x[0], x, x, x), "a: expected 2 dimensions, got 1"),
        ((x[:, :0], x, x, x), "a: expected a width of at least 1, got 0"),
        ((x, x.double(), x, x), "b: expected DLPack dtype 2 of 32 bits, got 2 of 64 bits"),
        ((x, x, x[:3], x), "grad_b: expected a size of 4, got 3"),
        ((x, x, x, torch.zeros(8, 4).T), "out: expected a contiguous tensor"),
        ((x, stray, x, x), "b: expected aligned memory"),
    ):
        with pytest.raises(ValueError, match=message):
            interpolation(*arguments, 0.1)
    with pytest.raises(ValueError, match="num_threads: expected 0"):
        interpolation(x, x, x, x, 0.1, -1)
    nine, alpha = torch.zeros(1, 9, 8), torch.zeros(1, 9, 9)
    with pytest.raises(ValueError, match="descriptors: expected 1 to 8 modalities, got 9"):
        fusion(nine, alpha, None, None, None, nine, alpha)
    with pytest.raises(ValueError, match="alpha: expected a size of 8, got 9"):
        fusion(nine[:, :8], alpha, None, None, None, nine, alpha)
    with pytest.raises(ValueError, match="pair_weight: expected a size of 56, got 2"):
        fusion(nine[:, :8], None, torch.zeros(2, 2, 8), torch.zeros(2), None, nine, alpha)


# The child compares bytes: torch's own parallel operations may hang after a fork.
_FORK = """
import os, signal, sys, torch
from amuse_kernels.dispatch import native_module
native = native_module()
n, d = 4096, 256
a, b, g = torch.randn(3, n, d)
def run():
    out = torch.empty(n, d)
    native.interpolation_coefficients_forward(a, b, g, out, 0.2, 2)
    return out.numpy().tobytes()
expected = run()
child = os.fork()
if child == 0:
    signal.alarm(60)
    os._exit(0 if run() == expected else 1)
sys.exit(abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
"""


@needs_native
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
def test_kernels_run_in_a_forked_child():
    subprocess.run([sys.executable, "-W", "ignore", "-c", _FORK], check=True, timeout=120, cwd=ROOT)


# What info says of each package, in forks of a process that has imported torch. Without the finder of an editable
# install, which would find the checkout's native module for a package without one.
_INFO = """
import os, runpy, sys, torch
sys.meta_path = [finder for finder in sys.meta_path if "Editable" not in getattr(finder, "__name__", "")]
for place in sys.argv[1:]:
    if os.fork() == 0:
        sys.path.insert(0, place)
        runpy.run_module("amuse_kernels.info", run_name="__main__")
        sys.exit()
    assert os.wait()[1] == 0
"""


def without_avx(compiler: str, folder: Path) -> str:
    """A compiler that knows no AVX: kernels are compiled once instead of for three instruction sets."""
    wrapper = folder / "c++"
    wrapper.write_text(f'#!/bin/sh\ncase "$*" in *-mavx*) exit 1 ;; esac\nexec {compiler} "$@"\n')
    wrapper.chmod(0o755)
    return str(wrapper)


@pytest.mark.slow
def test_plain_install_succeeds_and_info_says_what_is_missing(build, tmp_path):
    """From a copy of the sources: a build in the checkout would replace the one that is there. One build serves all."""
    pytest.importorskip("pybind11")
    compiler = build.find_compiler(os.environ)
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    source, built = tmp_path / "source", shutil.ignore_patterns("_C*", "_build_info*", "__pycache__")
    for folder in ("amuse", "amuse_kernels", "csrc"):
        shutil.copytree(ROOT / folder, source / folder, ignore=built)
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("AMUSE_")}
    clean["CMAKE_BUILD_TYPE"] = "None"  # not optimised, which compiles in a third of the time
    clean["CXX"] = without_avx(compiler, tmp_path)
    installs = (
        ({"CXX": "/no/such/compiler"}, "native library: not built: CXX=/no/such/compiler does not exist"),
        ({"AMUSE_CUDA": "0"}, "CUDA:           not built: turned off by AMUSE_CUDA=0"),
        ({"CUDACXX": "/bin/false"}, "CUDA:           not built: the build with nvcc (/bin/false) failed"),
    )
    for number, (environment, _) in enumerate(installs):
        options = ["--quiet", "--no-deps", "--no-build-isolation", "--target", str(tmp_path / f"site{number}")]
        install = [sys.executable, "-m", "pip", "install", *options, str(source)]
        subprocess.run(install, check=True, env=clean | environment, cwd=tmp_path)
    places = [str(tmp_path / f"site{number}") for number in range(len(installs))]
    told = subprocess.run(
        [sys.executable, "-c", _INFO, *places], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    _, *parts = re.split("^(?=amuse_kernels )", told.stdout, flags=re.MULTILINE)
    for number, (part, (_, expected)) in enumerate(zip(parts, installs, strict=True)):
        assert expected in part
        assert ("compiled in: baseline\n" in part) == (number > 0)
    # the CPU library was compiled once, whatever the variables of CUDA's compiler were
    logs = [*source.glob("build/cmake-*/cpu/build.log")]
    assert len(logs) == 1
    assert "Building CXX" not in logs[0].read_text()
