"""A tiny Llama with its own vocabulary, and selections for it: small enough that a real training
takes seconds, real in every other way."""

from __future__ import annotations

import random
from pathlib import Path

import polars as pl

WORDS = [
    *("the", "a", "river", "stone", "tree", "bird", "writes", "counts", "red"),
    *("blue", "seven", "small", "great", "why", "makes", "of", "is"),
]
SPECIAL = {
    "chatml": ["<unk>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"],
    "gemma": ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"],
    "llama3": [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|eot_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
    ],
}
ENDS = {
    "chatml": ("<|endoftext|>", "<|endoftext|>"),
    "gemma": ("<bos>", "<eos>"),
    "llama3": ("<|begin_of_text|>", "<|end_of_text|>"),
}
"""bos and eos of the base model: as in real base models, eos is not what ends a turn."""


def tokenizer(family: str = "chatml"):  # type: ignore[no-untyped-def]
    """A byte-level BPE of 512 tokens with the family's special tokens; llama3 also writes BOS by
    itself, as Llama 3's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        [" ".join(WORDS), "user assistant system"] * 4,
        trainers.BpeTrainer(
            vocab_size=512,
            special_tokens=SPECIAL[family],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    bos, eos = ENDS[family]
    if family == "llama3":
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, bpe.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=bos, eos_token=eos)


def llama(folder: Path, family: str = "chatml", seed: int = 0) -> Path:
    """Save a randomly initialised Llama (2 layers, hidden 128, 2 heads of 64, fp32) with
    `tokenizer(family)`, without a chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    own = tokenizer(family)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(own),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=own.bos_token_id,
        eos_token_id=own.eos_token_id,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    own.save_pretrained(folder)
    return folder


def selection(folder: Path, rows: int, seed: int = 0, turns: int = 1, words: int = 12) -> Path:
    """A selection result folder with `rows` conversations of up to `words` words a message; returns
    the folder."""
    draw = random.Random(seed)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(3, words)))

    messages = [
        [{"role": role, "content": text()} for _ in range(turns) for role in ("user", "assistant")]
        for _ in range(rows)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame({"id": [f"row-{i:04d}" for i in range(rows)], "messages": messages}).write_parquet(
        folder / "selection.parquet"
    )
    return folder


def pairs(folder: Path, rows: int, seed: int = 0, words: int = 12) -> Path:
    """A folder of `rows` preference pairs, as a recipe's preference set has them (train.parquet);
    returns the folder."""
    draw = random.Random(seed)

    def turns(role: str) -> list[dict[str, str]]:
        return [{"role": role, "content": " ".join(draw.choices(WORDS, k=draw.randint(3, words)))}]

    folder.mkdir(parents=True, exist_ok=True)
    made = {
        "id": [f"pair-{i:04d}" for i in range(rows)],
        "prompt": [turns("user") for _ in range(rows)],
        "chosen": [turns("assistant") for _ in range(rows)],
        "rejected": [turns("assistant") for _ in range(rows)],
    }
    pl.DataFrame(made).write_parquet(folder / "train.parquet")
    return folder
