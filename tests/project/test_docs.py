from __future__ import annotations

import json
import re
import tomllib
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
from bertds.errors import ConfigError
from tests.project.test_guides import NOT_HERE, PARSED_ONLY, RUN, is_not_here
from tests.support.printed_commands import (
    LINES,
    PAGES,
    ROOT,
    Line,
    in_job,
    ours,
    parse,
    parse_script,
)

# Programs that are not ours: their lines are only split into words.
OTHERS = "git cd source cp cat touch rm grep apt-get nvidia-smi python3 hf".split()  # noqa: SIM905
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


def test_pages_have_commands() -> None:
    assert len(LINES) > 40
    assert {line.page for line in LINES} >= {"README.md", "docs/tutorial.md", "CONTRIBUTING.md"}


@pytest.mark.parametrize("line", LINES, ids=str)
def test_printed_commands_are_accepted(
    line: Line, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the parser of the command, which the line would start."""
    for word in line.words:
        if re.match(
            r"(bertds/recipes|ds_configs|slurm|benchmarks|data_prep|docs|tests)/[\w/]+\.\w+$", word
        ):
            made_by_user = word == "slurm/site.env"
            assert made_by_user or (ROOT / word).exists(), f"{word} does not exist"
    found = ours(line.words) or in_job(line.words)
    if found is None:
        check_other_program(line, monkeypatch)
        return
    name, arguments = found
    assert name or set(arguments) <= {"--help", "--version"}, f"no such command: {arguments[:1]}"
    if line.names_an_option:
        check_options(name, arguments, capsys)
    elif name:
        try:
            parse(name, arguments)
        except SystemExit as end:  # --help
            assert end.code == 0, capsys.readouterr().err
        except ConfigError as error:
            pytest.fail(f"{line}: {error}")
    check_settings(arguments)


@pytest.mark.slow  # imports DeepSpeed
@pytest.mark.parametrize("line", [n for n in LINES if n.words[0] == "deepspeed"], ids=str)
def test_the_launcher_accepts_its_options(line: Line) -> None:
    from deepspeed.launcher.runner import parse_args

    assert parse_args(list(line.words[1:])).user_script.endswith("bertds/train.py")


def check_other_program(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be said of a program that is not a command of bertds, without starting it."""
    program, words = line.words[0].removeprefix(".venv/bin/"), line.words[1:]
    if program == "make":
        makefile = (ROOT / "Makefile").read_text()
        for word in words:
            name, equals, _ = word.partition("=")
            wanted = rf"^{name} \?=" if equals else rf"^{name}:"
            assert re.search(wanted, makefile, re.MULTILINE), f"{word}: not in the Makefile"
    elif program == "pip":
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for word in words:
            extras = re.search(r"^\.\[(.+)\]$", word)
            assert not extras or set(extras[1].split(",")) <= set(known["optional-dependencies"])
    elif program == "pytest" or words[:2] == ("-m", "pytest"):
        assert all((ROOT / word).exists() for word in words if word.startswith("tests/"))
    elif program in ("python", "python3", "nice") and "venv" not in words:
        parse_script(line.words, monkeypatch)
    else:
        assert program in OTHERS or line.words[0].startswith(("slurm/", "$")), program


def test_every_page_is_run_or_parsed() -> None:
    """Each page with commands has one place; each exception has its line and a reason."""
    with_commands = {line.page for line in LINES if not line.names_an_option}
    assert set(RUN) | set(PARSED_ONLY) == with_commands
    assert not set(RUN) & set(PARSED_ONLY)
    lines = [line for line in LINES if line.page in RUN]
    unused = [words for words in NOT_HERE if not any(is_not_here(line, [words]) for line in lines)]
    assert unused == [], "exceptions of commands that are not printed any more"
    assert all([*NOT_HERE.values(), *PARSED_ONLY.values()])


def check_options(name: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Every --option of a line is in the command's help; the line is not complete."""
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
def test_links_have_targets(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name}: {target}"


def test_pages_name_every_benchmark_result_and_no_other() -> None:
    named = set()
    for page in PAGES:
        for pattern in re.findall(r"benchmarks/results/[\w*.-]+", page.read_text(encoding="utf-8")):
            found = list(ROOT.glob(pattern))
            assert found or "NAME" in pattern, f"{page.name}: {pattern}"
            named.update(found)
    assert sorted(set((ROOT / "benchmarks/results").iterdir()) - named) == []


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


def test_every_command_is_in_the_reference() -> None:
    text = (ROOT / "docs/reference/commands.md").read_text(encoding="utf-8")
    missing = [name for name in COMMANDS if f"| `bertds {name}` |" not in text]
    assert missing == [], f"add to docs/reference/commands.md: {missing}"
