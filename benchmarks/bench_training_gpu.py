"""What does a training of this project reach on this machine's GPUs: MFU, tokens/s, memory?

python -m benchmarks.bench_training_gpu [--base meta-llama/Meta-Llama-3-8B] [--steps 12]
python -m benchmarks.bench_training_gpu --toy        (its own check, on a CPU, in a minute)

Makes a base of that shape with random weights (16 GB of disk for 8B, twice that more while it
trains) and trains it by `train.launch.run` on made-up rows, packed to --max-length: with LoRA, and
whole, by the optimizer that fits (AdamW, 8-bit AdamW where bitsandbytes is installed, AdamW in host
memory). Prints for each tokens/s a GPU, MFU, where the time of a step goes, and the peak of memory
beside what `magpie memory` says. Then shows that the documents of a pack do not see each other
under this attention: the loss of each in a pack beside its loss alone, and, as a control, in a pack
without the positions that keep them apart. Goals on 8 x H100: 40 % MFU, 6,667 tokens/s a GPU
(whole, 8192). Exits with 1 where packed and alone differ, or estimate and peak by over 15 %.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.bench_training import selection
from core.models import resolve
from core.serving.devices import gpus
from core.tracking import Log
from train.config import TrainConfig
from train.launch import run
from train.resuming.record import read_log
from train.sizes.bases import known
from train.sizes.memory import GIB, estimate, gpu_memory
from train.sizes.shapes import shape_of

WORDS = "embedded/SmolLM2-135M-Instruct"
"""Whose tokenizer makes the rows: every one of its ids is one of the shape's."""
TOY = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
TOY |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 49152}
MOST_OFF = 0.15
DOCUMENTS = (300, 20, 150, 700)  # tokens


def random_base(folder: Path, config: dict[str, Any]) -> Path:
    """A model folder of the shape of `config` with random bf16 weights, a file a layer, so that no
    more than one is in memory."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True)
    made = AutoConfig.for_model(**config, dtype="bfloat16")
    for path in Path(resolve(WORDS).path).glob("*token*"):
        shutil.copy(path, folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(made)
    made.architectures = [type(model).__name__]  # TRL loads it by that
    made.save_pretrained(folder)
    names = [name for name, _ in model.named_parameters()]  # a tied head once
    shapes = {name: weight.shape for name, weight in model.named_parameters()}
    shards: dict[str, list[str]] = {}
    for name in names:
        part = name.split(".layers.")[1].split(".")[0] if ".layers." in name else "rest"
        shards.setdefault(f"model-{part}.safetensors", []).append(name)
    for file, inside in shards.items():
        weights = {
            name: torch.randn(shapes[name], dtype=torch.bfloat16) * 0.02
            if len(shapes[name]) > 1
            else torch.ones(shapes[name], dtype=torch.bfloat16)
            for name in inside
        }
        save_file(weights, folder / file, metadata={"format": "pt"})
    index = {name: file for file, inside in shards.items() for name in inside}
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)
    return folder


def ways(base: str, arguments: argparse.Namespace) -> Iterator[tuple[str, TrainConfig]]:
    """(what it is called, the training) with LoRA and whole."""
    trainer = {
        "max_length": arguments.max_length,
        "per_device_train_batch_size": arguments.batch,
        "gradient_accumulation_steps": arguments.accumulation,
        "max_steps": arguments.steps,
        "save_strategy": "no",
    }
    attention = {"attn_implementation": arguments.attention}
    shared = {
        "base": base,
        "chat_template_path": "chatml",
        "model_init": attention,
        "checkpointing": arguments.checkpointing,
        "zero_stage": arguments.zero_stage,
        "num_processes": None if gpus() else 1,
    }
    lora = {"r": 64, "lora_alpha": 128, "target_modules": "all-linear"}
    yield "LoRA r=64", TrainConfig(**shared, trainer=trainer, lora=lora)
    yield whole(shared, trainer)


def whole(shared: dict[str, Any], trainer: dict[str, Any]) -> tuple[str, TrainConfig]:
    """The whole model, by the first optimizer that fits this machine's GPUs."""
    forms = {"whole, AdamW": TrainConfig(**shared, trainer=trainer)}
    if importlib.util.find_spec("bitsandbytes") and gpus():
        small = {**trainer, "optim": "adamw_8bit"}
        forms["whole, 8-bit AdamW"] = TrainConfig(**shared, trainer=small)
    room = gpu_memory()
    for name, config in forms.items():
        shape = shape_of(config.base)
        if room is None or estimate(config, shape, len(gpus())).peak < 0.95 * room:
            return name, config
    offloaded = {**shared, "zero_stage": max(2, shared["zero_stage"]), "offload": True}
    return "whole, AdamW in host memory", TrainConfig(**offloaded, trainer=trainer)


