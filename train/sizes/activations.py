"""Memory of activations on one device: the real model at two depths, run forward and backward
without memory and without weights (torch's FakeTensorMode under its MemTracker), with TRL's own
loss; what is between and beyond those depths follows by a straight line.

Gradients are dropped as they come, as ZeRO does with what it has reduced; whole ones are counted in
`train.sizes.memory`. Flash attention is stood in for by a function that keeps what its kernels keep
(queries, keys, values, output, one logarithm a position and head), and TRL's head works in place,
as its kernels on a GPU do. A trace takes about a second and is remembered by shape.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from core.errors import UserError, first_line
from core.files import cache_folder, read_json, write_atomic
from core.store import digest
from train.sizes.shapes import Shape

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

VERSION = 1
STANDING_IN = "without_scores"
"""The name in transformers under which the stand-in for flash attention is known."""


@dataclass(frozen=True)
class Pass:
    """One forward and backward of one device: `rows` of `length` tokens, `attention` as
    transformers names it, whether rows are `packed` into one with a mask that keeps documents
    apart, the number format, every how many layers one is recomputed (0: none), and the adapter's
    settings (None: every weight is trained)."""

    rows: int
    length: int
    attention: str = "sdpa"
    packed: bool = True
    half: bool = True
    recomputed: int = 1
    lora: dict[str, Any] | None = None

    @property
    def tokens(self) -> int:
        """Tokens of one pass."""
        return self.rows * self.length


@dataclass(frozen=True)
class Traced:
    """What a pass showed: bytes at its peak beyond the weights, and the weights that are
    trained."""

    peak: int
    trained: int


def traced(shape: Shape, one: Pass) -> Traced:
    """Bytes of activations and of what is only there for a moment, at the peak of a pass. Raises
    UserError where the architecture cannot be traced, or peft refuses the adapter."""
    step = max(1, one.recomputed)
    depths = (2 * step, 4 * step)
    first, second = (_remembered(shape, one, depth) for depth in depths)
    return Traced(
        peak=_at(shape.layers, depths, (first.peak, second.peak)),
        trained=_at(shape.layers, depths, (first.trained, second.trained)),
    )


def _at(layers: int, depths: tuple[int, int], values: tuple[int, int]) -> int:
    """The value at `layers` on the line through two depths."""
    slope = (values[1] - values[0]) / (depths[1] - depths[0])
    return round(values[0] + slope * (layers - depths[0]))


def _remembered(shape: Shape, one: Pass, depth: int) -> Traced:
    """The trace at one depth, from an earlier call where there was one."""
    config = {key: value for key, value in shape.config.items() if key != "num_hidden_layers"}
    libraries = [version(name) for name in ("torch", "transformers", "trl", "peft")]
    key = digest([VERSION, libraries, config, asdict(one), depth])
    memory = cache_folder() / "traces" / f"{key[:32]}.json"
    with suppress(OSError, UserError, TypeError):
        return Traced(**read_json(memory))
    try:
        found = trace(_configuration(shape.config, depth), one)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        kind = shape.config.get("model_type")
        raise UserError(
            f"activations of a model of type '{kind}' cannot be traced ({first_line(error)})."
        ) from error
    write_atomic(memory, json.dumps(asdict(found)))
    return found


def _configuration(config: dict[str, Any], depth: int) -> Any:
    """transformers' configuration of the same shape with `depth` layers."""
    from transformers import AutoConfig

    shallow = {**config, "num_hidden_layers": depth}
    shallow.pop("dtype", None)
    if shallow.get("layer_types"):
        shallow["layer_types"] = shallow["layer_types"][:depth]
    return AutoConfig.for_model(**shallow)


def trace(config: Any, one: Pass) -> Traced:
    """The peak of one pass of the model that `config` describes, with TRL's loss."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    _stand_in()
    attention = STANDING_IN if "flash" in one.attention else one.attention
    model = built(config, one, attention)
    head = in_place_head() if one.half else nullcontext()  # fp32: the CPU, which has no kernels
    with FakeTensorMode(), head, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of its own tracker
        materialise(model)
        inputs = inputs_of(one, masked=one.packed and attention != STANDING_IN)
        count = torch.tensor(one.tokens)
        tracker = MemTracker()
        # It would hook the gradient of frozen weights too, which torch refuses.
        frozen = [weight for weight in model.parameters() if not weight.requires_grad]
        tracker._param_to_grad_hook_handles.update({w: (_NoHook(), _NoHook()) for w in frozen})
        tracker.track_external(model)
        with tracker:
            loss = model(**inputs, fused_lm_head=True, num_items_in_batch=count).loss
            loss.backward()
        (peak,) = tracker.get_tracker_snapshot("peak").values()
        weights = list(model.parameters())
    return Traced(beyond_weights(peak), sum(w.numel() for w in weights if w.requires_grad))


class _NoHook:
    """A hook's handle where there is no hook."""

    def remove(self) -> None:
        """Nothing is to be removed."""


