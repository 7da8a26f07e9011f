"""The HTML report: one file with everything inside it."""

from __future__ import annotations

from typing import Any

from bertds.display.charts import Chart
from bertds.display.html_page import Table, render
from bertds.display.words import count, in_words, listed, short
from bertds.monitor.run_files import at, starts_of
from bertds.monitor.setting_lines import read_changes
from bertds.report.run_view import Chain, RunView


def page(title: str, chains: list[Chain], charts: list[Chart]) -> str:
    """Return the whole page."""
    runs = [run for chain in chains for run in chain.runs]
    return render(
        "runs.html.j2",
        title=title,
        subtitle=_subtitle(runs),
        chains=[
            {"title": chain.title, "headline": _headline(chain), "warnings": _warnings(chain)}
            for chain in chains
        ],
        charts=charts,
        predictions=_predictions(runs),
        run_table=_run_table(runs),
        scores=_score_table(runs),
        blimp=_blimp_tables(runs),
        data=_data_tables(runs),
        runs=[_repeat(run) for run in runs],
        changes=_changes(runs),
        differences=_differences(runs),
    )


def _warnings(chain: Chain) -> list[str]:
    return [
        f"{run.path.name}: {found}"
        for run in chain.runs
        for found in [*run.unreadable(), *run.found]
    ]


def _subtitle(runs: list[RunView]) -> str:
    sizes = []
    for run in runs:
        model = run.config.get("model", {})
        size = f"{model.get('num_hidden_layers')} layers, width {model.get('hidden_size')}"
        if size not in sizes:
            sizes.append(size)
    return f"BERT, {' and '.join(sizes)}; {count(len(runs), 'run')}"


def _headline(chain: Chain) -> list[tuple[str, str]]:
    values: list[tuple[str, str]] = []
    last = chain.runs[-1]
    # Held-out scores first, each with the baseline that it must beat.
    if last.validation:
        line = last.validation[-1]
        entropy, majority = line.get("unigram_entropy"), line.get("nsp_majority")
        known = "" if entropy is None else f" (word frequencies alone: {entropy:.3f})"
        values.append((f"{line['mlm_loss']:.3f}", f"masked-LM loss on held-out text{known}"))
        values.append((f"{line['mlm_accuracy']:.1%}", "masked-LM accuracy on held-out text"))
        if line.get("nsp_accuracy") is not None:
            known = "" if majority is None else f" (majority label: {majority:.1%})"
            values.append(
                (f"{line['nsp_accuracy']:.1%}", f"next-sentence accuracy on held-out text{known}")
            )
    tokens = sum(run.train[-1]["tokens"] for run in chain.runs if run.train)
    values.append((short(tokens), "real tokens seen"))
    seconds = sum(run.hours for run in chain.runs) * 3600
    values.append((in_words(seconds), "training time"))
    # MFU is known only on a GPU; otherwise the speed in tokens.
    speed, mfu = last.typical("tokens_per_second"), last.typical("mfu")
    if mfu is not None:
        values.append((f"{mfu:.1%}", "median MFU"))
    elif speed is not None:
        values.append((short(speed), "median tokens per second"))
    stalled = sum(run.stalled_seconds for run in chain.runs) / max(1e-9, seconds)
    values.append((f"{stalled:.1%}", "of the time waiting for the data loader"))
    return values


def _run_table(runs: list[RunView]) -> Table:
    # Columns without any value are left out.
    updates = any(run.update_share is not None for run in runs)
    losses = any(run.losses for run in runs)
    rows = []
    for run in runs:
        line = run.train[-1] if run.train else {}
        speed, memory = run.typical("tokens_per_second"), line.get("memory_gib")
        update = "" if run.update_share is None else f"{run.update_share:.1%}"
        rows.append(
            [
                run.title,
                "done" if run.done else "not finished",
                f"{run.last_step:,} / {run.total_steps:,}",
                at(run.config, "data.sequence_length", int, 0) or "",
                f"{at(run.deepspeed, 'train_batch_size', int, 0):,}",
                _optimizer(run),
                f"{speed:,.0f}" if speed else "",
                in_words(run.hours * 3600),
                f"{run.stalled_seconds:.1f} s",
                *([update] if updates else []),
                len(run.restarts),
                *([_lost(run)] if losses else []),
                line.get("skipped_steps", ""),
                f"{memory:.2f}" if memory else "",
            ]
        )
    head = [
        "run",
        "state",
        "steps",
        "length",
        "batch",
        "optimizer",
        "tokens/s",
        "time",
        "loader stalls",
        *(["update time"] if updates else []),
        "restarts",
        *(["time lost"] if losses else []),
        "skipped steps",
        "peak GiB",
    ]
    return Table(head, rows, numbers=(2, 3, 4, *range(6, len(head))))


def _lost(run: RunView) -> str:
    """Return the time that lost ranks have cost, and the last loss."""
    if not run.losses:
        return ""
    return f"{in_words(sum(loss.seconds for loss in run.losses))}: {run.losses[-1].what}"


def _optimizer(run: RunView) -> str:
    kind = at(run.deepspeed, "optimizer.type", str, "")
    variant = at(run.deepspeed, "optimizer.params.variant", str, "")
    rate = at(run.deepspeed, "optimizer.params.lr", (int, float), 0.0)
    stage = at(run.deepspeed, "zero_optimization.stage", int, 0)
    told = f"{kind}{f' ({variant})' if variant else ''}, lr\N{NO-BREAK SPACE}{rate:g}"
    return f"{told}, ZeRO\N{NO-BREAK SPACE}{stage}"


