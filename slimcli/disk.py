"""How files are written: whole or not at all, one operation at a time, with a clear word when the disk fails."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from slimcli.errors import StorageError

Content = bytes | Callable[[IO[bytes]], object]
"""What a file is to hold: its bytes, or what writes them, piece by piece, so that they are never all in memory."""
_DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG}
_PIECE = 1 << 24
"""How many bytes small pieces are gathered to before they are written."""


class Disk:
    """Every operation that changes a file of a run. A test puts another one in its place and lets any of them fail."""

    def write(self, file: IO[bytes], data: bytes | memoryview) -> None:
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


class _Pieces(io.RawIOBase):
    """An open file that is written piece by piece. A fault of the disk is kept for the end, when the size of all is known."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.size = 0
        self.fault: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.size += len(data)
        if self.fault is None:
            try:
                disk.write(self._file, data)
            except OSError as error:
                self.fault = error
        return len(data)


def write_atomically(path: Path, content: Content, check: Callable[[Path], object] = lambda path: None) -> None:
    """Put the content in a temporary file beside `path`, let `check` look at it, and rename it: `path` is old or new, never half.

    Raises `StorageError` where the disk is full or broken, and what `check` raises; the old file is then still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    size = 0
    try:
        with faults_named(path, lambda: size):
            try:
                with temporary.open("wb", buffering=0) as file:
                    pieces = _Pieces(file)
                    with io.BufferedWriter(pieces, _PIECE) as stream:
                        stream.write(content) if isinstance(content, bytes) else content(stream)
                    size = pieces.size
                    if pieces.fault is not None:
                        raise pieces.fault
                    disk.sync(file.fileno())
            except OSError:
                temporary.unlink(missing_ok=True)  # before the space is looked at
                raise
        check(temporary)
        with faults_named(path, lambda: size):
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
def faults_named(path: Path, needed: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """Turn a fault of the disk into a `StorageError` that names the file and the space; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FAULTS:
            raise
        raise StorageError(
            f"{path} cannot be written: {error.strerror} ({_megabytes(needed())} to write, {_free(path)} free on that disk)",
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
