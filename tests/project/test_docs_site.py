"""What is particular to the built documentation: the options of every command, search in files."""

from __future__ import annotations

import argparse
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from bertds.cli import COMMANDS


@pytest.fixture(scope="module")
def hook(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("hook", repository / "docs/command_options.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_option_of_every_command_is_on_the_page(
    repository: Path, hook: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: set[str] = set()
    add = argparse.ArgumentParser.add_argument

    def watch(self: argparse.ArgumentParser, *names: str, **settings: object) -> object:
        if settings.get("help") != argparse.SUPPRESS:
            added.update(name for name in names if name.startswith("--"))
        return add(self, *names, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(argparse.ArgumentParser, "add_argument", watch)
    page = (repository / "docs/reference/commands.md").read_text(encoding="utf-8")
    text = hook.on_page_markdown(page)
    heads = re.findall(r"^## bertds ([\w-]+)$", text, re.MULTILINE)
    assert heads == list(COMMANDS) and hook.MARK not in text
    assert "### bertds config explain" in text and "### bertds prep show" in text
    assert len(added) > 100 and added <= set(re.findall(r"--[\w-]+", text))
    assert hook.on_page_markdown("other page") == "other page"


def test_the_search_works_where_pages_are_opened_as_files(repository: Path) -> None:
    text = (repository / "mkdocs.yml").read_text(encoding="utf-8")
    config = yaml.safe_load(text)
    assert "offline" in config["plugins"] and config["use_directory_urls"] is False
    # Without it, the plugin adds a script from a CDN, and the search is missing without a network.
    (script,) = config["extra"]["polyfills"]
    assert "iframe-worker" in script  # by this word the plugin knows it
    assert "window.IFrameWorker =" in (repository / "docs" / script).read_text(encoding="utf-8")
    assert config["hooks"] == ["docs/command_options.py"]
