"""What pyproject.toml cannot say: ds_configs/ travels in the wheel as ``bertds.ds_configs``."""

from setuptools import find_packages, setup

setup(
    # Beside bertds one more top-level name, data_prep: its path is part of the interface
    # (``python data_prep/build_wiki_books.py``), and it runs where torch is not installed.
    packages=[*find_packages(include=["bertds*", "data_prep*"]), "bertds.ds_configs"],
    package_dir={"bertds.ds_configs": "ds_configs"},
)
