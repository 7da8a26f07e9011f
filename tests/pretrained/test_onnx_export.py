"""ONNX, run by onnxruntime."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bertds.cli import main


def test_onnx_without_its_packages_says_what_to_install(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["convert", str(folder), str(tmp_path / "out"), "--to", "onnx"]) == 2
    assert "pip install 'bertds[onnx]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_onnx_gives_the_same_numbers(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime as runtime
    from transformers import BertForPreTraining

    assert main(["convert", str(folder), str(tmp_path / "out"), "--to", "onnx"]) == 0
    session = runtime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    assert {tuple(i.shape) for i in session.get_inputs()} == {("batch", "sequence")}
    assert all(o.shape[:1] == ["batch"] for o in session.get_outputs())
    ids = np.array([[2, 7, 4, 9, 3, 5, 6], [2, 8, 3, 0, 0, 0, 0]])
    mask = (ids != 0).astype(np.int64)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    (logits,) = session.run(None, inputs)
    model = BertForPreTraining.from_pretrained(folder).eval()
    expected = model(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    expected = expected.prediction_logits.detach().numpy()
    assert np.allclose(logits[mask == 1], expected[mask == 1], atol=1e-4)
    assert "logits: differs from torch by at most" in capsys.readouterr().out
