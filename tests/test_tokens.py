"""The tokens of a selection: made by several processes as by one, packed, kept where a kill left
them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.errors import UserError
from core.tracking import Log
from tests import tiny
from train import chat
from train.config import TrainConfig
from train.data import parts, tokens
from train.data.order import FILLER_TOKENS
from train.data.rows import IGNORED, Rendering, check_cut, read_selection

ROWS = 60


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny.tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


@pytest.fixture(scope="module")
def selection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.selection(tmp_path_factory.mktemp("chosen"), ROWS, turns=2) / "selection.parquet"


def rendering(base: Path, template: str | None = None) -> Rendering:
    words = tiny.tokenizer()
    config = TrainConfig(base=str(base), chat_template_path="chatml")
    made = chat.choose(config, words)
    return Rendering(
        tokenizer=str(base),
        revision=None,
        template=template or made.training,
        end_of_turn=made.end_of_turn,
        assistant_only=True,
        max_length=64,
        splits=True,
        source="chosen.parquet",
    )


def make(base: Path, selection: Path, out: Path, **changes: Any) -> list[dict[str, Any]]:
    """The packs that are written into `out`, the filler among them."""
    from datasets import Dataset

    config = TrainConfig(base=str(base), chat_template_path="chatml", **changes)
    tokens.make(config, str(base), selection, out, Log())
    return list(Dataset.from_file(str(out / "tokens.arrow"), in_memory=True))


@pytest.mark.process
def test_two_processes_make_the_tokens_of_one_and_keep_what_was_done(
    base: Path, selection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART", 8)
    frame, how = read_selection(selection), rendering(base)
    one = parts.tokenise(frame, how, tmp_path / "one", 1)
    parts.tokenise(frame.head(8), how, tmp_path / "two", 1)  # what a killed call had finished
    kept = (tmp_path / "two" / "part-000000.arrow").stat().st_ino
    two = parts.tokenise(frame, how, tmp_path / "two", 2)
    assert (tmp_path / "two" / "part-000000.arrow").stat().st_ino == kept
    assert two.ids == one.ids == frame["id"].to_list()
    assert [each.tolist() for each in two.input_ids] == [each.tolist() for each in one.input_ids]
    assert [each.tolist() for each in two.labels] == [each.tolist() for each in one.labels]
    assert (two.counts, two.longest) == (one.counts, one.longest)


@pytest.mark.process
def test_a_row_that_a_process_refuses_is_one_sentence(
    base: Path, selection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART", 30)
    refuses = "{% generation %}{{ raise_exception('no') if messages[0].content == 'bad' }}x"
    frame = read_selection(selection)
    bad = pl.DataFrame(
        {"id": ["r-bad"], "messages": [[{"role": "user", "content": "bad"}]]}, schema=frame.schema
    )
    how = rendering(base, refuses + "<|im_end|>{% endgeneration %}")
    with pytest.raises(UserError, match=r"row r-bad: the chat template refuses .*no"):
        parts.tokenise(pl.concat([frame.tail(30), bad]), how, tmp_path, 2)


def test_a_pack_says_its_rows_and_their_lengths_and_the_last_one_bears_no_loss(
    base: Path, selection: Path, tmp_path: Path
) -> None:
    *packs, filler = make(base, selection, tmp_path, trainer={"max_length": 256})
    for pack in packs:
        assert len(pack["ids"]) == len(pack["seq_lengths"])
        assert sum(pack["seq_lengths"]) == len(pack["input_ids"]) == len(pack["labels"]) <= 256
    rows = [each for pack in packs for each in pack["ids"]]
    assert sorted(rows) == read_selection(selection)["id"].to_list()
    assert filler["labels"] == [IGNORED] * FILLER_TOKENS and filler["ids"] == []


def test_rows_that_are_held_out_are_not_trained_on_and_are_counted(
    base: Path, selection: Path, tmp_path: Path
) -> None:
    from datasets import Dataset

    *packs, _ = make(base, selection, tmp_path, validation=0.1, trainer={"max_length": 256})
    *kept, _ = Dataset.from_file(str(tmp_path / "validation.arrow"), in_memory=True)
    trained = {each for pack in packs for each in pack["ids"]}
    held = {each for pack in kept for each in pack["ids"]}
    ledger = tokens.read_ledger(tmp_path)
    assert len(held) == ledger["validation"]["rows"] == ROWS // 10
    assert not trained & held and len(trained | held) == ROWS
    assert ledger["trained_rows"] == len(trained)


def test_tokens_made_once_are_judged_by_each_trainings_own_bound(
    base: Path, selection: Path, tmp_path: Path
) -> None:
    loose = {"packing": False, "max_length": 40}
    make(base, selection, tmp_path, max_truncated_share=1, trainer=loose)
    strict = TrainConfig(base=str(base), trainer=loose, max_truncated_share=0.01)
    with pytest.raises(UserError, match=r"max_truncated_share 1.0%"):
        check_cut(strict, selection, tokens.read_ledger(tmp_path), "")


def test_rows_that_are_held_out_and_teach_nothing_are_a_sentence(
    base: Path, tmp_path: Path
) -> None:
    talk = [{"role": "user", "content": "why"}, {"role": "assistant", "content": "a river"}]
    rows = pl.DataFrame({"id": [str(n) for n in range(20)], "messages": [talk] * 20})
    held = tokens.held_out(rows["id"], 0.01)
    lone = pl.when(pl.Series(held)).then(pl.col("messages").list.head(1))
    rows.with_columns(lone.otherwise("messages").alias("messages")).write_parquet(
        tmp_path / "chosen.parquet"
    )
    loose = {"validation": 0.01, "max_truncated_share": 1.0}
    with pytest.raises(UserError, match=r"none of the 1 rows .* bears loss; raise the share"):
        make(base, tmp_path / "chosen.parquet", tmp_path / "out", **loose)
