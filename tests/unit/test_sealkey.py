"""Where the sealing key comes from; the host's provider with the real `systemd-creds`, in a mount
namespace of its own.

Nothing here touches this machine's /var/lib/systemd: tests of the host's key run as children with a
tmpfs over /var/lib and a copy of /etc, and are skipped, saying so, where that cannot be made.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import firstboot
from firstboot.base.errors import Corrupt, LocalFault
from firstboot.base.layout import Layout
from firstboot.identity import sealkey
from firstboot.identity.host import HostFacts

MACHINE = "3d1219c7c4c5404aaa1f6d2a48adfda4"
OTHER_MACHINE = "11112222333344445555666677778888"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


# -- the key file


def test_a_key_file_is_made_once_and_used_again(layout: Layout) -> None:
    """32 bytes, 0400, in a 0700 directory; never overwritten: a crash before the identity loses
    nothing.
    """
    provider, key = sealkey.obtain(layout, "auto")
    assert (provider, len(key)) == ("file", 32)
    assert stat.S_IMODE(layout.sealing_key.stat().st_mode) == 0o400
    assert stat.S_IMODE(layout.identity.stat().st_mode) == 0o700
    assert sealkey.obtain(layout, "file") == ("file", key)
    assert sealkey.fetch(layout, "file") == key
    assert os.listdir(layout.identity) == ["sealing.key"]


@pytest.mark.parametrize("seal", ["auto", "host", "file"])
def test_under_a_root_it_is_always_a_file(layout: Layout, seal: str) -> None:
    """The running system's secret has no business in another tree."""
    assert sealkey.obtain(layout, seal)[0] == "file"
    assert not layout.sealing_cred.exists()


def spoil(path: Path, how: str) -> None:
    os.chmod(path, 0o600)
    if how == "short":
        path.write_bytes(b"x" * 31)
    elif how == "long":
        path.write_bytes(b"x" * 33)
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "open to others":
        os.chmod(path, 0o440)
    elif how == "hard link":
        os.link(path, path.with_name("second"))
    elif how == "symbolic link":
        path.rename(path.with_name("second"))
        path.symlink_to("second")
    elif how == "fifo":
        path.unlink()
        os.mkfifo(path, 0o400)
    elif how == "another's":
        os.chown(path, 12345, 12345)


PROVEN = ("short", "long", "empty", "fifo")


@pytest.mark.parametrize(
    "how", [*PROVEN, "open to others", "hard link", "symbolic link", "another's"]
)
def test_a_key_file_that_is_not_to_be_used_is_said_and_stays(layout: Layout, how: str) -> None:
    """A wrong size is proven bad; a mode, owner or link says nothing about what the key opens."""
    if how == "another's" and os.geteuid() != 0:
        pytest.skip("giving a file away needs root")
    _, key = sealkey.obtain(layout, "file")
    spoil(layout.sealing_key, how)
    before = os.lstat(layout.sealing_key)
    for attempt in (lambda: sealkey.fetch(layout, "file"), lambda: sealkey.obtain(layout, "file")):
        with pytest.raises(LocalFault) as caught:
            attempt()
        assert isinstance(caught.value, Corrupt) is (how in PROVEN)
        assert key.hex() not in str(caught.value)
    after = os.lstat(layout.sealing_key)
    assert (before.st_ino, before.st_mtime_ns, before.st_mode) == (
        after.st_ino,
        after.st_mtime_ns,
        after.st_mode,
    )


def test_a_key_that_is_missing_is_not_made_by_fetching(layout: Layout) -> None:
    """Opening an identity must never make a key that it cannot have been sealed with."""
    for provider in ("file", "host", "tpm2", "None"):
        with pytest.raises(LocalFault) as caught:
            sealkey.fetch(layout, provider)
        assert isinstance(caught.value, Corrupt) is (provider == "file")
    assert not layout.identity.exists()


def test_a_full_or_readonly_disk_is_a_local_fault(layout: Layout) -> None:
    """No key, no traceback: the token is not presented yet."""
    layout.state.mkdir(parents=True)
    layout.identity.write_text("a file where the directory belongs")
    with pytest.raises(LocalFault) as caught:
        sealkey.obtain(layout, "file")
    assert not isinstance(caught.value, Corrupt)


