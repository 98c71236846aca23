"""Times of single layers, and the multiples that follow from them: the layers are those of the network, a measurement is kept."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from slimcli.deploy import layer_times
from slimcli.deploy.layer_times import MULTIPLES_FILE, LayerTimes, best_multiple, fast_multiples
from slimcli.deploy.remembered import Remembered, this_machine
from slimcli.errors import StorageError
from slimcli.networks.layers import layers_of
from slimcli.networks.shapes import shapes_of


class Layers(nn.Module):
    """One of every kind, none of them square."""

    def __init__(self) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(3, 8, (3, 5), stride=(2, 1), padding=(1, 2))
        self.same = nn.Conv2d(8, 6, 4, padding="same", dilation=2)
        self.depthwise = nn.Conv2d(6, 6, 3, groups=6, padding="valid")
        self.grouped = nn.Conv2d(6, 4, 1, groups=2)
        self.up = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.grouped(self.depthwise(self.same(self.spatial(x)))))
        return self.fc(x.flatten(2).transpose(1, 2))


def test_the_layers_that_are_timed_give_what_those_of_the_network_give() -> None:
    """In shape: same kernel, stride, padding, groups and input."""
    model, given_shapes = Layers().eval(), dict[str, torch.Size]()
    for name, layer in layers_of(model).items():
        layer.register_forward_hook(lambda *call, name=name: given_shapes.__setitem__(name, call[2].shape))
    shapes = shapes_of(model, (3, 17, 14))
    assert list(shapes) == list(given_shapes) == ["spatial", "same", "depthwise", "grouped", "up", "fc"]
    assert [shape.kind for shape in shapes.values()] == ["spatial", "spatial", *["depthwise"] * 3, "linear"]
    for name, shape in shapes.items():
        proto, feed = layer_times._model_of(shape)
        (output,) = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)
        wanted = given_shapes[name]
        assert output.shape == tuple(wanted if shape.kernel else (math.prod(wanted[:-1]), wanted[-1]))


def test_a_layer_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    times, (shape, other, *_) = LayerTimes(), shapes_of(Layers(), (3, 17, 14)).values()
    first = times.of(shape)
    assert first > 0
    monkeypatch.setattr(ort, "InferenceSession", None)
    assert times.of(shape) == first
    with pytest.raises(TypeError):
        times.of(other)


def test_what_a_layer_took_is_the_same_in_the_next_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    times, (one, other, *_) = LayerTimes(), shapes_of(Layers(), (3, 17, 14)).values()
    with times.remembering():
        first = times.of(one)
    later = LayerTimes()
    with suppress(KeyboardInterrupt), later.remembering():
        second = later.of(other)
        raise KeyboardInterrupt
    monkeypatch.setattr(layer_times, "_timed", None)
    assert (LayerTimes().of(one), LayerTimes().of(other)) == (first, second)
    monkeypatch.setattr("slimcli.deploy.remembered.this_machine", lambda: "another")
    with pytest.raises(TypeError):
        LayerTimes().of(one)


@given(st.sampled_from([1, 8, 16]), st.floats(1.5, 4), st.integers(0, 3))
def test_the_multiple_of_a_staircase_is_its_step(step: int, power: float, seed: int) -> None:
    """Time that rises only from one multiple to the next, whatever it rises by, measured to half a percent."""
    noise = np.random.default_rng(seed).uniform(1, 1.005, 200)
    times = {width: (math.ceil(width / step) * step) ** power * noise[width] for width in layer_times.WIDTHS}
    assert best_multiple(times) == step


def test_what_was_measured_is_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = fast_multiples()
    assert set(found) == {"spatial", "pointwise", "depthwise", "linear"}
    assert set(found.values()) <= set(layer_times.MULTIPLES)
    monkeypatch.setattr(layer_times, "_swept", dict)
    assert fast_multiples() == found
    monkeypatch.setattr("slimcli.deploy.remembered.this_machine", lambda: "another")
    assert fast_multiples() == {}


def test_without_a_place_to_remember_it_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    measured, calls = {"spatial": 8}, []
    monkeypatch.setattr(layer_times, "_swept", lambda: calls.append(None) or measured)
    assert fast_multiples() == measured
    assert len(calls) == 1


def test_a_full_disk_costs_no_second_measurement(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object) -> None:
        raise StorageError("the disk is full", "make room")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("slimcli.deploy.remembered.write_atomically", full)
    measured, calls = {"spatial": 8}, []
    monkeypatch.setattr(layer_times, "_swept", lambda: calls.append(None) or measured)
    assert fast_multiples() == measured
    assert len(calls) == 1


@pytest.mark.parametrize(
    "content", ["", "[]", '{"%s": {"spatial": 8}}', '{"%s": 3}'], ids=["empty", "another", "of an older version", "a number"]
)
def test_a_memory_that_cannot_be_read_is_replaced(content: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = Remembered(MULTIPLES_FILE).path
    path.parent.mkdir(parents=True)
    path.write_text(content.replace("%s", this_machine()))
    measured = dict.fromkeys(("spatial", "pointwise", "depthwise", "linear"), 8)
    monkeypatch.setattr(layer_times, "_swept", lambda: measured)
    assert fast_multiples() == measured
    monkeypatch.setattr(layer_times, "_swept", dict)
    assert fast_multiples() == measured
