"""A whole recipe small enough for tests: a tiny Llama as teacher, student and judge, a scripted
server in place of vLLM."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import yaml

from tests import tiny
from tests.scripted_model import magpie
from tests.scripted_server import Fault, completion
from train.chat import read


def model(folder: Path, family: str = "chatml") -> Path:
    """A tiny Llama that has a chat template (chatml or llama3)."""
    made = tiny.llama(folder, family)
    (made / "chat_template.jinja").write_text(read(family, training=False))
    return made


def answer(path: str, body: dict[str, Any]) -> dict[str, Any] | Fault:
    """The scripted model, with verdicts where this recipe's judge is asked: token ids of "1" and
    "2", or a label at the end of a text."""
    dice = random.Random(json.dumps(body.get("prompt")))
    if body.get("return_tokens_as_token_ids") and not body.get("logprob_token_ids"):
        mine = dice.uniform(0.05, 0.9)
        # '1' and '2' are 20 and 21 in the ChatML vocabulary, 21 and 22 in Llama 3's, which has one
        # more special token
        top = {
            "token_id:20": math.log(mine),
            "token_id:21": math.log(0.95 - mine),
            "token_id:22": math.log(0.05),
        }
        return completion(
            "1",
            "length",
            logprobs={"tokens": ["token_id:20"], "token_logprobs": [-0.1], "top_logprobs": [top]},
        )
    if (
        path.endswith("/v1/completions")
        and "temperature" not in body
        and "structured_outputs" not in body
    ):
        return completion(
            f"Both are short. [[{dice.choice(['A>>B', 'A>B', 'A=B', 'B>A', 'B>>A'])}]]"
        )
    answered = magpie(path, body)
    model = str(body.get("model", ""))
    if (
        model.endswith("checkpoint")
        and isinstance(answered, dict)
        and body.get("prompt_logprobs") is None
    ):
        for choice in answered[
            "choices"
        ]:  # identical answers would be ties without a call to the judge
            choice["text"] += f" {Path(model).parent.name[:4]}"
    return answered


def kind(body: dict[str, Any]) -> str:
    """Which stage a request belongs to."""
    if body.get("prompt_logprobs") is not None or body.get("echo"):
        return "heldout"
    if "structured_outputs" in body or "logprob_token_ids" in body:
        return "tags"
    if body.get("temperature") == 1.0:
        return "instructions"
    if body.get("max_tokens") == 40:
        return "responses"
    return "judging" if len(body["prompt"]) > 150 else "answers"


def recipe(folder: Path, llama: Path, url: str, *, train: bool = False, **changes: Any) -> Path:
    """Write `folder`/recipe.yaml: three arms over 100 rows; with `train`, also SFT and the
    evaluation. `changes` are dotted with `__`."""
    where = {"model": str(llama), "server": {"urls": [url], "max_in_flight": 16}}
    data: dict[str, Any] = {
        "name": "small",
        "store": str(folder / "store"),
        "track": "none",
        "synth": {
            "teacher": where,
            "rows": 100,
            "instruction": {"temperature": 1.0, "max_tokens": 40},
            "response": {"temperature": 0.0, "max_tokens": 40},
            "heldout": 0.1,
        },
        "arms": {
            "good": {
                "where": "input_quality >= 'good'",
                "choose": "longest",
                "budget": {"rows": 10},
            },
            "random": {"choose": "hash_order", "budget": {"rows": 10}},
        },
    }
    if train:
        data["arms"]["same"] = {
            "where": "input_quality IN ('good', 'excellent')",
            "choose": "longest",
            "budget": {"rows": 10},
        }
        data["arms"]["untuned"] = {"model": str(llama)}
        data["train"] = {
            "base": str(llama),
            "chat_template_path": "chatml",
            "seeds": [0],
            "zero_stage": 0,
            "num_processes": 1,
            "max_truncated_share": 1.0,
            "trainer": {
                "max_length": 256,
                "max_steps": 2,
                "per_device_train_batch_size": 2,
                "learning_rate": 1e-3,
            },
        }
        judge = {
            "model": str(llama),
            "server": {"urls": [url], "max_in_flight": 16},
            "api": "completions",
        }
        data["eval"] = {
            "limit": 6,
            "answers": {
                "sampling": {"temperature": 0, "max_tokens": 30},
                "server": {"urls": [url], "max_in_flight": 16},
            },
            "judge": judge,
            "alpaca": {"order": "both", "codes": ["1", "2"]},
            "arena": {"sampling": {"max_tokens": 30}},
            "heldout": {},
        }
    for dotted, value in changes.items():
        here = data
        *parents, last = dotted.split("__")
        for key in parents:
            here = here.setdefault(key, {})
        here[last] = value
    path = folder / "recipe.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path
