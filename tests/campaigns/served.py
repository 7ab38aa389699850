"""The small recipe's scripted model as a process that stands where vLLM's command stands."""

from __future__ import annotations

import argparse
import os

from tests import small_recipe
from tests.scripted_server import ScriptedServer


def main() -> None:
    """Serve until ended; vLLM's other options are ignored."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--port", type=int, default=0)
    options, _ = parser.parse_known_args()
    key = os.environ.get("VLLM_API_KEY")
    ScriptedServer(small_recipe.answer, delay=0.05, key=key, port=options.port).run()


if __name__ == "__main__":
    main()
