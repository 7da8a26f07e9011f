"""Compare our wikitext cleaner with WikiExtractor and mwparserfromhell on the same dumps.

    python benchmarks/wikitext.py --dump DUMP.xml.bz2 ... --peers-python PEERS/bin/python
        [--json FILE]

``PEERS`` is a separate environment with ``wikiextractor`` and ``mwparserfromhell``. WikiExtractor
is AGPL; it is only compared with, and nothing of it is used here. The table has words kept, residue
of markup per million characters, and MB of XML per CPU-second without decompression.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.common import (
    PREPARATION_PACKAGES,
    add_result_options,
    footer,
    host_facts,
    versions_in,
    write_result,
)
from data_prep.sources import READERS, file_units, find_files
from data_prep.sources.blocks import whole_blocks
from data_prep.sources.extracted import is_section_title
from data_prep.sources.wikipedia import page_batches

RESIDUE = {
    "{{ }}": r"\{\{|\}\}",
    "[[ ]]": r"\[\[|\]\]",
    "|": r"\|",
    "<": "<",
    "&amp;": r"&[a-z]+;",
    "==": "==",
    "()": r"\(\s*\)",
    " ,": r" [,;]",
}
PEERS = ("wikiextractor", "mwparserfromhell")
_WORD = re.compile(r"\w+")
_DOC = re.compile(r"<doc [^>]*>\n(.*?)\n</doc>", re.DOTALL)
_TITLE = re.compile(rb"<title>(.*?)</title>", re.DOTALL)
_SITEINFO = b"""
<siteinfo>
<base>https://en.wikipedia.org/wiki/Main_Page</base>
<namespaces>
<namespace key="10" case="first-letter">Template</namespace>
<namespace key="828" case="first-letter">Module</namespace>
</namespaces>
</siteinfo>
"""
_STRIP = """
import json, sys, time
import mwparserfromhell
pages = [json.loads(line) for line in open(sys.argv[1])]
began = time.process_time()
texts = [mwparserfromhell.parse(page).strip_code() for page in pages]
seconds = time.process_time() - began
json.dump([seconds, texts], open(sys.argv[2], "w"))
"""


def our_texts(dump: Path, repeat: int, plain: Path) -> tuple[dict[str, str], list[bytes], float]:
    """Return the articles by title, the pages they come from, and the least CPU-seconds.

    Timed is the whole way from the plain dump, on disk, to clean text.
    """
    pages = [page for batch in page_batches(dump, 8 << 20) for page in batch]
    plain.write_bytes(b"".join(block for block, _ in whole_blocks(dump)))
    (file,) = find_files("wiki", [str(plain)], ())
    best = float("inf")
    for _ in range(repeat):
        began = time.process_time()
        documents = [d for unit in file_units(file, 32 << 20) for d in READERS["dump"](unit)]
        best = min(best, time.process_time() - began)
    texts, kept = {}, []
    for page, document in zip(pages, documents, strict=True):
        title = _TITLE.search(page)
        if document.text:
            texts[html.unescape(title[1].decode()) if title else str(len(texts))] = document.text
            kept.append(page)
    return texts, kept, best


def wikiextractor_texts(dump: Path, python: str, folder: Path) -> tuple[list[str], float]:
    """Return WikiExtractor's articles without their title lines, and its CPU-seconds."""
    xml = b"".join(block for block, _ in whole_blocks(dump))
    if b"<siteinfo>" not in xml:  # without it, WikiExtractor writes nothing
        xml = re.sub(rb"(<mediawiki[^>]*>)", rb"\1" + _SITEINFO, xml, count=1)
    plain, out = folder / "dump.xml", folder / "extracted"
    plain.write_bytes(xml)
    command = [python, "-m", "wikiextractor.WikiExtractor", str(plain), "-o", str(out)]
    before = os.times()
    subprocess.run([*command, "--no-templates", "--processes", "1", "-q"], check=True)
    after = os.times()
    seconds = after[2] + after[3] - before[2] - before[3]
    texts = []
    for path in sorted(out.rglob("wiki_*")):
        for body in _DOC.findall(path.read_text("utf-8")):
            texts.append(body.partition("\n")[2].strip())
    return [text for text in texts if text], seconds


