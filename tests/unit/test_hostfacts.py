"""Which host this is: the rule of contract section 6 as a table, and the facts as real files give
them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import firstboot
from firstboot.base.layout import Layout
from firstboot.identity import host
from firstboot.identity.host import (
    HostFacts,
    Match,
    compare,
    fingerprint,
    foreign,
    host_facts,
    same_machine_id,
)

SAME, DIFFERENT, ABSENT = Match.SAME, Match.DIFFERENT, Match.ABSENT

MACHINE = "3d1219c7c4c5404aaa1f6d2a48adfda4"
OTHER_MACHINE = "11112222333344445555666677778888"
UUID = "4c4c4544-0042-3510-8051-b4c04f4b5831"
OTHER_UUID = "ec2aa6b3-1a2b-4c5d-9e0f-112233445566"
HERE = HostFacts(MACHINE, True, "i-0abc", "ec2", UUID.replace("-", ""))

# machine-id, instance id, product UUID, the platform assigns instance ids -> foreign. All 54
# combinations.
TABLE = {
    **{
        (DIFFERENT, instance, product, platform): True
        for instance in Match
        for product in Match
        for platform in (True, False)
    },
    (SAME, SAME, SAME, True): False,
    (SAME, SAME, SAME, False): False,
    (SAME, SAME, DIFFERENT, True): False,
    (SAME, SAME, DIFFERENT, False): False,
    (SAME, SAME, ABSENT, True): False,
    (SAME, SAME, ABSENT, False): False,
    (SAME, DIFFERENT, SAME, True): True,
    (SAME, DIFFERENT, SAME, False): False,
    (SAME, DIFFERENT, DIFFERENT, True): True,
    (SAME, DIFFERENT, DIFFERENT, False): True,
    (SAME, DIFFERENT, ABSENT, True): True,
    (SAME, DIFFERENT, ABSENT, False): False,
    (SAME, ABSENT, SAME, True): False,
    (SAME, ABSENT, SAME, False): False,
    (SAME, ABSENT, DIFFERENT, True): False,
    (SAME, ABSENT, DIFFERENT, False): False,
    (SAME, ABSENT, ABSENT, True): False,
    (SAME, ABSENT, ABSENT, False): False,
    (ABSENT, SAME, SAME, True): False,
    (ABSENT, SAME, SAME, False): False,
    (ABSENT, SAME, DIFFERENT, True): False,
    (ABSENT, SAME, DIFFERENT, False): False,
    (ABSENT, SAME, ABSENT, True): False,
    (ABSENT, SAME, ABSENT, False): False,
    (ABSENT, DIFFERENT, SAME, True): True,
    (ABSENT, DIFFERENT, SAME, False): False,
    (ABSENT, DIFFERENT, DIFFERENT, True): True,
    (ABSENT, DIFFERENT, DIFFERENT, False): True,
    (ABSENT, DIFFERENT, ABSENT, True): True,
    (ABSENT, DIFFERENT, ABSENT, False): False,
    (ABSENT, ABSENT, SAME, True): False,
    (ABSENT, ABSENT, SAME, False): False,
    (ABSENT, ABSENT, DIFFERENT, True): False,
    (ABSENT, ABSENT, DIFFERENT, False): False,
    (ABSENT, ABSENT, ABSENT, True): False,
    (ABSENT, ABSENT, ABSENT, False): False,
}

AUTHORED = (
    "nocloud",
    "configdrive",
    "lxd",
    "vmware",
    "ovf",
    "maas",
    "opennebula",
    "none",
    "unknown",
)


def test_the_table_names_every_combination() -> None:
    """Nothing is left to chance: three facts of three values, two kinds of datasource."""
    assert len(TABLE) == 3 * 3 * 3 * 2


@pytest.mark.parametrize(
    ("row", "expected"), TABLE.items(), ids=lambda value: str(value) if value is True else None
)
def test_the_rule(row: tuple[Match, Match, Match, bool], expected: bool) -> None:
    """Each row of the table; a foreign host says why, another has nothing to explain."""
    machine_id, instance_id, product_uuid, platform = row
    verdict = foreign(machine_id, instance_id, product_uuid, platform_assigned=platform)
    assert verdict.foreign is expected
    assert bool(verdict.why) is expected


def facts_for(
    machine_id: Match, instance_id: Match, product_uuid: Match, datasource: str
) -> HostFacts:
    def pick(match: Match, same: str | None, other: str) -> str | None:
        return {SAME: same, DIFFERENT: other, ABSENT: None}[match]

    machine = pick(machine_id, HERE.machine_id, OTHER_MACHINE)
    return HostFacts(
        machine,
        machine is not None,
        pick(instance_id, "i-0abc", "i-0def"),
        datasource,
        pick(product_uuid, HERE.product_uuid, OTHER_UUID.replace("-", "")),
    )


@pytest.mark.parametrize("datasource", [*host.PLATFORMS.pattern.split("|"), *AUTHORED])
def test_a_fingerprint_compares_as_the_rule_says_for_every_datasource(datasource: str) -> None:
    """Through salt, hashes and JSON, for each kind of datasource, in both directions of absence."""
    then = replace(HERE, datasource=datasource)
    for (machine_id, instance_id, product_uuid, platform), expected in TABLE.items():
        if platform is not bool(host.PLATFORMS.fullmatch(datasource)):
            continue
        now = facts_for(machine_id, instance_id, product_uuid, datasource)
        assert compare(json.loads(json.dumps(fingerprint(then))), now).foreign is expected
        assert compare(json.loads(json.dumps(fingerprint(now))), then).foreign is expected


@pytest.mark.parametrize(
    ("then", "now"),
    [("ec2", "openstack"), ("openstack", "ec2"), ("ec2", "nocloud"), ("unknown", "ec2")],
)
def test_ids_of_two_datasources_are_not_compared_alone(then: str, now: str) -> None:
    """One OpenStack instance has two ids, one for each datasource: the product UUID must differ as
    well.
    """
    stored = fingerprint(replace(HERE, datasource=then))
    moved = replace(HERE, datasource=now, instance_id="b2f1c3c4")
    assert not compare(stored, moved).foreign
    assert compare(stored, replace(moved, product_uuid="0" * 31 + "1")).foreign


# Change of a host -> (its facts then, now), and if another host is seen: the confusion matrix.
NOCLOUD, PLATFORM = replace(HERE, datasource="nocloud"), replace(HERE, datasource="ec2")
OTHER_PRODUCT = "0" * 31 + "1"
CHANGES: dict[str, tuple[HostFacts, HostFacts, bool]] = {
    "reboot": (HERE, HERE, False),
    "another board": (HERE, replace(HERE, product_uuid=OTHER_PRODUCT), False),
    "seed detached": (NOCLOUD, replace(NOCLOUD, instance_id=None), False),
    "seed with a new instance-id": (NOCLOUD, replace(NOCLOUD, instance_id="iid-2"), False),
    "clone of a NoCloud guest, cached seed": (
        NOCLOUD, replace(NOCLOUD, product_uuid=OTHER_PRODUCT), False),
    "clone of a NoCloud guest, new seed": (
        NOCLOUD, replace(NOCLOUD, instance_id="iid-2", product_uuid=OTHER_PRODUCT), True),
    "clone with a new machine-id": (HERE, replace(HERE, machine_id=OTHER_MACHINE), True),
    "instance from a snapshot": (PLATFORM, replace(PLATFORM, instance_id="i-0def"), True),
    "resized instance": (PLATFORM, replace(PLATFORM, product_uuid=OTHER_PRODUCT), False),
    "metadata service away": (PLATFORM, replace(PLATFORM, instance_id=None), False),
    "machine-id not committed": (HERE, replace(HERE, machine_id="f" * 32, committed=False), False),
    "moved to bare metal": (PLATFORM, replace(HERE, instance_id=None, datasource="none"), False),
}  # fmt: skip


def test_the_confusion_matrix_of_changes_against_the_verdict() -> None:
    """Who is a clone and who is not, printed; a clone with a cached seed is known to be missed."""
    rows = []
    for change, (then, now, expected) in CHANGES.items():
        verdict = compare(fingerprint(then), now)
        assert verdict.foreign is expected, change
        word = "foreign" if verdict.foreign else "notice" if verdict.moved else "here"
        rows.append(f"{change:<40} {word:<8} {verdict.why}")
    print("\n".join(rows))


UUID_ID = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
OTHER_ORDER = "e004253f-894f-d341-9a0c-0305e82c3301"


@pytest.mark.parametrize("then", [UUID_ID, UUID_ID.upper(), OTHER_ORDER, OTHER_ORDER.upper()])
@pytest.mark.parametrize("now", [UUID_ID, UUID_ID.upper(), OTHER_ORDER, OTHER_ORDER.upper()])
def test_a_uuid_is_the_same_in_any_case_and_byte_order(then: str, now: str) -> None:
    """Azure's instance id is the product UUID, as whichever kernel or agent spells it."""
    before = replace(HERE, datasource="azure", instance_id=then)
    assert not compare(fingerprint(before), replace(before, instance_id=now)).foreign
    other = replace(before, instance_id=now[:-1] + "2")
    assert compare(fingerprint(before), other).foreign


