"""`magpie export RECIPE --form model`: the checkpoint of an arm and seed with a model card, pushed
to the hub when asked."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from core.errors import UserError, nearest
from core.files import read_json, replacing
from core.store import Result
from recipes.exchange import card
from recipes.exchange.export_data import Target, pushed
from recipes.exchange.import_data import check_new
from recipes.schema import Loaded, Recipe, load, with_random
from recipes.stages import graph
from recipes.stages.sets.licences import licence_of
from train.config import TrainConfig

_LLAMA_3 = (
    "Built with Meta Llama 3. The Meta Llama 3 Community License asks whoever passes this model on "
    "to give a copy of it along, to show `Built with Meta Llama 3`, and to begin the model's name "
    "with `Llama 3`"
)
_LLAMA = (
    "Built with Llama. The Llama Community License of the base asks whoever passes this model on "
    "to give a copy of it along, to show `Built with Llama`, and to begin the model's name with "
    "`Llama`"
)
_GEMMA = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at "
    "https://ai.google.dev/gemma/terms. This model is a derivative: whoever passes it on passes "
    "those terms and their use restrictions on as well, and says that it was modified"
)
TERMS = {
    "llama-3.3": ("llama3.3", _LLAMA),
    "llama-3.2": ("llama3.2", _LLAMA),
    "llama-3.1": ("llama3.1", _LLAMA),
    "llama-3": ("llama3", _LLAMA_3),
    "gemma": ("gemma", _GEMMA),
    "smollm": ("apache-2.0", ""),
}
"""Of a base, by a part of its name (the first that fits): the hub's name of its licence, and what
it asks of whoever passes on a model made of it. A reminder, no legal advice."""

_LEGAL = ("LICENSE*", "NOTICE*", "USE_POLICY*")
_CHOICE = ("where", "choose", "strategy", "budget", "data", "model")


@dataclass(frozen=True)
class Trained:
    """A finished training of a recipe, and what is known of it."""

    recipe: Recipe
    arm: str
    seed: int
    results: Mapping[str, Result]

    @property
    def run(self) -> str:
        """ARM/SEED."""
        return f"{self.arm}/{self.seed}"

    @property
    def result(self) -> Result:
        """Of the training."""
        return self.results[f"train/{self.run}"]

    @property
    def before(self) -> str | None:
        """The arm that this one went on from by DPO."""
        return with_random(self.recipe)[self.arm].dpo

    @property
    def base(self) -> tuple[str, str | None]:
        """(name as the recipe has it, revision) of the model that all training began from."""
        arms = with_random(self.recipe)
        finished = arms[self.before] if self.before else None
        if finished is not None and finished.model is not None:
            return finished.model, finished.revision
        config = self.recipe.train
        if config is None:
            raise ValueError("a trained arm without `train`")
        return config.base, config.revision


def main(
    source: str, target: Target, *, arm: str | None = None, seed: int | None = None
) -> dict[str, Any]:
    """Write the checkpoint of a recipe's arm to `target.out` with its card, upload it to
    `target.push`, and say what was done, which is returned too. Raises UserError for a recipe that
    has not trained it."""
    token = os.environ.get("HF_TOKEN", "").strip()
    target.check(token)
    trained = find(load(source), arm, seed)
    with ExitStack() as stack:
        folder = target.out or Path(stack.enter_context(TemporaryDirectory())) / "model"
        licence = write(trained, folder, target.licence)
        print(
            f"{trained.recipe.name} {trained.run} written to {folder} (licence: {licence or '?'})"
        )
        if licence is None:
            print(f"the licence of {trained.base[0]} is not known here: give it with --license.")
        where = None
        if target.push:
            where = pushed(folder, target.push, token, private=target.private, kind="model")
            print(f"pushed to {where}")
    return {
        "recipe": trained.recipe.name,
        "run": trained.run,
        "licence": licence,
        "out": str(target.out) if target.out else None,
        "pushed": where,
    }


def find(loaded: Loaded, arm: str | None, seed: int | None) -> Trained:
    """The training of an arm and seed (default: the first that is finished). Raises UserError where
    there is none."""
    recipe = loaded.recipe
    arms = [name for name, each in with_random(recipe).items() if each.kind != "model"]
    if arm is None or arm not in arms:
        given = f"--arm {arm}: no arm of that name is trained" if arm else "--arm is needed"
        raise UserError(f"{given}{nearest(arm or '', arms)}.")
    results = graph.plan(loaded).results
    runs = [name for name in results if name.startswith(f"train/{arm}/")]
    seeds = sorted(int(name.rpartition("/")[2]) for name in runs)
    if not seeds or (seed is not None and seed not in seeds):
        which = f"{arm}/{seed}" if seed is not None else arm
        raise UserError(
            f"{which} of recipe {recipe.name} is not trained; "
            f"`magpie run {loaded.source.path} --until train` does it."
        )
    return Trained(recipe, arm, seeds[0] if seed is None else seed, results)


def write(trained: Trained, folder: Path, licence: str | None) -> str | None:
    """The checkpoint with its card, and the licence texts of its base, as `folder`, which appears
    when it is whole; returns the licence that the card states. Raises UserError where the folder
    holds something."""
    check_new(folder)
    name, _ = trained.base
    base = _folder_of_base(trained)
    stated = licence or (licence_of(str(base), None, base, ask=False) if base else None)
    short, terms = terms_of(name)
    with replacing(folder) as work:
        shutil.copytree(trained.result.path / "checkpoint", work)
        if trained.before is None:
            _name_base(work / "adapter" / "adapter_config.json", *trained.base)
        else:  # a difference from another arm's checkpoint, which nobody who has this folder has
            shutil.rmtree(work / "adapter", ignore_errors=True)
        for text in _legal_texts(base):
            shutil.copyfile(text, work / text.name)
        (work / "README.md").write_text(render(trained, stated or short, terms))
    return stated or short


def _name_base(path: Path, name: str, revision: str | None) -> None:
    """Let an adapter say its base as the recipe does, in place of a folder of this machine."""
    if path.is_file():
        named = {"base_model_name_or_path": name, "revision": revision}
        path.write_text(json.dumps({**read_json(path), **named}, indent=2) + "\n")


def terms_of(base: str) -> tuple[str | None, str]:
    """(the hub's name of its licence, what it asks), None and "" where they are not known here."""
    plain = base.lower().replace("_", "-").replace("llama3", "llama-3")
    return next((terms for part, terms in TERMS.items() if part in plain), (None, ""))


def _folder_of_base(trained: Trained) -> Path | None:
    """The base's folder on this machine; None where it is not there any more."""
    first = trained.results.get(f"train/{trained.before}/{trained.seed}", trained.result)
    path = Path(read_json(first.path / "train.json")["base"])
    return path if path.is_dir() else None


def _legal_texts(base: Path | None) -> list[Path]:
    """What lies in the base's folder of its licence."""
    if base is None:
        return []
    found = [sorted(base.glob(pattern)) for pattern in _LEGAL]
    return [path for path in chain.from_iterable(found) if path.is_file()]


def render(trained: Trained, licence: str | None, terms: str) -> str:
    """Text of the model card."""
    from jinja2 import Environment, FileSystemLoader

    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    recipe, result = trained.recipe, trained.result
    base, revision = trained.base
    return made.get_template("model_card.md.jinja").render(
        front=_front(trained, licence),
        name=f"{recipe.name} {trained.run}",
        recipe=recipe.name,
        arm=trained.arm,
        seed=trained.seed,
        base=base,
        revision=revision,
        before=trained.before,
        licence=licence,
        terms=terms,
        outputs=card.licences(writers_of(recipe)),
        data=list(_data(trained)),
        counts=dict(_figures(result.manifest["counts"])),
        settings=list(_settings(trained)),
        scores=list(_scores(trained)),
        caveat=recipe.caveat,
        content=result.digest,
        environment=result.manifest.get("environment", {}),
        adapter=(result.path / "checkpoint" / "adapter").is_dir(),
    )


def _front(trained: Trained, licence: str | None) -> str:
    """The front matter, by which a hub finds the model; it names no folder of this machine."""
    base, _ = trained.base
    rows = trained.recipe.synth.rows
    sources = [getattr(rows, "import_", None), with_random(trained.recipe)[trained.arm].data]
    front: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["magpie", "trl", "dpo" if trained.before else "sft"],
    }
    if licence:
        front["license"] = licence
    if base.count("/") == 1 and not base.startswith(("/", ".", "embedded/")):
        front["base_model"] = base
    if sets := [s for s in sources if s and s.count("/") == 1 and not Path(s).exists()]:
        front["datasets"] = sets
    return yaml.safe_dump(front, sort_keys=False).rstrip()


