"""``byteor-agent upload``: a file, or the directory of an incident, becomes an artifact in the spool.

Root opens what it was given, and becomes the agent's user before it writes: the spool is that user's, and root follows
nothing there. A diagnostic that is a text loses its secrets, an incident bundle is packed without them; a snapshot, and a
bundle that was packed by others, goes as it is.
"""

from __future__ import annotations

import argparse
import os
import pwd
import signal
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from firstboot.agent.artifacts import cleaning, packing, spool
from firstboot.agent.artifacts.spool import About, Added
from firstboot.api.multipart import LARGEST
from firstboot.base import accounts, files, log
from firstboot.base.clock import Clock, rfc3339
from firstboot.base.errors import ByteorError, LocalFault
from firstboot.base.layout import Layout
from firstboot.base.redaction import redact_text
from firstboot.base.secret import Secret
from firstboot.commands import waiting
from firstboot.exchange import verdicts, wake
from firstboot.identity import store

BUNDLE, DIAGNOSTIC = "incident-bundle", "diagnostic"
TEST_WAIT_S = 60.0  # for the upload of `verify`


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
    parser.add_argument(
        "--wait", action="store_true", help="wait until the control plane stores or refuses it"
    )


def upload_command(arguments: argparse.Namespace) -> int:
    """Upload, with this host's own key known, so that it is found by its value."""
    Secret(os.environ.get("BYTEOR_AGENT_API_KEY", ""))
    try:
        store.required(arguments.layout)  # opening it makes its key known
    except ByteorError:
        pass  # this user may not, or there is none
    path = Path(arguments.file)
    return upload(arguments.layout, path, kind=arguments.kind, wait=arguments.wait)


def upload(layout: Layout, path: Path, *, kind: str, wait: bool) -> int:
    """Spool `path` durably, tell the agent, print its id; with `wait` stay until the plane has it."""
    account = writer(layout)
    with _opened(path, kind) as (source, about):
        enter(layout, account)
        added = spool.add(layout, source, _in_force(layout, about))
    before = waiting.failures(layout)
    wake.wake(layout, signal.SIGUSR2)
    print(added.id, flush=True)
    _say(added, about)
    if added.state == spool.UPLOADED:
        return 0
    if wait or added.state == spool.QUARANTINED:
        log.notice(f"uploaded as {waiting.wait(layout, added, before=before)}")
    return 0


def upload_test(layout: Layout) -> str:
    """Send a small diagnostic through the spool and wait for it: the artifact's id at the plane, or why it has none."""
    enter(layout, writer(layout))
    text = f"upload test of byteor-firstboot verify, {rfc3339(Clock().wall())}, {uuid.uuid4()}\n"
    added = spool.add_text(layout, text.encode(), name="upload-test")
    before = waiting.failures(layout)
    wake.wake(layout, signal.SIGUSR2)
    return waiting.wait(layout, added, before=before, limit_s=TEST_WAIT_S)


def writer(layout: Layout) -> pwd.struct_passwd | None:
    """Whom to become before the spool is touched, None for nobody; LocalFault for who may not use this host's spool.

    The agent's user owns its directory, which only root can have made; in a container that may be any user.
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
    """An open file with what goes into the spool, and what is said of it."""
    name = redact_text(path.resolve().name if path.name in ("", "..") else path.name)
    try:
        mode = os.lstat(path).st_mode
        directory = stat.S_ISDIR(mode)
        # Looked at before it is opened: opening a device does things.
        if not stat.S_ISREG(mode) and not directory:
            _not_a_file(path, packing.kind_of(mode))
        flags = (
            os.O_RDONLY
            | os.O_NOFOLLOW
            | os.O_NONBLOCK
            | os.O_CLOEXEC
            | (os.O_DIRECTORY if directory else 0)
        )
        fd = os.open(path, flags)
    except OSError as error:
        files.fail("read", path, error)
    try:
        facts = os.fstat(fd)
        if directory:
            if kind != BUNDLE:
                raise LocalFault(
                    f"{path} is a directory", hint=f"only --kind {BUNDLE} is packed from one"
                )
            with _packed(fd, name) as packed:
                yield packed
            return
        if not stat.S_ISREG(facts.st_mode):
            _not_a_file(path, packing.kind_of(facts.st_mode))
        if not facts.st_size:
            raise LocalFault(f"{path} is empty", hint="there is nothing to upload")
        if facts.st_size > LARGEST:
            raise LocalFault(
                f"{path} is larger than {LARGEST >> 20} MiB", hint="an artifact has at most 64 MiB"
            )
        about = About(kind, name, facts.st_mtime)
        if kind != DIAGNOSTIC:
            yield fd, about
            return
        with _cleaned(fd, facts, about) as cleaned:
            yield cleaned
    finally:
        os.close(fd)


def _not_a_file(path: Path, kind: str) -> NoReturn:
    hint = (
        "name the file that it leads to"
        if "link" in kind
        else "only a regular file can be an artifact"
    )
    raise LocalFault(f"{path} is {kind}, not a regular file", hint=hint)


@contextmanager
def _packed(directory: int, name: str) -> Iterator[tuple[int, About]]:
    held = spool.hold(b"")
    try:
        with os.fdopen(os.dup(held), "wb") as stream:
            packed = packing.pack(directory, stream)
        for part in packed.missing:
            log.warning(f"the incident bundle has no {part}")
        for row in packed.left_out:
            log.warning(f"left out: {row['part']} is {row['why']}")
        for part in packed.unseen:
            log.warning(f"not searched for secrets, as it is packed: {part}")
        yield (
            held,
            About(
                BUNDLE,
                name,
                packed.newest,
                spec_hash=packed.spec_hash,
                replaced=tuple(packed.replaced),
            ),
        )
    finally:
        os.close(held)


@contextmanager
def _cleaned(fd: int, facts: os.stat_result, about: About) -> Iterator[tuple[int, About]]:
    """A text without its secrets; anything else as it is."""
    with open(fd, "rb", closefd=False) as stream:
        data = stream.read(facts.st_size + 1)
    after = os.fstat(fd)
    if len(data) != facts.st_size or after.st_mtime_ns != facts.st_mtime_ns:
        raise spool.changed(about.name)
    found = cleaning.clean_text(data)
    if found is None or not found[1]:
        yield fd, about
        return
    clean, kinds = found
    held = spool.hold(clean)
    try:
        yield (
            held,
            About(
                about.kind,
                about.name,
                about.captured_at,
                replaced=({"part": about.name, "kinds": kinds},),
            ),
        )
    finally:
        os.close(held)


def _in_force(layout: Layout, about: About) -> About:
    """With the deployment that is in force, unless the bundle is of another one."""
    current = verdicts.seen(layout).deployment
    if current is None or about.spec_hash not in (None, current["spec_hash"]):
        return about
    return About(
        about.kind,
        about.name,
        about.captured_at,
        current["deployment_id"],
        current["spec_hash"],
        about.replaced,
    )


def _say(added: Added, about: About) -> None:
    for row in about.replaced[: spool.MOST_REPLACED]:
        log.notice(f"replaced in {row['part']}: {', '.join(row['kinds'])}")
    said = {
        spool.NEW: "in the spool",
        spool.WAITING: "already in the spool, with the same content",
        spool.UPLOADED: f"already uploaded, with the same content, as {added.artifact_id}",
    }
    if added.state in said:
        log.notice(f"{added.id} is {said[added.state]}")
