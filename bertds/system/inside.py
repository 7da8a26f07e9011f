"""Checks file names that come from files: each must stay inside its own folder.

A manifest names the files that belong to it. A manifest of another user may name ``../../.ssh/id``
or use a link. The content of that file could then appear in a model, an export or a message.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from bertds.errors import UserError


def is_plain_name(name: object) -> bool:
    """Return whether a value is one plain path component: no separator, not ``..``, printable."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and "/" not in name
        and "\\" not in name
        and name.isprintable()
    )


def file_inside(folder: Path | str, name: object, where: str, error: type[UserError]) -> Path:
    """Return ``folder/name`` after checking that it is inside the folder, with links resolved.

    Args:
        folder: the folder that the file with the name refers to. It may itself be a link.
        name: a plain name, or a relative path with ``/``.
        where: the file and key that contain the name, for the message.
        error: the exception to raise.

    Raises:
        UserError: (``error``) the name is not such a path, or leads out of the folder.
    """
    if not isinstance(name, str) or not all(map(is_plain_name, name.split("/"))):
        raise error(f"{where} is {name!r:.200}: must be the name of a file inside {folder}")
    path = Path(folder, *PurePosixPath(name).parts)
    if not path.resolve().is_relative_to(Path(folder).resolve()):
        raise error(
            f"{where} is {name!r}: points outside {folder} through a link ({path.resolve()})"
        )
    return path


def refuse_links(folder: Path, patterns: tuple[str, ...], error: type[UserError]) -> None:
    """Check that nothing in a folder that matches the patterns is a link.

    Writing to a link changes a file elsewhere, with the rights of the user who runs this.

    Raises:
        UserError: (``error``) there is a link; names it and its target.
    """
    for pattern in patterns:
        above, _, name = pattern.rpartition("/")
        # glob() cannot be used: it does not report links whose target does not exist (yet).
        inside = (folder / above).iterdir() if (folder / above).is_dir() else ()
        for path in inside:
            if fnmatchcase(path.name, name) and path.is_symlink():
                raise error(
                    f"{path}: is a link to {path.readlink()}; a run does not write through links "
                    "inside its folder. Remove the link, or make the whole folder a link"
                )
