"""Writes the files of ``bertds init``: a recipe, its JSON, site.env, and a README of commands."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from bertds.display.words import in_words, short
from bertds.errors import BertdsError, ConfigError
from bertds.plan.propose import Proposal
from bertds.system.atomic_files import explain_os_error, write_text

FILES = ("recipe.yaml", "deepspeed.json", "site.env", "README.md")
PACKED = (".bz2", ".gz", ".xz", ".zst", ".7z", ".parquet")
BYTES_PER_TOKEN = 4.5
"""For English text with a WordPiece vocabulary of 30,000."""
UNPACKS_TO = 4
"""Typical size of the text in a compressed file, as a multiple of the file's size."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """The training text, as options of ``bertds prep``, and its approximate size."""

    options: dict[str, list[str]]
    """Source kind (``wiki``, ``books``, ``text`` ...) -> paths; for ``hf``: names."""

    @property
    def tokens(self) -> float:
        """Approximate number of tokens; a dataset of the Hub counts as Wikipedia and books."""
        if "hf" in self.options:
            return 4.3e9
        sizes = 0.0
        for file in _files(path for paths in self.options.values() for path in paths):
            sizes += file.stat().st_size * (UNPACKS_TO if file.suffix in PACKED else 1)
        return sizes / BYTES_PER_TOKEN

    @property
    def vocab_size(self) -> int:
        """Size of the largest vocabulary for which the corpus is large enough."""
        return 30_522 if self.tokens > 5e7 else 8192 if self.tokens > 5e6 else 2048

    @property
    def held_out(self) -> float:
        """Fraction of documents to hold out: small corpora need a larger one.

        It is 0 for fewer than 4 books, since preparation needs at least two documents for each of
        training and validation.
        """
        if set(self.options) == {"books"} and len(list(_files(self.options["books"]))) < 4:
            return 0.0
        return 0.005 if self.tokens > 5e7 else 0.05


