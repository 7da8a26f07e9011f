"""The recipe: every setting that the DeepSpeed JSON does not own, declared once.

A recipe is a YAML file with the sections below. Its values are read in this order, later ones
winning: the defaults here, ``--config FILE``, ``--set key=value``. An unknown key, a wrong type
or an impossible combination is an error that names the full key, what was found and what is
allowed. The DeepSpeed JSON owns the optimizer and its numbers (the peak learning rate included),
batch sizes, precision, ZeRO and clipping; see ``bertds/engine/ds_config.py``.

The text under each field is shown by ``bertds config explain KEY``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bertds.config.row_settings import PairKind, RowSettings
from bertds.config.run_settings import (
    CheckpointConfig,
    LogConfig,
    NotifyConfig,
    RunConfig,
    TrackingConfig,
    ValidationConfig,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Architecture, in transformers' names. The vocabulary size comes from the data."""

    style: Literal["bert", "modern"] = "bert"
    """bert is the original encoder; modern is ModernBERT's: pre-LayerNorm, rotary position
    embeddings, gated feed-forward, no biases, local and global attention. modern has no
    next-sentence head, no segment embeddings and no learned position embeddings."""
    hidden_size: int = 768
    """Width H of the hidden states."""
    num_hidden_layers: int = 12
    """Number of encoder layers L."""
    num_attention_heads: int = 12
    """Number of attention heads; must divide hidden_size."""
    intermediate_size: int = 3072
    """Width I of the feed-forward layer: 4 H in every published BERT. modern: width of the gated
    half, 1.5 H in ModernBERT-base."""
    max_position_embeddings: int = 512
    """Maximum sequence length that the model can read, in tokens."""
    type_vocab_size: int = 2
    """Number of segment ids."""
    hidden_act: Literal["gelu", "gelu_new"] = "gelu"
    """gelu is the exact erf form; gelu_new is the tanh approximation (NVIDIA DeepLearningExamples,
    Google)."""
    hidden_dropout_prob: float = 0.1
    """Dropout on the embeddings and on the outputs of both sublayers (attention and feed-forward)
    of each layer. modern: on the embeddings and inside the feed-forward layer; ModernBERT uses
    0."""
    attention_probs_dropout_prob: float = 0.1
    """Dropout on the attention probabilities. modern: also on the attention output."""
    local_attention: int = 128
    """modern: width of the attention window in local layers, in tokens; half on each side."""
    global_attn_every_n_layers: int = 3
    """modern: every Nth layer, starting with the first, attends to the whole row; 1 = all
    layers."""
    global_rope_theta: float = 160_000.0
    """modern: base (theta) of the rotary position embeddings in global layers. ModernBERT trains
    with 10000 for sequences of up to 1,024 tokens, then with 160000 for sequences of up to 8,192
    tokens."""
    local_rope_theta: float = 10_000.0
    """modern: base (theta) of the rotary position embeddings in local layers."""
    initializer_range: float = 0.02
    """Standard deviation of the truncated normal distribution of the initial weights."""
    layer_norm_eps: float = 1e-12
    """Epsilon in LayerNorm; ModernBERT uses 1e-5."""
    z_loss: float = 0.0
    """Weight of the z-loss (PaLM, arXiv:2204.02311), which keeps logits small by adding the mean
    squared log of the softmax normalizer to the training loss. 0 = off; 1e-4 is common. Reported
    losses remain the plain cross-entropy."""
    next_sentence: bool = True
    """Train the next-sentence head in addition to the masked-LM head; false = masked LM only."""
    activation_checkpointing: Literal["none", "full"] = "none"
    """full recomputes each layer in the backward pass, which takes about 33% more time and much
    less memory."""
    attention_kernel: Literal["auto", "flash", "fa3", "fa4", "padded"] = "auto"
    """How attention is computed. Affects speed, not results. flash is torch's FlashAttention 2. fa3
    and fa4 each require a separate package, a supported GPU and an attention dropout of 0. padded
    works on every device. auto in bf16 or fp16 on a GPU of compute capability 8.0 or higher: fa3 or
    fa4 if they can run, else the fused layers' own kernels for rows of up to 512 tokens and flash
    for longer ones. auto in float32 or on an older GPU: padded. auto on a CPU: rows are grouped by
    length."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """The training data, and how rows are made from it."""

    path: str = ""
    """A folder written by data_prep, an NVIDIA HDF5 file or a folder of such files, a plain text
    file, or the URL of a folder written by data_prep (s3://, gs://, az://, hf://, https://,
    file://). Credentials are read from the storage driver's own environment variables and files,
    never from a recipe."""
    cache_gib: float = 64.0
    """With a URL: maximum size of this machine's shard cache, in GiB. All processes on the machine
    share the cache, and the least recently used shards are evicted. It should have room for at
    least 4,000,000 rows (about 1 GiB at 128 tokens per row). Affects speed, not results."""
    cache_dir: str = ""
    """Folder for the shard cache, on one of the machine's local disks; empty =
    $TMPDIR/bertds-cache-UID."""
    fetch_timeout_minutes: float = 30.0
    """How long to wait for one file from a store that fails or hangs. After that the run saves and
    exits with code 75 (run the same command again to resume)."""
    vocab: str = ""
    """A vocab.txt or tokenizer.json, for data that does not include one (NVIDIA HDF5, plain text);
    otherwise empty."""
    lower_case: bool | None = None
    """Whether `vocab` is uncased (true) or cased (false), even if its files state the opposite.
    null = use the setting of the data's own tokenizer or, if there is none, infer it from the
    vocabulary (no capitals = uncased)."""
    sequence_length: int = RowSettings.sequence_length
    """Maximum row length in tokens, including [CLS] and [SEP]."""
    max_predictions_per_sequence: int = RowSettings.max_predictions
    """Maximum number of masked positions per row."""
    masked_lm_prob: float = RowSettings.masked_lm_prob
    """Fraction of a row's tokens that are masked. Special tokens are counted but never masked."""
    masked_lm_prob_end: float | None = None
    """Final fraction of masked tokens. The fraction changes linearly from masked_lm_prob to this
    value (for example from 0.30 to 0.15). Held-out rows always use this value. null = no change."""
    masked_lm_prob_steps: int | None = None
    """Number of steps after which masked_lm_prob_end is reached; null = schedule.total_steps."""
    short_seq_prob: float = RowSettings.short_seq_prob
    """Probability that a row is given a random target length shorter than sequence_length."""
    whole_word_masking: bool = RowSettings.whole_word_masking
    """Mask all pieces of a word together."""
    ngram: int = RowSettings.ngram
    """Maximum number of consecutive whole words that are masked together: 3 in ALBERT; 1 = no
    multi-word spans. A span of k words is chosen with probability proportional to 1/k."""
    rare_token_power: float = 0.0
    """Each masked token is weighted by (1 / frequency) ** a in the gradient; this key is the
    exponent a. Weights are scaled to a mean of 1 over the training text. With a = 0, all masked
    tokens have equal weight; with a = 0.5, rare ones have more. Frequencies are counted when the
    training split is prepared. NVIDIA HDF5 files do not contain them, so such files are refused
    unless this key is 0. Reported losses remain the plain cross-entropy."""
    pairs: PairKind = RowSettings.pairs
    """nsp = the second segment is the true next one or a random one; sop = two segments in order or
    swapped; none = a single segment."""
    verify: Literal["full", "size"] = "full"
    """full: check the SHA-256 of each shard when it is first opened. size: check only its size."""
    prefetch_steps: int = 2
    """Number of optimizer steps that the loader prepares in advance. Affects speed, not results."""
    balance: Literal["rows", "tokens"] = "rows"
    """tokens: distribute the rows of each global batch over ranks and micro batches so that all get
    nearly the same number of real tokens. rows: take the rows in order. Every step has the same
    samples either way."""
    pack_tokens: int = 0
    """Pad each micro batch to this number of tokens, or to the next multiple of it, so that shapes
    stay constant for CUDA graphs. Padding tokens are not part of any loss. 0 = no padding."""

    @property
    def rows(self) -> RowSettings:
        """The settings of rows.

        Raises:
            ImpossibleRows: a value is out of range.
        """
        return RowSettings(
            sequence_length=self.sequence_length,
            max_predictions=self.max_predictions_per_sequence,
            masked_lm_prob=self.masked_lm_prob,
            short_seq_prob=self.short_seq_prob,
            whole_word_masking=self.whole_word_masking,
            ngram=self.ngram,
            pairs=self.pairs,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """Number of steps and shape of the learning rate. The peak is set in the DeepSpeed JSON."""

    total_steps: int = 1000
    """Number of steps in this run (this phase), including skipped ones."""
    warmup_steps: int | None = None
    """Number of steps until the peak learning rate; set either this or warmup_ratio."""
    warmup_ratio: float | None = None
    """Warm-up as a fraction of the schedule's length (horizon_steps or clock_hours)."""
    warmup_power: float = 1.0
    """Exponent of the warm-up, ((t + 1) / W) ** warmup_power, where W is the number of warm-up
    steps. 1 = linear; 2 = quadratic, as in bing_bert."""
    warmup_from: float = 0.0
    """Fraction of the peak learning rate at which warm-up starts."""
    decay: Literal["polynomial", "exponential", "cosine", "sqrt", "constant"] = "polynomial"
    """polynomial: (1 - t / T) ** power; exponential: decay_factor ** (t / decay_every_steps);
    cosine: (1 + cos(pi t / T)) / 2; sqrt: 1 - sqrt(t / T), as in ModernBERT's last phase. t is
    counted from the point set by decay_steps or decay_from, and T is the value of t at the end of
    the schedule."""
    decay_steps: int | None = None
    """Number of steps at the end of the schedule over which the learning rate decays. The learning
    rate is constant between warm-up and decay (warm-up, stable, decay). null = no constant part:
    the decay begins when warm-up ends, with t as set by `decay_from`."""
    decay_ratio: float | None = None
    """decay_steps as a fraction of the schedule's length; set either this or decay_steps."""
    power: float = 1.0
    """Degree of the polynomial decay: 1 = linear, 0.5 = square root (NVIDIA DeepLearningExamples
    and NeMo)."""
    decay_from: Literal["start", "warmup_end"] = "start"
    """The point at which t = 0 in the decay formula. start: the start of the schedule, so the
    learning rate drops abruptly after warm-up, as in the published LAMB recipes. warmup_end: the
    end of warm-up, so that the learning rate is continuous."""
    decay_factor: float = 0.9
    """Exponential decay: factor by which the learning rate is multiplied over decay_every_steps
    steps."""
    decay_every_steps: int = 250
    """Exponential decay: number of steps that the learning rate takes to fall, smoothly, to
    decay_factor times its value."""
    floor: float = 0.0
    """Fraction of the peak learning rate at which decay ends. During decay, the peak is multiplied
    by floor + (1 - floor) * d, where d is the value of the formula chosen by schedule.decay."""
    batch_from: int | None = None
    """Global batch size of the first step; must divide train_batch_size. The batch grows to
    train_batch_size in equal increments over batch_ramp_steps, and the number of gradient
    accumulation steps grows with it. null = train_batch_size from the start."""
    batch_ramp_steps: int = 0
    """Number of steps until the global batch reaches train_batch_size; requires batch_from."""
    ema_decay: float = 0.0
    """Decay per step of an exponential moving average of the weights, which is saved in every
    checkpoint. 0 = none; 0.999 is common. The decay at step t is at most (1 + t) / (10 + t), so
    that the random initial weights do not dominate. Validation, `bertds evaluate` and `bertds
    export` use the average; training continues with the weights themselves. Takes 4 bytes per
    parameter, partitioned like the moments under ZeRO."""
    first_step: int = 0
    """Position of this run's first step on the schedule; Devlin's phase 2 starts at 900000."""
    horizon_steps: int | None = None
    """Length of the schedule; null = first_step + total_steps."""
    clock_hours: float | None = None
    """If set, the schedule follows training time instead of steps: t / T = hours / clock_hours. The
    run ends at clock_hours or at total_steps, whichever comes first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InitConfig:
    """The initial weights, used when the run starts for the first time."""

    from_: str = ""
    """A run folder, a checkpoint, a Hugging Face folder or a name listed by `bertds models`;
    empty = random weights."""
    optimizer_state: Literal["none", "moments", "all"] = "moments"
    """What to take from the optimizer state of a run or checkpoint. moments: keep both Adam moments
    and restart the step counter (phase 2 of NVIDIA DeepLearningExamples). all: also keep the
    counter (Devlin). none: start with zero moments, which is required after Muon if this run uses
    another optimizer."""
    heads: Literal["require", "allow_missing"] = "require"
    """allow_missing: initialize missing pre-training heads at random, for a folder that has only
    the encoder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardConfig:
    """What to do about bad losses and gradients, and about lost processes.

    Non-finite gradients never reach the weights, whatever is set here.
    """

    max_bad_steps: int = 10
    """Maximum number of consecutive skipped steps before the run stops with an error. fp16
    overflows during the search for the loss scale are not counted."""
    spike_sigmas: float = 0.0
    """Skip a step whose gradient norm exceeds the mean norm of the last `spike_window` updates by
    more than this number of standard deviations; 0 = never."""
    spike_window: int = 200
    """Number of recent updates from which the mean and standard deviation for spike_sigmas are
    computed. The rule takes effect after 20 updates, or after one full window if that is
    shorter."""
    peer_timeout_seconds: float = 45.0
    """A process that sends no heartbeat for this long is considered lost; the others stop with an
    error that names it. 0 = off. Does not affect results."""
    progress_timeout_seconds: float = 60.0
    """A process that is alive but makes no progress for this long, or for 5 times the run's usual
    step time if that is longer, is also considered lost. 0 = off. Does not affect results."""
    meeting_timeout_seconds: float = 600.0
    """How long to wait for all processes at start-up before failing and naming the missing ranks.
    Does not affect results."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """A whole recipe."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    init: InitConfig = field(default_factory=InitConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    log: LogConfig = field(default_factory=LogConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    notify: NotifyConfig = field(default_factory=NotifyConfig)
