"""Uploads an exported folder to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from bertds.errors import BertdsError, ConfigError, short_reason
from bertds.pretrained.output_folder import MARK


def check_push(repository: str) -> None:
    """Refuse, before anything is exported, an upload that cannot succeed.

    Raises:
        ConfigError: the name is not ``OWNER/NAME``, there is no token, or the Hub is disabled.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
        if repository.count("/") != 1:
            raise HFValidationError("it has no owner")
    except HFValidationError:
        raise ConfigError(f"--push {repository}: give OWNER/NAME, as on the Hub") from None
    if constants.is_offline_mode():
        raise ConfigError("--push: HF_HUB_OFFLINE is set; unset it to upload")
    if not get_token():
        raise ConfigError("--push: not logged in to the Hub; run `hf auth login`, or set HF_TOKEN")


def push(folder: Path, repository: str, *, private: bool = False) -> str:
    """Upload a folder as one commit; the repository is created if it is missing.

    Args:
        folder: the output of ``bertds export``.
        repository: OWNER/NAME.
        private: whether a new repository is private.

    Returns:
        The address of the model.

    Raises:
        BertdsError: the Hub cannot be reached or refuses; the folder is kept.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message="Model exported by bertds",
            ignore_patterns=[MARK],
        )
    except (HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        raise BertdsError(
            f"--push {repository}: the Hub refused the upload or cannot be reached "
            f"({short_reason(error)}). {folder} is kept; upload it with: hf upload {repository} "
            f"{folder}"
        ) from error
    return str(url)
