"""Shape of a base from its configuration alone: how many weights it has, and where. Weights are
never loaded and never needed.

A configuration comes from the base's folder, from the hub's local cache, from the table of the
usual bases, or from the hub, in this order.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import read_json
from core.models import EMBEDDED, prepare_embedded
from core.pretrained.hub import PATIENCE, lost, refusal, require
from train.sizes import bases

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")
"""Model types whose weights are counted here by arithmetic; others are built without memory."""


@dataclass(frozen=True)
class Shape:
    """A base's configuration (`config`, as config.json has it), where it is from (`source`), and
    its weights: all, those that multiply (without an untied input embedding), those of all decoder
    layers' linear maps (what 4-bit loading quantises), and those of one decoder layer."""

    config: dict[str, Any]
    source: str
    weights: int
    multiplying: int
    linear: int
    layer: int

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return int(self.config["num_hidden_layers"])

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return int(self.config["hidden_size"])


def shape_of(base: str, revision: str | None = None) -> Shape:
    """The shape of the base that a recipe names. Raises UserError where its configuration is found
    nowhere, or is of a kind that cannot be counted."""
    folder = prepare_embedded(base.removeprefix(EMBEDDED)) if base.startswith(EMBEDDED) else None
    local = folder or Path(base).expanduser()
    if local.is_dir():
        if not (local / "config.json").is_file():
            raise UserError(f"folder {local} holds no config.json, so its shape is not known.")
        return counted(read_json(local / "config.json"), "its folder")
    cached = _cached(base, revision)
    if cached is not None:
        return counted(read_json(cached), "the hub's cache")
    if (row := bases.known(base)) is not None:
        return counted(row, "the table of usual bases")
    return counted(read_json(_download(base, revision)), "the hub")


def _cached(base: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(base, "config.json", revision=revision)
    except HFValidationError as error:
        raise UserError(f"model '{base}' is neither a folder nor a hub id.") from error
    return Path(found) if isinstance(found, str) else None


def _download(base: str, revision: str | None) -> Path:
    """config.json of a base, from the hub. Raises UserError where that cannot be had."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    try:
        require("its config.json")
        # A download that gets no answer is tried again by its client for minutes; this is not.
        get_hf_file_metadata(hf_hub_url(base, "config.json", revision=revision), timeout=PATIENCE)
        return Path(hf_hub_download(base, "config.json", revision=revision, etag_timeout=PATIENCE))
    # Any error: the hub client changed its HTTP library, and with it these types, twice.
    except Exception as error:
        lost(error)
        why = str(error) if isinstance(error, UserError) else refusal(error, base)
        raise UserError(
            f"the shape of {base} is not known: it is no folder and none of the usual bases, and "
            f"the hub gives no config.json ({why.rstrip('.')}); run again with a network, or "
            "name a folder."
        ) from error


def counted(config: dict[str, Any], source: str) -> Shape:
    """The weights that follow from a configuration; its `text_config` where it has one."""
    config = config.get("text_config") or config
    if config.get("model_type") in FAMILIES:
        return _by_arithmetic(config, source)
    return _by_building(config, source)


def linear_maps(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of each linear map of one decoder layer, by its module's name."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    size = config.get("head_dim") or hidden // heads
    width, narrow = heads * size, (config.get("num_key_value_heads") or heads) * size
    inner = config["intermediate_size"]
    return {
        "q_proj": (hidden, width),
        "k_proj": (hidden, narrow),
        "v_proj": (hidden, narrow),
        "o_proj": (width, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }


def _by_arithmetic(config: dict[str, Any], source: str) -> Shape:
    """Count the weights of a family that is known here."""
    kind, hidden = config["model_type"], config["hidden_size"]
    maps = linear_maps(config)
    matrices = sum(inputs * outputs for inputs, outputs in maps.values())
    norms = hidden * (4 if kind.startswith("gemma") else 2)
    if kind in ("qwen3", "gemma3_text"):  # of queries and keys
        norms += 2 * (config.get("head_dim") or hidden // config["num_attention_heads"])
    biased: tuple[str, ...] = ()
    if kind == "qwen2":
        biased = ("q_proj", "k_proj", "v_proj")
    elif config.get("attention_bias"):
        biased = ("q_proj", "k_proj", "v_proj", "o_proj")
    layer = matrices + norms + sum(maps[name][1] for name in biased)
    embedding = config["vocab_size"] * hidden
    layers = config["num_hidden_layers"]
    # transformers ties the embeddings of Gemma unless told otherwise
    tied = config.get("tie_word_embeddings", kind.startswith("gemma"))
    multiplying = layers * layer + hidden + embedding
    total = multiplying if tied else multiplying + embedding
    return Shape(config, source, total, multiplying, layers * matrices, layer)


def _by_building(config: dict[str, Any], source: str) -> Shape:
    """Count an architecture that has no arithmetic here, by building it on torch's meta device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        built = AutoConfig.for_model(**config)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(built)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"the shape of a model of type '{config.get('model_type')}' cannot be worked out "
            f"({type(error).__name__}); transformers knows no causal language model of it."
        ) from error
    text = built.get_text_config()
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    total = sum(weight.numel() for weight in model.parameters())
    tied = head is None or head.weight is embedding.weight
    layers = int(text.num_hidden_layers)
    inside = [module for module in model.modules() if module is not head]
    linear = sum(m.weight.numel() for m in inside if isinstance(m, torch.nn.Linear))
    multiplying = total if tied else total - embedding.weight.numel()
    outside = embedding.weight.numel() * (1 if tied else 2)
    known = {**config, "num_hidden_layers": layers, "hidden_size": int(text.hidden_size)}
    return Shape(known, source, total, multiplying, linear, (total - outside) // layers)


def shapes(folder: Path) -> dict[str, tuple[str, list[int]]]:
    """Tensor name -> (dtype as safetensors writes it, shape), read from the headers of every
    *.safetensors file in `folder`."""
    tensors: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as handle:
            (size,) = struct.unpack("<Q", handle.read(8))
            tensors |= json.loads(handle.read(size))
    tensors.pop("__metadata__", None)
    return {name: (entry["dtype"], entry["shape"]) for name, entry in tensors.items()}
