"""An agent whose identity is its environment: nothing is sealed, children inherit nothing, what is
wrong is named.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration import spawn
from tests.integration.host import Host

TOP = Path(__file__).resolve().parents[2]

ADDRESS, AGENT, KEY = "BYTEOR_API_BASE_URL", "BYTEOR_AGENT_ID", "BYTEOR_AGENT_API_KEY"


@pytest.fixture
def given(tmp_path: Path, control_plane: Any) -> dict[str, str]:
    """The three variables of an agent that was enrolled elsewhere."""
    elsewhere = Host(tmp_path / "elsewhere", control_plane)
    elsewhere.defaults()
    elsewhere.token(elsewhere.mint())
    assert elsewhere.run().code == 0
    assert elsewhere.call("byteor-firstboot", "unseal").code == 0
    handed = json.loads(elsewhere.path("run/byteor-agent/handover.json").read_text())
    return {ADDRESS: handed["api_base_url"], AGENT: handed["agent_id"], KEY: handed["api_key"]}


@pytest.fixture
def container(tmp_path: Path, control_plane: Any) -> Host:
    return Host(tmp_path / "container", control_plane)


@pytest.fixture
def config(tmp_path: Path, container: Host) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text(
        json.dumps(container.settings(heartbeat_interval_s=5, org_id=None, api_base_url=None))
    )
    return path


@pytest.fixture
def running(
    container: Host, config: Path, given: dict[str, str]
) -> Iterator[subprocess.Popen[str]]:
    process = container.agent("--config", str(config), env=given)
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_nothing_is_imported_from_the_working_directory(
    container: Host, config: Path, given: dict[str, str], control_plane: Any, tmp_path: Path
) -> None:
    """A container's WORKDIR may be a volume that others write; the children run as the agent."""
    work, ran = tmp_path / "work", tmp_path / "ran"
    work.mkdir()
    for name in ("json", "yaml", "firstboot", "argparse"):
        (work / f"{name}.py").write_text(f"open({str(ran)!r}, 'w')\n")
    process = container.agent("--config", str(config), env=given, cwd=work)
    control_plane.wait_for(lambda: control_plane.requests("heartbeat"))
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 0 and not ran.exists()


def test_it_beats_and_seals_nothing(
    container: Host, running: subprocess.Popen[str], given: dict[str, str], control_plane: Any
) -> None:
    """Beats arrive under the given id; status names the source; no file of the tree holds the key;
    it ends in order.
    """
    control_plane.wait_for(lambda: control_plane.requests("heartbeat"))
    done = container.call("byteor-agent", "status", "--json")
    identity = json.loads(done.out)["identity"]
    assert identity["source"] == "environment" and identity["agent_id"] == given[AGENT]
    assert identity["project_id"] == control_plane.project_id and identity["org_id"] is None
    assert json.loads(done.out)["loops"]["heartbeat"]["period_s"] == 5
    assert "environment" in container.call("byteor-agent", "status").out
    running.terminate()
    _, err = running.communicate(timeout=60)
    assert running.returncode == 0, err
    files = [path for path in container.root.rglob("*") if path.is_file()]
    assert (
        not any(given[KEY].encode() in path.read_bytes() for path in files)
        and given[KEY] not in err
    )
    assert [path.name for path in container.path("var/lib/byteor").iterdir()] == ["agent"]


def test_deployments_come_into_force_in_a_container(
    container: Host, tmp_path: Path, given: dict[str, str], control_plane: Any
) -> None:
    """Judged by the settings file, as nothing was frozen; the activation's command sees none of the
    three variables.
    """
    config, seen = tmp_path / "settings.yaml", tmp_path / "seen"
    activation = {"command": ["/bin/sh", "-c", f"env > {seen}"], "window_s": 0}
    config.write_text(json.dumps(container.settings(heartbeat_interval_s=5, activation=activation)))
    made = control_plane.deploy({"spec.kv": b"a = 1\n"})
    process = container.agent("--config", str(config), env=given)
    try:
        control_plane.wait_for(lambda: control_plane.reports())
    finally:
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and given[KEY] not in err, err
    (report,) = control_plane.reports()
    assert (report["deployment_id"], report["status"]) == (made["deployment_id"], "active")
    assert container.path("var/lib/byteor/current/spec.kv").read_bytes() == b"a = 1\n"
    assert "PATH=" in seen.read_text() and "BYTEOR_" not in seen.read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become the image's user")
@pytest.mark.parametrize("owned", [True, False])
def test_the_image_lets_its_user_activate(
    container: Host, tmp_path: Path, given: dict[str, str], control_plane: Any, owned: bool
) -> None:
    """With the directories that the Containerfile makes, as its user, on ``/``.

    The one capability lets it read an interpreter below a closed /root, and writes nothing.
    Where the state root is root's the activator cannot even note its fault: the heartbeat says so.
    """
    recipe = (TOP / "image-build/container/Containerfile").read_text()
    (made,) = re.findall(r"install -d .*", recipe)
    made = made.replace("byteor-agent -g byteor-agent", "65534 -g 65534")
    if not owned:
        made = f"{made} /var/lib/byteor/agent; chown root /var/lib/byteor"
    (tmp_path / "settings.yaml").write_text(
        json.dumps(container.settings(heartbeat_interval_s=5, activation={"window_s": 0}))
    )
    script = f"""
        mount -t tmpfs none /var/lib && mount -t tmpfs none /run || exit 99
        {made}
        cp {tmp_path}/settings.yaml /run/settings.yaml && cd /
        exec setpriv --reuid 65534 --regid 65534 --clear-groups \\
            --inh-caps=+dac_read_search --ambient-caps=+dac_read_search \\
            {spawn.BIN}/python -I -m firstboot agent run --config /run/settings.yaml
    """
    control_plane.deploy({"spec.kv": b"a = 1\n"})
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script],
        env={**os.environ, **given},
        stderr=subprocess.PIPE,
        text=True,
    )

    def told() -> Any:
        beats = [
            json.loads(beat["body"])["problems"] for beat in control_plane.requests("heartbeat")
        ]
        failing = [p for found in beats for p in found if p["code"] == "activation_failing"]
        return failing or control_plane.reports() or process.poll() is not None

    try:
        control_plane.wait_for(told)
    finally:
        process.terminate()
        _, err = process.communicate(timeout=60)
    if process.returncode in (99, 126, 127) or "unshare" in err:
        pytest.skip(f"no mount namespaces here, or an interpreter for root alone: {err}")
    if owned:
        assert [report["status"] for report in control_plane.reports()] == ["active"], err
    else:
        (problem, *_) = told()
        assert "exit code 7" in problem["detail"] and not control_plane.reports(), err


