"""``byteor-agent upload``: put a file, or the directory of an incident, into the spool.

Root opens what it was given, and becomes the agent's user before it writes: the spool is that
user's, and root follows nothing there. Whether it was sent is read from what the agent writes.
"""

from __future__ import annotations

import argparse
import os
import pwd
import signal
import stat
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Event

from firstboot.agent.artifacts import cleaning, memory, packing, spool
from firstboot.agent.artifacts.spool import About, Added
from firstboot.api.multipart import LARGEST
from firstboot.base import accounts, files, log
from firstboot.base.clock import Clock, monotonic, rfc3339
from firstboot.base.errors import ByteorError, LocalFault, Refused, TryAgain
from firstboot.base.layout import Layout
from firstboot.base.redaction import redact_text
from firstboot.base.secret import Secret
from firstboot.commands.agent_page import GONE, NEVER_RAN, STOPPED, reason
from firstboot.commands.agent_status import look
from firstboot.commands.flags import flag
from firstboot.commands.watching import Line
from firstboot.exchange import verdicts, wake
from firstboot.identity import store

BUNDLE, DIAGNOSTIC = "incident-bundle", "diagnostic"
TEST_WAIT_S = 60.0  # for the upload of `verify`
POLL_S = 0.25
AGENT_BACK_S = 45.0  # systemd starts it again after ten seconds
BAR = 30  # characters


HELP = """\
Copy FILE into the spool and print its id; the agent uploads it when it can, oldest first, once per
content. For root and byteor-agent. What is shaped like a credential is replaced in a diagnostic
that is a text, and in a directory that is packed as an incident bundle (spec.kv,
spec_validation.json, runtime.json, policy_audit.json, environment.json, and whatever else it
holds). A snapshot, and a bundle that is a file already, is sent as it is.

example: byteor-agent upload /var/tmp/incident-7 --kind incident-bundle --wait"""