def mwparser_texts(pages: Sequence[bytes], python: str, folder: Path) -> tuple[list[str], float]:
    """Return ``strip_code()`` of the pages' wikitext, and its CPU-seconds."""
    sources = []
    for page in pages:
        start = page.find(b">", page.rfind(b"<text")) + 1
        sources.append(html.unescape(page[start : page.find(b"</text>", start)].decode()))
    given, found = folder / "pages.jsonl", folder / "stripped.json"
    given.write_text("".join(json.dumps(source) + "\n" for source in sources))
    subprocess.run([python, "-c", _STRIP, str(given), str(found)], check=True)
    seconds, texts = json.loads(found.read_text())
    return texts, seconds


def measure(name: str, texts: Sequence[str], seconds: float, xml: int, of: Counter[str]) -> Any:
    """Return one row of the table; ``of`` counts the words that the share is taken of."""
    text = "\n".join(texts)
    words = Counter(_WORD.findall(text))
    million = max(1, len(text)) / 1e6
    shared = sum(min(count, words[word]) for word, count in of.items())
    return {
        "tool": name,
        "articles": len(texts),
        "characters": len(text),
        "words": sum(words.values()),
        # Without section titles, which ours leaves out and WikiExtractor writes as "Career.".
        "words_in_prose": sum(
            len(_WORD.findall(line)) for line in text.split("\n") if not is_section_title(line)
        ),
        "share_of_wikiextractor_words": round(shared / max(1, sum(of.values())), 4),
        "residue_per_million": {
            mark: round(len(re.findall(pattern, text)) / million, 1)
            for mark, pattern in RESIDUE.items()
        },
        "mb_xml_per_cpu_second": round(xml / 1e6 / max(seconds, 1e-9), 1),
    }


def compare(dump: Path, python: str, repeat: int, articles_out: Path | None) -> dict[str, Any]:
    """Return the table of one dump; write both texts of each article in ``articles_out``."""
    xml = sum(len(block) for block, _ in whole_blocks(dump))
    rows = []
    with tempfile.TemporaryDirectory() as name:
        ours, pages, seconds = our_texts(dump, repeat, Path(name) / "plain.xml")
        reference, their_seconds = wikiextractor_texts(dump, python, Path(name))
        words = Counter(_WORD.findall("\n".join(reference)))
        stripped, strip_seconds = mwparser_texts(pages, python, Path(name))
        rows.append(measure("this project", list(ours.values()), seconds, xml, words))
        rows.append(measure("WikiExtractor", reference, their_seconds, xml, words))
        # It writes "<" as "&lt;": the same text as a reader sees it.
        undone = [html.unescape(text) for text in reference]
        rows.append(measure("WikiExtractor, unescaped", undone, their_seconds, xml, words))
        rows.append(measure("mwparserfromhell", stripped, strip_seconds, xml, words))
    if articles_out is not None:
        articles_out.mkdir(parents=True, exist_ok=True)
        for title, text in ours.items():
            (articles_out / f"{re.sub('[^A-Za-z0-9]+', '_', title)}.txt").write_text(text)
    return {"dump": dump.name, "mb_xml": xml / 1e6, "tools": rows}


def show(result: dict[str, Any]) -> None:
    """Print a table for each dump."""
    for dump in result["dumps"]:
        print(f"{dump['dump']}: {dump['mb_xml']:.2f} MB XML; marks per million characters")
        marks = "".join(f"{mark:>7}" for mark in RESIDUE)
        print(f"{'':<26}articles   words  in prose  of WikiExtractor's{marks}  MB XML/s")
        for row in dump["tools"]:
            left = "".join(f"{n:7g}" for n in row["residue_per_million"].values())
            print(
                f"{row['tool']:<26}{row['articles']:8,}{row['words']:8,}"
                f"{row['words_in_prose']:10,}{row['share_of_wikiextractor_words']:20.1%}{left}"
                f"{row['mb_xml_per_cpu_second']:10.1f}"
            )
    print(footer(result))


def main(argv: list[str] | None = None) -> int:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dump", type=Path, nargs="+", required=True, help="MediaWiki dumps")
    parser.add_argument("--peers-python", required=True, help="Python with both peers")
    parser.add_argument("--repeat", type=int, default=3, help="repetitions of our run (3)")
    parser.add_argument("--articles-out", type=Path, help="also write our articles to this folder")
    add_result_options(parser)
    args = parser.parse_args(argv)
    result = host_facts("wikitext.py", argv, args.note, PREPARATION_PACKAGES)
    result["versions"] |= versions_in(args.peers_python, PEERS)
    result["dumps"] = [
        compare(dump, args.peers_python, args.repeat, args.articles_out) for dump in args.dump
    ]
    show(result)
    write_result(result, args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
