"""The engine on several ranks: LAMB, AdamW, skipped steps and resumes are those of one process."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from tests.support.engine_worker import run
from tests.support.fork_server import ForkServer
from tests.support.reference_training import LAMBS, train_reference
from tests.support.toy_engine import (
    Toy,
    distance,
    gather_state,
    make_engine,
    reader,
    same,
    train,
    values,
)

STEPS = 50


def lamb_case(variant: str, stage: int, micro_batch: int = 4, **more) -> dict:
    json_values = values(
        stage, optimizer="Lamb", params={"variant": variant, **more.pop("params", {})}, **more
    )
    json_values["train_micro_batch_size_per_gpu"] = micro_batch
    return {"name": f"{variant}{stage}", "values": json_values, "last": STEPS}


def check_lamb(found: dict, variant: str) -> None:
    want, losses, ratios, norms = train_reference(STEPS, variant)
    assert distance(found["state"], want) < 1e-6
    assert found["losses"] == pytest.approx(losses, rel=2e-6)
    assert found["ratios"] == pytest.approx(ratios, rel=1e-6)
    assert found["norm"] == pytest.approx(norms[-1], rel=1e-5)
    assert found["steps"] == STEPS


EVERYDAY = [
    ("nvidia", 0),
    ("nvidia", 1),
    ("nvidia", 2),
    ("nvidia", 3),
    ("paper", 3),
    ("deepspeed", 1),
]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """One process: eight steps of LAMB in one go, and what was saved after the fourth."""
    folder = tmp_path_factory.mktemp("unbroken")
    engine = make_engine(values(1, optimizer="Lamb"))
    losses, _ = train(engine, 0, 4)
    middle = gather_state(engine)
    torch.save(middle, folder / "step4.pt")
    losses += train(engine, 4, 8)[0]
    end = gather_state(engine)
    engine.close()
    return {"losses": losses, "end": end, "file": folder / "step4.pt"}


@pytest.fixture(scope="module")
def two(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory, unbroken: dict) -> dict:
    """What two ranks found, in one start."""
    folder: Path = tmp_path_factory.mktemp("two")
    half = [
        {"name": "first", "values": values(1, optimizer="Lamb"), "last": 4},
        {
            "name": "second",
            "values": values(3, optimizer="Lamb"),
            "first": 4,
            "last": 8,
            "load": str(unbroken["file"]),
        },
    ]
    others = [
        {"name": "adamw2", "values": values(2), "last": 12},
        {"name": "bf16_1", "values": values(1, "bf16", "Lamb"), "last": 6},
        {"name": "bf16_3", "values": values(3, "bf16", "Lamb"), "last": 6},
        *(
            {
                "name": f"poison{stage}",
                "values": values(stage, optimizer="Lamb"),
                "last": 6,
                "poison": [2, 1, 1],
            }
            for stage in (0, 2, 3)
        ),
        *(
            {"name": f"muon{stage}", "values": values(stage, optimizer="Muon"), "last": 6}
            for stage in (2, 3)
        ),
        {"name": "aligned", "values": values(2, zero={"parameter_alignment": True}), "last": 4},
    ]
    lambs = [lamb_case(variant, stage) for variant, stage in EVERYDAY]
    return run(fork_server, 2, [*lambs, *half, *others], folder)


@pytest.mark.parametrize(("variant", "stage"), EVERYDAY)
def test_two_ranks_train_as_the_textbook_does(two: dict, variant: str, stage: int) -> None:
    check_lamb(two[f"{variant}{stage}"], variant)


def test_tensors_straddle_ranks_and_partitions_end_in_padding(two: dict) -> None:
    """Else the case above would prove little."""
    total = sum(p.numel() for n, p in Toy().named_parameters() if n != "scale")
    [(size, covered, _)] = two["nvidia2"]["partitions"]
    assert 2 * size > total > size == covered
    [(size, covered, _)] = two["nvidia3"]["partitions"]
    assert covered == size and 2 * size > total


def test_every_element_has_one_owner_at_every_stage(two: dict) -> None:
    total = sum(p.numel() * (1 if n == "scale" else 3) for n, p in Toy().named_parameters())
    for stage in range(4):
        counts = two[f"nvidia{stage}"]["counts"]
        assert sum(counts) == total
        assert min(counts) > 0.3 * total  # at stage 0, too, the ranks share the writing


def test_trust_ratios_are_summed_up_per_group(two: dict) -> None:
    found = two["nvidia1"]
    ratios = sorted(found["ratios"].values())
    low, _, high = found["summary"]["decay"]
    assert (low, high) == (ratios[0], ratios[-1])
    assert set(found["summary"]) == {"decay"}
    assert set(two["paper3"]["summary"]) == {"decay", "no_decay"}


def test_adamw_on_two_ranks_is_torchs(two: dict) -> None:
    want, losses, _, _ = train_reference(12, "AdamW")
    assert distance(two["adamw2"]["state"], want) < 2e-6
    assert two["adamw2"]["losses"] == pytest.approx(losses, rel=2e-6)
    assert distance(two["aligned"]["state"], train_reference(4, "AdamW")[0]) < 2e-6


@pytest.mark.parametrize("stage", [2, 3])
def test_muon_on_two_ranks_is_the_textbooks(two: dict, stage: int) -> None:
    want, losses, _, _ = train_reference(6, "Muon")
    assert distance(two[f"muon{stage}"]["state"], want) < 1e-6
    assert two[f"muon{stage}"]["losses"] == pytest.approx(losses, rel=2e-6)


def test_bf16_masters_start_exact_and_stay_near(two: dict) -> None:
    exact = {(n, "weight"): p.detach().view(-1) for n, p in Toy().named_parameters()}
    want, losses, _, _ = train_reference(6, "nvidia")
    for name in ("bf16_1", "bf16_3"):
        start = {key: part for key, part in two[name]["start"].items() if key[1] == "weight"}
        start["scale", "weight"] = exact["scale", "weight"]  # frozen: lives in bf16 only
        assert same(start, exact)
        assert 1e-6 < distance(two[name]["state"], want) < 4e-3
        assert two[name]["losses"] == pytest.approx(losses, rel=4e-3)
    assert two["bf16_1"]["kind"] == "bf16"


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_nan_on_one_rank_skips_the_step_on_all(two: dict, stage: int) -> None:
    found = two[f"poison{stage}"]
    assert found["applied"] == [[True, True, False, True, True, True]] * 2
    assert found["steps"] == 5
    want = train_reference(6, "nvidia", skip=(2,))[0]
    assert distance(found["state"], want) < 1e-6


def test_a_run_resumes_with_other_processes_and_another_stage(two: dict, unbroken: dict) -> None:
    # one rank, stage 1 -> two ranks, stage 3
    assert same(two["second"]["start"], torch.load(unbroken["file"]))
    assert two["second"]["losses"] == pytest.approx(unbroken["losses"][4:], rel=1e-6)
    assert distance(two["second"]["state"], unbroken["end"]) < 1e-6
    # two ranks, stage 1 -> one rank, stage 0
    assert two["first"]["losses"] == pytest.approx(unbroken["losses"][:4], rel=1e-6)
    engine = make_engine(values(0, optimizer="Lamb"))
    engine.load_pieces(reader(two["first"]["state"]), optimizer_steps=4, moments=True)
    losses, _ = train(engine, 4, 8)
    end = gather_state(engine)
    engine.close()
    assert losses == pytest.approx(unbroken["losses"][4:], rel=1e-6)
    assert distance(end, unbroken["end"]) < 1e-6


def test_nothing_is_printed(two: dict) -> None:
    lines = [line for line in two["output"]["text"].splitlines() if line.strip()]
    assert lines == []


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_all_variants_stages_and_sizes(
    fork_server: ForkServer, tmp_path: Path, world_size: int
) -> None:
    micro_batch = {1: 8, 2: 4, 3: 4, 4: 3}[world_size]
    every = list(itertools.product(LAMBS, range(4)))
    found = run(fork_server, world_size, [lamb_case(v, s, micro_batch) for v, s in every], tmp_path)
    for variant, stage in every:
        check_lamb(found[f"{variant}{stage}"], variant)


@pytest.mark.slow
def test_more_ways_to_cut(fork_server: ForkServer, tmp_path: Path) -> None:
    """Sub-groups, offload, small reduce buckets, no accumulation: the same numbers."""
    cpu = {"device": "cpu", "pin_memory": False}
    cases = [
        lamb_case("nvidia", 3, zero={"sub_group_size": 700}),
        lamb_case("paper", 2, zero={"offload_optimizer": cpu}),
        lamb_case("paper", 3, zero={"offload_optimizer": cpu, "offload_param": cpu}),
        lamb_case("deepspeed", 1, zero={"offload_optimizer": cpu}),
        lamb_case("nvidia", 2, 12, zero={"overlap_comm": True}),
        lamb_case("deepspeed", 2, zero={"reduce_scatter": False, "parameter_alignment": True}),
    ]
    found = run(fork_server, 2, cases, tmp_path)
    for case in cases:
        check_lamb(found[case["name"]], case["values"]["optimizer"]["params"]["variant"])


@pytest.mark.slow
def test_round_trip_over_processes_and_stages(
    fork_server: ForkServer, tmp_path: Path, unbroken: dict
) -> None:
    """2 ranks at stage 1 -> 1 at stage 3 -> 3 at stage 0 -> 2 at stage 2."""
    state, losses = None, []
    for number, (world_size, stage) in enumerate([(2, 1), (1, 3), (3, 0), (2, 2)]):
        case = {
            "name": f"part{number}",
            "values": values(stage, optimizer="Lamb"),
            "first": 2 * number,
            "last": 2 * number + 2,
        }
        if state is not None:
            torch.save(state, tmp_path / "state.pt")
            case["load"] = str(tmp_path / "state.pt")
        found = run(fork_server, world_size, [case], tmp_path)[f"part{number}"]
        state = found["state"]
        losses += found["losses"]
    assert losses == pytest.approx(unbroken["losses"], rel=1e-6)
    assert distance(state, unbroken["end"]) < 1e-6