def test_another_product_uuid_alone_is_a_move_and_not_foreign() -> None:
    """A copy of a virtual machine with its seed, or a new board: a notice."""
    moved = compare(fingerprint(HERE), replace(HERE, product_uuid="0" * 31 + "1"))
    assert moved.moved and not moved.foreign
    assert not compare(fingerprint(HERE), replace(HERE, product_uuid=None)).moved
    assert not compare(fingerprint(HERE), HERE).moved


def test_a_machine_id_that_is_not_committed_is_no_evidence() -> None:
    """A transient machine-id differs at every boot of the same host, then and now."""
    transient = replace(HERE, machine_id=OTHER_MACHINE, committed=False)
    assert not compare(fingerprint(HERE), transient).foreign
    assert not compare(fingerprint(transient), HERE).foreign
    assert "machine_id" not in fingerprint(transient)


def test_only_a_certainly_equal_machine_id_lets_systemd_creds_run() -> None:
    """Different, absent, damaged: no; an uncommitted one that is equal: yes, since systemd-creds
    looks no further.
    """
    stored = fingerprint(HERE)
    assert same_machine_id(stored, HERE)
    assert same_machine_id(stored, replace(HERE, committed=False))
    for now in (replace(HERE, machine_id=OTHER_MACHINE), replace(HERE, machine_id=None)):
        assert not same_machine_id(stored, now)
    for damaged in (
        {},
        {**stored, "salt": 5},
        {**stored, "salt": "zz"},
        {**stored, "machine_id": []},
    ):
        assert not same_machine_id(damaged, HERE)


