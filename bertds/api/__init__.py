"""The functions of the commands, for Python programs and notebooks: prepare, train, evaluate.

``bertds.prepare`` and the others are these. They raise :class:`bertds.errors.BertdsError` where a
command ends with an exit code. It may import everything but commands.
"""

from __future__ import annotations

from bertds.api.evaluation import evaluate
from bertds.api.preparation import prepare
from bertds.api.training import TrainingResult, train

__all__ = ["TrainingResult", "evaluate", "prepare", "train"]
