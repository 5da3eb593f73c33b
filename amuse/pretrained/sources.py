"""Files that the authors of a data set publish, each at a fixed revision and checked by its hash."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

from amuse.errors import in_words
from amuse.files import sha256, write_bytes

GITHUB = "https://raw.githubusercontent.com"
TIMEOUT = 60  # seconds


class Published(NamedTuple):
    """A file on GitHub."""

    repository: str
    revision: str
    path: str
    sha256: str

    @property
    def url(self) -> str:
        return f"{GITHUB}/{self.repository}/{self.revision}/{self.path}"


MELD = {
    "train_sent_emo.csv": Published(
        *("declare-lab/MELD", "ca3e1266db4cc4a4e802156e2f721c4cd114a696", "data/MELD/train_sent_emo.csv"),
        "d2fa2d6529cf03cac2989efec05c9b27d8fd2f4c8fc5974c7ae88aa537fa02db",
    ),
    "dev_sent_emo.csv": Published(
        *("declare-lab/MELD", "ca3e1266db4cc4a4e802156e2f721c4cd114a696", "data/MELD/dev_sent_emo.csv"),
        "2e89c6f8aa182d6f62f8c6331aece905ac7273ca4999660bfb5213e1d0370c1c",
    ),
    "test_sent_emo.csv": Published(
        *("declare-lab/MELD", "76e4ed20032322e47bbe04d3b5179f9b2e35bec9", "data/MELD/test_sent_emo.csv"),
        "8d37103938f7067600839fe29d5a114a6cd1bcdafb75bec101e06464c5006888",
    ),
}


def fetch(files: Mapping[str, Published], folder: Path) -> None:
    """Download the files that the folder lacks.

    Raises:
        FileNotFoundError: A file is unavailable; says what to do without a network.
        ValueError: A download has another hash; it is not kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, published in files.items():
        path = folder / name
        if path.is_file() and sha256(path) == published.sha256:
            continue
        try:
            with urlopen(published.url, timeout=TIMEOUT) as response:
                content = response.read()
        except OSError as error:
            raise FileNotFoundError(
                f"{published.url}: unavailable ({in_words(error)}); "
                f"with a folder that holds {', '.join(files)}: --data FOLDER"
            ) from None
        found = hashlib.sha256(content).hexdigest()
        if found != published.sha256:
            raise ValueError(f"{published.url}: expected SHA-256 {published.sha256}, got {found}")
        write_bytes(content, path)


def verify(files: Mapping[str, Published], folder: Path) -> None:
    """Check that a folder has exactly these files.

    Raises:
        FileNotFoundError: One is missing.
        ValueError: One has another hash.
    """
    for name, published in files.items():
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; expected {', '.join(files)} in --data")
        if sha256(path) != published.sha256:
            raise ValueError(
                f"{path}: expected {published.path} of {published.repository} at {published.revision[:10]}, got "
                "another file; to train on other data: amuse train --data FOLDER"
            )