def _files(paths: Iterable[str]) -> Iterable[Path]:
    for given in paths:
        path = Path(given)
        yield from (p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def guess_kind(given: str) -> str:
    """Return the source kind that a path appears to have.

    Raises:
        ConfigError: the path does not exist, or the folder is empty or of several kinds.
    """
    path = Path(given)
    if not path.exists():
        if given.count("/") <= 1 and not path.suffix and not given.startswith((".", "/", "~")):
            raise ConfigError(
                f"{given}: no such file or folder; for a dataset of the Hugging Face Hub use --hf "
                f"{given}"
            )
        raise ConfigError(f"{given}: no such file or folder")
    if path.is_dir():
        kinds = {guess_kind(str(p)) for p in _files([given]) if not p.name.startswith(".")}
        if not kinds:
            raise ConfigError(f"{given}: the folder is empty")
        if kinds == {"text"}:
            return "books"  # one document per file
        if len(kinds) > 1:
            listed = ", ".join(f"--{kind}" for kind in sorted(kinds))
            raise ConfigError(
                f"{given}: contains files of several kinds; specify them with {listed}"
            )
        return kinds.pop()
    name = path.name.lower()
    for packed in PACKED[:4]:
        name = name.removesuffix(packed)
    for ending, kind in ((".jsonl", "jsonl"), (".ndjson", "jsonl"), (".parquet", "parquet")):
        if name.endswith(ending):
            return kind
    is_wiki = ".xml" in name or "pages-articles" in name or name.startswith("wiki_")
    return "wiki" if is_wiki else "text"


def check_new(folder: Path) -> None:
    """Check that none of the files exists.

    Raises:
        ConfigError: one does; names it.
    """
    for name in FILES:
        if (folder / name).exists():
            raise ConfigError(
                f"{folder / name}: already exists; choose another folder, or remove the file"
            )


def write_project(
    folder: Path, proposal: Proposal, corpus: Corpus, *, nodes: int, devices: int, hours: float
) -> list[Path]:
    """Write the files.

    Args:
        folder: the project folder; it is made if it is missing.
        proposal: recipe and DeepSpeed JSON.
        corpus: the training text.
        nodes: number of machines.
        devices: number of GPUs of each, or of processes on a CPU.
        hours: training time.

    Raises:
        ConfigError: one of the files already exists; nothing was written.
    """
    check_new(folder)
    texts = {
        "recipe.yaml": _recipe(proposal, corpus, hours),
        "deepspeed.json": json.dumps(proposal.deepspeed, indent=2) + "\n",
        "site.env": _site(folder, devices, hours, proposal),
        "README.md": _readme(folder, proposal, corpus, nodes, devices),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_text(folder / name, text)
    except OSError as error:
        raise explain_os_error(error, folder) from error
    return [folder / name for name in FILES]


def expectations(proposal: Proposal, corpus: Corpus) -> list[str]:
    """Return the planner's expectations of a run on this corpus, one fact per line."""
    plan = proposal.plan
    too_few = "fewer than 4 books: no documents are held out, so the scores are for training text"
    return [
        f"model {proposal.size}: {short(proposal.parameters)} parameters ({proposal.why})",
        f"{plan.batch.world_size} x {plan.hardware.name}: about {plan.steps:,} steps of "
        f"{plan.batch.global_batch_size:,} rows at {plan.step.total:.2g} s per step, "
        f"{short(plan.tokens)} tokens in {in_words(plan.hours * 3600)}, start-up included",
        f"{plan.memory_gib:.2f} GiB of {plan.hardware.memory_gib:.1f} per device; "
        f"{plan.checkpoint_gib:.2f} GiB per checkpoint; speed {plan.hardware.efficiency_kind}",
        *([] if corpus.held_out else [too_few]),
    ]


def _recipe(proposal: Proposal, corpus: Corpus, hours: float) -> str:
    lines = [
        "# Written by bertds init. To explain a key: bertds config explain KEY",
        *(f"# {line}" for line in expectations(proposal, corpus)),
        f"# The run ends after {hours:g} hours of training, when the learning rate has reached 0.",
    ]
    return "\n".join(lines) + "\n" + yaml.safe_dump(proposal.recipe, sort_keys=False)


def _site(folder: Path, devices: int, hours: float, proposal: Proposal) -> str:
    whole = folder.resolve()
    # 10% and 15 minutes more, for start-up, validation and saving.
    minutes = round(hours * 60 * 1.1) + 15
    gpus = "" if proposal.plan.hardware.name == "cpu" else f"SBATCH_GPUS_PER_NODE={devices}\n"
    return (
        "# For a Slurm cluster: copy this file to slurm/site.env in a clone of bertds, then run\n"
        f"#   slurm/submit.sh --nodes=N slurm/phase1.sh     (more keys: slurm/site.env.example)\n"
        f"{gpus}"
        f"SBATCH_TIMELIMIT={minutes // 60}:{minutes % 60:02d}:00\n"
        f"BERTDS_DATA={shlex.quote(str(whole / 'data'))}\n"
        f"BERTDS_RUNS={shlex.quote(str(whole / 'runs'))}\n"
        f"BERTDS_PHASE1={shlex.quote(str(whole / 'recipe.yaml'))}\n"
    )


def prep_command(corpus: Corpus) -> list[str]:
    """Return the command that prepares the corpus, as words."""
    words = ["bertds", "prep"]
    for kind, paths in corpus.options.items():
        words += [
            f"--{kind}",
            *(paths if kind == "hf" else (str(Path(p).resolve()) for p in paths)),
        ]
    words += ["--train-vocab", str(corpus.vocab_size)]
    return [*words, "--validation-fraction", f"{corpus.held_out:g}", "--out", "data"]


def _readme(folder: Path, proposal: Proposal, corpus: Corpus, nodes: int, devices: int) -> str:
    name = proposal.plan.hardware.name
    train = ["bertds", "train", "--config", "recipe.yaml"]
    if devices > 1:
        train += ["--processes", str(devices)]
    several = (
        f"\nOn {nodes} machines: site.env is for Slurm; see docs/slurm.md of bertds.\n"
        if nodes > 1
        else ""
    )
    split = "" if corpus.held_out else " --split train"
    facts = "\n".join(f"- {line}" for line in expectations(proposal, corpus))
    return f"""# {folder.resolve().name}

{facts}

Five commands, in this folder:

```bash
{shlex.join(prep_command(corpus))}
{shlex.join(train)}
bertds export run --out model
bertds evaluate model --data data{split}
echo 'the capital of france is [MASK] .' | bertds predict --task fill-mask --model model
```
{several}
If the first or second command is stopped, run it again to resume. To follow the training from
another shell: `bertds status run`, `bertds report run --out report`.

After changing recipe.yaml or deepspeed.json, see what the run will need:
`bertds plan --config recipe.yaml --gpu {name} --nodes {nodes} --gpus {devices}`.
"""


def fetch_demo(folder: Path) -> Path:
    """Download the demo's excerpt of Wikipedia below a folder, and return its path.

    Raises:
        BertdsError: it cannot be downloaded.
    """
    from bertds.pipeline import demo_corpus

    try:
        return demo_corpus.fetch(folder / "corpus")
    except OSError as error:
        raise BertdsError(f"{folder}: {error}") from error
