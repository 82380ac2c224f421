"""The units as systemd reads them: what is started when, what is tried again, what each may do."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from firstboot.base.layout import Layout, Row

TOP = Path(__file__).resolve().parents[2]
UNITS = TOP / "units"
FIRSTBOOT, PATH, ERASE, AGENT, ACTIVATE, REQUESTS = (
    "byteor-firstboot.service", "byteor-firstboot.path", "byteor-erase.service", "byteor-agent.service",
    "byteor-activate.service", "byteor-activate.path",
)  # fmt: skip
SHIELD, SHIELD_BINDS = (
    "byteor-shield.service",
    ("byteor-shield-local.service", "byteor-shield-network.service"),
)
WAIT, ONLINE = "byteor-wait-online.service", "byteor-online.target"
ALL = (FIRSTBOOT, PATH, ERASE, AGENT, ACTIVATE, REQUESTS, SHIELD, *SHIELD_BINDS, WAIT, ONLINE)
SERVICES = (FIRSTBOOT, ERASE, AGENT, ACTIVATE, WAIT)

EXPOSURE_LIMIT = 2.0
# `systemd-analyze security --offline` came with this version
OLDEST_OFFLINE = 250
# Keys that systemd 247, on Debian 11, does not know: each would be a warning at every boot there.
TOO_NEW = {
    "RestartSteps",
    "RestartMaxDelaySec",
    "ImportCredential",
    "RestartMode",
    "TriggerLimitIntervalSec",
}


def read(text: str) -> dict[str, dict[str, list[str]]]:
    """Section to key to the values given for it, in order; an empty value clears the list, as in
    systemd.syntax(7).
    """
    sections: dict[str, dict[str, list[str]]] = {}
    keys: dict[str, list[str]] = {}
    for line in text.replace("\\\n", " ").splitlines():
        line = line.strip()
        if not line or line[0] in "#;":
            continue
        if line.startswith("["):
            keys = sections.setdefault(line.strip("[]"), {})
            continue
        key, _, value = line.partition("=")
        keys[key.strip()] = [*keys.get(key.strip(), []), value.strip()] if value.strip() else []
    return sections


def unit(name: str) -> dict[str, dict[str, list[str]]]:
    """One of our units."""
    return read((UNITS / name).read_text())


def words(section: Mapping[str, Sequence[str]], key: str) -> list[str]:
    """The words of a list-valued key."""
    return " ".join(section.get(key, [])).split()


def cycle(name: str, sections: Mapping[str, Mapping[str, Sequence[str]]]) -> str | None:
    """The ordering cycle that this unit closes, if any: CLOUD-INIT.md, section 5, U2, U4 and U7.

    cloud-final and cloud-init.target are After=multi-user.target, and a target is After= what it
    wants unless that is itself After= the target.
    """
    head, install = sections.get("Unit", {}), sections.get("Install", {})
    after, before, wanted = words(head, "After"), words(head, "Before"), words(install, "WantedBy")
    late = {"cloud-final.service", "cloud-init.target"} & set(after)
    first = "multi-user.target" in before or (
        "multi-user.target" in wanted and "multi-user.target" not in after
    )
    return (
        f"{name} waits for {sorted(late)}, which wait for multi-user.target, which waits for it"
        if late and first
        else None
    )


def analyze() -> str:
    """systemd-analyze, or a skip."""
    found = shutil.which("systemd-analyze")
    if found is None:
        pytest.skip("systemd-analyze is not on this machine (Debian: apt-get install systemd)")
    return found


def version() -> int:
    """systemd's version."""
    said = subprocess.run(
        [analyze(), "--version"], capture_output=True, text=True, check=True
    ).stdout
    return int(said.split()[1].split(".")[0])


