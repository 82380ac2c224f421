"""A bundle fetched, and an artifact sent, beside curl and openssl doing the same; both against one
fast TLS server.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.bench.interpreters import Interpreter
from tests.bench.processes import Cost, alternating, whole
from tests.controlplane import tls

# What the transfer worker does with a bundle that the activator wants: to the hash, to the file,
# durable, renamed.
_DOWNLOAD = """
import json, sys, time
from pathlib import Path
from firstboot.exchange.verdicts import Wanted
from firstboot.agent.download import Download
from firstboot.agent.schedule import Schedule
from firstboot.agent.worker import Context
from firstboot.api.client import PlaneApi
from firstboot.base.clock import Clock
from firstboot.exchange.handover import Handover
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret
from firstboot.api.transport import Transport
base, ca, root, sha256, report = sys.argv[1:]
inbox = Layout(Path(root)).inbox
for old in inbox.iterdir():
    old.unlink()
peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024
before, wall, cpu = peak(), time.perf_counter(), time.process_time()
handed = Handover(base, "agt_1", Secret("key_1"), None, None, None, None, None, None, None, ())
with PlaneApi(base, Transport(ca_certificates=open(ca).read())) as api:
    context, nothing = Context(Layout(Path(root)), handed, api, Clock()), lambda *_: None
    download = Download(context, Schedule(60.0), nothing, nothing, nothing, nothing)
    download.want(Wanted("dep_1", 1, sha256, SIZE))
    download.run_once()
assert (inbox / f"{sha256}.bundle").stat().st_size == SIZE
with open(report, "w") as out:
    json.dump([time.perf_counter() - wall, time.process_time() - cpu, peak() - before], out)
"""
_UPLOAD = """
import json, os, sys, time
from firstboot.api.client import PlaneApi
from firstboot.api.multipart import ArtifactMetadata
from firstboot.base.secret import Secret
from firstboot.api.transport import Transport
base, ca, path, sha256, report = sys.argv[1:]
peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024
file, before, wall, cpu = os.open(path, os.O_RDONLY), peak(), time.perf_counter(), time.process_time()
metadata = ArtifactMetadata("snapshot", sha256, os.fstat(file).st_size, "2026-01-01T00:00:00Z")
transport = Transport(ca_certificates=open(ca).read())
answer = PlaneApi(base, transport).upload_artifact("agt_1", Secret("key_1"), metadata, file)
assert answer.artifact is not None and answer.artifact.artifact_id == "art_1", answer
transport.close()
with open(report, "w") as out:
    json.dump([time.perf_counter() - wall, time.process_time() - cpu, peak() - before], out)
"""


@contextlib.contextmanager
def _server(directory: Path, mib: int) -> Iterator[str]:
    directory.mkdir()
    tls.load_ca(directory)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.servers", str(directory), str(mib << 20)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert process.stdout is not None
    try:
        yield f"https://127.0.0.1:{json.loads(process.stdout.readline())['port']}"
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def _beside(
    interpreters: list[Interpreter], code: str, arguments: list[str], *, curl: str, runs: int
) -> dict[str, list[Cost]]:
    """`curl` and each interpreter; the interpreter's own start stands apart, as ``NAME, whole``.

    The code writes what it cost to the path in its last argument; what grows by it stands in place
    of the largest RSS.
    """
    report = Path(arguments[-1])
    whole_costs: dict[str, list[Cost]] = {
        f"{interpreter.name}, whole": [] for interpreter in interpreters
    }

    def inner(interpreter: Interpreter) -> Cost:
        costs = whole([interpreter.python, "-c", code, *arguments], env=interpreter.env())
        whole_costs[f"{interpreter.name}, whole"].append(costs)
        return Cost(*json.loads(report.read_text()))

    works = {
        interpreter.name: functools.partial(inner, interpreter) for interpreter in interpreters
    }
    found = alternating(
        {"curl": lambda: whole(["sh", "-ec", curl, "sh", *arguments]), **works}, runs=runs
    )
    return {**found, **{name: costs[1:] for name, costs in whole_costs.items()}}


def download(
    interpreters: list[Interpreter], directory: Path, *, mib: int, runs: int
) -> dict[str, list[Cost]]:
    """TLS, hash, write; ours also looks for room and makes it durable."""
    digest = hashlib.sha256()
    for _ in range(mib):
        digest.update(bytes(1 << 20))
    with _server(directory, mib) as base:
        (directory / "var/lib/byteor/agent/inbox").mkdir(parents=True)
        arguments = [
            base,
            str(directory / "ca.pem"),
            str(directory),
            digest.hexdigest(),
            str(directory / "report"),
        ]
        curl = (
            'curl -sS --fail --cacert "$2" -o "$3/got" "$1/bundle" && openssl dgst -sha256 "$3/got"'
        )
        return _beside(
            interpreters, _DOWNLOAD.replace("SIZE", str(mib << 20)), arguments, curl=curl, runs=runs
        )


def upload(
    interpreters: list[Interpreter], directory: Path, *, mib: int, runs: int
) -> dict[str, list[Cost]]:
    """Hash, multipart, TLS."""
    with _server(directory, mib) as base:
        artifact, report, digest = directory / "artifact", directory / "report", hashlib.sha256()
        with open(artifact, "wb") as file:
            for _ in range(mib):
                file.write(b"\x5a" * (1 << 20))
                digest.update(b"\x5a" * (1 << 20))
        arguments = [
            base,
            str(directory / "ca.pem"),
            str(artifact),
            digest.hexdigest(),
            str(report),
        ]
        curl = (
            'openssl dgst -sha256 "$3" && curl -sS --fail --cacert "$2" -o /dev/null -H "Expect:"'
            ' -F \'metadata={"kind":"snapshot"};type=application/json\' -F "file=@$3" "$1/api/v1/agents/agt_1/artifacts"'
        )
        return _beside(interpreters, _UPLOAD, arguments, curl=curl, runs=runs)
