"""Exact nearest neighbours against FAISS searched as the original does (IndexFlatL2, k=500, 1,024
queries at a time): time, memory, equality. On as many threads as the machine has cores.

    pip install -e '.[index]'
    python benchmarks/bench_neighbors.py --rows 100000
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

THRESHOLD = 0.05


def pool(rows: int, dim: int) -> NDArray[np.float32]:
    """Unit vectors in loose clusters, of which 1 % are near duplicates and 1 % exact ones of an
    earlier row."""
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(200, dim)).astype(np.float32)
    vectors = centres[draw.integers(0, 200, rows)] + draw.normal(size=(rows, dim)).astype(
        np.float32
    )
    copies = draw.integers(rows // 2, rows, rows // 50)
    sources = draw.integers(0, rows // 2, rows // 50)
    vectors[copies] = vectors[sources]
    half = copies[: rows // 100]
    vectors[half] += 0.05 * draw.normal(size=(len(half), dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def ours(vectors: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    from synth.config.tags import NeighborsConfig
    from synth.duplicates.neighbors import neighbors

    ids = [str(i) for i in range(len(vectors))]
    found = neighbors(ids, vectors, NeighborsConfig(threshold=THRESHOLD))
    return (
        found["min_neighbor_distance"].to_numpy(),
        found["repeat_count"].to_numpy(),
        found["min_similar_id"].cast(int).to_numpy(),
    )


def faiss_way(vectors: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """What gen_dis.py computes: the second hit's distance, hits under the threshold, the lowest of
    them."""
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


def product_rates(dim: int) -> dict[str, float]:
    """The machine's products, in billions of operations a second over all its threads: large square
    32-bit matrices by torch on all threads, and blocks of 1,024 rows by one thread each, as the
    search computes them (the best of several)."""
    import torch

    square = torch.randn(4096, 4096)
    torch.mm(square, square)
    rates = {
        "32-bit": 2e-9 * 4096**3 / min(_seconds(lambda: torch.mm(square, square)) for _ in range(3))
    }
    threads = torch.get_num_threads()

    def blocks(_: int) -> float:
        torch.set_num_threads(1)
        codes = torch.randint(-127, 128, (1024, dim), dtype=torch.int8)
        room = torch.empty((1024, 1024), dtype=torch.int32)
        return min(_seconds(lambda: torch._int_mm(codes, codes.T, out=room)) for _ in range(200))

    with ThreadPoolExecutor(threads) as pool:
        rates["8-bit"] = sum(
            2e-9 * 1024**2 * dim / seconds for seconds in pool.map(blocks, range(threads))
        )
    torch.set_num_threads(threads)
    return rates


def _seconds(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def side(name: str, rows: int, dim: int, out: Path) -> None:
    """Run one side in this process and leave its results and figures in `out`."""
    vectors = pool(rows, dim)
    work = ours if name == "ours" else faiss_way
    work(vectors[:8192])  # what loads on first use is not what is measured
    started, busy = time.perf_counter(), time.process_time()
    nearest, counts, lowest = work(vectors)
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    np.savez(out / f"{name}.npz", nearest=nearest, counts=counts, lowest=lowest)
    figures: dict[str, Any] = {
        "seconds": seconds,
        "processor": busy,
        "peak_gib": peak,
        "load": os.getloadavg()[0],
    }
    figures["rates"] = product_rates(dim) if name == "ours" else {}
    (out / f"{name}.json").write_text(json.dumps(figures))


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
            command = [
                sys.executable,
                __file__,
                "--rows",
                str(chosen.rows),
                "--dim",
                str(chosen.dim),
                "--side",
                name,
                "--out",
                folder,
            ]
            subprocess.run(
                command,
                check=True,
                env=os.environ
                | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])},
            )
        report(chosen.rows, chosen.dim, out)


def report(rows: int, dim: int, out: Path) -> None:
    mine = json.loads((out / "ours.json").read_text())
    work = rows * rows * dim / 1e9  # half of all pairs, two operations each
    rate = work / mine["seconds"]
    print(f"rows {rows:,} x {dim}, {os.cpu_count()} cores")
    print(f"ours:  {_figures(mine)}, {rate:.0f} billion operations a second")
    for kind, most in mine["rates"].items():
        share = f"{100 * rate / most:.0f} % of the machine's {kind} matrix-product rate"
        print(f"       {share} ({most:.0f} billion a second)")
    hours = 1e12 * 768 / 1e9 / rate / 3600
    print(f"       projected for 1,000,000 x 768 at this rate: {hours:.2f} h")
    if not (out / "faiss.json").exists():
        return
    theirs = json.loads((out / "faiss.json").read_text())
    a, b = np.load(out / "ours.npz"), np.load(out / "faiss.npz")
    print(f"faiss: {_figures(theirs)}")
    faster, less = (theirs[of] / mine[of] for of in ("seconds", "processor"))
    print(f"ratio: {faster:.1f} times faster ({less:.1f} times less processor time)")
    print(f"largest difference of a distance: {np.abs(a['nearest'] - b['nearest']).max():.1e}")
    differ = {name: int((a[name] != b[name]).sum()) for name in ("counts", "lowest")}
    counts, lowest = differ["counts"], differ["lowest"]
    print(f"rows whose repeat count differs: {counts}, whose lowest id differs: {lowest}")


def _figures(of: dict[str, Any]) -> str:
    time_ = f"{of['seconds']:.1f} s ({of['processor']:.1f} s of processor time)"
    return f"{time_}, peak {of['peak_gib']:.2f} GiB, load {of['load']:.1f}"


if __name__ == "__main__":
    main()
