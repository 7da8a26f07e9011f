from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.fork_server import ForkServer

# Before torch is imported anywhere: one thread per process, so that tests are quick and
# repeatable on a small machine, and DeepSpeed does not go looking for an accelerator.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The clone that the tests stand in."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real corpora, tasks and weights; tests that need it are skipped without it."""
    folder = Path(os.environ.get("BERTDS_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "README.md").is_file():
        pytest.skip(f"no test data at {folder} (set BERTDS_TEST_DATA)")
    return folder


WORDS = [f"w{number:02d}" for number in range(60)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="session")
def tiny_vocab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocab.txt of the special tokens and 60 words."""
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join([*SPECIAL, *WORDS]) + "\n")
    return path


def tiny_documents(count: int, seed: int) -> list[list[list[str]]]:
    """Documents of sentences of words in which a word tells much about the one after it."""
    import random

    chance = random.Random(seed)
    documents = []
    for _ in range(count):
        sentences = []
        word = chance.randrange(60)
        for _ in range(chance.randint(4, 14)):
            sentence = []
            for _ in range(chance.randint(4, 12)):
                sentence.append(WORDS[word])
                word = (word + 1) % 60 if chance.random() < 0.9 else chance.randrange(60)
            sentences.append(sentence)
        documents.append(sentences)
    return documents


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training documents as plain text: a sentence a line, a blank line between documents."""
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    documents = tiny_documents(60, seed=0)
    path.write_text("\n".join("\n".join(map(" ".join, d)) + "\n" for d in documents))
    return path


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory, tiny_vocab: Path) -> Path:
    """A prepared folder: three training shards, one of validation, tokenizer, manifest."""
    import shutil

    import numpy as np

    from bertds.data.manifest import Manifest, SplitInfo
    from bertds.data.shards import shard_name, write_token_shard
    from bertds.data.vocabulary import load_tokenizer_info

    folder = tmp_path_factory.mktemp("prepared")
    (folder / "tokenizer").mkdir()
    shutil.copyfile(tiny_vocab, folder / "tokenizer" / "vocab.txt")
    tokenizer = load_tokenizer_info(folder / "tokenizer", True)
    ids = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}

    def write(split: str, number: int, documents: list[list[list[str]]]) -> object:
        (folder / split).mkdir(exist_ok=True)
        sentences = [[ids[word] for word in s] for d in documents for s in d]
        return write_token_shard(
            folder / split / shard_name(number),
            np.concatenate([np.array(s) for s in sentences]),
            np.concatenate([[0], np.cumsum([len(s) for s in sentences])]),
            np.concatenate([[0], np.cumsum([len(d) for d in documents])]),
            vocab_size=tokenizer.vocab_size,
            fingerprint=tokenizer.fingerprint,
        )

    train = tiny_documents(60, seed=0)
    shards = [write("train", i, train[a:b]) for i, (a, b) in enumerate([(0, 5), (5, 30), (30, 60)])]
    held_out = [write("validation", 0, tiny_documents(10, seed=1))]
    Manifest(
        tokenizer=tokenizer,
        splits={"train": SplitInfo(shards=tuple(shards)),  # type: ignore[arg-type]
                "validation": SplitInfo(shards=tuple(held_out))},  # type: ignore[arg-type]
        documents={"read": 70, "written": 70, "dropped": {}},
    ).save(folder)  # fmt: skip
    return folder


TINY_RECIPE = """
model:
  hidden_size: 32
  num_hidden_layers: 2
  num_attention_heads: 2
  intermediate_size: 64
  max_position_embeddings: 64
  hidden_dropout_prob: 0.0
  attention_probs_dropout_prob: 0.0
data:
  sequence_length: 32
  max_predictions_per_sequence: 5
schedule:
  total_steps: 6
  warmup_steps: 2
log:
  every_steps: 1
  progress: none
"""


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that trains in seconds."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(TINY_RECIPE)
    return path


@pytest.fixture(scope="session")
def tiny_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its DeepSpeed JSON: 12 rows a step, two to a micro batch."""
    path = tmp_path_factory.mktemp("json") / "tiny.json"
    path.write_text(
        '{"train_batch_size": 12, "train_micro_batch_size_per_gpu": 2, "gradient_clipping": 1.0,'
        '"optimizer": {"type": "AdamW", "params": {"lr": 5e-3, "weight_decay": 0.01}}}'
    )
    return path


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """Forks ranks of training runs from a process that has imported everything."""
    from tests.fork_server import ForkServer

    server = ForkServer()
    yield server
    server.close()


@pytest.fixture
def command(
    tiny_recipe: Path, tiny_json: Path, tiny_data: Path, tmp_path: Path
) -> Callable[..., list[str]]:
    """Build a training command for a run folder below tmp_path."""

    def build(run: str, *assignments: str, deepspeed: Path = tiny_json) -> list[str]:
        return [
            "--deepspeed", "--deepspeed_config", str(deepspeed), "--config", str(tiny_recipe),
            "--set", f"run.dir={tmp_path / run}", f"data.path={tiny_data}", *assignments,
        ]  # fmt: skip

    return build
