from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from bertds.cli import COMMANDS
from bertds.cli import main as command
from bertds.config.describe import field_docs
from bertds.config.json_schema import json_schema
from bertds.config.keys import all_keys
from bertds.config.load import load_config, split_assignments
from bertds.config.recipe import Config

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
# Programs that are not ours: their lines are only split into words.
OTHERS = """
    pip git cd source export squeue scancel sbatch srun cp ls mkdir echo curl wget torchrun cat
    tail apt-get pytest scp nano vi vim touch tensorboard wandb rm bash sh sinfo sudo mv ssh rsync
    for do done sed grep kill sacct pdsh sleep module docker apptainer zcat head chmod unset jq
    scontrol nvidia-smi less nice env wait shuf time py-spy hf
""".split()  # noqa: SIM905 - a list of 60 strings would not be read
CHEAP = [("config",), ("plan",), ("models",)]  # run as printed: they read what the clone holds


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_fits_a_screen(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        command([name, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0 and lines[0].startswith("usage:") and len(lines) <= 50


@dataclass(frozen=True, slots=True)
class Line:
    """One command of a page."""

    page: str
    number: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.number} {' '.join(self.words[:4])}"


def commands(page: Path) -> list[Line]:
    """Every command in a page's ```bash blocks, continuation lines joined, and in its tables."""
    found, inside, begun, text, document = [], False, 0, "", ""
    for number, raw in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        line = raw.strip()
        if line.startswith("```"):
            inside = line in ("```bash", "```sh") and not inside
            continue
        if not inside:
            # A command in a table has arguments; `bertds plan` alone is a name.
            for cell in re.findall(r"`(bertds [^`]+ --[^`]+)`", line) if line[:1] == "|" else ():
                found += [Line(str(page.relative_to(ROOT)), number, w) for w in split(cell)]
            continue
        if document:  # a here-document's lines are no commands
            document = "" if line == document else document
            continue
        begun = begun if text else number
        text += line.removesuffix("\\") + " "
        if line.endswith("\\"):
            continue
        here = re.search(r"<<-?\s*'?(\w+)'?", text)
        document = here.group(1) if here else ""
        for words in split(text):
            found.append(Line(str(page.relative_to(ROOT)), begun, words))
        text = ""
    assert not text, f"{page}: a command ends in a backslash"
    return found


def split(text: str) -> list[tuple[str, ...]]:
    """Split a line into commands and words; environment settings in front are taken off."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set(";&|"):
            parts.append([])
        else:
            parts[-1].append(word)
    cut = []
    for part in parts:
        while part and re.fullmatch(r"[A-Z_][A-Z0-9_]*=.*", part[0]):
            part = part[1:]
        if part:
            cut.append(tuple(part))
    return cut


LINES = [line for page in PAGES for line in commands(page)]


def ours(words: tuple[str, ...]) -> tuple[str, list[str]] | None:
    """Return (command of `bertds`, its arguments) if a line is one of ours."""
    program, rest = words[0], list(words[1:])
    if program in ("bertds", ".venv/bin/bertds"):
        return (rest[0], rest[1:]) if rest and rest[0] in COMMANDS else ("", rest)
    scripts = {"bertds/train.py": "train", "data_prep/build_wiki_books.py": "prep"}
    for place, word in enumerate(words):
        name = next((c for s, c in scripts.items() if word.endswith(s)), None)
        if name and program in ("deepspeed", "python", "python3", "torchrun", "srun"):
            return name, list(words[place + 1 :])
    return None


def test_pages_have_commands() -> None:
    assert len(LINES) > 40
    assert {line.page for line in LINES} >= {"README.md", "docs/tutorial.md", "CONTRIBUTING.md"}


@pytest.mark.parametrize("line", LINES, ids=str)
def test_printed_commands_exist(line: Line, capsys: pytest.CaptureFixture[str]) -> None:
    program = line.words[0].removeprefix(".venv/bin/")
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        wanted = [w for w in line.words[1:] if "=" not in w and not w.startswith("-")]
        assert set(wanted) <= set(targets)
        return
    for word in line.words:
        if re.match(
            r"(bertds/recipes|ds_configs|slurm|benchmarks|data_prep|docs)/[\w/]+\.\w+$", word
        ):
            made_by_user = word == "slurm/site.env"
            assert made_by_user or (ROOT / word).exists(), f"{word} does not exist"
    found = ours(line.words)
    if found is None:
        known = program in OTHERS or program in ("deepspeed", "python", "python3")
        assert known or program.startswith(("slurm/", "./", "benchmarks/", "$")), (
            f"unknown: {program}"
        )
        return
    name, arguments = found
    if not name:
        assert set(arguments) <= {"--help", "--version"}, f"no such command: {arguments[:1]}"
        return
    check_options(name, arguments, capsys)
    check_settings(arguments)


def check_options(name: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Every --option of a line is in the command's help."""
    module = import_module(COMMANDS[name][0])
    given = {word.split("=")[0] for word in arguments if word.startswith("--")}
    if not given:
        return
    helped = [[]] + ([[arguments[0]]] if not arguments[0].startswith("-") else [])
    text = ""
    for sub in helped:
        with pytest.raises(SystemExit):
            module.main([*sub, "--help"])
        text += capsys.readouterr().out
    if "--help-all" in text:
        with pytest.raises(SystemExit):
            module.main(["--help-all"])
        text += capsys.readouterr().out
    known = set(re.findall(r"--[\w-]+", text)) | {"--help", "--debug", "--deepspeed"}
    assert given <= known, f"bertds {name} has no {sorted(given - known)}"


def check_settings(arguments: list[str]) -> None:
    """Every KEY=VALUE after --set is a key of the recipe, with a value that fits."""
    if "--set" not in arguments:
        return
    after = arguments[arguments.index("--set") + 1 :]
    end = next((i for i, word in enumerate(after) if word.startswith("--")), len(after))
    values = split_assignments(after[:end])
    values = {k: v for k, v in values.items() if not k.startswith("deepspeed.")}
    recipe = arguments[arguments.index("--config") + 1] if "--config" in arguments else None
    load_config(ROOT / recipe if recipe and (ROOT / recipe).is_file() else None, values)


NEEDS_FILES = {"--calibrate", "--gpu-file"}  # of the reader's
RUNNABLE = [
    line
    for line in LINES
    if line.words[0] == "bertds" and line.words[1:2] in CHEAP and not NEEDS_FILES & {*line.words}
]


@pytest.mark.parametrize("line", RUNNABLE, ids=str)
def test_cheap_commands_run_as_printed(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert command(list(line.words[1:])) == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name}: {target}"


def test_settings_named_in_tables_exist() -> None:
    """`section.key` in backticks, wherever it is in the documentation."""
    sections = set(Config.__dataclass_fields__)
    keys = set(all_keys())
    wrong = []
    for page in PAGES:
        if page.name == "migrating.md":  # other systems' keys too: tests/project/test_migrating.py
            continue
        for word in re.findall(r"`([a-z]+\.[a-z_]+)(?:=[^`]*)?`", page.read_text(encoding="utf-8")):
            if word.split(".")[0] in sections and word not in keys and not word.endswith("_"):
                wrong.append(f"{page.name}: {word}")
    files = {"model.py", "run.py", "config.yaml", "log.txt", "data.py", "checkpoint.py"}
    assert [w for w in wrong if w.split(": ")[1] not in files] == []


def number_12(value: Any) -> Any:
    """Read 6e-3 as YAML 1.2 (and editors) do: a number."""
    if isinstance(value, dict):
        return {key: number_12(inner) for key, inner in value.items()}
    if isinstance(value, str) and re.fullmatch(r"[-+]?[\d.]+e[-+]?\d+", value):
        return float(value)
    return value


def test_schema_takes_every_shipped_recipe_and_refuses_mistakes() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json_schema(field_docs())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    recipes = sorted((ROOT / "bertds/recipes").glob("*.yaml"))
    assert recipes
    for recipe in recipes:
        validator.validate(number_12(yaml.safe_load(recipe.read_text())))
    for wrong in (
        {"schedule": {"total_stepz": 10}},
        {"schedule": {"total_steps": "many"}},
        {"model": {"hidden_act": "relu"}},
        {"data": {"masked_lm_prob": 1.5}},
        {"optimizer": {}},
    ):
        assert not validator.is_valid(wrong), wrong
    texts = [
        v["description"] for s in schema["properties"].values() for v in s["properties"].values()
    ]
    assert all(texts), "a key without an explanation"


def test_schema_in_the_documentation_is_up_to_date() -> None:
    stored = json.loads((ROOT / "docs/recipe.schema.json").read_text())
    assert stored == json_schema(field_docs()), (
        "run: bertds config schema > docs/recipe.schema.json"
    )


def test_every_command_stands_in_the_reference() -> None:
    text = (ROOT / "docs/reference/commands.md").read_text(encoding="utf-8")
    missing = [name for name in COMMANDS if f"| `bertds {name}` |" not in text]
    assert missing == [], f"add to docs/reference/commands.md: {missing}"
