"""Training and evaluation on a problem small enough to be solved in a second."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from slimcli.errors import DataError, DivergedError, MemoryShortError, SettingsError
from slimcli.measures import CLASSIFICATION, Measure, Task
from slimcli.progress import Progress
from slimcli.settings import SCHEDULES, FitSettings
from slimcli.training.engine import Engine, Epoch, FitState, lr_factor
from slimcli.training.group import pick_device
from slimcli.training.losses import Objective
from tests import tiny


@dataclass(frozen=True)
class Bright:
    """Images whose class is the channel that is brightest."""

    count: int = 96
    batch: int = 16
    task: Task = CLASSIFICATION

    @property
    def samples(self) -> int:
        return self.count

    def __len__(self) -> int:
        return -(-self.count // self.batch)

    def shard(self, rank: int, world: int) -> Bright:
        return self

    def epoch(self, index: int) -> Iterator[tuple[Tensor, Tensor]]:
        labels = torch.arange(self.count) % 3
        images = torch.randn(self.count, 3, 8, 8, generator=torch.Generator().manual_seed(7))
        images[torch.arange(self.count), labels] += 1
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(index))
        for chosen in torch.split(order, self.batch):
            yield images[chosen], labels[chosen]


def engine(**settings: object) -> Engine:
    return Engine(FitSettings(device="cpu", **({"lr": 0.02} | settings)))


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_training_learns() -> None:
    model, data, trainer = tiny.Chain(), Bright(), engine()
    before = trainer.evaluate(model, data)
    seen: list[Epoch] = []
    trainer.fit(model, data, 6, "train", after_epoch=lambda epoch, _: seen.append(epoch))
    after = trainer.evaluate(model, data)
    assert after.top1 > 90 > before.top1
    assert after.loss < before.loss
    assert [(epoch.phase, epoch.index) for epoch in seen] == [("train", index) for index in range(6)]
    assert seen[-1].loss < seen[0].loss
    assert seen[-1].top1 > seen[0].top1
    assert all(epoch.seconds > 0 for epoch in seen)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_training_is_reproducible(schedule: str) -> None:
    torch.manual_seed(1)
    first = tiny.Chain()
    second = copy.deepcopy(first)
    for model in (first, second):
        engine(seed=3, schedule=schedule).fit(model, Bright(), 2, "train")
    assert all(torch.equal(one, other) for one, other in zip(weights(first), weights(second), strict=True))


class Random(tiny.Chain):
    """Draws from torch's generator in its forward pass, as dropout does."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x, 0.2, self.training))


@dataclass(frozen=True)
class Shaken(Bright):
    """Draws from the generators of Python, numpy and torch, as users' data sets do."""

    def epoch(self, index: int) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in super().epoch(index):
            yield images + random.random() + float(np.random.rand()) + torch.rand(1), labels


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_phase_that_goes_on_ends_as_one_that_was_not_interrupted(schedule: str, precision: str, stop: int) -> None:
    class StopError(Exception):
        pass

    saved: dict[str, Any] = {}

    def keep(epoch: Epoch, fit: FitState) -> None:
        if fit.epochs == stop:
            saved.update(copy.deepcopy({"model": part.state_dict(), "optimizer": fit.optimizer}))
            raise StopError

    torch.manual_seed(1)
    whole, part = Random(), Random()
    part.load_state_dict(whole.state_dict())
    engine(schedule=schedule, precision=precision).fit(whole, Shaken(), 4, "train")
    with pytest.raises(StopError):
        engine(schedule=schedule, precision=precision).fit(part, Shaken(), 4, "train", after_epoch=keep)
    again, going_on = Random(), engine(schedule=schedule, precision=precision)
    again.load_state_dict(saved["model"])
    going_on.epochs_done = stop
    torch.rand(3), random.random(), np.random.rand()  # whatever happened in between
    going_on.fit(again, Shaken(), 4, "train", done=FitState(stop, saved["optimizer"]))
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in whole.state_dict().items())


