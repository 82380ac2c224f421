"""The sealed identity on real files: whose it is, what opens it, and what is left when a run is
cut.

The host's own key, `systemd-creds`, is in test_sealkey; the rule for clones is in test_hostfacts.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firstboot.base import files
from firstboot.base.errors import Corrupt, LocalFault
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret
from firstboot.identity import seal, sealkey, store
from firstboot.identity.store import Identity, State, look

MACHINE = "3d1219c7c4c5404aaa1f6d2a48adfda4"
OTHER_MACHINE = "11112222333344445555666677778888"
KEY_CANARY = "brk_canary_0123456789abcdef"
PROXY_CANARY = "http://user:proxy_canary_01234@proxy.example:3128"

FULL = Identity(
    api_base_url="https://plane.example",
    org_id="org_1",
    project_id="prj_1",
    environment_id="env_1",
    agent_id="agt_1",
    name="edge-node-01",
    api_key=Secret(KEY_CANARY),
    scopes=("agent:heartbeat", "agent:artifact_upload"),
    expires_at="2027-01-01T00:00:00Z",
    enrolled_at="2026-01-01T00:00:00Z",
    proxy=Secret(PROXY_CANARY),
    idempotency_key="7b3e2b2e-0000-4000-8000-000000000000",
)
BARE = replace(FULL, name=None, scopes=(), expires_at=None, proxy=None, idempotency_key=None)


def put(layout: Layout, path: str, text: str) -> None:
    target = layout.root / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A NoCloud host."""
    made = Layout(tmp_path)
    put(made, "/etc/machine-id", MACHINE + "\n")
    put(made, "/run/cloud-init/.instance-id", "iid-1\n")
    put(
        made,
        "/var/lib/cloud/instance/datasource",
        "DataSourceNoCloud: DataSourceNoCloud [seed=/dev/sr0]\n",
    )
    put(made, "/sys/class/dmi/id/product_uuid", "4c4c4544-0042-3510-8051-b4c04f4b5831\n")
    return made


def tree(layout: Layout) -> dict[str, tuple[int, int, int, bytes]]:
    """Every file of ours with inode, time, mode and bytes; and the directories' times."""
    found = {}
    for path in sorted(layout.state.rglob("*")):
        facts = path.lstat()
        data = path.read_bytes() if stat.S_ISREG(facts.st_mode) else b""
        found[str(path)] = (facts.st_ino, facts.st_mtime_ns, facts.st_mode, data)
    return found


@pytest.mark.parametrize("whole", [FULL, BARE], ids=["full", "bare"])
def test_what_is_saved_is_here(layout: Layout, whole: Identity) -> None:
    """Every field comes back; the files are private and hold no secret in the clear."""
    assert look(layout).state is State.NONE
    store.save(layout, whole, seal="auto")
    seen = look(layout)
    assert (seen.state, seen.identity, seen.why) == (State.HERE, whole, "")
    assert sorted(os.listdir(layout.identity)) == ["credentials.sealed", "sealing.key"]
    assert stat.S_IMODE(layout.credentials.stat().st_mode) == 0o600
    data = layout.credentials.read_bytes()
    for private in (KEY_CANARY, PROXY_CANARY, MACHINE, "iid-1", "agt_1", "plane.example"):
        assert private.encode() not in data
        assert private.encode().hex().encode() not in data


def test_a_look_is_shown_without_its_secrets(layout: Layout) -> None:
    """repr of everything that `look` returns, as a traceback or a log would print it."""
    store.save(layout, FULL, seal="auto")
    assert KEY_CANARY not in repr(look(layout))
    assert "proxy_canary" not in repr(look(layout))