def _score_table(runs: list[RunView]) -> Table | None:
    scored = [run for run in runs if run.scores]
    if not scored:
        return None
    keys = list(dict.fromkeys(key for run in scored for key in run.scores))
    rows = [
        [run.title, *(f"{run.scores[k]:.4g}" if k in run.scores else "" for k in keys)]
        for run in scored
    ]
    head = ["run", *(key.replace("_", " ") for key in keys)]
    return Table(head, rows, numbers=range(1, len(head)))


SHOWN_VALIDATIONS = 6
"""Number of validations whose predictions are shown side by side."""


def _predictions(runs: list[RunView]) -> list[tuple[str, Table]]:
    """Return each run's predictions for its fixed prompts, from first to last validation."""
    tables = []
    for run in runs:
        lines = [line for line in run.validation if line.get("prompts")]
        if not lines:
            continue
        last = len(lines) - 1
        # Evenly spread validations, including the first and the last.
        chosen = sorted({last * n // (SHOWN_VALIDATIONS - 1) for n in range(SHOWN_VALIDATIONS)})
        shown = [lines[number] for number in chosen]
        rows = []
        for number, prompt in enumerate(shown[-1]["prompts"]):
            given = [line["prompts"][number] for line in shown if number < len(line["prompts"])]
            words = [
                one["predicted"] + (" \N{CHECK MARK}" if one["predicted"] == one["answer"] else "")
                for one in given
            ]
            rows.append([prompt["text"], prompt["answer"], *words])
        head = ["held-out text", "answer", *(f"step {line['step']:,}" for line in shown)]
        tables.append((run.title, Table(head, rows)))
    return tables


def _blimp_tables(runs: list[RunView]) -> tuple[Table, Table] | None:
    """Return BLiMP scores by field, and by paradigm."""
    scored = [run for run in runs if run.blimp]
    if not scored:
        return None

    def rows(kind: str) -> list[list[str]]:
        names = sorted({name for run in scored for name in run.blimp[kind]})
        return [
            [name.replace("_", " "), *(f"{run.blimp[kind].get(name, 0):.1f}" for run in scored)]
            for name in names
        ]

    overall = ["overall", *(f"{run.blimp['overall']:.1f}" for run in scored)]
    pairs = ["pairs", *(f"{run.blimp['pairs']:,}" for run in scored)]
    step = ["step", *(f"{run.blimp.get('step') or 0:,}" for run in scored)]
    head = ["", *(run.title for run in scored)]
    numbers = tuple(range(1, len(head)))
    fields = Table(head, [overall, *rows("fields"), pairs, step], numbers)
    return fields, Table(head, rows("paradigms"), numbers)


def _data_tables(runs: list[RunView]) -> list[Table]:
    # Runs on the same prepared folder share one table.
    seen: dict[str, RunView] = {}
    for run in runs:
        if run.manifest:
            seen.setdefault(run.config["data"]["path"], run)
    tables = []
    for path, run in seen.items():
        data = run.manifest
        documents = data.get("documents", {})
        dropped = documents.get("dropped", {})
        words = ", ".join(
            f"{count:,} {reason.replace('_', ' ')}"
            for reason, count in sorted(dropped.items(), key=lambda item: -item[1])
        )
        rows = [
            ["folder", path],
            [
                "documents",
                f"{documents.get('written', 0):,} of {documents.get('read', 0):,} read"
                + (f"; dropped: {words}" if words else ""),
            ],
        ]
        rows += [
            [
                name,
                f"{split.get('documents', 0):,} documents, {split.get('sentences', 0):,} "
                f"sentences, {split.get('tokens', 0):,} tokens",
            ]
            for name, split in data.get("splits", {}).items()
        ]
        rows += [
            [
                f"source: {source.get('name', '')}",
                f"{source.get('kind', '')}, "
                f"{source.get('licence') or 'licence not stated'}: "
                + listed([file["name"] for file in source.get("files", [])], 4),
            ]
            for source in data.get("sources", [])
        ]
        tokenizer = data.get("tokenizer", {})
        rows.append(
            [
                "tokenizer",
                f"{tokenizer.get('vocab_size', 0):,} tokens, "
                f"{('lower case' if tokenizer.get('lower_case') else 'cased')}, fingerprint "
                f"{str(tokenizer.get('fingerprint', ''))[:16]}",
            ]
        )
        tables.append(Table(["data", ""], rows))
    return tables


def _repeat(run: RunView) -> dict[str, str]:
    """Return the commands, versions and settings that reproduce a run."""
    commands: list[str] = []
    for start in starts_of(run.environment):
        given = at(start, "command", str, "")
        if not commands or commands[-1] != given:
            commands.append(given)
    packages: dict[str, Any] = at(run.environment, "packages", dict, {})
    versions = {
        "bertds": at(run.environment, "bertds", str, ""),
        "commit": at(run.environment, "commit", str, "") or "unknown",
        "Python": at(run.environment, "python", str, ""),
        **packages,
    }
    return {
        "title": run.title,
        "commands": "\n".join(commands) or str(run.path),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "settings": "\n".join(f"{key}: {value}" for key, value in run.settings().items()),
    }


def _changes(runs: list[RunView]) -> Table | None:
    """Return what later starts of the runs changed, and from which step."""
    rows = [
        [run.title, change.name, change.before, change.now, step]
        for run in runs
        for step, change in read_changes(run.path)
    ]
    head = ["run", "setting", "before", "after", "from step"]
    return Table(head, rows, numbers=(4,)) if rows else None


def _differences(runs: list[RunView]) -> Table | None:
    settings = [run.settings() for run in runs]
    keys = list(dict.fromkeys(key for values in settings for key in values))
    rows = []
    for key in keys:
        values = [str(found.get(key, "")) for found in settings]
        if len(set(values)) > 1 and key != "run.dir":
            rows.append([key, *values])
    return Table(["setting", *(run.title for run in runs)], rows) if rows else None
