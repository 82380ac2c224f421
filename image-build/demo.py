"""Show one host's first boot against the reference control plane, step by step.

Without root it works on a scratch tree that looks as cloud-init leaves a host after its config
stage; with ``--boot`` a real Debian guest boots with the same user data. Everything that it started
is stopped at its end; ``--keep`` leaves control plane and agent running until Ctrl-C and prints
commands to try.
"""

from __future__ import annotations

import argparse
import json
import pickle
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Callable

TOP = Path(__file__).resolve().parents[1]
# After site-packages: firstboot is the installed wheel, tests this checkout.
sys.path.append(str(TOP))

from tests.boot.scan import canary, scan_tree  # noqa: E402
from tests.controlplane import ControlPlane  # noqa: E402

BIN = Path(sys.executable).parent
COLOUR = sys.stdout.isatty()
PERIOD_S = 5
WAIT_LIMIT_S = 60

USER_DATA = """\
#cloud-config
#byteor-firstboot:
#  api_base_url: {base_url}
#  org_id: {org}
#  project_id: {project}
#  environment_id: {environment}
#  heartbeat_interval_s: {period}
#  enrollment_token: {token}
#  ca_certificates: |
{ca}
hostname: edge-node-01
"""


class Story:
    """Print numbered steps with how long each took."""

    def __init__(self) -> None:
        self._number = 0
        self._began = self._step_began = time.monotonic()

    def step(self, title: str) -> None:
        self._number += 1
        self._step_began = time.monotonic()
        print(f"\n{paint('1', f'{self._number}. {title}')}", flush=True)

    def say(self, text: str = "") -> None:
        for line in text.splitlines() or [""]:
            print(f"   {line}", flush=True)

    def took(self) -> None:
        self.say(paint("2", f"({time.monotonic() - self._step_began:.1f} s)"))

    def end(self) -> None:
        print(f"\n{paint('1;32', 'done')} in {time.monotonic() - self._began:.1f} s", flush=True)


def paint(code: str, text: str) -> str:
    return f"\033[{code}m{text}\033[0m" if COLOUR else text


class DemoFailed(Exception):
    """A step failed; the demo ends with exit code 1."""


def command(
    story: Story, arguments: list[str], *, stdin: str = "", shown: str | None = None
) -> str:
    """Run a command as a user would and show it with its output; fail unless it ends with 0."""
    story.say(paint("36", f"$ {shown or ' '.join(arguments)}"))
    done = subprocess.run(
        [str(BIN / arguments[0]), *arguments[1:]], input=stdin, capture_output=True, text=True
    )
    for line in (done.stdout + done.stderr).splitlines():
        story.say(line)
    if done.returncode:
        raise DemoFailed(f"{arguments[0]} {arguments[1]} ended with exit code {done.returncode}")
    return done.stdout


def compose(plane: ControlPlane, token: str) -> str:
    ca = "\n".join(f"#    {line}" for line in plane.ca_pem.strip().splitlines())
    return USER_DATA.format(
        base_url=plane.base_url,
        org=plane.org_id,
        project=plane.project_id,
        environment=plane.environment_id,
        period=PERIOD_S,
        token=token,
        ca=ca,
    )


def make_root(root: Path, user_data: str) -> None:
    """Write what cloud-init leaves behind for the recommended form (CLOUD-INIT.md, section 2)."""
    instance = root / "var/lib/cloud/instances/iid-demo"
    seed = root / "var/lib/cloud/seed/nocloud"
    for directory in (instance / "scripts", seed, root / "etc", root / "run"):
        directory.mkdir(parents=True)
    (root / "etc/machine-id").write_text(secrets.token_hex(16) + "\n")
    (root / "etc/hostname").write_text("edge-node-01\n")
    # The image's defaults say how a deployment is judged. A host with byteor-runtime.service
    # needs nothing here.
    check = f"grep -q healthy {root}/var/lib/byteor/current/spec.kv"
    (root / "etc/byteor").mkdir()
    (root / "etc/byteor/firstboot.yaml").write_text(
        json.dumps({"activation": {"health": ["/bin/sh", "-c", check], "window_s": 1}})
    )
    (root / "var/lib/cloud/instance").symlink_to("/var/lib/cloud/instances/iid-demo")
    (seed / "user-data").write_text(user_data)
    (seed / "meta-data").write_text("instance-id: iid-demo\n")
    for name in ("user-data.txt", "user-data.txt.i"):
        (instance / name).write_text(user_data)
        (instance / name).chmod(0o600)
    (instance / "obj.pkl").write_bytes(
        pickle.dumps({"userdata_raw": user_data.encode(), "dsmode": "net"})
    )
    (instance / "obj.pkl").chmod(0o400)
    (instance / "datasource").write_text(
        "DataSourceNoCloud: DataSourceNoCloud [seed=/var/lib/cloud/seed/nocloud]\n"
    )