def test_a_second_save_replaces_the_identity_and_keeps_the_key(layout: Layout) -> None:
    """`reenroll`: the same key file, a new envelope, nothing beside it."""
    store.save(layout, FULL, seal="auto")
    key, sealed = layout.sealing_key.read_bytes(), layout.credentials.read_bytes()
    store.save(layout, replace(FULL, agent_id="agt_2"), seal="auto")
    assert look(layout).identity == replace(FULL, agent_id="agt_2")
    assert layout.sealing_key.read_bytes() == key
    assert layout.credentials.read_bytes() != sealed
    assert sorted(os.listdir(layout.identity)) == ["credentials.sealed", "sealing.key"]


# -- whose it is

Change = Callable[[Layout], None]


def change(path: str, text: str) -> Change:
    return lambda layout: put(layout, path, text)


def both(*changes: Change) -> Change:
    def apply(layout: Layout) -> None:
        for one in changes:
            one(layout)

    return apply


MACHINE_ID = change("/etc/machine-id", OTHER_MACHINE)
INSTANCE_ID = change("/run/cloud-init/.instance-id", "iid-2")
PRODUCT_UUID = change("/sys/class/dmi/id/product_uuid", "ec2aa6b3-1a2b-4c5d-9e0f-112233445566")
EC2 = change("/var/lib/cloud/instance/datasource", "DataSourceEc2Local: DataSourceEc2Local")


@pytest.mark.parametrize(
    ("before", "after", "state"),
    [
        (both(), MACHINE_ID, State.FOREIGN),
        (both(), INSTANCE_ID, State.HERE),
        (both(), PRODUCT_UUID, State.HERE),
        (both(), both(INSTANCE_ID, PRODUCT_UUID), State.FOREIGN),
        (EC2, INSTANCE_ID, State.FOREIGN),
        (EC2, PRODUCT_UUID, State.HERE),
        (
            both(),
            both(change("/run/cloud-init/.instance-id", "iid-datasource-none"), PRODUCT_UUID),
            State.HERE,
        ),
        (both(), change("/etc/machine-id", "uninitialized\n"), State.HERE),
        (both(), change("/etc/machine-id", ""), State.HERE),
        (change("/etc/machine-id", ""), MACHINE_ID, State.HERE),
        (both(), change("/etc/hostname", "renamed"), State.HERE),
    ],
)
def test_a_clone_is_told_from_a_reboot(
    layout: Layout, before: Change, after: Change, state: State
) -> None:
    """On disk, through header and facts; the intent's binding says the same as the identity's."""
    before(layout)
    store.save(layout, FULL, seal="auto")
    taken = json.loads(json.dumps(store.fingerprint(layout)))
    assert store.same_host(layout, taken)
    kept = tree(layout)
    after(layout)
    seen = look(layout)
    assert seen.state is state
    assert (seen.identity == FULL, bool(seen.why)) == (state is State.HERE, state is State.FOREIGN)
    assert store.same_host(layout, taken) is (state is State.HERE)
    assert tree(layout) == kept, "a look changed something"


def test_a_foreign_identity_is_judged_without_its_key(layout: Layout) -> None:
    """A key that is missing or damaged does not hide that the host is another, nor is it read."""
    store.save(layout, FULL, seal="auto")
    layout.sealing_key.unlink()
    os.mkfifo(layout.sealing_key)
    MACHINE_ID(layout)
    assert look(layout).state is State.FOREIGN
    put(layout, "/etc/machine-id", MACHINE)
    assert look(layout).state is State.UNREADABLE


@pytest.mark.parametrize(
    "damaged",
    [{}, {"salt": "00"}, {"salt": "x", "datasource": "ec2"}, {"salt": 1, "datasource": []}],
)
def test_a_damaged_binding_is_no_binding(layout: Layout, damaged: dict[str, object]) -> None:
    """An intent whose fingerprint cannot be read is not this host's: its key is not used again."""
    assert not store.same_host(layout, damaged)


