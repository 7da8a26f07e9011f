"""``python -m bertds``: the console script, for a Python without it on its path."""

from __future__ import annotations

from bertds.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