def report(name: str, config: TrainConfig, out: Path, given: Path) -> float | None:
    """Train, print what was reached; estimate over measured peak, None on the CPU."""
    run(config, {"selection": given}, out, base=config.base, seed=0, log=Log())
    lines = read_log(out / "log.jsonl")
    shutil.rmtree(out)  # an export takes as much as the base
    steps = lines[3:]  # the first ones choose kernels and fill caches
    devices = len(gpus()) or 1
    middle = {
        key: statistics.median(float(line[key]) for line in steps if key in line)
        for key in steps[-1]
        if key.endswith(("_second", "seconds", "mfu"))
    }
    parts = ("data", "communication", "idle", "compute")
    shares = ", ".join(
        f"{part} {middle[f'{part}_seconds'] / middle['seconds']:.0%}"
        for part in parts
        if f"{part}_seconds" in middle
    )
    mfu = f", MFU {middle['mfu']:.1%}" if "mfu" in middle else ""
    print(
        f"{name}: {middle['tokens_per_second'] / devices:,.0f} tokens/s a device "
        f"({middle['loss_tokens_per_second'] / devices:,.0f} bear loss){mfu}, "
        f"{middle['seconds']:.2f} s a step: {shares}"
    )
    print("\n".join(f"  {line['slow']}" for line in lines if "slow" in line), end="")
    said = estimate(config, shape_of(config.base), devices)
    if "peak_memory_gib" not in lines[-1]:
        print(f"  estimate {said.peak / GIB:.1f} GiB a GPU; no GPU, no peak")
        return None
    # What the driver holds for itself is in no count of torch's.
    expected, peak = (said.peak - said.context) / GIB, lines[-1]["peak_memory_gib"]
    print(f"  peak {peak:.1f} GiB, estimate {expected:.1f} GiB: {expected / peak:.2f}")
    return float(expected / peak)


def apart(folder: Path, attention: str) -> bool:
    """Print the losses of documents in a pack and alone, and whether they agree."""
    import torch
    from transformers import AutoModelForCausalLM

    device, dtype = ("cuda", torch.bfloat16) if gpus() else ("cpu", torch.float32)
    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation=attention, dtype=dtype
    ).to(device)
    draw = torch.Generator().manual_seed(0)
    size = model.config.vocab_size
    documents = [torch.randint(size, (n,), generator=draw).to(device) for n in DOCUMENTS]

    def losses(ids: Any, positions: Any) -> Any:
        with torch.no_grad():
            # Without a cache, as in training: with one, positions are not read as packs.
            found = model(input_ids=ids[None], position_ids=positions[None], use_cache=False)
            logits = found.logits[0].float()
        return torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")

    own = [torch.arange(len(each), device=device) for each in documents]
    alone = [losses(each, place).mean() for each, place in zip(documents, own, strict=True)]
    whole_pack = torch.cat(documents)
    ways = {
        "in a pack": torch.cat(own),
        "in a pack without positions": torch.arange(len(whole_pack), device=device),
    }
    off: dict[str, float] = {}
    for way, positions in ways.items():
        every, ends = losses(whole_pack, positions), torch.tensor(DOCUMENTS).cumsum(0).tolist()
        means = [every[end - n : end - 1].mean() for end, n in zip(ends, DOCUMENTS, strict=True)]
        off[way] = max(float(abs(a - b)) for a, b in zip(means, alone, strict=True))
        print(f"{attention}: loss of a document {way} and alone differ by {off[way]:.1e} at most")
    here, mixed = off.values()
    return here < (2e-2 if gpus() else 1e-4) and here < mixed / 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="meta-llama/Meta-Llama-3-8B", help="whose shape")
    parser.add_argument(
        "--toy", action="store_true", help="a tiny shape, for a machine without GPU"
    )
    parser.add_argument("--max-length", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=1, help="packs of a pass of a device")
    parser.add_argument("--accumulation", type=int, default=4)
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--zero-stage", type=int, default=2)
    parser.add_argument("--checkpointing", default="full", help="full, none, every_2_layers ...")
    parser.add_argument("--attention", help="default: flash_attention_2, without a GPU sdpa")
    parser.add_argument("--folder", help="where weights and runs lie; default: a temporary one")
    parser.add_argument("--apart", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.attention = arguments.attention or ("flash_attention_2" if gpus() else "sdpa")
    if arguments.apart:
        sys.exit(int(not apart(Path(arguments.apart), arguments.attention)))
    config = known(arguments.base)
    if config is None:
        sys.exit(f"the shape of {arguments.base} is not known offline; name a usual base.")
    if arguments.toy:
        config, arguments.max_length = {**config, **TOY}, 256
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        failed = measure(Path(scratch), config, arguments)
    sys.exit(int(failed))


def measure(folder: Path, config: dict[str, Any], arguments: argparse.Namespace) -> bool:
    """All of it; whether something was not as it must be."""
    base = random_base(folder / "base", config)
    tokens = arguments.max_length * arguments.batch * arguments.accumulation * arguments.steps
    words = 300 if not arguments.toy else 40
    rows = max(64, tokens * (len(gpus()) or 1) // words)
    given = selection(folder / "selection", rows, words)
    ratios = [
        report(name, made, folder / "out", given) for name, made in ways(str(base), arguments)
    ]
    off = any(ratio is not None and abs(ratio - 1) > MOST_OFF for ratio in ratios)
    # A process of its own: this one holds no GPU memory.
    command = [sys.executable, "-m", "benchmarks.bench_training_gpu", "--apart", str(base)]
    done = subprocess.run([*command, "--attention", arguments.attention], check=False)
    return off or done.returncode != 0


if __name__ == "__main__":
    main()