def show_places(story: Story, root: Path, token: str) -> int:
    hits = scan_tree(root, token)
    for hit in hits:
        story.say(f"{paint('31', 'token')}  {hit}")
    story.say(
        paint("32", "no copy of the token below the root") if not hits else f"{len(hits)} copies"
    )
    return len(hits)


def show_tree(story: Story, root: Path) -> None:
    for path in sorted((root / "var/lib/byteor").rglob("*")):
        if path.is_file():
            story.say(f"{oct(path.stat().st_mode & 0o7777)[2:]:>4}  /{path.relative_to(root)}")


def wait_for(look: Callable[[], Any], what: str) -> Any:
    """Return the first true answer of `look`; fail after a minute."""
    limit = time.monotonic() + WAIT_LIMIT_S
    while time.monotonic() < limit:
        found = look()
        if found:
            return found
        time.sleep(0.1)
    raise DemoFailed(f"{what} did not arrive within {WAIT_LIMIT_S} s")


def first_beat(plane: ControlPlane) -> dict[str, Any]:
    def beating() -> Any:
        return [agent for agent in plane.agents() if agent["last_heartbeat_at"]]

    return dict(wait_for(beating, "a heartbeat")[0])


def tell(story: Story, stack: ExitStack, keep: bool) -> None:
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="byteor-demo-")))
    root = scratch / "root"

    story.step("Start the reference control plane, over HTTPS with a throw-away CA")
    plane = ControlPlane(scratch / "plane")
    plane.start()
    stack.callback(plane.stop)
    story.say(f"listening on {plane.base_url}")
    story.took()

    story.step("Mint a one-time enrollment token and put it into user data, in a comment block")
    token = plane.mint(text=f"bet_{canary()}")
    user_data = compose(plane, token)
    story.say(
        "\n".join(
            line[:76]
            for line in user_data.replace(token, token[:8] + "…").splitlines()
            if "#    " not in line
        )
    )
    command(
        story,
        ["byteor-firstboot", "check-userdata", "-"],
        stdin=user_data,
        shown="byteor-firstboot check-userdata -",
    )
    story.took()

    story.step("Before first boot: where cloud-init has stored the token on the host")
    make_root(root, user_data)
    if not show_places(story, root, token):
        raise DemoFailed("the scan does not find the token where it was put")

    story.step("First boot: enroll, seal, read back, erase, hand off to the agent")
    command(
        story,
        ["byteor-firstboot", "run", "--root", str(root)],
        shown="byteor-firstboot run --root ROOT",
    )
    story.took()

    story.step("After first boot: the files on the host")
    show_tree(story, root)
    receipt = json.loads((root / "var/lib/byteor/identity/erasure.json").read_text())
    story.say("not looked at, according to the receipt:")
    for sentence in receipt["not_looked_at"]:
        story.say(f"  - {sentence}")

    story.step("After first boot: where the token is now")
    if show_places(story, root, token):
        raise DemoFailed("a copy of the token remains")

    agent = run_agent(story, stack, plane, scratch)
    deploy(story, plane, root, agent)
    upload(story, plane, root, scratch)
    run_again(story, plane, root)
    if keep:
        linger(story, plane, root, scratch)


def run_agent(
    story: Story, stack: ExitStack, plane: ControlPlane, scratch: Path
) -> subprocess.Popen[bytes]:
    root = scratch / "root"
    story.step("The agent starts, with nothing but its own runtime key")
    agent_log = stack.enter_context((scratch / "agent.log").open("w"))
    agent = subprocess.Popen(
        [str(BIN / "byteor-agent"), "run", "--root", str(root)], stderr=agent_log
    )
    stack.callback(stop, agent)
    beat = first_beat(plane)
    story.say(
        f"agent {beat['agent_id']} ({beat['name']}), heartbeats accepted: {beat['heartbeats']}"
    )
    command(
        story,
        ["byteor-agent", "status", "--root", str(root)],
        shown="byteor-agent status --root ROOT",
    )
    story.took()

    story.step("Verify: the install guide's four validation checks")
    command(
        story,
        ["byteor-firstboot", "verify", "--root", str(root), "--operator-token", "-"],
        stdin=plane.operator_token,
        shown="byteor-firstboot verify --root ROOT --operator-token -",
    )
    return agent


