"""Peaks of GPU memory that others published, to be read beside an estimate: another library with
another optimizer and another recomputation, so they bound nothing."""

from __future__ import annotations

from dataclasses import dataclass

from train.sizes.bases import known


@dataclass(frozen=True)
class Peak:
    """Measured GiB a GPU of training a base of `shape`, `rows` x `length` tokens a pass."""

    shape: str
    method: str
    rows: int
    length: int
    gib: float
    source: str


PEAKS = (
    Peak("meta-llama/Meta-Llama-3-8B", "full", 2, 2048, 37.4, "torchtune"),
    Peak("meta-llama/Meta-Llama-3-8B", "LoRA", 2, 2048, 30.3, "torchtune"),
    Peak("meta-llama/Meta-Llama-3-8B", "QLoRA", 2, 2048, 7.4, "torchtune"),
    Peak("meta-llama/Meta-Llama-3-8B", "full", 2, 8192, 82.4, "torchtitan, 8 GPUs"),
    Peak("meta-llama/Meta-Llama-3-8B", "full", 2, 8192, 67.0, "torchtitan, 128 GPUs"),
)


def beside(base: str) -> list[Peak]:
    """The peaks that were published of this base's shape."""
    return [peak for peak in PEAKS if known(peak.shape) == known(base) is not None]
