"""``data.lower_case`` against the tokenizer's files: the export does what training did."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from bertds.config.recipe import Config, DataConfig
from bertds.config.run_settings import RunConfig
from bertds.data.loader import open_source
from bertds.data.vocabulary import load_tokenizer_info
from bertds.pretrained.export import export
from bertds.train import entry
from bertds.training.run_folder import RunFolder
from data_prep.stages.vocabulary import write_tokenizer_folder
from tests.data.test_tokenizer_folder import (
    CASES,
    TEXTS,
    TOKENS,
    in_transformers,
    roberta,
    trained_ids,
)


def test_a_run_folder_keeps_no_file_of_an_earlier_tokenizer(tmp_path: Path) -> None:
    """A start that ended before its first checkpoint may have had other data."""
    vocab = tmp_path / "vocab"
    write_tokenizer_folder(vocab, ("\n".join(TOKENS) + "\n").encode(), CASES[1])
    bpe = roberta(tmp_path / "bpe")
    (bpe / "special_tokens_map.json").write_text("{}")
    folder = RunFolder(Config(run=RunConfig(dir=str(tmp_path / "run"))), True)
    folder.path.mkdir()
    for given, names in (
        (load_tokenizer_info(vocab), ["tokenizer.json", "tokenizer_config.json", "vocab.txt"]),
        (load_tokenizer_info(bpe), ["tokenizer.json", "tokenizer_config.json"]),
        (
            load_tokenizer_info(vocab / "vocab.txt", False),
            ["tokenizer.json", "tokenizer_config.json", "vocab.txt"],
        ),
    ):
        folder.record({}, given, "cpu")
        kept = folder.path / "tokenizer"
        assert sorted(path.name for path in kept.iterdir()) == names
        assert load_tokenizer_info(kept) == given


def test_an_export_tokenizes_as_training_did(
    command: Callable[..., list[str]], tmp_path: Path
) -> None:
    vocab, text = tmp_path / "vocab", tmp_path / "corpus.txt"
    contents = ("\n".join(TOKENS) + "\n").encode()
    write_tokenizer_folder(vocab, contents, CASES[0])  # uncased
    text.write_text("\n\n".join(["\n".join(TEXTS)] * 12) + "\n", encoding="utf-8")
    given = [f"data.vocab={vocab}", "data.lower_case=false", "schedule.total_steps=1"]
    arguments = command("run", *given, "schedule.warmup_steps=0")
    (place,) = (n for n, word in enumerate(arguments) if word.startswith("data.path="))
    arguments[place] = f"data.path={text}"
    kept = tmp_path / "run" / "tokenizer"
    assert entry(arguments) == 0
    cased = load_tokenizer_info(vocab, lower_case=False)
    expected = trained_ids(cased)
    assert expected != trained_ids(load_tokenizer_info(vocab))
    source = open_source(DataConfig(path=str(text), vocab=str(vocab), lower_case=False), 1)
    assert source.tokenizer == cased == load_tokenizer_info(kept)
    assert in_transformers(export(tmp_path / "run", tmp_path / "out"), "bert") == expected
    # Run folders of earlier versions have the files unchanged.
    shutil.rmtree(kept)
    shutil.copytree(vocab, kept)
    assert in_transformers(export(tmp_path / "run", tmp_path / "old"), "bert") == expected
    assert load_tokenizer_info(tmp_path / "old") == cased
