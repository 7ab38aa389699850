"""A server of completions whose every token takes the same time, however many requests it works on:
a GPU below saturation, without the GPU.

    python benchmarks/paced_server.py --milliseconds 10 --port 8123

Lengths are drawn from gamma distributions that give the paper's 478 +- 211 tokens a row (Table 4,
Pro); that 65 +- 45 of them are the instruction's is our assumption. They follow from the request's
seed and prompt, so everyone who asks the same gets the same. What it measures is scheduling:
barriers, tails, gaps.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any

import numpy as np
from aiohttp import web

INSTRUCTION, RESPONSE = (65.0, 45.0), (413.0, 206.0)
"""Mean and standard deviation in tokens."""


def lengths(body: dict[str, Any]) -> list[int]:
    """Tokens of each of the `n` completions; what is sampled at temperature 0 is a response."""
    mean, deviation = RESPONSE if body.get("temperature") == 0 else INSTRUCTION
    dice = np.random.default_rng([body.get("seed") or 0, *body["prompt"]])
    shape = (mean / deviation) ** 2
    drawn = dice.gamma(shape, mean / shape, body.get("n", 1))
    return [min(max(int(tokens), 4), body.get("max_tokens", 4096)) for tokens in drawn]


def served(milliseconds: float) -> web.Application:
    """The application: POST /v1/completions, GET /health."""

    async def complete(request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        tokens = lengths(body)
        await asyncio.sleep(max(tokens) * milliseconds / 1000)
        # A number in the words, so that instructions differ.
        cap = body.get("max_tokens", 4096)
        choices = [
            {
                "index": i,
                "text": f"{body.get('seed', 0)}-{i} " + "word " * (n - 3),
                "finish_reason": "stop" if n < cap else "length",
            }
            for i, n in enumerate(tokens)
        ]
        return web.json_response(
            {
                "choices": choices,
                "usage": {"completion_tokens": sum(tokens), "prompt_tokens": len(body["prompt"])},
            }
        )

    async def health(_: web.Request) -> web.Response:
        return web.Response()

    application = web.Application(client_max_size=2**26)
    application.router.add_post("/v1/completions", complete)
    application.router.add_get("/health", health)
    return application


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--milliseconds", type=float, default=10.0, help="a token takes")
    options.add_argument("--port", type=int, required=True)
    chosen = options.parse_args()
    web.run_app(served(chosen.milliseconds), host="127.0.0.1", port=chosen.port, print=None)


if __name__ == "__main__":
    main()
