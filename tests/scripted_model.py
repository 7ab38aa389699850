"""What a model would answer, made up: `magpie(path, body)` answers OpenAI and vLLM requests by
their seed and prompt, the same each time.

Random English words for instructions, responses and explanations (now and then with a brace, a
quote or several lines), valid answers where `structured_outputs` asks for a choice or JSON,
log-probabilities in the forms vLLM 0.32 returns.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import time
from collections.abc import Callable
from typing import Any

from tests.scripted_server import Fault, chat, completion

_TEXT = (
    "how can I write a short story about the old river and its town explain why metals conduct "
    "heat better than wood list five ways to save water at home what is difference between "
    "speed velocity plan weekly meal for two people python function that sorts numbers "
    "translate sentence into french summary of main idea good evening recipe with rice beans "
    "compare solar wind power help me prepare interview history small village mountain because "
    "therefore first second finally example result question answer careful simple clear useful "
    "number"
)
WORDS = _TEXT.split()


def magpie(path: str, body: dict[str, Any]) -> dict[str, Any] | Fault:
    """The ready behaviour: completions, chat, embeddings, classification and pooling."""
    if path.endswith("/chat/completions"):
        return _chat(body)
    if path.endswith("/completions"):
        return _completions(body)
    if path.endswith(("/embeddings", "/pooling", "/classify")):
        return _pooled(path, body)
    return Fault("status", 404)


def slow(path: str, body: dict[str, Any]) -> dict[str, Any] | Fault:
    """magpie on a busy machine: every answer blocks the server for 50 ms, so that a kill comes in
    the middle."""
    time.sleep(0.05)
    return magpie(path, body)


def deadly(path: str, body: dict[str, Any]) -> dict[str, Any] | Fault:
    """A request that ends the server, as a seeded one ends vLLM's CPU engine when its prompt is
    prefilled in chunks."""
    print("RuntimeError: CPU Generator does not use offset", flush=True)
    os._exit(1)


ENGINE = random.Random(0)
"""What an engine draws by where a request has no seed: as vLLM's, seeded when it starts."""


def drawing(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """An instruction of one word out of 2**64: by the request's seed, else by what the engine draws
    next."""
    seed = body.get("seed")
    dice = ENGINE if seed is None else random.Random(seed)
    return completion(f"What is {dice.getrandbits(64):x}?")


BEHAVIOURS: dict[str, Callable[[str, dict[str, Any]], dict[str, Any] | Fault]] = {
    "magpie": magpie,
    "slow": slow,
    "deadly": deadly,
    "drawing": drawing,
}


def _dice(*parts: Any) -> random.Random:
    return random.Random(
        hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).digest()
    )


def _completions(body: dict[str, Any]) -> dict[str, Any]:
    prompt = body["prompt"]
    prompts = (
        prompt
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
        else [prompt]
    )
    choices: list[dict[str, Any]] = []
    for one in prompts:
        for copy in range(int(body.get("n") or 1)):
            choices.append(_choice(one, body, copy) | {"index": len(choices)})
    answer = completion("")
    spent = sum(len(c["text"].split()) for c in choices)
    read = sum(len(p) if isinstance(p, list) else len(p.split()) for p in prompts)
    usage = {"prompt_tokens": read, "completion_tokens": spent, "total_tokens": read + spent}
    return answer | {"model": body.get("model", "scripted"), "choices": choices, "usage": usage}


def _choice(prompt: Any, body: dict[str, Any], copy: int) -> dict[str, Any]:
    dice = _dice(prompt, body.get("seed"), copy)
    text, finish_reason, logprobs = _say(
        dice, body, body.get("structured_outputs") or {}, body.get("logprobs")
    )
    choice: dict[str, Any] = {
        "text": text,
        "finish_reason": finish_reason,
        "stop_reason": None,
        "logprobs": None,
    }
    if logprobs:
        tops = [{token: p for token, p in top} for _, top in logprobs]
        chosen = [token for token, _ in logprobs]
        choice["logprobs"] = {
            "tokens": chosen,
            "token_logprobs": [top[token] for token, top in zip(chosen, tops, strict=True)],
            "top_logprobs": tops,
            "text_offset": [sum(map(len, chosen[:i])) for i in range(len(chosen))],
        }
    if body.get("prompt_logprobs") is not None and isinstance(prompt, list):
        choice["prompt_logprobs"] = [
            None,
            *(_prompt_logprob(prompt, i) for i in range(1, len(prompt))),
        ]
    if body.get("return_token_ids"):
        choice |= {
            "token_ids": [_dice(word).randrange(3, 30_000) for word in text.split()],
            "prompt_token_ids": prompt,
        }
    return choice


def _prompt_logprob(prompt: list[int], place: int) -> dict[str, dict[str, Any]]:
    """One entry of vLLM's prompt_logprobs: the log-probability of the token that is there, given
    the one before."""
    dice = _dice(prompt[place - 1 : place + 1])
    return {
        str(prompt[place]): {
            "logprob": -3.0 * dice.random(),
            "rank": dice.randrange(1, 50),
            "decoded_token": f"t{prompt[place]}",
        }
    }


