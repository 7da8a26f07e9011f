"""The whole road: prepare, train both phases, export, evaluate, and a closing table.

Every part continues where it was stopped and repeats nothing that is done:

```text
WORK/
  data/        token shards, manifest, tokenizer
  phase1/      run folder                phase2/   run folder
  model/       the Hugging Face folder   scores.json        report/index.html
```
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from bertds.commands.report import write_report
from bertds.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_RUN_AGAIN, BertdsError, DataError
from bertds.system.atomic_files import write_json
from bertds.system.json_fields import parse_json

ROOT = Path(__file__).resolve().parents[2]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="bertds pipeline",
        description="Prepare a corpus, pre-train both phases, export, evaluate. Run it again "
        "after a stop: it continues.",
    )
    parser.add_argument("--work", default="demo", metavar="DIR", help="where all goes (demo)")
    parser.add_argument("--wiki", nargs="+", default=[], metavar="DUMP", help="Wikipedia dumps")
    parser.add_argument("--books", nargs="+", default=[], metavar="DIR", help="folders of books")
    parser.add_argument("--vocab", metavar="FILE", help="a vocab.txt instead of training one")
    parser.add_argument("--train-vocab", type=int, default=2048, metavar="N", help="size (2048)")
    parser.add_argument("--validation-fraction", type=float, default=0.05, metavar="F",
                        help="share of documents held out (0.05)")  # fmt: skip
    recipes = ROOT / "bertds" / "recipes"
    parser.add_argument("--phase1", default=str(recipes / "tiny_cpu_phase1.yaml"), metavar="R.yaml")
    parser.add_argument("--phase2", default=str(recipes / "tiny_cpu_phase2.yaml"), metavar="R.yaml")
    parser.add_argument("--processes", type=int, default=0, metavar="N",
                        help="ranks on this machine (default: its GPUs, or 1 on CPU)")  # fmt: skip
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                        help="recipe overrides for both phases")  # fmt: skip
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Walk the road. Returns 0, or 75 when a part was stopped and can be continued."""
    args = parse_args(argv)
    work = Path(args.work)
    work.mkdir(parents=True, exist_ok=True)
    code = _prepare(args, work)
    for number, recipe in ((1, args.phase1), (2, args.phase2)):
        code = code or _train(args, work, number, recipe)
    if code:
        if code == EXIT_RUN_AGAIN:
            print("stopped, with everything saved: run the same command again", file=sys.stderr)
        return code
    _export(work)
    scores = _scores(work)
    _say("report")
    write_report([work / "phase1", work / "phase2"], work / "report")
    _closing(work, scores)
    return EXIT_OK


def _say(text: str) -> None:
    print(f"\n== {text}", file=sys.stderr, flush=True)


def _prepare(args: argparse.Namespace, work: Path) -> int:
    from bertds.pipeline import demo_corpus
    from data_prep import build_wiki_books
    from data_prep.earlier_run import OtherSettings

    _say("prepare the corpus")
    wiki = list(args.wiki)
    if not wiki and not args.books:
        wiki = [str(demo_corpus.fetch(work / "corpus"))]
    command = ["--out", str(work / "data"), "--validation-fraction", str(args.validation_fraction)]
    command += ["--wiki", *wiki] if wiki else []
    command += ["--books", *args.books] if args.books else []
    vocabulary = ["--vocab", args.vocab] if args.vocab else ["--train-vocab", str(args.train_vocab)]
    try:
        return build_wiki_books.main([*command, *vocabulary])
    except OtherSettings as error:
        hint = "choose another --work DIR (make run WORK=DIR)"
        raise DataError(f"{error.what}; {hint}") from error


def _processes(wanted: int) -> tuple[int, dict[str, str]]:
    """Return the number of ranks, and what they need in their environment."""
    import torch

    environment = dict(os.environ)
    gpus = torch.cuda.device_count()
    count = wanted or gpus or 1
    if not gpus:
        environment["DS_ACCELERATOR"] = "cpu"
        cores = len(os.sched_getaffinity(0))
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // count)))
        # Threads that wait in a loop bring a machine that has other work to do to a crawl.
        environment.setdefault("OMP_WAIT_POLICY", "passive")
    return count, environment


def _train(args: argparse.Namespace, work: Path, phase: int, recipe: str) -> int:
    from bertds.distributed.stop_requests import free_port

    run_dir = work / f"phase{phase}"
    _say(f"train phase {phase}")
    if (run_dir / "DONE").is_file():
        print(f"{run_dir}: done before", file=sys.stderr)
        return EXIT_OK
    count, environment = _processes(args.processes)
    settings = [f"run.dir={run_dir}", f"data.path={work / 'data'}", *args.set]
    if phase == 1:
        settings.append(f"run.next_recipe={args.phase2}")
    else:
        settings.append(f"init.from={work / 'phase1'}")
    launcher = Path(sys.executable).with_name("deepspeed")
    command = [
        sys.executable, str(launcher), "--log_level", "critical", "--num_accelerators", str(count),
        "--master_port", str(free_port()), str(ROOT / "bertds" / "train.py"),
        "--config", recipe, "--set", *settings,
    ]  # fmt: skip
    began = time.monotonic()
    # In a session of its own: see wait_for.
    code = wait_for(subprocess.Popen(command, env=environment, start_new_session=True), run_dir)
    if code == 0 and not (run_dir / "DONE").is_file():
        # `deepspeed` answers 0 when its own launcher was killed by a signal.
        code = EXIT_RUN_AGAIN
    if code == 0:
        print(f"phase {phase} took {time.monotonic() - began:.0f} s", file=sys.stderr)
    elif code not in (1, 2, EXIT_RUN_AGAIN, EXIT_INTERRUPTED):
        raise BertdsError(f"phase {phase} ended with exit code {code}; see {run_dir / 'log.txt'}")
    return code


