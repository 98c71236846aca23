"""A run's journal read back: its events as they come in, and from them every figure that `metrics.json` holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from slimcli.measures import SCORE_KEYS
from slimcli.records import JsonDict


class Tail:
    """The events of a journal that may still be written; a look at it costs what is new since the last one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[JsonDict] = []
        self._end = 0
        self._last_line = b""

    def read(self) -> list[JsonDict]:
        """All events so far; a line that is still being written waits for its end.

        A run that goes on cuts its journal back to its saved state. It may have grown beyond the old end since: therefore
        the last line that was read is looked at again, and where it is another one, everything is read anew.
        """
        with self.path.open("rb") as file:
            file.seek(self._end - len(self._last_line))
            if file.read(len(self._last_line)) != self._last_line:
                self.events, self._end, self._last_line = [], 0, b""
                file.seek(0)
            whole, newline, _ = file.read().rpartition(b"\n")
        if newline:
            self._end += len(whole) + 1
            self._last_line = whole[whole.rfind(b"\n") + 1 :] + newline
            self.events += parsed(whole)
        return self.events


def parsed(lines: bytes) -> Iterator[JsonDict]:
    """The events in the lines; lines that were cut off are left out."""
    for line in lines.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            yield event


def of_kind(events: Sequence[JsonDict], kind: str) -> list[JsonDict]:
    """The events of one kind, in order."""
    return [event for event in events if event.get("event") == kind]


def last(events: Sequence[JsonDict], *kinds: str) -> JsonDict | None:
    """The newest event of these kinds."""
    return next((event for event in reversed(events) if event.get("event") in kinds), None)


def rebuild(events: Sequence[JsonDict]) -> JsonDict | None:
    """What `metrics.json` holds, as far as the run got; None before the run has described its dense network.

    Of an unfinished run `slim` is the last network that was kept: its top-1 and loss on the test split are not known (None),
    its held-out top-1 is, and `reason` says where the run is.
    """
    start = last(events, "start")
    if start is None or "macs" not in start.get("dense", {}):
        return None
    return _pruned(start, events) if "method" in start else _trained(start, events)


def _pruned(start: JsonDict, events: Sequence[JsonDict]) -> JsonDict:
    end = last(events, "end")
    deployed = last(events, "deployed") or {}
    iterations = [fields(event) for event in of_kind(events, "iteration")]
    before = start["dense"]
    after = end or _so_far(before, iterations, events)
    return {
        "schema": 1,
        "method": start["method"],
        "arch": start["arch"],
        "data": start["data"],
        "dense": _side(before, deployed.get("dense")),
        "slim": _side(after, deployed.get("slim")),
        "removed": {key: 1 - after[key] / before[key] for key in ("macs", "params")},
        "held_out": end["held_out"] if end else _held_out(start, iterations),
        "epochs": end["epochs"] if end else len(of_kind(events, "epoch")),
        "training_macs": (end or {}).get("training_macs"),
        "reason": deployed.get("reason", end["reason"]) if end else where(events),
        "budget_met": bool(end and deployed.get("budget_met", end["budget_met"])),
        "iterations": iterations,
        "final": (end or {}).get("final") or _trials(events),
        "dead_filters": (end or {}).get("dead_filters", {}),
        "sparsity": (end or {}).get("sparsity"),
        "layers": layers_between(before["layers"], after.get("layers", [])),
        "left_out": (end or start).get("left_out", []),
        "frozen": start.get("frozen", []),
        "notes": [*start.get("notes", []), *deployed.get("notes", [])],
        "environment": start.get("environment", {}),
        **{key: deployed[key] for key in ("parity", "speedup") if deployed.get(key)},
    }


def _trained(start: JsonDict, events: Sequence[JsonDict]) -> JsonDict:
    end = last(events, "end") or {}
    return {
        "schema": 1,
        "arch": start["arch"],
        "data": start["data"],
        "epochs": len(of_kind(events, "epoch")) if end else start["epochs"],
        "training_macs": end.get("training_macs"),
        "dense": _side(start["dense"] | end, None),
        **{key: end[key] for key in ("held_out",) if key in end},
        "layers": layers_between(start["dense"].get("layers", []), start["dense"].get("layers", [])),
        **({} if end else {"reason": where(events)}),
        "environment": start.get("environment", {}),
    }


def _trials(events: Sequence[JsonDict]) -> JsonDict:
    """The last retrainings so far."""
    trials = [fields(event) for event in of_kind(events, "trial")]
    leading = max((number for number, trial in enumerate(trials) if trial["chosen"]), default=None)
    trials = [trial | {"chosen": number == leading} for number, trial in enumerate(trials)]
    return {"distilled": None, "chosen": None, "trials": trials}


def where(events: Sequence[JsonDict]) -> str:
    """Where an unfinished run is, for a sentence that begins with "the run is"."""
    event = last(events, "epoch", "surgery", "iteration")
    if event is None:
        return "not finished: before its first epoch"
    if event["event"] == "epoch":
        total = f" of {event['epochs']}" if "epochs" in event else ""
        return f"not finished: in {event['phase']}, epoch {event['index'] + 1}{total}"
    if event["event"] == "surgery":
        return f"not finished: after the surgery of iteration {event['iteration']}"
    return f"not finished: after iteration {event['index']}"


def fields(event: JsonDict) -> JsonDict:
    """What an event says beside its kind."""
    return {key: value for key, value in event.items() if key != "event"}


def _side(measured: JsonDict, deployed: JsonDict | None) -> JsonDict:
    """One network's figures; what was not measured is None, and a latency that was not measured is left out."""
    known: dict[str, Any] = {key: measured.get(key) for key in ("top1", "loss", "macs", "params")}
    known |= {key: measured[key] for key in SCORE_KEYS if key in measured}
    return known | {"file_bytes": None} | {key: value for key, value in (deployed or {}).items() if value is not None}


def _so_far(dense: JsonDict, iterations: Sequence[JsonDict], events: Sequence[JsonDict]) -> JsonDict:
    """The last network that was kept; the dense one where none was yet."""
    kept = [step for step in iterations if step["kept"]]
    if not kept:
        after = dense
    else:
        surgeries = {event["iteration"]: event for event in of_kind(events, "surgery")}
        after = surgeries.get(kept[-1]["index"], {}) | {key: kept[-1][key] for key in ("macs", "params")}
        after |= last(events, "cleared") or {}  # a masked network without its dead filters
    unknown = dict.fromkeys(key for key in ("top1", "score", "loss") if key in dense)
    return after | {key: dense[key] for key in SCORE_KEYS if key in dense} | unknown


def _held_out(start: JsonDict, iterations: Sequence[JsonDict]) -> JsonDict:
    dense = start["held_out"]
    kept = [step for step in iterations if step["kept"]]
    now = {key: kept[-1][key] for key in ("top1", "score") if kept and key in kept[-1]}
    return {"dense": dense, "slim": {**dense, **now, "loss": None} if kept else dense}


def layers_between(before: Sequence[JsonDict], after: Sequence[JsonDict]) -> list[JsonDict]:
    """Each layer as it was and as it is: of one in a block that was left out nothing is left. Empty where nothing is known."""
    now = {layer["name"]: layer for layer in after}
    return [
        {key: layer[key] for key in ("name", "type")}
        | {key: [layer[key], now.get(layer["name"], {}).get(key, 0)] for key in ("filters", "macs", "params")}
        for layer in before
        if now
    ]
