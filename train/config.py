"""The training part of a recipe: what is fine-tuned, with which chat template, under which engine.
Imports pydantic only.

Settings of libraries are not mirrored here: `trainer` goes verbatim to `trl.SFTConfig`, `lora` to
`peft.LoraConfig`, `model_init` to `from_pretrained`, `deepspeed` to DeepSpeed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MOST_SEED = 2**32
"""Seeds that numpy's generator, which the trainer seeds, takes."""

SHIPPED_TEMPLATES = ("chatml", "gemma", "llama3", "smollm2")
"""Chat templates in `train/templates`: NAME_training.jinja (with generation markers) and NAME.jinja
(for inference)."""

OWNED = {
    "output_dir": "the harness keeps checkpoints in the result folder",
    "seed": "use train.seeds",
    "deepspeed": "use train.deepspeed or train.zero_stage",
    "chat_template_path": "use train.chat_template_path",
    "model_init_kwargs": "use train.model_init",
    "resume_from_checkpoint": "a run resumes from its newest complete checkpoint by itself",
    "use_cpu": "the CPU is used where there is no GPU",
}
"""Keys of SFTConfig that the harness sets itself, with what to write instead."""

DEFAULTS: dict[str, Any] = {
    "packing": True,
    "packing_strategy": "bfd_split",
    "assistant_only_loss": True,
    "logging_steps": 1,
    "logging_nan_inf_filter": False,
    "ddp_timeout": 3600,
    "save_steps": 0.25,
    "save_total_limit": 2,
    "report_to": "none",
}
"""Our defaults under `trainer:` where they differ from TRL's (packing `bfd` drops overflow; the
loss would cover the user's words; a loss that is not finite would be logged as 0; while one rank
writes a checkpoint the others wait, and in an hour it can write Llama-3-8B's 112 GB at 31 MB/s;
saving every 500 steps loses short runs; two checkpoints so that a complete one is left while the
next is written)."""


_OF_SFT = ("packing", "packing_strategy", "assistant_only_loss")
DPO_DEFAULTS = {name: value for name, value in DEFAULTS.items() if name not in _OF_SFT}
"""The same under `dpo.trainer:`, without what DPOConfig does not know."""


