"""First boot, and the boot of a host that is enrolled, as whole processes beside a shell script of
the same steps.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from tests.bench.interpreters import Interpreter
from tests.bench.processes import Cost, alternating, whole
from tests.controlplane import ControlPlane
from tests.integration.host import Host

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

    def _again(self, interpreter: Interpreter, host: Host) -> Cost:
        return whole(
            interpreter.command("byteor-firstboot", "run", "--root", str(host.root)),
            env=interpreter.env(),
        )

    def measure(self, interpreters: list[Interpreter], *, runs: int) -> dict[str, list[Cost]]:
        """`script`; for each interpreter `first NAME` and `again NAME`."""
        self._plane.reset()
        host = self._fresh()
        whole(
            [*interpreters[0].command("byteor-firstboot", "run", "--root", str(host.root))],
            env=interpreters[0].env(),
        )
        works = {"script": self._script}
        for interpreter in interpreters:
            works[f"first {interpreter.name}"] = lambda it=interpreter: self._first(it)  # type: ignore[misc]
            works[f"again {interpreter.name}"] = lambda it=interpreter: self._again(it, host)  # type: ignore[misc]
            works[f"python {interpreter.name}"] = lambda it=interpreter: whole(
                [it.python, "-c", "pass"], env=it.env()
            )  # type: ignore[misc]
        os.sync()
        return alternating(works, runs=runs)
