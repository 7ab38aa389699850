"""Configurations of the usual bases, so that a plan says what they need where neither the hub nor a
folder can be asked.

The numbers are those of each repository's config.json on the hub; the weights that follow from them
are held against the published counts in tests/test_shapes.py.
"""

from __future__ import annotations

from typing import Any

COLUMNS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "tie_word_embeddings",
)

# fmt: off
_LLAMA_8B = ("llama", 4096, 32, 32, 8, 128, 14336, 128256, False)
_LLAMA_70B = ("llama", 8192, 80, 64, 8, 128, 28672, 128256, False)
_MISTRAL_24B = ("mistral", 5120, 40, 32, 8, 128, 32768, 131072, False)
_BASES = {
    "meta-llama/Meta-Llama-3-8B": _LLAMA_8B,
    "meta-llama/Meta-Llama-3-70B": _LLAMA_70B,
    "meta-llama/Llama-3.1-8B": _LLAMA_8B,
    "meta-llama/Meta-Llama-3.1-8B": _LLAMA_8B,
    "meta-llama/Llama-3.1-70B": _LLAMA_70B,
    "meta-llama/Meta-Llama-3.1-70B": _LLAMA_70B,
    "meta-llama/Llama-3.2-1B": ("llama", 2048, 16, 32, 8, 64, 8192, 128256, True),
    "meta-llama/Llama-3.2-3B": ("llama", 3072, 28, 24, 8, 128, 8192, 128256, True),
    "meta-llama/Llama-3.3-70B": _LLAMA_70B,
    "Qwen/Qwen2.5-0.5B": ("qwen2", 896, 24, 14, 2, 64, 4864, 151936, True),
    "Qwen/Qwen2.5-1.5B": ("qwen2", 1536, 28, 12, 2, 128, 8960, 151936, True),
    "Qwen/Qwen2.5-3B": ("qwen2", 2048, 36, 16, 2, 128, 11008, 151936, True),
    "Qwen/Qwen2.5-7B": ("qwen2", 3584, 28, 28, 4, 128, 18944, 152064, False),
    "Qwen/Qwen2.5-14B": ("qwen2", 5120, 48, 40, 8, 128, 13824, 152064, False),
    "Qwen/Qwen2.5-32B": ("qwen2", 5120, 64, 40, 8, 128, 27648, 152064, False),
    "Qwen/Qwen2.5-72B": ("qwen2", 8192, 80, 64, 8, 128, 29568, 152064, False),
    "Qwen/Qwen3-0.6B": ("qwen3", 1024, 28, 16, 8, 128, 3072, 151936, True),
    "Qwen/Qwen3-1.7B": ("qwen3", 2048, 28, 16, 8, 128, 6144, 151936, True),
    "Qwen/Qwen3-4B": ("qwen3", 2560, 36, 32, 8, 128, 9728, 151936, True),
    "Qwen/Qwen3-8B": ("qwen3", 4096, 36, 32, 8, 128, 12288, 151936, False),
    "Qwen/Qwen3-14B": ("qwen3", 5120, 40, 40, 8, 128, 17408, 151936, False),
    "Qwen/Qwen3-32B": ("qwen3", 5120, 64, 64, 8, 128, 25600, 151936, False),
    "mistralai/Mistral-7B-v0.1": ("mistral", 4096, 32, 32, 8, 128, 14336, 32000, False),
    "mistralai/Mistral-7B-v0.3": ("mistral", 4096, 32, 32, 8, 128, 14336, 32768, False),
    "mistralai/Mistral-Nemo-Base-2407": ("mistral", 5120, 40, 32, 8, 128, 14336, 131072, False),
    "mistralai/Mistral-Small-24B-Base-2501": _MISTRAL_24B,
    "google/gemma-2-2b": ("gemma2", 2304, 26, 8, 4, 256, 9216, 256000, True),
    "google/gemma-2-9b": ("gemma2", 3584, 42, 16, 8, 256, 14336, 256000, True),
    "google/gemma-2-27b": ("gemma2", 4608, 46, 32, 16, 128, 36864, 256000, True),
    "google/gemma-3-270m": ("gemma3_text", 640, 18, 4, 1, 256, 2048, 262144, True),
    "google/gemma-3-1b-pt": ("gemma3_text", 1152, 26, 4, 1, 256, 6912, 262144, True),
    "HuggingFaceTB/SmolLM2-135M": ("llama", 576, 30, 9, 3, 64, 1536, 49152, True),
    "HuggingFaceTB/SmolLM2-360M": ("llama", 960, 32, 15, 5, 64, 2560, 49152, True),
    "HuggingFaceTB/SmolLM2-1.7B": ("llama", 2048, 24, 32, 32, 64, 8192, 49152, True),
}
# fmt: on

_TUNED = ("-Instruct", "-it", "-Base", "-pt")


def known(base: str) -> dict[str, Any] | None:
    """The configuration of a usual base by its hub id, None for another. A tuned form has its
    base's shape (`-Instruct`, `-it`; `-Base` where the tuned one has the plain name)."""
    forms = [base, *(base.removesuffix(end) for end in _TUNED), f"{base.removesuffix('-it')}-pt"]
    row = next((_BASES[form] for form in forms if form in _BASES), None)
    return None if row is None else dict(zip(COLUMNS, row, strict=True))
