"""The stages of the pipeline around training."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from bertds.errors import DataError
from bertds.system.atomic_files import write_json
from bertds.system.json_fields import parse_json


def _say(text: str) -> None:
    print(f"\n== {text}", file=sys.stderr, flush=True)


def _prepare(args: argparse.Namespace, work: Path) -> None:
    from bertds.pipeline import demo_corpus
    from data_prep.earlier_run import OtherSettings
    from data_prep.prepare import prepare
    from data_prep.request import PrepRequest

    _say("prepare the corpus")
    wiki = list(args.wiki)
    if not wiki and not args.books:
        wiki = [str(demo_corpus.fetch(work / "corpus"))]
    request = PrepRequest(
        out=work / "data",
        wiki=wiki,
        books=args.books,
        vocab=args.vocab,
        train_vocab=0 if args.vocab else args.train_vocab,
        validation_fraction=args.validation_fraction,
    )
    try:
        prepare(request)
    except OtherSettings as error:
        hint = "choose another --work DIR (make run WORK=DIR)"
        raise DataError(f"{error.what}; {hint}") from error


def _export(work: Path) -> None:
    from bertds.checkpoint.find import step_folders
    from bertds.pretrained.export import export
    from bertds.pretrained.output_folder import MARK

    _say("export")
    mark = work / "model" / MARK
    newest = step_folders(work / "phase2" / "checkpoints")[0]
    if mark.is_file() and parse_json(mark.read_text())["origin"] == newest.name:
        print(f"{mark.parent}: done before", file=sys.stderr)
        return
    print(f"wrote {export(work / 'phase2', work / 'model', overwrite=True)}", file=sys.stderr)


def _scores(work: Path) -> dict[str, Any]:
    """Score both phases' last checkpoints on the held-out documents, once."""
    from bertds.config.load import load_config
    from bertds.pretrained.evaluate import evaluate
    from bertds.pretrained.load import open_trained

    _say("evaluate on held-out documents")
    file = work / "scores.json"
    stamp = {phase: (work / phase / "DONE").stat().st_mtime_ns for phase in ("phase1", "phase2")}
    if file.is_file():
        before: dict[str, Any] = parse_json(file.read_text())
        if before.get("stamp") == stamp:
            print(f"{file}: done before", file=sys.stderr)
            return before
    result: dict[str, Any] = {"stamp": stamp}
    for phase in ("phase1", "phase2"):
        trained = open_trained(work / phase)
        data = load_config(trained.manifest["recipe"]).data
        result[phase] = {
            "sequence_length": data.sequence_length,
            **evaluate(trained, data, "validation", 32),
        }
    write_json(file, result)
    return result