def upload_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``upload``."""
    parser.description = HELP
    parser.add_argument(
        "file", metavar="FILE", type="path", help="a regular file, or the directory of an incident"
    )
    parser.add_argument("--kind", required=True, choices=(BUNDLE, "snapshot", DIAGNOSTIC))
    flag(parser, "--wait", "wait until the control plane stores or refuses it")


def upload_command(arguments: argparse.Namespace) -> int:
    """Spool the file durably, tell the agent, print its id; with ``--wait`` stay until stored."""
    layout: Layout = arguments.layout
    know_own_key(layout)
    account = writer(layout)
    with _opened(Path(arguments.file), arguments.kind) as (source, about):
        added, before = hand_in(layout, account, source, about)
    print(added.id, flush=True)
    for row in about.replaced[: spool.MOST_REPLACED]:
        log.notice(f"replaced in {row['part']}: {', '.join(row['kinds'])}")
    said = {
        spool.NEW: "in the spool",
        spool.WAITING: "already in the spool, with the same content",
        spool.UPLOADED: f"already uploaded, with the same content, as {added.artifact_id}",
    }
    if added.state in said:
        log.notice(f"{added.id} is {said[added.state]}")
    if added.state != spool.UPLOADED and (arguments.wait or added.state == spool.QUARANTINED):
        log.notice(f"uploaded as {wait_for(layout, added, before=before)}")
    return 0


def know_own_key(layout: Layout) -> None:
    """Make this host's runtime key known to `redaction`, as far as this user may open it.

    So it is found by its value. Opening the identity makes it known.
    """
    Secret(os.environ.get("BYTEOR_AGENT_API_KEY", ""))
    with suppress(ByteorError):  # this user may not, or there is none
        store.required(layout)


def hand_in(
    layout: Layout, account: pwd.struct_passwd | None, source: int, about: About
) -> tuple[Added, object]:
    """Become `account`, spool an open file, tell the agent; return what `wait_for` needs."""
    enter(layout, account)
    added = spool.add(layout, source, _in_force(layout, about))
    return added, _tell(layout)


def upload_test(layout: Layout) -> str:
    """Send a small diagnostic and return its artifact id, or raise why it has none."""
    enter(layout, writer(layout))
    text = f"upload test of byteor-firstboot verify, {rfc3339(Clock().wall())}, {uuid.uuid4()}\n"
    added = spool.add_text(layout, text.encode(), name="upload-test")
    return wait_for(layout, added, before=_tell(layout), limit_s=TEST_WAIT_S)


def _tell(layout: Layout) -> object:
    """Tell the agent of a new artifact; return how many uploads in a row had failed before."""
    before = look(layout, Clock())["loops"].get("artifacts", {}).get("failures")
    wake.wake(layout, signal.SIGUSR2)
    return before


def writer(layout: Layout) -> pwd.struct_passwd | None:
    """Return the user to become before the spool is touched, None for nobody.

    LocalFault for a caller who may not use this host's spool. The agent's user owns its directory,
    which only root can have made; in a container that may be any user.
    """
    if not layout.is_host:
        return None
    try:
        owner = os.stat(layout.agent, follow_symlinks=False).st_uid
    except FileNotFoundError:
        owner = accounts.agent().pw_uid
    except OSError as error:
        files.fail("look at", layout.agent, error)
    if os.geteuid() == owner:
        return None
    account = accounts.of(owner)
    if os.geteuid() != 0:
        raise LocalFault(
            f"only root and {account.pw_name} may use this host's spool", hint="run as root"
        )
    return account


def enter(layout: Layout, account: pwd.struct_passwd | None) -> None:
    """Become that user, and make sure that the spool's directory is ours."""
    if account is not None:
        accounts.become(account)
    if layout.agent.exists() and layout.agent.stat().st_uid != os.geteuid():
        # What one user makes there the other could not open again.
        raise LocalFault(
            f"{layout.shown(layout.agent)} belongs to user id {layout.agent.stat().st_uid}",
            hint="run as that user",
        )


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[tuple[int, About]]:
    """Yield an open file with what goes into the spool, and what is said of it."""
    name = redact_text(path.resolve().name if path.name in ("", "..") else path.name)
    with files.attempt("read", path):
        # Told by its mode before it is opened: opening a device does things.
        _require_file(path, os.lstat(path).st_mode, kind)
        fd = os.open(path, files.READ)
    held = packing.hold(b"")
    try:
        facts = os.fstat(fd)
        _require_file(path, facts.st_mode, kind)
        if stat.S_ISDIR(facts.st_mode):
            yield held, _pack(fd, held, name)
            return
        about = About(kind, name, facts.st_mtime)
        may_clean = kind == DIAGNOSTIC and facts.st_size <= LARGEST
        kinds = _clean(fd, held, facts, name) if may_clean else []
        if kinds:
            yield held, replace(about, replaced=({"part": name, "kinds": kinds},))
        else:
            yield fd, about
    finally:
        os.close(held)
        os.close(fd)


def _require_file(path: Path, mode: int, kind: str) -> None:
    if stat.S_ISDIR(mode) and kind != BUNDLE:
        raise LocalFault(f"{path} is a directory", hint=f"only --kind {BUNDLE} is packed from one")
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        hint = "only a regular file can be an artifact"
        if stat.S_ISLNK(mode):
            hint = "name the file that it leads to"
        raise LocalFault(f"{path} is {packing.kind_of(mode)}, not a regular file", hint=hint)


def _pack(directory: int, held: int, name: str) -> About:
    """Pack the bundle into `held`, and say what is missing, left out or not searched."""
    with os.fdopen(os.dup(held), "wb") as stream:
        packed = packing.pack(directory, stream)
    for part in packed.missing:
        log.warning(f"the incident bundle has no {part}")
    for row in packed.left_out:
        log.warning(f"left out: {row['part']} is {row['why']}")
    for part in packed.unseen:
        log.warning(f"not searched for secrets, as it is packed: {part}")
    replaced = tuple(packed.replaced)
    return About(BUNDLE, name, packed.newest, spec_hash=packed.spec_hash, replaced=replaced)


