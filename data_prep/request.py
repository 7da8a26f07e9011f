"""``PrepRequest``: all parameters of a preparation.

```python
from data_prep.prepare import prepare
from data_prep.request import PrepRequest

manifest = prepare(PrepRequest(text=["corpus.txt"], train_vocab=8192, out="data"))
```

The command line (data_prep/option_parser.py) has an option for each field, with the defaults from
here. data_prep/resolve.py inspects the files and makes the settings that decide the output bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from bertds.config.row_settings import PAIRS, PairKind, RowSettings
from bertds.data.formats.nvidia_hdf5 import COMPRESSIONS
from bertds.errors import ConfigError
from data_prep.document import Limits
from data_prep.selection.filters import FilterSettings
from data_prep.selection.minhash import MinHashSettings
from data_prep.settings import DEDUP, PrepSettings
from data_prep.sources.text import LAYOUTS

Paths = Sequence[str | Path]

CHOICES: dict[str, Sequence[str]] = {
    "text_layout": LAYOUTS,
    "dedup": DEDUP,
    "compression": COMPRESSIONS,
    "pairs": PAIRS,
}
"""Fields that take one of a few words."""
REMOVED_OPTIONS = {
    "tokeniser": "nanotoken gained at most 2% in speed; omit it (the shards are the same)",
}
"""Fields of earlier versions, with the reason and the remedy for the error message."""


@dataclass(frozen=True, kw_only=True)
class PrepRequest:
    """What to prepare, from which sources, and with which resources.

    Raises:
        ConfigError: a field is missing or contradicts another one. Values that can only be checked
            with the files are checked by :func:`data_prep.resolve.resolve`.
    """

    out: str | Path
    """Folder of shards and manifest.json, or its URL in a store."""
    work_dir: str | Path | None = None
    """With a URL: the local folder to work in; None = one below the temporary folder."""

    # Sources, by kind: files or folders.
    wiki: Paths = ()
    """MediaWiki dumps, or articles that WikiExtractor wrote."""
    books: Paths = ()
    """Folders of books as plain text."""
    text: Paths = ()
    jsonl: Paths = ()
    parquet: Paths = ()
    pubmed: Paths = ()
    """BioASQ / PubMed JSON."""
    hf: Sequence[str] = ()
    """Hugging Face datasets: ``NAME`` or ``NAME:CONFIG``."""
    hf_split: str = "train"
    wiki_index: Paths = ()
    """Indexes of multistream dumps; those next to their dumps are found anyway."""
    wiki_templates: str | Path | None = None
    """YAML file of templates whose words are kept."""
    text_layout: str = "blank-line"
    """What separates the documents of ``text``: blank-line or line (see CHOICES)."""
    text_key: str = "text"
    """JSON key or column (Parquet, ``hf``) of the text."""
    licence: Sequence[str] = ()
    """``SOURCE=TEXT``: licences for the manifest."""
    max_document_mb: int = Limits().document_bytes >> 20
    max_unpack_ratio: int = Limits().unpack_ratio
    language: str = PrepSettings.language
    """Code of the language whose sentence rules are used."""

    # The vocabulary: one of the first two.
    vocab: str | Path | None = None
    """A vocab.txt, a tokenizer.json, or a folder that holds one."""
    train_vocab: int = PrepSettings.vocab_size
    """Number of tokens of a vocabulary to train; 0 = ``vocab`` is given."""
    lower_case: bool | None = None
    """None = as in the vocabulary."""
    keep_accents: bool = False
    vocab_sample_bytes: int = PrepSettings.vocab_sample_bytes
    """Bytes of text that ``train_vocab`` reads."""

    # Shards.
    validation_fraction: float = PrepSettings.validation_fraction
    seed: int = PrepSettings.seed
    shard_tokens: int = PrepSettings.shard_tokens
    min_tokens: int = PrepSettings.min_tokens
    overwrite: bool = False
    """Delete what was prepared in ``out`` with other settings."""

    # Which documents enter.
    dedup: str = PrepSettings.dedup
    """exact, minhash or none."""
    mix: str = ""
    """Weights of sources: ``wiki=1,books=2.5``."""
    decontaminate: Paths = ()
    """Test sets; documents that contain text of these are dropped."""
    quality: Sequence[str] = ()
    """Sets of rules in data_prep.selection.filters.QUALITY_RULES."""
    keep_language: Sequence[str] = ()
    """Language codes; documents in other languages are dropped."""
    min_words: int = FilterSettings.min_words
    max_words: int = FilterSettings.max_words
    """0 = no limit."""
    keep_dropped: bool = PrepSettings.keep_dropped
    """Write dropped documents to OUT/dropped."""
    language_score: float = FilterSettings.language_score
    """Minimum probability for ``keep_language``."""
    decontaminate_ngram: int = FilterSettings.test_ngram
    """Number of consecutive words that must agree with a test set."""
    minhash_bands: int = MinHashSettings.bands
    minhash_rows: int = MinHashSettings.rows
    minhash_ngram: int = MinHashSettings.ngram

    # NVIDIA's HDF5.
    instances: Sequence[str] = ()
    """``S:P``: also write rows of S tokens with P masks."""
    dupe_factor: int = PrepSettings.dupe_factor
    """Passes over the corpus, each with its own pairs and masks."""
    compression: str = PrepSettings.compression
    masked_lm_prob: float = RowSettings.masked_lm_prob
    short_seq_prob: float = RowSettings.short_seq_prob
    whole_word_masking: bool = RowSettings.whole_word_masking
    ngram: int = RowSettings.ngram
    """Longest run of words that are masked together."""
    pairs: PairKind = RowSettings.pairs
    """nsp, sop or none."""
    dataset_name: str = ""
    """Name of these files; empty = derived from the sources, as NVIDIA's readers expect it."""

    # Resources; they do not change the result.
    workers: int = 0
    """Number of processes; 0 = all cores."""
    task_count: int = 1
    """Number of tasks, on hosts that share ``out``, that prepare one corpus together."""
    task_index: int = 0
    """Index of this process's task, from 0."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            # A string is also a sequence: of its letters.
            if field.type in ("Paths", "Sequence[str]") and isinstance(value, str | Path):
                raise ConfigError(f"{field.name}={value!r}: expected a list: [{str(value)!r}]")
            # From a shell variable that is not set; as a path it would be the current folder.
            if field.type in ("Paths", "Sequence[str]") and "" in value:
                raise ConfigError(f"--{field.name.replace('_', '-')}: the value is empty")
        for name, allowed in CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                option = name.replace("_", "-")
                raise ConfigError(f"--{option} {value}: allowed: {', '.join(allowed)}")
        if bool(self.vocab) == bool(self.train_vocab):
            raise ConfigError("give either --vocab FILE or --train-vocab N")
        if self.workers < 0:
            raise ConfigError(f"--workers {self.workers}: allowed: 0 (all cores) or more")
        if self.task_count < 1:
            raise ConfigError(f"--task-count {self.task_count}: allowed: 1 or more")
        if not 0 <= self.task_index < self.task_count:
            raise ConfigError(
                f"--task-index {self.task_index}: allowed: 0 to {self.task_count - 1} "
                f"(--task-count {self.task_count})"
            )
