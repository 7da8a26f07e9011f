"""The stages of the pipeline around training."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertds.config.load import split_assignments
from bertds.config.recipe import Config
from bertds.data.formats.manifest import MANIFEST_NAME
from bertds.engine.ds_config import DeepSpeedSettings
from bertds.errors import BertdsError, ConfigError, DataError, one_line
from bertds.pipeline import demo_corpus, facts
from bertds.system.atomic_files import write_json
from bertds.system.json_fields import parse_json
from bertds.training.settings import read_settings

EXCERPT_VOCABULARY = 2048
"""Vocabulary size for a speedrun on the excerpt."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One training run of the pipeline."""

    run: Path
    recipe: str
    settings: list[str]
    """KEY=VALUE assignments for the recipe."""
    json: str | None = None
    """The DeepSpeed JSON; None = the one that the recipe names."""
    reserved: tuple[str, ...] = ("run.dir", "data.path", "init.from")
    """Keys of ``settings`` that ``overrides`` must not change: later stages rely on them."""

    def assignments(self, overrides: list[str]) -> list[str]:
        """Return this phase's KEY=VALUE assignments; ``overrides`` have precedence.

        Raises:
            ConfigError: they change a reserved key.
        """
        asked = split_assignments(overrides)
        for key in {one.partition("=")[0] for one in self.settings}.intersection(self.reserved):
            if key in asked:
                raise ConfigError(
                    f"--set {key}={asked[key]}: this command sets {key} itself; see its own "
                    "options in --help"
                )
        own = [one for one in self.settings if one.partition("=")[0] not in asked]
        return [*own, *overrides]

    def read(self, overrides: list[str]) -> tuple[Config, DeepSpeedSettings]:
        """Return the recipe and the DeepSpeed JSON of this phase."""
        return read_settings(self.recipe, self.json, self.assignments(overrides))


def work_folder(path: str) -> Path:
    """Return the path of ``--work``, which may not exist yet.

    Raises:
        ConfigError: it is a file.
    """
    if Path(path).exists() and not Path(path).is_dir():
        raise ConfigError(f"--work {path}: is a file; choose a folder")
    return Path(path)


def say(text: str) -> None:
    """Print the name of a stage."""
    print(f"\n== {one_line(text)}", file=sys.stderr, flush=True)


def own_phases(args: argparse.Namespace, work: Path) -> list[Phase]:
    """Return both phases on the prepared corpus."""
    first, second = args.phase1 or "tiny_cpu_phase1", args.phase2 or "tiny_cpu_phase2"
    runs, jsons = (work / "phase1", work / "phase2"), (args.phase1_json, args.phase2_json)
    common = f"data.path={work / 'data'}"
    begin = [f"run.next_recipe={second}", "validation.before_training=true"]
    return [
        Phase(runs[0], first, [f"run.dir={runs[0]}", common, *begin], jsons[0]),
        Phase(runs[1], second, [f"run.dir={runs[1]}", common, f"init.from={runs[0]}"], jsons[1]),
    ]


def facts_phase(work: Path) -> Phase:
    """Return the demo's only run, on the facts."""
    folder, run = work / "facts", work / "run"
    settings = [
        f"run.dir={run}",
        f"data.path={folder / 'data'}",
        f"data.vocab={folder / 'vocab.txt'}",
        f"validation.path={folder / 'held_out.txt'}",
        f"validation.prompts={folder / 'prompts.tsv'}",
    ]
    return Phase(run, "facts_cpu", settings)


def prepare(args: argparse.Namespace, work: Path) -> None:
    """Prepare the corpus.

    Raises:
        DataError: the folder was prepared with other settings.
    """
    from data_prep import prepare as preparation
    from data_prep.earlier_run import OtherSettings
    from data_prep.request import PrepRequest

    say("prepare the corpus")
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
        preparation.prepare(request)
    except OtherSettings as error:
        hint = "choose another folder with --work DIR (make run WORK=DIR)"
        raise DataError(f"{error.what}; {hint}") from error


