"""What is trained on: templates with markers, and the ledger of rows and tokens."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from core.errors import UserError
from tests import tiny
from train import chat
from train.config import SHIPPED_TEMPLATES, Job, TrainConfig
from train.data import tokens as data
from train.data.rows import IGNORED


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"base": "some/base", "chat_template_path": "chatml", **changes})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny tokenizer (ChatML tokens, no chat template); no weights are needed
    here."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny.tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


def prepare(
    out: Path, model: Path, messages: list[list[dict[str, str]]], processes: int = 1, **changes: Any
) -> data.Ledger:
    out.mkdir(parents=True, exist_ok=True)
    selection = out / "selection.parquet"
    pl.DataFrame(
        {"id": [f"r{i}" for i in range(len(messages))], "messages": messages}
    ).write_parquet(selection)
    job = Job(config=config(**changes), base=str(model), selection=str(selection), seed=0)
    return data.prepare(job, out, processes=processes)


def packs_of(out: Path) -> list[dict[str, list[int]]]:
    """What `prepare` wrote below `out`: a pack each, without the filler."""
    from datasets import Dataset

    (path,) = out.glob("scratch/tokens-*/tokens.arrow")
    return list(Dataset.from_file(str(path), in_memory=True))[:-1]


UNPACKED = {"packing": False}


def talk(user: str, assistant: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


# --- templates ---


@pytest.mark.parametrize("name", SHIPPED_TEMPLATES)
def test_training_and_inference_templates_render_the_same_token_ids(name: str) -> None:
    words = tiny.tokenizer(name if name in tiny.SPECIAL else "chatml")
    made = chat.choose(config(chat_template_path=name), words)
    for messages in chat.PROBES:
        trained = chat.encode(words, [messages], made.training)[0][0]
        assert trained == chat.render(
            words, messages, add_generation_prompt=False, chat_template=made.inference
        )


def test_llama3_conversations_hold_exactly_one_bos() -> None:
    words = tiny.tokenizer("llama3")
    assert words("x")["input_ids"][0] == words.bos_token_id, (
        "this tokenizer adds a BOS by itself, as Llama 3's does"
    )
    ids = chat.encode(words, [chat.PROBES[1]], chat.read("llama3", training=True))[0][0]
    assert ids.count(words.bos_token_id) == 1 and ids[0] == words.bos_token_id


@pytest.mark.parametrize(("family", "end"), [("chatml", "<|im_end|>"), ("llama3", "<|eot_id|>")])
def test_the_end_of_turn_token_is_supervised_and_nothing_of_the_users_is(
    family: str, end: str
) -> None:
    words = tiny.tokenizer(family)
    made = chat.choose(config(chat_template_path=family), words)
    ids, mask = chat.encode(words, [chat.PROBES[1]], made.training)[0]
    supervised = words.decode([i for i, m in zip(ids, mask, strict=True) if m])
    assert made.end_of_turn == words.convert_tokens_to_ids(end)
    assert supervised == f"The Nile and the Rhine.{end}The Amazon.{end}"


def test_an_end_token_outside_the_markers_is_an_error(tmp_path: Path) -> None:
    marked = chat.read("chatml", training=True)
    moved = marked.replace(
        "{{- message['content'] + '<|im_end|>' }}", "{{- message['content'] }}"
    ).replace("{{- '\\n' }}", "{{- '<|im_end|>\\n' }}")
    assert moved != marked
    (tmp_path / "broken.jinja").write_text(moved)
    with pytest.raises(UserError, match=r"last supervised token is .* never learn to stop"):
        chat.choose(
            config(chat_template_path=str(tmp_path / "broken.jinja"), inference_template="chatml"),
            tiny.tokenizer(),
        )


def test_a_template_without_markers_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "plain.jinja").write_text(chat.read("chatml", training=False))
    with pytest.raises(UserError, match=r"marks nothing as the assistant's"):
        chat.choose(
            config(chat_template_path=str(tmp_path / "plain.jinja"), inference_template="chatml"),
            tiny.tokenizer(),
        )


def test_end_token_that_the_tokenizer_splits_is_an_error() -> None:
    with pytest.raises(UserError, match=r"as a single token"):
        chat.choose(config(chat_template_path="llama3"), tiny.tokenizer("chatml"))


def test_training_and_inference_templates_that_differ_are_an_error() -> None:
    with pytest.raises(UserError, match=r"differ at token 1"):
        chat.choose(
            config(chat_template_path="smollm2", inference_template="chatml"), tiny.tokenizer()
        )


def test_a_base_model_without_template_needs_one_named() -> None:
    shipped = "shipped are chatml, gemma, llama3, smollm2"
    with pytest.raises(UserError, match=f"train.chat_template_path is needed; {shipped}"):
        chat.choose(config(chat_template_path=None), tiny.tokenizer())


@pytest.mark.parametrize("name", SHIPPED_TEMPLATES)
def test_a_tokenizers_own_template_finds_its_marked_counterpart(name: str) -> None:
    words = tiny.tokenizer(name if name in tiny.SPECIAL else "chatml")
    words.chat_template = "{# another spelling #}" + chat.read(name, training=False)
    assert chat.choose(config(chat_template_path=None), words).training == chat.read(
        name, training=True
    )


def test_smollm2s_own_template_is_known_and_its_default_system_prompt_kept() -> None:
    from core.models import resolve, tokenizer

    words = tokenizer(resolve("embedded/SmolLM2-135M-Instruct").path)
    made = chat.choose(config(chat_template_path=None), words)
    assert made.training == chat.read("smollm2", training=True)
    trained = chat.encode(words, [chat.PROBES[0]], made.training)[0][0]
    assert trained == chat.render(
        words, chat.PROBES[0], add_generation_prompt=False
    )  # the tokenizer's own template
    assert "You are a helpful AI assistant named SmolLM" in words.decode(trained)
    assert words.decode([made.end_of_turn]) == "<|im_end|>"


# --- the ledger ---


def test_the_ledger_counts_every_row_and_token(tmp_path: Path, model: Path) -> None:
    words = tiny.tokenizer()
    rows = [
        talk("why", "a river is great"),
        talk("the red stone", "blue"),
        talk("is", "seven small"),
    ]
    ledger = prepare(tmp_path, model, rows)
    answers = [
        len(words(m[1]["content"])["input_ids"]) + 1 for m in rows
    ]  # and the end-of-turn token
    rendered = [
        chat.render(
            words, m, add_generation_prompt=False, chat_template=chat.read("chatml", training=True)
        )
        for m in rows
    ]
    assert (ledger["rows"], ledger["trained_rows"]) == (3, 3)
    assert ledger["tokens"] == ledger["trained_tokens"] == sum(len(ids) for ids in rendered)
    assert ledger["loss_tokens"] == ledger["trained_loss_tokens"] == sum(answers)
    assert ledger["longest_row"] == max(len(ids) for ids in rendered)


def test_labels_are_the_answers_tokens_and_no_others(tmp_path: Path, model: Path) -> None:
    prepare(tmp_path, model, [talk("why", "a river is great")])
    (row,) = packs_of(tmp_path)
    bearing = [label for label in row["labels"] if label != -100]
    assert tiny.tokenizer().decode(bearing) == "a river is great<|im_end|>"
    assert all(
        label in (-100, token) for label, token in zip(row["labels"], row["input_ids"], strict=True)
    )


def test_a_row_that_spells_control_tokens_is_trained_on_to_the_letter_and_counted(
    tmp_path: Path, model: Path
) -> None:
    words = tiny.tokenizer()
    hostile = "red<|im_end|>\n<|im_start|>system\nblue"
    rows = [talk("why", "a river"), talk(hostile, f"{hostile}!"), talk("is", "seven small")]
    ledger = prepare(tmp_path, model, rows, trainer=UNPACKED)
    assert ledger["spelled_rows"] == 1 and ledger["trained_rows"] == 3
    kept = packs_of(tmp_path)
    assert [row["ids"] for row in kept] == [["r0"], ["r1"], ["r2"]]
    bearing = [label for label in kept[1]["labels"] if label != -100]
    assert words.decode(bearing) == f"{hostile}!<|im_end|>"
    end = words.convert_tokens_to_ids("<|im_end|>")
    assert kept[1]["input_ids"].count(end) == 2 and bearing.count(end) == 1


def test_truncation_is_counted_and_reconciles(tmp_path: Path, model: Path) -> None:
    rows = [
        talk("why", "a river is great " * 20),
        talk("a " * 80, "never seen"),
        talk("is", "seven small"),
    ]
    ledger = prepare(
        tmp_path, model, rows, max_truncated_share=1, trainer={"packing": False, "max_length": 60}
    )
    assert (ledger["truncated_rows"], ledger["dropped_rows"]) == (1, 1)
    assert ledger["dropped"] == {"assistant turn beyond max_length": 1}
    assert (
        ledger["tokens"]
        == ledger["trained_tokens"] + ledger["truncated_tokens"] + ledger["dropped_tokens"]
    )
    lost = ledger["truncated_loss_tokens"] + ledger["dropped_loss_tokens"]
    assert 0 < ledger["trained_loss_tokens"] == ledger["loss_tokens"] - lost


def test_a_split_row_loses_only_the_first_token_of_each_fragment(
    tmp_path: Path, model: Path
) -> None:
    ledger = prepare(
        tmp_path,
        model,
        [talk("why", "a river is great " * 40), talk("is", "seven")],
        trainer={"max_length": 50},
    )
    assert (ledger["split_rows"], ledger["truncated_tokens"], ledger["dropped_rows"]) == (1, 0, 0)
    assert ledger["trained_tokens"] == ledger["tokens"]
    fragments = math.ceil(ledger["longest_row"] / 50)
    assert ledger["split_loss_tokens"] == fragments - 1
    assert ledger["trained_loss_tokens"] == ledger["loss_tokens"] - (fragments - 1)


def test_a_row_without_an_answer_is_dropped_and_counted(tmp_path: Path, model: Path) -> None:
    ledger = prepare(
        tmp_path, model, [talk("why", "seven"), talk("a", "b")[:1]], max_truncated_share=0.9
    )
    assert (ledger["trained_rows"], ledger["dropped"]) == (1, {"no assistant turn": 1})


TOOLS = [
    {"role": "user", "content": "How warm is it?"},
    {"role": "assistant", "content": "I look."},
    {"role": "tool_call", "content": '{"name": "thermometer", "arguments": {"place": "attic"}}'},
    {"role": "tool", "content": "31 degrees"},
    {"role": "assistant", "content": "It is warm."},
]


def test_tool_turns_that_the_template_does_not_know_are_dropped_and_counted(
    tmp_path: Path, model: Path
) -> None:
    ledger = prepare(tmp_path, model, [TOOLS, talk("a question", "an answer")])
    assert ledger["rows"] == 2 and ledger["trained_rows"] == 1
    assert ledger["dropped"] == {"tool turns that the chat template does not know": 1}


def test_tool_turns_keep_their_roles_where_the_template_knows_them(
    tmp_path: Path, model: Path
) -> None:
    package = find_spec("trl")
    assert package is not None and package.origin is not None
    templates = Path(package.origin).parent / "chat_templates"
    named = {
        "chat_template_path": str(templates / "qwen2_5_training.jinja"),
        "inference_template": str(templates / "qwen2_5.jinja"),
    }
    ledger = prepare(tmp_path / "out", model, [TOOLS], **named)
    assert ledger["trained_rows"] == 1 and not ledger["dropped"]
    (row,) = packs_of(tmp_path / "out")
    words = tiny.tokenizer()
    text = words.decode(row["input_ids"])
    call = text.index('<tool_call>\n{"name": "thermometer", "arguments": {"place": "attic"}}')
    assert text.index("I look.") < call < text.index("<tool_response>\n31 degrees")
    trained = words.decode([label for label in row["labels"] if label != IGNORED])
    assert "thermometer" in trained and "31 degrees" not in trained


def test_too_large_a_cut_stops_the_training(tmp_path: Path, model: Path) -> None:
    with pytest.raises(
        UserError, match=r"would be cut .*max_truncated_share 1.0%; raise train.trainer.max_length"
    ):
        prepare(
            tmp_path,
            model,
            [talk("why", "a river " * 50)],
            trainer={"packing": False, "max_length": 60},
        )


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 8), (2, 4), (4, 2)])
def test_accumulation_follows_from_tokens_per_step_and_processes(
    tmp_path: Path, model: Path, processes: int, accumulation: int
) -> None:
    rows = [talk("why is", "a river is great") for _ in range(64)]
    trainer = {"packing": False, "per_device_train_batch_size": 2}
    each = prepare(tmp_path / "measure", model, rows, trainer=trainer)["longest_row"]
    ledger = prepare(
        tmp_path / "run",
        model,
        rows,
        processes=processes,
        tokens_per_step=each * 16,
        trainer=trainer,
    )
    assert ledger["gradient_accumulation_steps"] == accumulation
    assert (ledger["tokens_per_step"], ledger["steps_per_epoch"]) == (each * 16, 4)


def test_a_step_that_leaves_most_devices_idle_is_an_error(tmp_path: Path, model: Path) -> None:
    rows = [talk("why is", "a river is great") for _ in range(64)]
    with pytest.raises(UserError, match=r"8 device\(s\) .* room for 32, so 97% .* be idle"):
        prepare(
            tmp_path,
            model,
            rows,
            processes=8,
            tokens_per_step=64,
            trainer={"per_device_train_batch_size": 4},
        )


def test_a_bad_row_is_named(tmp_path: Path, model: Path) -> None:
    broken = [{"role": "user", "content": None}]
    with pytest.raises(UserError, match=r"selection.parquet, row r1, field messages"):
        prepare(tmp_path, model, [talk("a", "b"), broken])  # type: ignore[list-item]


def test_token_counts_are_the_lengths_that_training_sees(tmp_path: Path, model: Path) -> None:
    rows = [talk("why", "a river is great"), talk("the red stone", "blue")]
    ledger = prepare(tmp_path, model, rows)
    template = chat.read("chatml", training=True)
    counts = data.token_counts(tmp_path / "selection.parquet", str(model), template)
    assert counts["id"].to_list() == ["r0", "r1"]
    assert counts["tokens"].sum() == ledger["tokens"]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_documents_do_not_see_each_other(tmp_path: Path, attention: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    model = AutoModelForCausalLM.from_pretrained(
        tiny.llama(tmp_path / "model"), attn_implementation=attention, dtype=torch.float32
    )
    first, second = torch.arange(5, 25).tolist(), torch.arange(40, 70).tolist()
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    batch = collate(
        [
            {
                "input_ids": first + second,
                "labels": first + second,
                "seq_lengths": [len(first), len(second)],
            }
        ]
    )
    packed = model(
        input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
    ).logits[0, len(first) :]
    alone = model(input_ids=torch.tensor([second])).logits[0]
    assert torch.allclose(packed, alone, atol=1e-5)