def test_a_host_key_is_not_promised_on_a_transient_machine_id() -> None:
    """`seal: host` would not open after the next boot; `auto` then means a key file."""
    facts = HostFacts(MACHINE, False, None, "unknown", None)
    assert sealkey.choose(Layout(), "auto", facts=facts) == "file"
    assert sealkey.choose(Layout(), "file", facts=facts) == "file"
    with pytest.raises(LocalFault, match="committed"):
        sealkey.choose(Layout(), "host", facts=facts)


# -- the host's key

# `systemd-creds` becomes a wrapper that notes argv and environment and then does what /var/lib/mode
# says.
SYSTEM = f"""set -e
mount -t tmpfs none /var/lib
mkdir /var/lib/systemd /var/lib/etc
cp -a /etc/. /var/lib/etc
mount --bind /var/lib/etc /etc
mount -t tmpfs none /run
echo {MACHINE} > /etc/machine-id
cp /usr/bin/systemd-creds /var/lib/real
cat > /var/lib/wrapper <<'EOF'
#!/bin/sh
{{ echo "argv: $*"; tr '\\0' '\\n' < /proc/self/environ; }} >> /var/lib/calls
test ! -e /var/lib/mode || . /var/lib/mode
exec /var/lib/real "$@"
EOF
chmod 755 /var/lib/wrapper
: > /var/lib/calls
mount --bind /var/lib/wrapper /usr/bin/systemd-creds
exec "$0" -c "$1"
"""

PRELUDE = f"""
import hashlib, json, os
from dataclasses import replace
from pathlib import Path
from firstboot.identity import host, sealkey, store
from firstboot.base.errors import Corrupt, LocalFault
from firstboot.identity.store import Identity, State, look
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret

MACHINE, OTHER = "{MACHINE}", "{OTHER_MACHINE}"
layout = Layout()
secret = Path("/var/lib/systemd/credential.secret")
fresh = Identity(api_base_url="https://plane.example", org_id="org_1", project_id="prj_1", environment_id="env_1",
                 agent_id="agt_1", name="edge", api_key=Secret("brk_canary_0123456789"),
                 scopes=("agent:heartbeat",), enrolled_at="2026-01-01T00:00:00Z")

def fault(said):
    try:
        look(layout)
    except Corrupt:
        raise
    except LocalFault as error:
        assert said in str(error) and error.hint, error
    else:
        raise SystemExit("no fault")

def become(machine_id):
    Path("/etc/machine-id").write_text(machine_id + "\\n")

def calls():
    return Path("/var/lib/calls").read_text().count("argv: ")

def mode(shell):
    Path("/var/lib/mode").write_text(shell + "\\n")

def tree():
    return {{str(path): (path.lstat().st_ino, path.lstat().st_mtime_ns, path.read_bytes())
            for top in ("/var/lib/byteor", "/var/lib/systemd")
            for path in sorted(Path(top).rglob("*")) if path.is_file()}}
"""


def why_no_host_key() -> str:
    if os.geteuid() != 0:
        return "a private mount namespace needs root"
    if shutil.which("unshare") is None or not os.path.exists("/usr/bin/systemd-creds"):
        return "there is no unshare or no systemd-creds (systemd 250+)"
    probe = [
        "unshare",
        "-m",
        "--propagation",
        "private",
        "mount",
        "-t",
        "tmpfs",
        "none",
        "/var/lib",
    ]
    allowed = subprocess.run(probe, capture_output=True, check=False).returncode == 0
    return "" if allowed else "mounting is not allowed here"


WHY_NOT = why_no_host_key()
on_a_host = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-")


