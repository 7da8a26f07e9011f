"""The benchmarks of preparation run at a tiny size and keep what a result must carry."""

from __future__ import annotations

import bz2
import json
import sys
from pathlib import Path

import pytest

from benchmarks.made_up import write_corpus
from tests.benchmarks.results import result_of

pytestmark = pytest.mark.slow
PAGE = """<page><title>Page {0}</title><ns>0</ns><revision><id>1</id><text xml:space="preserve">
'''Page {0}''' is a [[page|long page]] of {{{{convert|5|km}}}} about the number {0} and others.
</text></revision></page>
"""
PEERS = {
    "wikiextractor/WikiExtractor.py": """
import sys
from pathlib import Path
out = Path(sys.argv[sys.argv.index("-o") + 1]) / "AA"
out.mkdir(parents=True)
body = "Page\\n\\nA page (), &lt;."
(out / "wiki_00").write_text(f'<doc id="1" url="" title="Page">\\n{body}\\n</doc>\\n')
""",
    "mwparserfromhell.py": """
class parse(str):
    def strip_code(self):
        return self
""",
    "wikiextractor-3.1.0.dist-info/METADATA": "Name: wikiextractor\nVersion: 3.1.0\n",
    "mwparserfromhell-0.7.2.dist-info/METADATA": "Name: mwparserfromhell\nVersion: 0.7.2\n",
}
NVIDIA = {
    "nltk.py": """
class tokenize:
    def sent_tokenize(text):
        return text.split(". ")
""",
    "script/create_pretraining_data.py": """
import sys
def main():
    open(sys.argv[sys.argv.index("--output_file") + 1], "w").write("rows")
""",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[str, str]:
    articles, vocab = write_corpus(tmp_path_factory.mktemp("made_up"), 0.1)
    return str(articles), str(vocab)


@pytest.fixture
def dump(tmp_path) -> str:
    pages = "".join(PAGE.format(number) for number in range(20))
    path = tmp_path / "dump.xml.bz2"
    path.write_bytes(bz2.compress(f"<mediawiki>\n{pages}</mediawiki>\n".encode()))
    return str(path)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Puts small modules in the place of others' packages, for this test's other processes."""

    def write(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / "others" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "others"))
        return tmp_path / "others"

    return write


def test_stages_are_compared_with_tokenizers(corpus, dump, tmp_path, capsys) -> None:
    from benchmarks.prep import main

    articles, vocab = corpus
    given = ["--dump", dump, "--wiki", articles, "--vocab", vocab, "--repeat", "1"]
    result = result_of(main, given, tmp_path)
    assert {"numpy", "numba", "tokenizers", "sentencex", "h5py"} <= set(result["versions"])
    stages = {row["stage"]: row for row in result["stages"]}
    assert stages["decompress"]["input"] == "MB XML"
    assert stages["(tokenizers alone)"]["ids_equal"] is True
    assert stages["end to end to rows 128:20"]["mb_per_second"] > 0
    printed = capsys.readouterr().out
    assert all(stage in printed for stage in stages)
    assert "tokenizers 0" in printed


def test_without_a_source_the_text_is_generated(tmp_path, capsys) -> None:
    from benchmarks.prep import main

    result = result_of(main, ["--megabytes", "0.1", "--repeat", "1"], tmp_path)
    assert result["data"] == "made-up text" and len(result["stages"]) >= 7
    with pytest.raises(SystemExit):
        main(["--wiki", "folder"])
    assert "--vocab is needed" in capsys.readouterr().err


def test_our_preparation_and_nvidias_alternate(corpus, stand_in, tmp_path, capsys) -> None:
    from benchmarks import prep

    nvidia = stand_in(NVIDIA) / "script"
    articles, vocab = corpus
    given = ["--nvidia", str(nvidia), "--wiki", articles, "--vocab", vocab, "--stages", "shards"]
    [stage] = result_of(prep.main, given, tmp_path)["stages"]
    assert len(stage["seconds"]) == 2
    assert stage["ratio"] == pytest.approx(stage["mb_per_second"] / stage["nvidia_mb_per_second"])
    assert f"  ours{stage['mb']:42.1f}" in capsys.readouterr().out


def test_sizes_and_two_workers(corpus, tmp_path, capsys) -> None:
    from benchmarks.prep_scaling import main

    articles, vocab = corpus
    given = ["--wiki", articles, "--vocab", vocab, "--sizes", "1", "--workers-times", "1"]
    result = result_of(main, given, tmp_path)
    assert [run["run"] for run in result["runs"]] == [
        "1x, one worker",
        "1x, one worker",
        "1x, two workers",
    ]
    assert all(run["peak_mb_of_a_process"] > 50 for run in result["runs"])
    [pair] = result["two_workers"]
    assert 0 < pair["speed_up_by_cpu"] < 2
    assert "two workers: " in capsys.readouterr().out


def test_rows_by_stage(tiny_data, tmp_path, capsys) -> None:
    from benchmarks.prep_rows import main

    result = result_of(main, ["--data", str(tiny_data), "--repeat", "1"], tmp_path)
    assert {row["rows_of"] for row in result["rates"]} == {"128:20", "512:80"}
    assert {"numba", "h5py"} <= set(result["versions"])
    assert "150,000 / 60,000" in capsys.readouterr().out


def test_wikitext_compared_with_the_peers(dump, stand_in, tmp_path, capsys) -> None:
    from benchmarks.wikitext import main

    stand_in(PEERS)
    given = ["--dump", dump, "--peers-python", sys.executable, "--repeat", "1"]
    result = result_of(main, given, tmp_path)
    assert result["versions"]["wikiextractor"] == "3.1.0"
    assert result["versions"]["mwparserfromhell"] == "0.7.2"
    ours, theirs, _, stripped = result["dumps"][0]["tools"]
    assert ours["articles"] == 20 and not any(ours["residue_per_million"].values())
    assert theirs["residue_per_million"]["()"] > 0
    assert stripped["residue_per_million"]["[[ ]]"] > 0
    assert "mwparserfromhell 0.7.2" in capsys.readouterr().out


def test_filters(corpus, tmp_path, capsys) -> None:
    pytest.importorskip("py3langid")
    from benchmarks.filters import main

    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(json.dumps({"text": "one two three four five six seven eight nine"}))
    given = ["--wiki", corpus[0], "--test-file", str(held_out)]
    result = result_of(main, given, tmp_path)
    assert "py3langid" in result["versions"] and "py3langid" in result["identifiers"]
    assert min(result["mb_per_cpu_second"].values()) > 0
    assert "repetition" in capsys.readouterr().out
