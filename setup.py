"""Builds the native library with CMake; everything else about the package is in pyproject.toml.

Environment variables (docs: `python -m amuse_kernels.info` afterwards says what was built and what was not, and why):
    AMUSE_CUDA                 auto (default): CUDA when an nvcc is found. 1: required. 0: off.
    AMUSE_CUDA_ARCHITECTURES   such as "80 90a"; default: the local GPUs', else Ampere to Blackwell.
    AMUSE_STRICT_BUILD         1: whatever cannot be built is an error instead of a line in the log.
    CXX, CUDACXX               compilers, as CMake reads them.
"""

import contextlib
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
RECORD = "_build_info.json"


class BuildError(RuntimeError):
    """Something could not be built, and the strict switch or an explicit AMUSE_CUDA=1 forbids continuing without it."""


@dataclass
class Options:
    cuda: str  # "auto", "on" or "off"
    strict: bool

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Options":
        cuda = {"": "auto", "auto": "auto", "1": "on", "0": "off"}.get(environment.get("AMUSE_CUDA", "").lower())
        strict = {"": False, "0": False, "1": True}.get(environment.get("AMUSE_STRICT_BUILD", ""))
        if cuda is None:
            raise BuildError(f"AMUSE_CUDA: expected 0, 1 or auto, got {environment['AMUSE_CUDA']!r}")
        if strict is None:
            raise BuildError(f"AMUSE_STRICT_BUILD: expected 0 or 1, got {environment['AMUSE_STRICT_BUILD']!r}")
        return cls(cuda, strict)


@dataclass
class Outcome:
    """The result of a build. The reasons say why a part is missing; they are None for a part that is there."""

    options: Options
    native: bool = False
    cuda: bool = False
    native_reason: str | None = None
    cuda_reason: str | None = None
    messages: list[str] = field(default_factory=list)

    def without_native(self, reason: str) -> None:
        """Continues without the native library, or raises if that is not allowed."""
        if self.options.strict or self.options.cuda == "on":
            raise BuildError(f"{reason} (required by AMUSE_STRICT_BUILD=1 or AMUSE_CUDA=1)")
        self.native_reason = self.cuda_reason = reason
        self._say(f"{reason}: pure Python install, only the reference and triton backends will run")

    def without_cuda(self, reason: str) -> None:
        """Continues without CUDA, or raises if that is not allowed."""
        if self.options.strict or self.options.cuda == "on":
            raise BuildError(f"{reason} (required by AMUSE_STRICT_BUILD=1 or AMUSE_CUDA=1; AMUSE_CUDA=0: no CUDA)")
        self.cuda_reason = reason
        self._say(f"{reason}: the native library is built for the CPU only")

    def _say(self, message: str) -> None:
        self.messages.append(message)
        print(f"amuse_kernels: {message}", flush=True)

    def record(self) -> dict[str, Any]:
        return {
            "python": sys.implementation.cache_tag,
            "native": {"built": self.native, "reason": self.native_reason},
            "cuda": {"built": self.cuda, "reason": self.cuda_reason},
            "messages": self.messages,
        }


def find_compiler(environment: Mapping[str, str]) -> str | None:
    """The C++ compiler that CMake will use, or None."""
    chosen = shlex.split(environment.get("CXX", ""))
    candidates = chosen[:1] or ["c++", "g++", "clang++"]
    path = environment.get("PATH")
    return next((found for name in candidates if (found := shutil.which(name, path=path))), None)


def find_nvcc(environment: Mapping[str, str]) -> tuple[str | None, str]:
    """The nvcc to use, or None and the reason. Whether there is a GPU does not matter."""
    path = environment.get("PATH")
    chosen = shlex.split(environment.get("CUDACXX", ""))
    if chosen:
        return shutil.which(chosen[0], path=path), f"CUDACXX={chosen[0]} does not exist"
    homes = [environment.get("CUDA_HOME"), environment.get("CUDA_PATH"), "/usr/local/cuda"]
    candidates = [str(Path(home) / "bin" / "nvcc") for home in homes if home]
    found = [shutil.which(name, path=path) for name in ["nvcc", *candidates]]
    return next((name for name in found if name), None), "no nvcc found"


def find_tool(name: str) -> str | None:
    """cmake or ninja: the PyPI package of this build environment first, since its version is known, then the PATH."""
    with contextlib.suppress(ImportError):
        package = importlib.import_module(name)
        folder = getattr(package, "CMAKE_BIN_DIR" if name == "cmake" else "BIN_DIR", None)
        if folder and (found := shutil.which(name, path=str(folder))):
            return found
    scripts = sysconfig.get_path("scripts")
    return shutil.which(name) or shutil.which(name, path=scripts)


class CMakeError(RuntimeError):
    """CMake or the compiler failed; the message is one line."""


def _run(command: list[str], log: Path, environment: Mapping[str, str]) -> None:
    """Runs a command, showing its output and keeping it in `log`."""
    lines = []
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            sys.stdout.write(line)
    log.write_text("".join(lines), encoding="utf-8")
    if process.returncode != 0:
        raise CMakeError(_summary(lines))


def _summary(lines: list[str]) -> str:
    """The line of a log that says most about a failure."""
    for pattern in (r"error\b.*: .+|: (fatal )?error", r"is not able to compile", r"CMake Error|FAILED"):
        for line in lines:
            if re.search(pattern, line) and "CMake Error at" not in line:
                text = " ".join(line.split()).removesuffix(".")[:300]
                return text.replace("is not able to compile", "the compiler is not able to compile")
    return " ".join(lines[-1].split())[:300] if lines else "no output"