def writers_of(recipe: Recipe) -> list[str]:
    """The models, or the published sets, that wrote what was trained on."""
    rows = recipe.synth.rows
    source = getattr(rows, "import_", None)
    if source is not None:
        return [str(source)]
    responder = recipe.synth.responder or recipe.synth.teacher
    return list(dict.fromkeys((recipe.synth.teacher.model, responder.model)))


def _data(trained: Trained) -> Iterator[tuple[str, str]]:
    """(what, which) of the rows that were trained on."""
    arms, results = with_random(trained.recipe), trained.results
    of_rows = trained.before or trained.arm
    for arm in dict.fromkeys((of_rows, trained.arm)):
        said = arms[arm].model_dump(mode="json", exclude_defaults=True)
        rule = ", ".join(f"{key}: {said[key]}" for key in _CHOICE if key in said)
        yield f"arm {arm}", rule or arms[arm].kind
    named = [(f"select/{of_rows}", "selection"), (f"preferences/{trained.arm}", "pairs")]
    if trained.before:
        named.append((f"preferences/{of_rows}", "pairs"))
    for name, what in named:
        found = results.get(name) or results.get(f"{name}/{trained.seed}")
        if found is not None:
            counts = found.manifest["counts"]
            number = counts.get("rows", counts.get("pairs", "?"))
            yield what, f"{number} rows, content {found.digest}"
    funnel = trained.recipe.folder / "select" / of_rows / "funnel.json"
    if funnel.is_file():
        steps = read_json(funnel)
        yield "chosen from", f"{steps['pool']:,} rows by {steps['choose']}"


