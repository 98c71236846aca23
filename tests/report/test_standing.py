"""Where a run stands, as its journal tells."""

from __future__ import annotations

from slimcli.records import JsonDict
from slimcli.report.standing import earlier_seconds


def test_the_time_before_interruptions_is_that_of_the_epochs() -> None:
    epoch: JsonDict = {"event": "epoch", "seconds": 2.5}
    again: JsonDict = {"event": "resumed", "time": 100.0}
    assert earlier_seconds([{"event": "start"}, epoch, epoch]) == 0
    assert earlier_seconds([{"event": "start"}, epoch, epoch, again, epoch]) == 5
    assert earlier_seconds([{"event": "start"}, epoch, again, epoch, again]) == 5
