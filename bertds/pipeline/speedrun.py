"""The time to a held-out loss, as a line for a table of records.

    fixed text, fixed masks, target loss --> train until a validation reaches it --> a record

Two records can be compared if their *track* is the same: the checksums of the held-out shards, the
vocabulary, the length and masks of held-out rows, the seed that draws them, and the target. A
record contains a SHA-256 of itself and of the run's metrics, so that a changed line is noticed, and
a line can be compared with the run that it claims. It does not prove who ran it.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bertds import __version__
from bertds.config.load import load_config
from bertds.config.ramps import held_out_mask_rate
from bertds.config.recipe import Config
from bertds.data.formats.manifest import Manifest
from bertds.errors import DataError, reason_of
from bertds.monitor.metrics_file import FILE
from bertds.monitor.run_files import read_metrics, read_object, read_recipe, starts_of
from bertds.pipeline.stages import Phase
from bertds.system.atomic_files import sha256_file
from bertds.system.json_fields import is_finite, parse_json
from bertds.system.processes import usable_cores

VALIDATE_EVERY = 50
LOG_EVERY = 10
"""Divides VALIDATE_EVERY, so that a train line ends where a validation reaches the target."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One line of the table."""

    by: str
    date: str
    """UTC, year-month-day."""
    track: str
    target: float
    """The target: held-out masked-LM loss in nats."""
    loss: float
    """The loss that was reached."""
    seconds: float
    """Training time, without preparation, start, validation and checkpoints."""
    steps: int
    tokens: int
    """Number of real tokens."""
    device: str
    version: str
    metrics: str
    """SHA-256 of the run's metrics.jsonl."""
    sha256: str = ""
    """SHA-256 of all other fields."""

    def digest(self) -> str:
        """Return the SHA-256 that the record should contain."""
        rest = {key: value for key, value in asdict(self).items() if key != "sha256"}
        return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def track_of(data: Path, config: Config, target: float) -> str:
    """Return 12 hexadecimal digits: equal for runs whose times can be compared.

    Args:
        data: a prepared folder.
        config: the recipe.
        target: the loss to reach.

    Raises:
        DataError: the folder has no held-out documents.
    """
    manifest = Manifest.load(data)
    split = manifest.splits.get("validation")
    if split is None or not split.documents:
        raise DataError(
            f"{data}: has no held-out documents; prepare it again with a validation split"
        )
    rows = config.data
    facts = [
        [shard.sha256 for shard in split.shards],
        manifest.tokenizer.fingerprint,
        [rows.sequence_length, rows.max_predictions_per_sequence, held_out_mask_rate(rows)],
        [rows.short_seq_prob, rows.whole_word_masking, rows.ngram, rows.pairs],
        [config.validation.max_samples, config.run.seed, target],
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def phase_of(run: Path, recipe: str, data: Path, target: float) -> Phase:
    """Return the run to be timed; ``--set`` must not change what decides its time or track."""
    settings = {
        "run.dir": run,
        "data.path": data,
        "validation.path": "",  # the held-out text is that of ``data``
        "validation.stop_at_loss": target,
        "validation.every_steps": VALIDATE_EVERY,
        "log.every_steps": LOG_EVERY,
    }
    assignments = [f"{key}={value}" for key, value in settings.items()]
    return Phase(run, recipe, assignments, reserved=tuple(settings))


def record_of(run: Path, data: Path, target: float, by: str) -> Record:
    """Return the record of a finished run.

    Raises:
        DataError: it did not reach the target; the message has its lowest loss.
    """
    lines = read_metrics(run / FILE)
    reached = next((line for line in lines.validation if line["mlm_loss"] <= target), None)
    if reached is None:
        best = min((line["mlm_loss"] for line in lines.validation), default=float("nan"))
        raise DataError(
            f"{run}: the target {target:g} was not reached; the lowest held-out loss is "
            f"{best:.4f}. Increase schedule.total_steps or try another recipe"
        )
    # The time counts only training up to the validation that reached the target.
    before = [line for line in lines.train if line["step"] <= reached["step"]]
    config = load_config(read_recipe(run / "config.yaml", []))
    record = Record(
        by=by,
        date=datetime.now(UTC).date().isoformat(),
        track=track_of(data, config, target),
        target=target,
        loss=reached["mlm_loss"],
        seconds=round(sum(line["seconds"] for line in before), 1),
        steps=reached["step"],
        tokens=before[-1]["tokens"],
        device=_device(run),
        version=__version__,
        metrics=sha256_file(run / FILE),
    )
    return Record(**{**asdict(record), "sha256": record.digest()})


def _device(run: Path) -> str:
    starts = starts_of(read_object(run / "environment.json", []))
    device = str(starts[-1].get("device")) if starts else "?"
    if device != "cpu":
        return device
    return f"{usable_cores()} CPU cores, {platform.machine()}"


def read_records(file: Path) -> list[Record]:
    """Return the records of a file, one JSON object per line.

    Raises:
        DataError: a line is not a record, or was changed; names the line.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({reason_of(error)})") from None
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = _record(parse_json(line))
        except (ValueError, TypeError, AttributeError):
            raise DataError(f"{file}: line {number} is not a record") from None
        if record.digest() != record.sha256:
            raise DataError(f"{file}: line {number} has been changed: its checksum does not match")
        records.append(record)
    return records


def _record(values: dict[str, Any]) -> Record:
    """Return a line's record; raises ValueError or TypeError if a value has a wrong type."""
    for item in fields(Record):
        value = values.get(item.name, item.default)
        if item.type == "str":
            good = isinstance(value, str) and value.isprintable()  # no terminal control codes
        else:
            kinds = (int,) if item.type == "int" else (int, float)
            good = type(value) in kinds and is_finite(value)
        if not good:
            raise ValueError(item.name)
    return Record(**values)


def table(records: Sequence[Record]) -> str:
    """Return the records as a table, the fastest of each track first."""
    lines = [f"{'track':<13} {'target':>7} {'seconds':>9} {'steps':>7} {'tokens':>12}  by"]
    for one in sorted(records, key=lambda one: (one.track, one.seconds)):
        lines.append(
            f"{one.track:<13} {one.target:>7g} {one.seconds:>9,.1f} {one.steps:>7,} "
            f"{one.tokens:>12,}  {one.by}, {one.date}, {one.device}"
        )
    return "\n".join(lines)
