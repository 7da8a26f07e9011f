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

# --------------------------------------------------------------------------------------------
# Settings that change the result
# --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Architecture, in transformers' names. The vocabulary size comes from the data."""

    style: Literal["bert", "modern"] = "bert"
    """bert is the original encoder; modern is ModernBERT's: LayerNorm first, rotary positions,
    gated feed-forward, no biases, local and global attention. modern has no next-sentence head,
    no segments and no position table."""
    hidden_size: int = 768
    """Width H of the hidden states."""
    num_hidden_layers: int = 12
    """Number of encoder layers L."""
    num_attention_heads: int = 12
    """Number of attention heads; must divide hidden_size."""
    intermediate_size: int = 3072
    """Width I of the feed-forward layer, 4 H in every published BERT; modern: of its gated half,
    1.5 H in ModernBERT-base."""
    max_position_embeddings: int = 512
    """Longest sequence that the model can ever read."""
    type_vocab_size: int = 2
    """Number of segment ids."""
    hidden_act: Literal["gelu", "gelu_new"] = "gelu"
    """gelu is the exact erf form; gelu_new is the tanh approximation (NVIDIA DLE, Google)."""
    hidden_dropout_prob: float = 0.1
    """Dropout on embeddings and on both outputs of a layer; modern: on embeddings and inside the
    feed-forward layer. ModernBERT's is 0."""
    attention_probs_dropout_prob: float = 0.1
    """Dropout on the attention probabilities; modern: on attention's output too."""
    local_attention: int = 128
    """modern: width of the window in local layers, in tokens: half to each side."""
    global_attn_every_n_layers: int = 3
    """modern: every Nth layer, from the first, attends to the whole row; 1 = all layers."""
    global_rope_theta: float = 160_000.0
    """modern: base of the rotary wavelengths in global layers; ModernBERT trains with 10000 up to
    1,024 tokens and goes on with 160000 up to 8,192."""
    local_rope_theta: float = 10_000.0
    """modern: base of the rotary wavelengths in local layers."""
    initializer_range: float = 0.02
    """Standard deviation of the truncated normal that weights start from."""
    layer_norm_eps: float = 1e-12
    """Epsilon in LayerNorm; ModernBERT's is 1e-5."""
    z_loss: float = 0.0
    """Weight of the z-loss (PaLM, arXiv:2204.02311): the mean squared logarithm of the softmax's
    normaliser joins the gradient, which keeps logits small; 0 = off, 1e-4 is usual. Reported losses
    stay the plain cross-entropy."""
    next_sentence: bool = True
    """Train the next-sentence head beside the masked-LM head; false = masked LM only."""
    activation_checkpointing: Literal["none", "full"] = "none"
    """full recomputes each layer in the backward pass: about 1/3 more time, far less memory."""
    attention_kernel: Literal["auto", "flash", "fa3", "fa4", "padded"] = "auto"
    """How attention is computed; changes the speed, not the result. flash is torch's
    FlashAttention 2; fa3 and fa4 need their package, their GPU and attention dropout 0; padded
    runs everywhere. auto on a GPU in bf16 or fp16: fa3 or fa4 where they can run, else flash; in
    float32 padded; on a CPU rows grouped by length."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """What is trained on, and how rows are made from it."""

    path: str = ""
    """The folder that data_prep wrote, a folder or file of NVIDIA HDF5, or a plain text file; or
    the URL of a folder that data_prep wrote (s3://, gs://, az://, hf://, https://, file://).
    Credentials come from the driver's own environment and files, never from here."""
    cache_gib: float = 64.0
    """With a URL: the most that shards in the cache of this machine take, in GiB. All processes of
    the machine share the cache; the least recently used are evicted. Two blocks of 2,000,000 rows
    should fit, about 1 GiB at 128 tokens per row. Changes the speed, not the result."""
    cache_dir: str = ""
    """Where the cache is, on a disk of the machine's own; empty = bertds-cache-UID in $TMPDIR."""
    fetch_timeout_minutes: float = 30.0
    """How long to wait for one file of a store that fails or hangs. Then the run saves and exits
    with 75 (run me again)."""
    vocab: str = ""
    """A vocab.txt or tokenizer.json, where the data brings none (NVIDIA HDF5, text); else empty."""
    lower_case: bool | None = None
    """Casing of `vocab`; null = what the data's own tokenizer says, else guessed from the
    vocabulary (no capitals: uncased)."""
    sequence_length: int = RowSettings.sequence_length
    """Longest row in tokens, [CLS] and [SEP] included."""
    max_predictions_per_sequence: int = RowSettings.max_predictions
    """At most so many masked positions a row."""
    masked_lm_prob: float = RowSettings.masked_lm_prob
    """Share of a row's tokens, special ones counted, that is masked."""
    masked_lm_prob_end: float | None = None
    """Share of masked tokens at the end: it moves from masked_lm_prob on a straight line over the
    steps (0.30 to 0.15, say). Held-out rows are masked with it throughout. null = no change."""
    masked_lm_prob_steps: int | None = None
    """Number of steps until masked_lm_prob_end is reached; null = schedule.total_steps."""
    short_seq_prob: float = RowSettings.short_seq_prob
    """Probability that a chunk of a document aims at a random shorter length."""
    whole_word_masking: bool = RowSettings.whole_word_masking
    """Mask all pieces of a word together."""
    ngram: int = RowSettings.ngram
    """Mask runs of up to so many whole words, a run of k with probability proportional to 1/k
    (ALBERT: 3); 1 = no runs."""
    rare_token_power: float = 0.0
    """Power a of the weight (1 / frequency) ** a of a masked token in the gradient, scaled to a
    mean of 1 over the training text: 0 weighs all masked tokens alike, 0.5 lets rare ones count
    more. Frequencies are those of the training split, which NVIDIA HDF5 does not tell. Reported
    losses stay the plain cross-entropy."""
    pairs: PairKind = RowSettings.pairs
    """nsp: true or random next segment; sop: in order or swapped; none: one segment."""
    verify: Literal["full", "size"] = "full"
    """full checks each shard's SHA-256 when it is first opened; size only looks at its length."""
    prefetch_steps: int = 2
    """Optimizer steps that the loader prepares ahead. Changes the speed, not the result."""
    balance: Literal["rows", "tokens"] = "rows"
    """tokens deals the rows of each global batch out to ranks and micro-batches so that all get
    nearly as many real tokens; rows takes them as they lie. Same samples in the same step."""
    pack_tokens: int = 0
    """Bring each micro-batch to this many tokens (or the next multiple) with fillers that no loss
    counts, so that shapes stay the same, for CUDA graphs; 0 = rows as long as they are."""

    @property
    def rows(self) -> RowSettings:
        """What the makers of rows are given.

        Raises:
            ImpossibleRows: a value is out of its range.
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
    """Number of steps and learning-rate shape. The peak learning rate is the JSON's."""

    total_steps: int = 1000
    """Optimizer updates in this run (this phase)."""
    warmup_steps: int | None = None
    """Updates until the peak; give this or warmup_ratio."""
    warmup_ratio: float | None = None
    """Warm-up as a share of the schedule's length (horizon_steps, or the clock budget)."""
    warmup_power: float = 1.0
    """Warm-up is (t / warmup) ** power: 1 linear, 2 quadratic (bing_bert)."""
    warmup_from: float = 0.0
    """Share of the peak at which warm-up starts."""
    decay: Literal["polynomial", "exponential", "cosine", "sqrt", "constant"] = "polynomial"
    """polynomial: (1 - t / T) ** power; exponential: decay_factor ** (t / decay_every_steps);
    cosine: (1 + cos(pi t / T)) / 2; sqrt: 1 - sqrt(t / T), ModernBERT's last phase."""
    decay_steps: int | None = None
    """Decay only over this many steps at the end of the schedule, with the learning rate constant
    before: a trapezoid (warm-up, stable, decay). null = decay from `decay_from` on."""
    decay_ratio: float | None = None
    """The same as a share of the schedule's length; give this or decay_steps."""
    power: float = 1.0
    """Degree of the polynomial decay: 1 linear, 0.5 NVIDIA DLE and NeMo's square root."""
    decay_from: Literal["start", "warmup_end"] = "start"
    """Where t of the decay counts from. start makes the curve jump down after warm-up, as the
    published LAMB recipes do; warmup_end joins it smoothly."""
    decay_factor: float = 0.9
    """Exponential decay: the factor per decay_every_steps."""
    decay_every_steps: int = 250
    """Exponential decay: the number of steps per decay_factor."""
    floor: float = 0.0
    """Share of the peak that decay ends at: f = floor + (1 - floor) * decay."""
    batch_from: int | None = None
    """Global batch of the first step. It must divide train_batch_size, to which the batch grows in
    equal parts over batch_ramp_steps. Accumulation is derived. null = train_batch_size always."""
    batch_ramp_steps: int = 0
    """Number of steps until the global batch is train_batch_size; needs batch_from."""
    ema_decay: float = 0.0
    """Decay per step of an exponential moving average of the weights, which joins every
    checkpoint; 0 = none, 0.999 is usual. The decay of step t is at most (1 + t) / (10 + t), so
    that the random start is forgotten. Validation, evaluate and export take the average; training
    goes on with the weights themselves. Costs 4 bytes per parameter, cut as ZeRO cuts the
    moments."""
    first_step: int = 0
    """Position on the schedule of this run's first step; Devlin's phase 2 continues at 900000."""
    horizon_steps: int | None = None
    """Length T of the schedule; null = first_step + total_steps."""
    clock_hours: float | None = None
    """If set, the schedule follows training time instead of steps: t / T = hours / clock_hours,
    and the run ends at clock_hours (or at total_steps, whichever is first)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InitConfig:
    """Where weights come from when the run starts for the first time."""

    from_: str = ""
    """A run, a checkpoint, a Hugging Face folder or a name of `bertds models`; empty = random
    weights."""
    optimizer_state: Literal["none", "moments", "all"] = "moments"
    """From a run or checkpoint: moments keeps both Adam moments and restarts the step counter
    (NVIDIA DLE's phase 2); all keeps the counter too (Devlin); none starts them at zero."""
    heads: Literal["require", "allow_missing"] = "require"
    """allow_missing starts absent pre-training heads at random (an encoder-only folder)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardConfig:
    """What happens when a batch's loss or gradient goes wrong.

    Non-finite ones never reach the weights in any case.
    """

    max_bad_steps: int = 10
    """Stop with an error after so many steps in a row were skipped (fp16 overflows while the
    loss scale is searched are not counted)."""
    spike_sigmas: float = 0.0
    """Skip a step whose gradient norm is over mean + so many standard deviations of the last
    `spike_window` steps; 0 = never."""
    spike_window: int = 200
    """Number of recent updates that the spike rule looks back on; it waits for 20 of them (or for
    a whole window, if that is shorter)."""
    peer_timeout_seconds: float = 45.0
    """A process that gives no sign of life for so long is lost, and the others end with an error
    that names it; 0 = do not watch. Changes nothing in the result."""
    progress_timeout_seconds: float = 60.0
    """A process that lives but makes no progress for this long, or for five times the run's usual
    step if that is longer, is lost too; 0 = only silence counts. Changes nothing in the result."""
    meeting_timeout_seconds: float = 600.0
    """So long the processes wait for each other at the start; then those that came end with an
    error that names the missing ones. Changes nothing in the result."""


# --------------------------------------------------------------------------------------------
# Settings that do not change the result (but for the seed)
# --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """The run itself."""

    dir: str = ""
    """The run folder. Running again with the same folder continues."""
    name: str = ""
    """A name for displays and trackers; empty = the run folder's own."""
    seed: int = 42
    """Seed of initial weights, order, pairs, masks and dropout. Changes the result."""
    deepspeed_config: str = ""
    """The DeepSpeed JSON that this recipe is meant for, used when none is given."""
    next_recipe: str = ""
    """The recipe of the phase that follows, if one does. Only for the progress display, which then
    says what is left of the whole plan; that phase is started by its own command."""
    max_hours: float | None = None
    """Stop after so many hours of this process, save, and exit with 75 (run me again)."""
    stop_margin_minutes: float = 3.0
    """Stop likewise when a Slurm job's end (SLURM_JOB_END_TIME) is so near, or when nine tenths
    of the job's time are over, whichever is later."""
    compile: Literal["auto"] | bool = "auto"
    """How the layers run. auto = on a GPU in bf16 or fp16, BERT layers as fused Triton kernels and
    others through torch.compile, unless ZeRO stage 3 or run.cuda_graphs rules that out; on a CPU,
    neither. true = torch.compile: needs Triton on a GPU and a C++ compiler on a CPU; not for ZeRO
    stage 3; takes 4 to 15 s on a GPU (measured, BERT-large), a minute on a CPU. false = neither."""
    cuda_graphs: bool = False
    """Record the encoder once per shape and replay it; needs a GPU and data.pack_tokens."""
    fp8: bool = False
    """Experimental: torchao's FP8 products in the encoder's linear layers while training. Needs
    `pip install 'bertds[fp8]'`, bf16 in the JSON, a GPU of compute capability 8.9 or higher,
    run.compile, ZeRO stage 0 to 2, and data.pack_tokens, a multiple of 16. Its speed has not been
    measured. Changes the result a little."""
    memory_limit_gib: float | None = None
    """What a process may use when the JSON's train_micro_batch_size_per_gpu is "auto"; null =
    85 % of the free memory of the GPU, or of this process's share of the machine's."""
    ignore_memory: bool = False
    """Train even where the forecast says that the run does not fit this machine."""
    log_samples: bool = False
    """Write the (epoch, sample) numbers of every step to samples_rank_R.jsonl."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LogConfig:
    """Cadence of the metrics."""

    every_steps: int = 10
    """One train line in metrics.jsonl per so many steps, and one after the last."""
    progress: Literal["auto", "bar", "lines", "none"] = "auto"
    """auto: a progress bar on a terminal, plain lines elsewhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationConfig:
    """Scoring on held-out documents."""

    every_steps: int = 0
    """Validate per so many steps and at the end; 0 = only at the end."""
    path: str = ""
    """Held-out data, a path or a URL as data.path; empty = the validation split beside data.path,
    where there is one."""
    max_samples: int = 10_000
    """Score at most so many rows; 0 = all."""
    micro_batch_size: int = 0
    """Rows per forward pass; 0 = the training micro batch."""
    stop_at_loss: float | None = None
    """End the run as soon as a validation's masked-LM loss is at most this; null = never."""
    before_training: bool = False
    """Validate once before the first step too, so that curves and prompts begin at chance."""
    prompts: str = ""
    """A file of prompts that are predicted at each validation: on each line a text with one
    [MASK], a tab, and the answer, a single token. Empty = five places of the held-out text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """Cadence and keeping of checkpoints."""

    every_steps: int = 0
    """Save per so many steps; a save at the end always happens. 0 = only at the end."""
    keep_last: int = 2
    """Keep the newest so many; 0 = keep all."""
    milestone_steps: int = 0
    """Keep every checkpoint whose step is a multiple of this; 0 = none."""
    keep_best: bool = False
    """Also save and keep the one with the lowest masked-LM validation loss."""
    background: bool = False
    """Copy the state and write it in a thread while training goes on; costs the memory of one
    copy. A failed write ends the run at the next save."""
    copy_to: str = ""
    """URL of a folder to which every saved checkpoint is uploaded while training goes on, its
    manifest last. A start takes the newest good checkpoint of the run folder and of there.
    keep_last and the other rules of keeping apply there too. Empty = none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    """Trackers beside metrics.jsonl, which is always written."""

    wandb: Literal["off", "offline", "online"] = "off"
    """Weights & Biases; offline needs no account. A resumed run continues the same W&B run."""
    wandb_project: str = "bertds"
    """Project name in Weights & Biases."""
    tensorboard: bool = False
    """Write TensorBoard event files to the run folder's tensorboard/."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NotifyConfig:
    """Who is told when a run is done, stopped, failed or looks ill."""

    command: str = ""
    """A shell command, run once per event with BERTDS_EVENT (done, stopped, failed, ill),
    BERTDS_RUN, BERTDS_STEP and BERTDS_TEXT in its environment and the same as JSON on its input."""
    webhook: str = ""
    """An address that gets the event as JSON by POST, in the form that Slack and Discord show;
    empty = the environment's BERTDS_WEBHOOK, which keeps the address out of the run folder."""


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


# --------------------------------------------------------------------------------------------
# Batch plan: the JSON's numbers in our own words
# --------------------------------------------------------------------------------------------
