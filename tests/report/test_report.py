from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.axes import Axes

from bertds.cli import main as command
from bertds.data.tokenizer_folder import bert_tokenizer_json
from bertds.data.wordpiece_rules import WordPieceRules
from bertds.display.theme import LIGHT, Theme
from bertds.report.curves import charts_of
from bertds.report.run_view import read_chains, read_run
from tests.support.made_runs import make_run, train_line
from tests.support.tiny import SPECIAL, WORDS, write_tiny_vocab


def validation(step: int, loss: float) -> dict[str, object]:
    return {
        "step": step,
        "split": "validation",
        "mlm_loss": loss,
        "mlm_accuracy": 0.2,
        "nsp_accuracy": 0.6,
    }


@pytest.fixture
def two_phases(tmp_path: Path, tiny_data: Path) -> tuple[Path, Path]:
    ratio = {"decay": [0.01, 0.1, 0.5]}
    lines = [
        train_line(step, trust_ratio=ratio, restarts=int(step > 50)) for step in range(10, 101, 10)
    ]
    first = make_run(
        tmp_path / "runs/phase1", [*lines, validation(100, 6.5)], total=100, data=tiny_data
    )
    second = make_run(
        tmp_path / "runs/phase2",
        [*(train_line(step, mlm_loss=5.0) for step in range(5, 41, 5)), validation(40, 5.2)],
        total=40,
        length=512,
        data=tiny_data,
        origin=first,
    )
    return first, second


def test_phases_are_joined_in_one_curve(two_phases: tuple[Path, Path]) -> None:
    second, first = two_phases[1], two_phases[0]
    (chain,) = read_chains([second, first])  # whatever the order they are given in
    assert [run.path.name for run in chain.runs] == ["phase1", "phase2"]
    steps, losses = chain.series("mlm_loss")
    assert steps == [*range(10, 101, 10), *range(105, 141, 5)]
    assert losses[-1] == 5.0
    assert chain.series("mlm_loss", split="validation") == ([100, 140], [6.5, 5.2])
    assert chain.borders() == [100]
    assert chain.restarts() == [50]
    assert chain.trust_ratios()["decay"][1][0] == (0.01, 0.1, 0.5)


