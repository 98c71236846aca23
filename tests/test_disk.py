"""Files are old or new, never half; a disk that fails is named."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import IO
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slimcli.disk import remove_leftovers, write_atomically
from slimcli.errors import StorageError
from tests.resuming import FailingDisk


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_a_failed_check_leaves_the_former_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_atomically(path, b"first")

    def fail(temporary: Path) -> None:
        assert temporary.read_bytes() == b"second"
        assert path.read_bytes() == b"first"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"second", fail)
    assert files(tmp_path) == {"file.txt": b"first"}
    write_atomically(path, b"second")
    assert files(tmp_path) == {"file.txt": b"second"}


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("for_ever", [False, True])
@pytest.mark.parametrize("at", [1, 2, 3, 4])  # write, sync, rename, sync of the folder
def test_a_fault_in_any_operation_leaves_old_or_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int, for_ever: bool, at: int
) -> None:
    path = tmp_path / "file.txt"
    path.write_bytes(b"old")
    monkeypatch.setattr("slimcli.disk.disk", FailingDisk(at, fault, for_ever))
    with pytest.raises(StorageError, match="MB free") as caught:
        write_atomically(path, b"new" * 100)
    assert str(path) in caught.value.message
    assert caught.value.exit_code == 1
    assert files(tmp_path) == {"file.txt": b"old" if at < 4 else b"new" * 100}


@given(st.lists(st.binary(max_size=40)))
def test_what_is_written_in_pieces_is_what_is_written_at_once(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("pieces") / "file.txt"

    def write(file: IO[bytes]) -> None:
        for part in parts:
            assert file.write(part) == len(part)

    with mock.patch("slimcli.disk._PIECE", 16):
        write_atomically(path, write)
    assert files(path.parent) == {"file.txt": b"".join(parts)}


def test_small_pieces_are_one_write_and_an_error_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    counting = FailingDisk(0)
    monkeypatch.setattr("slimcli.disk.disk", counting)
    write_atomically(path, lambda file: [file.write(b"new") for _ in range(100)])
    assert counting.count == 4

    def stop(file: IO[bytes]) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, stop)
    assert files(tmp_path) == {"file.txt": b"new" * 100}


@pytest.mark.parametrize("for_ever", [False, True])
def test_a_full_disk_stops_pieces_and_the_size_of_all_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, for_ever: bool
) -> None:
    path = tmp_path / "network.pt"
    path.write_bytes(b"old")
    monkeypatch.setattr("slimcli.disk.disk", FailingDisk(2, for_ever=for_ever))
    monkeypatch.setattr("slimcli.disk._PIECE", 1000)
    with pytest.raises(StorageError, match=r"4\.0\d MB to write"):
        write_atomically(path, partial(torch.save, {f"layer{number}": torch.zeros(100_000) for number in range(10)}))
    assert files(tmp_path) == {"network.pt": b"old"}


def test_no_operation_is_left_uncounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = FailingDisk(0)
    monkeypatch.setattr("slimcli.disk.disk", counting)
    write_atomically(tmp_path / "file.txt", b"new")
    assert counting.count == 4


def test_an_error_that_is_no_fault_of_the_disk_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slimcli.disk.disk", FailingDisk(1, errno.EACCES))
    with pytest.raises(PermissionError):
        write_atomically(tmp_path / "file.txt", b"new")


def test_a_real_limit_is_met_in_the_middle_of_a_write(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys\nfrom pathlib import Path\nfrom slimcli.disk import write_atomically\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "write_atomically(Path(sys.argv[1]), b'x' * 10000)"
    )
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert "StorageError" in done.stderr
    assert "File too large" in done.stderr
    assert files(tmp_path) == {"file.bin": b"old"}
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 5000


def test_leftovers_go_and_nothing_else(tmp_path: Path) -> None:
    for name in (".model.pt.123.tmp", "model.pt", ".lock", "notes.tmp"):
        (tmp_path / name).write_bytes(b"x")
    remove_leftovers(tmp_path)
    assert files(tmp_path).keys() == {"model.pt", ".lock", "notes.tmp"}
