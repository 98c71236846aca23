"""`FILE.py:CALLABLE`: loaders from the user's own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from slimcli.data.loaders import Data
from slimcli.data.sources import open_data
from slimcli.errors import DataError
from slimcli.measures import CLASSIFICATION, Measure
from slimcli.settings import DataSettings

START = """
import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

train = TensorDataset(torch.randn(40, 2, 6, 5), torch.arange(40) % 3)
test = TensorDataset(torch.randn(12, 2, 6, 5), torch.arange(12) % 3)
first, last = DataLoader(train, 8, shuffle=True), DataLoader(test, 5)
images, labels = torch.zeros(4, 2, 6, 5), torch.zeros(4, dtype=torch.int64)
"""


def opened(tmp_path: Path, body: str, name: str = "loaders") -> Data:
    path = tmp_path / "mine.py"
    path.write_text(START + body)
    return open_data(DataSettings(data=f"{path}:{name}"), batch_size=8, seed=0)


def numbers(loader: Any) -> list[float]:
    """One pixel of every image, by which the tests tell images apart."""
    return [value for images, _ in loader.epoch(0) for value in images[:, 0, 0, 0].tolist()]


def test_two_loaders_leave_a_part_of_the_first_held_out(tmp_path: Path) -> None:
    data = opened(tmp_path, "def loaders():\n    return first, last\n")
    assert (data.shape, data.classes) == ((2, 6, 5), 3)
    assert (data.train.samples, data.held_out.samples, data.test.samples) == (36, 4, 12)
    assert (len(data.train), len(data.test)) == (5, 3)
    train, held = numbers(data.train), numbers(data.held_out)
    assert not set(train) & set(held)
    assert len(set(train + held)) == 40
    assert numbers(data.held_out) == held
    assert (data.mean, data.std) == (None, None)


def test_what_is_held_out_is_the_same_every_time(tmp_path: Path) -> None:
    body = "train.tensors[0][:, 0, 0, 0] = torch.arange(40)\ndef loaders():\n    return first, last\n"
    held = numbers(opened(tmp_path, body).held_out)
    torch.manual_seed(99)
    assert numbers(opened(tmp_path, body).held_out) == held


def test_three_loaders_are_taken_as_they_are(tmp_path: Path) -> None:
    data = opened(tmp_path, "def loaders():\n    return [first, [(images, labels), (images, labels)], last]\n")
    assert (data.train.samples, data.held_out.samples, data.test.samples) == (40, 8, 12)
    assert len(data.held_out) == 2


def test_any_sized_iterable_of_batches_will_do(tmp_path: Path) -> None:
    data = opened(tmp_path, "def loaders():\n    return [[(images, labels + 6)]] * 3\n")
    assert data.classes == 7
    assert [tuple(images.shape) for images, _ in data.train.epoch(3)] == [(4, 2, 6, 5)]


def test_the_spec_opens_it_again(tmp_path: Path) -> None:
    data = opened(tmp_path, "def loaders():\n    return first, last\n")
    assert data.spec["name"] == data.name == f"{tmp_path / 'mine.py'}:loaders"


WRONG = {
    "one": "first",
    "one in a tuple": "(first,)",
    "four": "(first, first, last, last)",
    "none": "None",
    "numbers": "(1, 2)",
    "a generator": "((batch for batch in first), last)",
    "two that cannot be split": "([(images, labels)], [(images, labels)])",
    "without batches": "([], [], [])",
    "bytes": "[[(images.byte(), labels)]] * 3",
    "flat images": "[[(images.flatten(1), labels)]] * 3",
    "arrays": "[[(np.zeros((4, 2, 6, 5), dtype=np.float32), np.zeros(4, dtype=np.int64))]] * 3",
    "lists": "[[([1.0], [2])]] * 3",
    "triples": "[[(images, labels, 1)]] * 3",
    "images alone": "[[images]] * 3",
    "dicts": "[[{'x': images, 'y': labels}]] * 3",
    "one label": "[[(images, labels[0])]] * 3",
    "too few labels": "[[(images, labels[:3])]] * 3",
    "negative labels": "[[(images, labels - 1)]] * 3",
    "fractions": "[[(images, labels + 0.5)]] * 3",
    "names": "[[(images, ['a', 'b', 'c', 'd'])]] * 3",
    "other images for testing": "(first, last, [(images[..., 1:], labels)])",
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_loaders_are_told_in_a_sentence(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError) as caught:
        opened(tmp_path, f"def loaders():\n    return {WRONG[kind]}\n")
    assert "mine.py:loaders" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ("1 / 0\n", "ZeroDivisionError"),
        ("def loaders(:\n", "SyntaxError"),
        ("def loaders():\n    raise OSError('the disk is gone')\n", "the disk is gone"),
        ("def loaders(root):\n    pass\n", "root"),
        ("loaders = 5\n", "loaders"),
        ("def load():\n    pass\n", "loaders"),
        ("class Broken(list):\n    def __iter__(self):\n        raise OSError('the disk is gone')\n"
         "def loaders():\n    return [Broken([1])] * 3\n", "the disk is gone"),
    ],
)  # fmt: skip
def test_the_users_own_faults_are_told_in_a_sentence(tmp_path: Path, body: str, part: str) -> None:
    with pytest.raises(DataError, match=part) as caught:
        opened(tmp_path, body)
    assert caught.value.hint


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mine\.py"):
        open_data(DataSettings(data=f"{tmp_path / 'mine.py'}:loaders"), batch_size=8, seed=0)


# What several processes take.


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_the_parts_of_all_processes_are_the_whole(tmp_path: Path, world: int) -> None:
    data = opened(tmp_path, "def loaders():\n    return [DataLoader(train, 8), DataLoader(train, 9), last]\n")
    for loader, training in ((data.train, True), (data.held_out, False), (data.test, False)):
        parts = [loader.shard(rank, world) for rank in range(world)]
        assert {(len(part), part.samples) for part in parts} == {(len(loader), loader.samples)}
        for (images, labels), taken in zip(loader.epoch(0), zip(*(part.epoch(0) for part in parts), strict=True), strict=True):
            for rank, (some_images, some_labels) in enumerate(taken):
                mine = slice(None) if training and len(labels) < 2 * world else slice(rank, None, world)
                assert torch.equal(some_images, images[mine])
                assert torch.equal(some_labels, labels[mine])


def test_a_training_batch_that_is_too_small_to_share_is_given_to_all(tmp_path: Path) -> None:
    body = "def loaders():\n    return [[(images, labels), (images[:3], labels[:3])]] * 3\n"
    data = opened(tmp_path, body)
    assert [[len(labels) for _, labels in data.train.shard(rank, 2).epoch(0)] for rank in (0, 1)] == [[2, 3], [2, 3]]
    assert [[len(labels) for _, labels in data.test.shard(rank, 4).epoch(0)] for rank in (0, 3)] == [[1, 1], [1, 0]]


# Epochs that can be had again.

GENERATORS = {
    "loader": "DataLoader(train, 8, shuffle=True, generator=g)",
    "sampler": "DataLoader(train, 8, sampler=RandomSampler(train, generator=g))",
    "batch sampler": "DataLoader(train, batch_sampler=BatchSampler(RandomSampler(train, generator=g), 8, False))",
    "distributed": "DataLoader(train, 8, sampler=DistributedSampler(train, 1, 0))",
    "held out": "DataLoader(train, 8, shuffle=True, generator=g)",
}


@pytest.mark.parametrize("kind", GENERATORS)
def test_an_epoch_is_the_same_after_a_resume(tmp_path: Path, kind: str) -> None:
    body = (
        "from torch.utils.data import BatchSampler, DistributedSampler, RandomSampler\n"
        "train.tensors[0][:, 0, 0, 0] = torch.arange(40)\n"
        "g = torch.Generator()\n"
        f"def loaders():\n    return {GENERATORS[kind]}, {'' if kind == 'held out' else 'last,'} last\n"
    )

    def labels(loader: Any, epoch: int) -> list[float]:
        return [value for images, _ in loader.epoch(epoch) for value in images[:, 0, 0, 0].tolist()]

    train = opened(tmp_path, body).train
    epochs = [labels(train, epoch) for epoch in range(4)]
    assert len({tuple(epoch) for epoch in epochs}) == 4
    torch.manual_seed(99)
    again = opened(tmp_path, body).train
    assert labels(again, 3) == epochs[3]
    assert labels(again.shard(0, 2), 2)[:4] == epochs[2][:8:2]


def test_another_seed_is_another_order(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(START + "def loaders():\n    return DataLoader(train, 8, True, generator=torch.Generator()), last, last\n")
    orders = []
    for seed in (0, 1):
        train = open_data(DataSettings(data=f"{path}:loaders"), batch_size=8, seed=seed).train
        orders.append(torch.cat([labels for _, labels in train.epoch(0)]).tolist())
    assert orders[0] != orders[1]


def test_nothing_is_known_of_whether_the_data_changed(tmp_path: Path) -> None:
    assert opened(tmp_path, "def loaders():\n    return first, last\n").fingerprint == ""


TASK = """
def loss(model, batch):
    return model(batch[0]).mean()
