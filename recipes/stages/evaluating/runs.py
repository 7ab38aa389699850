"""The checkpoints that are evaluated, and who answers for each: a server of its own, or for
trainings with adapters one server of their base (`eval.lora: served`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import read_json
from core.models import Model, folder, resolve
from core.serving import adapters
from core.serving.adapters import Adapted
from core.store import Result
from recipes.schema import Recipe
from recipes.stages.session import Results
from recipes.stages.training import served_path
from recipes.stages.walk import Arms


@dataclass(frozen=True)
class OverBase:
    """Trainings whose adapters the server of their base holds."""

    base: Model
    trainings: Mapping[str, Result | None]
    """Their results by run ("ARM/SEED")."""

    def adapted(self, run: str) -> Adapted:
        """One of them as it is asked. Raises UserError for an adapter that is not there, and for
        one that vLLM does not serve as it was trained."""
        from train.export import ADAPTER

        made = {name: result.path for name, result in self.trainings.items() if result}
        checkpoints = {name: Path(served_path(path)) for name, path in sorted(made.items())}
        each = [_adapter(name, checkpoint / ADAPTER) for name, checkpoint in checkpoints.items()]
        return Adapted(
            checkpoint=str(checkpoints[run]),
            name=run,
            base=str(folder(self.base)),
            adapters={name: str(path / ADAPTER) for name, path in checkpoints.items()},
            tokenizer=str(next(iter(checkpoints.values()))),
            rank=max(rank for rank, _ in each),
            modules=tuple(sorted(set.union(*(modules for _, modules in each)))),
        )


@dataclass(frozen=True)
class Run:
    """A checkpoint by its name: "ARM/SEED", or "ARM" of a finished model."""

    name: str
    checkpoint: Result | None
    over: OverBase | None = None
    """Where it is asked by its adapter."""

    @property
    def determines(self) -> dict[str, Any]:
        """What of who answers is part of a key; nothing of a server of its own."""
        return {} if self.over is None else {"lora": "served", "base": self.over.base.determines}

    def asked(self, checkpoint: Path) -> str | Adapted:
        """The checkpoint, a result at this folder, as it is asked."""
        return served_path(checkpoint) if self.over is None else self.over.adapted(self.name)


def evaluated(recipe: Recipe, arms: Arms, checkpoints: Results) -> list[Run]:
    """The checkpoints in the order in which they are asked: those that one server answers for,
    then the trainings with servers of their own, then finished models (the judge or the next recipe
    may be the same model, and then its server stays up). What goes on by DPO is another base's, and
    served merged."""
    trained = [name for name in checkpoints if "/" in name]
    served: list[str] = []
    over = None
    if recipe.train is not None and recipe.eval is not None and recipe.eval.lora == "served":
        served = [name for name in trained if arms.configs[name.partition("/")[0]].dpo is None]
        base = resolve(recipe.train.base, recipe.train.revision)
        over = OverBase(base, {name: checkpoints[name] for name in served})
    alone = sorted((name for name in checkpoints if name not in served), key=lambda n: "/" not in n)
    return [
        *(Run(name, checkpoints[name], over) for name in served),
        *(Run(name, checkpoints[name]) for name in alone),
    ]


def _adapter(run: str, adapter: Path) -> tuple[int, set[str]]:
    """(the largest rank of a training's adapter, the modules that it adapts), once it is known as
    one that vLLM serves."""
    from train.sizes.shapes import shapes

    instead = "write `eval.lora: merged`"
    if not (adapter / "adapter_config.json").is_file() or not (weights := shapes(adapter)):
        raise UserError(
            f"train/{run}: its checkpoint keeps no adapter in safetensors ({adapter}), as a server "
            f"of the base would load it; {instead}, or train again."
        )
    whole = [name for name in weights if not name.endswith((".lora_A.weight", ".lora_B.weight"))]
    if whole:
        raise UserError(
            f"train/{run}: beside its adapter it trained {whole[0]} itself, which vLLM does not "
            f"serve; {instead}."
        )
    modules = {name.split(".")[-3] for name in weights}
    embeddings = sorted(modules & {*adapters.EMBEDDINGS})
    if embeddings:
        raise UserError(
            f"train/{run}: it adapts {embeddings[0]}, which vLLM does not serve; {instead}."
        )
    return adapters.rank_of(read_json(adapter / "adapter_config.json")), modules
