"""Command lines that nobody should write, through the program's own entry: each ends in one
sentence, and none in a defect."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import polars as pl
import pytest

from recipes import cli

LONG = "n" * 300
ALL = ("--where", "response_length > 0", "--choose", "all")
SERVED = ("--model", "x", "--url", "http://127.0.0.1:1", "--out", "a.jsonl")
REFUSED = (
    (("filter", "", "--choose", "all"), "the name of the data is empty"),
    (("import", " ", "--head", "1"), "the name of the data is empty"),
    (("filter", "loop", *ALL), "data file loop does not exist"),
    (("filter", "one.jsonl", *ALL, "--where", " "), "--where is empty; leave it out"),
    (("filter", "one.jsonl", *ALL, "--seed", "-1"), "greater than or equal to 0"),
    (("import", "one.jsonl", "--head", "1", "--map", "instruction=a,instruction=response"),
     "--map names instruction twice"),
    (("filter", "one.jsonl", "--strategy", ","), "--strategy: unknown strategy ''"),
    (("filter", "esc\x1b[31m.jsonl", *ALL), r"esc\x1b[31m.jsonl: no instruction"),
    (("import", "one.jsonl", "--out", "o.parquet", "--join", "{instruction"), "names no column"),
    (("import", "one.jsonl", "--out", "o.parquet", "--join", "{}"), "`join` names no column"),
    (("import", "one.jsonl", "--out", f"{LONG}.parquet"), "a longer name than a file system"),
    (("import", "one.jsonl", "--out", "loop/x.parquet"), "a link that leads back to itself"),
    (("import", "list.json", "--head", "3"), "list.json holds no rows"),
    (("tag", "list.json", "--columns", "minhash", "--out", "t.parquet"), "no row at all"),
    (("tag", "one.jsonl", "--columns", "pii", "--store", "one.jsonl", "--out", "t.parquet"),
     "one.jsonl/store.json lies below something that is no folder"),
    (("tag", "one.jsonl", "--columns", "pii", "--store", "b\udcff", "--out", "t.parquet"),
     r"the name of the store b\udcff is no UTF-8 text"),
    (("answer", "list.json", *SERVED), "holds no rows, so there is nothing to answer"),
    (("answer", "one.jsonl", *SERVED, "--prices", "nan,inf"), "needs 0 or more (it is NaN)"),
    (("compare", ""), " is neither a file nor a folder"),
    (("compare", "loop", "list.json"), "loop is neither a file nor a folder"),
    (("plan", "demo", "store=one.jsonl"), "lies below something that is no folder"),
    (("plan", "demo", "store=loop"), "loop/store.json is a link that leads back to itself"),
    (("plan", "demo", "eval.tasks=[x]"), "`eval.tasks`: is a mapping of keys, of which `tasks`"),
    (("verify", "deep"), "its values lie within one another deeper than can be read"),
    (("plan", "demo", "train.deepspeed=pipe"), "train.deepspeed: pipe is a pipe or a device"),
    (("plan", "demo", "train.deepspeed=/dev/zero"), "/dev/zero is a pipe or a device"),
    (("plan", "demo", "train.deepspeed=twice.json"), "the key 'stage' stands twice in one object"),
    (("plan", "demo", "train.deepspeed=five.json"), "zero_optimization is a section: {stage: 2"),
    (("plan", "demo", "eval.alpaca.baseline=nowhere"), "baseline: nowhere does not exist"),
    (("plan", "demo", "train.deepspeed=loop"), "train.deepspeed: loop does not exist."),
    (("plan", "demo", "train.chat_template_path=empty.jinja"), "empty.jinja is empty"),
    (("plan", "demo", "synth.rows={import: nowhere}"), "synth.rows.import: nowhere does not exist"),
    (("plan", "demo", "synth.rows={import: pipe}"), "synth.rows.import: pipe is a pipe"),
    (("plan", "demo", "synth.rows={import: deep.jsonl}"), "deeper than can be read"),
    (("import", "pipe", "--head", "1"), "pipe"),
    (("ls", "a\0b"), r"a\x00b is neither the folder of a store nor a recipe"),
    (("memory", "demo", "--gpus", "8", "--gpu-memory", "inf"), "10000"),
    (("init", "--gpus", "99999999"), "100000"),
)  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("one.jsonl").write_text('{"instruction": "a", "response": null}\n')
    Path("esc\x1b[31m.jsonl").write_text('{"no": "a"}\n')
    Path("list.json").write_text("[]")
    Path("loop").symlink_to("loop")
    os.mkfifo("pipe")
    Path("twice.json").write_text('{"zero_optimization": {"stage": 3, "stage": 1}}')
    Path("five.json").write_text('{"zero_optimization": 5}')
    Path("empty.jinja").touch()
    Path("deep.jsonl").write_text("[" * 100_000)
    (tmp_path / "deep" / "results").mkdir(parents=True)
    (tmp_path / "deep" / "store.json").write_text("[" * 100_000)
    return tmp_path


def ended(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[object, str, str]:
    """Exit code, stdout and stderr of a command."""
    sys.argv = ["magpie", *words]
    try:
        cli.main()
        code: object = 0
    except SystemExit as end:
        code = end.code or 0
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize(("words", "says"), REFUSED, ids=range(len(REFUSED)))
def test_it_is_one_sentence(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    says: str,
) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)
    code, _, said = ended(capsys, *words)
    assert code == 2 and says in said and "a defect" not in said and "\x1b" not in said


@pytest.mark.parametrize("folder", ["runs[1]", "a*b", "q?", "{x}", "tab\there"])
def test_a_folder_of_any_name_is_a_folder(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: str,
) -> None:
    """Of the data, of what is written, and of a store."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    place = here / folder
    place.mkdir()
    row = {"uuid": "1", "instruction": "ask this", "response": "say", "input_quality": "good"}
    pl.DataFrame([row]).write_parquet(place / "rows.parquet")
    data, out = f"{folder}/rows.parquet", f"{folder}/out.parquet"
    more = ("--columns", "minhash,pii", "--store", f"{folder}/store", "--out", out)
    for words in (
        ("filter", data, *ALL, "--out", f"{folder}/chosen.parquet"),
        ("import", data, "--out", f"{folder}/ours.parquet"),
        ("filter", f"{folder}/ours.parquet", *ALL),
        ("tag", data, *more),
        ("tag", data, *more),
        ("ls", f"{folder}/store"),
        ("verify", f"{folder}/store"),
    ):
        code, _, said = ended(capsys, *words)
        assert code == 0, (words, said)
    assert (place / "out.parquet").is_file()
