"""A bundle fetched, and an artifact sent, beside curl and openssl doing the same; both against one fast TLS server."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Dict, Iterator, List

from firstboot import api, transport
from tests.bench.interpreters import Interpreter
from tests.bench.processes import Cost, alternating, whole
from tests.controlplane import tls

# What deployments.py does with a bundle: piece by piece to the hash and to the file, then durable.
_DOWNLOAD = """
import hashlib, os, sys
from firstboot.transport import Transport
url, ca, path = sys.argv[1:]
transport = Transport(ca_certificates=open(ca).read())
digest = hashlib.sha256()
with open(path, "wb", buffering=0) as file:
    def into(piece):
        digest.update(piece)
        file.write(piece)
    transport.download(url, into=into, ceiling=1 << 33, deadline_s=600.0)
transport.close()
print(digest.hexdigest())
"""
_UPLOAD = """
import hashlib, sys
from firstboot.api import PlaneApi
from firstboot.secret import Secret
from firstboot.transport import Transport
base, ca, path = sys.argv[1:]
BLOCK = 256 * 1024

class Stream:
    def __init__(self):
        self.length = __import__("os").path.getsize(path)
    def chunks(self):
        digest = hashlib.sha256()
        with open(path, "rb", buffering=0) as file:
            while piece := file.read(BLOCK):
                digest.update(piece)
                yield piece
        print(digest.hexdigest())

transport = Transport(ca_certificates=open(ca).read())
answer = PlaneApi(base, transport).upload_artifact("agt_1", Secret("key_1"), {"kind": "snapshot"}, Stream())
assert answer.status == 201, answer
transport.close()
"""


def missing(work: str) -> str:
    """A sentence where the package does not do this yet, else the empty string."""
    there = hasattr(transport.Transport, "download") if work == "download" else hasattr(api.PlaneApi, "upload_artifact")
    return "" if there else "not measured: the package does not do this yet"


@contextlib.contextmanager
def _server(directory: Path, mib: int) -> Iterator[str]:
    directory.mkdir()
    tls.load_ca(directory)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.servers", str(directory), str(mib << 20)],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).resolve().parents[2],
    )
    assert process.stdout is not None
    try:
        yield f"https://127.0.0.1:{json.loads(process.stdout.readline())['port']}"
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def _ours(interpreter: Interpreter, code: str, *arguments: str) -> Cost:
    return whole([interpreter.python, "-c", code, *arguments], env=interpreter.env())


def _alternating(
    interpreters: List[Interpreter], code: str, arguments: List[str], *, curl: str, runs: int
) -> Dict[str, List[Cost]]:
    works = {"curl": lambda: whole(["sh", "-ec", curl, "sh", *arguments])}
    for interpreter in interpreters:
        works[interpreter.name] = lambda it=interpreter: _ours(it, code, *arguments)  # type: ignore[misc]
    return alternating(works, runs=runs)


def download(interpreters: List[Interpreter], directory: Path, *, mib: int, runs: int) -> Dict[str, List[Cost]]:
    """`curl` and each interpreter: TLS, hash, write."""
    with _server(directory, mib) as base:
        arguments = [f"{base}/bundle", str(directory / "ca.pem"), str(directory / "got")]
        curl = 'curl -sS --fail --cacert "$2" -o "$3" "$1" && openssl dgst -sha256 "$3"'
        return _alternating(interpreters, _DOWNLOAD, arguments, curl=curl, runs=runs)


def upload(interpreters: List[Interpreter], directory: Path, *, mib: int, runs: int) -> Dict[str, List[Cost]]:
    """`curl` and each interpreter: hash, multipart, TLS."""
    with _server(directory, mib) as base:
        artifact = directory / "artifact"
        with open(artifact, "wb") as file:
            for _ in range(mib):
                file.write(b"\x5a" * (1 << 20))
        arguments = [base, str(directory / "ca.pem"), str(artifact)]
        curl = (
            'openssl dgst -sha256 "$3" && curl -sS --fail --cacert "$2" -o /dev/null -H "Expect:"'
            ' -F \'metadata={"kind":"snapshot"};type=application/json\' -F "file=@$3" "$1/api/v1/agents/agt_1/artifacts"'
        )
        return _alternating(interpreters, _UPLOAD, arguments, curl=curl, runs=runs)
