from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.bert_folder import write_bert


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small random BERT as transformers writes it."""
    return write_bert(tmp_path / "hf")
