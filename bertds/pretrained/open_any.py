"""Opens models of any origin: Hugging Face, runs, NVIDIA DLE, TensorFlow, NeMo and Megatron.

No code in a checkpoint is executed: pickles are read with ``weights_only``, TensorFlow's files by
:mod:`bertds.pretrained.foreign.tensorflow_reader`.
"""

from __future__ import annotations

import lzma
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from bertds.data import tokenizer_json
from bertds.data.model_names import resolve, vocabulary_path
from bertds.data.vocabulary_file import VOCAB, has_tokenizer, vocabulary_file
from bertds.errors import CheckpointError, ConfigError
from bertds.model.build import build_model
from bertds.pretrained import hf_config, hf_weights, weight_files
from bertds.pretrained.foreign import parameter_names
from bertds.pretrained.foreign.megatron import MegatronBert
from bertds.pretrained.load import PretrainedModel, load_pretrained
from bertds.system.atomic_files import write_json
from bertds.system.json_fields import parse_json

CONFIG_NAMES = ("config.json", "bert_config.json")


@contextmanager
def opened(
    source: str | Path,
    config: Path | None = None,
    vocab: Path | None = None,
    gelu: str | None = None,
) -> Iterator[Any]:
    """Open a model of any origin: yields a :class:`PretrainedModel`, or a :class:`MegatronBert`.

    Raises:
        CheckpointError: the source cannot be read, or has no configuration.
    """
    path = Path(source)
    # The formats are recognized in this order: TensorFlow, NeMo archive, PyTorch file, folder or
    # run.
    prefix = tensorflow_prefix(path)
    with tempfile.TemporaryDirectory(prefix="bertds-") as scratch:
        if vocab is not None:
            vocab = _named_vocab(vocab, Path(scratch))
        if prefix is not None:
            yield _open_tensorflow(prefix, config, vocab, gelu)
            return
        # A name of `bertds models` is resolved to a local folder.
        if not path.exists():
            path = resolve(source)
        if path.is_file():
            if tarfile.is_tarfile(path):
                path, config, vocab = _unpack_nemo(path, Path(scratch), config, vocab)
            yield _open_state_dict(path, config, vocab, gelu)
            return
        # A folder or run has its own configuration and vocabulary, which must not be mixed.
        for option, given in (("config", config), ("vocab", vocab)):
            if given is not None:
                raise ConfigError(f"--{option}: {path} already includes one")
        trained = load_pretrained(path)
        yield _with_gelu(trained, gelu) if gelu else trained


def _with_gelu(trained: PretrainedModel, gelu: str) -> PretrainedModel:
    config = replace(trained.config, hidden_act=gelu)  # type: ignore[arg-type]
    model = build_model(config, trained.vocab_size)
    model.load_state_dict(trained.model.state_dict())
    return replace(trained, config=config, model=model.eval())


def tensorflow_prefix(path: Path) -> Path | None:
    """Return the prefix of a TensorFlow checkpoint: from it, one of its files, or its folder."""
    text = re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", str(path))
    if Path(f"{text}.index").is_file():
        return Path(text)
    if path.is_dir() and not (path / "config.json").is_file():
        found = sorted(path.glob("*.index"))
        if len(found) > 1:
            raise CheckpointError(f"{path}: contains several checkpoints; give one of {found[:3]}")
        if found:
            return found[0].with_suffix("")
    return None


def _open_tensorflow(
    prefix: Path, config: Path | None, vocab: Path | None, gelu: str | None
) -> PretrainedModel:
    from bertds.pretrained.foreign.tensorflow_reader import TensorFlowCheckpoint

    weights = parameter_names.from_tensorflow(TensorFlowCheckpoint(prefix))
    values = _read_config(prefix, config)
    # Google's code computes the tanh form of GELU.
    return _build(weights, values, prefix, _vocabulary(prefix, vocab), gelu or "gelu_new")


def _open_state_dict(
    path: Path, config: Path | None, vocab: Path | None, gelu: str | None
) -> PretrainedModel | MegatronBert:
    # The names of the tensors show which program wrote them.
    weights, extra = read_flat(path)
    values, vocab = _read_config(path, config), _vocabulary(path, vocab)
    if parameter_names.is_megatron(weights):
        return MegatronBert.from_state_dict(weights, values, extra, path, vocab)
    left_out: list[str] = []
    if parameter_names.is_nemo(weights):
        weights, left_out = parameter_names.from_nemo(weights)
    elif hf_weights.origin_of(weights) == "dle":
        gelu = gelu or "gelu_new"
    return _build(weights, values, path, vocab, gelu, left_out)


def _build(
    weights: Mapping[str, Tensor],
    values: dict[str, Any],
    origin: Path,
    vocab: Path | None,
    gelu: str | None,
    left_out: Sequence[str] = (),
) -> PretrainedModel:
    try:
        config, vocab_size = hf_config.config_from_transformers(values)
    except CheckpointError as error:
        raise CheckpointError(f"{origin}: {error}") from None
    # A foreign checkpoint may lack the head, whatever its configuration says.
    if not any(name.startswith("cls.seq_relationship") for name in weights):
        config = replace(config, next_sentence=False)
    if gelu is not None:
        config = replace(config, hidden_act=gelu)  # type: ignore[arg-type]
    model = build_model(config, vocab_size)
    weights = {name: tensor.float() for name, tensor in weights.items()}
    try:
        report = hf_weights.load_transformers_state_dict(model, weights)
    except CheckpointError as error:
        raise CheckpointError(f"{origin}: {error}") from None
    folder = vocab.parent if vocab is not None else None
    return PretrainedModel(
        model.eval(),
        config,
        vocab_size,
        origin,
        folder,
        {},
        report.missing,
        [*report.unexpected, *left_out],
        hf_config.pad_token_id(values, vocab_size),
    )


