r"""Rows per second of distilabel 1.5.3's MagpieGenerator on an in-process vLLM engine of the same
model, beside bench_throughput.py's `ours`.

    pip install --no-deps --target /tmp/distilabel distilabel==1.5.3 orjson portalocker \
        universal_pathlib pathlib_abc tblib nest_asyncio multiprocess
    PYTHONPATH=/tmp/distilabel:. python benchmarks/bench_distilabel.py --rows 200
    python benchmarks/bench_throughput.py --rows 200 --sides ours \
        --max-instruction 256 --max-answer 256

distilabel 1.5.3 does not run on a current vLLM as released. What had to be done, all of it here:
`SamplingParams` lost `logits_processors` (dropped from the call; Magpie passes none), and its step
is driven directly (load, process), because the pipeline around it ends the source only when the
rows are a multiple of the batch, and its vLLM unload touches an attribute that is gone; its device
placement, which wants NVML, is turned off. It samples instructions and answers with one set of
settings: give ours the same caps. Each of its batches (50 rows by default) ends with a barrier
after the instructions and another after the answers.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

from core.models import resolve, tokenizer
from synth.chat.pre_query import pre_query

MODEL = "embedded/SmolLM2-135M-Instruct"


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rows", type=int, default=200)
    options.add_argument("--batch", type=int, default=50)
    options.add_argument("--max-new-tokens", type=int, default=256)
    chosen = options.parse_args()
    for name, value in {
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }.items():
        os.environ.setdefault(name, value)
    import vllm
    from distilabel.models import vLLM
    from distilabel.steps.tasks import MagpieGenerator

    released = vllm.SamplingParams

    def current(*, logits_processors: Any = None, **given: Any) -> Any:
        assert not logits_processors
        return released(**given)

    path = resolve(MODEL).path
    made = tokenizer(path)
    template = pre_query(made, "default")
    task = MagpieGenerator(
        llm=vLLM(
            model=path,
            disable_cuda_device_placement=True,
            use_magpie_template=True,
            magpie_pre_query_template=template.text,
            tokenizer=path,
            extra_kwargs={
                "max_model_len": 2048,
                "max_num_seqs": 256,
                "enforce_eager": True,
                "disable_log_stats": True,
            },
            generation_kwargs={
                "temperature": 1.0,
                "max_new_tokens": chosen.max_new_tokens,
                "stop_token_ids": list(template.stop_token_ids),
            },
        ),
        n_turns=1,
        num_rows=chosen.rows,
        batch_size=chosen.batch,
    )
    task.load()
    vllm.SamplingParams = (
        current  # after the engine was imported: its own annotations need the class
    )
    rows: list[dict[str, Any]] = []
    started = time.perf_counter()
    for batch, last in task.process():
        rows += batch
        if last or len(rows) >= chosen.rows:
            break
    seconds = time.perf_counter() - started
    turns = [row[name] or "" for row in rows for name in ("instruction", "response")]
    tokens = sum(len(ids) + 1 for ids in made(turns, add_special_tokens=False)["input_ids"])
    print(
        f"distilabel: {len(rows)} rows, {tokens:,} tokens in {seconds:.1f} s: "
        f"{len(rows) / seconds:.3f} rows/s, {tokens / seconds:.1f} tokens/s"
    )


if __name__ == "__main__":
    main()
