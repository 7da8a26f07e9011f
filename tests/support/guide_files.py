"""The files that a reader of the guides would bring: small pieces of real ones, or made up."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from pathlib import Path
from typing import Any


def write_reader_files(root: Path, repository: Path, data: Path) -> None:
    """Write all of them.

    Args:
        root: where the commands are run.
        repository: the clone, for a file that a page prints.
        data: the folder of real corpora, tasks and weights.
    """
    corpora(root, data)
    vocabulary = data / "vocab/bert-base-uncased-vocab.txt"
    for name in ("vocab.txt", "bert-base-uncased-vocab.txt", "pubmed-vocab.txt"):
        shutil.copyfile(vocabulary, root / name)
    with (root / "pubmed-vocab.txt").open("a") as file:
        file.write("acetyltransferase\n")
    (root / "new_pieces.txt").write_text("acetyltransferase\n##ylation\n")
    bert(root / "M", vocabulary)
    bert(root / "encoder", vocabulary, "BertModel")
    (root / "RUN").symlink_to("M")
    (root / "all-MiniLM-L6-v2").symlink_to("encoder")
    tasks(root, data)
    minimal_pairs(root / "blimp/data")
    byte_level_bpe(root / "modernbert-base", root / "corpus.txt")
    # The file of own GPUs is the one that the page prints.
    page_text = (repository / "docs/planning.md").read_text(encoding="utf-8")
    (root / "mine.yaml").write_text(page_text.split("# mine.yaml\n")[1].split("```")[0])


def corpora(root: Path, data: Path) -> None:
    """Dumps, extracted articles, a dataset in the Hub's layout, books, abstracts, plain text."""
    dump = data / "wikipedia/enwiki-table-markup.xml.bz2"
    for name in (
        "dump",
        "enwiki",
        "enwiki-latest-pages-articles",
        "enwiki-latest-pages-articles-multistream",
    ):
        (root / f"{name}.xml.bz2").symlink_to(dump)
    book = next((data / "books").glob("84-*.txt")).read_text(encoding="utf-8-sig")
    for name in ("books", "gutenberg"):
        (root / name).mkdir()
        (root / name / "84-frankenstein.txt").write_text(book[:100_000])
    (root / "extracted/AA").mkdir(parents=True)
    articles = (data / "wikipedia/extracted-mlperf/wiki_00").read_text().split("</doc>")
    (root / "extracted/AA/wiki_00").write_text("</doc>".join([*articles[:8], "\n"]))
    for name in ("wikipedia", "wikimedia/wikipedia"):
        (root / name / "20231101.en").mkdir(parents=True)
        rows = [json.dumps({"text": article.partition(">")[2]}) for article in articles[8:16]]
        (root / name / "20231101.en/train.jsonl").write_text("\n".join(rows) + "\n")
    with gzip.open(data / "biomedical/bioasq6b/6B1_abstracts.json.gz", "rt") as file:
        abstracts = json.load(file)
    (root / "abstracts").mkdir()
    with gzip.open(root / "abstracts/a.json.gz", "wt") as file:
        json.dump(dict(list(abstracts.items())[:60]), file)
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    (root / "corpus.txt").write_text(
        "".join(
            f"{words[n % 8]} plus {words[n * 3 % 8]} makes a number {n}.\n" + "\n" * (n % 4 == 3)
            for n in range(200)
        )
    )


def byte_level_bpe(folder: Path, text: Path) -> None:
    """A tokenizer of ModernBERT's kind, trained on a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    built.train([str(text)], trainer)
    folder.mkdir()
    built.save(str(folder / "tokenizer.json"))


def minimal_pairs(folder: Path) -> None:
    """Two files in BLiMP's form."""
    folder.mkdir(parents=True)
    for paradigm in ("noun_agreement", "verb_agreement"):
        pair = {
            "sentence_good": "The cats sleep.",
            "sentence_bad": "The cats sleeps.",
            "field": "morphology",
            "linguistics_term": "agreement",
            "UID": paradigm,
        }
        (folder / f"{paradigm}.jsonl").write_text((json.dumps(pair) + "\n") * 3)


