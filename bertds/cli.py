"""The console script ``bertds``, which runs the commands.

Each command has its own module in ``bertds/commands`` with ``main(argv) -> int``. The module is
imported only when the command is called, so that ``bertds --help`` is instant.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

from bertds import __version__
from bertds.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_OK
from bertds.system import early_stop
from bertds.system.run_command import end_process, guarded

COMMANDS = {
    "init": ("bertds.commands.init", "start a project: a recipe and the commands to run it"),
    "recipes": ("bertds.commands.recipes", "list, show and copy the included recipes"),
    "prep": ("data_prep.build_wiki_books", "turn a corpus into training shards"),
    "train": (
        "bertds.commands.train",
        "pre-train one phase (--processes N to use N GPUs)",
    ),
    "export": ("bertds.commands.export", "write a run as a Hugging Face folder"),
    "evaluate": (
        "bertds.commands.evaluate",
        "score a run or a Hugging Face folder on held-out text",
    ),
    "finetune": (
        "bertds.commands.finetune",
        "fine-tune and score on GLUE, NER, SQuAD or your own data",
    ),
    "predict": ("bertds.commands.predict", "fill masks, classify, tag, answer questions, embed"),
    "models": ("bertds.commands.models", "list the pre-trained models that can be used by name"),
    "convert": (
        "bertds.commands.convert",
        "convert a model to Hugging Face, NVIDIA DLE or ONNX format",
    ),
    "extend": ("bertds.commands.extend", "add the words of a domain to a model's vocabulary"),
    "pipeline": ("bertds.commands.pipeline", "prepare, train both phases, export and evaluate"),
    "ten-minutes": (
        "bertds.commands.ten_minutes",
        "train for 10 minutes on 10 M words, then score BLiMP and GLUE",
    ),
    "speedrun": (
        "bertds.commands.speedrun",
        "time training to a target held-out loss, and keep a table of records",
    ),
    "plan": (
        "bertds.commands.plan",
        "predict what a run will need: memory, time, energy, cost, disk",
    ),
    "status": (
        "bertds.commands.runs.status",
        "show the progress of runs, including ones still training",
    ),
    "watch": ("bertds.commands.runs.watch", "show a run's report live in a browser"),
    "report": (
        "bertds.commands.runs.report",
        "write an HTML report on one or more runs",
    ),
    "checkpoint": (
        "bertds.commands.runs.checkpoint",
        "list, verify and convert the checkpoints of a run",
    ),
    "inspect": (
        "bertds.commands.runs.inspect_rows",
        "print the training rows of a step, or samples by number",
    ),
    "config": ("bertds.commands.config", "show, explain, compare and check settings"),
    "doctor": (
        "bertds.commands.doctor",
        "check that this machine, or each node of a cluster, is fit to train",
    ),
}


def usage() -> str:
    """Return the help text."""
    lines = [f"  {name:<11} {about}" for name, (_, about) in COMMANDS.items()]
    return (
        "usage: bertds COMMAND [options]      (bertds COMMAND --help for its options)\n\n"
        "BERT pre-training from a raw corpus, at any scale, under DeepSpeed.\n\n"
        "commands:\n" + "\n".join(lines) + "\n\n"
        "exit codes: 0 done, 1 failed, 2 bad input, 75 stopped early with everything saved"
    )


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        code = guarded(lambda _: _print(usage()), [])
        return code if arguments else EXIT_BAD_INPUT
    if arguments[0] == "--version":
        return guarded(lambda _: _print(f"bertds {__version__}"), [])
    name = arguments[0]
    if name not in COMMANDS:
        from bertds.config.suggest import nearest

        print(
            f"bertds: error: unknown command {name!r}{nearest(name, COMMANDS)}; see bertds --help",
            file=sys.stderr,
        )
        return EXIT_BAD_INPUT
    code = guarded(_module_of(name).main, arguments[1:])
    if argv is None and code == EXIT_INTERRUPTED:
        end_process(code)
    return code


def _print(text: str) -> int:
    print(text)
    return EXIT_OK


def _module_of(name: str) -> ModuleType:
    """Import a command; Ctrl-C then ends the process, since libraries would report other errors."""
    module = COMMANDS[name][0]
    if module in sys.modules:
        return sys.modules[module]
    with early_stop.armed("the command"):
        return import_module(module)


if __name__ == "__main__":
    raise SystemExit(main())
