import os
import shutil
from pathlib import Path

import hypothesis
import pytest
import torch

from tests import backends

# Tests in parallel processes (pytest -n) have one thread each, and so have the processes that they start
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)

# torch.empty from the package's kernels must never be read before it is written
torch.utils.deterministic.fill_uninitialized_memory = True

# pytest --hypothesis-profile=long: what `make fuzz` runs
hypothesis.settings.register_profile("short", max_examples=100, deadline=None, derandomize=True)
hypothesis.settings.register_profile("long", max_examples=20_000, deadline=None)
hypothesis.settings.load_profile("short")

backends.install()


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets beside the checkout, or where AMUSE_DATA points; without them their tests are skipped."""
    folder = Path(os.environ.get("AMUSE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "meld").is_dir():
        pytest.skip(f"no real data in {folder}; set AMUSE_DATA to a folder with meld/ and mosi_features/")
    return folder


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("the browser tests need chromium")
    quiet = ["--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update"]
    arguments = ["--no-sandbox", "--no-first-run", "--disable-sync", *quiet]
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=arguments)
        yield opened
        opened.close()
