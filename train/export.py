"""The checkpoint people serve: safetensors in the wanted number format, with eos, pad,
generation_config and chat template set.

Llama-3's base model ends texts with <|end_of_text|> while its turns end with <|eot_id|>; a
checkpoint that keeps the base's eos never stops in a server. So the end-of-turn token becomes the
tokenizer's eos, and generation_config lists it before the base's own.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import UserError
from core.files import clear_leftovers, read_json, replacing
from core.models import load_tokenizer
from core.models import tokenizer as shared_tokenizer
from train.chat import Chat, padding
from train.sizes.shapes import shapes

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""torch's name of a number format -> its name in a safetensors header."""

ADAPTER = "adapter"
"""Folder of a checkpoint that holds the adapter which is merged into it."""


def export(
    saved: Path,
    out: Path,
    *,
    base: str,
    revision: str | None,
    chat: Chat,
    dtype: str,
) -> None:
    """Turn what the trainer saved (full weights, or a LoRA adapter of `base`) into a served
    checkpoint at `out`; whole or absent.

    Weights are cast shard by shard, so memory stays at one shard; an adapter is merged into the
    base in fp32 on the CPU first (4 bytes a weight of CPU memory), and kept beside the weights in
    `adapter`, for servers that load adapters over one base. The result is verified from its headers
    before it gets its name. Raises UserError when weights are not finite or not what the
    configuration says.
    """
    clear_leftovers(out)
    with replacing(out) as folder:
        folder.mkdir()
        if (saved / "adapter_config.json").exists():
            _keep_adapter(saved, folder / ADAPTER)
            saved = _merge(saved, base, revision)
        _weights(saved, folder, dtype)
        _stop_tokens(saved, folder, shared_tokenizer(base, revision), chat, dtype)
        _tokenizer(folder, base, revision, chat)
        verify(folder, dtype)
        shutil.rmtree(out, ignore_errors=True)


def verify(folder: Path, dtype: str) -> None:
    """Reload the checkpoint's headers and compare them with the model its config.json describes:
    every weight there, in shape and format. Raises UserError where they differ."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    written = shapes(folder)
    wanted = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    if missing := sorted(wanted.keys() - written.keys() - tied):
        raise UserError(
            f"the checkpoint {folder} lacks {len(missing)} weights ({missing[0]}, …), "
            "so it was not exported; train again."
        )
    for name, (kind, shape) in written.items():
        other_format = kind != DTYPES[dtype] and kind in DTYPES.values()
        if name in wanted and (shape != wanted[name] or other_format):
            raise UserError(
                f"the checkpoint {folder} holds {name} as {kind} {shape} "
                f"instead of {DTYPES[dtype]} {wanted[name]}; train again."
            )


def _keep_adapter(adapter: Path, target: Path) -> None:
    target.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(adapter / name, target / name)


def _merge(adapter: Path, base: str, revision: str | None) -> Path:
    """The folder, beside the adapter's, of the base with the adapter merged into it."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        base, revision=revision or "main", dtype=torch.float32, trust_remote_code=False
    )
    whole: Any = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
    merged = adapter.with_name("merged")
    whole.save_pretrained(merged)
    return merged


def _weights(source: Path, target: Path, dtype: str) -> None:
    """Copy every shard with its floating-point tensors cast; the index keeps its map and gets the
    new total size (bytes)."""
    from safetensors.torch import load_file, save_file

    total = 0
    for path in sorted(source.glob("*.safetensors")):
        tensors = load_file(path)
        for name in tensors:
            tensors[name] = _cast(name, tensors[name], dtype)
            total += tensors[name].numel() * tensors[name].element_size()
        save_file(tensors, target / path.name, metadata={"format": "pt"})
    if not total:
        raise UserError(
            f"{source} holds no *.safetensors weights to export; look at trainer.log beside it."
        )
    index = source / "model.safetensors.index.json"
    if index.exists():
        content = read_json(index)
        content["metadata"] = {**content.get("metadata", {}), "total_size": total}
        _write(target / index.name, content)


def _cast(name: str, tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    """A floating-point tensor in the wanted format. Raises UserError where it is not finite."""
    import torch

    if tensor.is_floating_point():
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"weight {name} is not finite after training: it diverged; "
                "lower the learning rate or check the data."
            )
        tensor = tensor.to(getattr(torch, dtype))
    return tensor.contiguous()


def _stop_tokens(
    source: Path, target: Path, tokenizer: PreTrainedTokenizerBase, chat: Chat, dtype: str
) -> None:
    """config.json and generation_config.json: eos (end of turn first, then what the base stopped
    at), pad, number format; no sampling habits."""
    config: dict[str, Any] = read_json(source / "config.json")
    path = source / "generation_config.json"
    generation: dict[str, Any] = read_json(path) if path.exists() else {}
    stops: list[Any] = [chat.end_of_turn]
    for of in (generation.get("eos_token_id"), config.get("eos_token_id"), tokenizer.eos_token_id):
        stops += of if isinstance(of, list) else [of]
    pad = padding(tokenizer, chat)
    config |= {
        "eos_token_id": chat.end_of_turn,
        "pad_token_id": pad,
        "dtype": dtype,
        "use_cache": True,
    }
    config.pop("torch_dtype", None)
    # A server reads temperature and top_p from here as its defaults; the evaluation's sampling
    # comes from the recipe, so none is left behind.
    distinct = [stop for stop in dict.fromkeys(stops) if stop is not None]
    begin = tokenizer.bos_token_id
    generation = {"bos_token_id": begin} if begin is not None else {}
    generation |= {"eos_token_id": distinct, "pad_token_id": pad}
    _write(target / "config.json", config, end="\n")
    _write(target / "generation_config.json", generation, end="\n")


def _write(path: Path, content: dict[str, Any], end: str = "") -> None:
    path.write_text(json.dumps(content, indent=2) + end)


def _tokenizer(target: Path, base: str, revision: str | None, chat: Chat) -> None:
    tokenizer = load_tokenizer(base, revision)
    pad = padding(tokenizer, chat)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(chat.end_of_turn)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    tokenizer.chat_template = chat.inference
    tokenizer.save_pretrained(target)
