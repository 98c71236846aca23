"""`--data`: what opens, how it is split and normalised, and what is refused."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torch import Tensor

from slimcli.data import KNOWN
from slimcli.data.folders import Files
from slimcli.data.loaders import Data
from slimcli.data.memory import ImageLoader
from slimcli.data.sources import check_fits, open_data
from slimcli.errors import DataError
from slimcli.settings import DataSettings

Arrays = dict[str, Any]


def opened(
    recorded: dict[str, Any] | None = None, *, seed: int = 0, normalisation: Any = None, published: Any = None, **settings: Any
) -> Data:
    return open_data(
        DataSettings(**settings), recorded, batch_size=8, seed=seed, normalisation=normalisation, published=published
    )


def arrays(channels: int | None = None, train: int = 60, test: int = 20) -> Arrays:
    generator = np.random.default_rng(0)
    size = (8, 6) if channels is None else (8, 6, channels)
    return {
        "x_train": generator.integers(0, 256, (train, *size), dtype=np.uint8),
        "y_train": np.arange(train) % 4,
        "x_test": generator.integers(0, 256, (test, *size), dtype=np.uint8),
        "y_test": np.arange(test) % 4,
    }


def npz(path: Path, **changes: Any) -> str:
    """The spec of a file with these arrays; None leaves one out."""
    content = {key: value for key, value in (arrays() | changes).items() if value is not None}
    np.savez(path, **content)
    return f"npz:{path}"


def raw(loader: Any) -> Tensor:
    """The images of a loader as bytes, in order."""
    assert isinstance(loader, ImageLoader)
    return loader.plain().images


# What opens.


def test_digits_are_inside_the_package() -> None:
    data = opened()
    assert (data.name, data.shape, data.classes) == ("digits", (1, 28, 28), 10)
    assert (data.train.samples, data.held_out.samples, data.test.samples) == (5400, 600, 1000)
    labels = torch.cat([labels for _, labels in data.held_out.epoch(0)])
    assert labels.bincount().min() > 40
    assert data.notes
    assert data.spec == {"name": "digits", "holdout": 0.1, "augment": "shift:1"}


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "mnist32", "fashion-mnist32", "cifar10"])
def test_the_known_data_sets_open(name: str) -> None:
    if "SLIM_DATA" not in os.environ:
        pytest.skip("SLIM_DATA names no folder with data sets")
    try:
        data = opened(data=name)
    except DataError as error:
        pytest.skip(f"not in SLIM_DATA: {error}")
    known = KNOWN[name]
    assert (data.shape, data.classes) == (known.shape, known.classes)
    pixels = torch.cat([images for images, _ in data.test.epoch(0)])
    assert abs(pixels.mean()) < 0.1
    assert abs(pixels.std() - 1) < 0.1


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_an_npz_file_opens(tmp_path: Path, channels: int | None) -> None:
    content = arrays(channels)
    data = opened(data=npz(tmp_path / "d.npz", **content))
    assert data.shape == (channels or 1, 8, 6)
    assert data.classes == 4
    expected = torch.from_numpy(content["x_test"])
    expected = expected[:, None] if channels is None else expected.permute(0, 3, 1, 2)
    assert torch.equal(raw(data.test), expected)
    assert torch.cat([labels for _, labels in data.test.epoch(0)]).tolist() == content["y_test"].tolist()


def test_cifar10_may_be_an_npz_in_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npz(tmp_path / "cifar10.npz", **arrays(3))
    assert opened(data="cifar10", data_root=str(tmp_path)).shape == (3, 8, 6)
    monkeypatch.setenv("SLIM_DATA", str(tmp_path))
    assert opened(data="cifar10").classes == 10


def images(folder: Path, count: int, size: tuple[int, int] = (8, 6), value: int | None = None) -> None:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(count)
    for number in range(count):
        pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8) if value is None else np.full((*size, 3), value, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for part, count in (("train", 10), ("val", 4)):
        for name in ("ant", "bee", "cat"):
            images(root / part / name, count)
    return root


def test_a_folder_of_images_opens(folder: Path) -> None:
    data = opened(data=f"folder:{folder}")
    assert (data.shape, data.classes) == ((3, 8, 6), 3)
    assert (data.train.samples + data.held_out.samples, data.test.samples) == (30, 12)
    first = torch.from_numpy(np.array(Image.open(folder / "val" / "ant" / "0.png"))).permute(2, 0, 1)
    assert torch.equal(raw(data.test)[0], first)
    assert torch.cat([labels for _, labels in data.test.epoch(0)]).tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_images_of_other_sizes_are_fitted_to_the_first(folder: Path) -> None:
    for number, size in enumerate([(16, 12), (9, 30), (4, 3)]):
        images(folder / "val" / f"extra{number}", 1, size, value=200)
        images(folder / "train" / f"extra{number}", 1)
    data = opened(data=f"folder:{folder}")
    assert raw(data.test).shape == (15, 3, 8, 6)
    assert (raw(data.test)[-3:, :, 2:6, 1:5] == 200).all()


@pytest.mark.parametrize("val_data", [False, True])
def test_a_folder_that_does_not_fit_into_memory_is_the_same_data(
    tmp_path: Path, folder: Path, val_data: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"data": f"folder:{folder}", "augment": "shift:1,flip", "train_samples": 20}
    if val_data:
        images(tmp_path / "val" / "train" / "ant", 1)
        images(tmp_path / "val" / "val" / "ant", 5)
        settings["val_data"] = f"folder:{tmp_path / 'val'}"
    held = opened(**settings)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2000))
    streamed = opened(**settings)
    assert isinstance(streamed.train, ImageLoader)
    assert isinstance(streamed.train.images, Files)
    assert any("do not fit into memory" in note for note in streamed.notes)
    assert (streamed.mean, streamed.std, streamed.spec) == (held.mean, held.std, held.spec)
    assert (streamed.shape, streamed.classes, streamed.fingerprint) == (held.shape, held.classes, held.fingerprint)
    for one, other in ((streamed.train, held.train), (streamed.held_out, held.held_out), (streamed.test, held.test)):
        assert one.samples == other.samples
        for batch, same in zip(one.epoch(2), other.epoch(2), strict=True):
            assert torch.equal(batch[0], same[0])
            assert torch.equal(batch[1], same[1])


# How it is split and normalised.


def test_the_splits_are_disjoint_and_whole(tmp_path: Path) -> None:
    content = arrays() | {"x_train": np.arange(60, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(6, 2)}
    data = opened(data=npz(tmp_path / "d.npz", **content), holdout=0.2)
    train, held = raw(data.train)[:, 0, 0, 0].tolist(), raw(data.held_out)[:, 0, 0, 0].tolist()
    assert len(held) == 12
    assert sorted(train + held) == list(range(60))
    assert not set(train) & set(held)
    again = opened(data=npz(tmp_path / "d.npz", **content), holdout=0.2, seed=5)
    assert torch.equal(raw(again.held_out), raw(data.held_out))  # whatever the seed


def test_what_was_held_out_stays_held_out_when_training_on_less(tmp_path: Path) -> None:
    spec = npz(tmp_path / "d.npz")
    few, all_ = opened(data=spec, train_samples=15), opened(data=spec)
    assert few.train.samples == 15
    assert torch.equal(raw(few.held_out), raw(all_.held_out))
    assert torch.cat([labels for _, labels in few.train.epoch(0)]).bincount().min() >= 3
    assert opened(data=spec, train_samples=10_000).train.samples == 54


def test_held_out_images_may_come_from_another_set(tmp_path: Path) -> None:
    spec, other = npz(tmp_path / "d.npz"), npz(tmp_path / "v.npz", x_test=np.full((20, 8, 6), 7, np.uint8))
    data = opened(data=spec, val_data=other)
    assert data.train.samples == 60
    assert (raw(data.held_out) == 7).all()


def test_a_checkpoints_data_is_opened_as_it_was(tmp_path: Path) -> None:
    spec = npz(tmp_path / "d.npz")
    first = opened(data=spec, holdout=0.3)
    again = opened(first.spec)
    assert again.name == spec
    assert torch.equal(raw(again.held_out), raw(first.held_out))
    assert opened({"name": "mnist", "holdout": 0.3}, data=spec).held_out.samples == 6  # another set, asked for: its own split


def test_a_checkpoints_held_out_set_is_opened_too(tmp_path: Path) -> None:
    """Or else images that the network was trained on would be held out."""
    first = opened(data=npz(tmp_path / "d.npz"), val_data=npz(tmp_path / "v.npz", x_test=np.full((20, 8, 6), 7, np.uint8)))
    again = opened(first.spec)
    assert again.train.samples == first.train.samples == 60
    assert torch.equal(raw(again.held_out), raw(first.held_out))


def test_normalisation_is_the_users_then_the_checkpoints_then_the_data_sets(tmp_path: Path) -> None:
    spec = npz(tmp_path / "d.npz")
    given = opened(data=spec, mean=(0.5,), std=(0.2,), normalisation=((0.1,), (0.3,)))
    assert (given.mean, given.std, given.notes) == ((0.5,), (0.2,), ())
    recorded = opened(data=spec, normalisation=((0.1,), (0.3,)))
    assert (recorded.mean, recorded.std, recorded.notes) == ((0.1,), (0.3,), ())
    assert (opened().mean, opened().std) == (KNOWN["digits"].mean, KNOWN["digits"].std)
    published = ((0.4,), (0.6,))
    assert (opened(published=published).mean, opened().mean) == (KNOWN["digits"].mean,) * 2
    assumed = opened(data=spec, published=published)
    assert (assumed.mean, assumed.std) == published
    assert "published" in assumed.notes[0]
    assert opened(data=spec, published=((0.1,) * 3, (0.2,) * 3)).mean == opened(data=spec).mean
    measured = opened(data=spec)
    assert "--mean" in measured.notes[0]
    pixels = torch.cat([images for images, _ in opened(data=spec, augment="none").train.epoch(0)])
    assert abs(pixels.mean()) < 0.1
    assert abs(pixels.std() - 1) < 0.1


def test_constant_images_can_be_normalised(tmp_path: Path) -> None:
    data = opened(data=npz(tmp_path / "d.npz", x_train=np.zeros((60, 8, 6), np.uint8)))
    assert all(images.isfinite().all() for images, _ in data.train.epoch(0))


@pytest.mark.parametrize(
    ("name", "augment", "shift", "flip"),
    [("digits", "auto", 1, False), ("digits", "flip", 0, True), ("npz", "auto", 0, False), ("npz", "shift:2", 2, False)],
)
def test_augmentation_is_the_data_sets_unless_named(tmp_path: Path, name: str, augment: str, shift: int, flip: bool) -> None:
    data = opened(data=npz(tmp_path / "d.npz") if name == "npz" else name, augment=augment)
    assert isinstance(data.train, ImageLoader)
    assert isinstance(data.test, ImageLoader)
    assert (data.train.augment.shift, data.train.augment.flip) == (shift, flip)
    assert data.test.augment.shift == 0
    assert not data.test.shuffle


# What is refused.

BAD_ARRAYS: dict[str, tuple[Arrays, str]] = {
    **{f"no {key}": ({key: None}, key) for key in ("x_train", "y_train", "x_test", "y_test")},
    "float images": ({"x_train": np.zeros((60, 8, 6))}, "float64"),
    "signed images": ({"x_test": np.zeros((20, 8, 6), np.int8)}, "int8"),
    "flat images": ({"x_train": np.zeros((60, 48), np.uint8)}, "x_train"),
    "one number": ({"x_train": np.array(3, np.uint8)}, "x_train"),
    "no images": ({"x_train": np.zeros((0, 8, 6), np.uint8), "y_train": np.zeros(0, np.int64)}, "x_train"),
    "one image": ({"x_train": np.zeros((1, 8, 6), np.uint8), "y_train": np.zeros(1, np.int64)}, ""),
    "images without size": ({"x_train": np.zeros((60, 0, 6), np.uint8)}, "x_train"),
    "other sizes for testing": ({"x_test": np.zeros((20, 9, 9), np.uint8)}, ""),
    "other channels for testing": ({"x_test": np.zeros((20, 8, 6, 3), np.uint8)}, ""),
    "too few labels": ({"y_train": np.zeros(59, np.int64)}, "length"),
    "negative labels": ({"y_train": np.arange(60) - 1}, "negative"),
    "names for labels": ({"y_train": np.array(["cat"] * 60)}, "y_train"),
    "objects for labels": ({"y_train": np.array([None] * 60)}, ""),
    "one label": ({"y_train": np.array(3)}, "y_train"),
    "one-hot labels": ({"y_train": np.eye(4)[np.arange(60) % 4], "y_test": np.eye(4)[np.arange(20) % 4]}, "y_train"),
    "fractions for labels": ({"y_train": np.arange(60) / 7}, "y_train"),
    "nan for labels": ({"y_train": np.full(60, np.nan)}, ""),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
@pytest.mark.filterwarnings("ignore")
def test_wrong_arrays_are_named(tmp_path: Path, kind: str) -> None:
    changes, part = BAD_ARRAYS[kind]
    with pytest.raises(DataError, match=part) as caught:
        opened(data=npz(tmp_path / "d.npz", **changes))
    assert "d.npz" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_npz_is_refused(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "d.npz"
    (np.savez_compressed if compressed else np.savez)(path, **arrays(train=20, test=8))
    whole = path.read_bytes()
    for cut in range(0, len(whole), 151):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"d\.npz"):
            opened(data=f"npz:{path}")
    for offset in range(0, len(whole), 19):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 255]) + whole[offset + 1 :])
        with contextlib.suppress(DataError):
            opened(data=f"npz:{path}")  # a pixel, or a byte that nothing reads


def test_a_pickle_in_an_npz_is_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return open, (str(tmp_path / "ran"), "w")

    with pytest.raises(DataError):
        opened(data=npz(tmp_path / "d.npz", y_train=np.array([Payload()] * 60, dtype=object)))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_what_is_no_npz_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "d.npz"
    if content is not None:
        path.write_bytes(content)
    for spec in (path, tmp_path):
        with pytest.raises(DataError, match=str(spec)):
            opened(data=f"npz:{spec}")


def test_an_npz_that_does_not_fit_into_memory_is_refused_before_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = npz(tmp_path / "d.npz")
    assert opened(data=spec).test.samples
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2000, total=2**40))
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("it was read all the same"))
    with pytest.raises(DataError, match="GiB") as caught:
        opened(data=spec)
    assert "DataLoader" in caught.value.hint


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "mnist32", "fashion-mnist32", "cifar10", "cifar100"])
@pytest.mark.parametrize("root", ["missing", "empty", "a file"])
def test_a_root_without_the_data_set_is_named(tmp_path: Path, name: str, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "root"
    if root == "empty":
        path.mkdir()
    elif root == "a file":
        path.write_text("")
    for settings in ({"data_root": str(path)}, {}):
        monkeypatch.setenv("SLIM_DATA", str(path))
        with pytest.raises(DataError, match=str(path)) as caught:
            opened(data=name, **settings)
        assert name in caught.value.message
        assert "SLIM_DATA" in caught.value.hint
        assert "--data-root" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"garbage, garbage, garbage", bytes(64)], ids=["empty", "text", "zeros"])
def test_a_damaged_data_set_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        for name in ("images-idx3-ubyte", "labels-idx1-ubyte"):
            (folder / f"{part}-{name}").write_bytes(content)
    with pytest.raises(DataError, match="mnist"):
        opened(data="mnist", data_root=str(tmp_path))


@pytest.mark.parametrize(("wrong", "nearest"), [("mnits", "mnist"), ("cifar", "cifar10"), ("fashion_mnist", "fashion-mnist")])
def test_an_unknown_name_suggests_the_nearest(wrong: str, nearest: str) -> None:
    with pytest.raises(DataError, match=wrong) as caught:
        opened(data=wrong)
    assert nearest in caught.value.hint
    assert "npz:PATH" in caught.value.hint


@pytest.mark.parametrize("wrong", ["npz:", "folder:", "zip:here", ":", "x" * 300])
def test_what_is_no_data_set_is_refused(wrong: str) -> None:
    with pytest.raises(DataError):
        opened(data=wrong)


@pytest.mark.parametrize(("mean", "std"), [((0.1, 0.2), (0.1, 0.2)), ((0.1,), (0.1, 0.2, 0.3)), ((0.1,) * 3, (0.1,) * 3)])
def test_mean_and_std_have_one_value_per_channel(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="--mean") as caught:
        opened(mean=mean, std=std)
    assert "per channel" in caught.value.hint


def test_a_checkpoints_normalisation_must_fit_the_images() -> None:
    with pytest.raises(DataError, match="channel"):
        opened(normalisation=((0.1,) * 3, (0.2,) * 3))


def test_held_out_images_have_the_shape_and_classes_of_the_others(tmp_path: Path) -> None:
    spec = npz(tmp_path / "d.npz")
    with pytest.raises(DataError, match="--val-data"):
        opened(data=spec, val_data=npz(tmp_path / "v.npz", **arrays(3)))
    with pytest.raises(DataError, match="--val-data"):
        opened(data=spec, val_data=npz(tmp_path / "w.npz", y_test=np.full(20, 9)))


def test_a_file_cannot_name_code_to_load_its_data_with(tmp_path: Path) -> None:
    code = tmp_path / "mine.py"
    code.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\ndef loaders(): return []\n")
    with pytest.raises(DataError) as caught:
        opened({"name": f"{code}:loaders", "holdout": 0.1})
    assert not (tmp_path / "ran").exists()
    assert f"--data {code}:loaders" in caught.value.hint


@pytest.mark.parametrize(
    "recorded",
    [
        {"name": 5},
        {"name": ["digits"]},
        {"name": "digits", "holdout": "x"},
        {"name": "digits", "holdout": 7.0},
        {"name": "digits", "holdout": -1},
    ],
)
def test_a_strange_data_spec_in_a_file_is_refused(recorded: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        opened(recorded)


@pytest.mark.parametrize(
    "fault", ["no folder", "no train", "no val", "no classes", "empty class", "other classes", "damaged", "cut off"]
)
def test_a_wrong_folder_is_told_what_is_missing(folder: Path, fault: str) -> None:
    spec = folder
    if fault == "no folder":
        spec = folder / "none"
    elif fault in ("no train", "no val"):
        (folder / fault.removeprefix("no ")).rename(folder / "elsewhere")
    elif fault == "no classes":
        (folder / "train").rename(folder / "elsewhere")
        (folder / "train").mkdir()
    elif fault == "empty class":
        (folder / "train" / "dog").mkdir()
        (folder / "val" / "dog").mkdir()
    elif fault == "other classes":
        (folder / "val" / "cat").rename(folder / "val" / "dog")
    elif fault == "damaged":
        (folder / "train" / "ant" / "0.png").write_bytes(b"no picture")
    else:
        picture = folder / "val" / "bee" / "3.png"
        picture.write_bytes(picture.read_bytes()[:-40])
    with pytest.raises(DataError, match=str(spec)) as caught:
        opened(data=f"folder:{spec}")
    assert caught.value.hint


def test_data_must_fit_the_network() -> None:
    data = opened()
    check_fits(data, "lenet5", 10, (1, 28, 28))
    for classes, shape, part in ((10, (3, 28, 28), "channel"), (5, (1, 28, 28), "classes"), (10, (1, 32, 32), "32, 32")):
        with pytest.raises(DataError, match=part) as caught:
            check_fits(data, "lenet5", classes, shape)
        assert "lenet5" in caught.value.message
        assert "digits" in caught.value.message


def test_images_of_fewer_classes_than_the_network_has(tmp_path: Path) -> None:
    spec = npz(tmp_path / "d.npz")
    few, more = opened(data=spec), opened(data=spec, classes=9)
    assert (few.classes, more.classes) == (4, 9)
    assert opened(recorded=more.spec).classes == 9  # a checkpoint remembers it
    with pytest.raises(DataError, match=r"tells 9 classes apart.*has 4") as refused:
        check_fits(few, "net", 9, few.shape)
    assert refused.value.hint == "choose data that fits it, or say --classes 9"
    with pytest.raises(DataError, match=r"--classes 3 is too few: .*labels up to 3"):
        opened(data=spec, classes=3)
