r"""Rows per second for instructions and answers on one vLLM server: ours, the original's shape, a
bare loop; and distilabel on the same engine.

    # about 25 minutes on two cores; run it on an idle machine
    python benchmarks/bench_throughput.py --rows 400
    # some of the sides
    python benchmarks/bench_throughput.py --rows 400 --sides ours,bare
    # 3 minutes
    python benchmarks/bench_throughput.py --rows 1000 --paced 10 \
        --max-instruction 2048 --max-answer 4096

- ours: the instructions stage and the response column of a pool, as `magpie run` does it
  (templates, columns on disk, everything).
- original: rounds of one request with n=200 and a barrier, then batches of 200 answers and a
  barrier (gen_ins.py, gen_res.py), same server, sampling.
- bare: what the server itself gives: the same prompts as ready-made token ids, a fixed number in
  flight, nothing else.
`--paced` asks a server whose tokens take constant time (paced_server.py): on two cores decoding is
bound by arithmetic, so a batch that runs empty still uses both, and a barrier costs little; on a
GPU a step takes as long for ten rows as for two hundred, and there every round's tail is lost time.
Order: ours, original, bare, in turns over `--repeats`; the server is warmed first, prefix cache on
for all, seeds differ from repeat to repeat.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

from core.models import resolve, tokenizer
from core.servers import Endpoint, Servers
from core.tracking import Log
from core.wire import Request, ServerSpec, Target
from synth.chat.encoding import encode_conversation
from synth.chat.pre_query import pre_query
from synth.config.synthesis import SynthConfig
from synth.context import Context
from synth.filters.arm import ArmConfig
from synth.filters.rule import resolve as resolve_filter
from synth.pool.draw import draw
from synth.pool.measure import measure
from synth.pool.pool import Pool

MODEL = "embedded/SmolLM2-135M-Instruct"
ROUND = 200
INSTRUCTION = {"temperature": 1.0, "top_p": 1.0}
ANSWER = {"temperature": 0.0}


class Quiet(Log):
    """Says nothing."""

    def say(self, text: str) -> None:
        """Nothing."""


def settings(max_instruction: int, max_answer: int) -> tuple[dict[str, Any], dict[str, Any]]:
    return {**INSTRUCTION, "max_tokens": max_instruction}, {**ANSWER, "max_tokens": max_answer}


def ours(
    endpoint: Endpoint,
    servers: Servers,
    rows: int,
    seed: int,
    sampling: tuple[dict[str, Any], dict[str, Any]],
) -> tuple[int, int]:
    """The product's own stages on a fresh store; returns (rows answered, tokens)."""
    with tempfile.TemporaryDirectory() as store:
        config = SynthConfig.model_validate(
            {
                "teacher": {
                    "model": MODEL,
                    "server": endpoint.spec.model_dump(include={"args", "max_in_flight", "urls"}),
                },
                "rows": rows,
                "seed": seed,
                "system_prompt": "default",
                "instruction": sampling[0],
                "response": sampling[1],
            }
        )
        pool = Pool(config, Context(Path(store), resolve))
        drawn = draw(pool, servers, Quiet())
        measure(pool, [(resolve_filter("all", ArmConfig(choose="all")), (0,))], servers, Quiet())
        answers = pool.spent("response", pool.frame()["id"])
        assert answers is not None
        return len(answers), drawn["tokens"] + int(answers["tokens"].sum())