def _figures(counts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in counts.items():
        if isinstance(value, int) and not isinstance(value, bool):
            yield name.replace("_", " "), f"{value:,}"
        elif isinstance(value, float):
            yield name.replace("_", " "), f"{value:.4g}"


def _settings(trained: Trained) -> Iterator[tuple[str, str]]:
    """(block, its settings as YAML) of each training behind the checkpoint."""
    recipe = trained.recipe
    blocks: list[tuple[str, TrainConfig | None]] = [("train", recipe.train)]
    if trained.before:
        blocks.append(("dpo", recipe.dpo))
    for name, config in blocks:
        if config is not None:
            said = config.model_dump(mode="json", exclude_unset=True)
            yield name, yaml.safe_dump(said, sort_keys=False, allow_unicode=True).rstrip()


def _scores(trained: Trained) -> Iterator[tuple[str, str, str]]:
    """(benchmark, metric, value with its interval) of what is scored of this run."""
    score = trained.results.get(f"score/{trained.run}")
    if score is None:
        return
    for benchmark, metrics in read_json(score.path / "summary.json").items():
        for metric, facts in metrics.items():
            if facts.get("value") is None:
                continue
            known = facts.get("lower") is not None and facts.get("upper") is not None
            within = f" ({facts['lower']:.4g} to {facts['upper']:.4g})" if known else ""
            yield benchmark, metric, f"{facts['value']:.4g}{within}, n {facts.get('n')}"
