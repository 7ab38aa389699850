"""Exact nearest neighbours against FAISS searched as the original does (IndexFlatL2, k=500, 1,024 queries at a time): time, memory, equality.

    pip install faiss-cpu
    python benchmarks/bench_neighbors.py --rows 100000          # on as many threads as the machine has cores
    python benchmarks/bench_neighbors.py --rows 100000 --dim 768 --no-faiss

Each side runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

THRESHOLD = 0.05


def pool(rows: int, dim: int) -> NDArray[np.float32]:
    """Unit vectors in loose clusters, of which 1 % are near duplicates and 1 % exact ones of an earlier row."""
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(200, dim)).astype(np.float32)
    vectors = centres[draw.integers(0, 200, rows)] + draw.normal(size=(rows, dim)).astype(np.float32)
    copies = draw.integers(rows // 2, rows, rows // 50)
    sources = draw.integers(0, rows // 2, rows // 50)
    vectors[copies] = vectors[sources]
    half = copies[: rows // 100]
    vectors[half] += 0.05 * draw.normal(size=(len(half), dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def ours(vectors: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    from synth.neighbors import neighbors

    found = neighbors([str(i) for i in range(len(vectors))], vectors, THRESHOLD)
    return found["min_neighbor_distance"].to_numpy(), found["repeat_count"].to_numpy(), found["min_similar_id"].cast(int).to_numpy()


def faiss_way(vectors: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """What gen_dis.py computes: the second hit's distance, hits under the threshold, the lowest of them."""
    import faiss

    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(vectors)
    nearest, counts, lowest = [], [], []
    for top in range(0, len(vectors), 1024):
        distances, places = index.search(vectors[top : top + 1024], min(500, len(vectors)))
        nearest.append(distances[:, 1])
        close = distances < THRESHOLD
        counts.append(close.sum(axis=1) - 1)
        lowest.append(np.where(close, places, len(vectors)).min(axis=1))
    return np.concatenate(nearest), np.concatenate(counts), np.concatenate(lowest)


def product_rate(dim: int) -> float:
    """The machine's 32-bit matrix products on large square matrices, in GFLOP/s."""
    import torch

    a, b = torch.randn(4096, 4096), torch.randn(4096, 4096)
    torch.mm(a, b)
    best = min(_seconds(lambda: torch.mm(a, b)) for _ in range(3))
    return 2 * 4096**3 / best / 1e9


def _seconds(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def side(name: str, rows: int, dim: int, out: Path) -> None:
    """Run one side in this process and leave its results and figures in `out`."""
    vectors = pool(rows, dim)
    work = ours if name == "ours" else faiss_way
    work(vectors[:2048])  # what loads on first use is not what is measured
    started = time.perf_counter()
    nearest, counts, lowest = work(vectors)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    np.savez(out / f"{name}.npz", nearest=nearest, counts=counts, lowest=lowest)
    figures = {"seconds": seconds, "peak_gib": peak, "rate": product_rate(dim) if name == "ours" else 0.0}
    (out / f"{name}.json").write_text(json.dumps(figures))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=100_000)
    options.add_argument("--dim", type=int, default=384)
    options.add_argument("--no-faiss", action="store_true")
    options.add_argument("--side", choices=["ours", "faiss"], help=argparse.SUPPRESS)
    options.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.side:
        return side(chosen.side, chosen.rows, chosen.dim, chosen.out)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for name in ["ours"] if chosen.no_faiss else ["ours", "faiss"]:
            command = [sys.executable, __file__, "--rows", str(chosen.rows), "--dim", str(chosen.dim), "--side", name, "--out", folder]
            subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])})
        report(chosen.rows, chosen.dim, out)


def report(rows: int, dim: int, out: Path) -> None:
    mine = json.loads((out / "ours.json").read_text())
    work = rows * rows * dim / 1e9  # half of all pairs, two operations each
    print(f"rows {rows:,} x {dim}, {os.cpu_count()} cores")
    print(f"ours:  {mine['seconds']:.1f} s, peak {mine['peak_gib']:.2f} GiB, {work / mine['seconds']:.0f} GFLOP/s")
    print(f"       {100 * work / mine['seconds'] / mine['rate']:.0f} % of the machine's matrix-product rate ({mine['rate']:.0f} GFLOP/s)")
    print(f"       projected for 1,000,000 x 768 at this rate: {1e12 * 768 / 1e9 / (work / mine['seconds']) / 3600:.2f} h")
    if not (out / "faiss.json").exists():
        return
    theirs = json.loads((out / "faiss.json").read_text())
    a, b = np.load(out / "ours.npz"), np.load(out / "faiss.npz")
    print(f"faiss: {theirs['seconds']:.1f} s, peak {theirs['peak_gib']:.2f} GiB")
    print(f"ratio: {theirs['seconds'] / mine['seconds']:.1f} times faster")
    print(f"largest difference of a distance: {np.abs(a['nearest'] - b['nearest']).max():.1e}")
    differ = {name: int((a[name] != b[name]).sum()) for name in ("counts", "lowest")}
    print(f"rows whose repeat count differs: {differ['counts']}, whose lowest id differs: {differ['lowest']}")


if __name__ == "__main__":
    main()
