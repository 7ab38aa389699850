"""Direct preference optimisation of one model on one set of pairs (arXiv 2305.18290); the one place
that builds a DPOTrainer.

    accelerate launch --use_deepspeed --num_processes 2 -m train.dpo OUT

OUT holds train.json (a `Job` of a `DpoConfig`) and receives what `train.sft` writes, by the same
steps: resuming, counting, what the log says and the export are that module's.

The reference is the model that the training starts from. Its log-probabilities are computed once,
before the first step (`precompute_ref_log_probs`, our default), and kept in scratch/, so no second
model lies in memory and a resumed run computes nothing anew. With an adapter the reference is the
model without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer

from train.config import Job
from train.data import pairs
from train.resuming.guarded import Guarded
from train.resuming.ranks import GPU
from train.settings.arguments import agreed, sft_arguments
from train.sft import Method, lora, run


class PairsTrainer(Guarded, DPOTrainer):  # type: ignore[misc]  # TRL has no types
    """DPOTrainer on pairs that are tokens already, guarded as the fine-tuning is."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        """Nothing to tokenise: `train.data.pairs` did, with control tokens in answers as text."""
        return dataset


def alignment(
    job: Job, out: Path, ledger: pairs.Ledger, tokenizer: PreTrainedTokenizerBase
) -> PairsTrainer:
    """TRL's DPOTrainer for this job."""
    # DPOConfig comes before the model, as SFTConfig does.
    given = sft_arguments(job, out, ledger["gradient_accumulation_steps"], gpu=GPU)
    args = agreed(DPOConfig(**given))
    return PairsTrainer(
        model=job.base,
        args=args,
        train_dataset=Dataset.from_file(str(out / "scratch" / "pairs.arrow")),
        processing_class=tokenizer,
        peft_config=lora(job),
    )


DPO = Method(pairs.prepare, pairs.prepared, alignment)

if __name__ == "__main__":
    run(DPO)
