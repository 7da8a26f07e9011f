"""Sections of the recipe that, except for the seed, do not change the result of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """The run itself."""

    dir: str = ""
    """The run folder. Running again with the same folder resumes the run."""
    name: str = ""
    """A name for displays and trackers; empty = the name of the run folder."""
    seed: int = 42
    """Random seed for the initial weights, data order, pairs, masks and dropout. Affects
    results."""
    deepspeed_config: str = ""
    """The DeepSpeed JSON for this recipe, used when --deepspeed_config is not given."""
    next_recipe: str = ""
    """The recipe of the next phase, if there is one. It is used only by the progress display, which
    then shows the time left for all phases. The next phase is started with its own command."""
    max_hours: float | None = None
    """Save and stop after this process has run for this number of hours, and exit with code 75 (run
    the same command again to resume)."""
    stop_margin_minutes: float = 3.0
    """Save and stop this many minutes before the end of a Slurm job (SLURM_JOB_END_TIME), or when
    90% of the job's time has passed, whichever is later."""
    compile: Literal["auto"] | bool = "auto"
    """How the layers are compiled. auto: on a GPU in bf16 or fp16, BERT's layers use fused Triton
    kernels; where those do not apply (float32, run.fp8, padded attention, the modern encoder), the
    layers use torch.compile unless run.cuda_graphs is set. With ZeRO stage 3 or on a CPU, neither
    is used. true: always torch.compile. It needs Triton on a GPU or a C++ compiler on a CPU, and is
    not available with ZeRO stage 3. Compilation takes 4 to 15 s on a GPU (measured, BERT-large) or
    about 1 minute on a CPU. false: neither fused kernels nor torch.compile."""
    cuda_graphs: bool = False
    """Record the encoder as a CUDA graph once per shape and replay it; requires a GPU and
    data.pack_tokens."""
    fp8: bool = False
    """Experimental: FP8 matrix products (torchao) in the encoder's linear layers during training.
    Requires `pip install 'bertds[fp8]'`, bf16 in the DeepSpeed JSON, a GPU of compute capability
    8.9 or higher, run.compile=auto or true, ZeRO stage 0 to 2, and data.pack_tokens set to a
    positive multiple of 16. Its speed has not been measured. Affects results slightly."""
    memory_limit_gib: float | None = None
    """Memory limit per process when train_micro_batch_size_per_gpu in the DeepSpeed JSON is "auto".
    null = 85% of the GPU's free memory or, on a CPU, of this process's share of the machine's free
    memory."""
    ignore_memory: bool = False
    """Train even if the memory forecast says that the run will not fit on this machine, or if the
    DeepSpeed JSON is meant for a GPU and there is none."""
    log_samples: bool = False
    """Record the samples of each step: write the epoch and index of each sample to
    samples_rank_R.jsonl."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogConfig:
    """How often metrics are written, and how progress is shown."""

    every_steps: int = 10
    """Write one training line to metrics.jsonl every N steps, and one after the last step."""
    progress: Literal["auto", "bar", "lines", "none"] = "auto"
    """auto = a progress bar on a terminal and plain lines elsewhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationConfig:
    """Scoring on held-out documents."""

    every_steps: int = 0
    """Validate every N steps and at the end; 0 = only at the end."""
    path: str = ""
    """Held-out data: a path or URL, as for data.path. Empty = the validation split of data.path, if
    it has one."""
    max_samples: int = 10_000
    """Maximum number of rows to score; 0 = all."""
    micro_batch_size: int = 0
    """Number of rows per forward pass; 0 = the same as in training."""
    stop_at_loss: float | None = None
    """End the run as soon as the validation masked-LM loss is at or below this value; null =
    never."""
    before_training: bool = False
    """Also validate once before the first step, so that the curves and the answers to the
    prompts start at chance level."""
    prompts: str = ""
    """A file of prompts to complete at each validation. Each line consists of a prompt containing
    one [MASK], then a tab, then the answer, which must be a single token. If no file is given, 5
    masked positions in the held-out text are used."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """How often checkpoints are saved, and which are kept."""

    every_steps: int = 0
    """Save every N steps, and always at the end; 0 = only at the end."""
    keep_last: int = 2
    """Number of most recent checkpoints to keep; 0 = keep all."""
    milestone_steps: int = 0
    """Also keep every checkpoint whose step is a multiple of this; 0 = none."""
    keep_best: bool = False
    """Also save and keep the checkpoint with the lowest masked-LM loss on held-out text."""
    background: bool = False
    """Copy the state and write it in a background thread while training continues. Needs memory for
    one extra copy of the state. If a write fails, the run ends with an error at the next save."""
    copy_to: str = ""
    """URL of a folder to which every checkpoint is uploaded in the background, manifest last. At
    start-up the run resumes from the newest intact checkpoint in the run folder or at this URL.
    keep_last, milestone_steps and keep_best apply there too. Empty = none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    """Trackers in addition to metrics.jsonl, which is always written."""

    wandb: Literal["off", "offline", "online"] = "off"
    """Weights & Biases; offline does not need an account. A resumed run continues its W&B run."""
    wandb_project: str = "bertds"
    """Project name in Weights & Biases."""
    tensorboard: bool = False
    """Write TensorBoard event files to tensorboard/ in the run folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NotifyConfig:
    """Notifications when a run is done, has stopped, has failed or shows health warnings."""

    command: str = ""
    """A shell command that is run once per event. Its environment contains BERTDS_EVENT (done,
    stopped, failed or warning; warning means a health warning), BERTDS_RUN, BERTDS_STEP and
    BERTDS_TEXT. The same values are passed as JSON on standard input."""
    webhook: str = ""
    """An http(s) URL to which each event is sent as JSON by POST, in a format that Slack and
    Discord can display. If empty, the URL is read from the environment variable BERTDS_WEBHOOK,
    which keeps it out of the run folder."""
