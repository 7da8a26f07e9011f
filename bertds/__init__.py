"""bertds: BERT pre-training from a raw corpus, at any scale, under DeepSpeed.

    import bertds

    bertds.prepare("data", text=["corpus.txt"], train_vocab=8192)
    bertds.train("tiny_cpu_phase1", run_dir="run", data="data")
    bertds.evaluate("run")
    model = bertds.from_pretrained("run", task="fill-mask")

Each name is imported on first use, so that ``import bertds`` is instant.
"""

__version__ = "0.1.0"

_NAMES = {
    "prepare": "bertds.api",
    "evaluate": "bertds.api",
    "TrainingResult": "bertds.api",
    "list_available_models": "bertds.pretrained.transformers_api",
    "MODELS": "bertds.data.model_names",
    "from_pretrained": "bertds.pretrained.transformers_api",
    "load_tokenizer": "bertds.pretrained.transformers_api",
    "save_pretrained": "bertds.pretrained.save",
    "ModelConfig": "bertds.config.recipe",
    "DataConfig": "bertds.config.recipe",
    "BatchPlan": "bertds.config.batch_plan",
    "BertForPreTraining": "bertds.model.bert",
    "ModernBertForMaskedLM": "bertds.model.modern",
    "build_model": "bertds.model.build",
    "BatchLoader": "bertds.data.loader",
    "open_source": "bertds.data.loader",
    "Lamb": "bertds.optim.lamb",
    "BertdsError": "bertds.errors",
}
_OTHERWISE_NAMED = {"Lamb": "ShardedLamb"}
_MODULES = ("train",)  # called, it trains: bertds.train(recipe, ...)

__all__ = ["__version__", *_NAMES, *_MODULES]


def __getattr__(name: str) -> object:
    """Import a public name on first use."""
    from importlib import import_module

    if name in _MODULES:
        return import_module(f"bertds.{name}")
    if name in _NAMES:
        found = getattr(import_module(_NAMES[name]), _OTHERWISE_NAMED.get(name, name))
        globals()[name] = found
        return found
    raise AttributeError(f"module 'bertds' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return all public names, imported or not."""
    return sorted({*globals(), *__all__})
