"""Files at URLs that fsspec opens: object stores, web servers; their copies in a bounded cache on this machine."""

import hashlib
import os
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import IO, Any

from amuse.files import replace_file

ATTEMPTS = 3  # to open a copy that another process removes just then
HEAD = 1 << 16  # bytes; the header of a shard of 64 utterances fits
GIB = 1 << 30


def is_url(name: str | PathLike[str]) -> bool:
    """Whether it names a place that fsspec opens, such as "s3://bucket/folder". A `Path` never does."""
    return isinstance(name, str) and "://" in name


def read_url(url: str) -> bytes:
    """The whole content of a small file.

    Raises:
        FileNotFoundError: No such file.
        ImportError: fsspec or the driver of this kind of URL is not installed; names the package.
        ValueError: An unknown kind of URL.
    """
    files, path = _open_store(url)
    try:
        content: bytes = files.cat_file(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{url}: no such file") from None
    return content


@dataclass(frozen=True, slots=True)
class FileCache:
    """Whole copies of remote files, named by their SHA-256, which each was compared with when it was fetched.

    Above `limit` bytes the copies that were not used for longest are removed. Processes of a host share it: each file
    is fetched by one of them at a time.
    """

    folder: Path
    limit: int

    def copy_of(self, file: "RemoteFile") -> Path:
        """Where the copy of a file is, or will be."""
        return self.folder / file.sha256

    def fetch(self, file: "RemoteFile") -> None:
        """Makes sure that there is a copy.

        Raises:
            FileNotFoundError: The file is no longer there.
            ValueError: Its content does not have the hash.
        """
        from filelock import FileLock

        copy = self.copy_of(file)
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f".{file.sha256[:2]}.lock"):
            if copy.is_file():
                return
            files, path = _open_store(file.url)

            def download(temporary: Path) -> None:
                try:
                    files.get_file(path, str(temporary))
                except FileNotFoundError:
                    raise FileNotFoundError(f"{file.url}: no such file") from None
                with temporary.open("rb") as content:
                    if hashlib.file_digest(content, "sha256").hexdigest() != file.sha256:
                        raise ValueError(f"{file.url}: its content does not match the index; upload it again")

            replace_file(copy, download)
        self._shrink(keep=copy)

    def forget(self, file: "RemoteFile") -> None:
        """Removes the copy, so that the file is fetched and compared with its hash again."""
        self.copy_of(file).unlink(missing_ok=True)

    def _shrink(self, keep: Path) -> None:
        copies = []
        for entry in os.scandir(self.folder):
            if not entry.name.startswith("."):
                try:
                    status = entry.stat()
                except FileNotFoundError:  # another process removed it
                    continue
                copies.append((status.st_mtime_ns, status.st_size, Path(entry.path)))
        total = sum(size for _, size, _ in copies)
        for _, size, path in sorted(copies):
            if total <= self.limit:
                return
            if path != keep:
                path.unlink(missing_ok=True)
                total -= size


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file at a URL, read from its copy in the cache; it is fetched when there is none."""

    url: str
    sha256: str
    cache: FileCache

    def __str__(self) -> str:
        return self.url

    def head(self) -> tuple[bytes, int]:
        """The first `HEAD` bytes, read from the store, and the size of the file in bytes.

        Raises:
            FileNotFoundError: No such file.
        """
        files, path = _open_store(self.url)
        try:
            size = int(files.size(path))
            return self.part(0, min(HEAD, size)), size
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.url}: no such file; the index names it") from None

    def part(self, begin: int, end: int) -> bytes:
        """Some bytes, read from the store and not from the cache."""
        files, path = _open_store(self.url)
        content: bytes = files.cat_file(path, start=begin, end=end)
        return content

    def open(self) -> IO[bytes]:
        """The copy, unbuffered.

        Raises:
            FileNotFoundError, ValueError: See `FileCache.fetch`.
        """
        copy = self.cache.copy_of(self)
        for _ in range(ATTEMPTS):
            try:
                os.utime(copy)  # used now
                return copy.open("rb", buffering=0)
            except FileNotFoundError:
                self.cache.fetch(self)
        raise FileNotFoundError(f"{copy}: other processes remove it; expected a cache of over {self.cache.limit} bytes")


def _open_store(url: str) -> tuple[Any, str]:
    # a process that was forked needs its own connections: fsspec keeps one store per process and kind
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise ImportError(f"{url}: opening URLs needs fsspec: pip install fsspec") from None
    try:
        files, path = url_to_fs(url)
    except ImportError as error:
        raise ImportError(f"{url}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{url}: expected a URL that fsspec opens: {error}") from None
    return files, path
