"""Latency in onnxruntime, several models interleaved: what a machine does between two sequential measurements is no result."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from slimcli.deploy.providers import PROVIDERS
from slimcli.environment import environment
from slimcli.errors import InputError, suggest
from slimcli.records import JsonDict, Latency, Ratio


@dataclass(frozen=True)
class Bench:
    """Latencies by path, in the order given, and the first model's ratio to each other one."""

    latencies: tuple[tuple[str, Latency], ...]
    ratios: tuple[Ratio, ...]

    def to_json(self) -> JsonDict:
        """The object that `slim bench --json` prints."""
        return {
            "models": [{"path": path, "latency_ms": asdict(latency)} for path, latency in self.latencies],
            "ratios": [asdict(ratio) for ratio in self.ratios],
            "environment": environment(),
        }


def bench(
    paths: Sequence[str | Path],
    *,
    names: Sequence[str] | None = None,
    runs: int = 1000,
    batch: int = 1,
    threads: int = 1,
    provider: str = "cpu",
    seed: int = 0,
) -> Bench:
    """Measure ONNX files, one call of each in turn, `runs` times, in an order drawn anew every round.

    `names` stand for the paths in the result. Warm-up goes on until two successive blocks of rounds agree within 5 % (at
    most 20 blocks). Latencies in ms; the ratio is p50 over p50, its interval a bootstrap over rounds. Raises `InputError`
    for a file that onnxruntime cannot run, and for a provider that it would silently replace by the CPU.
    """
    sessions = [_session(Path(path), threads, provider) for path in paths]
    generator = np.random.default_rng(seed)
    shapes = {str(session.get_inputs()[0].shape[1:]) for session in sessions}
    if len(shapes) > 1:
        raise InputError(f"the models take different inputs: {', '.join(sorted(shapes))}", "compare models of one input shape")
    feeds = [_feed(session, batch, generator) for session in sessions]
    _warm_up(sessions, feeds)
    times = np.empty((runs, len(sessions)))
    for round_times in times:
        for index in generator.permutation(len(sessions)):
            round_times[index] = _milliseconds(sessions[index], feeds[index])
    used = sessions[0].get_providers()[0] if sessions else ""
    shown = [str(name) for name in (names or paths)]
    latencies = tuple((name, _latency(times[:, at], runs, threads, batch, used)) for at, name in enumerate(shown))
    ratios = tuple(_ratio(times, 0, at, shown, generator) for at in range(1, len(shown)))
    return Bench(latencies, ratios)


def _session(path: Path, threads: int, provider: str) -> ort.InferenceSession:
    if provider not in PROVIDERS:
        raise InputError(f"there is no provider {provider!r}", suggest(provider, PROVIDERS))
    wanted = PROVIDERS[provider]
    if wanted not in ort.get_available_providers():
        raise InputError(f"this onnxruntime has no {wanted}", "install the onnxruntime build that has it (slimcli[gpu])")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(path), options, providers=[wanted])
    except Exception as error:
        raise InputError(f"onnxruntime cannot open {path}: {str(error).splitlines()[0][:200]}", "export it again") from error
    if session.get_providers()[0] != wanted:
        raise InputError(
            f"onnxruntime fell back from {wanted} to {session.get_providers()[0]}", "check the driver and its libraries"
        )
    return session


def _feed(session: ort.InferenceSession, batch: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
    entry = session.get_inputs()[0]
    shape = [batch if index == 0 else side for index, side in enumerate(entry.shape)]
    if isinstance(entry.shape[0], int) and entry.shape[0] != batch:
        raise InputError(f"an ONNX file has a fixed batch of {entry.shape[0]}", f"use --batch {entry.shape[0]}")
    if not all(isinstance(side, int) for side in shape) or entry.type != "tensor(float)" or len(session.get_inputs()) > 1:
        raise InputError(f"an ONNX input of {entry.type} {entry.shape} cannot be made up", "bench takes one float image input")
    return {entry.name: generator.standard_normal(shape, dtype=np.float32)}


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


def _latency(times: np.ndarray, runs: int, threads: int, batch: int, provider: str) -> Latency:
    p50, p90, p99 = (float(value) for value in np.percentile(times, (50, 90, 99)))
    return Latency(p50, p90, p99, float(times.mean()), float(times.min()), runs, threads, batch, provider)


def _ratio(
    times: np.ndarray,
    of: int,
    to: int,
    names: Sequence[str],
    generator: np.random.Generator,
) -> Ratio:
    resampled = generator.integers(len(times), size=(1000, len(times)))
    ratios = np.median(times[resampled, of], axis=1) / np.median(times[resampled, to], axis=1)
    low, high = (float(value) for value in np.percentile(ratios, (2.5, 97.5)))
    return Ratio(names[of], names[to], float(np.median(times[:, of]) / np.median(times[:, to])), low, high)