def test_an_identity_of_a_host_key_does_not_open_in_another_tree(layout: Layout) -> None:
    """Under --root the running system's secret is never asked."""
    key = bytes(32)
    header = {"provider": "host", "host": store.fingerprint(layout)}
    files.make_directory(layout.identity, 0o700)
    files.write(layout.credentials, seal.seal(b"{}", key=key, purpose=store.PURPOSE, header=header))
    with pytest.raises(LocalFault, match="when that runs") as caught:
        look(layout)
    assert not isinstance(caught.value, Corrupt)


# -- what does not open


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_changed_file_never_opens_and_is_never_touched(
    layout: Layout, data: st.DataObject
) -> None:
    """Any edit of credentials.sealed: foreign or unreadable in one clause, no traceback, the file
    as it was.
    """
    store.save(layout, FULL, seal="auto")
    good = layout.credentials.read_bytes()
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, min(len(good), start + 80)))
    bad = good[:start] + data.draw(st.binary(max_size=10)) + good[end:]
    layout.credentials.write_bytes(bad)
    kept = tree(layout)
    try:
        seen = look(layout)
    except LocalFault as error:  # the change made the provider one that another version may know
        assert "of a kind that this version does not know" in str(error)
    else:
        assert (seen.identity is None) is (bad != good)
        assert bad == good or seen.state in (State.UNREADABLE, State.FOREIGN)
        assert bad == good or seen.why
        assert KEY_CANARY not in seen.why
    assert tree(layout) == kept


@pytest.mark.parametrize(
    "header",
    [
        {"host": None},
        {"host": []},
        {"host": {}},
        {"host": {"salt": "zz", "datasource": "ec2"}},
    ],
)
def test_a_header_that_names_no_host_is_unreadable(
    layout: Layout, header: dict[str, object]
) -> None:
    """Sealed with the right key all the same: what cannot be compared is not opened."""
    _, key = sealkey.obtain(layout, "file")
    whole = {"host": store.fingerprint(layout), **header}
    if "host" in header:
        whole["provider"] = "file"
    files.write(layout.credentials, seal.seal(b"{}", key=key, purpose=store.PURPOSE, header=whole))
    seen = look(layout)
    assert seen.state is State.UNREADABLE
    assert seen.why


def reseal(layout: Layout, content: bytes, *, purpose: str = store.PURPOSE) -> None:
    provider, key = sealkey.obtain(layout, "file")
    header = {"provider": provider, "host": store.fingerprint(layout)}
    files.write(layout.credentials, seal.seal(content, key=key, purpose=purpose, header=header))


def test_what_another_version_sealed_is_not_called_unreadable(layout: Layout) -> None:
    """A key of another kind, content of another version: after a downgrade nothing is set aside."""
    _, key = sealkey.obtain(layout, "file")
    header = {"host": store.fingerprint(layout), "provider": "tpm2"}
    files.write(layout.credentials, seal.seal(b"{}", key=key, purpose=store.PURPOSE, header=header))
    with pytest.raises(LocalFault, match="this version does not know") as caught:
        look(layout)
    assert not isinstance(caught.value, Corrupt) and caught.value.hint
    reseal(layout, json.dumps({**json.loads(store._to_content(FULL)), "v": 2}).encode())
    with pytest.raises(LocalFault, match="not of version 1") as caught:
        look(layout)
    assert not isinstance(caught.value, Corrupt) and caught.value.hint


