"""Where the time of a training's steps goes on one device: waiting for data, waiting for other
devices, computing. Only training processes import this.

Data is what the trainer waits for its batches. On the CPU collectives block, so communication is
the time spent in them. On a GPU they run beside the kernels that compute: there a step now and then
is traced, and communication is the time in which nothing but it ran. Waiting for a slower device
counts as communication on a faster one.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from train.sizes.slowness import PARTS

FIRST, EVERY = 3, 100
"""Steps of a start that are traced on a GPU: the third, and every hundredth after it."""

_BLOCKING = (
    *("all_reduce", "reduce", "broadcast", "barrier", "all_gather", "all_gather_into_tensor"),
    *("reduce_scatter", "reduce_scatter_tensor", "all_to_all", "all_to_all_single", "gather"),
    *("all_gather_single", "reduce_scatter_single"),  # the newer names of two of them
)

Span = tuple[float, float]
"""When something began and ended, in seconds."""


class Collectives:
    """Seconds that this process spent in torch's collectives, waiting for what they began
    included."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def listen(self) -> None:
        """From now on. Before DeepSpeed starts, which keeps some of the functions."""
        for name in filter(partial(hasattr, torch.distributed), _BLOCKING):
            setattr(torch.distributed, name, self._timed(getattr(torch.distributed, name)))

    def _timed(self, function: Any) -> Any:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                work = function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began
            return work if work is None else _Waited(work, self)

        return timed


class _Waited:
    """A collective that runs on; waiting for it counts."""

    def __init__(self, work: Any, collectives: Collectives) -> None:
        self._work, self._collectives = work, collectives

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return self._work.wait(*args, **kwargs)
        finally:
            self._collectives.seconds += time.perf_counter() - began

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


COLLECTIVES = Collectives()


@dataclass(frozen=True)
class Shares:
    """Shares (0 to 1) of a step, its data aside, in which a GPU did nothing but communicate, and
    nothing at all."""

    communication: float
    idle: float


class Clock:
    """The time of the steps since the last line of the log."""

    def __init__(self, *, gpu: bool) -> None:
        self._gpu = gpu
        self._data = self._before = 0.0
        self._began = 0  # steps of this start
        self._trace: Any = None
        self._shares: Shares | None = None

    def start(self) -> None:
        """A line's first step begins."""
        self._data, self._before = 0.0, COLLECTIVES.seconds

    def fetched(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same batches; waiting for them counts as data."""
        while True:
            began = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self._data += time.perf_counter() - began
            yield batch

    def computes(self) -> None:
        """The batches of a step are here."""
        self._began += 1
        if self._gpu and self._began % EVERY == FIRST:
            activities = [torch.profiler.ProfilerActivity.CUDA]
            self._trace = torch.profiler.profile(activities=activities)
            self._trace.start()
            self._traced = time.perf_counter()

    def ends(self) -> None:
        """The step is taken."""
        if self._trace is None:
            return
        torch.cuda.synchronize()
        seconds = time.perf_counter() - self._traced
        self._trace.stop()
        self._shares = shares(_kernels(self._trace.events()), seconds)
        self._trace = None

    def waits(self, seconds: float) -> tuple[float, float, float]:
        """What of `seconds` since `start` this device waited for data, for other devices, and idle
        (NaN where that is not known: a GPU of which no step is traced yet, idle on the CPU)."""
        if not self._gpu:
            return self._data, COLLECTIVES.seconds - self._before, math.nan
        if self._shares is None:
            return self._data, math.nan, math.nan
        rest = seconds - self._data
        return self._data, rest * self._shares.communication, rest * self._shares.idle


def split(seconds: float, *waits: float) -> dict[str, float]:
    """The figures of `seconds` by what was waited for, as `Clock.waits` has it: what is not known
    is left out, and with the communication the computing, which is the rest.

    All are means over the devices, `seconds` too: a device that begins a step sooner than another
    waits for it longer than the other's step takes.
    """
    known = {name: wait for name, wait in zip(PARTS, waits, strict=True) if not math.isnan(wait)}
    if "communication_seconds" in known:
        known["compute_seconds"] = max(0.0, seconds - sum(known.values()))
    return {"seconds": seconds, **known}


def _kernels(events: Iterable[Any]) -> Iterator[tuple[str, Span]]:
    """(name, when) of what ran on the GPU in a trace."""
    for event in events:
        if event.device_type != DeviceType.CPU and not event.is_user_annotation:
            yield event.name, (event.time_range.start / 1e6, event.time_range.end / 1e6)


def shares(kernels: Iterable[tuple[str, Span]], seconds: float) -> Shares | None:
    """What a step of `seconds` was on a GPU by the kernels (and copies) that ran in it: NCCL's and
    RCCL's are those of communication. None where a trace saw none."""
    every = list(kernels)
    if not every:
        return None
    computing = covered(span for name, span in every if "nccl" not in name.lower())
    busy = covered(span for _, span in every)
    return Shares((busy - computing) / seconds, max(0.0, 1 - busy / seconds))


def covered(spans: Iterable[Span]) -> float:
    """Seconds that at least one of the spans covers."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
