"""The progress of a run: a few plain numbers, saved with every checkpoint.

A resumed run needs nothing else: the order of samples, their pairs and masks, and dropout are pure
functions of the seed and of these numbers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from bertds.errors import CheckpointError
from bertds.system.json_fields import Field


@dataclass(slots=True)
class TrainState:
    """Progress of one run (one phase)."""

    step: int = 0
    """Optimizer steps taken, skipped ones included."""
    skipped_steps: int = 0
    """Of these, steps that made no update (fp16 overflow, non-finite gradient, spike rule)."""
    skipped_in_a_row: int = 0
    """Steps skipped since the last update."""
    samples: int = 0
    """Samples used."""
    tokens: int = 0
    """Real tokens used; padding is not counted."""
    epoch: int = 0
    """Epoch of the next sample."""
    offset: int = 0
    """Position of the next sample in its epoch's order."""
    hours: float = 0.0
    """Training time in hours over all restarts, as agreed by the ranks: 1 or 2 steps behind."""
    main_hours: float = 0.0
    """The same by rank 0's clock, up to the last step."""
    best_mlm_loss: float | None = None
    """Lowest masked-LM validation loss so far."""
    best_step: int | None = None
    """The step of that validation."""
    validated_step: int | None = None
    """The step of the last validation."""
    restarts: int = 0
    """Number of times that the run was resumed."""
    window: list[float] = field(default_factory=list)
    """Sums of the current metrics line, so that a line that spans a restart is complete."""
    recent_norms: list[float] = field(default_factory=list)
    """Gradient norms of the last updates; recorded if the spike rule is on."""

    def state_dict(self) -> dict[str, Any]:
        """Return the numbers as a JSON-able dictionary."""
        return asdict(self)

    @classmethod
    def from_field(cls, state: Field) -> TrainState:
        """Rebuild a state from a manifest, and check each number against its declared type.

        Raises:
            CheckpointError: a number is missing, unknown or of a wrong type; names the key.
        """
        if odd := sorted(set(state.mapping()) ^ {item.name for item in fields(cls)}):
            raise CheckpointError(
                f"{state.file}: training state: missing or unknown fields {', '.join(odd)}"
            )
        # Annotations are strings here ("int", "float | None", "list[float]").
        for item in fields(cls):
            value = state[item.name]
            kind = str(item.type)
            if value.value is None and "None" in kind:
                continue
            if kind.startswith("int"):
                value.integer()
            elif kind.startswith("float"):
                value.number(0)
            elif any(type(one.value) not in (int, float) for one in value.elements()):
                value.fail("a list of numbers")
        return cls(**state.mapping())
