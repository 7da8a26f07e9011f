"""What is set before the processes of a run meet."""

from __future__ import annotations

import pytest

from bertds.engine.process_group import use_expandable_segments


@pytest.mark.parametrize("variable", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", None])
def test_segments_are_expandable_unless_the_environment_configures_the_allocator(
    variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: list[str] = []
    monkeypatch.setattr("torch.cuda.memory._set_allocator_settings", settings.append)
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "max_split_size_mb:512")
    use_expandable_segments()
    assert settings == ([] if variable else ["expandable_segments:True"])
