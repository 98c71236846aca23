"""How files are written: whole or not at all, one operation at a time, with a clear word when the disk fails."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from slimcli.errors import StorageError

_DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG}


class Disk:
    """Every operation that changes a file of a run. A test puts another one in its place and lets any of them fail."""

    def write(self, file: IO[bytes], data: bytes) -> None:
        """All of the data at the file's position; the file is unbuffered, so a full disk is noticed here."""
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]

    def sync(self, handle: int) -> None:
        """Wait until what was written to this open file (or changed in this folder) is on the disk, not only in memory."""
        os.fsync(handle)

    def cut(self, file: IO[bytes], size: int) -> None:
        """Make the file end here."""
        file.truncate(size)

    def rename(self, source: Path, target: Path) -> None:
        """Put `source` where `target` was, at once."""
        source.replace(target)


disk = Disk()


def write_atomically(path: Path, data: bytes, check: Callable[[Path], object] = lambda path: None) -> None:
    """Put the data in a temporary file beside `path`, let `check` look at it, and rename it: `path` is old or new, never half.

    Raises `StorageError` where the disk is full or broken, and what `check` raises; the old file is then still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with faults_named(path, len(data)):
            try:
                with temporary.open("wb", buffering=0) as file:
                    disk.write(file, data)
                    disk.sync(file.fileno())
            except OSError:
                temporary.unlink(missing_ok=True)  # before the space is looked at
                raise
        check(temporary)
        with faults_named(path, len(data)):
            disk.rename(temporary, path)
            _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of processes that were killed while they wrote (nobody else may be writing here)."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def is_intact(path: Path) -> bool:
    """Whether every record of a file by torch.save has the checksum that it was written with (torch.load does not look)."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError):
        return False


@contextmanager
def faults_named(path: Path, needed: int = 0) -> Iterator[None]:
    """Turn a fault of the disk into a `StorageError` that names the file and the space; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FAULTS:
            raise
        raise StorageError(
            f"{path} cannot be written: {error.strerror} ({_megabytes(needed)} to write, {_free(path)} free on that disk)",
            "make room",
        ) from error


def _sync_folder(folder: Path) -> None:
    """A rename is on the disk only when its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        disk.sync(handle)
    finally:
        os.close(handle)


def _free(path: Path) -> str:
    try:
        return _megabytes(shutil.disk_usage(path.parent).free)
    except OSError:
        return "unknown space"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.2f} MB"