def test_what_keeps_a_good_identity_from_being_opened_is_a_local_fault(layout: Layout) -> None:
    """Modes, owners and links of key and file say nothing about the identity (seen: set aside)."""
    store.save(layout, FULL, seal="auto")
    key, sealed = layout.sealing_key, layout.credentials

    def link(path: Path) -> None:
        path.rename(path.with_name("elsewhere"))
        path.symlink_to("elsewhere")

    def back(path: Path) -> None:
        path.unlink()
        path.with_name("elsewhere").rename(path)

    def twice(path: Path) -> None:
        os.link(path, path.with_name("backup"))

    cases = [
        (lambda: key.chmod(0o640), lambda: key.chmod(0o400)),
        (lambda: twice(key), lambda: key.with_name("backup").unlink()),
        (lambda: link(key), lambda: back(key)),
        (lambda: link(sealed), lambda: back(sealed)),
    ]
    if os.geteuid() == 0:
        cases.append((lambda: os.chown(key, 12345, 0), lambda: os.chown(key, 0, 0)))
    for spoil, mend in cases:
        spoil()
        kept = tree(layout)
        with pytest.raises(LocalFault) as caught:
            look(layout)
        assert not isinstance(caught.value, Corrupt) and caught.value.hint
        assert tree(layout) == kept
        mend()
        assert look(layout).identity == FULL
    twice(sealed)
    sealed.chmod(0o644)
    assert look(layout).identity == FULL, "a sealed file that opens is here, whatever its links"
    store.rebind(layout, look(layout), FULL, boot_id="b")
    assert stat.S_IMODE(sealed.stat().st_mode) == 0o600