class TrainConfig(BaseModel):
    """How an arm's selection becomes a checkpoint: TRL's SFTTrainer under DeepSpeed, launched by
    Accelerate."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    base: str
    """Model that is fine-tuned: a folder, a hub id, or embedded/NAME."""

    revision: str | None = None
    """Hub revision of `base` (a commit, to be reproducible); None is the newest."""

    chat_template_path: str | None = None
    """Training chat template with {% generation %} markers: a shipped name (chatml, gemma, llama3,
    smollm2) or a Jinja file. None: the marked counterpart of the base tokenizer's own template,
    where one is known."""

    inference_template: str | None = None
    """Chat template the checkpoint is served with: a shipped name or a Jinja file. None: the
    counterpart of a shipped training template, else the base tokenizer's own. It must render the
    same token ids as the training template."""

    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    """One training for each seed (0 or more, none twice); a seed fixes the data order and the
    adapter's initial weights."""

    tokens_per_step: int | None = Field(None, ge=1)
    """Non-pad tokens in one optimizer step over all devices and accumulation;
    `gradient_accumulation_steps` follows from it."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO stage: 0 partitions nothing, 1 the optimizer state, 2 gradients too, 3 weights
    too."""

    offload: bool = False
    """Keep the partitioned optimizer state (at stage 3 the weights too) in CPU memory; needs
    zero_stage 2 or 3."""

    deepspeed: str | dict[str, Any] | None = None
    """A DeepSpeed configuration of your own, verbatim: a JSON file or the mapping itself. It
    replaces `zero_stage` and `offload`."""

    num_processes: int | None = Field(None, ge=1, le=100_000)
    """Processes over all machines, one a device. None: the GPUs of this machine times
    `num_machines`, or one process without a GPU."""

    num_machines: int = Field(1, ge=1, le=10_000)
    """Machines that train together; `magpie launch` writes the scripts that start them."""

    machine_rank: int | None = Field(None, ge=0)
    """Which of them this one is, for scripts that start each by itself; machine 0 prepares, the
    others wait for it. None: a Slurm allocation is started by srun."""

    main_process_ip: str | None = None
    """Address of machine 0, where the machines meet. None: the first node of the Slurm
    allocation."""

    main_process_port: int | None = Field(None, ge=1, le=65535)
    """Port of machine 0 for the rendezvous. None: a free port on one machine, 29500 on several."""

    trainer: dict[str, Any] = {}
    """Arguments of trl.SFTConfig, verbatim (num_train_epochs, learning_rate, max_length,
    per_device_train_batch_size, …)."""

    checkpointing: str | None = Field(None, pattern=r"^(full|none|every_[1-9]\d*_layers)$")
    """What the backward pass computes again to save memory: `full` every layer, `every_2_layers`
    every second one (or third, ...), `none` nothing. None: what `trainer` says, else full."""

    lora: dict[str, Any] | None = None
    """Arguments of peft.LoraConfig, verbatim; the adapter is merged on export. None: full
    fine-tuning."""

    model_init: dict[str, Any] = {}
    """Arguments of AutoModelForCausalLM.from_pretrained, verbatim (attn_implementation, dtype,
    …)."""

    validation: float = Field(0.0, ge=0, lt=1)
    """Share of the selection's rows (0 to 1) that is held out of training, the same rows for every
    seed; the loss on them is measured after the first step and after each epoch (the paper held out
    0.001). 0: every row is trained on."""

    export_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Number format of the exported checkpoint."""

    max_truncated_share: float = Field(0.01, ge=0, le=1)
    """Training stops before it starts when truncated and dropped tokens exceed this share of all
    tokens (a fraction, 0 to 1)."""

    spikes: Literal["warn", "skip", "stop"] = "warn"
    """What becomes of a step whose loss lies far above its running median: tell its rows, drop the
    step (weights and optimizer state stay as they were), or end the training. A gradient norm so
    far is told, or ends it; it is never dropped. What is not finite always ends a training."""

    spike_threshold: float = Field(10.0, gt=0)
    """How far is far: median absolute deviations over the last 100 steps."""

    grace: float = Field(300.0, ge=0)
    """Seconds that a training has to finish its step and to save, once it is asked to stop
    (SIGTERM, SIGUSR1, Ctrl-C, the end of a job); what has not ended then is killed. A checkpoint of
    an 8B model is 112 GB."""

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        for at, seed in enumerate(seeds):
            if not 0 <= seed < MOST_SEED:
                raise ValueError(f"a seed is a whole number from 0 to {MOST_SEED - 1}, not {seed}")
            if seed in seeds[:at]:
                raise ValueError(f"seed {seed} is there twice, which would be one training")
        return seeds

    @model_validator(mode="after")
    def _agree(self) -> TrainConfig:
        """Refuse settings that contradict each other."""
        if self.tokens_per_step is not None and "gradient_accumulation_steps" in self.trainer:
            raise ValueError(
                "tokens_per_step determines trainer.gradient_accumulation_steps; "
                "give one of the two"
            )
        if self.checkpointing is not None and "gradient_checkpointing" in self.trainer:
            raise ValueError(
                "checkpointing determines trainer.gradient_checkpointing; give one of the two"
            )
        if self.offload and self.zero_stage < 2:
            raise ValueError(
                f"offload moves partitioned state, which zero_stage {self.zero_stage} "
                "does not have here; use zero_stage 2 or 3"
            )
        if self.deepspeed is not None and (self.offload or self.zero_stage != 2):  # no defaults
            raise ValueError(
                "deepspeed is a whole configuration of its own; "
                "remove zero_stage and offload beside it"
            )
        if self.machine_rank is not None and self.machine_rank >= self.num_machines:
            raise ValueError(
                f"machine_rank is {self.machine_rank} of {self.num_machines} machine(s), "
                "which are counted from 0"
            )
        if self.num_machines > 1 and self.machine_rank is not None and not self.main_process_ip:
            raise ValueError(
                f"machine {self.machine_rank} of {self.num_machines} needs main_process_ip, "
                "the address of machine 0"
            )
        if self.num_processes is not None and self.num_processes % self.num_machines:
            raise ValueError(
                f"num_processes ({self.num_processes}, over all machines) "
                f"is not a multiple of num_machines ({self.num_machines})"
            )
        return self

    @property
    def block(self) -> str:
        """What a recipe calls the block of this training."""
        return "train"

    def trainer_arguments(self) -> dict[str, Any]:
        """`trainer` over our defaults, as it goes to SFTConfig (without what the launch adds)."""
        return {**DEFAULTS, **self.trainer, **self.recomputation()}

    def recomputation(self) -> dict[str, Any]:
        """What `checkpointing` is among the trainer's arguments; empty where it is not given."""
        if self.checkpointing is None:
            return {}
        if not self.checkpointing.startswith("every_"):
            return {"gradient_checkpointing": self.checkpointing == "full"}
        every = {"every_n_layers": int(self.checkpointing.split("_")[1])}
        own = self.trainer.get("gradient_checkpointing_kwargs") or {}
        return {
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {**own, **every},
        }

    def located(self) -> TrainConfig:
        """As it is, with the paths of files absolute: the processes that train have another working
        directory."""

        def absolute(path: str) -> str:
            return str(Path(path).expanduser().absolute())

        changes: dict[str, Any] = {}
        if isinstance(self.deepspeed, str):
            changes["deepspeed"] = absolute(self.deepspeed)
        for name in ("chat_template_path", "inference_template"):
            given = getattr(self, name)
            if given is not None and given not in SHIPPED_TEMPLATES:
                changes[name] = absolute(given)
        return self.model_copy(update=changes)

    @property
    def max_length(self) -> int | None:
        """Tokens of a sequence (TRL's 1024 where `trainer` is silent); None: no limit."""
        length: int | None = self.trainer.get("max_length", 1024)
        return length


