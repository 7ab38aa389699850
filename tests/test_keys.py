"""The keys of everything that a store holds: a store made by an earlier version is reused, whatever
was moved or renamed since.

`tests/data/keys.json` was written before the first move, by `python -m tests.test_keys`. Write it
anew only together with a raised VERSION and a line in CHANGELOG.md. Model revisions are the
folders' names here, so that no version of a library enters.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from core import models
from core.store import Result, Store, digest
from eval.checkpoint import lm_eval_tasks
from recipes import schema
from recipes.stages import graph
from tests import small_recipe
from tests.scripted_server import Fault, ScriptedServer, completion
from tests.test_published import row23, row25, saved
from tests.test_ratings import MT, WILD, lines

KEYS = Path(__file__).parent / "data" / "keys.json"
EVERY_TAG = (
    "instruction_length > 0",
    "raw_instruction LIKE '%'",
    "sanitizer_rule LIKE '%'",
    "language LIKE '%'",
    "pii LIKE '%'",
    "response_pii LIKE '%'",
    "eval_overlap >= 0",
    "minhash_group LIKE '%'",
    "min_neighbor_distance >= 0",
    "neighbor_group_size >= 1",
    "eval_distance >= -2",
    "input_quality >= 'very poor'",
    "difficulty >= 'very easy'",
    "(task_category = 'Math' OR task_category <> 'Math')",
    "response_length >= 0",
    "ifd > 0",
    "pair_score_rank >= 1",
    "instruct_reward > -1000",
    "safety <= 'unsafe'",
    "reward_difference > -1000",
)


def answer(path: str, body: dict[str, Any]) -> dict[str, Any] | Fault:
    """The scripted models: a guard, a base model, two rating judges known by their sampling, and
    everything else."""
    name = Path(str(body.get("model"))).name
    if name == "Llama-Guard-3-8B":
        return completion("safe")
    if name == "base":
        return completion("A plain answer.")
    if body.get("max_tokens") == 2001:
        pairwise = hashlib.sha256(json.dumps(body["prompt"]).encode()).digest()[0] % 2
        verdict = {
            "analysis": "",
            "choice": ("A+", "B+")[pairwise],
            "strengths": "",
            "weaknesses": "",
            "score": str(1 + len(body["prompt"]) % 10),
        }
        return completion(json.dumps(verdict))
    if body.get("max_tokens") == 2002:
        return completion(f"Fine.\nRating: [[{1 + len(body['prompt']) % 10}]]")
    answered = small_recipe.answer(path, body)
    if (
        name in ("tuned", "other")
        and isinstance(answered, dict)
        and body.get("prompt_logprobs") is None
    ):
        for choice in answered[
            "choices"
        ]:  # identical answers would be ties without a call to the judge
            choice["text"] += f" {name}"
    return answered


def _models(folder: Path, url: str) -> dict[str, dict[str, Any]]:
    server = {"urls": [url], "max_in_flight": 16}
    names = ("teacher", "Llama-Guard-3-8B", "base", "rm", "tuned", "other", "judge", "second-judge")
    return {
        name: {"model": str(small_recipe.model(folder / name)), "server": server} for name in names
    }


def _evaluation(folder: Path, server: dict[str, Any]) -> dict[str, Any]:
    # A judge behind `urls` is known by its name alone, so that is no path of this machine.
    judge = {
        "model": "models/judge",
        "server": server,
        "api": "completions",
        "prices": {"input": 1, "output": 1},
    }
    second = {
        "model": "models/second-judge",
        "server": server,
        "api": "completions",
        "max_answer_characters": 500,
    }
    reference = [
        {"id": f"s{number}", "answer": f"The reference says {number}."} for number in range(4)
    ]
    return {
        "limit": 6,
        "answers": {"sampling": {"temperature": 0, "max_tokens": 30}, "server": server},
        "judge": judge,
        "alpaca": {"order": "both", "codes": ["1", "2"], "judges": [judge, second]},
        "arena": {"sampling": {"max_tokens": 30}},
        "wildbench": {
            "prompts": str(lines(folder / "wild.jsonl", WILD)),
            "sampling": {"temperature": 0, "max_tokens": 2001},
            "margin": 50,
            "references": {"ref": str(lines(folder / "reference.jsonl", reference))},
        },
        "mtbench": {
            "prompts": str(lines(folder / "question.jsonl", MT)),
            "sampling": {"temperature": 0, "max_tokens": 2002},
        },
    }


def _everything(folder: Path, url: str) -> Path:
    """Every tag, several turns, the sanitizer, preference pairs, a grid, a training and every
    benchmark."""
    known = _models(folder / "models", url)
    server = known["teacher"]["server"]
    evaluation = _evaluation(folder, server)
    evaluation |= {
        "heldout": {},
        "checks": {"limit": 3},
        "tasks": {"tasks": ["everyday-science", {"task": "hellaswag", "num_fewshot": 10}]},
    }
    tags = {
        "safety": known["Llama-Guard-3-8B"],
        "base": known["base"],
        "reward": known["rm"],
        "quality": {"mode": "explain"},
    }
    arms = {
        "tagged": {
            "where": " AND ".join(EVERY_TAG),
            "choose": "longest",
            "budget": {"rows": 6},
            "allow_short": True,
            "allow_cut": True,
        },
        "untuned": {"model": known["tuned"]["model"]},
        "others": {
            "data": str(saved(folder / "others.jsonl", [row25(number) for number in range(8)])),
            "budget": {"rows": 6},
        },
    }
    train = {
        "base": known["tuned"]["model"],
        "chat_template_path": "chatml",
        "seeds": [0, 1],
        "zero_stage": 2,
        "max_truncated_share": 1.0,
        "trainer": {
            "max_length": 256,
            "max_steps": 2,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
        },
    }
    path = small_recipe.recipe(
        folder,
        Path(known["teacher"]["model"]),
        url,
        arms=arms,
        eval=evaluation,
        synth__rows=40,
        synth__tags=tags,
        synth__turns=2,
        synth__sanitize="llama-3",
        synth__preferences={"k": 2, "sampling": {"temperature": 0.8, "max_tokens": 60}},
        synth__grid=[
            {"rows": 20, "sampling": {"temperature": 1.1}},
            {"rows": 20, "sampling": {"temperature": 0.9, "top_p": 0.9}},
        ],
        synth__first_token={"suppress": ["the"], "temperature": 1.2},
        synth__system_prompts=[
            {"text": "You know rivers.", "name": "rivers", "weight": 2},
            {"text": ""},
        ],
    )
    path.write_text(
        yaml.safe_dump({**yaml.safe_load(path.read_text()), "train": train}, sort_keys=False)
    )
    return path


def _judged(folder: Path, url: str) -> Path:
    """Two finished models under every judge: nothing trains, so all of it really runs."""
    known = _models(folder / "models", url)
    arms = {
        "untuned": {"model": known["tuned"]["model"]},
        "other": {"model": known["other"]["model"]},
    }
    evaluation = _evaluation(folder, known["teacher"]["server"])
    teacher = Path(known["teacher"]["model"])
    return small_recipe.recipe(
        folder,
        teacher,
        url,
        arms=arms,
        random_arm=False,
        eval=evaluation,
        synth__rows=4,
        synth__heldout=0,
    )


def _imported(folder: Path, url: str) -> Path:
    """Published rows, measured and selected."""
    known = _models(folder / "models", url)
    source = saved(folder / "published.jsonl", [row23(number) for number in range(12)])
    where = "input_quality >= 'good' AND language LIKE '%' AND response_pii LIKE '%'"
    arms = {"kept": {"where": where, "choose": "longest", "budget": {"rows": 4}}}
    return small_recipe.recipe(
        folder,
        Path(known["teacher"]["model"]),
        url,
        arms=arms,
        synth__rows={"import": str(source)},
        synth__heldout=0,
    )


def _scored(folder: Path, url: str) -> Path:
    """What ranks rows by a model's pass: by the model that is trained, a small one, and several
    answers."""
    known = _models(folder / "models", url)
    teacher = known["teacher"]
    return small_recipe.recipe(
        folder,
        Path(teacher["model"]),
        url,
        arms={
            "scored": {
                "where": "superfilter > 0 AND fit < 1 AND worst_length >= 0",
                "choose": "hash_order",
                "budget": {"rows": 4},
            }
        },
        random_arm=False,
        synth__rows=20,
        synth__heldout=0,
        synth__tags={"superfilter": teacher, "fit": {"server": teacher["server"]}},
        synth__preferences={"k": 3, "reward": known["rm"]},
        train=True,
        eval=None,
    )


def _columns(store: Path) -> list[str]:
    """Every column of the store, and the key of each."""
    return sorted(
        part.parent.relative_to(store / "columns").as_posix()
        for part in (store / "columns").glob("*/*/*.parquet")
    )


def _always_finished(self: Store, stage: str, key: str, *_: object) -> Result:
    return Result(self.folder(stage, key), {"digest": digest([stage, key]), "counts": {}})


def keys(folder: Path) -> dict[str, Any]:
    """{recipe: {"columns": [NAME/KEY], "stages": {name: key}}} of four recipes, made on a scripted
    server below `folder`."""
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch, ScriptedServer(answer) as server:
        patch.setattr(models, "folder_revision", lambda path: digest(path.name))
        for name, write in (
            ("everything", _everything),
            ("judged", _judged),
            ("imported", _imported),
            ("scored", _scored),
        ):
            (folder / name).mkdir()
            patch.chdir(folder / name)
            loaded = schema.load(write(folder / name, server.url))
            until = {"everything": "preferences", "judged": None, "imported": "select"}.get(
                name, "select"
            )
            made = graph.run(loaded, until)
            if name == "everything":
                with (
                    pytest.MonkeyPatch.context() as pretend
                ):  # every result counts as made, so that each stage has a key
                    pretend.setattr(Store, "find", _always_finished)
                    pretend.setattr(lm_eval_tasks, "release", lambda: "")
                    made = graph.plan(loaded)
            stages = {step.name: step.path.name for step in made.steps if step.path is not None}
            stages.pop(
                "report", None
            )  # its key holds the bytes of a Parquet file, which are polars' affair
            found[name] = {
                "columns": sorted(set(_columns(folder / name / "store"))),
                "stages": stages,
            }
    return found


def test_every_key_is_what_it_was_before(tmp_path: Path) -> None:
    made = keys(tmp_path)
    (tmp_path / "keys.json").write_text(json.dumps(made, indent=1))
    assert made == json.loads(KEYS.read_text())


def test_the_keys_cover_every_measure_and_every_stage() -> None:
    from recipes.stages.graph import STAGES
    from synth.measures import MEASURES

    recorded = json.loads(KEYS.read_text())
    columns = {name.partition("/")[0] for recipe in recorded.values() for name in recipe["columns"]}
    stages = {name.partition("/")[0] for recipe in recorded.values() for name in recipe["stages"]}
    assert set(MEASURES) - {"text"} <= columns
    assert set(STAGES) - {"measure", "report"} <= stages


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        KEYS.write_text(json.dumps(keys(Path(scratch)), indent=1) + "\n")
    print(f"{KEYS}: written")