def wait_for(launcher: subprocess.Popen[Any], run_dir: Path) -> int:
    """Wait until training ends; Ctrl-C, SIGTERM or a closed terminal lets it save and stop.

    A terminal's Ctrl-C would reach the launcher too, which then dies with a traceback and kills
    ranks that still save. So it has a session of its own, and the wish to stop goes to the ranks
    as the file ``STOP``.

    Returns:
        The launcher's exit code; 75 if it finished all the same; 130 after a second Ctrl-C, which
        kills all its processes.
    """
    stop_file = run_dir / "STOP"
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT in asked:
            os.killpg(launcher.pid, signal.SIGKILL)
        elif not asked:
            run_dir.mkdir(parents=True, exist_ok=True)
            stop_file.touch()
            with contextlib.suppress(OSError):  # the terminal may be the one that was closed
                _say("stopping, with everything saved (Ctrl-C again leaves at once)")
        asked.append(number)

    wishes = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in wishes}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # as under nohup
            signal.signal(number, ask)
    try:
        code = launcher.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if asked:
            stop_file.unlink(missing_ok=True)
    if asked.count(signal.SIGINT) > 1:
        return EXIT_INTERRUPTED
    return code or (EXIT_RUN_AGAIN if asked else EXIT_OK)


def _export(work: Path) -> None:
    from bertds.checkpoint.save import step_folders
    from bertds.pretrained.export import MARK, export

    _say("export")
    mark = work / "model" / MARK
    newest = step_folders(work / "phase2" / "checkpoints")[0]
    if mark.is_file() and parse_json(mark.read_text())["origin"] == newest.name:
        print(f"{mark.parent}: done before", file=sys.stderr)
        return
    print(f"wrote {export(work / 'phase2', work / 'model')}", file=sys.stderr)


def _scores(work: Path) -> dict[str, Any]:
    """Score both phases' last checkpoints on the held-out documents, once."""
    from bertds.commands.evaluate import evaluate
    from bertds.config.load import load_config
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


def _closing(work: Path, scores: dict[str, Any]) -> None:
    """Print the closing table, where everything lies, and what the model fills in."""
    from rich.console import Console
    from rich.table import Table

    from bertds.monitor.metrics import FILE
    from bertds.monitor.run_files import read_metrics

    console = Console(width=None if sys.stdout.isatty() else 100)
    table = Table(
        title="Scores on held-out documents (losses in nats; MLM masked LM, NSP next sentence)",
        title_justify="left",
    )
    for column in ("phase", "tokens", "MLM loss", "unigram entropy", "MLM accuracy",
                   "NSP accuracy", "tokens/s"):  # fmt: skip
        table.add_column(column, justify="right")
    for phase in ("phase1", "phase2"):
        values = scores[phase]
        speeds = sorted(
            line["tokens_per_second"] for line in read_metrics(work / phase / FILE).lines
            if "tokens_per_second" in line
        )  # fmt: skip
        table.add_row(
            phase[-1],
            str(values["sequence_length"]),
            f"{values['mlm_loss']:.3f}",
            f"{values['unigram_entropy']:.3f}",
            f"{values['mlm_accuracy']:.1%}",
            f"{values['nsp_accuracy']:.1%}" if "nsp_accuracy" in values else "-",
            f"{speeds[len(speeds) // 2]:,.0f}" if speeds else "-",
        )
    console.print(table)
    for name, what in (
        ("data", "token shards, tokenizer, manifest.json"),
        ("phase1", "run folder: metrics.jsonl, checkpoints, log.txt"),
        ("phase2", "run folder of phase 2"),
        ("model", "the Hugging Face folder, for BertForPreTraining.from_pretrained"),
        ("report", "index.html: curves, settings, commands; open it in a browser"),
    ):
        console.print(f"  {work / name!s:<24} {what}", highlight=False)
    console.print("\nWhat the model fills in:")
    for text, answers in fill_masks(work / "model"):
        console.print(f"  {text}\n      {answers}", highlight=False, markup=False)


EXAMPLES = (
    "the capital of the state is the [MASK] of new york .",
    "he was born in the united [MASK] of america .",
    "it is one of the most important works of the 19th [MASK] .",
)


def fill_masks(model: Path) -> list[tuple[str, str]]:
    """Return what the exported model puts in the place of [MASK] in three sentences."""
    import torch
    from transformers import AutoTokenizer, BertForMaskedLM, logging

    from bertds.pretrained.transformers_api import token_texts

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    bert = BertForMaskedLM.from_pretrained(model, trust_remote_code=False).eval()
    answers = []
    for text in EXAMPLES:
        inputs = tokenizer(text.replace("[MASK]", tokenizer.mask_token), return_tensors="pt")
        place = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero()[0, 0]
        with torch.inference_mode():
            shares = bert(**inputs).logits[0, place].softmax(-1)
        best = shares.topk(5)
        words = token_texts(tokenizer, best.indices.tolist())
        shown = ", ".join(f"{word} {share:.0%}" for word, share in zip(words, best.values.tolist()))
        answers.append((text, shown))
    return answers
