"""Epochs of images, their parts for several processes, augmentation, splits, and where images are kept."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from slimcli.data.memory import Augment, ImageLoader, check_memory, place, split_off
from slimcli.errors import DataError, SettingsError
from slimcli.settings import FitSettings

ZERO, ONE = (0.0,), (1 / 255,)
"""A normalisation that leaves the bytes as they are, up to rounding."""

AUGMENTS = ["none", "shift:2", "flip", "shift:1,flip"]


def loader(count: int = 23, size: tuple[int, int] = (6, 5), **options: object) -> ImageLoader:
    """Images of random bytes above zero; the label of an image is its number."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(1, 256, (count, 1, *size), generator=generator, dtype=torch.uint8)
    return ImageLoader(images, torch.arange(count), ZERO, ONE, **({"batch_size": 4} | options))


def whole(source: ImageLoader, epoch: int = 0) -> tuple[Tensor, Tensor]:
    batches = list(source.epoch(epoch))
    return torch.cat([images for images, _ in batches]).round(), torch.cat([labels for _, labels in batches])


@given(st.integers(1, 40), st.integers(1, 50), st.booleans(), st.sampled_from(AUGMENTS))
def test_an_epoch_has_every_sample_once(count: int, batch_size: int, shuffle: bool, augment: str) -> None:
    source = loader(count, batch_size=batch_size, shuffle=shuffle, augment=Augment.parse(augment))
    batches = list(source.epoch(3))
    assert len(batches) == len(source) == -(-count // batch_size)
    assert source.samples == count
    assert sorted(torch.cat([labels for _, labels in batches]).tolist()) == list(range(count))
    for images, labels in batches:
        assert images.shape == (len(labels), 1, 6, 5)
        assert images.dtype == torch.float32
        assert len(labels) <= batch_size


def test_images_keep_their_labels() -> None:
    source = loader(shuffle=True)
    images, labels = whole(source, 5)
    assert torch.equal(images, source.images[labels].float())
    assert labels.tolist() != sorted(labels.tolist())


def test_without_shuffling_the_order_stays() -> None:
    assert whole(loader())[1].tolist() == list(range(23))


@pytest.mark.parametrize("seed", [0, 1, 2**31])
def test_epochs_are_reproducible_and_differ(seed: int) -> None:
    source = loader(shuffle=True, augment=Augment(2, True), seed=seed)
    for epoch in (0, 7):
        for one, other in zip(whole(source, epoch), whole(source, epoch), strict=True):
            assert torch.equal(one, other)
    assert whole(source, 0)[1].tolist() != whole(source, 1)[1].tolist()
    assert whole(source, 0)[1].tolist() != whole(replace(source, seed=seed + 1), 0)[1].tolist()


@pytest.mark.parametrize("seed", [2**32, 2**53, 2**62, 2**63 - 1])
def test_every_seed_that_may_be_given_can_be_used(seed: int) -> None:
    try:
        FitSettings(seed=seed)
    except SettingsError:
        return
    torch.manual_seed(seed)
    whole(loader(shuffle=True, seed=seed))


def test_an_epoch_does_not_touch_torchs_own_random_numbers() -> None:
    state = torch.get_rng_state()
    whole(loader(shuffle=True, augment=Augment(1, True)))
    assert torch.equal(torch.get_rng_state(), state)


@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 5), st.booleans(), st.sampled_from(AUGMENTS), st.integers(0, 9))
def test_the_parts_of_all_processes_are_the_whole(
    count: int, batch_size: int, world: int, shuffle: bool, augment: str, epoch: int
) -> None:
    source = loader(count, batch_size=batch_size, shuffle=shuffle, augment=Augment.parse(augment), seed=4)
    parts = [source.shard(rank, world) for rank in range(world)]
    assert {part.samples for part in parts} == {count}
    assert len({len(part) for part in parts}) == 1
    batches = list(source.epoch(epoch))
    shared = list(zip(*(part.epoch(epoch) for part in parts), strict=True))
    assert len(shared) == len(parts[0])
    for (images, labels), taken in zip(batches, shared, strict=False):
        for rank, (some_images, some_labels) in enumerate(taken):
            assert torch.equal(some_images, images[rank::world])
            assert torch.equal(some_labels, labels[rank::world])
    left = sum(len(labels) for _, labels in batches[len(shared) :])
    assert left < (2 * world if shuffle else 1)