def spread(model, batches):
    return sum(float(model(images).std()) for images, _ in batches)
"""


def test_a_dictionary_holds_the_loaders_and_what_they_are_for(tmp_path: Path) -> None:
    body = TASK + "def loaders():\n    return {'train': first, 'test': last, 'loss': loss, 'score': spread}\n"
    data = opened(tmp_path, body)
    assert (data.train.samples, data.held_out.samples, data.test.samples, data.classes) == (36, 4, 12, 0)
    assert all(part.task is data.task for part in (data.train, data.held_out, data.test))
    assert (data.task.measure, data.task.classifies) == (Measure("spread"), False)
    body = body.replace("'score': spread", "'score': spread, 'score_name': 'range', 'higher_is_better': False, 'held_out': last")
    data = opened(tmp_path, body)
    assert (data.task.measure, data.held_out.samples) == (Measure("range", higher=False), 12)


def test_a_dictionary_without_a_loss_is_classification(tmp_path: Path) -> None:
    data = opened(tmp_path, "def loaders():\n    return {'train': first, 'test': last, 'held_out': last}\n")
    assert (data.task, data.classes, data.held_out.samples) == (CLASSIFICATION, 3, 12)


def test_behind_the_images_there_may_be_anything(tmp_path: Path) -> None:
    body = TASK + (
        "odd = [(images, [{'boxes': labels[:2]}] * 4, 'text')] * 2\n"
        "def loaders():\n    return {'train': odd, 'held_out': odd, 'test': odd, 'loss': loss, 'score': spread}\n"
    )
    data = opened(tmp_path, body)
    assert [batch[2] for batch in data.train.epoch(0)] == ["text", "text"]


WRONG_TASKS = {
    "'train': first": "returns no test",
    "'train': first, 'test': last, 'lose': 1": "returns lose",
    "'train': first, 'test': last, 'loss': loss": "returns no score",
    "'train': first, 'test': last, 'score': spread": "returns no loss",
    "'train': first, 'test': last, 'loss': 1, 'score': spread": "returns no loss",
    "'train': first, 'test': last, 'loss': loss, 'score': spread, 'score_name': 'top1'": "score_name is 'top1'",
    "'train': first, 'test': last, 'loss': loss, 'score': spread, 'higher_is_better': 'no'": "higher_is_better is 'no'",
    "'train': first, 'test': last, 'loss': loss, 'score': spread, 'score_name': 'a|b'": "score_name is 'a|b'",
    "'train': first, 'test': last, 'score_name': 'a'": "returns score_name, and no score",
    "'train': [images], 'test': last, 'held_out': last, 'loss': loss, 'score': spread": "a batch is a Tensor",
    "'train': [{'x': images}], 'test': last, 'held_out': last, 'loss': loss, 'score': spread": "a batch is a dict",
    "'train': [[labels]], 'test': last, 'held_out': last, 'loss': loss, 'score': spread": "images are torch.int64",
}


@pytest.mark.parametrize("content", WRONG_TASKS)
def test_a_dictionary_that_is_not_as_it_should_be_is_told_in_a_sentence(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError) as error:
        opened(tmp_path, f"{TASK}def loaders():\n    return {{{content}}}\n")
    assert WRONG_TASKS[content] in str(error.value)


def test_its_images_may_be_of_fewer_classes_than_the_network_has(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(START + "def loaders():\n    return first, last\n")
    data = open_data(DataSettings(data=f"{path}:loaders", classes=7), batch_size=8, seed=0)
    assert (data.classes, data.spec["classes"]) == (7, 7)