def test_a_fingerprint_shows_no_fact_and_never_looks_the_same_twice() -> None:
    """Salted hashes: neither the values nor the equality of two hosts can be read off."""
    azure = replace(HERE, instance_id=HERE.product_uuid)
    taken = fingerprint(azure)
    assert not {MACHINE, HERE.product_uuid} & set(taken.values())
    assert taken["instance_id"] != taken["product_uuid"]
    assert not set(taken.values()) & set(fingerprint(azure).values()) - {"ec2"}


@given(
    st.dictionaries(
        st.sampled_from(["salt", "datasource", "machine_id", "instance_id", "product_uuid", "x"]),
        st.one_of(st.none(), st.text(max_size=40), st.integers(), st.lists(st.text())),
    )
)
def test_a_damaged_fingerprint_is_said_and_never_crashes(stored: dict[str, object]) -> None:
    """Whatever JSON stands there: a verdict or ValueError."""
    try:
        compare(stored, HERE)
    except ValueError:
        pass


# -- the facts, from files


def put(root: Path, path: str, text: str) -> None:
    target = root / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A root as cloud-init leaves it: absolute links and all."""
    put(tmp_path, "/etc/machine-id", MACHINE + "\n")
    put(tmp_path, "/run/cloud-init/.instance-id", "i-0abc\n")
    put(tmp_path, "/var/lib/cloud/data/instance-id", "i-old\n")
    put(
        tmp_path,
        "/var/lib/cloud/instances/i-0abc/datasource",
        "DataSourceEc2Local: DataSourceEc2Local\n",
    )
    (tmp_path / "var/lib/cloud/instance").symlink_to("/var/lib/cloud/instances/i-0abc")
    put(tmp_path, "/run/cloud-init/cloud-id-aws", "aws\n")
    (tmp_path / "run/cloud-init/cloud-id").symlink_to("/run/cloud-init/cloud-id-aws")
    put(tmp_path, "/sys/class/dmi/id/product_uuid", UUID.upper() + "\n")
    return tmp_path


def test_the_facts_of_a_tree_are_that_trees(tree: Path) -> None:
    """Under --root every fact comes from DIR, through its absolute links; nothing of this machine
    is seen.
    """
    facts = host_facts(Layout(tree))
    assert facts == replace(HERE, product_uuid=facts.product_uuid)
    assert facts.product_uuid is not None
    assert host_facts(Layout(tree / "run")) == HostFacts(None, False, None, "unknown", None)


def test_the_instance_id_of_this_boot_comes_first(tree: Path) -> None:
    """Without cloud-init's file in /run the one that it keeps in /var/lib is used."""
    (tree / "run/cloud-init/.instance-id").unlink()
    assert host_facts(Layout(tree)).instance_id == "i-old"


