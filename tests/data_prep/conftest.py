from __future__ import annotations

import bz2
import hashlib
import random
from pathlib import Path
from types import SimpleNamespace
from xml.sax.saxutils import escape

import pytest

COMMON_WORDS = """
the of and in to was is for on as with by he that from at his it an were are which this also be had
or has first their one its new after but who not they have her she two been other when there all
during into school time may years more most only over city some world would where later up such used
many can state about national out known university united then made
"""
WORDS = COMMON_WORDS.split()


def sentence(rng: random.Random) -> str:
    words = [rng.choice(WORDS) for _ in range(rng.randint(4, 20))]
    return " ".join([words[0].capitalize(), *words[1:]]) + "."


def article(rng: random.Random, paragraphs: int = 4) -> str:
    return "\n\n".join(
        " ".join(sentence(rng) for _ in range(rng.randint(2, 6))) for _ in range(paragraphs)
    )


def page(title: str, text: str, *, namespace: int | None = 0, redirect: bool = False) -> str:
    parts = [f"  <page>\n    <title>{escape(title)}</title>"]
    if namespace is not None:
        parts.append(f"    <ns>{namespace}</ns>")
    if redirect:
        parts.append('    <redirect title="Elsewhere" />')
    parts.append(
        '    <revision>\n      <id>1</id>\n      <text xml:space="preserve">'
        f"{escape(text)}</text>\n    </revision>\n  </page>\n"
    )
    return "\n".join(parts)


def dump(pages: list[str], *, siteinfo: str = "", version: str = "0.10") -> bytes:
    head = f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-{version}/">\n{siteinfo}'
    return (head + "".join(pages) + "</mediawiki>\n").encode()


def multistream(data: bytes, streams: int) -> bytes:
    step = -(-len(data) // streams)
    return b"".join(bz2.compress(data[i : i + step]) for i in range(0, len(data), step))


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with its hash."""
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="session")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small uncased vocabulary that knows all letters."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'()-\""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    tokens += [f"##{c}" for c in letters if c.isalnum()]
    tokens += [w for w in dict.fromkeys(WORDS) if len(w) > 1]
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join(tokens) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def wiki_dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty articles, ten redirects, a talk page and an empty one, in seven bzip2 streams."""
    rng = random.Random(7)
    pages = [page(f"Article {i}", f"'''Article {i}''' {article(rng)}") for i in range(60)]
    pages += [page(f"R{i}", "#REDIRECT [[Article 1]]", redirect=True) for i in range(10)]
    pages += [page("Talk:Article 1", "Hello there.", namespace=1), page("Nothing", "")]
    rng.shuffle(pages)
    path = tmp_path_factory.mktemp("wiki") / "wiki.xml.bz2"
    path.write_bytes(multistream(dump(pages), 7))
    return path


@pytest.fixture(scope="session")
def made() -> SimpleNamespace:
    """The functions above, which tests cannot import from here."""
    return SimpleNamespace(
        sentence=sentence, article=article, page=page, dump=dump, multistream=multistream, tree=tree
    )
