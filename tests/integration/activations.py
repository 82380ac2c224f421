"""The root side of deployments without an agent: a tree, a signer, and what an agent would lay into
the inbox.
"""

from __future__ import annotations

import copy
import datetime
import hashlib
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.controlplane import signing, spoil
from tests.controlplane.signing import SigningKey
from tests.controlplane.spoil import Made
from tests.integration import spawn
from tests.schemas import judge_call

PLACE = ("org_1", "prj_1", "env_1")
RUN_LIMIT_S = 60


class Activations:
    """One root. `activate` is the installed command, as the path unit calls it."""

    def __init__(
        self, root: Path, *, activation: Mapping[str, Any] | None = None, **settings: Any
    ) -> None:
        self.root, self.key = root, SigningKey.new("kid-1")
        for directory in ("etc/byteor", "run/byteor-agent", "var/lib/byteor/agent/inbox"):
            (root / directory).mkdir(parents=True, exist_ok=True)
        self.state, self.inbox = root / "var/lib/byteor", root / "var/lib/byteor/agent/inbox"
        self.sequence = 0
        pinned = {"kid": self.key.kid, "public_key": signing.b64url(self.key.public)}
        place = {"org_id": PLACE[0], "project_id": PLACE[1], "environment_id": PLACE[2]}
        told = {"window_s": 0, **(activation or {})}
        frozen = {
            "v": 1,
            "api_base_url": None,
            "ca_certificates": None,
            **place,
            "signing_keys": [pinned],
        }
        self.settings: dict[str, Any] = {**frozen, "activation": told, **settings}
        self.write_settings()

    def write_settings(self, **changes: Any) -> None:
        self.settings.update(changes)
        (self.state / "settings.json").write_text(json.dumps(self.settings))

    def copy(self, root: Path) -> Activations:
        """The same host elsewhere: its trees name themselves nowhere."""
        shutil.copytree(self.root, root, symlinks=True)
        other = copy.copy(self)
        other.root, other.state, other.inbox = (
            root,
            root / "var/lib/byteor",
            root / "var/lib/byteor/agent/inbox",
        )
        other.settings = dict(self.settings)
        return other

    # -- what the plane makes

    def make(
        self, name: str = "one", *, files: Mapping[str, bytes] | None = None, **options: Any
    ) -> Made:
        """A deployment of the next sequence; options as `spoil.make` has them."""
        if "sequence" not in options:
            self.sequence += 1
        now = options.pop("now", datetime.datetime.now(datetime.timezone.utc))
        spec = {"spec.kv": f"name = {name}\n".encode()}
        place = options.pop("place", PLACE)
        given = {
            "key": self.key,
            "deployment_id": f"dep_{name}",
            "sequence": self.sequence,
            **options,
        }
        return spoil.make(place, files or spec, now=now, **given)

    # -- what the agent lays down

    def offer(self, made: Made, *, bundle: bool = True, offset: float | None = 0.0) -> None:
        """Envelope, request, and the bundle under the name of the digest that the payload names."""
        (self.inbox / "envelope.json").write_text(json.dumps(made.envelope))
        if bundle:
            digest = made.payload.get("bundle", {}).get(
                "sha256", hashlib.sha256(made.bundle).hexdigest()
            )
            (self.inbox / f"{digest}.bundle").write_bytes(made.bundle)
        self.request(offset=offset)

    def request(self, *, offset: float | None = 0.0) -> str:
        named = str(uuid.uuid4())
        value = {"v": 1, "request": named, "clock_offset_s": offset}
        temporary = self.inbox / "request.tmp"
        temporary.write_text(json.dumps(value))
        os.replace(temporary, self.inbox / "request.json")
        return named

    # -- what root does

    def command(self, *words: str, code: int | None = None) -> subprocess.CompletedProcess[str]:
        command = ["byteor-agent", *words, "--root", str(self.root)]
        done = spawn.run(command, timeout=RUN_LIMIT_S)
        judge_call(("byteor-agent", *words), done.stdout)
        assert "Traceback" not in done.stderr and done.returncode not in ({1} - {code}), done.stderr
        return done

    def activate(self) -> subprocess.CompletedProcess[str]:
        done = self.command("activate")
        assert done.returncode == 0, done.stderr
        return done

    def deploy(self, name: str, **options: Any) -> Made:
        made = self.make(name, **options)
        self.offer(made)
        self.activate()
        return made

    # -- what came of it

    def record(self) -> dict[str, Any]:
        return dict(json.loads((self.state / "activation/deployments.json").read_text()))

    def verdicts(self) -> list[tuple[str | None, str, str | None]]:
        return [
            (row["deployment_id"], row["verdict"], row["code"]) for row in self.record()["history"]
        ]

    def reports(self) -> list[dict[str, Any]]:
        found = sorted((self.state / "activation/outcomes").glob("*.json"))
        return [json.loads(path.read_text()) for path in found]

    def said(self) -> list[tuple[str, str, str | None]]:
        return [
            (one["deployment_id"], one["report"]["status"], one["report"]["reason"])
            for one in self.reports()
        ]

    def spec(self) -> str | None:
        try:
            return (self.state / "current/spec.kv").read_text()
        except FileNotFoundError:
            return None


def tree(top: Path, *, without: Sequence[Path]) -> dict[str, Any]:
    """Every name below `top` but for `without`, with mode and content: what must not change."""
    found: dict[str, Any] = {}
    for path in sorted(top.rglob("*")):
        if any(path == other or other in path.parents for other in without):
            continue
        content = (
            os.readlink(path)
            if path.is_symlink()
            else path.read_bytes()
            if path.is_file()
            else None
        )
        found[str(path.relative_to(top))] = (path.lstat().st_mode, content)
    return found
