"""Seconds to judge 805 prompts in both orders by a scripted judge that takes 200 ms a call, 64 in
flight, against what that concurrency allows.

python -m benchmarks.bench_judging
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from core.servers import Servers
from core.tracking import Log
from eval.judging import pairwise
from tests.eval_files import alpaca, duel

PROMPTS, DELAY, IN_FLIGHT = 805, 0.2, 64
SERVER = f"""
from tests.eval_files import chat_logprobs
from tests.scripted_server import ScriptedServer
verdict = chat_logprobs({{"m": 0.7, "M": 0.2}})
with ScriptedServer(lambda path, body: verdict, delay={DELAY}) as server:
    print(server.url, flush=True)
    input()
"""


def main() -> None:
    """Print the seconds, the floor, and their ratio."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = duel(folder, PROMPTS)
        server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert server.stdout is not None
        try:
            url = server.stdout.readline().strip()
            protocol = alpaca(
                url, {"server": {"max_in_flight": IN_FLIGHT, "timeout": 60}}, order="both"
            )
            with Servers(Log(), folder / "logs") as servers:
                started = time.perf_counter()
                counts = pairwise.run(
                    protocol, inputs, folder / "store", folder / "out", servers=servers, log=Log()
                )
                seconds = time.perf_counter() - started
        finally:
            server.kill()
    floor = math.ceil(2 * PROMPTS / IN_FLIGHT) * DELAY
    print(
        f"{counts['judged']} judgments in {seconds:.2f} s; {floor:.1f} s is the floor; "
        f"ratio {seconds / floor:.2f}"
    )


if __name__ == "__main__":
    main()
