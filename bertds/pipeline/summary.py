"""The summary that the pipeline prints at its end."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertds.display.words import shell_word
from bertds.monitor.health import UNIGRAM_MARGIN

if TYPE_CHECKING:
    from rich.console import Console

REAL_RECIPES = ("large_phase1", "large_phase2")
REAL_GPU = "h100"


def close(work: Path, runs: list[Path], scores: dict[str, Any]) -> None:
    """Print scores, questions and answers, where the results are, and what to do next."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 110)
    _print_scores(console, runs, scores)
    for name, what in _places(work, runs):
        console.print(f"  {work / name!s:<24} {what}", highlight=False)
    _print_prompts(console, scores["prompts"])
    console.print()
    for sentence in verdict(scores, runs[-1].name):
        console.print(sentence, highlight=False, markup=False)
    console.print(real_run(), highlight=False, markup=False)
    # A relative path is shorter, and works if the command is copied.
    path = Path(sys.executable).with_name("bertds")
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    program = shell_word(path)
    question = next((p["text"] for p in scores["prompts"]), "the capital of france is [MASK] .")
    console.print("Next: try a sentence of your own, or train on your own text:")
    asked = shlex.quote(question)
    for command in (
        f"  {program} predict --task fill-mask --model {shell_word(work / 'model')} <<< {asked}",
        f"  {program} pipeline --wiki dump.xml.bz2 --books books --work mine",
    ):
        console.print(command, highlight=False, markup=False, soft_wrap=True)


def _print_scores(console: Console, runs: list[Path], scores: dict[str, Any]) -> None:
    from rich.table import Table

    from bertds.monitor.metrics_file import FILE
    from bertds.monitor.run_files import read_metrics

    runs = [run for run in runs if run.name in scores]
    if not runs:
        return
    # Runs without pairs have no next-sentence columns.
    with_pairs = any("nsp_accuracy" in scores[run.name] for run in runs)
    words = "MLM = masked LM" + ", NSP = next-sentence prediction" * with_pairs
    table = Table(
        title=f"Scores on held-out text (losses in nats; {words})",
        title_justify="left",
    )
    pairs = ("NSP accuracy", "baseline:\nmajority label") if with_pairs else ()
    for column in (
        "run",
        "sequence\nlength",
        "MLM loss",
        "baseline:\nword frequencies",
        "MLM accuracy",
        "baseline:\nmost frequent token",
        *pairs,
        "tokens/s",
    ):
        table.add_column(column, justify="right")
    for run in runs:
        values = scores[run.name]
        speeds = sorted(
            line["tokens_per_second"]
            for line in read_metrics(run / FILE).lines
            if "tokens_per_second" in line
        )
        shares = ("nsp_accuracy", "nsp_majority") if with_pairs else ()
        table.add_row(
            run.name,
            str(values["sequence_length"]),
            f"{values['mlm_loss']:.3f}",
            f"{values['unigram_entropy']:.3f}",
            f"{values['mlm_accuracy']:.1%}",
            f"{values['mlm_majority']:.1%}",
            *(f"{values[key]:.1%}" if key in values else "-" for key in shares),
            f"{speeds[len(speeds) // 2]:,.0f}" if speeds else "-",
        )
    console.print(table)


def _places(work: Path, runs: list[Path]) -> list[tuple[str, str]]:
    places = [
        (
            "data",
            "token shards, tokenizer, manifest.json; report.html shows what was dropped and why",
        )
    ]
    if (work / "facts").is_dir():
        places.append(
            ("facts", "training sentences in train.txt, held-out sentences in held_out.txt")
        )
    places += [(run.name, "run folder: metrics.jsonl, checkpoints, log.txt") for run in runs]
    places.append(("model", "the model as a Hugging Face folder, for transformers"))
    places.append(("report", "open index.html in a browser: curves, answers over time, settings"))
    return places


