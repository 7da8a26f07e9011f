"""Data of a report: run folders read into series, with consecutive runs joined."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from bertds.config.keys import dotted
from bertds.config.other_names import IN_JSON
from bertds.data.formats.manifest import MANIFEST_NAME, Manifest
from bertds.data.vocabulary import load_tokenizer_info
from bertds.errors import DataError, UserError
from bertds.monitor.health import Finding, findings
from bertds.monitor.metrics_file import FILE
from bertds.monitor.run_files import (
    Loss,
    MetricLines,
    at,
    losses_of,
    read_metrics,
    read_object,
    read_recipe,
)
from bertds.monitor.status import expand, expected_steps


def _is_blimp(values: dict[str, Any]) -> bool:
    """Return whether these are scores in the form of ``bertds evaluate --blimp``."""
    counts = [values.get("pairs"), values.get("step") or 0]
    if not all(type(count) is int and 0 <= count < 2**63 for count in counts):
        return False
    tables = [values.get("fields"), values.get("paradigms")]
    if not all(isinstance(table, dict) for table in tables):
        return False
    scores = [values.get("overall"), *(one for table in tables for one in (table or {}).values())]
    return all(type(score) in (int, float) and 0 <= score <= 100 for score in scores)


@dataclass(kw_only=True)
class RunView:
    """One run folder, read once."""

    path: Path
    config: dict[str, Any]
    deepspeed: dict[str, Any]
    environment: dict[str, Any]
    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    found: list[Finding]
    done: bool
    problems: list[str] = field(default_factory=list)
    """One line for each part of the folder that could not be read."""

    def unreadable(self) -> list[str]:
        """Return the problems in reading the folder, and the data that it names."""
        _ = self.manifest, self.scores  # these are read on first use
        return self.problems

    @property
    def total_steps(self) -> int:
        """Steps of the recipe; for a run that is limited by time, an estimate."""
        return expected_steps(self.config, MetricLines(self.train), done=self.done)

    @property
    def vocabulary(self) -> str:
        """The fingerprint of its tokenizer; empty if the folder has none that can be read."""
        try:
            return load_tokenizer_info(self.path / "tokenizer").fingerprint
        except (OSError, UserError):
            return ""

    @property
    def last_step(self) -> int:
        """The last step in the metrics."""
        return max((line["step"] for line in [*self.train, *self.validation]), default=0)

    @property
    def title(self) -> str:
        """The name in the report: that of the recipe, or of the folder with its parent."""
        name = at(self.config, "run.name", str, "")
        return name or "/".join(self.path.resolve().parts[-2:])

    @property
    def restarts(self) -> list[int]:
        """The steps after which the run was continued."""
        steps = []
        for before, after in zip(self.train, self.train[1:]):
            if (after.get("restarts") or 0) > (before.get("restarts") or 0):
                steps.append(before["step"])
        return steps

    @cached_property
    def hours(self) -> float:
        """Training time by the train lines: with stalls, without validation and saving."""
        return sum(line["seconds"] for line in self.train) / 3600

    @property
    def stalled_seconds(self) -> float:
        """Time that training waited for the loader."""
        return sum(line["stall_seconds"] for line in self.train)

    @property
    def update_share(self) -> float | None:
        """Share of the time spent in optimizer updates, over the lines that state it, or None."""
        told = [line for line in self.train if line.get("optimizer_seconds") is not None]
        seconds = sum(line["seconds"] for line in told)
        return sum(line["optimizer_seconds"] for line in told) / seconds if seconds else None

    def typical(self, key: str) -> float | None:
        """Return the median of a train value after the first fifth of the lines."""
        lines = self.train[len(self.train) // 5 :]
        values = [line[key] for line in lines if line.get(key) is not None]
        return median(values) if values else None

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest of the data; empty if the data is gone or has none."""
        path = at(self.config, "data.path", str, "")
        if not path or not (Path(path) / MANIFEST_NAME).is_file():
            return {}
        try:
            return Manifest.load(path).to_json()
        except DataError as error:
            self.problems.append(str(error))
            return {}

    @cached_property
    def scores(self) -> dict[str, Any]:
        """Scores from the run folder or from next to it (``scores.json``)."""
        result: dict[str, Any] = {}
        for file in (self.path.parent / "scores.json", self.path / "scores.json"):
            if file.is_file():
                values = read_object(file, self.problems)
                own: dict[str, Any] = at(values, self.path.name, dict, {})
                result.update(own if file.parent != self.path else values)
        return {k: v for k, v in result.items() if type(v) in (int, float)}

    @cached_property
    def blimp(self) -> dict[str, Any]:
        """The result of ``bertds evaluate RUN --blimp`` in the run folder, or empty."""
        values = read_object(self.path / "blimp.json", self.problems)
        if values and not _is_blimp(values):
            self.problems.append("blimp.json: ignored, because its scores are not percentages")
            return {}
        return values

    @cached_property
    def losses(self) -> list[Loss]:
        """The work that was lost and repeated, one entry per restart by a launcher."""
        return losses_of(self.environment)

    def settings(self) -> dict[str, Any]:
        """Return dotted key -> setting; keys of the DeepSpeed JSON begin with ``deepspeed``."""
        return dotted(self.config) | dotted(self.deepspeed, IN_JSON)