def _configure(folder: Path, nvcc: str | None, environment: Mapping[str, str]) -> list[str]:
    """Configures `folder`, from scratch if need be. Returns the command that builds it."""
    cmake, ninja = find_tool("cmake"), find_tool("ninja")
    if cmake is None:
        raise CMakeError("cmake is missing")
    try:
        import pybind11
    except ImportError:
        raise CMakeError("the Python package pybind11 is missing") from None
    arguments = [
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DAMUSE_CUDA={'ON' if nvcc else 'OFF'}",
        "-DAMUSE_BUILD_PYTHON=ON",
        "-DAMUSE_BUILD_TESTS=OFF",
    ]
    if ninja:
        arguments += ["-GNinja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    if nvcc:
        arguments.append(f"-DCMAKE_CUDA_COMPILER={nvcc}")

    # CMake keeps the compilers and flags of the first configuration, whatever the environment says later.
    kept = ["CXX", "CXXFLAGS", "LDFLAGS", "CMAKE_BUILD_TYPE"]
    if nvcc:
        kept += ["CUDACXX", "CUDAFLAGS", "CUDAHOSTCXX", "AMUSE_CUDA_ARCHITECTURES"]
    include = sysconfig.get_path("include")
    state = json.dumps([str(ROOT), bool(ninja), nvcc, include, {name: environment.get(name) for name in kept}])
    marker = folder / "amuse_environment.json"
    if not marker.is_file() or marker.read_text(encoding="utf-8") != state:
        shutil.rmtree(folder, ignore_errors=True)
    fresh = not folder.exists()
    command = [cmake, "-S", str(ROOT), "-B", str(folder), *arguments]
    for attempt in range(2):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            _run(command, folder / "configure.log", environment)
            break
        except CMakeError:
            # A cache may name tools of a build environment that is gone: once more without it.
            if fresh or attempt == 1:
                raise
            shutil.rmtree(folder)
    marker.write_text(state, encoding="utf-8")
    return [cmake, "--build", str(folder), "--parallel"]


def _build(folder: Path, nvcc: str | None, environment: Mapping[str, str]) -> Path:
    """Configures and builds; returns the module."""
    command = _configure(folder, nvcc, environment)
    _run(command, folder / "build.log", environment)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    module = folder / f"_C{suffix}"
    if not module.is_file():
        raise CMakeError(f"the build left no {module.name}")
    return module


def build_native(options: Options, environment: Mapping[str, str]) -> tuple[Outcome, Path | None]:
    """Builds as much as this machine allows.

    Raises:
        BuildError: something is missing that `options` require.
    """
    outcome = Outcome(options)
    # Fixed folders, so that a rebuild is incremental although every editable install gets a temporary one.
    base = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
    compiler = find_compiler(environment)
    if compiler is None:
        named = environment.get("CXX")
        outcome.without_native(f"CXX={named} does not exist" if named else "no C++ compiler found")
        return outcome, None

    if options.cuda == "off":
        outcome.cuda_reason = "turned off by AMUSE_CUDA=0"
    else:
        nvcc, reason = find_nvcc(environment)
        if nvcc is None:
            outcome.without_cuda(reason)
        else:
            try:
                module = _build(base / "cuda", nvcc, environment)
                outcome.native = outcome.cuda = True
                return outcome, module
            except CMakeError as error:
                cuda_error = f"the build with nvcc ({nvcc}) failed: {error}"
                if options.strict or options.cuda == "on":
                    outcome.without_cuda(cuda_error)
    try:
        module = _build(base / "cpu", None, environment)
    except CMakeError as error:
        outcome.without_native(f"the native build failed: {error}")
        return outcome, None
    outcome.native = True
    if outcome.cuda_reason is None:
        # Said only now: had the C++ compiler failed, nvcc would have been blamed for it.
        outcome.without_cuda(cuda_error)
    return outcome, module


class CMakeBuild(build_ext):
    """Builds `amuse_kernels._C` and writes the record that `amuse_kernels.info` reads."""

    def build_extension(self, ext: Extension) -> None:
        outcome, module = build_native(Options.from_environment(os.environ), os.environ)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        if module is None:
            target.unlink(missing_ok=True)
        else:
            shutil.copy2(module, target)
        record = json.dumps(outcome.record(), indent=2) + "\n"
        (target.parent / RECORD).write_text(record, encoding="utf-8")

    def copy_extensions_to_source(self) -> None:
        """Editable installs: puts the module and the record next to the Python files, in place of an older build's."""
        package = ROOT / "amuse_kernels"
        for ext in self.extensions:
            built = Path(self.build_lib, self.get_ext_filename(ext.name))
            source = package / built.name
            # A new file, not new content: another process may have the old one mapped.
            source.unlink(missing_ok=True)
            if built.is_file():
                shutil.copy2(built, source)
            shutil.copy2(built.parent / RECORD, package / RECORD)

    def get_outputs(self) -> list[str]:
        outputs = [name for name in super().get_outputs() if Path(name).exists()]
        return [*outputs, str(Path(self.build_lib, "amuse_kernels", RECORD))]

    def get_output_mapping(self) -> dict[str, str]:
        return {built: source for built, source in super().get_output_mapping().items() if Path(built).exists()}


def native_sources() -> list[str]:
    """The files that a source distribution needs besides the Python files."""
    patterns = ("*.h", "*.cpp", "*.cu", "*.cuh", "*.cmake", "CMakeLists.txt")
    files = [path for pattern in patterns for path in (ROOT / "csrc").rglob(pattern)]
    return ["CMakeLists.txt", *sorted(path.relative_to(ROOT).as_posix() for path in files)]


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("amuse_kernels._C", sources=[], depends=native_sources(), optional=True)],
        cmdclass={"build_ext": CMakeBuild},
    )