def _print_prompts(console: Console, prompts: list[dict[str, str]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    if not prompts:
        return
    title = "Answers for held-out sentences (✓ = correct)"
    table = Table(title=title, title_justify="left")
    for column in (
        "sentence",
        "correct answer",
        "before training",
        "after training",
        "baseline:\nmost frequent token",
    ):
        table.add_column(column)
    for prompt in prompts:
        given = [
            escape(prompt[key]) + (" ✓" if prompt[key] == prompt["answer"] else "")
            for key in ("before", "after", "frequent")
        ]
        table.add_row(escape(prompt["text"]), escape(prompt["answer"]), *given)
    console.print()
    console.print(table)


def verdict(scores: dict[str, Any], last: str) -> list[str]:
    """Return the meaning of the scores in one or two sentences.

    Args:
        scores: the result of ``score_phases``.
        last: the name of the last run.
    """
    if last not in scores:
        return ["No text was held out, so the model was not scored."]
    prompts, own = scores["prompts"], scores[last]
    below = own["unigram_entropy"] - own["mlm_loss"]
    # The user's own text: compare with word frequencies, because there are no known facts to ask
    # for.
    if "questions" not in scores:
        right = sum(prompt["after"] == prompt["answer"] for prompt in prompts)
        if below < UNIGRAM_MARGIN:
            learned = "has learned only" if below > -UNIGRAM_MARGIN else "has not even learned"
            return [
                f"So far the model {learned} how often words occur in your text: its held-out loss "
                f"is {own['mlm_loss']:.2f}, whereas word frequencies alone reach "
                f"{own['unigram_entropy']:.2f}. Train for more steps and with shorter rows: run "
                "bertds pipeline on the same text with --work NEW --set "
                "schedule.total_steps=10000 data.sequence_length=64."
            ]
        return [
            "The model has learned more about your text than how often words occur: its held-out "
            f"loss is {below:.2f} nats lower than that of word frequencies alone. It predicts "
            f"{right} of {len(prompts)} masked words of the held-out text correctly."
        ]
    # The demo: compare the answers with guessing, for each kind of question.
    asked = ", ".join(
        f"{counts['right'] / counts['asked']:.0%} on the {counts['asked']} about a {kind} "
        f"(guessing among {counts['answers']} answers: {1 / counts['answers']:.0%})"
        for kind, counts in scores["questions"].items()
    )
    before, after = (
        sum(prompt[key] == prompt["answer"] for prompt in prompts) for key in ("before", "after")
    )
    return [
        f"{after} of {len(prompts)} answers are correct after training, compared with {before} "
        f"before. Accuracy on all held-out sentences: {asked}.",
        "None of these sentences is in the training text: to answer correctly, the model must "
        "have learned the fact from sentences that are worded differently.",
    ]


def real_run() -> str:
    """Return the results and the cost of a full run, from the planner."""
    from bertds.cost_model.hardware import find
    from bertds.plan.forecast import forecast
    from bertds.training.settings import read_settings

    gpu = find(REAL_GPU)
    plans = []
    # The recipes have a DeepSpeed JSON for this GPU by this naming scheme.
    for recipe in REAL_RECIPES:
        name = f"lamb_{recipe.removeprefix('large_')}_{REAL_GPU}"
        config, settings = read_settings(recipe, name, [])
        plans.append(
            forecast(config, settings, gpu, nodes=1, devices_per_node=gpu.devices_per_node)
        )
    hours, dollars = (sum(getattr(plan, key) for plan in plans) for key in ("hours", "dollars"))
    return (
        f"A full run (BERT-large on Wikipedia and books: {', then '.join(REAL_RECIPES)}) produces "
        "a model that can be fine-tuned to answer questions about a text (published SQuAD 1.1 "
        f"F1: about 91). On a node with {gpu.devices_per_node} {gpu.name.upper()} GPUs, the two "
        f"phases together take about {hours:.0f} hours and cost about ${dollars:,.0f} (the sum of "
        f"the estimates from `bertds plan --config {REAL_RECIPES[0]} --gpu {REAL_GPU}` and from "
        f"the same command with {REAL_RECIPES[1]})."
    )