def test_a_phase_that_is_done_is_not_trained_again() -> None:
    model = tiny.Chain()
    before = weights(model)
    engine().fit(model, Bright(), 2, "train", done=FitState(2, {}))
    assert all(torch.equal(one, other) for one, other in zip(weights(model), before, strict=True))


def test_a_lowered_learning_rate_takes_smaller_steps() -> None:
    torch.manual_seed(1)
    start = tiny.Chain()
    moved = []
    for scale in (1.0, 0.01):
        model, trainer = copy.deepcopy(start), engine(schedule="constant")
        trainer.lr_scale = scale
        trainer.fit(model, Bright(), 1, "train")
        moved.append(sum(float((a - b).norm()) for a, b in zip(weights(model), weights(start), strict=True)))
    assert moved[1] < 0.1 * moved[0]


def test_bf16_trains_as_well_and_leaves_weights_in_32_bits() -> None:
    model, trainer = tiny.Chain(), engine(precision="bf16")
    trainer.fit(model, Bright(), 6, "train")
    assert trainer.evaluate(model, Bright()).top1 > 90
    assert {value.dtype for value in model.state_dict().values()} <= {torch.float32, torch.int64}


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")])
@pytest.mark.parametrize("what", ["fit", "evaluate"])
def test_memory_that_runs_out_names_a_batch_size_to_try(error: Exception, what: str) -> None:
    class Greedy(tiny.Chain):
        def forward(self, x: Tensor) -> Tensor:
            raise error

    trainer = engine(batch_size=96)
    act = partial(trainer.fit, epochs=1, phase="train") if what == "fit" else trainer.evaluate
    with pytest.raises(MemoryShortError, match="96 images") as caught:
        act(Greedy(), Bright())
    assert "--batch-size 48" in caught.value.hint


def test_another_error_of_the_network_is_not_taken_for_memory() -> None:
    class Wrong(tiny.Chain):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        engine().fit(Wrong(), Bright(), 1, "train")


def test_every_epoch_of_the_run_has_its_own_number() -> None:
    asked: list[int] = []

    class Counting(Bright):
        def epoch(self, index: int) -> Iterator[tuple[Tensor, Tensor]]:
            asked.append(index)
            return super().epoch(index)

    trainer, model = engine(), tiny.Chain()
    trainer.fit(model, Counting(), 2, "one")
    trainer.fit(model, Counting(), 0, "none")
    trainer.fit(model, Counting(), 3, "two")
    assert asked == [0, 1, 2, 3, 4]
    assert trainer.epochs_done == 5


def test_no_epochs_change_nothing() -> None:
    model = tiny.Chain()
    before = weights(model)
    engine().fit(model, Bright(), 0, "final")
    assert all(torch.equal(one, other) for one, other in zip(weights(model), before, strict=True))


def test_the_network_ends_in_eval_mode_and_in_the_layout_of_a_loaded_one() -> None:
    model = tiny.Chain()
    engine().fit(model, Bright(), 1, "train")
    assert not model.training
    assert all(parameter.is_contiguous() for parameter in model.parameters())
    x = torch.randn(4, *tiny.SHAPE)
    reloaded = tiny.Chain()
    reloaded.load_state_dict({key: value.clone() for key, value in model.state_dict().items()})
    assert torch.equal(model(x), reloaded.eval()(x))


def test_the_penalty_is_trained_on() -> None:
    model = tiny.Chain()
    calls = 0

    def penalty(network: nn.Module) -> Tensor:
        nonlocal calls
        calls += 1
        return 10 * network.conv1.weight.square().sum()

    plain = copy.deepcopy(model)
    epochs: list[Epoch] = []
    engine().fit(plain, Bright(), 2, "train", after_epoch=lambda epoch, _: epochs.append(epoch))
    engine().fit(model, Bright(), 2, "train", Objective(penalty), after_epoch=lambda epoch, _: epochs.append(epoch))
    assert calls == 2 * len(Bright())
    assert model.conv1.weight.norm() < 0.8 * plain.conv1.weight.norm()
    assert epochs[2].loss > epochs[0].loss  # the loss that is told holds the penalty


