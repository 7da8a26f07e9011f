"""The pipeline as a user runs it: prepare, train, export, evaluate, and what can go wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertForPreTraining

from bertds.cli import main as bertds
from bertds.monitor.run_files import read_metrics
from bertds.pretrained.evaluate import tokens_per_word, unigram_entropy
from bertds.pretrained.load import load_pretrained


def arguments(recipe: Path, deepspeed: Path, data: Path, run: Path, *extra: str) -> list[str]:
    return [
        "train",
        "--deepspeed_config",
        str(deepspeed),
        "--config",
        str(recipe),
        "--set",
        f"run.dir={run}",
        f"data.path={data}",
        *extra,
    ]


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Path, tiny_json: Path, tiny_data: Path
) -> Path:
    """A finished tiny run."""
    folder = tmp_path_factory.mktemp("pipeline") / "run"
    assert bertds(arguments(tiny_recipe, tiny_json, tiny_data, folder)) == 0
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    return folder


@pytest.fixture(scope="module")
def model(run: Path) -> Path:
    """Its Hugging Face folder."""
    assert bertds(["export", str(run), "--out", str(run.parent / "model")]) == 0
    return run.parent / "model"


def test_transformers_loads_the_export_with_equal_logits(run: Path, model: Path) -> None:
    theirs, info = BertForPreTraining.from_pretrained(model, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    inputs = tokenizer("w00 w01 w02 [MASK] w04", "w10 w11", return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == [2, 5, 6, 7, 4, 9, 3, 15, 16, 3]
    with torch.inference_mode():
        expected = theirs.eval()(**inputs)
        ours = load_pretrained(run).model
        tokens = inputs["input_ids"].shape[1]
        flat = {
            "input_ids": inputs["input_ids"][0],
            "segment_ids": inputs["token_type_ids"][0],
            "position_ids": torch.arange(tokens),
            "cu_seqlens": torch.tensor([0, tokens], dtype=torch.int32),
            "max_seqlen": tokens,
        }
        prediction, relationship = ours.logits(**flat, positions=torch.arange(tokens))
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(prediction[:, :65], expected.prediction_logits[0], **close)
    torch.testing.assert_close(relationship, expected.seq_relationship_logits, **close)


def test_the_model_card_says_what_was_done(model: Path) -> None:
    """huggingface_hub reads it; numbers are in words, and no machine's paths or raw JSON."""
    from huggingface_hub import ModelCard

    text = (model / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.pipeline_tag == "fill-mask" and card.data.license is None
    metrics = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert 0 <= metrics["accuracy"] <= 1 < metrics["perplexity"]
    for part in (
        "| steps | 6 |",
        "AdamW: lr 0.005",
        "## Held-out scores",
        "predicted correctly",
        "vocabulary 65",
        "## Intended use",
        "## Limitations",
    ):
        assert part in text, part
    assert '{"' not in text and "PATH" not in text


def test_the_model_cards_example_runs(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = (model / "README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(code, {})
    assert capsys.readouterr().out.count("token_str") == 5


def test_a_pushed_export(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The hub is a stand-in that takes what it is sent; without a token nothing is exported."""
    import huggingface_hub
    from huggingface_hub import ModelCard, constants

    words = ["export", str(run), "--out", str(tmp_path / "m"), "--push"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    for name, message in (
        ("mine", "give OWNER/NAME"),
        ("me/a b", "give OWNER/NAME"),
        ("me/mine", "hf auth login"),
    ):
        assert bertds([*words, name]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "m").exists()
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    sent: dict[str, Any] = {}

    class Hub:
        def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> str:
            sent["private"] = private
            return f"https://hub/{name}"

        def upload_folder(self, **what: Any) -> None:
            if sent.get("full"):
                raise OSError("no network")
            sent.update(what)

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert bertds([*words, "me/mine", "--private", "--license", "cc-by-sa-4.0"]) == 0
    assert "uploaded to https://hub/me/mine" in capsys.readouterr().out
    assert (sent["repo_id"], sent["private"]) == ("me/mine", True)
    card = ModelCard((sent["folder_path"] / "README.md").read_text())
    assert card.data.license == "cc-by-sa-4.0" and 'model="me/mine"' in card.text
    sent["full"] = True
    assert bertds([*words, "me/mine", "--overwrite"]) == 1
    assert "is kept; upload it with: hf upload me/mine" in capsys.readouterr().err
    assert (tmp_path / "m" / "model.safetensors").is_file()


def test_an_export_is_replaced_on_request_and_foreign_folders_are_left_alone(
    run: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / "note.txt").write_text("precious")
    for command in (
        ["export", str(run), "--out", str(model)],
        ["convert", str(run), str(model), "--to", "dle"],
        ["extend", str(run), str(model), "--words", "no_such_file"],
    ):
        assert bertds(command) == 2
        assert (
            "contains an earlier export or conversion; replace it with --overwrite"
            in capsys.readouterr().err
        )
    assert (model / "note.txt").is_file()
    assert bertds(["export", str(run), "--out", str(model), "--overwrite"]) == 0
    assert not (model / "note.txt").exists()
    assert [p.name for p in model.parent.iterdir() if p.name.startswith(".tmp")] == []
    (tmp_path / "mine.txt").write_text("precious")
    assert bertds(["export", str(run), "--out", str(tmp_path), "--overwrite"]) == 2
    assert "not an earlier export" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_the_best_checkpoint_is_marked_and_exported(
    tmp_path: Path,
    tiny_recipe: Path,
    tiny_json: Path,
    tiny_data: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    extra = ("validation.every_steps=2", "checkpoint.every_steps=2", "checkpoint.keep_last=3")
    command = arguments(tiny_recipe, tiny_json, tiny_data, run, *extra)
    assert bertds([*command, "schedule.total_steps=4"]) == 0
    # Goes on with another rate, which the card reports; training makes the loss fall to step 8.
    assert bertds([*command, "schedule.total_steps=8", "deepspeed.optimizer.params.lr=0.004"]) == 0

    def export(out: str, *options: str) -> tuple[str, str]:
        capsys.readouterr()
        assert bertds(["export", str(run), "--out", str(tmp_path / out), *options]) == 0
        origin = json.loads((tmp_path / out / "bertds_export.json").read_text())["origin"]
        return origin, capsys.readouterr().out

    assert export("a")[0] == export("b", "--best")[0] == "step_00000008"
    assert "note:" not in export("c")[1]
    card = (tmp_path / "a" / "README.md").read_text()
    assert "## Settings changed during training" in card
    assert "| lr | 0.005 | 0.004 | 4 |" in card
    assert "| schedule.total_steps | 4 | 8 | 4 |" in card

    metrics = run / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    for line in lines:
        if line.get("split") == "validation" and line["step"] == 4:
            line["mlm_loss"] = 0.5
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    origin, said = export("d")
    assert origin == "step_00000008"
    assert "note: step_00000004 has a lower held-out loss than step_00000008: 0.5000" in said
    assert export("e", "--best")[0] == "step_00000004"
    # A card reports what held until its checkpoint.
    assert "Settings changed" not in (tmp_path / "e" / "README.md").read_text()
    assert bertds(["checkpoint", "list", str(run)]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed if line.endswith("best")] == ["step_00000004"]
    assert len(listed) == 3 and all("held-out loss " in line for line in listed)

    metrics.unlink()  # the checkpoints themselves know the best
    assert export("f", "--best")[0] == "step_00000008"
    assert bertds(["export", str(tmp_path / "a"), "--out", str(tmp_path / "g"), "--best"]) == 2
    assert "not a run folder with checkpoints" in capsys.readouterr().err


def test_run_and_export_score_the_same(
    run: Path, model: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bertds(["evaluate", str(run), "--json"]) == 0
    own = json.loads(capsys.readouterr().out)
    command = [
        "evaluate",
        str(model),
        "--data",
        str(tiny_data),
        "--sequence-length",
        "32",
        "--max-predictions",
        "5",
        "--json",
    ]
    assert bertds(command) == 0
    exported = json.loads(capsys.readouterr().out)
    assert exported["mlm_loss"] == pytest.approx(own["mlm_loss"], rel=1e-6)
    assert exported["nsp_accuracy"] == own["nsp_accuracy"]
    # What the training loop wrote after its last step is the same number.
    last = read_metrics(run / "metrics.jsonl").lines[-1]
    assert last["split"] == "validation"
    assert last["mlm_loss"] == pytest.approx(own["mlm_loss"], rel=1e-6)
    assert 3.5 < own["unigram_entropy"] <= np.log(60)


def test_tokens_per_word_by_hand() -> None:
    counts = np.array([3, 1, 2])  # "a" thrice, "b" once, "##c" twice: six tokens of four words
    assert tokens_per_word(counts, ["a", "b", "##c"]) == 1.5


def test_unigram_entropy_by_hand() -> None:
    counts = np.array([2, 1, 1, 0])
    assert unigram_entropy(counts) == pytest.approx(1.5 * np.log(2))


def test_evaluating_on_another_vocabulary_is_refused(
    model: Path, tiny_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "vocab.txt"
    other.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]) + "\n")
    command = ["evaluate", str(model), "--data", str(tiny_text), "--vocab", str(other)]
    assert bertds(command) == 2
    assert "its vocabulary has 65 tokens, but that of the data has 6" in capsys.readouterr().err


def test_continuing_from_a_hugging_face_folder(
    run: Path, model: Path, tiny_recipe: Path, tiny_json: Path, tiny_data: Path, tmp_path: Path
) -> None:
    frozen = [
        "deepspeed.optimizer.params.lr=0.0",
        "schedule.total_steps=1",
        "schedule.warmup_steps=0",
        f"init.from={model}",
    ]
    command = arguments(tiny_recipe, tiny_json, tiny_data, tmp_path / "again", *frozen)
    assert bertds(command) == 0
    before = dict(load_pretrained(run).model.named_parameters())
    after = dict(load_pretrained(tmp_path / "again").model.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_another_architecture_than_that_of_a_hugging_face_folder_is_refused(
    model: Path,
    tiny_recipe: Path,
    tiny_json: Path,
    tiny_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    extra = [f"init.from={model}", "model.num_hidden_layers=3"]
    assert bertds(arguments(tiny_recipe, tiny_json, tiny_data, tmp_path / "x", *extra)) == 2
    error = capsys.readouterr().err
    assert "its num_hidden_layers is 2, this run's is 3" in error and str(model) in error


def test_the_command_line_is_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert bertds(["--help"]) == 0
    assert "pipeline" in capsys.readouterr().out
    assert bertds(["exprot"]) == 2
    assert "did you mean export?" in capsys.readouterr().err
    assert bertds(["evaluate", "/does/not/exist"]) == 2
    assert "no folder or model has this name" in capsys.readouterr().err


@pytest.mark.slow
def test_end_to_end_from_a_real_dump(
    shared_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    dump = next((shared_data / "wikipedia").glob("enwiki-latest-pages-articles1*.bz2"))
    command = [
        "pipeline",
        "--work",
        str(tmp_path / "work"),
        "--wiki",
        str(dump),
        "--set",
        "schedule.total_steps=5",
        "log.every_steps=5",
        "validation.every_steps=0",
    ]
    assert bertds(command) == 0
    out = capfd.readouterr().out
    words = " ".join(out.split())  # a narrow table breaks its headings
    assert "Scores on held-out text" in words and "Answers for held-out sentences" in words
    assert "has not even learned how often words occur" in words  # after five steps
    assert "A full run (BERT-large" in words
    assert (tmp_path / "work" / "model" / "model.safetensors").is_file()
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.safetensors")}
    assert bertds(command) == 0  # a second time repeats nothing
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert capfd.readouterr().err.count("already done") == 4