def prepare_excerpt(work: Path) -> None:
    """Prepare the demo's excerpt of Wikipedia in ``work/data``, always in the same way.

    Raises:
        BertdsError: the excerpt cannot be downloaded.
    """
    from data_prep import prepare as preparation
    from data_prep.request import PrepRequest

    say("prepare the excerpt of Wikipedia")
    excerpt = str(demo_corpus.fetch(work / "corpus"))
    preparation.prepare(
        PrepRequest(
            out=work / "data",
            wiki=[excerpt],
            train_vocab=EXCERPT_VOCABULARY,
            validation_fraction=0.05,
        )
    )


def prepare_facts(work: Path) -> facts.Facts:
    """Write the demo's text and prepare it; unchanged files are kept.

    Raises:
        BertdsError: the table of facts cannot be downloaded, or another version of bertds made the
            demo in this folder.
    """
    from data_prep import prepare as preparation
    from data_prep.request import PrepRequest

    say("write the sentences about countries")
    folder = work / "facts"
    told = facts.tell(facts.fetch(folder))
    # Its model was trained on other sentences, so it cannot be continued or scored.
    if (folder / "data" / MANIFEST_NAME).is_file() and facts.differs(told, folder):
        raise BertdsError(
            f"{work}: another version of bertds made this demo; choose another folder with --work "
            "DIR (make run WORK=DIR)"
        )
    facts.write(told, folder)
    preparation.prepare(
        PrepRequest(
            out=folder / "data",
            text=[str(folder / "train.txt")],
            vocab=str(folder / "vocab.txt"),
            validation_fraction=0.0,
            workers=1,
        )
    )
    return told


def export_model(run: Path, model: Path) -> None:
    """Export the newest checkpoint of a finished run, unless this has been done."""
    from bertds.checkpoint.find import step_folders
    from bertds.pretrained.export import export
    from bertds.pretrained.output_folder import MARK

    say("export")
    mark = model / MARK
    newest = next(iter(step_folders(run / "checkpoints")), None)
    # A run that was removed and trained again has checkpoints with the same names.
    if (
        newest is not None
        and mark.is_file()
        and mark.stat().st_mtime_ns >= (run / "DONE").stat().st_mtime_ns
        and parse_json(mark.read_text())["origin"] == newest.name
    ):
        print(f"{model}: already done", file=sys.stderr)
        return
    print(f"wrote {export(run, model, overwrite=True)}", file=sys.stderr)


def score_phases(runs: list[Path], file: Path, told: facts.Facts | None) -> dict[str, Any]:
    """Score each run's last checkpoint on held-out text, and ask the last one questions, once.

    Args:
        runs: the run folders, in order.
        file: where the scores are stored.
        told: the demo's facts; None for the user's own corpus.

    Returns:
        Scores by name of the run folder, without runs that have no held-out text; ``prompts``, the
        questions and answers; and with facts ``questions``, the number of correct held-out
        sentences of each kind.
    """
    from bertds.config.load import load_config
    from bertds.pipeline.questions import ask_facts, ask_prompts, has_held_out, held_out_data
    from bertds.pretrained.evaluate import evaluate
    from bertds.pretrained.load import load_pretrained

    say("evaluate on held-out text")
    # Scores are valid while all runs are the same: DONE changes when a run is trained again.
    stamp = {run.name: (run / "DONE").stat().st_mtime_ns for run in runs}
    if file.is_file():
        before: dict[str, Any] = parse_json(file.read_text())
        if before.get("stamp") == stamp and "prompts" in before:
            print(f"{file}: already done", file=sys.stderr)
            return before
    result: dict[str, Any] = {"stamp": stamp}
    for run in runs:
        trained = load_pretrained(run)
        config = load_config(trained.manifest["recipe"])
        if not has_held_out(config):
            print(f"{run}: no held-out text to score", file=sys.stderr)
            continue
        scores = evaluate(trained, held_out_data(config), "validation", 32)
        result[run.name] = {"sequence_length": config.data.sequence_length, **scores}
    result["prompts"] = ask_prompts(runs[0], trained)
    if told is not None:
        result["questions"] = ask_facts(trained, told)
    write_json(file, result)
    return result
