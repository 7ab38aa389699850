"""Whether a vLLM server works: it answers, and its engine does not stand still.

vLLM's own /health only says whether the engine's process has ended: of one that hangs (a stuck
collective, a driver, a stopped process) it says 200 for ever, and no request is answered again.
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from typing import Any

HANGS = 120.0
"""Seconds in which a working engine answers one token, or makes one for somebody else."""

PATIENCE = 10.0
"""Seconds in which a server that works says how it is."""

_COUNTERS = re.compile(
    r"^vllm:(?:generation_tokens|prompt_tokens|request_success)_total\{.*", re.MULTILINE
)


def status(url: str, key: str) -> int:
    """The status of a GET request, 0 where there is no answer within PATIENCE."""
    return _asked(url, key, PATIENCE)[0]


def stands_still(url: str, key: str, model: str) -> bool:
    """Whether the engine behind the server at `url` does nothing for HANGS seconds, although it is
    asked; nobody can say so of a server without metrics."""
    before = _done(url, key)
    if not before:
        return False
    one = {"model": model, "prompt": [1], "max_tokens": 1, "temperature": 0}
    if _asked(f"{url}/v1/completions", key, HANGS, one)[0]:
        return False
    # A long queue may come first: then something else has moved.
    return _done(url, key) in ([], before)


def _done(url: str, key: str) -> list[str]:
    """What the engine has done so far, as the server counts it."""
    return _COUNTERS.findall(_asked(f"{url}/metrics", key, PATIENCE)[1])


def _asked(url: str, key: str, timeout: float, body: Any = None) -> tuple[int, str]:
    """(status, text) of a GET request, or of a POST request with a body; (0, "") where there is no
    answer."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, data, headers)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=timeout) as answer:
            return int(answer.status), answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, ""
    except (OSError, ValueError):
        return 0, ""
