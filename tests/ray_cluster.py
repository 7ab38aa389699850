"""A real Ray cluster of two nodes on this machine, for tests, with a head that runs no tasks.

Every process is started with a mark in its environment (workers inherit it), which is how all of
them are ended again, also after a failure.
"""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil

MARK = "MAGPIE_TEST_RAY"
CURRENT = Path("/tmp/ray/ray_current_cluster")
"""Where Ray notes the cluster that was started last; put back afterwards."""
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}


class RayCluster:
    """Two nodes of one CPU each; use as a context manager."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self.nodes: list[Any] = []

    def __enter__(self) -> RayCluster:
        from ray.cluster_utils import Cluster

        self._known = CURRENT.read_text() if CURRENT.is_file() else None
        own = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
        with patch.dict(os.environ, {**QUIET, MARK: self.mark}):
            try:
                self._cluster = Cluster(True, head_node_args={"num_cpus": 0, **own})
                self.nodes = [self._cluster.add_node(num_cpus=1, **own) for _ in range(2)]
            except BaseException:
                self.close()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def environment(self) -> dict[str, str]:
        """For a driver in a process of its own."""
        return {**os.environ, **QUIET, "RAY_ADDRESS": str(self._cluster.address)}

    def lose_node(self) -> None:
        """A node breaks down, with everything that runs on it."""
        self._cluster.remove_node(self.nodes.pop(), allow_graceful=False)

    def processes(self) -> list[psutil.Process]:
        """Everything that this cluster has started and that is still alive."""
        return [p for p in psutil.process_iter() if p.pid != os.getpid() and _marked(p, self.mark)]

    def close(self) -> None:
        """End every process of this cluster."""
        for _ in range(10):
            found = self.processes()
            for process in found:
                try:
                    process.kill()
                except psutil.Error:
                    continue
            if not psutil.wait_procs(found, timeout=2)[1] and not self.processes():
                break
        shutil.rmtree(self._cluster.head_node.get_session_dir_path(), ignore_errors=True)
        if self._known is None:
            CURRENT.unlink(missing_ok=True)
        else:
            CURRENT.write_text(self._known)


def _marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(MARK) == mark
    except (psutil.Error, OSError):
        return False