def bert(folder: Path, vocabulary: Path, kind: str = "BertForPreTraining") -> None:
    """A small random BERT, with its heads or without."""
    import torch
    import transformers
    from transformers import BertConfig

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    getattr(transformers, kind)(config).save_pretrained(folder)
    shutil.copyfile(vocabulary, folder / "vocab.txt")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )


def head(source: Path, target: Path, lines: int) -> None:
    """The first lines of a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(b"".join(source.read_bytes().splitlines(keepends=True)[:lines]))


def tasks(root: Path, data: Path) -> None:
    """Every task's files, small: the published ones cut short, the others in their layout."""
    for folder in ("CoLA", "SST-2", "MRPC"):
        for name in ("train", "dev", "test"):
            head(data / "glue" / folder / f"{name}.tsv", root / "GLUE" / folder / f"{name}.tsv", 24)
    made = {
        "STS-B": ("sentence1\tsentence2\tscore", ("2.5", "5.0"), ("train", "dev")),
        "QQP": ("question1\tquestion2\tis_duplicate", ("0", "1"), ("train", "dev")),
        "MNLI": (
            "sentence1\tsentence2\tgold_label",
            ("entailment", "neutral", "contradiction"),
            ("train", "dev_matched", "dev_mismatched"),
        ),
        "QNLI": ("question\tsentence\tlabel", ("entailment", "not_entailment"), ("train", "dev")),
        "RTE": ("sentence1\tsentence2\tlabel", ("entailment", "not_entailment"), ("train", "dev")),
        "WNLI": ("sentence1\tsentence2\tlabel", ("0", "1"), ("train", "dev")),
    }
    for folder, (header, labels, names) in made.items():
        (root / "GLUE" / folder).mkdir(parents=True)
        rows = [
            f"{n}\tthe cat {n} sat\tit sat on mat {n}\t{labels[n % len(labels)]}" for n in range(12)
        ]
        text = "\n".join([f"index\t{header}", *rows]) + "\n"
        for name in names:
            (root / "GLUE" / folder / f"{name}.tsv").write_text(text)
    for name in ("train", "testa", "testb"):
        source = data / "ner/conll2003" / f"eng.{name}"
        cut(source, root / "conll2003" / f"eng.{name}", 24)
    for name in ("train", "devel", "test"):
        for folder in ("NCBI-disease", "DIR"):
            cut(data / "ner/ncbi-disease" / f"{name}.tsv", root / folder / f"{name}.tsv", 40)
    (root / "squad").mkdir()
    for source, targets in (
        ("squadshifts-new_wiki_v1.0", ("train-v1.1.json",)),
        ("dev-v1.1", ("dev-v1.1.json",)),
        ("dev-v2.0-half", ("train-v2.0.json", "dev-v2.0.json")),
    ):
        with gzip.open(data / "squad" / f"{source}.json.gz", "rt") as file:
            values: dict[str, Any] = json.load(file)
        article = values["data"][0]
        small = {**values, "data": [{**article, "paragraphs": article["paragraphs"][:2]}]}
        for target in targets:
            (root / "squad" / target).write_text(json.dumps(small))
    shutil.copyfile(root / "squad/dev-v1.1.json", root / "dev-v1.1.json")
    for name in ("a", "b"):
        with (root / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(
                [("text", "label"), *((f"text {n}", n % 2) for n in range(12))]
            )
    (root / "texts.txt").write_text("the first text\nthe second one\n")
    (root / "sentences.txt").write_text("ann went to london .\n")


def cut(source: Path, target: Path, sentences: int) -> None:
    """The first sentences of a column file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    text = source.read_text(encoding="utf-8")
    target.write_text("\n\n".join(text.split("\n\n")[:sentences]) + "\n\n")
