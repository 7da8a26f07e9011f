"""The functions of the commands, for Python programs and notebooks: prepare, train, evaluate.

``bertds.prepare`` and the others are these functions. They raise
:class:`bertds.errors.BertdsError` where a command would return an exit code. The package may import
everything except commands.

Read first: ``preparation.py``.
"""

from __future__ import annotations

from bertds.api.evaluation import evaluate
from bertds.api.preparation import prepare
from bertds.api.training import TrainingResult, train

__all__ = ["TrainingResult", "evaluate", "prepare", "train"]