def deploy(story: Story, plane: ControlPlane, root: Path, agent: subprocess.Popen[bytes]) -> None:
    """Deploy one that is healthy, one that is not, and one that somebody else signed."""
    story.step("A signed deployment: downloaded, verified, unpacked, activated, reported")
    good = plane.deploy({"spec.kv": b"name = edge\nstate = healthy\n"})
    wait_for(lambda: told(plane, good, "active"), "the report of an active deployment")
    story.say((root / "var/lib/byteor/current/spec.kv").read_text())
    story.took()

    story.step("An unhealthy deployment: the previous one is restored and the control plane told")
    story.say("(a signal makes the agent look now; hints do so at most once a minute)")
    bad = plane.deploy({"spec.kv": b"name = edge\nstate = broken\n"})
    agent.send_signal(signal.SIGUSR1)
    wait_for(lambda: told(plane, bad, "rolled_back"), "the report of the rollback")
    command(
        story,
        ["byteor-agent", "deployments", "--root", str(root)],
        shown="byteor-agent deployments --root ROOT",
    )
    story.took()

    story.step("A deployment that somebody else signed: refused, and nothing changes")
    plane.deploy({"spec.kv": b"name = theirs\n"}, broken="bad_signature")
    agent.send_signal(signal.SIGUSR1)
    wait_for(lambda: "bad_signature" in verdicts(root), "the refusal")
    story.say((root / "var/lib/byteor/current/spec.kv").read_text())
    story.took()


def told(plane: ControlPlane, deployment: Mapping[str, Any], status: str) -> bool:
    wanted = (deployment["deployment_id"], status)
    return wanted in [(report["deployment_id"], report["status"]) for report in plane.reports()]


def verdicts(root: Path) -> str:
    done = subprocess.run(
        [str(BIN / "byteor-agent"), "deployments", "--json", "--root", str(root)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def upload(story: Story, plane: ControlPlane, root: Path, scratch: Path) -> None:
    story.step("An artifact: queued, redacted and uploaded")
    report = scratch / "report.txt"
    report.write_text("what happened at 03:00\npassword=hunter2-hunter2\n")
    words = ["upload", str(report), "--kind", "diagnostic", "--wait", "--root", str(root)]
    command(
        story,
        ["byteor-agent", *words],
        shown="byteor-agent upload report.txt --kind diagnostic --wait --root ROOT",
    )
    for artifact in plane.artifacts():
        story.say(f"the control plane has one {artifact['kind']} of {artifact['size']} bytes")
    story.took()


def run_again(story: Story, plane: ControlPlane, root: Path) -> None:
    story.step("Run first boot again: nothing to do, and no enrollment request")
    before = len(plane.requests())
    command(
        story,
        ["byteor-firstboot", "run", "--root", str(root)],
        shown="byteor-firstboot run --root ROOT",
    )
    posts = [r for r in plane.requests()[before:] if r["path"].endswith("/agents")]
    violations = plane.violations()
    story.say(
        f"enrollment requests: {len(posts)}; "
        f"breaches of the contract that the control plane recorded: {len(violations)}"
    )
    if posts or violations:
        raise DemoFailed("the control plane recorded what must not happen")


def linger(story: Story, plane: ControlPlane, root: Path, scratch: Path) -> None:
    story.step("Running until Ctrl-C; commands to try from another terminal in this checkout")
    for line in (
        f"{BIN / 'byteor-agent'} status --root {root}",
        *(
            f"{sys.executable} -m tests.controlplane --state {scratch / 'plane'} {words}"
            for words in (
                "agents --watch",
                "requests",
                "mint",
                "deploy",
                "rotate",
                "faults",
            )
        ),
    ):
        story.say(paint("36", f"$ {line}"))
    signal.pause()


def boot(story: Story) -> None:
    """Show the same on a real Debian guest: systemd, cloud-init and our package, unattended."""
    from tests.boot.guest import GuestError
    from tests.boot.host import CannotBoot
    from tests.boot.rehearsal import RehearsalFailed, rehearse

    try:
        rehearse(story)
    except (CannotBoot, GuestError, RehearsalFailed) as error:
        raise DemoFailed(str(error)) from error


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(10)


def main() -> int:
    parser = argparse.ArgumentParser(prog="./image-build/demo", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--keep", action="store_true", help="leave control plane and agent running until Ctrl-C"
    )
    parser.add_argument("--boot", action="store_true", help="show it on a real Debian guest (root)")
    arguments = parser.parse_args()
    story = Story()
    # So that SIGTERM, too, stops everything that was started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with ExitStack() as stack:
            if arguments.boot:
                boot(story)
            else:
                tell(story, stack, arguments.keep)
    except DemoFailed as error:
        print(f"\n{paint('1;31', 'demo failed')}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped: nothing is left running")
        return 0 if arguments.keep else 130
    story.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
