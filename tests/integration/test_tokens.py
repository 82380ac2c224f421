"""Judge every example of user data, and each way to give one token to one host, by the product."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import schemas
from tests.integration.autoscaling import SignedIdentity, Signer, broker
from tests.integration.host import Host
from tests.integration.spawn import BIN
from tests.unit.test_pages import PAGES, TOP

EXAMPLES = TOP / "image-build/examples/tokens"
TOKEN = "bet_0123456789abcdefghijklmnop"
DROP_PLACE = "run/byteor-firstboot/settings.yaml"
ROUTING = ["api_base_url", "org_id", "project_id", "environment_id"]


def judge(user_data: str, *, left_to_the_image: list[str] | None = None) -> dict[str, Any]:
    """Assert that check-userdata would enroll a host, without a warning."""
    done = subprocess.run(
        [str(BIN / "byteor-firstboot"), "check-userdata", "--json", "-"],
        input=user_data, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done
    schemas.judge("byteor-firstboot", "check-userdata", done.stdout)
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["would_enroll"] and found["warnings"] == [], found
    assert found["left_to_the_image"] == (left_to_the_image or []), found
    return found


def judge_settings(text: str, **keywords: Any) -> None:
    """Judge a mapping that travels by itself, as the comment block that says the same."""
    lines = ["#cloud-config", "#byteor-firstboot:", *(f"#  {line}" for line in text.splitlines())]
    judge("\n".join([*lines, "hostname: edge-node-01", ""]), **keywords)


@pytest.fixture
def host(tmp_path: Path, control_plane: Any) -> Host:
    host = Host(tmp_path / "root", control_plane)
    host.defaults()
    (host.root / DROP_PLACE).parent.mkdir(mode=0o700)
    return host


def enrolls_from_the_drop_place(host: Host) -> None:
    assert host.run().code == 0
    assert host.enrolled() and len(host.enrollments()) == 1
    assert not host.path(DROP_PLACE).exists()


def user_data_on_pages() -> Iterator[tuple[str, str]]:
    for path in PAGES:
        for indent, block in re.findall(
            r"^( *)```yaml\n(.*?)^ *```", path.read_text(), re.DOTALL | re.MULTILINE
        ):
            text = re.sub(f"^{indent}", "", block, flags=re.MULTILINE)
            if text.startswith("#cloud-config"):
                yield path.name, text.replace("bet_…", TOKEN)


@pytest.mark.parametrize(("page", "user_data"), list(user_data_on_pages()))
def test_the_user_data_of_every_page_enrolls_a_host(page: str, user_data: str) -> None:
    """What a reader copies works."""
    judge(user_data)


def test_terraform_renders_user_data_with_one_token_each(tmp_path: Path) -> None:
    """main.tf is parsed by python-hcl2; templatefile is done by a stand-in of three lines."""
    hcl2 = pytest.importorskip("hcl2")
    template = (EXAMPLES / "terraform/user-data.yaml.tftpl").read_text()
    parsed = hcl2.loads((EXAMPLES / "terraform/main.tf").read_text())
    [locals_] = parsed["locals"]
    call = locals_["user_data"]
    given = set(re.findall(r"(\w+)\s*[=:]\s", call.split("templatefile", 1)[1]))
    wanted = set(re.findall(r"\$\{(\w+)\}", template))
    assert wanted == given, call
    values = {"api_base_url": "https://api.example", "org_id": "org_1", "project_id": "prj_1"}
    rendered = []
    for number in range(3):
        own = {"name": f"edge-{number}", "enrollment_token": f"{TOKEN}{number}"}
        every = {**values, "environment_id": "env_1", **own}
        rendered.append(re.sub(r"\$\{(\w+)\}", lambda m, v=every: v[m[1]], template))
        judge(rendered[-1])
    assert len(set(rendered)) == 3


def test_ansible_puts_each_hosts_token_into_the_drop_place(host: Host, tmp_path: Path) -> None:
    """The playbook as ansible-playbook runs it, over a local connection and without sudo."""
    playbook = BIN / "ansible-playbook"
    if not playbook.exists():
        pytest.skip("ansible-core is not installed")
    token = host.mint()
    inventory = tmp_path / "inventory.ini"
    inventory.write_text(
        f"[edge]\nedge-node-01 ansible_connection=local enrollment_token={token} "
        f"ansible_python_interpreter={sys.executable}\n"
    )
    variables = {"ansible_become": False, "drop_place": str(host.path(DROP_PLACE))}
    words = ["-i", str(inventory), "--skip-tags", "wait", "-e", json.dumps(variables)]
    environ = {**os.environ, "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        [str(playbook), *words, str(EXAMPLES / "ansible/enroll.yml")],
        capture_output=True, text=True, env=environ,
    )  # fmt: skip
    assert done.returncode == 0, done
    assert token not in done.stdout + done.stderr
    dropped = host.path(DROP_PLACE)
    assert dropped.stat().st_mode & 0o777 == 0o600
    judge_settings(dropped.read_text(), left_to_the_image=ROUTING)
    enrolls_from_the_drop_place(host)


def test_ignition_is_what_butane_says_and_holds_the_settings() -> None:
    """byteor.ign has the files of byteor.bu; Butane itself is not run here."""
    butane = yaml.safe_load((EXAMPLES / "ignition/byteor.bu").read_text())
    ignition = json.loads((EXAMPLES / "ignition/byteor.ign").read_text())
    assert ignition["ignition"] == {"version": "3.4.0"}
    files = {}
    for file in ignition["storage"]["files"]:
        head, _, data = file["contents"]["source"].partition(",")
        assert head == "data:"
        files[file["path"]] = (file["mode"], urllib.parse.unquote(data))
    assert files == {
        file["path"]: (file["mode"], file["contents"]["inline"])
        for file in butane["storage"]["files"]
    }
    assert files["/etc/byteor/enrollment-token"][0] == 0o600
    mode, settings = files["/etc/byteor/firstboot.yaml"]
    token = files["/etc/byteor/enrollment-token"][1].strip()
    assert mode == 0o644 and token not in settings
    judge_settings(f"{settings}enrollment_token: {token}")


def test_lxd_passes_user_data() -> None:
    """The instance's configuration holds user data as it is."""
    instance = yaml.safe_load((EXAMPLES / "lxd/instance.yaml").read_text())
    judge(instance["config"]["cloud-init.user-data"])