@pytest.mark.parametrize("name", ALL)
def test_systemd_reads_every_line_of_it(name: str, tmp_path: Path) -> None:
    """`systemd-analyze verify` finds no unknown key, bad value or missing unit in the commands'
    presence.
    """
    program, copies = analyze(), tmp_path / "units"
    copies.mkdir()
    for other in ALL:
        # where the package is not installed the commands are not there
        text = (UNITS / other).read_text()
        (copies / other).write_text(
            re.sub(r"^(Exec\w+=\+?)/usr/bin/byteor-\S+", r"\1/bin/true", text, flags=re.M)
        )
    done = subprocess.run(
        [program, "verify", "--man=no", str(copies / name)], capture_output=True, text=True, check=False,
        env={"SYSTEMD_UNIT_PATH": f"{copies}:", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    ours = [line for line in done.stderr.splitlines() if "byteor" in line]
    assert ours == []


def test_verify_would_have_said_so(tmp_path: Path) -> None:
    """A planted unknown key is reported: the test above is able to fail."""
    planted = tmp_path / "byteor-planted.service"
    planted.write_text("[Service]\nExecStart=/bin/true\nNoSuchKey=1\n")
    done = subprocess.run(
        [analyze(), "verify", "--man=no", str(planted)], capture_output=True, text=True, check=False
    )
    assert "NoSuchKey" in done.stderr


@pytest.mark.parametrize("name", ALL)
def test_no_key_is_newer_than_debian_11(name: str) -> None:
    """Nothing in it is a warning at every boot of the oldest systemd."""
    assert {key for keys in unit(name).values() for key in keys} & TOO_NEW == set()


def exposure(name: str) -> float:
    """The overall exposure level that systemd-analyze counts for one of our units."""
    if version() < OLDEST_OFFLINE:
        pytest.skip(
            f"systemd {version()} has no `systemd-analyze security --offline` (it came with {OLDEST_OFFLINE})"
        )
    said = subprocess.run(
        [analyze(), "security", "--offline=true", "--no-pager", str(UNITS / name)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    found = re.search(r"exposure level for \S+: (\d+\.\d+)", said)
    assert found is not None, said
    return float(found.group(1))


def test_agent_is_exposed_at_most_2_0() -> None:
    """`systemd-analyze security` counts at most 2.0 for the resident, network-facing process."""
    assert exposure(AGENT) <= EXPOSURE_LIMIT


def test_the_activator_is_exposed_at_most_2_5_and_has_no_network() -> None:
    """Root, and near to what a hostile bundle could reach: no network of any kind, no identity, no
    right but to read.
    """
    assert exposure(ACTIVATE) <= 2.5
    service = unit(ACTIVATE)["Service"]
    assert service["PrivateNetwork"] == ["yes"] and service["RestrictAddressFamilies"] == [
        "AF_UNIX"
    ]
    assert service["CapabilityBoundingSet"] == ["CAP_DAC_READ_SEARCH"]
    assert "-/var/lib/byteor/identity" in words(service, "InaccessiblePaths")


def test_the_activator_is_started_by_requests_and_by_what_was_interrupted() -> None:
    """A rename of the agent's, or a journal that a power cut left; mere requests that stay would
    start it for ever.
    """
    path = unit(REQUESTS)["Path"]
    assert path["PathChanged"] == ["/var/lib/byteor/agent/inbox/request.json"]
    assert path["PathExists"] == ["/var/lib/byteor/activation/journal.json"]
    assert path["Unit"] == [ACTIVATE]
    assert unit(ACTIVATE)["Service"]["Type"] == ["oneshot"]
    assert unit(ACTIVATE)["Unit"]["StartLimitIntervalSec"] == ["0"]


@pytest.mark.parametrize("name", [FIRSTBOOT, ERASE])
def test_root_services_are_hardened_too(name: str) -> None:
    """What runs as root is below 3.0: far from an unhardened service's 9.6."""
    assert exposure(name) <= 3.0


@pytest.mark.parametrize("name", SERVICES)
def test_no_core_dump_holds_a_secret(name: str) -> None:
    """The memory of every process of ours holds a token or a key at some time, and is never dumped
    to the disk.
    """
    assert unit(name)["Service"]["LimitCORE"] == ["0"]


@pytest.mark.parametrize("name", ALL)
def test_no_unit_closes_an_ordering_cycle(name: str) -> None:
    """None waits for something that waits for it."""
    assert cycle(name, unit(name)) is None


@pytest.mark.parametrize(
    "text",
    [
        "[Unit]\nAfter=cloud-final.service\n[Install]\nWantedBy=multi-user.target",
        "[Unit]\nAfter=cloud-init.target\n[Install]\nWantedBy=multi-user.target",
        "[Unit]\nAfter=cloud-final.service\nBefore=multi-user.target\n[Install]\nWantedBy=cloud-init.target",
    ],
)
def test_measured_cycles_are_recognised(text: str) -> None:
    """The check above finds the units with which a real systemd deleted jobs."""
    assert cycle("planted.service", read(text)) is not None


def test_first_boot_comes_after_the_user_data_and_holds_nothing_up() -> None:
    """First boot waits for cloud-config, not cloud-final, and counts as started as soon as it
    runs.
    """
    first = unit(FIRSTBOOT)
    after = words(first["Unit"], "After")
    assert "cloud-config.service" in after
    assert not {"cloud-final.service", "cloud-init.target", "multi-user.target"} & set(after)
    # pulling it in would make a host without a network wait for it
    assert words(first["Unit"], "Wants") == words(first["Unit"], "Requires") == []
    assert first["Service"]["Type"] == ["exec"]
    assert first["Service"]["NotifyAccess"] == ["main"]  # STATUS= alone: an exec waits for nothing
    assert "RemainAfterExit" not in first["Service"]
    assert words(first["Install"], "WantedBy") == ["multi-user.target"]


def test_erase_comes_last_at_every_boot() -> None:
    """Erasing follows cloud-final, so that late copies are there, and runs again whenever it is
    started.
    """
    erase = unit(ERASE)
    assert {FIRSTBOOT, "cloud-final.service", "multi-user.target"} <= set(
        words(erase["Unit"], "After")
    )
    assert erase["Service"]["Type"] == ["oneshot"]
    assert "RemainAfterExit" not in erase["Service"]
    assert words(erase["Install"], "WantedBy") == ["multi-user.target"]
    assert erase["Service"]["PrivateNetwork"] == ["yes"]


def test_late_settings_start_first_boot() -> None:
    """The path unit watches the drop place for changes; mere existence would start first boot for
    ever.
    """
    path = unit(PATH)
    assert path["Path"] == {
        "PathChanged": ["/run/byteor-firstboot/settings.yaml"],
        "Unit": [FIRSTBOOT],
    }
    assert words(path["Install"], "WantedBy") == ["paths.target"]


def test_what_needs_a_person_is_not_tried_again_and_what_passes_is() -> None:
    """First boot is restarted for exit 1, 6 and 7 only, for ever, with a pause; exit 3 is a
    success.
    """
    first = unit(FIRSTBOOT)
    assert words(first["Service"], "SuccessExitStatus") == ["3"]
    assert first["Service"]["Restart"] == ["on-failure"]
    assert set(words(first["Service"], "RestartPreventExitStatus")) == set("234589")
    assert first["Service"]["RestartSec"] == ["60s"]
    assert first["Unit"]["StartLimitIntervalSec"] == ["0"]


def test_credentials_are_taken_without_a_path() -> None:
    """Both credentials by name alone: with a path an absent one would fail the unit on Debian
    11.
    """
    loaded = unit(FIRSTBOOT)["Service"]["LoadCredential"]
    assert loaded == ["byteor.enrollment-token", "byteor.firstboot"]


def test_agent_is_started_by_first_boot_alone() -> None:
    """The agent has no [Install], waits for a sealed identity, and is handed its values from
    outside its sandbox.
    """
    agent = unit(AGENT)
    assert "Install" not in agent
    assert agent["Unit"]["ConditionPathExists"] == ["/var/lib/byteor/identity/credentials.sealed"]
    assert agent["Service"]["Type"] == ["notify"]
    assert agent["Service"]["User"] == ["byteor-agent"]
    assert agent["Service"]["ExecStartPre"] == ["+/usr/bin/byteor-firstboot unseal"]
    assert agent["Service"]["WatchdogSec"] == ["2min"]


def test_agent_comes_back_whatever_ended_it() -> None:
    """It is restarted for ever, and its status stays readable in between."""
    agent = unit(AGENT)
    assert agent["Service"]["Restart"] == ["always"]
    assert agent["Unit"]["StartLimitIntervalSec"] == ["0"]
    assert agent["Service"]["RuntimeDirectory"] == ["byteor-agent"]
    assert agent["Service"]["RuntimeDirectoryMode"] == ["0755"]
    assert agent["Service"]["RuntimeDirectoryPreserve"] == ["yes"]


def test_agent_writes_its_own_directory_alone() -> None:
    """Of the disk the agent may write one directory, and the identity is not even to be seen."""
    service = unit(AGENT)["Service"]
    assert service["ProtectSystem"] == ["strict"]
    assert words(service, "ReadWritePaths") == ["/var/lib/byteor/agent"]
    assert "-/var/lib/byteor/identity" in words(service, "InaccessiblePaths")
    assert service["CapabilityBoundingSet"] == service["AmbientCapabilities"] == []


@pytest.mark.parametrize("name", (FIRSTBOOT, ERASE, AGENT))
def test_every_process_sees_the_boot_id_that_the_system_sees(name: str) -> None:
    """Its /proc is the system's: a fresh one shows a container the boot id of its host. (The
    activator needs none.)
    """
    service = unit(name)["Service"]
    assert {"ProtectProc", "ProcSubset", "ProtectKernelTunables", "ProtectControlGroups"} & set(
        service
    ) == set()
    assert {"/proc/sys", "/sys"} <= set(words(service, "ReadOnlyPaths"))


def test_units_that_need_the_agent_can_wait_for_it() -> None:
    """The target pulls in a oneshot that reads files, and waits for no job: nothing else starts it."""
    wait, target = unit(WAIT), unit(ONLINE)
    assert target["Unit"]["Requires"] == target["Unit"]["After"] == [WAIT]
    assert "After" not in wait["Unit"] and "Requires" not in wait["Unit"]
    service = wait["Service"]
    assert service["Type"] == ["oneshot"] and service["RemainAfterExit"] == ["yes"]
    assert service["ExecStart"] == ["/usr/bin/byteor-agent status --wait 600"]
    assert service["User"] == ["byteor-agent"] and service["StandardOutput"] == ["null"]
    assert exposure(WAIT) <= EXPOSURE_LIMIT
    assert "Install" not in wait and "Install" not in target


def test_purging_leaves_no_link_and_names_the_agent(tmp_path: Path) -> None:
    """The maintainer script on a tree: our link goes, and a file of somebody's stays."""
    script = tmp_path / "postrm"
    script.write_text((TOP / "image-build/debian/postrm").read_text().replace("#DEBHELPER#", ""))
    for kept in (False, True):
        root = tmp_path / f"root{kept}"
        for name in ("etc/byteor", "var/lib/byteor/identity", "run/byteor-agent"):
            (root / name).mkdir(parents=True)
        (root / "var/lib/byteor/identity/credentials.sealed").write_text("{}")
        (root / "run/byteor-agent/status.json").write_text(
            '{"crashes": 0, "identity": {"agent_id": "agt_7", "name": "edge"}, "v": 1}\n'
        )
        spec = root / "etc/byteor/spec.kv"
        if kept:
            spec.write_text("of somebody's")
        else:
            spec.symlink_to("/var/lib/byteor/current/spec.kv")
        done = subprocess.run(
            ["sh", str(script), "purge"], env={"DPKG_ROOT": str(root), "PATH": "/usr/bin:/bin"},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "agent agt_7 stays in the agent list" in done.stdout and done.stderr == ""
        assert not (root / "var/lib/byteor").exists() and not (root / "run/byteor-agent").exists()
        assert spec.exists() == kept == (root / "etc/byteor").exists()


PURGE = """
    mount -t tmpfs none /var/lib && mount -t tmpfs none /run && mount -t tmpfs none /srv || exit 99
    mkdir /run/byteor-agent
    echo k > /run/byteor-agent/handover.json
    case $2 in link) mkdir /srv/byteor && ln -s /srv/byteor /var/lib/byteor && echo s > /srv/byteor/mine;;
        *) mkdir /var/lib/byteor && mount -t tmpfs none /var/lib/byteor;; esac
    cd /var/lib/byteor && mkdir -p identity/set-aside/1 agent/spool/1 activation/outcomes deployments/d
    [ $2 = link ] || mount -t tmpfs none agent/spool
    for file in identity/sealing.key identity/credentials.sealed identity/set-aside/1/sealing.key \\
        identity/set-aside/1/credentials.sealed settings.json agent/spool/one deployments/d/spec.kv; do
        echo secret > $file
    done
    ln -s deployments/d current
    exec 3< identity/sealing.key 4< identity/set-aside/1/sealing.key; cd /
    sh $1 purge; echo "exit $?"; echo readable $(cat /dev/fd/3 /dev/fd/4 | grep -ac secret)
    find /srv /var/lib /run ! -type d; find /srv /var/lib/byteor -type d 2> /dev/null
"""  # fmt: skip


@pytest.mark.parametrize("place", ["mount", "link"])
def test_purging_reaches_the_state_on_another_disk(place: str, tmp_path: Path) -> None:
    """A mount point, also of the spool, is emptied; a link's target too, but for what is not ours.

    Every sealing key is overwritten, as its open descriptor shows; what stays is said; exit 0.
    """
    script = tmp_path / "postrm"
    script.write_text((TOP / "image-build/debian/postrm").read_text().replace("#DEBHELPER#", ""))
    command = ["unshare", "--mount", "sh", "-c", PURGE, "sh", str(script), place]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip(f"no mount namespaces here: {done.stderr}")
    said, _, left = done.stdout.partition("exit 0\nreadable 0\n")
    assert "of this host stays in the agent list" in said, done
    if place == "link":
        assert left.split() == ["/srv/byteor/mine", "/srv", "/srv/byteor"], done
        stays = ["/srv/byteor"]
    else:
        stays = ["/var/lib/byteor/agent/spool", "/var/lib/byteor"]
        assert left.split() == ["/srv", *stays[1:], "/var/lib/byteor/agent", stays[0]], done
    assert [line.split()[1] for line in done.stderr.splitlines()] == stays, done


def test_purging_removes_what_the_layout_names(tmp_path: Path) -> None:
    """All that is ours by the table and all beside it goes; what may be a link is named itself."""
    rows = [row for row in vars(Layout).values() if isinstance(row, Row)]
    start = f"{Layout.state.absolute}/"
    text = (TOP / "image-build/debian/postrm").read_text().replace("#DEBHELPER#", "")
    by_name = re.search(r"for name in ([^;]*); do", text)
    assert by_name is not None
    named = by_name[1].replace("\\\n", " ").split()
    for row in rows:
        if row.absolute.startswith(start) and row.follow:
            name = row.absolute[len(start) :]
            assert name in named, name
            above = name.rpartition("/")[0]
            assert not above or named.index(name) < named.index(above), "the innermost first"
    script, root = tmp_path / "postrm", tmp_path / "root"
    script.write_text(text)
    tops = (start, "/run/byteor-firstboot/", "/run/byteor-agent/", Layout.token_file.absolute)
    held = []
    for row in sorted(rows, key=lambda row: -len(row.absolute)):
        path = root / row.absolute[1:]
        if row.absolute.startswith(tops) and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("secret")
            secret = row.absolute.startswith((f"{start}identity/", *tops[1:2], tops[3]))
            held += [path.open()] if secret else []
    subprocess.run(
        ["sh", str(script), "purge"], env={"DPKG_ROOT": str(root), "PATH": "/usr/bin:/bin"},
        check=True,
    )  # fmt: skip
    assert {str(path.relative_to(root)) for path in root.rglob("*")} == {
        "etc", "run", "var", "var/lib",
    }  # fmt: skip
    assert len(held) > 8
    for stream in held:
        assert "secret" not in stream.buffer.read().decode("latin-1"), stream.name
        stream.close()


def test_presets_enable_all_but_the_agent_and_the_shield() -> None:
    """An image's first boot enables what the package enables, and never the others."""
    lines = (UNITS / "50-byteor-firstboot.preset").read_text().splitlines()
    rules = {tuple(line.split()) for line in lines if line and not line.startswith("#")}
    assert rules == {
        *(("disable", name) for name in (AGENT, SHIELD, *SHIELD_BINDS, WAIT, ONLINE)),
        *(("enable", name) for name in (FIRSTBOOT, PATH, ERASE, REQUESTS)),
    }
    for name in ALL:
        if name in (ACTIVATE, SHIELD, *SHIELD_BINDS):  # started by its path unit; opt-in
            continue
        assert ("Install" in unit(name)) == (("enable", name) in rules)


def test_directories_are_those_of_the_contract() -> None:
    """tmpfiles makes each directory with the mode and owner of contract section 5, and no secret's
    readable by others.
    """
    lines = (UNITS / "byteor-firstboot.tmpfiles.conf").read_text().splitlines()
    made = {tuple(line.split()) for line in lines if line and not line.startswith("#")}
    assert made == {
        ("d", "/run/byteor-firstboot", "0700", "root", "root"),
        ("d", "/etc/byteor", "0755", "root", "root"),
        ("d", "/var/lib/byteor", "0755", "root", "root"),
        ("d", "/var/lib/byteor/identity", "0700", "root", "root"),
        ("d", "/var/lib/byteor/agent", "0700", "byteor-agent", "byteor-agent"),
        ("d", "/var/lib/byteor/activation", "0755", "root", "root"),
        ("d", "/var/lib/byteor/deployments", "0755", "root", "root"),
        ("d", "/var/lib/byteor/agent/inbox", "0700", "byteor-agent", "byteor-agent"),
        ("d", "/var/lib/byteor/agent/spool", "0700", "byteor-agent", "byteor-agent"),
        ("d", "/var/lib/byteor/agent/quarantine", "0700", "byteor-agent", "byteor-agent"),
        ("d", "/var/lib/byteor/activation/outcomes", "0750", "root", "byteor-agent"),
        ("L", "/etc/byteor/spec.kv", "-", "-", "-", "-", "/var/lib/byteor/current/spec.kv"),
    }


def test_the_agents_user_is_made() -> None:
    """sysusers makes the one user that units and tmpfiles name."""
    assert re.search(
        r"^u byteor-agent ", (UNITS / "byteor-firstboot.sysusers.conf").read_text(), flags=re.M
    )


@pytest.mark.parametrize("path", sorted(UNITS.iterdir()), ids=lambda path: path.name)
def test_no_secret_and_no_older_variable_is_in_it(path: Path) -> None:
    """No token, no environment with a value in it, and none of the generic names of old."""
    text = path.read_text()
    assert not re.search(r"\bbet_\w|Bearer |^SetCredential|^Environment(File)?=", text, flags=re.M)
    assert not re.search(r"(?<!BYTEOR_)(API_BASE_URL|AGENT_ID|AGENT_API_KEY)", text)


def test_the_packages_commands_are_setup_cfgs() -> None:
    """Each command that setup.cfg declares is in the Debian package with the same function,
    isolated (-I).
    """
    config = configparser.ConfigParser()
    config.read(TOP / "setup.cfg")
    declared = dict(
        line.replace(" ", "").split("=")
        for line in config["options.entry_points"]["console_scripts"].strip().splitlines()
    )
    shipped = {path.name: path.read_text() for path in (TOP / "image-build/debian/bin").iterdir()}
    assert set(shipped) == set(declared)
    for name, text in shipped.items():
        module, function = declared[name].split(":")
        assert text.startswith("#!/usr/bin/python3 -I\n")
        assert f"from {module} import {function}\n" in text
        assert f"sys.exit({function}())" in text


def test_package_scripts_never_wait_for_a_job() -> None:
    """postinst starts units with --no-block only: waiting inside cloud-final hangs the boot."""
    text = (TOP / "image-build/debian/postinst").read_text()
    code = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    calls = [line for line in code if re.search(r"\bsystemctl\b", line)]
    assert len(calls) == 3
    for line in calls:
        assert "--no-block" in line or "is-enabled" in line or "daemon-reload" in line, line
    assert not any("deb-systemd-invoke" in line or "invoke-rc.d" in line for line in code)
    rules = (TOP / "image-build/debian/rules").read_text()
    assert "dh_installsystemd --no-start --no-stop-on-upgrade --no-restart-after-upgrade" in rules


def test_shipped_defaults_are_an_empty_mapping() -> None:
    """The configuration file that the package ships sets nothing: every line is a comment or
    empty.
    """
    lines = (TOP / "image-build/debian/firstboot.yaml").read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == []
    assert not any(line.startswith("#enrollment_token") for line in lines)
