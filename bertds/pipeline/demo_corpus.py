"""The demo's corpus: a real excerpt of English Wikipedia that is part of a PyPI package.

The wheel ``gensim==4.4.0`` contains, among its test data, the beginning of a dump of 2016: 106
articles (CC BY-SA 3.0). pip downloads it as a file and never installs it.
"""

from __future__ import annotations

from pathlib import Path

from bertds.errors import BertdsError
from bertds.pipeline.wheels import download, read_members
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
    wheel = download(REQUIREMENT, folder, "the demo's text")
    text = read_members(wheel, MEMBER, FILE_NAME)[MEMBER]
    with atomic_path(target) as temporary:
        temporary.write_bytes(text)
    wheel.unlink()
    if target.stat().st_size != BYTES:
        digest = sha256_file(target)[:12]
        raise BertdsError(f"{target}: not the expected file (SHA-256 {digest}...)")
    return target