@pytest.mark.parametrize("text", [*host.NO_INSTANCE_IDS.pattern.split("|"), "", "\n", "NOCLOUD"])
def test_an_instance_id_that_cloud_init_made_up_is_absent(tree: Path, text: str) -> None:
    """`nocloud`, `iid-datasource-none` and the other defaults tell no two hosts apart."""
    put(tree, "/run/cloud-init/.instance-id", text)
    put(tree, "/var/lib/cloud/data/instance-id", text)
    assert host_facts(Layout(tree)).instance_id is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DataSourceNoCloud: DataSourceNoCloud [seed=/dev/sr0][dsmode=net]", "nocloud"),
        ("DataSourceNoCloudNet: DataSourceNoCloudNet [seed=…]", "nocloud"),
        (
            "DataSourceConfigDrive: DataSourceConfigDrive [net,ver=2][source=/dev/sr0]",
            "configdrive",
        ),
        ("DataSourceGCELocal: DataSourceGCELocal", "gce"),
        ("DataSourceAzure: DataSourceAzure [seed=/dev/sr0]", "azure"),
        ("DataSourceOpenStackLocal: DataSourceOpenStackLocal [net,ver=2]", "openstack"),
        ("DataSourceNone: DataSourceNone", "none"),
        ("nonsense", "ec2"),
    ],
)
def test_the_datasource_is_named_without_its_stage(tree: Path, text: str, expected: str) -> None:
    """Local or net, it is one datasource; without its file cloud-id says it (aws is Ec2)."""
    put(tree, "/var/lib/cloud/instances/i-0abc/datasource", text + "\n")
    assert host_facts(Layout(tree)).datasource == expected