def _chat(body: dict[str, Any]) -> dict[str, Any]:
    dice = _dice(body["messages"], body.get("seed"))
    shape = dict(body.get("structured_outputs") or {})
    schema = (body.get("response_format") or {}).get("json_schema", {}).get("schema")
    if schema is not None:
        shape["json"] = schema
    text, finish_reason, logprobs = _say(
        dice, body, shape, body.get("top_logprobs") if body.get("logprobs") else None
    )
    asked = " ".join(str(m.get("content")) for m in body["messages"])
    if (
        "[[A" in asked and not shape
    ):  # a five-way verdict was asked for, as Arena-Hard's judges give it
        text += (
            "\n\nMy final verdict is: [["
            + dice.choice(["A>>B", "A>B", "A=B", "B>A", "B>>A"])
            + "]]"
        )
    extra: dict[str, Any] = {}
    if logprobs:
        tokens = [
            {
                "token": token,
                "logprob": dict(top)[token],
                "top_logprobs": [{"token": t, "logprob": p} for t, p in top],
            }
            for token, top in logprobs
        ]
        extra["logprobs"] = {"content": tokens}
    return chat(text, finish_reason, **extra) | {"model": body.get("model", "scripted")}


def _say(
    dice: random.Random, body: dict[str, Any], shape: dict[str, Any], logprobs: int | None
) -> tuple[str, str, list[tuple[str, list[tuple[str, float]]]]]:
    """Text, finish reason and, when asked for, each token with its most likely alternatives (the
    token itself among them)."""
    limit = int(
        body.get("max_tokens")
        if body.get("max_tokens") is not None
        else body.get("max_completion_tokens") or 256
    )
    if body.get("logprob_token_ids"):  # vLLM gives these tokens, whatever comes next
        weights = [(token, dice.random() + 0.01) for token in body["logprob_token_ids"]]
        total = sum(weight for _, weight in weights) / 0.9
        asked = [(f"token_id:{token}", math.log(weight / total)) for token, weight in weights]
        return "?", "length", [(asked[0][0], asked)]
    if "choice" in shape:
        weights = [(option, dice.random() + 0.01) for option in shape["choice"]]
        total = sum(weight for _, weight in weights)
        top = sorted(
            ((option, math.log(weight / total)) for option, weight in weights),
            key=lambda pair: -pair[1],
        )
        picked = top[0][0] if body.get("temperature") == 0 else dice.choice(shape["choice"])
        kept = [pair for pair in top[: max(int(logprobs or 0), 1)] if pair[0] != picked] + [
            pair for pair in top if pair[0] == picked
        ]
        # vLLM fills up with tokens that the grammar forbids, at -9999.
        kept += [(f"<forbidden_{rank}>", -9999.0) for rank in range(int(logprobs or 0) - len(kept))]
        return picked, "stop", [(picked, kept)] if logprobs is not None else []
    if "json" in shape:
        schema = json.loads(shape["json"]) if isinstance(shape["json"], str) else shape["json"]
        return json.dumps(_instance(dice, schema)), "stop", []
    words = _sentence(dice, dice.randrange(6, 60)).split(" ")
    cut = len(words) > limit
    words = words[:limit]
    tokens: list[tuple[str, list[tuple[str, float]]]] = []
    if logprobs is not None:
        for place, word in enumerate(words):
            token = word if place == 0 else " " + word
            others = [
                (" " + other, -3.0 - rank)
                for rank, other in enumerate(dice.sample(WORDS, min(int(logprobs), len(WORDS))))
                if other != word
            ]
            tokens.append((token, [(token, -dice.random()), *others[: max(int(logprobs) - 1, 0)]]))
    return " ".join(words), "length" if cut else "stop", tokens


def _sentence(dice: random.Random, length: int) -> str:
    words = [dice.choice(WORDS) for _ in range(length)]
    if dice.random() < 0.2:
        words[length // 2] += dice.choice(
            [' {see} "this"', ":\n- one\n- two", " <script>alert(1)</script>", " ü — 汉字"]
        )
    text = " ".join(words)
    return text[0].upper() + text[1:] + dice.choice([".", "?", "."])


def _instance(dice: random.Random, schema: dict[str, Any]) -> Any:
    """A value that satisfies a plain JSON schema (object, enum, string, numbers, boolean,
    array)."""
    if "enum" in schema:
        return dice.choice(schema["enum"])
    if "const" in schema:
        return schema["const"]
    kind = schema.get("type", "object")
    if kind == "object":
        return {name: _instance(dice, part) for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        return [
            _instance(dice, schema.get("items", {"type": "string"}))
            for _ in range(max(1, int(schema.get("minItems", 1))))
        ]
    if kind == "integer":
        return dice.randint(
            int(schema.get("minimum", 0)), int(schema.get("maximum", schema.get("minimum", 0) + 10))
        )
    if kind == "number":
        return dice.uniform(float(schema.get("minimum", 0)), float(schema.get("maximum", 1)))
    if kind == "boolean":
        return dice.random() < 0.5
    return _sentence(dice, dice.randrange(5, 15))[: int(schema.get("maxLength", 10_000))]


def _pooled(path: str, body: dict[str, Any]) -> dict[str, Any]:
    inputs = body.get("input", body.get("messages"))
    inputs = (
        inputs
        if isinstance(inputs, list) and inputs and not isinstance(inputs[0], int)
        else [inputs]
    )
    data: list[dict[str, Any]] = []
    for index, one in enumerate(inputs):
        dice = _dice(one)
        if path.endswith("/embeddings"):
            data.append(
                {
                    "index": index,
                    "object": "embedding",
                    "embedding": [dice.gauss(0, 1) for _ in range(16)],
                }
            )
        elif path.endswith("/pooling"):
            data.append({"index": index, "object": "pooling", "data": [dice.gauss(0, 3)]})
        else:
            data.append(
                {"index": index, "label": "LABEL_0", "probs": [dice.gauss(0, 3)], "num_classes": 1}
            )
    return {
        "id": "pool-0",
        "object": "list",
        "model": body.get("model", "scripted"),
        "data": data,
        "usage": {"prompt_tokens": 1, "total_tokens": 1},
    }
