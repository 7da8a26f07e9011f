"""The canary's own parts; ``make canary`` itself needs the network."""

from __future__ import annotations

from pathlib import Path

from tests.end_to_end import canary


def test_every_internal_that_the_engine_relies_on_is_there() -> None:
    found = canary.fingerprints()
    assert [name for name, value in found["found"].items() if not value] == []
    assert set(found["versions"]) == {"deepspeed", "torch"}


def test_only_deepspeed_and_torch_are_unpinned(repository: Path) -> None:
    wanted = {"deepspeed": None, "torch": "2.14.0"}
    needed = canary.requirements(repository / "pyproject.toml", wanted)
    assert needed[-2:] == ["deepspeed", "torch==2.14.0"]
    assert any(line.startswith("transformers") for line in needed)
    assert any(line.startswith("pytest>=") for line in needed)
    assert not any(line.startswith(("ruff", "torch>=", "deepspeed==")) for line in needed)
    pins = canary.constraints(repository / "constraints.txt").splitlines()
    assert any(line.startswith("transformers==") for line in pins)
    assert not any(line.startswith(("torch==", "deepspeed==", "triton==")) for line in pins)


def test_moved_and_failing_internals_are_named(tmp_path: Path) -> None:
    before = {"found": {"a:same": "1", "a:other": "1", "a:lost": "1"}}
    after = {"found": {"a:same": "1", "a:other": "2", "a:lost": None}}
    assert canary.moved(before, after) == ["  changed  a:other", "  gone     a:lost"]
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="t" name="good"/><testcase classname="t" '
        'name="bad"><failure message="AssertionError: zero1&#10;more"/></testcase></testsuite>'
        "</testsuites>"
    )
    assert canary.failures(report) == (2, ["  t::bad  AssertionError: zero1"])