@pytest.mark.parametrize(
    "text", ["", "uninitialized\n", MACHINE[:-1], MACHINE.upper(), "0\n", "x" * 32, "\0" * 32]
)
def test_a_machine_id_that_is_none_is_neither_there_nor_committed(tree: Path, text: str) -> None:
    """machine-id(5): empty before the first boot, "uninitialized" on a read-only root; damaged
    counts as absent.
    """
    put(tree, "/etc/machine-id", text)
    facts = host_facts(Layout(tree))
    assert (facts.machine_id, facts.committed) == (None, False)


@pytest.mark.parametrize(
    "text",
    [
        "00000000-0000-0000-0000-000000000000",
        "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
        "03000200-0400-0500-0006-000700080009",
        "00020003-0004-0005-0006-000700080009",
        "Not Settable",
        "",
    ],
)
def test_a_product_uuid_that_a_firmware_left_unset_is_absent(tree: Path, text: str) -> None:
    """Thousands of boards share these."""
    put(tree, "/sys/class/dmi/id/product_uuid", text)
    assert host_facts(Layout(tree)).product_uuid is None


def test_both_byte_orders_of_a_product_uuid_are_one_host(tree: Path) -> None:
    """A new kernel or firmware may turn the first three fields round (seen on Azure and EC2)."""
    before = host_facts(Layout(tree)).product_uuid
    put(tree, "/sys/class/dmi/id/product_uuid", "44454c4c-4200-1035-8051-b4c04f4b5831")
    assert host_facts(Layout(tree)).product_uuid == before
    put(tree, "/sys/class/dmi/id/product_uuid", OTHER_UUID)
    assert host_facts(Layout(tree)).product_uuid != before


def test_a_fact_that_cannot_be_read_is_absent(tree: Path) -> None:
    """A FIFO, a directory or a link in place of a fact stops no boot."""
    (tree / "run/cloud-init/.instance-id").unlink()
    os.mkfifo(tree / "run/cloud-init/.instance-id")
    (tree / "sys/class/dmi/id/product_uuid").unlink()
    (tree / "sys/class/dmi/id/product_uuid").mkdir()
    facts = host_facts(Layout(tree))
    assert facts.instance_id == "i-old"
    assert facts.product_uuid is None


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="mounts need root and unshare"
)
@pytest.mark.parametrize(("device", "committed"), [("tmpfs", False), ("same", True)])
def test_a_machine_id_that_is_mounted_from_elsewhere_is_not_committed(
    tree: Path, device: str, committed: bool
) -> None:
    """systemd lays a transient machine-id over a read-only /etc; a bind mount from the same disk is
    there to stay.
    """
    script = f"""set -e
        mount -t tmpfs none {tree}/run
        source={tree}/{"run/machine-id" if device == "tmpfs" else "etc/other"}
        echo {OTHER_MACHINE} > $source
        mount --bind $source {tree}/etc/machine-id
        exec {sys.executable} -c 'from firstboot.identity.host import *; from pathlib import Path
facts = host_facts(Layout(Path("{tree}"))); print(facts.machine_id, facts.committed)'"""
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(firstboot.__file__).parents[1])},
    )
    assert done.stdout.split() == [OTHER_MACHINE, str(committed)], done.stderr


def test_a_host_name_is_short_and_a_trees_own(tree: Path) -> None:
    """The domain is cut off; a tree without a name takes the running system's."""
    put(tree, "/etc/hostname", "edge-node-01.example.net\n")
    assert host.hostname(Layout(tree)) == "edge-node-01"
    (tree / "etc/hostname").unlink()
    assert host.hostname(Layout(tree)) == host.hostname(Layout())
    assert "." not in host.hostname(Layout())


def test_host_facts_load_neither_cryptography_nor_yaml() -> None:
    """The clone check costs nothing but the standard library."""
    code = "import sys, firstboot.identity.host, firstboot.identity.store; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(firstboot.__file__).parents[1])},
    ).stdout.split()
    assert not {"cryptography", "yaml", "requests"} & set(modules)