def beyond_weights(peak: dict[Any, int]) -> int:
    """Bytes of a tracker's snapshot without parameters and buffers."""
    named = {getattr(kind, "name", str(kind)): size for kind, size in peak.items()}
    return named["Total"] - named["PARAM"] - named["BUFFER"]


def built(config: Any, one: Pass, attention: str) -> PreTrainedModel:
    """The model under training: TRL's head, the adapter, recomputation, gradients that go."""
    import torch
    from transformers import AutoModelForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    dtype = torch.bfloat16 if one.half else torch.float32
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
    model.config.use_cache = False
    if one.lora is not None:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(**{"task_type": "CAUSAL_LM", **one.lora}))
        add_fused_lm_head(model.get_base_model(), outputs=("log_probs", "entropy", "is_top1"))
        model.to(dtype)  # DeepSpeed holds adapters in the format of the rest
    else:
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    if one.recomputed:
        model.gradient_checkpointing_enable({"use_reentrant": False}, one.recomputed)
    return model.train()


def materialise(model: PreTrainedModel) -> None:
    """Put a tensor of the tracing mode in the place of each meta tensor of a model (what is shared
    stays shared); a weight's gradient goes as soon as it is there."""
    import torch

    made: dict[int, Any] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None and id(weight) not in made:
                empty = torch.empty(weight.shape, dtype=weight.dtype)
                made[id(weight)] = fresh = torch.nn.Parameter(empty, weight.requires_grad)
                if weight.requires_grad:
                    fresh.register_post_accumulate_grad_hook(_drop)  # type: ignore[no-untyped-call]
            module._parameters[name] = made.get(id(weight))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _drop(weight: torch.Tensor) -> None:
    weight.grad = None


def inputs_of(one: Pass, *, masked: bool) -> dict[str, Any]:
    """Token ids, labels and positions as the collator gives them: one long row where rows are
    packed, with a mask that keeps its documents apart unless the attention reads positions."""
    import torch

    rows, length = (1, one.tokens) if one.packed else (one.rows, one.length)
    ids = torch.zeros(rows, length, dtype=torch.long)
    inputs = {"input_ids": ids, "labels": ids, "position_ids": torch.zeros_like(ids)}
    if masked:
        inputs["attention_mask"] = torch.ones(rows, 1, length, length, dtype=torch.bool)
    return inputs


@contextmanager
def in_place_head() -> Iterator[None]:
    """Let TRL's loss work on its tiles in place and add products in fp32 without a copy, as its
    kernels on a GPU do; in torch, which stands in for them elsewhere, both take more memory."""
    from trl.kernels import chunked_logprob as head

    names = ("_forward_tile", "_backward_tile", "_addmm_fp32")
    before = {name: getattr(head, name) for name in names}
    for name in names:
        setattr(head, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(head, name, function)


def _stand_in() -> None:
    """Make the stand-in for flash attention known to transformers."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(STANDING_IN, _attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(STANDING_IN, lambda *_, **__: None)


def _attend(
    _: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *__: Any, **___: Any
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it, on [rows, heads, length, size]; the result is [rows,
    length, heads, size]."""
    import torch

    class Flash(torch.autograd.Function):
        """Keeps what flash attention keeps; computes nothing."""

        @staticmethod
        def forward(ctx: Any, query: Any, key: Any, value: Any) -> Any:
            out = torch.empty_like(query)
            logarithms = torch.empty(query.shape[:-1], dtype=torch.float32)
            ctx.save_for_backward(query, key, value, out, logarithms)
            return out

        @staticmethod
        def backward(ctx: Any, _: Any) -> Any:
            query, key, _value, _out, logarithms = ctx.saved_tensors
            torch.empty_like(logarithms)
            # the kernel writes one key and value gradient a query head, and sums them afterwards
            whole = [torch.empty_like(query) for _ in range(3)]
            groups = (*key.shape[:2], query.shape[1] // key.shape[1], *key.shape[2:])
            return whole[0], *(each.view(groups).sum(2) for each in whole[1:])

    out = Flash.apply(query, key, value)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2).contiguous(), None
