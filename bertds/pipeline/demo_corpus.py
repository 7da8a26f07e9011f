"""The demo's corpus: a real excerpt of English Wikipedia that travels inside a PyPI package.

The wheel ``gensim==4.4.0`` carries, among its test data, the head of a 2016 dump: 106 articles
(CC BY-SA 3.0). It is downloaded as a file with pip and never installed.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from bertds.errors import BertdsError
from bertds.system.atomic_files import atomic_path, sha256_file

REQUIREMENT = "gensim==4.4.0"
FILE_NAME = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
MEMBER = f"gensim/test/test_data/{FILE_NAME}"
BYTES = 1_695_871


def fetch(folder: Path) -> Path:
    """Return the excerpt's path below ``folder``, fetching it with pip if it is not there yet.

    Raises:
        BertdsError: pip cannot download the wheel, or it does not hold the file.
    """
    target = folder / FILE_NAME
    if target.is_file() and target.stat().st_size == BYTES:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    # Only its text file is wanted, so any platform's wheel will do.
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
        "--dest",
        str(folder),
        REQUIREMENT,
    ]
    answer = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(folder.glob("gensim-*.whl"))
    if answer.returncode or not wheels:
        reason = (answer.stderr.strip() or "no wheel for this platform").splitlines()[-1]
        raise BertdsError(
            f"pip could not download {REQUIREMENT}, which holds the demo's text ({reason}); give "
            "a dump of your own with WIKI=path make run"
        )
    try:
        with zipfile.ZipFile(wheels[-1]) as wheel, atomic_path(target) as temporary:
            temporary.write_bytes(wheel.read(MEMBER))
    except (KeyError, zipfile.BadZipFile) as error:
        raise BertdsError(f"{wheels[-1]}: does not hold the demo's text ({error})") from None
    for wheel_file in wheels:
        wheel_file.unlink()
    if target.stat().st_size != BYTES:
        digest = sha256_file(target)[:12]
        raise BertdsError(f"{target}: not the file expected (SHA-256 {digest}...)")
    return target
