"""Text to HDF5 rows with NVIDIA's ``create_pretraining_data.py``, for benchmarks/prep.py --nvidia.

Runs as a separate process, which may be in another environment. It needs nltk with its punkt data,
h5py, numpy, six and tqdm. It also needs the folder with NVIDIA's script and its
``tokenization.py``. None of these is part of this project.

    python benchmarks/nvidia_rows.py NVIDIA_DIR TEXT_DIR VOCAB OUT.hdf5 DUPE_FACTOR

The timed work is that of their recipe: nltk splits sentences (their ``NLTKSegmenter``), one per
line, and then their script runs. Two changes favour their side: gzip is off, and the module that
downloads vocabularies is not loaded.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any


def split_sentences(text_folder: Path, line_folder: Path) -> None:
    """Write every document as one sentence per line, a blank line after it."""
    import nltk

    line_folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(text_folder.glob("*.txt")):
        with open(line_folder / path.name, "w", newline="\n", encoding="utf-8") as file:
            for document in path.read_text(encoding="utf-8").split("\n\n"):
                # Their formatters put an article on one line, and split that.
                for sentence in nltk.tokenize.sent_tokenize(document.replace("\n", " ")):
                    file.write(sentence + "\n")
                file.write("\n")


def without_compression() -> None:
    """Let h5py ignore their ``compression='gzip'``."""
    import h5py

    create = h5py.File.create_dataset

    def plain(self: Any, name: str, *args: Any, **options: Any) -> Any:
        options.pop("compression", None)
        return create(self, name, *args, **options)

    h5py.File.create_dataset = plain


def main() -> int:
    """Split, then run their script."""
    nvidia, text, vocab, out, dupe_factor = sys.argv[1:]
    sys.path.insert(0, nvidia)
    stub = types.ModuleType("file_utils")
    stub.cached_path = lambda name, **_: name  # type: ignore[attr-defined]
    sys.modules["file_utils"] = stub
    lines = Path(out).with_suffix(".lines")
    split_sentences(Path(text), lines)
    without_compression()
    sys.argv = [
        "create_pretraining_data.py",
        "--vocab_file",
        vocab,
        "--input_file",
        str(lines),
        "--output_file",
        out,
        "--max_seq_length",
        "128",
        "--max_predictions_per_seq",
        "20",
        "--dupe_factor",
        dupe_factor,
        "--do_lower_case",
    ]
    import create_pretraining_data

    create_pretraining_data.main()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
