from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from bertds.doctor.node import data_facts, gpu_facts, job_gpus, rounds_of_pairs
from bertds.doctor.verdict import Verdict, judge, read_reports

NODES = ["n1", "n2", "n3", "n4"]


def reports(nodes: list[str] = NODES, gpus: int = 0) -> dict[str, list[dict[str, Any]]]:
    """What healthy nodes say."""
    said: dict[str, list[dict[str, Any]]] = {}
    for node in nodes:
        facts = {
            "code": "c0de",
            "packages": {"torch": "2.13.0", "numpy": "2.4"},
            "data": {"digest": "abc"},
            "run": {"free_gb": 100.0},
            "temporary": {"free_gb": 5.0},
            "gpus_given": gpus,
            "gpus": [
                {"index": str(i), "name": "H200", "used_mb": 4, "total_mb": 140000, "ecc": 0}
                for i in range(gpus)
            ],
        }
        said[node] = [{"node": node, "facts": facts}]
        if len(nodes) > 1:
            said[node].append({"node": node, "meet": {"clock": 0.001}})
        if gpus:
            said[node].append({"node": node, "gpu": {str(i): "ok" for i in range(gpus)}})
    for a, b in combinations(nodes, 2):
        said[a].append({"node": a, "pair": [a, b], "gbps": 90.0})
        said[b].append({"node": b, "pair": [a, b], "gbps": 91.0})
    return said


def verdict(said: dict[str, list[dict[str, Any]]], nodes: list[str] = NODES) -> Verdict:
    return judge(said, nodes, "full", 5.0, "gpu")


def facts(said: dict[str, list[dict[str, Any]]], node: str) -> dict[str, Any]:
    return said[node][0]["facts"]


def test_healthy_nodes() -> None:
    for gpus in (0, 8):
        found = verdict(reports(gpus=gpus))
        assert found.problems == {} and found.everywhere == []
        assert "median 90.00 Gbit/s of 6 pairs" in found.notes[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"code": "other"}, "code differs: other, but c0de on most nodes"),
        ({"packages": {"torch": "2.12.0", "numpy": "2.4"}}, "torch differs: 2.12.0"),
        ({"data": {"digest": "x"}}, "data differs"),
        ({"data": {"error": "/data: not found"}}, "/data: not found"),
        ({"run": {"error": "/runs: cannot be written"}}, "/runs: cannot be written"),
        ({"run": {"free_gb": 1.0}}, "1.0 GB free for the run folder, 5 GB needed"),
    ],
)
def test_a_node_that_differs_is_named_alone(change: dict[str, Any], message: str) -> None:
    for node in NODES:
        said = reports()
        facts(said, node).update(change)
        found = verdict(said)
        assert list(found.problems) == [node] and message in found.problems[node][0]
        assert found.everywhere == []


def test_a_fault_of_all_nodes_blames_no_single_node() -> None:
    said = reports(gpus=2)
    for node in NODES:
        facts(said, node)["gpus"] = []
    found = verdict(said)
    assert found.problems == {}
    assert found.everywhere == [
        "no free GPU: Slurm allocated 2 on each node (partition gpu), but the driver finds 0"
    ]


def test_sick_gpus() -> None:
    said = reports(gpus=2)
    facts(said, "n2")["gpus"][1]["ecc"] = 3
    facts(said, "n3")["gpus"][0]["used_mb"] = 70000
    said["n4"][2]["gpu"]["1"] = "computes wrong results"
    assert verdict(said).problems == {
        "n2": ["GPU 1 (H200) has 3 uncorrected memory errors"],
        "n3": ["no free GPU: 70000 MB of GPU 0 (H200) are in use by another process"],
        "n4": ["GPU 1: computes wrong results"],
    }
    # On a job's only node too memory errors are the node's, so that it is excluded.
    said = reports(["n1"], gpus=1)
    facts(said, "n1")["gpus"][0]["ecc"] = 1
    assert list(verdict(said, ["n1"]).problems) == ["n1"]


def test_clocks() -> None:
    said = reports()
    said["n3"][1]["meet"]["clock"] = -60.0
    assert verdict(said).problems == {"n3": ["its clock differs from that of n1 by +60.0 s"]}


