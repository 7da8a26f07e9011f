from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest

from bertds.errors import ConfigError, DataError
from data_prep.build_wiki_books import main
from data_prep.option_parser import option_parser
from data_prep.options import parse_args
from data_prep.prepare import forecast, prepare
from data_prep.request import CHOICES, REMOVED_OPTIONS, PrepRequest


def test_a_function_call_writes_what_the_command_writes(
    wiki_dump: Path, vocab: Path, tmp_path: Path, made: SimpleNamespace
) -> None:
    request = PrepRequest(
        out=tmp_path / "call",
        wiki=[wiki_dump],
        vocab=vocab,
        validation_fraction=0.1,
        instances=["64:10"],
        dupe_factor=1,
        workers=1,
    )
    assert forecast(request).documents["wiki"] > 0
    assert not (tmp_path / "call").exists()
    manifest = prepare(request)
    command = ["--out", str(tmp_path / "command"), "--wiki", str(wiki_dump), "--vocab", str(vocab)]
    command += ["--validation-fraction", "0.1", "--instances", "64:10", "--dupe-factor", "1"]
    assert main([*command, "--workers", "1"]) == 0
    assert made.tree(tmp_path / "call") == made.tree(tmp_path / "command")
    assert sum(s.documents for s in manifest.splits["train"].shards) > 40
    # A finished folder answers with the same manifest.
    assert prepare(request) == manifest
    with pytest.raises(DataError, match="seed: 12345 before, 1 now"):
        prepare(PrepRequest(**{**vars(request), "seed": 1}))


def test_each_field_has_an_option_and_the_help_names_its_default() -> None:
    actions = {action.dest: action for action in option_parser(full=True)._actions}
    wanted = {field.name: field.default for field in fields(PrepRequest)}
    extra = {"executor", "dry_run", "debug", "help", "help_all", *REMOVED_OPTIONS}
    assert actions.keys() - extra == wanted.keys()
    for name, default in wanted.items():
        given = re.search(r"\(([\w.-]+)\)$", actions[name].help or "")
        if given and name not in ("dedup", "workers", "task_index"):  # these explain other things
            assert given[1] == str(default), name


def test_an_option_that_is_not_given_keeps_the_default() -> None:
    command = parse_args(["--text", "a", "b", "--text", "c", "--vocab", "v", "--out", "o"])
    request = PrepRequest(text=["a", "b", "c"], vocab="v", out="o")
    assert command == (request, "local", False)
    cased = parse_args(["--text", "a", "--vocab", "v", "--out", "o", "--cased", "--ngram", "3"])
    assert (cased.request.lower_case, cased.request.ngram) == (False, 3)


@pytest.mark.parametrize("given", ["--tokeniser nanotoken", "--tokeniser=cache", "--tokeniser"])
def test_a_removed_option_is_refused_with_the_reason_and_what_to_do(given: str) -> None:
    with pytest.raises(ConfigError, match=r"^--tokeniser was removed: .*2% in speed; omit it"):
        parse_args(f"--text a --vocab v --out o {given}".split())
    assert "tokeniser" not in option_parser(full=True).format_help()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text": "corpus.txt"}, r"text='corpus.txt': expected a list: \['corpus.txt'\]"),
        ({"wiki": Path("dump.xml")}, r"expected a list: \['dump.xml'\]"),
        ({"vocab": None}, "give either --vocab FILE or --train-vocab N"),
        ({"train_vocab": 8192}, "give either --vocab FILE or --train-vocab N"),
        ({"workers": -1}, "--workers -1: allowed: 0"),
        *(({name: "other"}, f"--{name.replace('_', '-')} other: allowed: ") for name in CHOICES),
    ],
)
def test_an_impossible_request_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PrepRequest(**{"out": "data", "vocab": "vocab.txt", **given})