def test_a_containers_operator_has_the_commands(
    container: Host, tmp_path: Path, given: dict[str, str], control_plane: Any
) -> None:
    """What was deployed is listed, what failed is tried again, trust is shown and reset, status
    says where the identity is.
    """
    config, flag = tmp_path / "settings.yaml", tmp_path / "broken"
    flag.touch()
    activation = {"command": ["/bin/sh", "-c", f"test ! -e {flag}"], "window_s": 0}
    config.write_text(json.dumps(container.settings(heartbeat_interval_s=5, activation=activation)))
    made = control_plane.deploy({"spec.kv": b"a = 1\n"})
    process = container.agent("--config", str(config), env=given)
    try:
        control_plane.wait_for(lambda: control_plane.reports())
        flag.unlink()
        assert (
            json.loads(container.call("byteor-firstboot", "status", "--json").out)["state"]
            == "environment"
        )
        again = container.call(
            "byteor-agent", "retry", made["deployment_id"], "--config", str(config)
        )
        assert again.code == 0, again
        control_plane.wait_for(lambda: control_plane.reports()[-1]["status"] == "active")
        assert "failed" in container.call("byteor-agent", "deployments").out
        shown = container.call("byteor-firstboot", "trust", "--json", "--config", str(config))
        assert json.loads(shown.out)["version"] == 1
        assert (
            container.call("byteor-firstboot", "trust", "--reset", "--config", str(config)).code
            == 0
        )
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_children_inherit_none_of_the_three(tmp_path: Path, given: dict[str, str]) -> None:
    """Once it arrived, the process's own environment holds none of them; neither yaml nor
    cryptography was loaded.
    """
    (tmp_path / "r").mkdir()
    code = """
import os, subprocess, sys
from pathlib import Path
from firstboot.agent import startup
from firstboot.base.layout import Layout
handed, settings = startup.arrive(Layout(Path(sys.argv[1])), config=None, environ=os.environ)
print(handed.source, *[name for name in sys.modules if name in ("yaml", "cryptography", "firstboot.identity.store")])
print(subprocess.run(["env"], capture_output=True, text=True, check=True).stdout)
"""
    environ = {**os.environ, **given}
    command = [sys.executable, "-c", code, str(tmp_path / "r")]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=True)
    assert done.stdout.splitlines()[0] == "environment" and "BYTEOR_" not in done.stdout, done


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({KEY: None}, f"not {KEY}"),
        ({ADDRESS: None, AGENT: None}, f"not {ADDRESS}, {AGENT}"),
        ({ADDRESS: "ftp://a.example"}, f"{ADDRESS} must be"),
        ({AGENT: "../x"}, f"{AGENT} must be"),
        ({AGENT: ""}, f"{AGENT} must be"),
        ({KEY: "a key with blanks"}, f"{KEY} must be"),
        ({KEY: ""}, f"{KEY} must be"),
    ],
)
def test_partial_or_ill_formed_variables_are_named_and_not_shown(
    container: Host, given: dict[str, str], change: dict[str, Any], said: str
) -> None:
    """Exit 4, one error line with the variable's name, never a value; nothing was sent."""
    environ = {name: value for name, value in {**given, **change}.items() if value is not None}
    done = container.call("byteor-agent", "run", env=environ)
    assert done.code == 4 and said in done.err and done.err.count("error:") == 1, done
    assert not any(
        value in done.err for value in environ.values() if value and value != given[ADDRESS]
    )
    assert not container.plane.requests("heartbeat")


@pytest.mark.parametrize(
    ("text", "said"), [(None, "there is no file"), ("x: [", "not YAML"), ("org_if: a", "org_id")]
)
def test_a_broken_settings_file_stops_it(
    container: Host, config: Path, given: dict[str, str], text: Any, said: str
) -> None:
    """Exit 4 with the words of the settings' reader, once."""
    config.unlink() if text is None else config.write_text(text)
    done = container.call("byteor-agent", "run", "--config", str(config), env=given)
    assert done.code == 4 and said in done.err and done.err.count("error:") == 1, done


def test_one_agent_a_tree(
    container: Host, running: subprocess.Popen[str], config: Path, given: dict[str, str]
) -> None:
    """A second run on the same tree ends with exit 6 and a sentence; the first goes on."""
    container.plane.wait_for(lambda: container.path("run/byteor-agent/status.json").exists())
    done = container.call("byteor-agent", "run", "--config", str(config), env=given)
    assert done.code == 6 and "another byteor-agent" in done.err, done
    assert running.poll() is None
