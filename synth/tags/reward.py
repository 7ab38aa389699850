"""Rewards of conversations by sequence-classification reward models, and what is known of those
that the field names.

A threshold on a reward belongs to one model: the paper's tau1 = -12 is a logit of FsfairX. With
another model a recipe sets `tau1` itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from core.columns import OK
from core.errors import UserError
from core.servers import Endpoint
from core.wire import Reply, Request, reward_request, rewards
from synth.chat.encoding import encode_conversation, pair
from synth.generate.ask import (
    Frames,
    Row,
    Rows,
    Unreadable,
    asked,
    context_length,
    failed,
    replied,
    spent,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 1
"""Part of every key of a reward; raised when the same model would give other scores."""


@dataclass(frozen=True)
class RewardModel:
    """What a recipe needs to know of a reward model.

    `args`: vLLM arguments it needs; None: vLLM (0.32) cannot serve it. `tau1`: the published
    threshold of `instruct_reward` on this model's scale, None: none was published with Magpie, so a
    strategy's `tau1` must be set. `note`: what behaves otherwise than expected.
    """

    name: str
    architecture: str
    args: dict[str, Any] | None
    tau1: float | None
    note: str


_SKYWORK = (
    "Bradley-Terry logits without bounds, trained on up to 16,384 tokens; "
    "another scale than FsfairX: take tau1 from a percentile of your rows"
)
_SKYWORK_MODELS = {
    "Qwen3-0.6B": "Qwen3",
    "Qwen3-1.7B": "Qwen3",
    "Qwen3-4B": "Qwen3",
    "Qwen3-8B": "Qwen3",
    "Llama-3.2-1B": "Llama",
    "Llama-3.2-3B": "Llama",
    "Llama-3.1-8B": "Llama",
    "Llama-3.1-8B-40M": "Llama",
}
REWARD_MODELS: tuple[RewardModel, ...] = (
    RewardModel(
        "sfairXC/FsfairX-LLaMA3-RM-v0.1",
        "LlamaForSequenceClassification",
        {"runner": "pooling", "max_model_len": 8192},
        -12.0,
        "the paper's: tau1 of Table 5 (the repository's notebook has -10); "
        "the published rewards were computed in fp16",
    ),
    RewardModel(
        "RLHFlow/ArmoRM-Llama3-8B-v0.1",
        "LlamaForRewardModelWithGating",
        None,
        None,
        "19 objectives mixed by a gate of the prompt, in code of its own. "
        "vLLM refuses the architecture, and with trust_remote_code it would load "
        "an embedding model without that head; give `urls` of a server of yours "
        "that answers /classify, or take a Skywork-Reward-V2",
    ),
    *(
        RewardModel(
            f"Skywork/Skywork-Reward-V2-{size}",
            f"{kind}ForSequenceClassification",
            {"runner": "pooling", "max_model_len": 16384},
            None,
            _SKYWORK,
        )
        for size, kind in _SKYWORK_MODELS.items()
    ),
)


def known(model: str) -> RewardModel | None:
    """What is known of a reward model by its name on the hub; None of any other, local copies under
    other names included."""
    return next((each for each in REWARD_MODELS if each.name.lower() == model.lower()), None)


def check(model: str, *, own_server: bool) -> None:
    """Raises UserError for a reward model that vLLM is known not to serve, where vLLM is to serve
    it (`own_server`: no `urls` are given)."""
    asked = known(model)
    if own_server and asked is not None and asked.args is None:
        raise UserError(f"synth.tags.reward: vLLM cannot serve {asked.name}: {asked.note}.")


def reward(rows: Rows, tokenizer: PreTrainedTokenizerBase, endpoint: Endpoint) -> Frames:
    """The score of a sequence-classification reward model behind a vLLM pooling server (`runner:
    pooling`): the logit, not its sigmoid.

    `rows`: id, instruction, response; `tokenizer` is the reward model's. Yields [id,
    instruct_reward, prompt_tokens, status, reason]. A model with several outputs, a conversation
    longer than the server takes, and a score that is not finite are failed cells.
    """
    limit = context_length(endpoint)

    def ask(row: Row) -> Request | Row:
        talk = pair(row["instruction"], row["response"])
        ids = encode_conversation(tokenizer, talk, add_generation_prompt=False)
        if limit is None or len(ids) <= limit:
            return reward_request(row["id"], ids)
        problem = f"a conversation of {len(ids)} tokens is longer than max_model_len {limit}"
        return failed(row["id"], problem)

    fields = {"instruct_reward": pl.Float64, "prompt_tokens": pl.Int64}
    return asked(rows, ask, _score, endpoint, fields)


def _score(reply: Reply) -> Row:
    """The cell of a reply: a model's only output, as a finite number."""
    try:
        scores = rewards(replied(reply))
        score = scores[0]
    except Unreadable as error:
        return failed(reply.key, str(error))
    except (KeyError, IndexError, TypeError, ValueError):
        return failed(reply.key, "request failed: the reply holds no score", **spent(reply))
    problem = None
    if len(scores) != 1:
        problem = f"the reward model has {len(scores)} outputs, not one"
    elif not math.isfinite(score):
        problem = "the score is not a finite number"
    if problem:
        return failed(reply.key, problem, **spent(reply))
    return {"id": reply.key, "instruct_reward": score, **spent(reply), "status": OK}
