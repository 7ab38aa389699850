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
import timeit
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from synth.duplicates.blocks import Floats, Ints, Rows, slices

if TYPE_CHECKING:
    import torch

Products = NDArray[np.int32]

SPREAD = 4.9
"""The grid's end in standard deviations of a coordinate, 1/sqrt(d). A longer grid is coarser; on a
shorter one the worst vector of a block, by whose residue the block is judged, has a coordinate cut
off."""
STEPS = 127
"""Steps of the grid on either side of 0."""
SLACK = 1e-9
"""Far more than the 64-bit rounding of the rotation and of a residue's length."""
SLICE = 8192
"""Rows rotated at a time."""
LOW = -(2**30)
"""Below every product of codes."""


class Codes:
    """The codes p of n vectors, int8 [n padded to whole blocks, d], the residues' lengths |r|
    (`lost`), and what a product of codes is in units of the cosine."""

    def __init__(self, rows: Rows, count: int, width: int, side: int) -> None:
        """`rows` reads vectors, float32 [m, `width`]; `side`: rows of a block."""
        import torch

        self.count, self.width, self.side = count, width, side
        # always the same rotation, so that two searches of one pool are the same
        turn = np.linalg.qr(np.random.default_rng(0).normal(size=(width, width)))[0]
        step = SPREAD / (STEPS * math.sqrt(width))
        self.unit = step * step
        padded = -(-count // side) * side
        self.codes = torch.zeros((padded, width), dtype=torch.int8)
        self.lost = np.zeros(padded)
        longest = 0.0
        for part in slices(count, SLICE):
            vectors = rows(part).astype(np.float64)
            turned = vectors @ turn / step
            rounded = np.clip(np.rint(turned), -STEPS, STEPS)
            self.codes[part] = torch.from_numpy(rounded.astype(np.int8))
            self.lost[part] = np.linalg.norm(turned - rounded, axis=1) * step + SLACK
            longest = max(longest, float(np.linalg.norm(vectors, axis=1).max()))
        # |x| of the bound: the vectors' length is 1 but for rounding
        self.longest = longest + SLACK
        self.worst = self.lost.reshape(-1, side).max(axis=1)

    def error(self, a: slice, b: slice) -> Floats:
        """How far the cosine of each row of `a` with any row of block `b` may be from what the
        codes say: the bound above, with the largest residue of the block."""
        worst = self.worst[b.start // self.side]
        errors: Floats = self.lost[a] * (self.longest + worst) + self.longest * worst
        return errors

    def errors(self, i: Ints, j: Ints) -> Floats:
        """The same of pairs."""
        return self.longest * (self.lost[i] + self.lost[j]) + self.lost[i] * self.lost[j]

    def products(self, a: slice, b: slice, out: torch.Tensor) -> Products:
        """Products of the codes of two blocks, int32 [side, side]; padding and a vector with itself
        are LOW."""
        import torch

        torch._int_mm(self.codes[a], self.codes[b].T, out=out)
        products: Products = out.numpy()
        if a == b:
            np.fill_diagonal(products, LOW)
        products[max(self.count - a.start, 0) :] = LOW
        products[:, max(self.count - b.start, 0) :] = LOW
        return products


@functools.cache
def rates() -> dict[str, float]:
    """This processor's products in billions of operations a second on one thread: {"float32",
    "int8"}; int8 is 0 where it is not exact.

    (Without the VNNI instructions 8-bit products saturate at 16 bits.) Measured once, in some
    milliseconds.
    """
    import torch

    side, width = 512, 384
    ends = torch.full((side, width), -STEPS, dtype=torch.int8)
    real = torch.randn((side, width), generator=torch.Generator().manual_seed(0))
    operations = 2 * side * side * width

    def rate(product: Callable[[], object]) -> float:
        return 1e-9 * operations / min(timeit.repeat(product, number=1, repeat=8))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        exact = _exact(ends)
        return {
            "float32": rate(lambda: real @ real.T),
            "int8": rate(lambda: torch._int_mm(ends, ends.T)) if exact else 0.0,
        }
    finally:
        torch.set_num_threads(threads)


def _exact(ends: torch.Tensor) -> bool:
    """Whether the largest products that there are come out whole, of both signs."""
    import torch

    largest = STEPS * STEPS * ends.shape[1]
    try:
        positive, negative = (int(torch._int_mm(ends, o.T)[0, 0]) for o in (ends, -ends))
    except (RuntimeError, NotImplementedError):
        return False
    return positive == largest == -negative
