"""First boot, and the boot of a host that is enrolled, as whole processes beside a shell script of
the same steps.
"""

from __future__ import annotations

import base64
import itertools
import os
import random
import subprocess
from functools import partial
from pathlib import Path

from tests.bench.interpreters import Interpreter
from tests.bench.processes import Cost, alternating, whole
from tests.controlplane import ControlPlane
from tests.integration.host import Host

# Run first boot and print what it imported; import the same and do nothing.
_PRINT = """
import sys
from firstboot.cli import firstboot_main
sys.argv[0] = "byteor-firstboot"
assert firstboot_main() == 0
print(*sys.modules)
"""
_IMPORT = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError:
        pass  # made by another module, as six.moves is
"""
# The same durable steps, as somebody would write them without us: intent, request, seal, overwrite,
# sync after each. openssl enc knows no GCM: the sealing is a yardstick of cost, not an equal.
SCRIPT = r"""
set -eu
root=$1 url=$2 ca=$3
token=$(cat "$root/etc/byteor/enrollment-token")
state=$root/var/lib/byteor/identity
mkdir -p "$state"
umask 077
key=$(cat /proc/sys/kernel/random/uuid)
durable() { sync "$1.new"; mv "$1.new" "$1"; sync "$state"; }
printf '{"idempotency_key":"%s"}' "$key" > "$state/intent.json.new"; durable "$state/intent.json"
printf 'header = "Authorization: Bearer %s"\n' "$token" |
    curl -sS --fail --config - --cacert "$ca" -H 'Content-Type: application/json' -H "Idempotency-Key: $key" \
        -H 'User-Agent: byteor-firstboot/0' -d '{"name":"'"$4"'"}' -o "$state/reply.json" "$url"
openssl rand -hex 32 > "$state/sealing.key.new"; durable "$state/sealing.key"
openssl enc -aes-256-ctr -pbkdf2 -pass "file:$state/sealing.key" -in "$state/reply.json" \
    -out "$state/credentials.sealed.new"; durable "$state/credentials.sealed"
rm "$state/reply.json" "$state/intent.json"; sync "$state"
mask=$(printf '%s' "$token" | tr -c '' x)
instance=var/lib/cloud/instances/iid-1
for copy in etc/byteor/enrollment-token "$instance/user-data.txt" "$instance/user-data.txt.i" "$instance/obj.pkl" \
    var/lib/cloud/seed/nocloud/user-data; do
    sed -i "s/$token/$mask/g" "$root/$copy"; sync "$root/$copy"
done
printf '{"erased":5}' > "$state/erasure.json.new"; durable "$state/erasure.json"
"""


class Boots:
    """Fresh hosts, one for each run; making them is not timed."""

    def __init__(self, plane: ControlPlane, directory: Path) -> None:
        self._plane, self._directory, self._number = plane, directory, itertools.count()

    def _fresh(self) -> Host:
        host = Host(self._directory / f"host-{next(self._number)}", self._plane)
        host.defaults(name=f"edge-{host.root.name}")
        token = self._plane.mint()
        host.token(token)
        host.user_data(host.comment_block(token))
        return host

    def _script(self) -> Cost:
        host, plane = self._fresh(), self._plane
        place = (
            f"orgs/{plane.org_id}/projects/{plane.project_id}/environments/{plane.environment_id}"
        )
        url = f"{plane.base_url}/api/v1/{place}/agents"
        return whole(
            [
                "sh",
                "-c",
                SCRIPT,
                "script",
                str(host.root),
                url,
                str(plane.ca_path),
                f"edge-{host.root.name}",
            ]
        )

    def _first(self, interpreter: Interpreter) -> Cost:
        command = interpreter.command("byteor-firstboot", "run", "--root", str(self._fresh().root))
        return whole(command, env=interpreter.env())

    def _imports(self, interpreter: Interpreter) -> list[str]:
        """Return a command that imports what a first boot has imported in the end."""
        command = [interpreter.python, "-c", _PRINT, "run", "--root", str(self._fresh().root)]
        environ = interpreter.env()
        done = subprocess.run(command, env=environ, cwd="/", capture_output=True, check=True)
        names = [name for name in done.stdout.decode().split() if name != "__main__"]
        # First, as in first boot: it leaves requests' tables out.
        return [interpreter.python, "-c", _IMPORT, "firstboot.api.transport", *names]

    def _ordinary(self, interpreter: Interpreter, host: Host, *words: str) -> Cost:
        """Run commands of an enrolled host's boot, one after the other; their costs together."""
        found = [
            whole(
                interpreter.command("byteor-firstboot", word, "--root", str(host.root)),
                env=interpreter.env(),
            )
            for word in words
        ]
        wall, cpu = sum(cost.wall_s for cost in found), sum(cost.cpu_s for cost in found)
        return Cost(wall, cpu, max(cost.rss_mib for cost in found))

    def _enrolled(self, interpreter: Interpreter, *, content: int | None = None) -> Host:
        """Return a host that has booted twice; `content`: bytes of base64 in its user data."""
        host = self._fresh()
        if content is not None:
            packed = base64.b64encode(random.Random(1).randbytes(content)).decode()
            lines = ["write_files:", "- path: /srv/data", "  encoding: b64"]
            token = host.path("etc/byteor/enrollment-token").read_text().strip()
            block = host.comment_block(token)
            host.user_data("\n".join([block, *lines, f"  content: {packed}", ""]))
        for word in ("run", "erase"):
            self._ordinary(interpreter, host, word)
        return host

    def measure(self, interpreters: list[Interpreter], *, runs: int) -> dict[str, list[Cost]]:
        """Return the costs of `script`, and for each interpreter of ``WORK NAME``.

        Works: first, imports (those that `first` cannot do without), run, all three (run, unseal
        and erase), and run with 1 KiB or 1 MiB of somebody's base64 in the user data.
        """
        self._plane.reset()
        works = {"script": self._script}
        for it in interpreters:
            host = self._enrolled(it)
            small, large = (self._enrolled(it, content=size) for size in (1 << 10, 1 << 20))
            imports = partial(whole, self._imports(it), env=it.env())
            works.update(
                {
                    f"first {it.name}": partial(self._first, it),
                    f"imports {it.name}": imports,
                    f"run {it.name}": partial(self._ordinary, it, host, "run"),
                    f"three {it.name}": partial(self._ordinary, it, host, "run", "unseal", "erase"),
                    f"small {it.name}": partial(self._ordinary, it, small, "run"),
                    f"large {it.name}": partial(self._ordinary, it, large, "run"),
                }
            )
        os.sync()
        return alternating(works, runs=runs)
