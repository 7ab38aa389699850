"""8-bit products of unit vectors with a proven error: which pairs could matter, at four times the
speed of 32-bit products.

A vector x is turned by a random rotation (its coordinates are then alike, whatever the model), and
rounded to x = p + r with p on a grid of 255 steps. Products of such p are computed exactly in
integers, and by the Cauchy-Schwarz inequality

    |x.y - p.q| = |r.y + x.s - r.s| <= |r||y| + |x||s| + |r||s|      (y = q + s)

where |r| is known for every vector (about 0.011). So a pair whose p.q lies further than that below
what matters need not be looked at.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

SPREAD = 4.9
"""The grid's end in standard deviations of a coordinate, 1/sqrt(d). A longer grid is coarser; on a
shorter one the worst vector of a block, by whose residue the block is judged, has a coordinate cut
off."""
SLACK = 1e-9
"""Far more than the 64-bit rounding of the rotation and of a residue's length."""
SLICE = 8192
"""Rows rotated at a time."""
LOW = -(2**30)
"""Below every product of codes."""

Rows = Callable[[slice | NDArray[np.int64]], NDArray[np.float32]]
"""Reads vectors of a slice or of places."""


class Codes:
    """The codes p of n vectors, int8 [n padded to whole blocks, d], the residues' lengths, and what
    a product of codes is in units of the cosine."""

    def __init__(self, rows: Rows, n: int, width: int, side: int) -> None:
        import torch

        self.n, self.side = n, side
        turn = np.linalg.qr(np.random.default_rng(0).normal(size=(width, width)))[0]
        step = SPREAD / (127 * math.sqrt(width))
        self.unit = step * step
        self.codes = torch.zeros((-(-n // side) * side, width), dtype=torch.int8)
        self.lost = np.zeros(len(self.codes))
        longest = 0.0
        for top in range(0, n, SLICE):
            part = rows(slice(top, min(top + SLICE, n))).astype(np.float64)
            turned = part @ turn / step
            rounded = np.clip(np.rint(turned), -127, 127)
            self.codes[top : top + len(part)] = torch.from_numpy(rounded.astype(np.int8))
            self.lost[top : top + len(part)] = (
                np.linalg.norm(turned - rounded, axis=1) * step + SLACK
            )
            longest = max(longest, float(np.linalg.norm(part, axis=1).max()))
        self.longest = longest + SLACK
        self.worst = self.lost.reshape(-1, side).max(axis=1)

    def error(self, a: slice, b: slice) -> NDArray[np.float64]:
        """How far the cosine of each row of `a` with any row of block `b` may be from what the
        codes say."""
        worst = self.worst[b.start // self.side]
        errors: NDArray[np.float64] = self.lost[a] * (self.longest + worst) + self.longest * worst
        return errors

    def errors(self, i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.float64]:
        """The same of pairs."""
        return self.longest * (self.lost[i] + self.lost[j]) + self.lost[i] * self.lost[j]

    def products(self, a: slice, b: slice, out: torch.Tensor) -> NDArray[np.int32]:
        """Products of the codes of two blocks, int32 [side, side]; padding and a vector with itself
        are LOW."""
        import torch

        torch._int_mm(self.codes[a], self.codes[b].T, out=out)
        found: NDArray[np.int32] = out.numpy()
        if a == b:
            np.fill_diagonal(found, LOW)
        found[max(self.n - a.start, 0) :] = LOW
        found[:, max(self.n - b.start, 0) :] = LOW
        return found


@functools.cache
def rates() -> dict[str, float]:
    """This processor's products in billions of operations a second on one thread: {"float32",
    "int8"}; int8 is 0 where it is not exact.

    (Without the VNNI instructions 8-bit products saturate at 16 bits.) Measured once, in some
    milliseconds.
    """
    import torch

    side, width = 512, 384
    ends = torch.full((side, width), -127, dtype=torch.int8)
    try:
        exact = (
            int(torch._int_mm(ends, ends.T)[0, 0])
            == 127 * 127 * width
            == -int(torch._int_mm(ends, -ends.T)[0, 0])
        )
    except (RuntimeError, NotImplementedError):
        exact = False
    real = torch.randn((side, width), generator=torch.Generator().manual_seed(0))
    products: dict[str, Callable[[], object]] = {
        "float32": lambda: real @ real.T,
        "int8": lambda: torch._int_mm(ends, ends.T),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = {
            name: min(_seconds(product) for _ in range(8))
            for name, product in products.items()
            if exact or name != "int8"
        }
    finally:
        torch.set_num_threads(threads)
    return {
        "int8": 0.0,
        **{name: 2e-9 * side * side * width / took for name, took in seconds.items()},
    }


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
