"""The stages of a recipe, in order: one description for planning and for running.

    instructions -> measure -> select (arm) -> preferences (arm) -> train (arm, seed) -> tasks,
    answers, heldout, judge, score (arm, seed) -> compare -> report

Order matters for the machine: everything that needs the teacher's server comes first, no server is
alive while a model trains or lm-eval holds one, and each checkpoint's server answers every prompt
set and the held-out loss before it is swapped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import polars as pl

from core.errors import UserError
from core.files import write_atomic
from core.models import Model, resolve
from core.servers import Servers
from core.store import Build, Result, Store, digest, tree_digest
from core.tracking import Log, Tracker
from recipes.schema import Loaded, Recipe, with_random
from recipes.stages import checks, evaluation, preferences, synthesis
from recipes.stages.session import Session, Step, StopHere
from synth.filters.arm import ArmConfig
from synth.filters.rule import Filter
from synth.filters.rule import resolve as resolve_filter

STAGES = (
    "instructions",
    "measure",
    "select",
    "preferences",
    "train",
    "tasks",
    "answers",
    "heldout",
    "judge",
    "score",
    "compare",
    "report",
)


@dataclass(frozen=True)
class Outcome:
    """What a walk over the stages found or made."""

    steps: list[Step]
    results: dict[str, Result]
    stopped: bool


def plan(loaded: Loaded) -> Outcome:
    """Which stages are done, which must run, and why. Starts nothing, writes nothing but remembered
    model digests."""
    return _walk(loaded, planning=True, until=None)


def run(loaded: Loaded, until: str | None = None) -> Outcome:
    """Make whatever is missing, up to the stage `until` (default: all)."""
    return _walk(loaded, planning=False, until=until)


def _walk(loaded: Loaded, *, planning: bool, until: str | None) -> Outcome:
    recipe = loaded.recipe
    store = Store(Path(recipe.store))
    tracker = tracker_of(recipe, store)
    log = Log()
    with Servers(log, store.root / "logs") as servers:
        session = Session(store, recipe.name, planning, tracker, servers, log, until)
        try:
            Stages(loaded, session).walk()
        except StopHere:
            return Outcome(session.steps, session.results, True)
        except UserError as error:
            raise loaded.source.sentence(error) from error
    return Outcome(session.steps, session.results, False)


def tracker_of(recipe: Recipe, store: Store) -> Tracker:
    """Where the runs of this recipe are tracked, all in one group; what its tasks get on a cluster
    makes no other recipe of it."""
    group = f"{recipe.name}-{digest(recipe.model_dump(mode='json', exclude={'launch'}))[:8]}"
    return Tracker(recipe.track, project=recipe.project, group=group, folder=store.root)


def baseline_of(recipe: Recipe, arms: Mapping[str, ArmConfig]) -> str:
    """The arm that others are compared with: the recipe's, else the first finished model, else the
    first random arm, else the first arm."""
    if recipe.baseline:
        return recipe.baseline
    finished = [n for n, a in arms.items() if a.model is not None]
    plain = [
        n
        for n, a in arms.items()
        if a.choose == "hash_order" and a.where is None and a.data is None
    ]
    return next(iter([*finished, *plain, *arms]))


class Stages:
    """The walk over one recipe's stages within a session."""

    def __init__(self, loaded: Loaded, session: Session) -> None:
        self.recipe, self.session = loaded.recipe, session
        self.source = loaded.source
        self.arms = with_random(self.recipe)
        self.models: dict[tuple[str, str | None], Model] = {}
        self.prompt_characters: dict[str, list[int]] = {}
        self.filters: dict[str, Filter] = {
            n: resolve_filter(n, a)
            for n, a in self.arms.items()
            if a.model is None and a.data is None
        }
        self.seeds = self.recipe.train.seeds if self.recipe.train else (0,)

    def resolve(self, model: str, revision: str | None = None) -> Model:
        """`core.models.resolve`, once a model."""
        key = (model, revision)
        if key not in self.models:
            self.models[key] = resolve(model, revision)
        return self.models[key]

    def walk(self) -> None:
        """All stages in order."""
        self.check()
        selections = synthesis.stages(self)
        preferences.stages(self, selections)
        checkpoints = self.train(selections)
        self.session.done("train")
        if self.recipe.eval is not None and checkpoints:
            evaluation.stages(self, checkpoints, selections)

    def check(self) -> None:
        """Everything that can be found wrong before anything is spent: model paths first, then
        TRL's own keys."""
        recipe = self.recipe
        checks.check(recipe)
        teacher = recipe.synth.teacher
        named: list[tuple[tuple[str, ...], str, str | None]] = [
            (("synth", "teacher", "model"), teacher.model, teacher.revision)
        ]
        named += [
            (("arms", n, "model"), a.model, a.revision) for n, a in self.arms.items() if a.model
        ]
        if recipe.train is not None:
            named.append((("train", "base"), recipe.train.base, recipe.train.revision))
        named += preferences.models(self)
        for loc, model, revision in named:
            try:
                self.resolve(model, revision)
            except UserError as error:
                raise UserError(f"{'.'.join(loc)}: {error}") from error
        if recipe.train is not None and not self.session.planning:
            # Importing TRL takes seconds, so a block that this TRL accepted once is not asked about
            # again.
            accepted = (
                self.session.store.root / "checked" / digest([recipe.train, version("trl")])[:16]
            )
            if not accepted.exists():
                from train.arguments import check

                try:
                    check(recipe.train)
                except UserError as error:
                    raise UserError(f"{self.source.at(('train', 'trainer'))}: {error}") from error
                write_atomic(accepted, "")

    def runs(self) -> list[tuple[str, int | None]]:
        """Every checkpoint of the comparison: (arm, seed), or (arm, None) for a finished model."""
        return [
            (n, None) if a.model is not None else (n, s)
            for n, a in self.arms.items()
            for s in (self.seeds if a.model is None else (0,))
        ]

    # -- training ----------------------------------------------------------------------------------

    def train(self, selections: dict[tuple[str, int], Result | None]) -> dict[str, Result | None]:
        """A checkpoint for every arm and seed ("ARM/SEED"), and every finished model ("ARM")."""
        checkpoints: dict[str, Result | None] = {}
        for arm, seed in self.runs():
            if seed is None:
                config = self.arms[arm]
                found = self.resolve(str(config.model), config.revision)
                known = (
                    found.revision if found.revision != "unresolved" else [found.name, "unresolved"]
                )
                checkpoints[arm] = Result(Path(found.path), {"digest": digest(["model", known])})
            elif self.recipe.train is not None:
                checkpoints[f"{arm}/{seed}"] = self._train(arm, seed, selections[(arm, seed)])
        return checkpoints

    def _train(self, arm: str, seed: int, chosen: Result | None) -> Result | None:
        from train import arguments, chat, data, launch

        config = self.recipe.train
        assert config is not None
        base = self.resolve(config.base, config.revision)
        spec = {
            "train": config.model_dump(
                mode="json",
                exclude={
                    "seeds",
                    "main_process_ip",
                    "main_process_port",
                    "base",
                    "revision",
                    "deepspeed",
                },
            ),
            "deepspeed": json.loads(arguments.deepspeed_json(config)),
            "base": base.revision if base.revision != "unresolved" else [base.name, "unresolved"],
            "seed": seed,
            "templates": {
                "training": digest(chat.read(config.chat_template_path, training=True))
                if config.chat_template_path
                else None,
                "inference": digest(chat.read(config.inference_template, training=False))
                if config.inference_template
                else None,
            },
            "VERSION": data.VERSION,
        }

        def make(build: Build, log: Log) -> None:
            self.session.servers.release()
            assert chosen is not None
            build.counts.update(
                launch.run(
                    config,
                    {"selection": chosen.path},
                    build.path,
                    base=base.path,
                    seed=seed,
                    log=log,
                )
            )

        # The trainer reports to W&B itself only where the recipe says so; else the stage forwards
        # its figures.
        reports = str(config.trainer.get("report_to", "none"))
        itself = "wandb" in reports or reports == "all"
        return self.session.stage(
            f"train/{arm}/{seed}",
            spec,
            {"selection": chosen},
            make,
            content=lambda out: tree_digest(out / "checkpoint"),
            trainer=itself,
        )

    def model_path(self, checkpoint: Result) -> str:
        """The folder (or hub id) to serve for a checkpoint."""
        folder = checkpoint.path / "checkpoint"
        return str(folder) if folder.is_dir() else str(checkpoint.path)


def rows_digest(rows: pl.DataFrame) -> str:
    """Digest of an ordered list of conversations [id, messages]: what a selection is, whatever
    filter chose it."""
    return digest([[row["id"], digest(row["messages"])] for row in rows.iter_rows(named=True)])
