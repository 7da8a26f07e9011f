from __future__ import annotations

import resource
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from bertds.cli import main as command
from bertds.doctor import machine as check


def only(findings: object) -> tuple[bool | None, str, str]:
    (finding,) = list(findings)  # type: ignore[call-overload]
    return finding


def test_this_machine_is_fit_and_everything_is_checked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(["doctor"]) == 0
    text = capsys.readouterr().out
    for what in (
        "python",
        "torch",
        "deepspeed",
        "GPU",
        "compiler",
        "cores",
        "/dev/shm",
        "open files",
        "locked memory",
        "network",
        "host name",
        "disk",
    ):
        assert f"  {what} " in text
    assert "FAIL" not in text


def test_a_run_folder_that_cannot_be_created_is_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "run"
    assert command(["doctor", "--run", str(folder)]) == 1
    assert f"FAIL  run folder     {folder}: cannot be used here" in capsys.readouterr().out


def test_a_missing_or_other_version_names_the_remedy() -> None:
    def other(name: str) -> str:
        if name == "h5py":
            raise PackageNotFoundError(name)
        return "0.19.7" if name == "deepspeed" else version(name)

    broken = {name: text for good, name, text in check.packages(other) if good is False}
    assert set(broken) == {"h5py", "deepspeed"}
    assert broken["deepspeed"].startswith("0.19.7, but bertds needs ==0.19.8; pip install -c")
    assert broken["h5py"].startswith("missing; pip install")


def test_a_gpu_without_a_compiler_is_reported_with_what_fails() -> None:
    good, _, text = only(check.compiler(with_gpu=True, which=lambda _: None))
    assert good is None and text.startswith("no g++, nvcc, ninja") and "bertds[gpu]" in text
    assert only(check.compiler(with_gpu=True, which=lambda tool: tool))[0]
    assert only(check.compiler(with_gpu=False, which=lambda _: None))[0]


def test_limits_and_their_remedies() -> None:
    endless = resource.RLIM_INFINITY
    assert next(check.limits(lambda _: (1024, 65536))) == (True, "open files", "65,536")
    low = next(check.limits(lambda _: (1024, 2048)))
    assert low == (None, "open files", "2,048; raise nofile in /etc/security/limits.conf")
    assert [good for good, *_ in check.limits(lambda _: (endless, endless))] == [True, True]


def test_interfaces_that_are_up(tmp_path: Path) -> None:
    for name, state, speed in (("eth0", "up", "100000"), ("eth1", "down", "-1"), ("lo", "up", "")):
        (tmp_path / "net" / name).mkdir(parents=True)
        (tmp_path / "net" / name / "operstate").write_text(state + "\n")
        (tmp_path / "net" / name / "speed").write_text(speed + "\n")
    (tmp_path / "infiniband/mlx5_0").mkdir(parents=True)

    def unknown(_: str) -> str:
        raise OSError

    up, host = check.network(tmp_path / "net", unknown)
    assert up == (True, "network", "eth0 100 Gbit/s, InfiniBand mlx5_0")
    assert host[0] is None and "GLOO_SOCKET_IFNAME" in host[2]


def test_little_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--shm-size" in only(check.shared_memory(tmp_path / "nothing"))[2]
    monkeypatch.setattr(check, "DISK_BYTES", 1e30)
    assert "bertds plan" in only(check.disks((str(tmp_path),)))[2]


@pytest.mark.parametrize(
    ("capability", "installed", "said"),
    [
        (None, False, [("attention", "rows grouped by length (CPU)")]),
        ((7, 0), False, [("attention", "padded rows; torch's FlashAttention: it needs compute")]),
        ((8, 0), True, [("attention", "FlashAttention 2 (torch's own), with any dropout")]),
        (
            (9, 0),
            False,
            [
                ("attention", "FlashAttention 2"),
                ("FlashAttention 3", "FlashAttention 3 is not installed: pip install"),
                ("FlashAttention 4", "FlashAttention 4 is not installed: pip install"),
            ],
        ),
        (
            (10, 0),
            True,
            [
                ("attention", "FlashAttention 2"),
                ("FlashAttention 4", "installed; used when model.attention_probs"),
            ],
        ),
    ],
)
def test_doctor_says_which_attention_kernel_runs(capability, installed, said, monkeypatch) -> None:
    monkeypatch.setattr("bertds.model.attention_kernels.is_installed", lambda kernel: installed)
    found = list(check.attention(capability))
    assert [name for _, name, _ in found] == [name for name, _ in said]
    assert all(text.startswith(start) for (_, _, text), (_, start) in zip(found, said, strict=True))
    assert all(good is not False for good, _, _ in found)
