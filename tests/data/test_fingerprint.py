"""A fingerprint changes with the images and labels, and with nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from slimcli.data.fingerprint import fingerprint
from slimcli.data.sources import open_data
from slimcli.settings import DataSettings


def splits() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (count, 3, 5, 4), dtype=torch.uint8, generator=generator) for count in (9, 4, 6)]
    return [(part, torch.randint(0, 10, (len(part),), generator=generator)) for part in images]


def opened(batch_size: int = 8, seed: int = 0, **settings: Any) -> str:
    return open_data(DataSettings(**settings), batch_size=batch_size, seed=seed).fingerprint


@given(st.integers(0, 2), st.booleans(), st.data())
def test_it_changes_with_any_bit_of_any_split(split: int, label: bool, data: st.DataObject) -> None:
    changed = splits()
    flat = changed[split][label].view(-1)
    place, bit = data.draw(st.integers(0, len(flat) - 1)), data.draw(st.integers(0, 7))
    flat[place] ^= 1 << bit
    assert fingerprint(*changed) != fingerprint(*splits())
    flat[place] ^= 1 << bit
    assert fingerprint(*changed) == fingerprint(*splits())


def test_it_tells_apart_where_the_splits_are_cut() -> None:
    images, labels = splits()[0]
    cuts = {fingerprint((images[:cut], labels[:cut]), (images[cut:], labels[cut:])) for cut in range(1, 9)}
    assert len(cuts) == 8


def test_it_tells_apart_images_of_another_shape() -> None:
    images, labels = splits()[0]
    assert fingerprint((images.view(-1, 3, 4, 5), labels)) != fingerprint((images, labels))


def test_it_does_not_depend_on_the_layout_in_memory() -> None:
    images, labels = splits()[0]
    assert fingerprint((images.contiguous(memory_format=torch.channels_last), labels)) == fingerprint((images, labels))


def test_it_is_about_the_data_alone(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    content: dict[str, Any] = {"x_train": generator.integers(0, 256, (60, 8, 6), dtype=np.uint8), "y_train": np.arange(60) % 4}
    content |= {"x_test": content["x_train"][:20], "y_test": content["y_train"][:20]}
    np.savez(tmp_path / "d.npz", **content)
    np.savez_compressed(tmp_path / "e.npz", **content)
    spec = f"npz:{tmp_path / 'd.npz'}"
    first = opened(data=spec)
    assert len(first) == 8
    assert int(first, 16) >= 0
    assert opened(batch_size=3, seed=5, data=spec, augment="flip", mean=(0.5,), std=(0.5,)) == first
    assert opened(data=f"npz:{tmp_path / 'e.npz'}") == first
    assert opened(data=spec, holdout=0.3) != first
    assert opened(data=spec, train_samples=20) != first
    for key in content:
        changed = content | {key: content[key].copy()}
        changed[key].flat[17] ^= 1
        np.savez(tmp_path / "d.npz", **changed)
        assert opened(data=spec) != first


@pytest.mark.parametrize("change", ["a pixel", "a label", "one less", "another name"])
def test_it_changes_with_any_file(tmp_path: Path, change: str) -> None:
    generator = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("ant", "bee"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(6):
                picture = Image.fromarray(generator.integers(0, 256, (8, 6, 3), dtype=np.uint8))
                picture.save(tmp_path / part / name / f"{number}.bmp")
    first = opened(data=f"folder:{tmp_path}")
    assert opened(data=f"folder:{tmp_path}") == first
    path = tmp_path / "val" / "ant" / "3.bmp"
    os.utime(path, (1, 1))
    assert opened(data=f"folder:{tmp_path}") == first  # a copy of the folder has other times
    if change == "a pixel":
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif change == "a label":
        path.rename(tmp_path / "val" / "bee" / "9.bmp")
    elif change == "one less":
        path.unlink()
    else:
        path.rename(path.with_name("9.bmp"))
    assert opened(data=f"folder:{tmp_path}") != first
