"""`magpie init`: a commented recipe whose models fit this machine, or GPUs that are stated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import write_atomic
from recipes.verbs.readiness import serving
from recipes.verbs.readiness.needs import Place

TEACHERS = (
    "Qwen/Qwen2.5-72B-Instruct",
    "Qwen/Qwen2.5-32B-Instruct",
    "Qwen/Qwen2.5-14B-Instruct",
    "Qwen/Qwen2.5-7B-Instruct",
    "Qwen/Qwen2.5-3B-Instruct",
    "Qwen/Qwen2.5-1.5B-Instruct",
    "Qwen/Qwen2.5-0.5B-Instruct",
)
"""From the largest: none is behind a licence that has to be asked for, and their shapes are known
without the hub."""
CONTEXT = 8192
AT_ONCE = 8
"""Sequences of CONTEXT tokens that a teacher's cache is to hold: with one alone it would crawl."""
BASES = (
    ("Qwen/Qwen2.5-7B", 2, False),
    ("Qwen/Qwen2.5-7B", 3, False),
    ("Qwen/Qwen2.5-7B", 2, True),
    ("Qwen/Qwen2.5-3B", 2, True),
    ("Qwen/Qwen2.5-1.5B", 2, True),
    ("Qwen/Qwen2.5-0.5B", 2, False),
    ("Qwen/Qwen2.5-0.5B", 2, True),
)
"""(base, ZeRO stage, with adapters), the first that fits is taken."""
WITHOUT_GPU = {
    "teacher": "embedded/SmolLM2-135M-Instruct",
    "tensor": 1,
    "context": 2048,
    "rows": 192,
    "temperature": 0.8,
    "top_p": 0.95,
    "instruction": 96,
    "response": 128,
    "heldout": 0.125,
    "budget": 48,
    "base": "embedded/SmolLM2-135M-Instruct",
    "template": "smollm2",
    "stage": 2,
    "lora": False,
    "step": 900,
    "length": 448,
    "rate": "2.0e-5",
    "answers": 128,
}
"""Two cores are enough for this, an hour or two; it shows the machinery, not good data."""
ON_GPUS = {
    "context": CONTEXT,
    "temperature": 1.0,
    "top_p": 1.0,
    "instruction": 1024,
    "response": 2048,
    "heldout": 0.02,
    "template": "chatml",
    "step": 131072,
    "length": 4096,
    "answers": 1024,
}
ROWS_A_GPU = 5000
"""Instructions that are drawn for each GPU of the machine."""


def write(path: Path, where: Place) -> None:
    """Write a recipe for the GPUs of a place, or for none. Raises UserError where the file exists,
    and for GPUs on which nothing fits."""
    from recipes import schema

    if path.exists():
        raise UserError(f"{path} exists already; name another file, or move that one away.")
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"{path}: a recipe's file ends with .yaml.")
    write_atomic(path, text(path, where))
    schema.load(path)


def text(path: Path, where: Place) -> str:
    """The recipe as it is written to `path`, which names it."""
    from jinja2 import Environment, StrictUndefined

    template = Path(__file__).parent / "templates" / "recipe.yaml.jinja"
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    machine = f"a machine with {where.said}" if where.gpus else "a machine without a GPU"
    values = {
        "machine": machine,
        "file": path,
        "name": _name(path),
        "gpus": where.gpus,
        **(settings(where) if where.gpus else WITHOUT_GPU),
    }
    return environment.from_string(template.read_text()).render(values)


def _name(path: Path) -> str:
    """The recipe's name: its file's, of what a name may have."""
    kept = "".join(sign if sign.isalnum() or sign in "-_." else "-" for sign in path.stem)
    return kept.strip(".") or "recipe"


def settings(where: Place) -> dict[str, Any]:
    """What fits the GPUs: the teacher and how it is split, the base and how it is trained."""
    from train.sizes.memory import GIB

    memory = where.memory
    if memory is None:
        raise UserError("no driver says how much memory a GPU has; say it by --gpu-memory (GiB).")
    teacher, tensor = _teacher(where.gpus, memory)
    base, stage, lora = _base(where.gpus, memory)
    rows = ROWS_A_GPU * where.gpus
    return {
        **ON_GPUS,
        "teacher": teacher,
        "tensor": tensor,
        "rows": rows,
        "budget": rows // 5,
        "base": base,
        "stage": stage,
        "lora": lora,
        "rate": "2.0e-4" if lora else "2.0e-5",
        "gpu_memory": f"{memory / GIB:.4g}",
    }


def _teacher(count: int, memory: int) -> tuple[str, int]:
    """The largest teacher that serves AT_ONCE long sequences, and its tensor parallel size."""
    from train.sizes.shapes import shape_of

    args = {"max_model_len": CONTEXT * AT_ONCE}
    for name in TEACHERS:
        size = serving.smallest(shape_of(name), args, count, memory)
        if size is not None:
            return name, size
    raise UserError("no teacher fits these GPUs: 8 GiB of one are the least.")


def _base(count: int, memory: int) -> tuple[str, int, bool]:
    """The largest base that can be trained, whole where that fits: (base, ZeRO stage, whether with
    adapters)."""
    from train.config import TrainConfig
    from train.sizes.fitting import ADAPTER, Machine
    from train.sizes.memory import estimate
    from train.sizes.shapes import shape_of

    machine = Machine(count, memory)
    for base, stage, lora in BASES:
        trainer = {
            "max_length": ON_GPUS["length"],
            "per_device_train_batch_size": 1,
            "bf16": True,
            "gradient_checkpointing": True,
        }
        config = TrainConfig(
            base=base, zero_stage=stage, lora=ADAPTER if lora else None, trainer=trainer
        )
        if estimate(config, shape_of(base), count).peak <= machine.room:
            return base, stage, lora
    raise UserError("no base can be trained on these GPUs: 8 GiB of one are the least.")
