"""One task of a synthesis on many machines: what datatrove pickles, and what a worker does with it.

Nothing heavy is imported here: Ray forks its task processes after unpickling, and polars' and
torch's threads do not survive a fork. Nothing secret is held: models' keys are read from the
worker's own environment.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.store import Counts
    from recipes.schema import Loaded

STAGES = ("instructions", "pool", "tags", "answers", "merge", "select")
"""In order: `pool` measures what reads the whole pool, `merge` makes few large files of what the
tasks wrote, and `select` makes whatever is left, each in one task; the others share the rows."""


@dataclass(frozen=True)
class Task:
    """A step of a datatrove pipeline: this stage for this task's share of the rows."""

    recipe: str
    """The resolved recipe's file."""
    folder: str
    """Where relative paths of the recipe start."""
    stage: str

    def __call__(self, data: object, rank: int, world_size: int) -> None:
        """Called by the executor on a worker, as task `rank` of `world_size`. Raises RuntimeError
        with what went wrong."""
        _end_with_parent()
        os.chdir(self.folder)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from recipes import schema

        problem = ""
        try:
            run(schema.load(self.recipe), self.stage, rank, world_size)
        except Exception as error:
            traceback.print_exc()
            problem = f"{type(error).__name__}: {error}"
        # an error of this frame: datatrove logs the values of every variable in a traceback, keys
        # among them
        if problem:
            raise RuntimeError(problem)


def run(loaded: Loaded, stage: str, rank: int, world: int) -> Counts:
    """Make what is missing of one stage in this task's share of the rows, with servers of its own;
    returns counts.

    Safe beside other tasks, also of the same share: parts of columns have names of their own and
    never replace one another, so that a cell that is made twice costs time only. What a killed task
    had finished is in the store, and the same task started again continues from there.
    """
    from core.models import resolve
    from core.servers import Servers
    from core.store import Store, digest
    from core.tracking import Log
    from recipes.stages import graph, tokens
    from recipes.stages.walk import Arms, tracker_of
    from synth.measures import POOLED
    from synth.pool import draw, measure

    if stage == "select":
        graph.run(loaded, until="select")
        return {}
    recipe = loaded.recipe
    store = Store(Path(recipe.store))
    tracker = tracker_of(recipe, store)
    arms = Arms.of(recipe)
    # Tasks may share a host and always share the store: each has its own server log.
    with Servers(Log(), store.root / "logs" / f"{stage}-{rank}") as servers:
        pool = graph.pool_of(recipe, arms, resolve, store.root, planning=False)
        key = digest([pool.cells["instruction"], stage, rank, world])
        with tracker.stage(
            f"{stage}/{rank}", stage, key, {"recipe": recipe.name, "rank": rank, "world": world}
        ) as log:
            share = (rank, world)
            if stage == "instructions":
                counts = draw.draw(pool, servers, log, share)
            elif stage == "merge":
                counts = pool.merge(log.say, files=0)
            else:
                free = [
                    m
                    for m, declared in pool.measures.table.items()
                    if m not in POOLED
                    and declared.reads == "instruction"
                    and m not in ("response", "base_response")
                ]
                only = {"pool": POOLED, "tags": free, "answers": None}[stage]
                rules = [(rule, arms.seeds) for rule in arms.rules.values()]
                counts = measure.measure(
                    pool,
                    rules,
                    servers,
                    log,
                    tokens.token_counter(recipe.train, arms, pool, resolve),
                    measure.Task(share, only),
                )
            log.finish({"counts": counts})
            log.say(f"{stage}, task {rank} of {world}: {counts}")
    return counts


def _end_with_parent() -> None:
    """End this process when the one that started it is gone.

    Ray's actor forks a pool of processes for its tasks, which outlive an actor that is killed: such
    an orphan would keep a server on its GPU.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
