"""Where W&B is, whose key is at hand for it, and whether it can be written to now."""

from __future__ import annotations

import base64
import configparser
import http.client
import json
import netrc
import os
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from core.errors import first_line


def netrc_key(host: str) -> str:
    """The key that .netrc has for a host whose name holds `host`; "" where there is none."""
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        hosts = netrc.netrc(path).hosts
    except (OSError, UnicodeError, netrc.NetrcParseError):
        return ""
    return next((entry[2] for name, entry in hosts.items() if host in name), "")


ANSWER = 10
"""Seconds that W&B gets to answer."""


def unreachable() -> str:
    """Why W&B cannot be written to now (it does not answer, or refuses the key), in words; "" where
    it can."""
    address = _address()
    key = os.environ.get("WANDB_API_KEY") or netrc_key(urlsplit(address).hostname or "wandb")
    said = {"Content-Type": "application/json"}
    if key:
        said["Authorization"] = f"Basic {base64.b64encode(f'api:{key}'.encode()).decode()}"
    query = json.dumps({"query": "query { viewer { id } }"}).encode()
    asked = urllib.request.Request(f"{address}/graphql", query, said)
    try:
        with urllib.request.urlopen(asked, timeout=ANSWER) as reply:
            viewer = (json.load(reply).get("data") or {}).get("viewer")
    except urllib.error.HTTPError as error:
        if error.code not in (401, 403):
            return f"{address} answers with an error ({error.code})"
        viewer = None
    except (OSError, http.client.HTTPException) as error:
        return f"{address} cannot be reached ({first_line(error)})"
    except (ValueError, AttributeError):
        return f"what answers at {address} is no W&B"
    return "" if viewer else f"{address} refuses the API key"


def _address() -> str:
    """Where W&B's API is: as the environment or `wandb login --host` says."""
    if given := os.environ.get("WANDB_BASE_URL"):
        return given.rstrip("/")
    folder = os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb"
    settings = configparser.ConfigParser(interpolation=None)
    try:
        settings.read(Path(folder) / "settings", encoding="utf-8")
    except (OSError, UnicodeError, configparser.Error):
        return _CLOUD
    return settings.get("default", "base_url", fallback=_CLOUD).rstrip("/")


_CLOUD = "https://api.wandb.ai"
