"""Data sets of a hub: splits, configurations and revisions, read through huggingface_hub and
datasets from a hub on loopback."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.loopback_hub import LARGE, Hub, Repository

pytestmark = pytest.mark.process

READER = """
import json, sys
from core.errors import UserError
from synth.config.rows import ImportConfig
from synth.published.rows import read

for line in sys.stdin:
    config = ImportConfig.model_validate(json.loads(line))
    try:
        rows = [f["instruction"].to_list() for f in read(config.import_, config.limit, how=config)]
        print(json.dumps({"rows": sum(rows, [])}))
    except UserError as error:
        print(json.dumps({"error": str(error)}))
"""
"""Reads what each line of its input describes: the hub's address is fixed when its client loads."""

ULTRACHAT = """---
configs:
- config_name: default
  data_files:
  - split: train_sft
    path: data/train_sft-*
  - split: test_sft
    path: data/test_sft-*
---
"""
CONFIGURED = """---
configs:
- config_name: en
  data_files: en/*.jsonl
- config_name: de
  data_files: de/*.jsonl
---
"""


def parquet(split: str, rows: int) -> bytes:
    """Rows as ultrachat_200k has them."""
    talks = [
        {
            "prompt": f"{split} {n}",
            "prompt_id": f"{split}-{n}",
            "messages": [
                {"role": "user", "content": f"{split} {n}"},
                {"role": "assistant", "content": f"answer {n}"},
            ],
        }
        for n in range(rows)
    ]
    body = io.BytesIO()
    pl.from_dicts(talks).write_parquet(body)
    return body.getvalue()


def line(text: str) -> bytes:
    return (json.dumps({"instruction": text, "output": "answer"}) + "\n").encode()


REPOSITORIES = {
    "me/ultrachat": Repository(
        {
            "README.md": ULTRACHAT.encode(),
            "data/train_sft-00000-of-00001.parquet": parquet("train_sft", 3),
            "data/test_sft-00000-of-00001.parquet": parquet("test_sft", 2),
        },
        {
            "v1": {
                "README.md": ULTRACHAT.encode(),
                "data/train_sft-00000-of-00001.parquet": parquet("first", 1),
                "data/test_sft-00000-of-00001.parquet": parquet("first test", 1),
            }
        },
    ),
    "me/languages": Repository(
        {"README.md": CONFIGURED.encode(), "en/a.jsonl": line("hello"), "de/a.jsonl": line("hallo")}
    ),
    "me/plain": Repository({"rows.jsonl": line("plain")}),
    "me/gated": Repository({"rows.jsonl": line("gated")}, gated=True),
    "me/large": Repository({"rows.jsonl": line("large " + "x" * LARGE)}),
}

WANTED: dict[str, dict[str, Any]] = {
    "no split": {"import": "me/ultrachat"},
    "split": {"import": "me/ultrachat", "split": "test_sft"},
    "limit": {"import": "me/ultrachat", "split": "train_sft", "limit": 2},
    "revision": {"import": "me/ultrachat", "split": "train_sft", "revision": "v1"},
    "other split": {"import": "me/ultrachat", "split": "train_sfk"},
    "other revision": {"import": "me/ultrachat", "split": "train_sft", "revision": "v2"},
    "no config": {"import": "me/languages"},
    "config": {"import": "me/languages", "config": "de"},
    "other config": {"import": "me/languages", "config": "fr"},
    "plain": {"import": "me/plain"},
    "nowhere": {"import": "me/nowhere"},
    "gated": {"import": "me/gated"},
    "large": {"import": "me/large"},
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, Any]]]:
    """What each of WANTED comes to, read in one process."""
    home = tmp_path_factory.mktemp("home")
    with Hub(REPOSITORIES) as hub:
        done = subprocess.run(
            [sys.executable, "-c", READER],
            input="".join(json.dumps(each) + "\n" for each in WANTED.values()),
            env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home)},
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=240,
            check=True,
        )
        assert {path for _, path in hub.asked if "v1" in path}
    told = [json.loads(text) for text in done.stdout.splitlines()]
    yield dict(zip(WANTED, told, strict=True))


@pytest.mark.parametrize(
    ("wanted", "rows"),
    [
        ("split", ["test_sft 0", "test_sft 1"]),
        ("limit", ["train_sft 0", "train_sft 1"]),
        ("revision", ["first 0"]),
        ("config", ["hallo"]),
        ("plain", ["plain"]),
        ("large", ["large " + "x" * LARGE]),
    ],
)
def test_a_split_a_configuration_or_a_revision_is_read(
    answers: dict[str, dict[str, Any]], wanted: str, rows: list[str]
) -> None:
    assert answers[wanted] == {"rows": rows}


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ("no split", "me/ultrachat has the splits train_sft, test_sft and no `train`; say which"),
        ("other split", "me/ultrachat has no split train_sfk; did you mean 'train_sft'?"),
        ("other revision", "data set me/ultrachat has no revision 'v2' on the hub"),
        ("no config", "me/languages has several configurations; say which with --config"),
        ("other config", "no configuration fr; say which with --config"),
        ("nowhere", "me/nowhere is neither a file here nor to be had from the hub"),
        ("gated", "me/gated is gated: ask for access at http"),
    ],
)
def test_what_is_not_there_or_not_said_is_a_sentence_with_what_there_is(
    answers: dict[str, dict[str, Any]], wanted: str, sentence: str
) -> None:
    assert sentence in answers[wanted]["error"]