def _read_config(path: Path, given: Path | None) -> dict[str, Any]:
    file = given or next(
        (path.parent / name for name in CONFIG_NAMES if (path.parent / name).is_file()), None
    )
    if file is None:
        raise CheckpointError(
            f"{path}: bert_config.json is missing; give --config FILE (the number of heads cannot "
            "be inferred from weights)"
        )
    try:
        values = parse_json(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read as JSON ({error})") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: not a JSON object")
    return values


def _named_vocab(given: Path, scratch: Path) -> Path:
    """Return the vocabulary that ``--vocab`` names, in a folder that contains no other one."""
    given = vocabulary_path(given)
    if not given.exists():
        raise CheckpointError(f"--vocab {given}: no such file")
    file = vocabulary_file(given)
    if given.is_dir():
        return file
    # The names in a Hugging Face folder.
    name, other = VOCAB, tokenizer_json.FILE
    if file.suffix == ".json":
        name, other = other, name
    if file.name == name and not (file.parent / other).exists():
        return file
    copy = scratch / "given" / name
    copy.parent.mkdir()
    shutil.copyfile(file, copy)
    rules = file.parent / tokenizer_json.CONFIG
    if file.name == name and rules.is_file():
        shutil.copyfile(rules, copy.parent / rules.name)
    return copy


def _vocabulary(path: Path, given: Path | None) -> Path | None:
    if given is not None:
        return given
    folder = path.parent
    return vocabulary_file(folder) if has_tokenizer(folder) else None


def read_flat(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a pickle's tensors with dotted names, without executing its code.

    Returns:
        The tensors (from ``model``, ``state_dict`` or the top), and the plain values next to them.

    Raises:
        CheckpointError: it cannot be read, or contains no tensors.
    """
    if path.suffix == ".safetensors":
        return weight_files.read_state_dict(path), {}
    content = weight_files.load_pickle(path)
    extra = {}
    if isinstance(content, Mapping):
        extra = {k: v for k, v in content.items() if isinstance(v, (int, float, str))}
        for key in ("model", "state_dict"):
            if isinstance(content.get(key), Mapping):
                content = content[key]
    tensors = dict(_flatten(content))
    hf_weights.check_tensors(path, tensors)
    if not tensors:
        raise CheckpointError(f"{path}: contains no tensors")
    return tensors, extra


def _flatten(value: object, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield prefix, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else str(key))


# Weights can hardly be compressed: an archive that exceeds this was made to fill the disk.
MAX_UNPACKED_RATIO = 20
FREE_BYTES = 64 << 20
_MOST = {"model_config.yaml": 1 << 20, "vocab.txt": 64 << 20}
"""The maximum sizes of the small files."""


@contextmanager
def _opened_tar(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path) as archive:
            yield archive
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise CheckpointError(f"{path}: damaged archive ({error})") from None


def _unpack_nemo(
    path: Path, scratch: Path, config: Path | None, vocab: Path | None
) -> tuple[Path, Path | None, Path | None]:
    """Extract weights, configuration and vocabulary from a .nemo archive (a tar)."""
    import yaml

    from bertds.system.yaml_text import load_yaml

    weights: Path | None = None
    left = FREE_BYTES + MAX_UNPACKED_RATIO * path.stat().st_size
    with _opened_tar(path) as archive:
        for member in archive:
            name = Path(member.name).name  # ignore folders, which could lead out of `scratch`
            # Limit the total size: the header of a member decides how much is written.
            left -= max(0, member.size)
            if left < 0 or (name in _MOST and member.size > _MOST[name]):
                raise CheckpointError(
                    f"{path}: {name!r:.80} has {member.size:,} bytes in an archive of "
                    f"{path.stat().st_size:,}; if that is expected, unpack it with tar and give "
                    "its model_weights.ckpt"
                )
            file = archive.extractfile(member) if member.isfile() else None
            if file is None:
                continue
            # Files given by the user replace those of the archive.
            target = None
            if name == "model_weights.ckpt":
                weights = target = scratch / name
            elif name == "model_config.yaml" and config is None:
                try:
                    values = load_yaml(file.read())
                except yaml.YAMLError as error:
                    raise CheckpointError(f"{path}: {name}: not YAML ({error})") from None
                config = scratch / "bert_config.json"
                write_json(config, nemo_model_config(values))
            elif name.endswith("vocab.txt") and vocab is None:
                vocab = target = scratch / "vocab.txt"
            if target is not None:
                with open(target, "wb") as output:
                    shutil.copyfileobj(file, output)
    if weights is None:
        raise CheckpointError(f"{path}: no model_weights.ckpt in the archive")
    return weights, config, vocab


def nemo_model_config(values: object) -> dict[str, Any]:
    """Return transformers' configuration keys from a NeMo model_config.yaml."""
    model = values if isinstance(values, dict) else {}
    nested = (model.get("language_model") or {}).get("config")
    if isinstance(nested, dict) and nested:
        return nested
    renamed = {
        "num_layers": "num_hidden_layers",
        "ffn_hidden_size": "intermediate_size",
        "layernorm_epsilon": "layer_norm_eps",
    }
    result = {renamed.get(str(key), str(key)): value for key, value in model.items()}
    return {key: value for key, value in result.items() if isinstance(value, (int, float, str))}