class Inspector(HTMLParser):
    """Collects what a page would fetch, and checks that its elements are closed."""

    VOID = {"meta", "img", "br"}

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [v or "" for k, v in attrs if k in ("src", "href", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_contains_everything_it_shows(
    two_phases: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "report"
    assert command(["report", *map(str, two_phases), "--out", str(out), "--title", "A & B"]) == 0
    page = (out / "index.html").read_text(encoding="utf-8")
    inspector = Inspector()
    inspector.feed(page)
    assert inspector.open == []
    assert inspector.fetched and all(link.startswith("#") for link in inspector.fetched)
    assert not re.search(r"url\((?!#)|@import|<link|http", page)
    names = set(re.findall(r' id="([^"]+)"', page))
    assert names == {*re.findall(r"url\(#([^)]+)", page), *(u[1:] for u in inspector.fetched)}
    assert "A &amp; B" in page and "a=&lt;phase1&gt;" in page  # text stays text
    for wanted in (
        "Triangles: restarts.",
        "abc1234",
        "torch 2.13.0",
        "60 documents",
        "5.200",
        "trust ratios",
        "restarts",
    ):
        assert wanted in page
    for name in ("loss", "loss_dark", "trust_ratio", "learning_rate_dark"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_source_without_a_licence_says_so(tmp_path: Path, tiny_data: Path) -> None:
    counts = dict.fromkeys(("documents_read", "documents_written"), 60) | {"dropped": {}}
    files = [{"name": "a.txt", "bytes": 1}]
    source = {"name": "text", "kind": "text", "licence": "", "files": files, **counts}
    data = tmp_path / "data"
    data.mkdir()
    manifest = json.loads((tiny_data / "manifest.json").read_text())
    (data / "manifest.json").write_text(json.dumps(manifest | {"sources": [source]}))
    run = make_run(tmp_path / "run", [train_line(10)], total=10, data=data)
    assert command(["report", str(run), "--out", str(tmp_path / "report")]) == 0
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "text, licence not stated: a.txt" in page


def test_runs_are_laid_over_each_other(two_phases: tuple[Path, Path], tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", [train_line(s, lr=2e-3) for s in range(10, 101, 10)])
    chains = read_chains([*two_phases, other])
    assert [len(chain.runs) for chain in chains] == [2, 1]
    assert command(["report", *map(str, two_phases), str(other), "--out", str(tmp_path / "r")]) == 0
    page = (tmp_path / "r/index.html").read_text(encoding="utf-8")
    assert "Settings that differ between the runs" in page and "data.sequence_length" in page


@pytest.mark.parametrize("length", [5, 30, 60, 95, 240])
def test_the_legend_is_inside_the_chart(tmp_path: Path, length: int) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = [train_line(10), validation(10, 6.0)]
    names = [f"{number}-{'large_lamb_batch-8192/' * 12}"[:length] for number in range(7)]
    chains = read_chains([make_run(tmp_path / str(n), lines) for n in range(7)])
    for chain, name in zip(chains, names):
        chain.runs[0].config.setdefault("run", {})["name"] = name
    chart = charts_of(chains)["loss"]
    drawn: list[Figure] = []

    def paint(axes: Axes, theme: Theme) -> None:
        chart.paint(axes, theme)
        drawn.append(axes.figure)

    replace(chart, paint=paint).png(LIGHT)
    (figure,) = drawn
    FigureCanvasAgg(figure)
    legend = figure.axes[0].get_legend()
    box, page = legend.get_window_extent(), figure.bbox
    assert len(legend.get_texts()) == 8  # seven runs, and the held-out points
    assert page.x0 <= box.x0 and box.x1 <= page.x1 and box.y1 <= page.y1


def test_settings_changed_during_the_run_are_listed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [train_line(step) for step in range(10, 101, 10)])
    lr = {"deepspeed.optimizer.params.lr": [0.002, 0.0001]}
    (run / "settings.jsonl").write_text(json.dumps({"step": 50, "changes": lr}) + "\n")
    assert command(["report", str(run), "--out", str(tmp_path / "r")]) == 0
    page = (tmp_path / "r/index.html").read_text(encoding="utf-8")
    section = page[page.index("Settings changed during the run") :]
    assert re.search(r">lr<.*>0\.002<.*>0\.0001<.*>50<", section)


def test_a_folder_that_is_not_a_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["report", str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err
    empty = make_run(tmp_path / "empty", [], done=False)
    assert command(["report", str(empty), "--out", str(tmp_path / "r")]) == 2
    assert "no metrics yet" in capsys.readouterr().err


@pytest.mark.filterwarnings("error")
def test_a_run_may_have_a_name_in_any_script(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, [train_line(s) for s in (10, 20)]) for name in ("日本", "b")]
    assert command(["report", *map(str, runs), "--out", str(tmp_path / "r")]) == 0
    assert "日本" in (tmp_path / "r/index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["_dev", "a $x_{$ b"])
def test_a_name_is_neither_hidden_nor_taken_for_a_formula(tmp_path: Path, name: str) -> None:
    runs = [make_run(tmp_path / str(n), [train_line(s) for s in (10, 20)]) for n in (1, 2)]
    config = runs[0] / "config.yaml"
    named = config.read_text().replace("run: {", f"run: {{name: {json.dumps(name)}, ")
    config.write_text(named)
    chains = read_chains(runs)
    assert chains[0].title == name
    assert f">{name}</text>" in charts_of(chains)["loss"].elements()
    assert charts_of(chains)["loss"].png(LIGHT)


def test_a_page_of_the_users_own_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", [train_line(step) for step in (10, 20)])
    page_file = tmp_path / "site" / "index.html"
    page_file.parent.mkdir()
    page_file.write_text("<h1>my page</h1>")
    words = ["report", str(run), "--out", str(page_file.parent)]
    assert command(words) == 2
    assert f"{page_file}: is not a report of bertds" in capsys.readouterr().err
    assert page_file.read_text() == "<h1>my page</h1>"
    assert [path.name for path in page_file.parent.iterdir()] == ["index.html"]
    page_file.unlink()
    assert command(words) == command(words) == 0  # a report replaces an earlier one
    assert 'content="bertds"' in page_file.read_text()


def test_time_in_updates_is_next_to_the_stalls_if_lines_have_it(tmp_path: Path) -> None:
    lines = [train_line(step, optimizer_seconds=1.8) for step in range(10, 101, 10)]
    lines[0].pop("optimizer_seconds")  # written before the run was continued by a newer version
    told = make_run(tmp_path / "runs/told", lines)
    plain = [train_line(step) for step in range(10, 101, 10)]
    for line in plain:
        line.pop("optimizer_seconds", None)
    silent = make_run(tmp_path / "runs/silent", plain)

    def runs_table(*runs: Path) -> list[str]:
        assert command(["report", *map(str, runs), "--out", str(tmp_path / "r")]) == 0
        page = (tmp_path / "r/index.html").read_text(encoding="utf-8")
        return re.findall(r"<tr>.*?</tr>", page.split("<h2>Runs</h2>")[1].split("</table>")[0])

    head, first, second = runs_table(told, silent)
    assert '<th class="n">loader stalls</th><th class="n">update time</th>' in head
    assert '<td class="n">0.1 s</td><td class="n">25.0%</td>' in first
    assert '<td class="n">0.1 s</td><td class="n"></td>' in second
    assert "update time" not in runs_table(silent)[0]


@pytest.mark.parametrize(
    "odd",
    [
        {"overall": "<b>"},
        {"overall": None},
        {"pairs": 1.5},
        {"pairs": -1},
        {"step": "x"},
        {"fields": []},
        {"fields": {"syntax": None}},
        {"paradigms": {"a": [1]}},
        {"overall": 1e9},
        {"fields": None, "paradigms": 3},
    ],
)
def test_odd_blimp_scores_are_left_out_and_reported(
    two_phases: tuple[Path, Path], odd: dict[str, object]
) -> None:
    scores = {
        "overall": 61.5,
        "pairs": 100,
        "step": 7,
        "fields": {"syntax": 60.0},
        "paradigms": {"npi": 63.0},
    }
    (two_phases[0] / "blimp.json").write_text(json.dumps(scores))
    assert read_run(two_phases[0]).blimp == scores
    (two_phases[0] / "blimp.json").write_text(json.dumps({**scores, **odd}))
    run = read_run(two_phases[0])
    assert run.blimp == {}
    assert "blimp.json: ignored, because its scores are not percentages" in run.unreadable()


def test_comparing_runs_of_different_vocabularies_gives_a_warning(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, [train_line(s) for s in (10, 20)]) for name in ("a", "b")]
    for run, words in zip(runs, (WORDS, [*WORDS[:-1], "other"])):
        (run / "tokenizer").mkdir()
        (run / "tokenizer" / "vocab.txt").write_text("\n".join([*SPECIAL, *words]) + "\n")
    said = "2 different vocabularies"
    notes = {name: chart.note for name, chart in charts_of(read_chains(runs)).items()}
    assert said in notes["loss"] and said in notes["mlm_accuracy"] and said not in notes["memory"]
    # The same vocabulary in both forms: older runs have no tokenizer.json.
    write_tiny_vocab(runs[1] / "tokenizer" / "vocab.txt")
    (runs[1] / "tokenizer" / "tokenizer.json").write_text(
        bert_tokenizer_json([*SPECIAL, *WORDS], WordPieceRules.of(lower_case=True))
    )
    assert all(said not in chart.note for chart in charts_of(read_chains(runs)).values())