def test_a_constraint_is_kept_after_every_step_and_knows_how_far_the_phase_is() -> None:
    model, seen = tiny.Chain(), []

    def constraint(network: nn.Module, done: int, steps: int) -> None:
        seen.append((done, steps))
        with torch.no_grad():
            network.conv1.weight[0] = 0  # type: ignore[operator, index]

    engine().fit(model, Bright(), 2, "train", Objective(constraint=constraint))
    steps = 2 * len(Bright())
    assert seen == [(done, steps) for done in range(1, steps + 1)]
    assert not model.conv1.weight[0].any()


def test_frozen_parameters_stay() -> None:
    model = tiny.Chain()
    model.conv1.weight.requires_grad_(False)
    before = weights(model)
    engine().fit(model, Bright(), 1, "train")
    after = weights(model)
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[-1], after[-1])


def test_weight_decay_pulls_weights_and_nothing_else() -> None:
    class Still(tiny.Chain):
        """Its loss depends on no parameter."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 0 + sum(parameter.sum() * 0 for parameter in self.parameters())

    model = Still()
    nn.init.ones_(model.bn1.bias)
    before = dict(copy.deepcopy(model).named_parameters())
    engine(weight_decay=0.5, schedule="constant", lr=0.1).fit(model, Bright(), 1, "train")
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            assert parameter.norm() < 0.9 * before[name].norm(), name
        else:
            assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_lost_is_told_at_once(value: float) -> None:
    model, trainer = tiny.Chain(), engine(lr=0.3)
    with pytest.raises(DivergedError, match="epoch 1 of 50") as caught:
        trainer.fit(model, Bright(), 50, "train", Objective(lambda network: next(network.parameters()).sum() * value))
    assert "--lr 0.1" in caught.value.hint
    assert not model.training
    assert trainer.epochs_done == 0


def test_a_learning_rate_that_is_far_too_high_diverges() -> None:
    with pytest.raises(DivergedError):
        engine(lr=1e12, schedule="constant").fit(tiny.Sigmoid(), Bright(), 20, "train")


def test_evaluation_equals_the_loop() -> None:
    model, data = tiny.Chain(), Bright(50, 7)
    score = engine().evaluate(model.train(), data)
    assert model.training, "in the midst of a training it changes nothing"
    model.eval()
    correct, losses = 0, []
    with torch.no_grad():
        for images, labels in data.epoch(0):
            for image, label in zip(images, labels, strict=True):
                logits = model(image[None])[0]
                correct += int(logits.argmax()) == int(label)
                losses.append(float(-F.log_softmax(logits, 0)[label]))
    assert score.samples == 50
    assert score.top1 == pytest.approx(100 * correct / 50)
    assert score.loss == pytest.approx(sum(losses) / 50, rel=1e-5)


def test_evaluation_gives_the_same_in_the_midst_of_training_and_after_it() -> None:
    """Bit by bit: kernels differ between the layout of training and that of a loaded network."""
    model, data, scores = tiny.Chain(), Bright(50, 7), []
    trainer = engine()
    trainer.fit(model, data, 1, "train", after_epoch=lambda *_: scores.append(trainer.evaluate(model, data)))  # type: ignore[func-returns-value, arg-type]
    assert trainer.evaluate(model, data) == scores[0]


def test_evaluation_changes_nothing() -> None:
    model = tiny.Chain().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainer = engine()
    assert trainer.evaluate(model, Bright()) == trainer.evaluate(model, Bright())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_progress_is_told_of_every_step() -> None:
    steps: list[tuple[float | None, float | None]] = []

    class Bar:
        def step(self, loss: float | None, accuracy: float | None) -> None:
            steps.append((loss, accuracy))

    class Watching(Progress):
        @contextmanager
        def phase(self, name: str, epochs: int, batches: int, done: int = 0) -> Iterator[Bar]:
            assert (name, epochs, batches, done) == ("train", 2, 6, 0)
            yield Bar()

    seen: list[Epoch] = []
    Engine(FitSettings(device="cpu"), Watching()).fit(
        tiny.Chain(), Bright(), 2, "train", after_epoch=lambda epoch, _: seen.append(epoch)
    )
    assert len(steps) == 12
    assert [step for step in steps if step[0] is not None] == [(epoch.loss, epoch.top1) for epoch in seen]


@given(st.sampled_from(SCHEDULES), st.floats(0, 1), st.floats(0, 1))
def test_the_learning_rate_stays_within_its_peak_and_moves_smoothly(schedule: str, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert 0 <= lr_factor(schedule, low) <= 1
    assert abs(lr_factor(schedule, high) - lr_factor(schedule, low)) <= 5 * (high - low) + 1e-9


def test_the_schedules_are_what_they_are_called() -> None:
    assert {lr_factor("constant", x / 10) for x in range(11)} == {1.0}
    assert [lr_factor("cosine", x) for x in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert [lr_factor("onecycle", x) for x in (0, 0.1, 0.2, 0.6, 1)] == pytest.approx([0.05, 0.525, 1, 0.5, 0])


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto").type == "cpu"
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(SettingsError, match="--device cuda") as caught:
        pick_device("cuda")
    assert "--device cpu" in caught.value.hint


BRIGHTNESS = Task(
    lambda model, batch: (model(batch[0]).float().mean(1) - batch[0].mean((2, 3)).amax(1)).square().mean(),
    lambda model, batches: max(float((model(x).mean(1) - x.mean((2, 3)).amax(1)).abs().max()) for x, _ in batches),
    Measure("worst", higher=False),
)
"""How bright the brightest channel is, judged by the largest error of the split."""


def test_a_loss_of_the_data_s_own_is_trained_on_and_its_score_is_of_the_whole_split() -> None:
    model, data = tiny.Chain(), Bright(task=BRIGHTNESS)
    seen: list[Epoch] = []
    trainer = engine()
    before = trainer.evaluate(model, data)
    trainer.fit(model, data, 6, "train", after_epoch=lambda epoch, _: seen.append(epoch))
    after = trainer.evaluate(model, data)
    images = torch.cat([images for images, _ in data.epoch(0)])
    with torch.no_grad():
        errors = (model(images).mean(1) - images.mean((2, 3)).amax(1)).abs()
    assert after.value == pytest.approx(float(errors.max()), rel=1e-4)
    assert after.loss == pytest.approx(float(errors.square().mean()), rel=1e-3)
    assert (after.measure, after.top1, after.samples) == (Measure("worst", higher=False), None, 96)
    assert after.loss < before.loss / 2
    assert all(epoch.top1 is None for epoch in seen)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (Task(lambda model, batch: 1.0, lambda model, batches: 1.0, Measure("x")), "the loss of the data is a float"),
        (Task(lambda model, batch: model(batch[0]), lambda model, batches: 1.0, Measure("x")), r"a tensor of shape \(16, 4\)"),
        (Task(lambda model, batch: torch.ones(()), lambda model, batches: 1.0, Measure("x")), r"a tensor of shape \(\)"),
    ],
)
def test_a_loss_that_is_none_is_named(task: Task, said: str) -> None:
    with pytest.raises(DataError, match=said):
        engine().fit(tiny.Chain(), Bright(task=task), 1, "train")


@pytest.mark.parametrize("score", [float("nan"), "good", None])
def test_a_score_that_is_no_number_is_named(score: object) -> None:
    task = Task(lambda model, batch: model(batch[0]).mean(), lambda model, batches: score, Measure("x"))  # type: ignore[arg-type,return-value]
    with pytest.raises(DataError, match="the score x of the data is"):
        engine().evaluate(tiny.Chain(), Bright(task=task))
