"""Latency in onnxruntime, several models interleaved: what a machine does between two sequential measurements is no result.

And in several sessions of each: where a session's memory came to lie can make it some percent faster than its twin for as long
as it lives, which no number of calls averages out.
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from slimcli.deploy.profile import Cost, profile
from slimcli.deploy.providers import PROVIDERS
from slimcli.deploy.sessions import feed, open_session
from slimcli.environment import conditions, environment
from slimcli.errors import InputError
from slimcli.records import JsonDict, Latency, Ratio

STRETCHES = 10
"""Into so many stretches the calls are cut, each with a session of its own for every model."""
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t, two-sided 95 %, for 1 to 9 degrees of freedom (any table of it)."""


@dataclass(frozen=True)
class Bench:
    """Latencies by path, in the order given, and the first model's ratio to each other one.

    `samples` are all calls in ms (stretches x calls x models); `cold` is what creating a session took, in ms, the median over the
    stretches; `memory` what a process that loads and runs the model once grows by, in bytes, and `profiles` where its time goes
    (None if not asked for).
    """

    latencies: tuple[tuple[str, Latency], ...]
    ratios: tuple[Ratio, ...]
    samples: np.ndarray
    cold: tuple[float, ...]
    memory: tuple[int | None, ...]
    profiles: tuple[list[Cost] | None, ...]

    def to_json(self) -> JsonDict:
        """The object that `slim bench --json` prints."""
        return {
            "models": [
                {
                    "path": path,
                    "latency_ms": asdict(latency),
                    "cold_start_ms": round(self.cold[at], 3),
                    "memory_bytes": self.memory[at],
                    "samples_ms": [[round(float(each), 5) for each in stretch] for stretch in self.samples[:, :, at]],
                }
                | self._profile(at)
                for at, (path, latency) in enumerate(self.latencies)
            ],
            "ratios": [asdict(ratio) for ratio in self.ratios],
            "environment": environment() | conditions(),
        }

    def _profile(self, at: int) -> JsonDict:
        costs = self.profiles[at]
        return {} if costs is None else {"profile": [asdict(cost) for cost in costs]}


def bench(
    paths: Sequence[str | Path],
    *,
    names: Sequence[str] | None = None,
    runs: int = 1000,
    batch: int = 1,
    threads: int = 1,
    provider: str = "cpu",
    seed: int = 0,
    memory: bool = False,
    profiled: bool = False,
) -> Bench:
    """Measure ONNX files, one call of each in turn, at least `runs` times, in an order drawn anew every round.

    `names` stand for the paths in the result. Warm-up goes on until two successive blocks of rounds agree within 5 % (at
    most 20 blocks). Latencies in ms; the ratio is p50 over p50, the geometric mean over the stretches, its interval Student's t
    over their logarithms. Raises `InputError` for a file that onnxruntime cannot run, and for a provider that it would silently
    replace by the CPU.
    """
    generator = np.random.default_rng(seed)
    stretches = min(STRETCHES, max(2, runs // 10))
    times = np.empty((stretches, math.ceil(runs / stretches), len(paths)))
    cold = np.empty((stretches, len(paths)))
    for number in range(stretches):
        sessions = {}
        for at in generator.permutation(len(paths)):
            started = time.perf_counter_ns()
            sessions[at] = open_session(Path(paths[at]), threads, provider)
            cold[number, at] = (time.perf_counter_ns() - started) / 1e6
        _measure([sessions[at] for at in range(len(paths))], batch, times[number], generator)
    shown = [str(name) for name in (names or paths)]
    latencies = tuple((name, _latency(times[:, :, at], threads, batch, provider)) for at, name in enumerate(shown))
    ratios = tuple(_ratio(times, at, shown) for at in range(1, len(shown)))
    grown = tuple(_memory(Path(path), threads, provider, batch) if memory else None for path in paths)
    profiles = tuple(profile(Path(path), batch, threads, provider) if profiled else None for path in paths)
    return Bench(latencies, ratios, times, tuple(np.median(cold, axis=0).tolist()), grown, profiles)


def _measure(sessions: Sequence[ort.InferenceSession], batch: int, times: np.ndarray, generator: np.random.Generator) -> None:
    """Fill `times` (calls x models), after a warm-up."""
    shapes = {str(_image(session.get_inputs()[0])) for session in sessions}
    if len(shapes) > 1:
        raise InputError(f"the models take different inputs: {', '.join(sorted(shapes))}", "compare models of one input shape")
    feeds = [feed(session, batch, generator) for session in sessions]
    _warm_up(sessions, feeds)
    for round_times in times:
        for at in generator.permutation(len(sessions)):
            round_times[at] = _milliseconds(sessions[at], feeds[at])


def _image(entry: ort.NodeArg) -> list[Any]:
    """The shape of one image; pixels have their channels last."""
    shape = list(entry.shape[1:])
    return [shape[-1], *shape[:-1]] if entry.type == "tensor(uint8)" and len(shape) == 3 else shape


_LOAD_AND_RUN = """
import sys
from pathlib import Path
import numpy as np
import psutil
from slimcli.deploy.sessions import feed, open_session
before = psutil.Process().memory_info().rss
session = open_session(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
session.run(None, feed(session, int(sys.argv[4]), np.random.default_rng(0)))
print(psutil.Process().memory_info().rss - before)
"""


def _memory(path: Path, threads: int, provider: str, batch: int) -> int | None:
    """By how many bytes a process of its own grows that loads the model and runs it once; None where that does not work."""
    arguments = [sys.executable, "-P", "-c", _LOAD_AND_RUN, str(path), str(threads), provider, str(batch)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def _milliseconds(session: ort.InferenceSession, feed: dict[str, np.ndarray]) -> float:
    started = time.perf_counter_ns()
    session.run(None, feed)
    return (time.perf_counter_ns() - started) / 1e6


def _warm_up(sessions: Sequence[ort.InferenceSession], feeds: Sequence[dict[str, np.ndarray]]) -> None:
    before = np.full(len(sessions), np.inf)
    for _ in range(20):
        block = [[_milliseconds(s, f) for s, f in zip(sessions, feeds, strict=True)] for _ in range(10)]
        now = np.median(block, axis=0)
        if np.all(np.abs(now - before) <= 0.05 * now):
            return
        before = now


def _latency(times: np.ndarray, threads: int, batch: int, provider: str) -> Latency:
    quantiles = tuple(round(float(value), 6) for value in np.percentile(times, range(101)))
    p50, p90, p99 = (float(value) for value in np.percentile(times, (50, 90, 99)))
    means = float(times.mean()), float(times.min())
    return Latency(p50, p90, p99, *means, times.size, threads, batch, PROVIDERS[provider], quantiles)


def _ratio(times: np.ndarray, to: int, names: Sequence[str]) -> Ratio:
    medians = np.median(times, axis=1)
    logs = np.log(medians[:, 0] / medians[:, to])
    half = _T[len(logs) - 2] * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    ratio, low, high = (math.exp(float(logs.mean()) + shift) for shift in (0.0, -half, half))
    return Ratio(names[0], names[to], ratio, low, high)