def test_another_product_uuid_is_recorded_once_in_the_boot_that_saw_it(
    layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    """A notice of that boot, sealed anew; the next look sees the same machine."""
    store.save(layout, FULL, seal="auto")
    put(layout, "/sys/class/dmi/id/product_uuid", "4c4c4544-0042-3510-8051-b4c04f4b5899\n")
    assert look(layout).moved and look(layout).state is State.HERE
    store.rebind(layout, look(layout), FULL, boot_id="boot-1")
    assert "product UUID" in capsys.readouterr().err
    seen = look(layout)
    assert not seen.moved and seen.identity == replace(FULL, moved_in="boot-1")
    before = layout.credentials.read_bytes()
    store.rebind(layout, seen, replace(FULL, moved_in="boot-1"), boot_id="boot-2")
    assert layout.credentials.read_bytes() == before


@pytest.mark.parametrize("datasource", ["DataSourceNoCloud", "DataSourceEc2Local"])
def test_a_copy_is_told_after_cloud_init_clean(layout: Layout, datasource: str) -> None:
    """`cloud-init clean` removes the copy's instance id: a run before the next boot binds nothing."""
    place, instance = "/var/lib/cloud/instance/datasource", "/run/cloud-init/.instance-id"
    put(layout, place, f"{datasource}: {datasource}\n")
    store.save(layout, FULL, seal="auto")
    put(layout, "/sys/class/dmi/id/product_uuid", "4c4c4544-0042-3510-8051-b4c04f4b5899\n")
    for path in (place, instance):
        layout.path(path).unlink()
    store.rebind(layout, look(layout), FULL, boot_id="boot-1")
    assert look(layout).state is State.HERE
    put(layout, place, f"{datasource}: {datasource}\n")
    put(layout, instance, "iid-2\n")
    assert look(layout).state is State.FOREIGN
    put(layout, instance, "iid-1\n")  # the same instance on other hardware
    store.rebind(layout, look(layout), FULL, boot_id="boot-2")
    assert look(layout).state is State.HERE and not look(layout).moved


def test_content_of_another_shape_is_unreadable_without_quoting_it(layout: Layout) -> None:
    """Not JSON, another version, missing or mistyped fields: one clause that holds no secret."""
    store.save(layout, FULL, seal="auto")
    document = json.loads(store._to_content(FULL))
    bad = [
        b"",
        b"null",
        b"[]",
        b"5",
        json.dumps(document).encode()[:-1],
        b'{"v": 1}',
        b"\xff" + KEY_CANARY.encode(),
    ]
    bad += [json.dumps({**document, name: 5}).encode() for name in document if name != "v"]
    for content in bad:
        reseal(layout, content)
        seen = look(layout)
        assert seen.state is State.UNREADABLE, content
        assert seen.why
        assert KEY_CANARY not in seen.why
    reseal(layout, json.dumps(document).encode(), purpose="another purpose")
    assert look(layout).state is State.UNREADABLE


def test_unknown_fields_are_ignored(layout: Layout) -> None:
    """A downgraded package reads what a newer one of the same version wrote."""
    document = json.loads(store._to_content(FULL))
    reseal(layout, json.dumps({**document, "colour": "blue", "nested": {"x": [1]}}).encode())
    assert look(layout).identity == FULL


@pytest.mark.parametrize("how", ["fifo", "directory", "too large", "empty"])
def test_something_else_in_the_files_place_is_unreadable(layout: Layout, how: str) -> None:
    """No FIFO stops the boot, nothing is read without a limit; and nothing is removed."""
    layout.identity.mkdir(parents=True)
    if how == "fifo":
        os.mkfifo(layout.credentials)
    elif how == "directory":
        layout.credentials.mkdir()
    else:
        layout.credentials.write_bytes(b"" if how == "empty" else b"x" * (seal.SEALED_LIMIT + 1))
    kept = tree(layout)
    assert look(layout).state is State.UNREADABLE
    assert tree(layout) == kept


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_not_called_unreadable(layout: Layout) -> None:
    """Missing permission says nothing about the identity: a local fault, so that it is never set
    aside for it.
    """
    store.save(layout, FULL, seal="auto")
    os.chmod(layout.identity, 0)
    with pytest.raises(LocalFault) as caught:
        look(layout)
    os.chmod(layout.identity, 0o700)
    assert not isinstance(caught.value, Corrupt)


def test_a_disk_that_does_not_read_is_not_called_unreadable(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for an input/output error, of the identity and of its key."""
    store.save(layout, FULL, seal="auto")
    really_open = os.open
    for bad in (layout.credentials, layout.sealing_key):

        def refuse(path: object, *rest: int, bad: Path = bad, **more: int) -> int:
            if path == bad:
                raise OSError(5, "Input/output error")
            return really_open(path, *rest, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(LocalFault) as caught:
            look(layout)
        assert not isinstance(caught.value, Corrupt)


# -- setting aside


def test_what_is_set_aside_can_be_put_back(layout: Layout) -> None:
    """Identity and key move together under their own names; each next time into a directory of its
    own.
    """
    store.save(layout, FULL, seal="auto")
    MACHINE_ID(layout)
    store.set_aside(layout)
    assert look(layout).state is State.NONE
    store.save(layout, BARE, seal="auto")
    assert look(layout).identity == BARE
    layout.credentials.write_bytes(b"damaged")
    store.set_aside(layout)
    assert {
        name: sorted(os.listdir(layout.set_aside / name)) for name in os.listdir(layout.set_aside)
    } == {"1": ["credentials.sealed", "sealing.key"], "2": ["credentials.sealed", "sealing.key"]}
    assert stat.S_IMODE(layout.set_aside.stat().st_mode) == 0o700
    put(layout, "/etc/machine-id", MACHINE)
    for name in ("credentials.sealed", "sealing.key"):
        os.rename(layout.set_aside / "1" / name, layout.identity / name)
    assert look(layout).identity == FULL


def test_setting_aside_nothing_is_harmless(layout: Layout) -> None:
    """No identity, no key: nothing moves, nothing raises."""
    store.set_aside(layout)
    store.set_aside(layout)
    assert look(layout).state is State.NONE


class Cut(BaseException):
    """The process is killed here."""


@pytest.mark.parametrize("steps", range(4))
def test_setting_aside_that_is_cut_is_finished_by_the_next_run(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """The verdict stands until all is moved, and what belongs together ends in one directory."""
    store.save(layout, FULL, seal="auto")
    sealed, key = layout.credentials.read_bytes(), layout.sealing_key.read_bytes()
    MACHINE_ID(layout)
    really_move = files.move_into
    left = [steps]

    def move(path: Path, directory: Path) -> None:
        if left[0] == 0:
            raise Cut
        left[0] -= 1
        really_move(path, directory)

    monkeypatch.setattr(files, "move_into", move)
    try:
        store.set_aside(layout)
    except Cut:
        assert look(layout).state is State.FOREIGN
        monkeypatch.setattr(files, "move_into", really_move)
        store.set_aside(layout)
    assert os.listdir(layout.set_aside) == ["1"]
    assert (layout.set_aside / "1" / "credentials.sealed").read_bytes() == sealed
    assert (layout.set_aside / "1" / "sealing.key").read_bytes() == key
    assert look(layout).state is State.NONE


# -- saving that is cut or cannot be done


def test_a_crash_between_key_and_identity_leaves_a_usable_state(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key is there, the identity is not: none, and the next save uses the key."""

    def killed(*_: object, **__: object) -> bytes:
        raise Cut

    with monkeypatch.context() as patched:
        patched.setattr(seal, "seal", killed)
        with pytest.raises(Cut):
            store.save(layout, FULL, seal="auto")
    key = layout.sealing_key.read_bytes()
    assert look(layout).state is State.NONE
    store.save(layout, FULL, seal="auto")
    assert layout.sealing_key.read_bytes() == key
    assert look(layout).identity == FULL


def test_a_damaged_key_that_nothing_is_sealed_with_is_set_aside(
    layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cut or spoilt key must not stop the enrollment of a host that has no identity; it is kept,
    and said.
    """
    sealkey.obtain(layout, "file")
    os.chmod(layout.sealing_key, 0o600)
    layout.sealing_key.write_bytes(b"cut")
    store.probe_sealing(layout, seal="auto")
    assert "set aside" in capsys.readouterr().err
    assert (layout.set_aside / "sealing.key.unused-1").read_bytes() == b"cut"
    store.save(layout, FULL, seal="auto")
    assert look(layout).identity == FULL


def test_a_damaged_key_of_an_identity_is_not_replaced(layout: Layout) -> None:
    """With credentials.sealed there, only `set_aside` moves a key: save fails and changes
    nothing.
    """
    store.save(layout, FULL, seal="auto")
    os.chmod(layout.sealing_key, 0o600)
    layout.sealing_key.write_bytes(b"cut")
    assert look(layout).state is State.UNREADABLE
    kept = tree(layout)
    with pytest.raises(Corrupt):
        store.save(layout, BARE, seal="auto")
    assert tree(layout) == kept


def test_a_probe_leaves_the_key_that_will_be_used_and_nothing_else(layout: Layout) -> None:
    """Once or often, before an identity and after."""
    for _ in range(2):
        store.probe_sealing(layout, seal="auto")
        assert os.listdir(layout.identity) == ["sealing.key"]
    key = layout.sealing_key.read_bytes()
    store.save(layout, FULL, seal="auto")
    kept = tree(layout)
    store.probe_sealing(layout, seal="auto")
    assert tree(layout) == kept
    assert kept[str(layout.sealing_key)][3] == key


def test_a_disk_that_takes_no_write_fails_the_probe_and_keeps_the_identity(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC at fsync: a local fault, the former identity whole, no temporary file beside it."""
    store.save(layout, FULL, seal="auto")
    kept = {path: entry[3] for path, entry in tree(layout).items()}

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(LocalFault, match="no space"):
            store.save(layout, BARE, seal="auto")
    assert {path: entry[3] for path, entry in tree(layout).items()} == kept
    assert look(layout).identity == FULL


def test_the_key_of_a_provider_that_is_not_used_any_more_goes(layout: Layout) -> None:
    """Once the new seal was read back, the other provider's file is gone and the identity opens."""
    store.save(layout, FULL, seal="file")
    layout.sealing_cred.write_text("{}")
    store.drop_unused_key(layout)
    assert not layout.sealing_cred.exists() and layout.sealing_key.exists()
    assert store.look(layout).identity == FULL