def test_libvirt_passes_systemd_credentials(host: Host, tmp_path: Path) -> None:
    """SMBIOS strings as systemd reads them; the same credentials enroll a host."""
    found = {}
    for entry in ElementTree.parse(EXAMPLES / "libvirt/domain.xml").iter("entry"):
        kind, _, value = (entry.text or "").partition("=")
        prefix, _, name = kind.partition(":")
        assert prefix in ("io.systemd.credential", "io.systemd.credential.binary")
        found[name] = base64.b64decode(value).decode() if prefix.endswith("binary") else value
    assert set(found) == {"byteor.enrollment-token", "byteor.firstboot"}
    judge_settings(
        f"{found['byteor.firstboot']}enrollment_token: {found['byteor.enrollment-token']}"
    )
    host.path("etc/byteor/firstboot.yaml").unlink()
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    settings = yaml.safe_load(found["byteor.firstboot"])
    ours = {
        key: value
        for key, value in host.settings().items()
        if key in {*settings, "ca_certificates"}
    }
    (credentials / "byteor.enrollment-token").write_text(host.mint())
    (credentials / "byteor.firstboot").write_text(json.dumps(ours))
    for path in credentials.iterdir():
        path.chmod(0o400)
    assert host.run(env={"CREDENTIALS_DIRECTORY": str(credentials)}).code == 0
    assert len(host.enrollments()) == 1


def test_an_autoscaling_group_gets_its_tokens_from_a_broker(host: Host, tmp_path: Path) -> None:
    """An instance that proves who it is gets a token; one with a strange signature gets none."""
    ask = EXAMPLES / "autoscaling/byteor-broker-token"
    ours, stranger = Signer(tmp_path / "ours"), Signer(tmp_path / "stranger")
    given = {"tokens": [host.mint(), host.mint()], "settings": "name: edge-17"}
    identity = SignedIdentity("127.0.0.1", instance_id="i-1", hostname="edge", user_data="")
    with broker("127.0.0.1", tmp_path, certificate=ours.certificate, **given) as url, identity:
        environ = {"IMDS": identity.url, "BROKER": url, "DROP_PLACE": str(host.path(DROP_PLACE))}

        def asked(signer: Signer) -> int:
            identity.signed = signer.sign(identity.identity)
            command = [sys.executable, "-I", str(ask)]
            return subprocess.run(command, env=environ, capture_output=True).returncode

        assert asked(stranger) != 0
        assert list(host.path(DROP_PLACE).parent.iterdir()) == []
        assert asked(ours) == 0
        first = host.path(DROP_PLACE).read_text()
        assert asked(ours) == 0 and host.path(DROP_PLACE).read_text() == first
    judge_settings(first, left_to_the_image=ROUTING)
    enrolls_from_the_drop_place(host)


def test_the_broker_unit_is_read_by_systemd(tmp_path: Path) -> None:
    """No unknown key, no bad value."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not on this machine")
    text = (EXAMPLES / "autoscaling/byteor-broker-token.service").read_text()
    unit = tmp_path / "byteor-broker-token.service"
    unit.write_text(re.sub(r"^ExecStart=.*$", "ExecStart=/bin/true", text, flags=re.MULTILINE))
    done = subprocess.run(
        [program, "verify", "--man=no", str(unit)], capture_output=True, text=True
    )
    assert [line for line in done.stderr.splitlines() if "byteor" in line] == []


def test_each_example_is_on_the_page() -> None:
    """An example that nobody finds is none."""
    page = (TOP / ".github/reference/tokens.md").read_text()
    for folder in EXAMPLES.iterdir():
        assert f"image-build/examples/tokens/{folder.name}" in page, folder.name
