"""Names that come from files: they lead to a file inside their own folder, or are refused.

A manifest names the files that belong to it. One made by another user may name ``../../.ssh/id``
or go through a link; what is read then ends up in a model, an export or a message.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from bertds.errors import UserError


def is_plain_name(name: object) -> bool:
    """Return whether a value is one plain component: no folder, no ``..``, nothing hidden in it."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and "/" not in name
        and "\\" not in name
        and name.isprintable()
    )


def file_inside(folder: Path | str, name: object, where: str, error: type[UserError]) -> Path:
    """Return ``folder/name`` after checking that it is inside the folder, links resolved.

    Args:
        folder: the folder that the file which holds the name speaks of. It may itself be a link.
        name: a plain name, or a relative path with ``/``.
        where: which file and key the name is in, for the message.
        error: what to raise.

    Raises:
        UserError: (``error``) the name is no such path, or leads out of the folder.
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
    """Make sure that nothing in a folder that the patterns match is a link.

    What is written to a link changes a file elsewhere, with the rights of whoever runs this.

    Raises:
        UserError: (``error``) something is; the message says what and where it leads.
    """
    for pattern in patterns:
        above, _, name = pattern.rpartition("/")
        # Not by glob(), which does not see links that lead nowhere (yet).
        inside = (folder / above).iterdir() if (folder / above).is_dir() else ()
        for path in inside:
            if fnmatchcase(path.name, name) and path.is_symlink():
                raise error(
                    f"{path}: is a link to {path.readlink()}; a run does not write through links "
                    "inside its folder. Remove the link, or make the whole folder a link"
                )