@pytest.mark.parametrize(
    ("count", "batch_size", "world", "shuffle", "batches"),
    [
        (9, 4, 1, True, 2),  # one is left
        (10, 4, 1, True, 3),
        (19, 8, 2, True, 2),  # one process would get a single image
        (20, 8, 2, True, 3),
        (19, 8, 2, False, 3),
        (17, 8, 2, False, 3),  # nothing for the second
        (16, 8, 2, True, 2),
        (3, 8, 2, True, 1),  # there is no other batch
        (1, 8, 1, True, 1),
    ],
)
def test_a_rest_that_is_too_small_to_train_on_is_left_out(
    count: int, batch_size: int, world: int, shuffle: bool, batches: int
) -> None:
    for rank in range(world):
        assert len(loader(count, batch_size=batch_size, shuffle=shuffle).shard(rank, world)) == batches


def test_a_single_process_takes_everything() -> None:
    source = loader(shuffle=True, augment=Augment(1, True))
    assert source.shard(0, 1) == source
    assert source.shard(1, 3).shard(0, 1) == source


def shifts(image: Tensor, reach: int) -> list[Tensor]:
    """The image moved by up to `reach` pixels each way, zeros where nothing moved in: by hand, pixel by pixel."""
    height, width = image.shape[1:]
    found = []
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            moved = torch.zeros_like(image)
            for y in range(height):
                for x in range(width):
                    if 0 <= y - down < height and 0 <= x - right < width:
                        moved[:, y, x] = image[:, y - down, x - right]
            found.append(moved)
    return found


@pytest.mark.parametrize(("reach", "flip"), [(0, True), (1, False), (2, True)])
def test_every_image_is_a_shifted_or_flipped_one(reach: int, flip: bool) -> None:
    source = loader(augment=Augment(reach, flip))
    plain = source.plain().images.float()
    used: set[int] = set()
    for epoch in range(6):
        images, labels = whole(source, epoch)
        for image, label in zip(images, labels, strict=True):
            known = shifts(plain[label], reach)
            known += [candidate.flip(2) for candidate in known] if flip else []
            match = [number for number, candidate in enumerate(known) if torch.equal(candidate, image)]
            assert len(match) == 1
            used.add(match[0])
    assert len(used) > 0.8 * (2 * reach + 1) ** 2 * (2 if flip else 1)  # and nearly all of them occur


def test_shifts_and_flips_are_drawn_evenly() -> None:
    image = torch.zeros(1, 1, 5, 5, dtype=torch.uint8)
    image[0, 0, 2, 1] = 255
    source = ImageLoader(image.repeat(4000, 1, 1, 1), torch.zeros(4000).long(), ZERO, ONE, 500, augment=Augment(1, True))
    mean = whole(source)[0].mean((0, 1)) / 255
    expected = torch.zeros(5, 5)
    expected[1:4] = torch.tensor([1, 1, 2, 1, 1]) / 18  # row 2 goes to 1, 2 or 3; column 1 to 0, 1 or 2, or flipped to 4, 3 or 2
    torch.testing.assert_close(mean, expected, atol=0.02, rtol=0)


def test_a_shift_wider_than_the_image_can_empty_it() -> None:
    images, _ = whole(loader(size=(3, 3), augment=Augment(5)))
    assert (images.flatten(1).sum(1) == 0).any()


