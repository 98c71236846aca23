"""A distance of flows is numpy's of all their entries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slimcli.pruning.gap import Gap, gap

FLOWS = st.lists(st.floats(-10, 10), min_size=6, max_size=6)


@given(FLOWS, FLOWS, st.floats(0.1, 10))
def test_distances(one: list[float], other: list[float], scale: float) -> None:
    now, dense = ({"a": torch.tensor(v[:2]), ("a", "b"): torch.tensor(v[2:]).view(2, 2)} for v in (one, other))
    whole = [torch.cat([value.flatten() for value in flow.values()]).double().numpy() for flow in (now, dense)]
    norms = [float(np.linalg.norm(vector)) for vector in whole]
    difference = float(np.linalg.norm(whole[0] - whole[1]))
    assert gap(now, dense, "absolute").total == pytest.approx(difference, abs=1e-6)
    if norms[1] > 1e-3:
        assert gap(now, dense).total == pytest.approx(difference / norms[1], rel=1e-5, abs=1e-6)
        scaled = [{key: value * scale for key, value in flow.items()} for flow in (now, dense)]
        assert gap(scaled[0], scaled[1]).total == pytest.approx(difference / norms[1], rel=1e-3, abs=1e-5)
        if norms[0] > 1e-3:
            cosine = 1 - float(whole[0] @ whole[1]) / (norms[0] * norms[1])
            assert gap(now, dense, "cosine").total == pytest.approx(cosine, abs=1e-5)
            assert gap(scaled[0], dense, "cosine").total == pytest.approx(cosine, abs=1e-5)
    assert gap(dense, dense).total == 0
    assert gap(now, dense).parts.keys() == {"a", "a -> b"}


def test_the_furthest_parts_come_first() -> None:
    assert Gap(1.0, {"a": 0.1, "b": 0.5, "c": 0.3}).furthest(2) == [("b", 0.5), ("c", 0.3)]


def test_an_unknown_distance_is_refused() -> None:
    with pytest.raises(ValueError, match="distance"):
        gap({}, {}, "manhattan")
