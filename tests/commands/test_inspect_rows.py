from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertds.cli import main as bertds
from bertds.commands.runs.inspect_rows import row_of, sample
from bertds.config.batch_plan import BatchPlan
from bertds.config.load import load_config
from bertds.config.ramps import BatchRamp, MaskRate
from bertds.config.recipe import DataConfig
from bertds.data.loader import BatchLoader, open_source
from data_prep.report.show_rows import describe


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """A run folder as training leaves it, without any checkpoint."""
    run = tmp_path_factory.mktemp("run")
    (run / "config.yaml").write_text(
        f"data:\n  path: {tiny_data}\n  sequence_length: 32\n  max_predictions_per_sequence: 5\n"
        "run:\n  seed: 3\n"
    )
    (run / "deepspeed.json").write_text(json.dumps({"train_batch_size": 12}))
    return run


RAMP = "schedule: {batch_from: 6, batch_ramp_steps: 40, total_steps: 60}"


@pytest.mark.parametrize(
    ("changes", "schedule"),
    [
        ({}, ""),
        ({}, RAMP),
        ({"masked_lm_prob": 0.2, "masked_lm_prob_end": 0.05}, "schedule: {total_steps: 60}"),
        ({"masked_lm_prob": 0.2, "masked_lm_prob_end": 0.05, "masked_lm_prob_steps": 40}, RAMP),
        ({"pack_tokens": 64}, ""),
    ],
    ids=["constant", "growing batch", "mask rate", "both", "packed"],
)
def test_the_rows_of_a_step_are_those_it_was_trained_on(
    run_folder: Path,
    tmp_path: Path,
    tiny_data: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    schedule: str,
) -> None:
    run = shutil.copytree(run_folder, tmp_path / "run")
    keys = "".join(f"  {key}: {value}\n" for key, value in changes.items())
    recipe = (run / "config.yaml").read_text().replace("data:\n", f"data:\n{keys}")
    (run / "config.yaml").write_text(f"{recipe}{schedule}\n")
    config = load_config(run / "config.yaml")
    data = replace(config.data, pack_tokens=0)  # fillers are no rows
    plan = BatchPlan(global_batch_size=12, micro_batch_size=3, world_size=2)
    source = open_source(data, 3)
    words = source.tokenizer.vocabulary()
    wanted: list[str] = []
    for rank in (0, 1):
        with BatchLoader(
            source,
            data,
            plan,
            rank,
            seed=3,
            ramp=BatchRamp.of(config.schedule, plan),
            mask_rate=MaskRate.of(data, config.schedule.total_steps),
        ) as loader:
            for _ in range(30):  # far into the next epochs
                batch = next(loader)
        row = 0
        for micro_batch in batch.micro_batches:
            for begin, end in np.lib.stride_tricks.sliding_window_view(
                micro_batch.cu_seqlens.numpy(), 2
            ):
                ids = micro_batch.input_ids[begin:end].tolist()
                places = micro_batch.masked_lm_positions
                masked = int(((places >= begin) & (places < end)).sum())
                epoch, number = batch.samples[row]
                head = f"sample {epoch}:{number}  {len(ids)} tokens, {masked} masked  "
                wanted.append(head + " ".join(words[i] for i in ids))
                row += 1
    assert bertds(["inspect", str(run), "--step", "30"]) == 0
    printed = capsys.readouterr().out
    seen = []
    for text in re.split(r"^(?=sample )", printed, flags=re.MULTILINE)[1:]:
        lines = text.splitlines()
        tokens = " ".join(line[5:] for line in lines[1:])
        head = lines[0].split(", next_sentence")[0]
        seen.append(f"{head}  " + re.sub(r"\{.*?\}", "", tokens))
    assert seen == wanted
    # Its samples by number: masks have the rate of the step that uses them.
    names = [head.split()[1] for head in wanted]
    assert bertds(["inspect", str(run), "--sample", *names]) == 0
    assert capsys.readouterr().out == printed


def test_single_samples_with_pair_label_and_masks(
    run_folder: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bertds(["inspect", str(run_folder), "--sample", "0:0", "1:17"]) == 0
    first, second = re.split(r"^(?=sample )", capsys.readouterr().out, flags=re.MULTILINE)[1:]
    assert first.startswith("sample 0:0  ") and second.startswith("sample 1:17  ")
    head = re.match(
        r"sample 0:0  (\d+) tokens, (\d) masked, next_sentence_label (0|1): (.*)\n", first
    )
    assert head and head[4] == ("the next segment", "a random segment")[int(head[3])]
    assert len(re.findall(r"\{w\d\d\}", first)) == int(head[2]) > 0
    a, b = first.splitlines()[1:]
    assert a.startswith("  A  [CLS] ") and a.endswith("[SEP]") and b.endswith("[SEP]")
    assert len((a[5:] + " " + b[5:]).split()) == int(head[1])
    data = DataConfig(path=str(tiny_data), sequence_length=32, max_predictions_per_sequence=5)
    source = open_source(data, 3)
    row = sample(source, 0, 0)
    words = source.tokenizer.vocabulary()
    assert describe("sample 0:0", row_of(row), words, "nsp").plain + "\n" == first
    originals = [words[i] for i in row.masked_lm_ids.tolist()]
    assert re.findall(r"\{(.*?)\}", first) == originals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step", "0"], "the first step is 1"),
        (["--sample", "7"], "must be epoch:number"),
        (["--sample", "0:99999"], "epoch 0 has"),
        (["--step", "1", "--data", "/nowhere"], "/nowhere"),
    ],
)
def test_a_missing_step_or_sample_is_refused(
    run_folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert bertds(["inspect", str(run_folder), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_not_a_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bertds(["inspect", str(tmp_path), "--step", "1"]) == 2
    assert "not a run folder" in capsys.readouterr().err


def test_data_of_a_run_that_is_elsewhere_is_named_with_the_option_that_mends_it(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(run_folder, tmp_path / "run")
    recipe = re.sub(r"path: .*", "path: data/moved", (run / "config.yaml").read_text())
    (run / "config.yaml").write_text(recipe)
    assert bertds(["inspect", str(run), "--step", "1"]) == 2
    assert capsys.readouterr().err.endswith(
        "data/moved, the data that the run recorded: no such file or folder; give the path of the "
        "data with --data\n"
    )