@given(st.integers(1, 4), st.integers(0, 3), st.data())
def test_normalisation_is_the_usual_one(channels: int, shift: int, data: st.DataObject) -> None:
    positive = st.floats(0.01, 2)
    mean = tuple(data.draw(st.lists(st.floats(-1, 1), min_size=channels, max_size=channels)))
    std = tuple(data.draw(st.lists(positive, min_size=channels, max_size=channels)))
    raw = torch.randint(0, 256, (5, channels, 4, 4), dtype=torch.uint8)
    source = ImageLoader(raw, torch.arange(5), mean, std, 2, augment=Augment(shift)).plain()
    expected = (raw.double() / 255 - torch.tensor(mean, dtype=torch.float64).view(-1, 1, 1)) / torch.tensor(
        std, dtype=torch.float64
    ).view(-1, 1, 1)
    images = torch.cat([images for images, _ in source.epoch(0)])
    torch.testing.assert_close(images.double(), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("augment", [Augment(), Augment(2), Augment(0, True), Augment(3, True)])
def test_plain_is_the_same_images_in_order(augment: Augment) -> None:
    source = loader(shuffle=True, augment=augment).plain()
    images, labels = whole(source, 4)
    assert labels.tolist() == list(range(23))
    assert torch.equal(images, loader().images.float())


def test_another_batch_size_is_the_same_images() -> None:
    source = replace(loader(augment=Augment(2)), batch_size=3)
    assert next(iter(source.epoch(0)))[0].shape == (3, 1, 6, 5)
    assert torch.equal(whole(source.plain())[0], loader().images.float())


def test_loading_changes_neither_images_nor_labels() -> None:
    source = loader(augment=Augment(1, True), shuffle=True)
    before = source.images.clone()
    for images, _ in source.epoch(0):
        images.zero_()
    assert torch.equal(source.images, before)


@pytest.mark.parametrize(
    ("text", "augment"),
    [
        ("none", Augment()),
        ("flip", Augment(flip=True)),
        ("shift:4", Augment(4)),
        ("shift:4,flip", Augment(4, True)),
        ("flip, shift:2", Augment(2, True)),
        ("shift:0", Augment()),
    ],
)
def test_augmentation_is_read(text: str, augment: Augment) -> None:
    assert Augment.parse(text) == augment


@given(st.text(max_size=12))
@example("")
@example("shift")
@example("shift:")
@example("shift:-1")
@example("shift:1.5")
@example("shift:²")
@example("flip:1")
@example("flip,,none")
def test_any_other_text_is_refused_in_a_sentence(text: str) -> None:
    try:
        augment = Augment.parse(text)
    except SettingsError as error:
        hint = error.hint
    else:
        hint = f"shift:{augment.shift}"
    assert hint


@given(
    st.lists(st.integers(0, 4), min_size=2, max_size=200).map(torch.tensor),
    st.floats(0.01, 0.5),
)
def test_a_split_is_stratified_disjoint_and_repeatable(labels: Tensor, fraction: float) -> None:
    rest, held = split_off(labels, fraction)
    assert sorted([*rest.tolist(), *held.tolist()]) == list(range(len(labels)))
    assert len(held) == max(1, round(len(labels) * fraction))
    for label in range(5):
        size = int((labels == label).sum())
        share = size * len(held) / len(labels)
        assert abs(int((labels[held] == label).sum()) - share) <= 1
    for one, other in zip(split_off(labels.clone(), fraction), (rest, held), strict=True):
        assert torch.equal(one, other)


def test_a_split_ignores_the_random_numbers_of_the_run() -> None:
    labels = torch.arange(100) % 7
    torch.manual_seed(1)
    first = split_off(labels, 0.2)[1]
    torch.manual_seed(2)
    assert torch.equal(split_off(labels, 0.2)[1], first)
    assert first.tolist() != list(range(20))


def test_images_that_would_fill_the_gpu_stay_in_the_hosts_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.zeros(10, 1, 8, 8, dtype=torch.uint8)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * images.nbytes, 2**40))
    kept, notes = place([images, images], torch.device("cuda"))
    assert all(part is images for part in kept)
    assert "GPU" in notes[0]


def test_what_fits_is_placed_without_a_word() -> None:
    images = torch.zeros(10, 1, 8, 8, dtype=torch.uint8)
    assert place([images], torch.device("cpu")) == ([images], [])


def test_more_than_is_free_is_refused_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**30))
    check_memory("the file", 2**29)
    with pytest.raises(DataError, match=r"the file needs 2\.0 GiB in memory, 1\.0 GiB are free") as caught:
        check_memory("the file", 2**31)
    assert "folder:PATH" in caught.value.hint
