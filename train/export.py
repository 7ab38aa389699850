"""The checkpoint people serve: safetensors in the wanted number format, with eos, pad,
generation_config and chat template set.

Llama-3's base model ends texts with <|end_of_text|> while its turns end with <|eot_id|>; a
checkpoint that keeps the base's eos never stops in a server. So the end-of-turn token becomes the
tokenizer's eos, and generation_config lists it before the base's own.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import UserError
from core.files import fsync_folder
from core.models import tokenizer as load_tokenizer
from train.chat import Chat
from train.throughput import shapes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""torch's name of a number format -> its name in a safetensors header."""


def export(
    saved: Path, out: Path, *, base: str, revision: str | None, chat: Chat, dtype: str
) -> None:
    """Turn what the trainer saved (full weights, or a LoRA adapter of `base`) into a served
    checkpoint at `out`; whole or absent.

    Weights are cast shard by shard, so memory stays at one shard; an adapter is merged into the
    base in fp32 on the CPU first (4 bytes a weight of CPU memory). The result is verified from its
    headers before it gets its name. Raises UserError when weights are not finite or not what the
    configuration says.
    """
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    if (saved / "adapter_config.json").exists():
        saved = _merge(saved, base, revision, saved.with_name("merged"))
    _weights(saved, temporary, dtype)
    words = load_tokenizer(base, revision)
    _stop_tokens(saved, temporary, words, chat, dtype)
    _tokenizer(temporary, base, revision, chat)
    verify(temporary, dtype)
    for path in temporary.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    shutil.rmtree(out, ignore_errors=True)
    temporary.rename(out)
    fsync_folder(out.parent)


def verify(folder: Path, dtype: str) -> None:
    """Reload the checkpoint's headers and compare them with the model its config.json describes:
    every weight there, in shape and format."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(folder, trust_remote_code=False)
        )
    found = shapes(folder)
    wanted = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = {
        name
        for name in wanted
        if name not in found and name in set(getattr(model, "all_tied_weights_keys", {}))
    }
    if missing := sorted(set(wanted) - set(found) - tied):
        raise UserError(
            f"the checkpoint {folder} lacks {len(missing)} weights ({missing[0]}, …), so it was not exported; train again."
        )
    for name, (kind, shape) in found.items():
        if name in wanted and (
            shape != wanted[name] or (kind != DTYPES[dtype] and kind in DTYPES.values())
        ):
            raise UserError(
                f"the checkpoint {folder} holds {name} as {kind} {shape} instead of {DTYPES[dtype]} {wanted[name]}; train again."
            )


def _merge(adapter: Path, base: str, revision: str | None, merged: Path) -> Path:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        base, revision=revision or "main", dtype=torch.float32, trust_remote_code=False
    )
    whole: Any = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
    whole.save_pretrained(merged)
    return merged


def _weights(source: Path, target: Path, dtype: str) -> None:
    """Copy every shard with its floating-point tensors cast; the index keeps its map and gets the
    new total size (bytes)."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    total = 0
    for path in sorted(source.glob("*.safetensors")):
        tensors = {}
        with safe_open(path, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 (a safetensors file is no mapping)
                tensor = shard.get_tensor(name)
                if tensor.is_floating_point():
                    if not torch.isfinite(tensor).all():
                        raise UserError(
                            f"weight {name} is not finite after training: it diverged; lower the learning rate or check the data."
                        )
                    tensor = tensor.to(getattr(torch, dtype))
                tensors[name] = tensor.contiguous()
                total += tensor.numel() * tensor.element_size()
        save_file(tensors, target / path.name, metadata={"format": "pt"})
    if not total:
        raise UserError(
            f"{source} holds no *.safetensors weights to export; look at trainer.log beside it."
        )
    index = source / "model.safetensors.index.json"
    if index.exists():
        content = json.loads(index.read_text())
        content["metadata"] = {**content.get("metadata", {}), "total_size": total}
        (target / index.name).write_text(json.dumps(content, indent=2))


def _stop_tokens(
    source: Path, target: Path, words: PreTrainedTokenizerBase, chat: Chat, dtype: str
) -> None:
    """config.json and generation_config.json: eos (end of turn first, then what the base stopped
    at), pad, number format; no sampling habits."""
    config: dict[str, Any] = json.loads((source / "config.json").read_text())
    path = source / "generation_config.json"
    generation: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    stops = [chat.end_of_turn]
    for known in (generation.get("eos_token_id"), config.get("eos_token_id"), words.eos_token_id):
        stops += [
            i
            for i in (known if isinstance(known, list) else [known])
            if i is not None and i not in stops
        ]
    pad = padding(words, chat)
    config |= {
        "eos_token_id": chat.end_of_turn,
        "pad_token_id": pad,
        "dtype": dtype,
        "use_cache": True,
    }
    config.pop("torch_dtype", None)
    # A server reads temperature and top_p from here as its defaults; the evaluation's sampling
    # comes from the recipe, so none is left behind.
    generation = {"bos_token_id": words.bos_token_id, "eos_token_id": stops, "pad_token_id": pad}
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (target / "generation_config.json").write_text(
        json.dumps({k: v for k, v in generation.items() if v is not None}, indent=2) + "\n"
    )


def _tokenizer(target: Path, base: str, revision: str | None, chat: Chat) -> None:
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(
        base, revision=revision or "main", trust_remote_code=False
    )  # not the shared one: it is changed here
    pad = padding(words, chat)
    words.eos_token = words.convert_ids_to_tokens(chat.end_of_turn)
    words.pad_token = words.convert_ids_to_tokens(pad)
    words.chat_template = chat.inference
    words.save_pretrained(target)


def padding(words: PreTrainedTokenizerBase, chat: Chat) -> int:
    """Token id to pad with: the base's pad token, else the base's eos (Magpie padded Llama-3 with
    <|end_of_text|>), else the end of turn.

    Padding may equal the end of turn (SmolLM2), because labels are masked by position, never by
    token id.
    """
    for token in (words.pad_token_id, words.eos_token_id):
        if token is not None:
            return int(token)
    return chat.end_of_turn
