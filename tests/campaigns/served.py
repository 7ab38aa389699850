"""The small recipe's scripted model as a process that stands where vLLM's command stands. What it
is asked and has answered it notes in the file that MAGPIE_FAULT_NOTES names, a line each."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from tests import small_recipe
from tests.scripted_server import ScriptedServer

NOTES = "MAGPIE_FAULT_NOTES"


class Noting(ScriptedServer):
    """Notes "asked STAGE" and "answered STAGE"."""

    def _note(self, event: str, path: str, body: dict[str, Any]) -> None:
        assert self._log is not None
        self._log.write(f"{event} {small_recipe.kind(body)}\n")


def main() -> None:
    """Serve until ended; vLLM's other options are ignored."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--port", type=int, default=0)
    options, _ = parser.parse_known_args()
    key, notes = os.environ.get("VLLM_API_KEY"), Path(os.environ[NOTES])
    with notes.open("a") as handle:
        handle.write(f"up {os.getpid()} {os.getppid()} {options.port}\n")
    Noting(small_recipe.answer, delay=0.05, key=key, port=options.port, log=notes).run()


if __name__ == "__main__":
    main()