def original(
    endpoint: Endpoint,
    servers: Servers,
    rows: int,
    seed: int,
    sampling: tuple[dict[str, Any], dict[str, Any]],
) -> tuple[int, int]:
    """Rounds with a barrier after each."""
    made = tokenizer(endpoint.spec.model)
    template = pre_query(made, "default")
    instructions, tokens = [], 0
    for at in range(rows // ROUND):
        fixed = {
            "prompt": list(template.token_ids),
            "stop_token_ids": list(template.stop_token_ids),
        }
        body = {**sampling[0], **fixed, "n": ROUND, "seed": seed * 1000 + at}
        for reply in endpoint.stream([Request("round", body)]):
            assert reply.body is not None, reply.error
            instructions += [c["text"] for c in reply.body["choices"]]
            tokens += reply.body["usage"]["completion_tokens"]
    prompts = [
        encode_conversation(
            made, [{"role": "user", "content": i.strip() or "?"}], add_generation_prompt=True
        )
        for i in instructions
    ]
    answered = 0
    for top in range(0, len(prompts), ROUND):
        batch = [
            Request(str(i), {**sampling[1], "prompt": p})
            for i, p in enumerate(prompts[top : top + ROUND])
        ]
        for reply in endpoint.stream(batch):
            assert reply.body is not None, reply.error
            answered, tokens = answered + 1, tokens + reply.body["usage"]["completion_tokens"]
    return answered, tokens


def bare(
    endpoint: Endpoint,
    servers: Servers,
    rows: int,
    seed: int,
    sampling: tuple[dict[str, Any], dict[str, Any]],
) -> tuple[int, int]:
    """Ready-made prompts, `max_in_flight` workers, nothing else: what the server gives."""
    made = tokenizer(endpoint.spec.model)
    template = pre_query(made, "default")
    first = [
        {
            **sampling[0],
            "prompt": list(template.token_ids),
            "stop_token_ids": list(template.stop_token_ids),
            "seed": seed * 100_000 + i,
        }
        for i in range(rows)
    ]
    with servers.targets(endpoint.spec) as targets:
        drawn = asyncio.run(_loop(targets[0], endpoint.spec, first))
        # Ready-made means that rendering the conversations is not in the time; it is what `paused`
        # gives back.
        started = time.perf_counter()
        texts = [c["choices"][0]["text"].strip() or "?" for c in drawn]
        second = [
            {
                **sampling[1],
                "prompt": encode_conversation(
                    made, [{"role": "user", "content": t}], add_generation_prompt=True
                ),
            }
            for t in texts
        ]
        bare.paused = time.perf_counter() - started  # type: ignore[attr-defined]
        answers = asyncio.run(_loop(targets[0], endpoint.spec, second))
    return len(answers), sum(c["usage"]["completion_tokens"] for c in [*drawn, *answers])


async def _loop(
    target: Target, spec: ServerSpec, bodies: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    queue = list(reversed([json.dumps({"model": spec.model, **b}).encode() for b in bodies]))
    done: list[dict[str, Any]] = []
    headers = {"Content-Type": "application/json"} | (
        {"Authorization": f"Bearer {target.key}"} if target.key else {}
    )
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=3600)
    ) as session:

        async def worker() -> None:
            while queue:
                async with session.post(
                    target.address + "/v1/completions", data=queue.pop(), headers=headers
                ) as response:
                    done.append(await response.json())

        await asyncio.gather(*(worker() for _ in range(spec.in_flight)))
    return done


SIDES = {"ours": ours, "original": original, "bare": bare}


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rows", type=int, default=400, help="a multiple of 200")
    options.add_argument("--repeats", type=int, default=1)
    options.add_argument(
        "--in-flight",
        type=int,
        default=ROUND,
        help="requests in flight of ours and of the bare loop (the original: 200)",
    )
    options.add_argument("--max-instruction", type=int, default=128)
    options.add_argument("--max-answer", type=int, default=512)
    options.add_argument(
        "--paced",
        type=float,
        help="milliseconds a token takes on a server of constant pace, in place of vLLM",
    )
    options.add_argument("--sides", default=",".join(SIDES))
    chosen = options.parse_args()
    if chosen.rows % ROUND:
        options.error(f"--rows must be a multiple of {ROUND}, the original's round")
    where: dict[str, Any] = {"args": {"max_model_len": 2048, "max_num_seqs": 256}}
    paced = None
    if chosen.paced:
        where = {"urls": ("http://127.0.0.1:8719",)}
        command = [
            sys.executable,
            str(Path(__file__).with_name("paced_server.py")),
            "--milliseconds",
            str(chosen.paced),
            "--port",
            "8719",
        ]
        paced = subprocess.Popen(command)
        time.sleep(3)
    spec = ServerSpec(
        model=resolve(MODEL).path, max_in_flight=chosen.in_flight, timeout=3600, **where
    )
    sampling = settings(chosen.max_instruction, chosen.max_answer)
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen.sides.split(",")}
    with tempfile.TemporaryDirectory() as logs, Servers(Log(), Path(logs)) as servers:
        endpoint = servers.serve(spec)
        ours(
            endpoint, servers, ROUND // 10, 99, settings(16, 16)
        )  # starts the server, and loads what loads on first use
        for repeat in range(chosen.repeats):
            for at, name in enumerate(rates):
                started = time.perf_counter()
                answered, tokens = SIDES[name](
                    endpoint, servers, chosen.rows, 10 * repeat + at, sampling
                )
                seconds = (
                    time.perf_counter()
                    - started
                    - (getattr(bare, "paused", 0.0) if name == "bare" else 0.0)
                )
                rates[name].append((answered / seconds, tokens / seconds))
                print(
                    f"{name}: {answered} rows, {tokens:,} tokens in {seconds:.1f} s: "
                    f"{answered / seconds:.3f} rows/s, {tokens / seconds:.1f} tokens/s",
                    flush=True,
                )
    if paced:
        paced.terminate()
    # Each side draws its own texts, so lengths differ a little: tokens per second is the fairer
    # figure.
    for name in rates:
        if name != "ours" and "ours" in rates:
            by_rows, by_tokens = (
                statistics.median(r[k] for r in rates["ours"])
                / statistics.median(r[k] for r in rates[name])
                for k in (0, 1)
            )
            print(
                f"ours / {name}: {by_rows:.2f} in rows per second, "
                f"{by_tokens:.2f} in tokens per second"
            )


if __name__ == "__main__":
    main()