def read_run(path: Path) -> RunView:
    """Read one run folder."""
    metrics = read_metrics(path / FILE)
    problems = metrics.problems
    view = RunView(
        path=path,
        config=read_recipe(path / "config.yaml", problems),
        deepspeed=read_object(path / "deepspeed.json", problems),
        environment=read_object(path / "environment.json", problems),
        train=metrics.train,
        validation=metrics.validation,
        found=findings(metrics.lines),
        done=(path / "DONE").is_file(),
        problems=problems,
    )
    read_object(path / "DONE", problems)
    return view


@dataclass(kw_only=True)
class Chain:
    """Consecutive runs: phase 1, and the phase 2 that starts from it."""

    runs: list[RunView] = field(default_factory=list)

    @property
    def title(self) -> str:
        """One name for all runs of the chain."""
        names = [run.title for run in self.runs]
        if len(names) == 1:
            return names[0]
        folders = {run.path.resolve().parent.name for run in self.runs}
        tails = [run.path.name for run in self.runs]
        if len(folders) == 1:
            return f"{folders.pop()}: {' → '.join(tails)}"
        return " → ".join(names)

    def offsets(self) -> list[int]:
        """Return for each run the number of steps of the runs before it."""
        result, total = [], 0
        for run in self.runs:
            result.append(total)
            total += run.last_step
        return result

    def series(self, key: str, *, split: str = "train") -> tuple[list[float], list[float]]:
        """Return (steps over all runs, values) of a key; absent and empty values are omitted."""
        steps: list[float] = []
        values: list[float] = []
        for offset, run in zip(self.offsets(), self.runs):
            for line in run.train if split == "train" else run.validation:
                if line.get(key) is not None:
                    steps.append(offset + line["step"])
                    values.append(float(line[key]))
        return steps, values

    def has(self, key: str) -> bool:
        """Return whether any train line has a value for a key."""
        return any(line.get(key) is not None for run in self.runs for line in run.train)

    def trust_ratios(self) -> dict[str, tuple[list[float], list[tuple[float, ...]]]]:
        """Return for each parameter group the steps and the (lowest, median, highest) ratios."""
        result: dict[str, tuple[list[float], list[tuple[float, ...]]]] = {}
        for offset, run in zip(self.offsets(), self.runs):
            for line in run.train:
                for group, triple in (line.get("trust_ratio") or {}).items():
                    if None not in triple:
                        steps, values = result.setdefault(group, ([], []))
                        steps.append(offset + line["step"])
                        values.append(tuple(triple))
        return result

    def restarts(self) -> list[int]:
        """Return the steps after which a run was resumed."""
        return [
            offset + step for offset, run in zip(self.offsets(), self.runs) for step in run.restarts
        ]

    def borders(self) -> list[int]:
        """Return the steps at which a phase begins, except the first phase."""
        return self.offsets()[1:]


def read_chains(folders: list[Path]) -> list[Chain]:
    """Read run folders, and join each run with the one that it starts from."""
    views: dict[Path, RunView] = {}
    for folder in folders:
        for path in expand(folder):
            views.setdefault(path.resolve(), read_run(path))
    follows: dict[Path, Path] = {}
    for path, view in views.items():
        origin = at(view.config, "init.from", str, "")
        for candidate in (Path(origin).resolve(), *Path(origin).resolve().parents):
            if origin and candidate in views and candidate != path:
                follows[path] = candidate
                break
    # A chain is built backwards from its last run, which no other run starts from.
    taken = set(follows.values())
    chains = []
    for path in views:
        if path in taken:
            continue  # it is an earlier part of another chain
        runs = [views[path]]
        while path in follows and views[follows[path]] not in runs:
            path = follows[path]
            runs.insert(0, views[path])
        chains.append(Chain(runs=runs))
    return chains
