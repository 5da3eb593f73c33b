import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from tests import backends, global_state

# Tests in parallel processes (pytest -n) have one thread each, and so have the processes that they start
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)

# Ray's workers run at nice 15 by default: beside other tests they would starve
os.environ.setdefault("RAY_worker_niceness", "0")

# As the package's tables were compiled; Triton 3.10 changes the default
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

# torch.empty from the package's kernels must never be read before it is written
torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]

# pytest --hypothesis-profile=long: what `make fuzz` runs
hypothesis.settings.register_profile("short", max_examples=100, deadline=None, derandomize=True)
hypothesis.settings.register_profile("long", max_examples=20_000, deadline=None)
hypothesis.settings.load_profile("short")

backends.install()


def pytest_collection_finish() -> None:
    exempt_from_collection()


def pytest_unconfigure() -> None:
    gc.unfreeze()


def exempt_from_collection() -> None:
    """Spares the garbage collector all that is alive now: in a process that has run many tests, millions of objects."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[Any]:
    """Seeds before a module is imported: the constants that it draws do not depend on the modules before it."""
    global_state.seed_generators()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Iterator[Any]:
    """Seeds before a fixture that several tests share: what it draws does not depend on which of them ran first."""
    if fixturedef.scope != "function":
        global_state.seed_generators()
    return (yield)


@pytest.fixture(autouse=True, scope="module")
def module_leaves_no_state(request: pytest.FixtureRequest) -> Iterator[None]:
    """Checks what the fixtures of a module left behind, after the last of its tests."""
    with global_state.kept(f"a fixture of {request.node.nodeid}"):
        yield
    exempt_from_collection()


@pytest.fixture(autouse=True)
def leaves_no_state(request: pytest.FixtureRequest, module_leaves_no_state: None) -> Iterator[None]:
    """Starts every test from the same generators, and fails one that changes global state and does not put it back."""
    global_state.seed_generators()
    with global_state.kept(request.node.nodeid):
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets next to the checkout, or where AMUSE_DATA points; without them their tests are skipped."""
    folder = Path(os.environ.get("AMUSE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "meld").is_dir():
        pytest.skip(f"no real data in {folder}; set AMUSE_DATA to a folder with meld/ and mosi_features/")
    return folder


@pytest.fixture(scope="session")
def launch_chromium():
    """Launches Chromium with more arguments. Playwright runs once in a process."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("the browser tests need chromium")
    with playwright.sync_playwright() as driver:
        yield lambda *more: driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu", *more])


@pytest.fixture(scope="session")
def browser(launch_chromium):
    quiet = ["--disable-quic", "--disable-background-networking", "--disable-component-update"]
    opened = launch_chromium("--no-first-run", "--disable-sync", *quiet)
    yield opened
    opened.close()
