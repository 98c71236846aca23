"""`FILE.py:CALLABLE`: loaders from the user's own code."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from slimcli.data.loaders import Data
from slimcli.data.memory import epoch_seed
from slimcli.errors import DataError
from slimcli.foreign import load_callable
from slimcli.measures import CLASSIFICATION, TOP1, Measure, Task
from slimcli.networks.tasks import part_of
from slimcli.settings import DataSettings


@dataclass(frozen=True)
class _UserLoader:
    """A user's iterable of batches (images, labels or whatever the task wants), which does its own shuffling and normalising.

    Each of `world` processes goes through all of it and takes its part of every batch.
    """

    batches: Any
    samples: int
    training: bool
    seed: int
    task: Task
    rank: int = 0
    world: int = 1

    def __len__(self) -> int:
        return len(self.batches)

    def shard(self, rank: int, world: int) -> _UserLoader:
        return replace(self, rank=rank, world=world)

    def epoch(self, index: int) -> Iterator[Any]:
        _start_epoch(self.batches, self.seed, index)
        for batch in self.batches:
            # Too few to share, as batch norm cannot train on a single image: all take them all, which leaves the mean as it is.
            whole = self.world == 1 or (self.training and len(batch[0]) < 2 * self.world)
            yield batch if whole else part_of(batch, self.rank, self.world)


def _start_epoch(batches: Any, seed: int, index: int) -> None:
    """Make the order of a torch DataLoader follow from the epoch's number, where it does not follow from torch's own state."""
    batch_sampler = getattr(batches, "batch_sampler", None)
    for part in (batches, getattr(batches, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)):
        if isinstance(generator := getattr(part, "generator", None), torch.Generator):
            generator.manual_seed(epoch_seed(seed, index))
        if callable(set_epoch := getattr(part, "set_epoch", None)):
            set_epoch(index)


def open_loaders(spec: str, settings: DataSettings, seed: int) -> Data:
    """The loaders that the callable returns, and its own loss and score where it has them; of two loaders, a tenth of the first
    is held out. Raises `DataError`.
    """
    for flag in ("mean", "std", "val_data", "train_samples", "holdout"):
        if getattr(settings, flag) is not None:
            raise DataError(f"--{flag.replace('_', '-')} does not apply to {spec}", "what its loaders give is taken as it is")
    family, _, name = spec.rpartition(":")
    build = load_callable(spec, family, name, DataError)
    try:
        returned = build()
        loaders, task = _named(spec, returned) if isinstance(returned, Mapping) else (tuple(returned), CLASSIFICATION)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{spec} failed: {type(error).__name__}: {error}", "--debug shows where") from error
    if len(loaders) not in (2, 3) or not all(isinstance(part, Sized) for part in loaders):
        raise DataError(
            f"{spec} must return two loaders (train, test) or three (train, held-out, test), or a dictionary of them",
            "each with a length",
        )
    if len(loaders) == 2:
        loaders = (*_hold_out(spec, loaders[0]), loaders[1])
    try:
        parts = [_checked(loader, training=number == 0, seed=seed, task=task) for number, loader in enumerate(loaders)]
    except Exception as error:
        pair = "is a pair of tensors: float images (B, C, H, W), normalised, and labels (B,), numbered from 0"
        wanted = pair if task.classifies else "begins with a tensor of float images (B, C, H, W), normalised"
        raise DataError(f"{spec}: a loader does not work as one: {error}", f"each batch {wanted}") from error
    shapes = {shape for _, _, shape in parts}
    if len(shapes) > 1:
        raise DataError(f"{spec}: the loaders' images are of different shapes: {shapes}", "give images of one shape")
    shape = shapes.pop()
    return Data(
        name=spec,
        shape=shape,
        classes=max(classes for _, classes, _ in parts),
        mean=None,
        std=None,
        train=parts[0][0],
        held_out=parts[1][0],
        test=parts[2][0],
        spec={"name": spec},
    )


_NAME = re.compile(r"[\w ()%/.,:+-]{1,40}")
"""What tables, pages and axes show as it is."""

_KEYS = ("train", "held_out", "test", "loss", "score", "score_name", "higher_is_better")


def _named(spec: str, returned: Mapping[str, Any]) -> tuple[tuple[Any, ...], Task]:
    """The loaders of a dictionary, and the task that stands beside them."""
    if unknown := sorted(set(map(str, returned)) - set(_KEYS)):
        raise DataError(f"{spec} returns {', '.join(unknown)}", f"known are {', '.join(_KEYS)}")
    if missing := [key for key in ("train", "test") if key not in returned]:
        raise DataError(f"{spec} returns no {' and no '.join(missing)}", "give a loader for each")
    loaders = tuple(returned[key] for key in ("train", "held_out", "test") if key in returned)
    loss, score = returned.get("loss"), returned.get("score")
    if loss is None and score is None:
        if alone := [key for key in ("score_name", "higher_is_better") if key in returned]:
            raise DataError(f"{spec} returns {' and '.join(alone)}, and no score", "give a loss and a score with it")
        return loaders, CLASSIFICATION
    if not callable(loss) or not callable(score):
        lacking = [key for key in ("loss", "score") if not callable(returned.get(key))]
        raise DataError(
            f"{spec} returns no {' and no '.join(lacking)} that can be called",
            "give both: loss(model, batch), a mean over the batch, and score(model, batches), a number",
        )
    own = str(getattr(score, "__name__", "score"))
    name, higher = returned.get("score_name", own if own.isidentifier() else "score"), returned.get("higher_is_better", True)
    if not isinstance(name, str) or name == TOP1.name or not _NAME.fullmatch(name):
        raise DataError(f"{spec}: score_name is {name!r}", "give a short name in letters, digits and ()%/.,:+-")
    if not isinstance(higher, bool):
        raise DataError(f"{spec}: higher_is_better is {higher!r}", "give True or False")
    return loaders, Task(loss, score, Measure(name, higher))


def _checked(loader: Any, training: bool, seed: int, task: Task) -> tuple[_UserLoader, int, tuple[int, ...]]:
    """One pass over a loader: itself, its number of classes, the shape of its images. Raises whatever is wrong."""
    samples, classes, shapes = 0, 0, set()
    for batch in loader:
        if not isinstance(batch, tuple | list) or not batch:
            raise TypeError(f"a batch is a {type(batch).__name__}, not a tuple or a list that begins with the images")
        images = batch[0]
        if not isinstance(images, Tensor) or images.ndim < 3 or not images.is_floating_point():
            raise TypeError(
                f"images are {getattr(images, 'dtype', type(images).__name__)} of shape {getattr(images, 'shape', '?')}"
            )
        samples += len(images)
        shapes.add(tuple(images.shape[1:]))
        if not task.classifies:
            continue
        _, labels = batch
        if not isinstance(labels, Tensor) or labels.shape != images.shape[:1] or labels.is_floating_point():
            raise TypeError(
                f"labels are {getattr(labels, 'dtype', type(labels).__name__)} of shape {getattr(labels, 'shape', '?')}"
            )
        if int(labels.min()) < 0:
            raise ValueError("labels are negative")
        classes = max(classes, int(labels.max()) + 1)
    if len(shapes) != 1:
        raise ValueError(f"images are of shapes {shapes}" if shapes else "there are no batches")
    return _UserLoader(loader, samples, training, seed, task), classes, shapes.pop()


def _hold_out(spec: str, train: Any) -> tuple[Any, Any]:
    if not isinstance(train, DataLoader) or not isinstance(train.dataset, Sized) or train.batch_size is None:
        raise DataError(
            f"{spec} returns two loaders, and no held-out part can be split off the first",
            "return three loaders (train, held-out, test), or a torch DataLoader over a data set with a length",
        )
    count = len(train.dataset)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    held = max(1, count // 10)

    def part(indices: list[int], shuffle: bool) -> DataLoader[Any]:
        return DataLoader(
            Subset(train.dataset, indices),
            train.batch_size,
            shuffle=shuffle,
            num_workers=train.num_workers,
            collate_fn=train.collate_fn,
            generator=train.generator,
        )

    return part(sorted(order[held:]), shuffle=True), part(sorted(order[:held]), shuffle=False)
