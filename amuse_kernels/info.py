"""Which backends this installation has, and why it lacks the others: `python -m amuse_kernels.info`."""

import importlib
import importlib.metadata
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from amuse_kernels.dispatch import BACKENDS, DEVICE_TYPES, unavailable_reason


def info() -> dict[str, Any]:
    """Versions, what was built, and which backends can run.

    Returns:
        A dict of JSON types with the keys `version`, `python`, `platform`, `torch`, `native` (`built`, `reason`,
        `compiler`, `openmp`, `isa`, `isas_compiled`, `threads`), `cuda` (`built`, `reason`, `nvcc`, `architectures`,
        `runtime_version`, `driver_version`, `devices`, `error`), `triton` (`importable`, `version`, `reason`) and
        `backends` (`backends[backend]` is None where it can run, else the reason why not). A `reason` is None where
        there is nothing to explain.
    """
    native, native_error = _import_native()
    record = _build_record()
    return {
        "version": _version(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "native": _native(native, native_error, record),
        "cuda": _cuda(native, record),
        "triton": _triton(),
        "backends": {backend: _reason(backend) for backend in BACKENDS},
    }


def _reason(backend: str) -> str | None:
    device_type = DEVICE_TYPES.get(backend, "cpu")
    reason = unavailable_reason(backend, device_type)
    if reason is None and device_type == "cuda" and not torch.cuda.is_available():
        return "torch sees no GPU"
    return reason


def _version() -> str:
    try:
        return importlib.metadata.version("amuse-kernels")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _import_native() -> tuple[Any, str | None]:
    """The native module, or None and the error."""
    try:
        return importlib.import_module("amuse_kernels._C"), None
    except ImportError as error:
        return None, str(error)


def _build_record() -> dict[str, Any]:
    """The record of the build; empty if it never ran or ran for another Python."""
    try:
        record = json.loads(Path(__file__).with_name("_build_info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    same_python = isinstance(record, dict) and record.get("python") == sys.implementation.cache_tag
    return record if same_python else {}


def _native(native: Any, error: str | None, record: dict[str, Any]) -> dict[str, Any]:
    if native is None:
        recorded = record.get("native", {})
        if recorded.get("built"):
            reason = f"it was built and cannot be imported: {error}"
        else:
            reason = recorded.get("reason") or "no build for this Python: run pip install"
        return {"built": False, "reason": reason}
    build = native.build_info()
    return {
        "built": True,
        "reason": None,
        "compiler": build["compiler"],
        "openmp": build["openmp"],
        "isa": build["isa"],
        "isas_compiled": build["isas_compiled"],
        "threads": torch.get_num_threads() if build["openmp"] else 1,
    }


def _cuda(native: Any, record: dict[str, Any]) -> dict[str, Any]:
    if native is None:
        return {"built": False, "reason": record.get("cuda", {}).get("reason") or "the native library is missing"}
    build = native.build_info()
    if not build["cuda"]:
        return {"built": False, "reason": record.get("cuda", {}).get("reason") or "the build left no reason"}
    report = native.cuda_info()
    return {
        "built": True,
        "reason": None,
        "nvcc": build["nvcc"],
        "architectures": build["cuda_architectures"].split(),
        "runtime_version": report["runtime_version"],
        "driver_version": report["driver_version"],
        "devices": report["devices"],
        "error": report["error"] or None,
    }


def _triton() -> dict[str, Any]:
    try:
        triton = importlib.import_module("triton")
    except Exception as error:  # a broken install may raise anything, and info must still print the rest
        return {"importable": False, "version": None, "reason": f"{type(error).__name__}: {error}"}
    return {"importable": True, "version": triton.__version__, "reason": None}


def _cuda_version(number: int) -> str:
    """CUDA's 1000 * major + 10 * minor as text."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else "none"


def _print(facts: dict[str, Any]) -> None:
    native, cuda, triton = facts["native"], facts["cuda"], facts["triton"]
    print(f"amuse_kernels {facts['version']}, torch {facts['torch']}, Python {facts['python']}, {facts['platform']}")
    if native["built"]:
        openmp = f"OpenMP {native['openmp']}" if native["openmp"] else "no OpenMP"
        print(f"native library: built with {native['compiler']}, {openmp}, {native['threads']} threads")
        print(f"                {native['isa']} in use, compiled in: {', '.join(native['isas_compiled'])}")
    else:
        print(f"native library: not built: {native['reason']}")
    if cuda["built"]:
        print(f"CUDA:           built with nvcc {cuda['nvcc']} for {' '.join(cuda['architectures'])}")
        driver, runtime = _cuda_version(cuda["driver_version"]), _cuda_version(cuda["runtime_version"])
        print(f"                runtime {runtime}, driver {driver}")
        for device in cuda["devices"]:
            capability = f"{device['compute_capability'] // 10}.{device['compute_capability'] % 10}"
            print(f"                {device['name']} ({capability}): {device['error'] or 'kernels available'}")
        if cuda["error"]:
            print(f"                {cuda['error']}")
    else:
        print(f"CUDA:           not built: {cuda['reason']}")
    print(f"triton:         {triton['version'] if triton['importable'] else 'not importable: ' + triton['reason']}")
    print()
    for backend, reason in facts["backends"].items():
        print(f"backend {backend:10} {'can run' if reason is None else 'cannot run: ' + reason}")


if __name__ == "__main__":
    _print(info())
