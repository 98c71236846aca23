"""The norm history: recording, survivors, files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from slimcli.errors import CheckpointError, InputError, SettingsError
from slimcli.networks.layers import layers_of
from slimcli.pruning.history import NormHistory, filter_norms
from slimcli.records import ChannelGroup, Member
from tests import tiny

FLOAT32 = st.floats(allow_nan=False, allow_infinity=False, width=32)


def by_hand(weight: Tensor, norm: str) -> list[float]:
    """Eq. 4, filter by filter."""
    rows = [[float(value) for value in row] for row in weight.detach().flatten(1)]
    if norm == "l1":
        return [math.fsum(abs(value) for value in row) for row in rows]
    return [math.hypot(*row) for row in rows]


def drift(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def recorded(model: nn.Module, epochs: int = 3, norm: str = "l1") -> NormHistory:
    history = NormHistory(model, norm)
    for _ in range(epochs):
        drift(model)
        history.record()
    return history


@given(st.integers(1, 4), st.integers(1, 5), st.sampled_from(["l1", "l2"]), st.data())
def test_a_filters_norm_is_that_of_its_weights(filters: int, size: int, norm: str, data: st.DataObject) -> None:
    values = data.draw(st.lists(FLOAT32, min_size=filters * size, max_size=filters * size))
    weight = torch.tensor(values, dtype=torch.float32).view(filters, size)
    found = filter_norms(weight, norm)
    assert found.isfinite().all()
    for one, other in zip(found.tolist(), by_hand(weight, norm), strict=True):
        assert math.isclose(one, other, rel_tol=1e-12, abs_tol=0.0)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_every_layer_has_a_row_per_epoch(norm: str) -> None:
    model = tiny.Residual()
    history = NormHistory(model, norm)
    expected: dict[str, list[list[float]]] = {name: [] for name in layers_of(model)}
    for _ in range(4):
        drift(model)
        history.record()
        for name, layer in layers_of(model).items():
            expected[name].append(by_hand(layer.weight, norm))
    assert history.epochs == 4
    assert history.layers.keys() == expected.keys()
    for name, rows in expected.items():
        torch.testing.assert_close(history.layers[name], torch.tensor(rows), rtol=1e-5, atol=0)


def test_a_history_of_finite_weights_is_finite() -> None:
    model = tiny.Chain()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1e38)
    history = recorded_once(model)
    assert all(rows.isfinite().all() for rows in history.layers.values())


def recorded_once(model: nn.Module) -> NormHistory:
    history = NormHistory(model)
    history.record()
    return history


def test_recording_looks_and_does_not_touch() -> None:
    model = tiny.Chain()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    history = recorded_once(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(rows.requires_grad for rows in history.layers.values())
    first = history.layers["conv1"].clone()
    drift(model)
    assert torch.equal(history.layers["conv1"], first)


def test_survivors_keep_their_rows_and_go_on() -> None:
    model = tiny.Chain()
    history = recorded(model)
    before = history.layers["conv1"].clone()
    history.keep("conv1", [5, 0, 2])
    assert torch.equal(history.layers["conv1"], before[:, [5, 0, 2]])
    history.keep("conv1", [1, 2])
    assert torch.equal(history.layers["conv1"], before[:, [0, 2]])


def test_a_layer_that_shrank_unannounced_is_not_mixed_up() -> None:
    model = tiny.Chain()
    history = recorded(model)
    model.conv1.weight = nn.Parameter(model.conv1.weight[:4].detach().clone())
    with pytest.raises(SettingsError, match="conv1"):
        history.record()


def test_a_groups_history_follows_its_units_and_the_window() -> None:
    history = NormHistory()
    history.layers = {"a": torch.arange(12.0).view(4, 3), "b": torch.arange(20.0).view(4, 5)}
    group = ChannelGroup("a", (Member("a", (2, 0)), Member("b", (1, 4))), 2)
    assert [rows.tolist() for rows in history.of_group(group)] == [
        [[2, 0], [5, 3], [8, 6], [11, 9]],
        [[1, 4], [6, 9], [11, 14], [16, 19]],
    ]
    assert [rows.tolist() for rows in history.of_group(group, 2)] == [[[8, 6], [11, 9]], [[11, 14], [16, 19]]]
    assert [len(rows) for rows in history.of_group(group, 99)] == [4, 4]


def test_a_history_needs_a_model_and_a_known_norm() -> None:
    with pytest.raises(SettingsError, match="model"):
        NormHistory().record()
    with pytest.raises(SettingsError) as caught:
        NormHistory(norm="l3")
    assert "l1" in caught.value.hint
    history = NormHistory()
    history.record(tiny.Chain())
    assert history.epochs == 1


def assert_equal(one: NormHistory, other: NormHistory) -> None:
    assert one.norm == other.norm
    assert one.layers.keys() == other.layers.keys()
    for name, rows in one.layers.items():
        assert torch.equal(rows, other.layers[name])


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_a_saved_history_comes_back(tmp_path: Path, norm: str) -> None:
    model = tiny.Chain()
    history = recorded(model, norm=norm)
    assert_equal(NormHistory.from_state_dict(history.state_dict()), history)
    history.save(tmp_path / "history.pt")
    assert torch.load(tmp_path / "history.pt", weights_only=True)
    assert_equal(NormHistory.from_files([tmp_path / "history.pt"], model, norm), history)


def test_a_saved_history_of_another_norm_is_refused(tmp_path: Path) -> None:
    model = tiny.Chain()
    recorded(model, norm="l2").save(tmp_path / "history.pt")
    with pytest.raises(InputError, match="l2"):
        NormHistory.from_files([tmp_path / "history.pt"], model, "l1")


@pytest.mark.parametrize("wrapping", ["bare", "state_dict", "module."])
def test_epoch_checkpoints_give_the_history_that_was_missed(tmp_path: Path, wrapping: str) -> None:
    model = tiny.Chain()
    history, paths = NormHistory(model), []
    for epoch in range(3):
        drift(model)
        history.record()
        state: dict[str, Any] = dict(model.state_dict())
        if wrapping == "state_dict":
            state = {"epoch": epoch, "state_dict": state}
        elif wrapping == "module.":
            state = {f"module.{key}": value for key, value in state.items()}
        paths.append(tmp_path / f"{epoch}.pt")
        torch.save(state, paths[-1])
    assert_equal(NormHistory.from_files(paths, model), history)


def test_files_that_do_not_belong_to_the_network_are_named(tmp_path: Path) -> None:
    model, path = tiny.Chain(), tmp_path / "epoch.pt"
    state = dict(model.state_dict())
    faults: list[Any] = [
        {key: value for key, value in state.items() if key != "conv2.weight"},
        state | {"conv2.weight": torch.zeros(4, 6, 3, 3)},
        state | {"conv2.weight": torch.zeros(5, 6, 3, 3, dtype=torch.int64)},
        tiny.Residual().state_dict(),
        {"history": {"norm": "l1", "layers": {}}},
        {"history": {"norm": "l1", "layers": {"conv1": torch.zeros(3, 6)}}},
        {"history": {"norm": "l1", "layers": {name: torch.zeros(3) for name in layers_of(model)}}},
        {"history": {"norm": "l1", "layers": {name: [1, 2] for name in layers_of(model)}}},
        {"history": {"norm": "l1", "layers": 5}},
        {"history": {"norm": "l1"}},
        {"history": {"norm": "l9", "layers": {}}},
        {"history": {}},
        5,
    ]
    failed = []
    for content in faults:
        torch.save(content, path)
        try:
            NormHistory.from_files([path], model)
        except InputError:
            continue
        except Exception as error:  # that is the question
            failed.append(f"{type(error).__name__}: {error}")
        else:
            failed.append(f"taken: {content}")
    assert not failed, "\n".join(failed)


def test_epochs_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = tiny.Chain()
    state = dict(model.state_dict()) | {"conv1.weight": torch.full((6, 3, 3, 3), float("nan"))}
    torch.save(state, tmp_path / "epoch.pt")
    with pytest.raises(CheckpointError, match=r"epoch\.pt"):
        NormHistory.from_files([tmp_path / "epoch.pt"], model)


def test_a_payload_in_an_epoch_is_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return open, (str(tmp_path / "ran"), "w")

    torch.save({"history": Payload()}, tmp_path / "epoch.pt")
    with pytest.raises(CheckpointError):
        NormHistory.from_files([tmp_path / "epoch.pt"], tiny.Chain())
    assert not (tmp_path / "ran").exists()


def test_a_history_fits_its_own_network_only() -> None:
    history = recorded(tiny.Chain())
    history.check_fits(tiny.Chain())
    history.keep("conv1", range(5))
    with pytest.raises(CheckpointError, match="conv1"):
        history.check_fits(tiny.Chain())
    with pytest.raises(CheckpointError):
        history.check_fits(tiny.Residual())


def test_saving_a_history_leaves_no_half_file(tmp_path: Path) -> None:
    history = recorded(tiny.Chain())
    history.save(tmp_path / "history.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["history.pt"]