def _clean(fd: int, held: int, facts: os.stat_result, name: str) -> list[str]:
    """Write a text without its secrets into `held`; return their kinds, none for other bytes."""
    with open(fd, "rb", closefd=False) as stream:
        data = stream.read(facts.st_size + 1)
    if len(data) != facts.st_size or os.fstat(fd).st_mtime_ns != facts.st_mtime_ns:
        raise packing.changed(name)
    clean, kinds = (None if name in packing.VERBATIM else cleaning.clean_text(data)) or (data, [])
    with os.fdopen(os.dup(held), "wb") as stream:
        stream.write(clean)
    return kinds


def _in_force(layout: Layout, about: About) -> About:
    """Add the deployment in force, unless the bundle is of another one."""
    current = verdicts.seen(layout).deployment
    if current is None or about.spec_hash not in (None, current["spec_hash"]):
        return about
    deployment_id, spec_hash = current["deployment_id"], current["spec_hash"]
    return replace(about, deployment_id=deployment_id, spec_hash=spec_hash)


def wait_for(layout: Layout, added: Added, *, before: object, limit_s: float | None = None) -> str:
    """Return the artifact's id at the control plane, once it has one.

    `before` is what `_tell` returned. Refused: it is in quarantine, or this agent's uploads are
    refused. LocalFault: no agent runs. TryAgain: it took longer than `limit_s`. Except in
    quarantine the artifact stays in the spool, also after an interrupt.
    """
    began = seen_alive = monotonic()
    missed, line, is_said, pause = 0, Line(), False, Event()
    try:
        while True:
            if added.id in spool.ids(layout.spool):
                missed = 0
                document = look(layout, Clock())
                loop = document["loops"].get("artifacts", {})
                if loop.get("outcome") == "refused" and loop["failures"] != before:
                    # Once more since then: that stays until a person acts.
                    said = f"{loop['problem']}; it stays in the spool"
                    raise Refused(said, hint=loop["hint"])
                if document["state"] not in (STOPPED, GONE, NEVER_RAN):
                    seen_alive = monotonic()
                if sys.stderr.isatty():
                    line.say(_bar(layout, added.id))
                elif not is_said:
                    log.notice("waiting until it is uploaded")
                is_said = True
            elif added.id in spool.ids(layout.quarantine):
                why = reason(spool.refusal(layout.quarantine / added.id))
                raise Refused(
                    f"the control plane refused {added.id}: {why}",
                    hint=f"it is kept; byteor-agent retry {added.id} sends it again",
                )
            else:
                row = memory.recall(layout).get(added.sha256)
                missed += 1
                if row is not None or missed > 1:  # it may have moved between two looks
                    return row.artifact_id if row else "an artifact whose id was not kept"
            if monotonic() - seen_alive > min(AGENT_BACK_S, limit_s or AGENT_BACK_S):
                raise LocalFault(
                    f"the agent is not running; {added.id} stays in the spool",
                    hint="systemctl status byteor-agent",
                )
            if limit_s is not None and monotonic() - began > limit_s:
                raise TryAgain(
                    f"{added.id} was not uploaded within {limit_s:.0f} s",
                    hint="byteor-agent status says why",
                )
            pause.wait(POLL_S)
    except KeyboardInterrupt:
        line.clear()
        log.notice(f"{added.id} stays in the spool, and is uploaded when it can be")
        raise
    finally:
        line.clear()


def _bar(layout: Layout, artifact: str) -> str:
    """Return how far the artifact is, in one line."""
    said = memory.progress(layout)
    if said is not None and said.id == artifact:
        bar = "#" * (BAR * said.sent // said.size)
        return f"[{bar:<{BAR}}] {said.sent / 2**20:.1f} of {said.size / 2**20:.1f} MiB"
    own = spool.number(artifact)
    before = sum(spool.number(other) < own for other in spool.ids(layout.spool))
    return f"waiting, {before} before it" if before else "waiting"
