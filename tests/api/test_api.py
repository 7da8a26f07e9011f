"""``bertds.NAME``: the functions of the commands, found by those who look for them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bertds
from bertds.cli import main as command
from bertds.data.batches import MicroBatch
from bertds.errors import CheckpointError, ConfigError, DataError
from bertds.system.early_stop import STOP_SIGNALS
from bertds.system.fault_points import injected

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


def test_every_name_exists_and_is_listed() -> None:
    assert set(bertds.__all__) <= set(dir(bertds))
    for name in bertds.__all__:
        assert getattr(bertds, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = bertds.nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize("first", ["import bertds.train", "import bertds.api", "pass"])
def test_train_is_a_function_whatever_is_imported_first(first: str) -> None:
    code = (
        f"import sys\n{first}\nimport bertds\n"
        "assert 'torch' not in sys.modules or 'api' in sys.argv[1]\n"
        "assert callable(bertds.train) and callable(bertds.train.main)\n"
        "try:\n    bertds.train('no_such_recipe')\n"
        "except bertds.BertdsError as error:\n    print(error)\n"
    )
    answer = subprocess.run([sys.executable, "-c", code, first], capture_output=True, text=True)
    assert "no_such_recipe: no such recipe" in answer.stdout, answer.stderr


def test_models_by_name() -> None:
    names = bertds.list_available_models()
    assert "bert-base-uncased" in names and "bertbaseuncased" in names
    assert set(bertds.MODELS) <= set(names)


def test_end_to_end_by_functions(
    tiny_text: Path, tiny_recipe: Path, tiny_json: Path, tmp_path: Path
) -> None:
    """Prepare, train in two calls, evaluate, load; the caller keeps its signals."""
    data = tmp_path / "data"
    manifest = bertds.prepare(
        data, text=tiny_text, train_vocab=300, validation_fraction=0.2, min_tokens=1, workers=1
    )
    assert manifest.tokenizer.vocab_size <= 300 and (data / "manifest.json").is_file()
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    settings = {"schedule.total_steps": 4, "log.every_steps": 1, "deepspeed.gradient_clipping": 0.5}
    names = {"run_dir": tmp_path / "run: 1", "data": data, "deepspeed_config": tiny_json}
    starting: list[object] = []
    with injected("run.open", lambda: starting.append(signal.getsignal(signal.SIGINT))):
        first = bertds.train(tiny_recipe, **names, settings={**settings, "schedule.total_steps": 2})
    # Only a command is ended by a signal while it starts.
    assert starting == [before[signal.SIGINT]]
    assert first.finished and first.step == 2
    held_out = shutil.copytree(data, tmp_path / "held out")
    settings["validation.path"] = str(held_out)
    result = bertds.train(tiny_recipe, **names, settings=settings)
    assert result.finished and result.step == 4 and result.run_dir == tmp_path / "run: 1"
    assert [m["step"] for m in result.metrics if "split" not in m] == [1, 2, 3, 4]
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == before
    scores = bertds.evaluate(result.run_dir, max_samples=6)
    assert scores["rows"] == 6 and scores["mlm_loss"] > 0
    model = bertds.from_pretrained(result.run_dir, task="fill-mask")
    assert type(model).__name__ == "BertForMaskedLM"
    with pytest.raises(ConfigError, match="did you mean max_samples"):
        bertds.evaluate(result.run_dir, max_sample=6)
    with pytest.raises(ConfigError, match="did you mean train_vocab"):
        bertds.prepare(tmp_path / "other", text=tiny_text, train_vocabulary=300)
    with pytest.raises(ConfigError, match=r"prepare\(tokeniser=...\) was removed: .*omit it"):
        bertds.prepare(tmp_path / "other", text=tiny_text, train_vocab=300, tokeniser="cache")
    with pytest.raises(DataError, match="rows of 500 tokens, but the model has only 64 positions"):
        bertds.evaluate(result.run_dir, sequence_length=500)
    with pytest.raises(CheckpointError):
        bertds.evaluate(tmp_path / "nothing", data)
    # The default is what the run validates on, and the message has the option for what has moved.
    data.rename(tmp_path / "moved")
    assert bertds.evaluate(result.run_dir, max_samples=6) == scores
    for split, path in (("train", data), ("validation", held_out)):
        shutil.rmtree(path, ignore_errors=True)
        with pytest.raises(DataError, match=f"{path}, the data that the run .* with --data"):
            bertds.evaluate(result.run_dir, split=split)


def test_transformers_own_task_names(tiny_data: Path, tmp_path: Path) -> None:
    source = bertds.open_source(bertds.DataConfig(path=str(tiny_data)), seed=1, split="train")
    model = bertds.build_model(bertds.ModelConfig(**SMALL), source.tokenizer.vocab_size)
    folder = bertds.save_pretrained(model, tmp_path / "m", source.tokenizer)
    for task, kind in (
        ("token-classification", "BertForTokenClassification"),
        ("question-answering", "BertForQuestionAnswering"),
        ("sentiment-analysis", "BertForSequenceClassification"),
        ("feature-extraction", "BertModel"),
    ):
        assert type(bertds.from_pretrained(folder, task=task)).__name__ == kind
    assert (
        command(
            [
                "evaluate",
                str(folder),
                "--data",
                str(tiny_data),
                "--max-samples",
                "4",
                "--sequence-length",
                "32",
            ]
        )
        == 0
    )
    with pytest.raises(ConfigError, match="earlier export"):
        bertds.save_pretrained(model, folder)
    bertds.save_pretrained(model, folder, overwrite=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="full"):
        bertds.save_pretrained(model, tmp_path / "full", overwrite=True)
    assert (tmp_path / "full" / "mine.txt").read_text() == "x"


@pytest.mark.parametrize("style", ["bert", "modern"])
def test_a_saved_model_is_the_same_in_transformers(
    style: str, tiny_data: Path, tmp_path: Path
) -> None:
    rows = bertds.DataConfig(path=str(tiny_data), sequence_length=32, pairs="none")
    source = bertds.open_source(rows, seed=1, split="train")
    config = bertds.ModelConfig(**SMALL, style=style, next_sentence=False)
    torch.manual_seed(0)
    model = bertds.build_model(config, source.tokenizer.vocab_size).eval()
    theirs = bertds.from_pretrained(
        bertds.save_pretrained(model, tmp_path / "m", source.tokenizer), task="fill-mask"
    ).eval()
    ids = torch.tensor([[2, 7, 9, 4, 3]])
    offsets = torch.tensor([0, 5], dtype=torch.int32)
    places = torch.arange(5)
    with torch.inference_mode():
        ours, _ = model.logits(ids[0], ids[0] * 0, places, offsets, 5, places)
        assert torch.allclose(ours, theirs(ids).logits[0], atol=1e-5)


@pytest.mark.parametrize("style", ["bert", "modern"])
def test_a_model_takes_a_micro_batch(style: str, tiny_data: Path) -> None:
    rows = bertds.DataConfig(path=str(tiny_data), sequence_length=32, pairs="none")
    source = bertds.open_source(rows, seed=1, split="train")
    config = bertds.ModelConfig(**SMALL, style=style, next_sentence=False)
    model = bertds.build_model(config, source.tokenizer.vocab_size).eval()
    plan = bertds.BatchPlan(global_batch_size=4, micro_batch_size=4, world_size=1)
    with bertds.BatchLoader(source, rows, plan, rank=0, seed=1) as loader:
        micro_batch: MicroBatch = next(loader).micro_batches[0]
    with torch.inference_mode():
        given = model(micro_batch)
        by_name = model(**micro_batch.model_inputs())
        assert given.mlm_loss_sum == by_name.mlm_loss_sum > 0
        assert model(micro_batch, predict=True).predictions.shape == micro_batch.masked_lm_ids.shape


CALLERS_OBJECT = """
import gc, sys, weakref
import bertds

class Held: pass

held = Held()
held.cycle = held
gone = weakref.ref(held)
try:
    bertds.train("tiny_cpu_phase1", run_dir=sys.argv[1], data=sys.argv[1] + "/none")
except bertds.errors.BertdsError as error:
    print(error)
assert "bertds.training.build" in sys.modules
del held
gc.collect()
print(gone() is None)
"""


@pytest.mark.slow
def test_training_keeps_no_object_of_its_caller(tmp_path: Path, repository: Path) -> None:
    """Not even one in a cycle, as a model on a GPU may be."""
    done = subprocess.run(
        [sys.executable, "-c", CALLERS_OBJECT, str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *_, why, released = done.stdout.splitlines()
    assert "none" in why and released == "True"
