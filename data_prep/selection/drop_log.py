"""Counts the documents that are dropped; with ``--keep-dropped``, also writes them.

```text
stage 1: WORK/tokens/NAME.dropped      stage 2: WORK/shards/SPLIT-N.dropped      JSON lines
  -> OUT/dropped/REASON.jsonl          {"source": ..., "title": ..., "text": ...}
```
"""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from bertds.errors import DataError
from bertds.system.atomic_files import write_text

FOLDER = "dropped"
ENCODING_PREFIX = "encoding:"
"""Prefix of counts that are not drops: documents decoded from a detected encoding."""


class DropLog:
    """The documents that one task read and dropped."""

    def __init__(self, sources: Sequence[str], keep: bool) -> None:
        self.sources, self.keep = sources, keep
        self.counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.lines: list[str] = []

    def read(self, source: int) -> None:
        """Count a document that a source yielded."""
        self.counts[self.sources[source]]["read"] += 1

    def decoded(self, source: int, encoding: str) -> None:
        """Count a document that was decoded from an encoding that had to be detected."""
        self.counts[self.sources[source]][f"{ENCODING_PREFIX}{encoding}"] += 1

    def drop(self, source: int, reason: str, note: bytes) -> None:
        """Count a dropped document; ``note`` is the result of :func:`note_of`."""
        self.counts[self.sources[source]][reason] += 1
        if self.keep:
            self.lines.append(f"{reason}\t{note.decode('utf-8')}\n")

    def counts_json(self) -> dict[str, dict[str, int]]:
        """Return the counts in the form that markers store."""
        return {source: dict(sorted(own.items())) for source, own in sorted(self.counts.items())}

    def save(self, path: Path) -> int:
        """Write the dropped documents, if they are kept. Returns their number."""
        if self.keep:
            write_text(path, "".join(self.lines))
        return len(self.lines)


def split_counts(counts: Mapping[str, int]) -> tuple[Counter[str], dict[str, int]]:
    """Return a source's counts without encodings, and the number of documents of each encoding."""
    encodings = {
        name.removeprefix(ENCODING_PREFIX): count
        for name, count in sorted(counts.items())
        if name.startswith(ENCODING_PREFIX)
    }
    rest = Counter({n: c for n, c in counts.items() if not n.startswith(ENCODING_PREFIX)})
    return rest, encodings


def note_of(source: str, title: str, text: str) -> bytes:
    """Return one line of JSON that shows a document."""
    record = {"source": source, "title": title, "text": text}
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "replace")


def gather(logs: Iterable[Path], work: Path, out: Path) -> None:
    """Sort the dropped documents of all tasks by reason into ``out/dropped``.

    Args:
        logs: the files of the tasks, in an order that does not depend on the workers.
        work: a folder for unfinished files.
        out: the prepared folder.

    Raises:
        DataError: a file of an earlier run was removed.
    """
    folder = work / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    files: dict[str, TextIO] = {}
    with ExitStack() as stack:
        for log in logs:
            if not log.is_file():
                raise DataError(
                    f"{log}: missing; remove the .json files of its folder and run this command "
                    "again"
                )
            with open(log, encoding="utf-8", newline="\n") as lines:
                for line in lines:
                    reason, _, record = line.partition("\t")
                    if reason not in files:
                        path = folder / f"{reason}.jsonl"
                        files[reason] = stack.enter_context(
                            open(path, "w", encoding="utf-8", newline="\n")
                        )
                    files[reason].write(record)
    # Complete files replace those of an earlier run; other files in the folder are the user's.
    (out / FOLDER).mkdir(exist_ok=True)
    for old in (out / FOLDER).glob("*.jsonl"):
        old.unlink()
    for path in folder.iterdir():
        path.rename(out / FOLDER / path.name)
    folder.rmdir()


def logs_in_order(results: Sequence[dict[str, Any]], folders: Sequence[Path]) -> list[Path]:
    """Return the logs of stage 1, source by source and file by file.

    Args:
        results: the results that the tasks recorded.
        folders: the folders that may hold their parts, by stage.
    """
    # A part of tokens has the name of the part of text it was made from (with --train-vocab).
    place = {result["part"]: result["order"] for result in results if result["stage"] == 0}
    ordered = sorted(results, key=lambda result: (place[result["part"]], result["stage"]))
    return [folders[result["stage"]] / f"{Path(result['part']).stem}.dropped" for result in ordered]