def test_a_silent_node_is_named_and_not_those_that_waited_for_it() -> None:
    said = reports()
    del said["n3"]
    for node in ("n1", "n2", "n4"):
        said[node] = [line for line in said[node] if "n3" not in line.get("pair", [])]
    assert list(verdict(said).problems) == ["n3"]
    assert "no report" in verdict(said).problems["n3"][0]


def test_a_node_that_no_other_node_reaches_is_named() -> None:
    said = reports()
    for lines in said.values():
        for line in lines:
            if "n2" in line.get("pair", []):
                del line["gbps"]
                line["error"] = "Connection timed out"
    assert list(verdict(said).problems) == ["n2"]
    # A broken cable between two of many: one of the two must go, which one is arbitrary.
    said = reports()
    for lines in said.values():
        lines[:] = [line for line in lines if line.get("pair") != ["n1", "n4"]]
    assert verdict(said).problems == {"n4": ["all-reduce with n1 failed: no response"]}


def test_if_no_node_reaches_the_first_it_is_the_bad_one() -> None:
    said = reports()
    for node in NODES[1:]:
        said[node] = [said[node][0], {"node": node, "meet": {"error": "cannot reach n1:15001"}}]
    said["n1"] = said["n1"][:1]
    assert verdict(said).problems == {"n1": ["no other node can reach it"]}


def test_no_report_at_all_blames_no_node() -> None:
    found = verdict({})
    assert found.problems == {} and "srun could not start" in found.notes[0]


def test_other_output_between_the_reports_is_ignored() -> None:
    lines = ["[W socket.cpp] noise", json.dumps({"node": "n1", "facts": {}}), "{broken", "3"]
    assert read_reports(lines) == {"n1": [{"node": "n1", "facts": {}}]}


@pytest.mark.parametrize("nodes", range(2, 17))
def test_in_a_tournament_each_pair_is_tested_once(nodes: int) -> None:
    rounds = rounds_of_pairs(nodes)
    assert sorted(pair for pairs in rounds for pair in pairs) == list(combinations(range(nodes), 2))
    for pairs in rounds:
        members = [node for pair in pairs for node in pair]
        assert len(members) == len(set(members))


@pytest.mark.parametrize("nodes", [17, 64, 100, 1000])
def test_many_nodes_have_few_partners_each_and_are_all_connected(nodes: int) -> None:
    rounds = rounds_of_pairs(nodes)
    assert len(rounds) <= 10
    reached = {0}
    for _ in rounds:
        reached |= {b for pairs in rounds for a, b in pairs if a in reached}
        reached |= {a for pairs in rounds for a, b in pairs if b in reached}
    assert reached == set(range(nodes))


def test_data_facts(tiny_data: Path, tmp_path: Path) -> None:
    import shutil

    assert "digest" in data_facts(str(tiny_data))
    copy = tmp_path / "data"
    shutil.copytree(tiny_data, copy)
    assert data_facts(str(copy)) == data_facts(str(tiny_data))
    shard = copy / "train" / "shard_00001.h5"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "shard_00001.h5" in data_facts(str(copy))["error"]
    shard.unlink()
    assert "missing, but the manifest says" in data_facts(str(copy))["error"]
    assert data_facts(str(tmp_path / "x")) == {"error": f"{tmp_path / 'x'}: not found"}


def test_figures_reported_by_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text(
        "#!/bin/sh\nprintf '%s\\n' '0, NVIDIA H200, 4, 143771, 0' '1, NVIDIA T4, 9, 15360, [N/A]'\n"
    )
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert gpu_facts() == [
        {"index": "0", "name": "NVIDIA H200", "used_mb": 4, "total_mb": 143771, "ecc": 0},
        {"index": "1", "name": "NVIDIA T4", "used_mb": 9, "total_mb": 15360, "ecc": 0},
    ]
    driver.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert gpu_facts() == []


def test_gpus_of_other_jobs_on_the_node_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [{"index": str(i)} for i in range(4)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert job_gpus(seen, 2) == seen[2:]
    assert job_gpus(seen, 4) == seen
    assert job_gpus(seen[:1], 2) == seen[:1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1a,GPU-2b")
    assert job_gpus(seen, 2) == seen
