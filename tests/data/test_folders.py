"""Images that stay in their files: the same batches as from memory, and what happens when a file or a worker is lost."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from slimcli.data import folders
from slimcli.data.folders import Files
from slimcli.data.memory import Augment, ImageLoader, place
from slimcli.errors import DataError

COUNT = 23
WORKERS = pytest.mark.parametrize("workers", [0, 2])


def pictures(root: Path) -> Files:
    """Random images; every fifth is of another size."""
    generator = np.random.default_rng(5)
    names = [f"{number}.png" for number in range(COUNT)]
    for number, name in enumerate(names):
        size = (8, 6) if number % 5 else (11, 13)
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / name)
    return Files(root, tuple(names), (3, 8, 6), workers=0)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return pictures(tmp_path)


@pytest.fixture(scope="module")
def kept_files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """For tests that leave the files as they are."""
    return pictures(tmp_path_factory.mktemp("kept"))


@pytest.fixture(autouse=True)
def _no_workers_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


def loader(images: Tensor | Files, **options: Any) -> ImageLoader:
    """The label of an image is its number."""
    options = {"batch_size": 4, "shuffle": True, "augment": Augment(2, True), "seed": 7} | options
    return ImageLoader(images, torch.arange(len(images)), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), **options)


def assert_same(one: ImageLoader, other: ImageLoader, epoch: int) -> None:
    for batch, expected in zip(one.epoch(epoch), other.epoch(epoch), strict=True):
        assert torch.equal(batch[0], expected[0])
        assert torch.equal(batch[1], expected[1])


def test_files_have_the_shape_and_the_indexing_of_their_images(files: Files) -> None:
    images = files.read()
    assert images.dtype == torch.uint8
    assert files.shape == images.shape
    assert files.nbytes == images.nbytes
    chosen = torch.tensor([7, 3, 3, 20])
    assert torch.equal(files[chosen].read(), images[chosen])


@pytest.mark.parametrize(("processes", "streamed"), [(1, False), (3, False), (4, True)])
def test_every_process_on_the_machine_must_have_room_for_the_images(
    files: Files, processes: int, streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=4 * files.nbytes))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    (placed,), notes = place([files], torch.device("cpu"))
    assert isinstance(placed, Files) == bool(notes) == streamed


@WORKERS
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_streamed_epochs_are_those_from_memory(kept_files: Files, workers: int, rank: int) -> None:
    streamed, held = loader(replace(kept_files, workers=workers)), loader(kept_files.read())
    for epoch in (0, 3):
        assert_same(streamed.shard(rank, 3), held.shard(rank, 3), epoch)
    assert_same(streamed, held, 5)


@given(st.integers(1, COUNT), st.integers(1, 30), st.integers(1, 3), st.booleans(), st.integers(0, 3), st.booleans(), st.data())
def test_streamed_batches_are_those_from_memory(
    kept_files: Files, count: int, batch_size: int, world: int, shuffle: bool, shift: int, flip: bool, data: st.DataObject
) -> None:
    options = {"batch_size": batch_size, "shuffle": shuffle, "augment": Augment(shift, flip)}
    some, rank = kept_files[torch.arange(count)], data.draw(st.integers(0, world - 1))
    assert_same(loader(some, **options).shard(rank, world), loader(some.read(), **options).shard(rank, world), 1)


@WORKERS
def test_streaming_does_not_touch_torchs_own_random_numbers(files: Files, workers: int) -> None:
    state = torch.get_rng_state()
    first = [labels.tolist() for _, labels in loader(replace(files, workers=workers)).epoch(0)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert [labels.tolist() for _, labels in loader(replace(files, workers=workers)).epoch(0)] == first


def test_an_epoch_that_is_dropped_leaves_no_workers(files: Files) -> None:
    batches = loader(replace(files, workers=2)).epoch(0)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    del batches
    assert multiprocessing.active_children() == []


@WORKERS
@pytest.mark.parametrize("fault", ["removed", "cut off", "no picture", "a folder"])
def test_an_image_that_is_lost_on_the_way_is_named(files: Files, workers: int, fault: str) -> None:
    source = loader(replace(files, workers=workers), shuffle=False, batch_size=1)
    batches = source.epoch(0)
    next(batches)
    lost = files.root / "19.png"
    whole = lost.read_bytes()
    lost.unlink()
    if fault == "a folder":
        lost.mkdir()
    elif fault != "removed":
        lost.write_bytes(whole[:-60] if fault == "cut off" else b"no picture")
    with pytest.raises(DataError, match=f"the image {lost} cannot be read") as caught:
        list(batches)
    assert multiprocessing.active_children() == []  # though the error, with its traceback, is still here
    assert "\n" not in caught.value.message
    assert "replace it" in caught.value.hint


def test_a_worker_that_is_killed_is_told_in_a_sentence(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(path: Path) -> Tensor:
        assert get_worker_info() is not None
        os.kill(os.getpid(), signal.SIGKILL)
        return torch.empty(0)

    monkeypatch.setattr(folders, "_pixels", killed)
    with pytest.raises(DataError, match=str(files.root)) as caught:
        list(loader(replace(files, workers=1)).epoch(0))
    assert "\n" not in caught.value.message
    assert "--workers 0" in caught.value.hint


@pytest.mark.parametrize(
    ("cores", "processes", "asked", "workers"),
    [(1, 1, None, 1), (8, 1, None, 4), (64, 1, None, 8), (64, 8, None, 4), (4, 4, None, 1), (64, 1, 0, 0), (1, 4, 3, 3)],
)
def test_each_process_has_its_share_of_the_cores_for_workers(
    files: Files, cores: int, processes: int, asked: int | None, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    started = []

    def spied(*_: Any, num_workers: int, **__: Any) -> list[Tensor]:
        started.append(num_workers)
        return []

    monkeypatch.setattr(folders, "DataLoader", spied)
    list(replace(files, workers=asked).batches(list(torch.arange(COUNT).split(1)), pinned=False))
    list(replace(files, workers=asked).batches([torch.arange(COUNT)], pinned=False))
    assert started == [workers, 0]  # a single batch is read by the process itself