class DpoConfig(TrainConfig):
    """How the checkpoint of an arm goes on with preference pairs (direct preference optimisation,
    arXiv 2305.18290): TRL's DPOTrainer, launched as the fine-tuning is. Settings that both have
    mean the same; `trainer` goes verbatim to trl.DPOConfig (beta, loss_type, max_length, ...)."""

    base: str = ""
    """Not for a recipe to say: the checkpoint that the arm's `dpo:` names."""

    method: Literal["dpo"] = "dpo"
    """Tells the two kinds of training apart."""

    pairs_per_step: int | None = Field(None, ge=1)
    """Pairs in one optimizer step over all devices and accumulation (the paper: 128);
    `gradient_accumulation_steps` follows from it."""

    @model_validator(mode="after")
    def _of_pairs(self) -> DpoConfig:
        """Refuse what is of fine-tuning alone."""
        if self.tokens_per_step is not None:
            raise ValueError("a step of DPO is counted in pairs: give pairs_per_step instead")
        if self.validation:
            raise ValueError("DPO keeps no pairs out of its training; leave `validation` out")
        if self.pairs_per_step is not None and "gradient_accumulation_steps" in self.trainer:
            raise ValueError(
                "pairs_per_step determines trainer.gradient_accumulation_steps; give one of the two"
            )
        return self

    @property
    def block(self) -> str:
        """What a recipe calls the block of this training."""
        return "dpo"

    def trainer_arguments(self) -> dict[str, Any]:
        """`trainer` over our defaults, as it goes to DPOConfig (without what the launch adds)."""
        syncs = bool(self.trainer.get("sync_ref_model"))  # then the reference does not stay
        return {
            **DPO_DEFAULTS,
            "precompute_ref_log_probs": not syncs,
            **self.trainer,
            **self.recomputation(),
        }


class Job(BaseModel):
    """One training as `train.json` holds it: what `python -m train.sft OUT` (or train.dpo)
    reads."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    config: TrainConfig | DpoConfig
    """The recipe's `train:` block, or its `dpo:` block."""

    base: str
    """The folder of `config.base`: its own, or the snapshot of its commit."""

    selection: str
    """The file that is trained on: selection.parquet, or the tokens that were made of it; of a DPO,
    the Parquet file of its pairs."""

    tokens: str | None = None
    """The folder of that selection's tokens, as `train.data.tokens.make` writes them; None: they
    are made below the training's own folder."""

    seed: int
    """Seed of this training: data order and the adapter's initial weights."""
