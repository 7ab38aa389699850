"""LoRA adapters that one vLLM server of their base serves side by side, each asked by its name; and
which adapters it serves as they were trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.errors import UserError
from core.wire import ServerSpec

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank may be."""
PLAIN = {
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "init_lora_weights",
    "bias",
    "task_type",
}
"""Arguments of peft.LoraConfig with which vLLM serves an adapter; what else is given it refuses, or
passes over without a word."""
NEW_WEIGHTS = ("gaussian", "orthogonal", "eva")
"""Texts of `init_lora_weights` that leave the base's weights as they are; PiSSA and its like do
not."""
EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out", "word_embeddings")
"""Names of models' embeddings and heads."""


@dataclass(frozen=True)
class Adapted:
    """A checkpoint that the server of its base answers for, by its adapter."""

    checkpoint: str
    """Its folder, which has its tokenizer, chat template and stop tokens."""
    name: str
    """The adapter's name in requests."""
    base: str
    """The base's folder."""
    adapters: Mapping[str, str]
    """The folders of all adapters that the server has, by name; the same for all of them, so that
    it stays up from one to the next."""
    tokenizer: str
    """The folder of the tokenizer that the server writes texts with; the same for all of them."""
    rank: int
    """The largest rank among them."""
    modules: tuple[str, ...]
    """Names of the modules that any of them adapts. vLLM wraps these alone: with the head wrapped
    too, `prompt_logprobs` of an adapter end its CPU engine (0.32.0)."""

    def spec(self, server: Mapping[str, Any]) -> ServerSpec:
        """Its server by a recipe's `server` block, whose own arguments go before ours."""
        loaded = [{"name": name, "path": path} for name, path in self.adapters.items()]
        ours = {
            "tokenizer": self.tokenizer,
            "lora_modules": loaded,
            "lora_target_modules": list(self.modules),
        }
        args = {**ours, **arguments(self.rank), **(server.get("args") or {})}
        return ServerSpec(model=self.base, **{**server, "args": args})


def arguments(rank: int) -> dict[str, Any]:
    """vLLM's arguments for adapters of ranks up to this one."""
    return {"enable_lora": True, "max_lora_rank": min(r for r in RANKS if r >= rank)}


def rank_of(lora: Mapping[str, Any]) -> int:
    """The largest rank of an adapter by arguments of peft.LoraConfig (8 where they are silent);
    what is no number is for peft to refuse."""
    pattern = lora.get("rank_pattern")
    given = [lora.get("r"), *(pattern.values() if isinstance(pattern, Mapping) else ())]
    return max((rank for rank in given if isinstance(rank, int)), default=8)


def check(lora: Mapping[str, Any], most: int | None = None) -> None:
    """Refuse adapters that vLLM does not serve as they were trained, by their arguments of
    peft.LoraConfig; `most` is the server's own `max_lora_rank`. Raises UserError that begins with
    the argument."""
    for name, value in lora.items():
        if name not in PLAIN and value:
            raise UserError(f"lora.{name}: vLLM serves no adapter that is trained with it")
    if lora.get("bias", "none") != "none":
        raise UserError(f"lora.bias: vLLM serves no trained biases (it is {lora['bias']})")
    init = lora.get("init_lora_weights", True)
    if not isinstance(init, bool) and str(init).lower() not in NEW_WEIGHTS:
        raise UserError(
            f"lora.init_lora_weights: {init} changes the base's own weights, which are served"
        )
    targets = lora.get("target_modules") or ()
    adapted = [] if isinstance(targets, str) else [name for name in targets if name in EMBEDDINGS]
    if adapted:
        raise UserError(f"lora.target_modules: vLLM serves no adapted embeddings ({adapted[0]})")
    rank, highest = rank_of(lora), most or RANKS[-1]
    if rank > highest:
        whose = "the server's own max_lora_rank" if most else "vLLM's highest"
        raise UserError(f"lora.r: the rank {rank} is above {whose}, {highest}")