def run_on_a_host(script: str) -> str:
    """Run Python on a system with a machine-id and a /var/lib of its own; return its stderr."""
    environment = {**os.environ, "PYTHONPATH": str(Path(firstboot.__file__).parents[1])}
    done = subprocess.run(
        [
            "unshare",
            "-m",
            "--propagation",
            "private",
            "sh",
            "-c",
            SYSTEM,
            sys.executable,
            PRELUDE + textwrap.dedent(script),
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**environment, "SYSTEMD_CREDENTIAL_SECRET": "/var/lib/x"},
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@on_a_host
def test_auto_seals_with_the_hosts_key_and_reads_back() -> None:
    """systemd 250+ and a committed machine-id: sealing.cred, 0400, and the same key at every later
    call.
    """
    run_on_a_host("""
        store.probe_sealing(layout, seal="auto")
        assert sorted(os.listdir(layout.identity)) == ["sealing.cred"], os.listdir(layout.identity)
        assert layout.sealing_cred.stat().st_mode & 0o777 == 0o400
        provider, key = sealkey.obtain(layout, "auto")
        assert (provider, len(key)) == ("host", 32) and sealkey.obtain(layout, "host") == ("host", key)
        store.save(layout, fresh, seal="auto")
        assert look(layout).identity == fresh
        assert secret.stat().st_size == 4112
        assert key not in layout.sealing_cred.read_bytes() and key not in layout.credentials.read_bytes()
        assert not Path("/var/lib/x").exists()
    """)


@on_a_host
def test_no_secret_reaches_argv_or_environment_of_systemd_creds() -> None:
    """The wrapper saw every call: fixed arguments, a fixed environment, the key by pipe alone."""
    run_on_a_host("""
        os.environ["CANARY"] = "seen"
        provider, key = sealkey.obtain(layout, "auto")
        sealkey.fetch(layout, "host")
        said = Path("/var/lib/calls").read_text()
        lines = [line for line in said.splitlines() if line.startswith("argv")]
        assert lines == ["argv: --version", "argv: encrypt --with-key=host --name=byteor-sealing-key - -",
                         "argv: decrypt --name=byteor-sealing-key - -"], lines
        assert "CANARY" not in said and "SYSTEMD_CREDENTIAL_SECRET" not in said and key.hex() not in said
    """)


@on_a_host
def test_a_clone_is_foreign_before_any_key_is_touched_and_opens_again_on_its_host() -> None:
    """Another machine-id: not one file of ours or of systemd's changes; the machine-id put back: it
    opens.
    """
    run_on_a_host("""
        store.save(layout, fresh, seal="auto")
        before, made = tree(), calls()
        become(OTHER)
        seen = look(layout)
        assert seen.state is State.FOREIGN and seen.identity is None and "machine-id" in seen.why, seen
        assert (tree(), calls()) == (before, made)
        become(MACHINE)
        assert look(layout).identity == fresh
    """)


@on_a_host
def test_without_the_verdict_systemd_creds_would_have_destroyed_the_secret() -> None:
    """Why the header comes first: one decryption under another machine-id removes the host's secret
    (measured).
    """
    run_on_a_host("""
        store.save(layout, fresh, seal="auto")
        become(OTHER)
        credential = json.loads(layout.sealing_cred.read_text())["credential"]
        before = secret.read_bytes()
        sealkey._systemd_creds(["decrypt", "--name=byteor-sealing-key", "-", "-"], credential.encode())
        assert not secret.exists() or secret.read_bytes() != before
        become(MACHINE)
        fault("does not open")
    """)


@on_a_host
def test_a_machine_id_that_is_not_committed_or_unknown_starts_no_systemd_creds() -> None:
    """No evidence of another host, but no proof of this one either: a local fault, and nothing
    changes.
    """
    run_on_a_host("""
        store.save(layout, fresh, seal="auto")
        before, made = tree(), calls()
        for text in ("uninitialized", ""):
            become(text)
            fault("machine-id")
        assert (tree(), calls()) == (before, made)
        become(MACHINE)
        assert look(layout).identity == fresh
    """)


@on_a_host
def test_what_is_set_aside_never_holds_the_secret_that_opens_it() -> None:
    """Neither a foreign identity nor a damaged one: a copy of /var/lib/byteor alone opens nothing."""
    run_on_a_host("""
        store.save(layout, fresh, seal="auto")
        former = secret.read_bytes()
        become(OTHER)
        store.set_aside(layout)
        kept = layout.set_aside / "1"
        assert sorted(os.listdir(kept)) == ["credentials.sealed", "sealing.cred"]
        assert look(layout).state is State.NONE
        store.save(layout, replace(fresh, agent_id="agt_2"), seal="auto")
        layout.credentials.write_bytes(b"damaged")
        store.set_aside(layout)
        assert sorted(os.listdir(layout.set_aside / "2")) == ["credentials.sealed", "sealing.cred"]
        for path in Path("/var/lib/byteor").rglob("*"):
            assert not path.is_file() or former not in path.read_bytes(), path
        become(MACHINE)
        secret.unlink()
        secret.write_bytes(former)
        secret.chmod(0o400)
        for name in ("credentials.sealed", "sealing.cred"):
            os.rename(kept / name, layout.identity / name)
        assert look(layout).identity == fresh
    """)


@on_a_host
def test_a_key_that_exists_is_never_replaced() -> None:
    """Two that make a key at once, one of them slow: the first key stays, the second is said."""
    run_on_a_host("""
        mode('[ $1 != encrypt ] || touch /var/lib/byteor/identity/sealing.cred')
        try:
            sealkey.obtain(layout, "host")
            raise SystemExit("replaced")
        except LocalFault as error:
            assert "sealing.cred" in str(error), error
        assert layout.sealing_cred.read_bytes() == b""
    """)


@on_a_host
def test_a_key_left_by_a_cut_run_on_another_host_is_not_tried() -> None:
    """Only sealing.cred is there, and the machine-id is another: set aside, no decryption, a new
    key.
    """
    run_on_a_host("""
        sealkey.obtain(layout, "auto")
        become(OTHER)
        store.save(layout, fresh, seal="auto")
        assert look(layout).identity == fresh
        assert "decrypt" not in Path("/var/lib/calls").read_text().split("argv: --version")[-1].split("encrypt")[0]
        assert os.listdir(layout.set_aside) == ["sealing.cred.unused-1"]
    """)


@on_a_host
def test_auto_falls_back_to_a_file_and_host_does_not() -> None:
    """A systemd-creds that fails, hangs, lies or is too old: a warning and a key file, or exit 7
    for `seal: host`.
    """
    said = run_on_a_host("""
        sealkey.CREDS_TIMEOUT_S = 2
        for shell in ('[ $1 = --version ] || { echo no secret for you >&2; exit 1; }',
                      '[ $1 = --version ] || exec sleep 60',
                      '[ $1 = --version ] || { echo "***"; exit 0; }'):
            mode(shell)
            try:
                sealkey.obtain(layout, "host")
                raise SystemExit("seal: host was not refused")
            except Corrupt:
                raise
            except LocalFault as error:
                assert "systemd-creds" in str(error)
            assert sealkey.obtain(layout, "auto")[0] == "file"
        mode('[ $1 = --version ] && echo systemd 249 && exit 0')
        assert sealkey.obtain(layout, "auto")[0] == "file"
        assert sorted(os.listdir(layout.identity)) == ["sealing.key"]
    """)
    assert "no secret for you" in said


@on_a_host
def test_a_systemd_creds_that_hangs_or_is_gone_says_nothing_about_the_identity() -> None:
    """A local fault, exit 7: the identity is not called unreadable, and so is never set aside for
    it.
    """
    run_on_a_host("""
        store.save(layout, fresh, seal="host")
        sealkey.CREDS_TIMEOUT_S = 1
        mode("exec sleep 60")
        for _ in range(2):
            try:
                look(layout)
                raise SystemExit("no error")
            except Corrupt:
                raise
            except LocalFault as error:
                assert "systemd-creds" in str(error) and error.__cause__ is None and error.__suppress_context__
            sealkey.CREDS_ENVIRONMENT = {"PATH": "/nowhere"}
    """)


@on_a_host
def test_a_damaged_credential_is_unreadable_and_stays() -> None:
    """No document: unreadable. One that systemd-creds does not open: its word alone proves nothing,
    so a local fault. The files as they were, no junk made.
    """
    run_on_a_host("""
        store.save(layout, fresh, seal="host")
        good = layout.sealing_cred.read_bytes()
        document = json.loads(good)
        credential = document["credential"]
        middle = len(credential) // 2
        changed = credential[:middle] + ("A" if credential[middle] != "A" else "B") + credential[middle + 1:]
        for bad in (b"", b"{}", good[:-5], b'{"v": 1}', json.dumps({**document, "v": 2}).encode(),
                    json.dumps({**document, "host": 5}).encode(), json.dumps({**document, "credential": 7}).encode(),
                    json.dumps({**document, "credential": "\\ud800"}).encode()):
            os.chmod(layout.sealing_cred, 0o600)
            layout.sealing_cred.write_bytes(bad)
            before = tree()
            seen = look(layout)
            assert seen.state is State.UNREADABLE and seen.why, bad
            assert tree() == before
        for bad in ("", changed):
            layout.sealing_cred.write_text(json.dumps({**document, "credential": bad}))
            before = tree()
            fault("does not open")
            assert tree() == before
        layout.sealing_cred.write_bytes(good)
        assert look(layout).identity == fresh
        mode("kill -9 $$")
        fault("does not open")
        mode("true")
        secret.unlink()
        fault("does not open")
    """)
