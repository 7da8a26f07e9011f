"""Judges the nodes' reports: which node is bad, what is wrong on all of them, and the figures.

A fault on all nodes is the user's or the site's (a wrong path, a CPU build of torch). It counts as
bad input, because no retry would fix it. A fault on some nodes is theirs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from bertds.display.words import count
from bertds.doctor.node import rounds_of_pairs
from bertds.system.json_fields import parse_json

CLOCK_SECONDS = 5.0
"""A larger difference between clocks confuses locks and logs."""
BUSY_MB = 1024
"""More GPU memory in use than this belongs to another process."""
SLOW_SHARE = 1 / 3
"""A pair below this fraction of the median bandwidth is reported."""


@dataclass(slots=True)
class Verdict:
    """The outcome."""

    problems: dict[str, list[str]] = field(default_factory=dict)
    """Bad nodes, with the faults of each."""
    everywhere: list[str] = field(default_factory=list)
    """Faults on all nodes."""
    notes: list[str] = field(default_factory=list)
    """Figures, and oddities that are no reason to stop."""

    def blame(self, node: str, text: str) -> None:
        """Add a problem of one node."""
        self.problems.setdefault(node, []).append(text)


def read_reports(lines: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """Return each node's lines; lines that are not JSON (messages of libraries) are left out."""
    reports: dict[str, list[dict[str, Any]]] = {}
    for text in lines:
        try:
            line = parse_json(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "node" in line:
            reports.setdefault(line["node"], []).append(line)
    return reports


def judge(
    reports: dict[str, list[dict[str, Any]]],
    nodes: list[str],
    level: str,
    min_free_gb: float,
    partition: str = "",
) -> Verdict:
    """Compare the nodes' reports.

    Args:
        reports: from :func:`read_reports`.
        nodes: names of all nodes, the first one first.
        level: "full" if GPUs and pairs were tested.
        min_free_gb: space that the run folder must have.
        partition: of the job, for messages.
    """
    verdict = Verdict()
    said = {
        node: {k: v for line in reports.get(node, []) for k, v in line.items()} for node in nodes
    }
    # A node without facts has not even started.
    facts = {node: values["facts"] for node, values in said.items() if "facts" in values}
    for node in nodes:
        if node not in facts:
            verdict.blame(node, "no report: it did not start a task or cannot see the code")
    if not facts:
        verdict.problems.clear()
        verdict.notes.append("no node reported: srun could not start the preflight")
        return verdict

    def check(test: Callable[[dict[str, Any]], str]) -> None:
        """Apply a test to each node's facts; a fault on all nodes is not that of one node."""
        found = {node: text for node, values in facts.items() if (text := test(values))}
        if len(found) == len(nodes):
            verdict.everywhere.append(found[nodes[0]])
        else:
            for node, text in found.items():
                verdict.blame(node, text)

    # Faults of a single node: files, space and GPUs.
    check(lambda f: f.get("data", {}).get("error", ""))
    check(lambda f: f.get("run", {}).get("error", ""))
    check(lambda f: f.get("temporary", {}).get("error", ""))
    check(lambda f: _too_little_room(f, min_free_gb))
    check(lambda f: _gpus_missing(f, partition))
    check(_gpus_busy)
    for node, values in facts.items():
        for gpu in values.get("gpus", []):
            if gpu["ecc"]:
                name = f"GPU {gpu['index']} ({gpu['name']})"
                verdict.blame(node, f"{name} has {gpu['ecc']} uncorrected memory errors")
    # All nodes must have the same data, code and packages.
    _check_equal(verdict, "data", {n: f.get("data", {}).get("digest") for n, f in facts.items()})
    _check_equal(verdict, "code", {n: f.get("code") for n, f in facts.items()})
    for name in sorted({name for f in facts.values() for name in f.get("packages", {})}):
        found = {node: f.get("packages", {}).get(name) for node, f in facts.items()}
        _check_equal(verdict, name, found)
    # The connection to the first node, and the clocks.
    for node, values in said.items():
        meet = values.get("meet", {})
        if "error" in meet:
            verdict.blame(node, meet["error"])
        elif abs(meet.get("clock", 0.0)) > CLOCK_SECONDS:
            off = f"its clock differs from that of {nodes[0]} by {-meet['clock']:+.1f} s"
            verdict.blame(node, off)
    if level == "full" and not verdict.everywhere:  # one reason to stop is enough
        _check_computations(verdict, said, facts)
        _check_pairs(verdict, reports, nodes)
    _blame_the_first(verdict, said, nodes)
    return verdict


def _too_little_room(facts: dict[str, Any], min_free_gb: float) -> str:
    free = facts.get("run", {}).get("free_gb")
    if free is not None and free < min_free_gb:
        return f"{free} GB free for the run folder, {min_free_gb:g} GB needed (BERTDS_MIN_FREE_GB)"
    return ""


def _gpus_missing(facts: dict[str, Any], partition: str) -> str:
    given, found = facts.get("gpus_given", 0), len(facts.get("gpus", []))
    if given and found < given:
        where = f" (partition {partition})" if partition else ""
        return (
            f"no free GPU: Slurm allocated {given} on each node{where}, but the driver finds "
            f"{found}"
        )
    return ""


def _gpus_busy(facts: dict[str, Any]) -> str:
    for gpu in facts.get("gpus", []):
        if gpu["used_mb"] > BUSY_MB:
            return (
                f"no free GPU: {gpu['used_mb']} MB of GPU {gpu['index']} ({gpu['name']}) are in "
                "use by another process"
            )
    return ""


def _check_equal(verdict: Verdict, what: str, by_node: dict[str, Any]) -> None:
    """Blame the nodes that differ from the majority; in a tie the first node is right."""
    values = {node: value for node, value in by_node.items() if value is not None}
    if len(set(values.values())) < 2:
        return
    usual = Counter(values.values()).most_common(1)[0][0]  # in a tie, the first one seen
    for node, found in values.items():
        if found != usual:
            verdict.blame(node, f"{what} differs: {found}, but {usual} on most nodes")


def _check_computations(
    verdict: Verdict, said: dict[str, dict[str, Any]], facts: dict[str, Any]
) -> None:
    # A GPU that computes wrong results, or none, is a fault of its node.
    wrong = {}
    for node, values in said.items():
        if node in facts and facts[node].get("gpus_given"):
            if "gpu" not in values:
                continue  # it was busy with a test that has its own fault
            bad = [f"GPU {i}: {text}" for i, text in values["gpu"].items() if text != "ok"]
            if bad:
                wrong[node] = "; ".join(bad)
    if wrong and len(wrong) == len(said):
        verdict.everywhere.append(next(iter(wrong.values())))
    else:
        for node, text in wrong.items():
            verdict.blame(node, text)


def _check_pairs(
    verdict: Verdict, reports: dict[str, list[dict[str, Any]]], nodes: list[str]
) -> None:
    """Blame the nodes that fail with most of their partners; report the bandwidths."""
    speeds: dict[tuple[str, str], float] = {}
    errors: dict[tuple[str, str], str] = {}
    # The lowest bandwidth and the errors of each pair.
    for line in (line for lines in reports.values() for line in lines if "pair" in line):
        pair = (line["pair"][0], line["pair"][1])
        if "gbps" in line:
            speeds[pair] = min(line["gbps"], speeds.get(pair, float("inf")))
        else:
            errors[pair] = line["error"]
    expected = [(nodes[a], nodes[b]) for pairs in rounds_of_pairs(len(nodes)) for a, b in pairs]
    # A pair with a node that is already known to be bad shows nothing about the other node.
    tried = [p for p in expected if not set(p) & set(verdict.problems)]
    failed = {p: errors.get(p, "no response") for p in tried if p in errors or p not in speeds}
    # Repeatedly blame the node with the most failures, until they are all explained.
    while failed:
        shares = {
            node: sum(node in p for p in failed) / max(1, sum(node in p for p in tried))
            for node in nodes
        }
        # In a tie, blame the later node: the batch script itself runs on the first one.
        worst = max(nodes, key=lambda n: (shares[n], nodes.index(n)))
        mine = {p: text for p, text in failed.items() if worst in p}
        (other, text) = next(((a if b == worst else b), t) for (a, b), t in mine.items())
        verdict.blame(worst, f"all-reduce with {other} failed: {text}")
        failed = {p: t for p, t in failed.items() if worst not in p}
        tried = [p for p in tried if worst not in p]
    if speeds:
        usual = median(speeds.values())
        low = min(speeds, key=lambda p: speeds[p])
        verdict.notes.append(
            f"all-reduce between two nodes: median {usual:.2f} Gbit/s of "
            f"{count(len(speeds), 'pair')}, minimum {speeds[low]:.2f} ({low[0]} - {low[1]})"
        )
        if len(nodes) <= 8:
            verdict.notes += [f"  {a} - {b}: {s:.2f} Gbit/s" for (a, b), s in speeds.items()]
        verdict.notes += [
            f"slow pair: {a} - {b}, {s:.2f} Gbit/s"
            for (a, b), s in speeds.items()
            if s < SLOW_SHARE * usual
        ]


def _blame_the_first(verdict: Verdict, said: dict[str, dict[str, Any]], nodes: list[str]) -> None:
    """If no other node can reach the first one, the first one is bad."""
    others = [said[node].get("meet", {}) for node in nodes[1:] if "facts" in said[node]]
    if len(others) < 2 or not all("error" in meet for meet in others):
        return
    for node in nodes[1:]:
        kept = [text for text in verdict.problems.get(node, []) if "cannot reach" not in text]
        verdict.problems.pop(node, None)
        if kept:
            verdict.problems[node] = kept
    verdict.blame(nodes[0], "no other node can reach it")
