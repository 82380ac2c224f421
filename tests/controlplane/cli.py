"""Serve a control plane, or command one that runs with the same ``--state``.

python -m tests.controlplane --state DIR serve --port 8443 python -m tests.controlplane --state DIR
mint python -m tests.controlplane --state DIR agents --watch python -m tests.controlplane --state
DIR faults add heartbeat problem --option status=503 --option times=3
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import sys
import time
from pathlib import Path
from typing import Any

DEFAULT_STATE = Path("/tmp/byteor-control-plane")
WATCH_EVERY_S = 1.0


class Stopped(Exception):
    """A word could not be said; the text says why."""


def say(state: Path, word: str, **arguments: Any) -> Any:
    """Send one command to the control plane that serves `state`."""
    try:
        facts = json.loads((state / "admin.json").read_text())
        connection = http.client.HTTPConnection("127.0.0.1", facts["admin_port"], timeout=60)
        connection.request(
            "POST",
            f"/{word}",
            json.dumps(arguments).encode(),
            {"Authorization": f"Bearer {facts['secret']}", "Connection": "close"},
        )
        answer = json.loads(connection.getresponse().read())
        connection.close()
    except (OSError, ValueError) as error:
        raise Stopped(
            f"no control plane serves {state}: start one with --state {state} serve ({error})"
        ) from error
    if "error" in answer:
        raise Stopped(answer["error"])
    return answer["result"]


def where(arguments: argparse.Namespace) -> dict[str, str]:
    return {
        "org_id": arguments.org,
        "project_id": arguments.project,
        "environment_id": arguments.environment,
    }


def _serve(arguments: argparse.Namespace) -> None:
    import asyncio

    from tests.controlplane.serve import serve

    arguments.state.mkdir(parents=True, exist_ok=True)
    port = arguments.port
    facts = arguments.state / "admin.json"
    if not port and facts.exists():
        port = json.loads(facts.read_text())["port"]  # a restart keeps its address
    asyncio.run(
        serve(
            arguments.state,
            arguments.host,
            port,
            names=arguments.name,
            store_port=arguments.store_port,
            announce=not arguments.quiet,
            with_parent=arguments.with_parent,
        )
    )


def _mint(arguments: argparse.Namespace) -> None:
    for _ in range(arguments.count):
        print(say(arguments.state, "mint", where=where(arguments), ttl_s=arguments.ttl))


def _agents(arguments: argparse.Namespace) -> None:
    while True:
        rows = say(arguments.state, "agents", where=None)
        lines = [f"{'AGENT':26} {'NAME':24} {'BEATS':>6} {'LAST':>8}  {'STATUS':9} DEPLOYMENT"]
        for row in rows:
            beat = row["last_heartbeat"] or {}
            age = (
                f"{time.time() - row['last_heartbeat_at']:.0f} s"
                if row["last_heartbeat_at"]
                else "-"
            )
            deployed = (beat.get("deployment") or {}).get("deployment_id", "-")
            status = "revoked" if row["revoked"] else beat.get("status", "-")
            lines.append(
                f"{row['agent_id']:26} {row['name'][:24]:24} {row['heartbeats']:>6} {age:>8}  {status:9} {deployed}"
            )
        if not arguments.watch:
            print("\n".join(lines))
            return
        print("\033[H\033[2J" + "\n".join(lines), flush=True)
        time.sleep(WATCH_EVERY_S)


def _requests(arguments: argparse.Namespace) -> None:
    last = 0
    while True:
        for row in say(arguments.state, "requests", after=last):
            last = row["id"]
            who = (
                f"{row['credential']['kind']} {row['credential']['hash'][:8]}"
                if row["credential"]
                else "-"
            )
            moment = time.strftime("%H:%M:%S", time.localtime(row["at"]))
            faults = f"  [{', '.join(row['faults'])}]" if row["faults"] else ""
            code = f" {row['code']}" if row["code"] else ""
            print(
                f"{moment} {row['status'] or '---'}{code} {row['method']} {row['path']}  ({who}){faults}",
                flush=True,
            )
        if not arguments.watch:
            return
        time.sleep(WATCH_EVERY_S)


def _violations(arguments: argparse.Namespace) -> None:
    for row in say(arguments.state, "violations"):
        print(f"request {row['request_id']}: {row['rule']}: {row['detail']}")


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def options(pairs: list[str]) -> dict[str, Any]:
    """NAME=VALUE pairs; a value that is JSON is taken as JSON."""
    wrong = [pair for pair in pairs if "=" not in pair]
    if wrong:
        raise Stopped(f"an option is NAME=VALUE, not {wrong[0]}")
    return {name: _value(value) for name, value in (pair.split("=", 1) for pair in pairs)}


def _faults(arguments: argparse.Namespace) -> None:
    words: list[str] = arguments.words
    if words[:1] == ["clear"]:
        say(arguments.state, "clear_faults")
    elif words[:1] == ["add"] and len(words) == 3:
        given = options(arguments.option)
        print(say(arguments.state, "fault", operation=words[1], kind=words[2], **given))
    elif not words:
        for fault in say(arguments.state, "faults"):
            times = "any number of" if fault["times"] is None else fault["times"]
            print(
                f"{fault['id']}: {fault['operation']} {fault['kind']} {fault['options']} {fault['when']} the commit, "
                f"{fault['hits']} of {times} times"
            )
    else:
        raise Stopped("faults | faults clear | faults add OPERATION KIND [--option NAME=VALUE]…")


def _rotate(arguments: argparse.Namespace) -> None:
    print(
        json.dumps(
            say(
                arguments.state,
                "rotate",
                where=where(arguments),
                retire=["old"] if arguments.retire else None,
                not_after=arguments.not_after,
                broken=arguments.broken,
            )
        )
    )


def _deploy(arguments: argparse.Namespace) -> None:
    paths = [Path(text) for text in arguments.files]
    files = {path.name: base64.b64encode(path.read_bytes()).decode() for path in paths}
    print(
        json.dumps(
            say(
                arguments.state,
                "deploy",
                where=where(arguments),
                files=files,
                agent_id=arguments.agent,
                posture=arguments.posture,
                broken=arguments.broken,
                variant=arguments.variant,
            )
        )
    )


def _approve(arguments: argparse.Namespace) -> None:
    spec = base64.b64encode(arguments.spec.read_bytes()).decode()
    print(
        say(
            arguments.state, "approve", where=where(arguments), spec=spec, posture=arguments.posture
        )
    )


def _vectors(arguments: argparse.Namespace) -> None:
    from tests.controlplane.vectors import write

    write(arguments.directory)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.controlplane",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--state",
        type=Path,
        default=DEFAULT_STATE,
        help="the control plane's directory (%(default)s)",
    )
    parser.add_argument("--org", default="org_1")
    parser.add_argument("--project", default="prj_1")
    parser.add_argument("--environment", default="env_1")
    words = parser.add_subparsers(dest="word", required=True)

    one = words.add_parser("serve", help="serve until Ctrl-C")
    one.add_argument("--host", default="127.0.0.1")
    one.add_argument("--port", type=int, default=0)
    one.add_argument("--store-port", type=int, default=0, help="port of the object store")
    one.add_argument(
        "--name", action="append", default=[], help="another name or address of the certificate"
    )
    one.add_argument("--quiet", action="store_true")
    one.add_argument("--with-parent", action="store_true", help="end when standard input does")
    one.set_defaults(run=_serve)

    one = words.add_parser("mint", help="print a fresh enrollment token")
    one.add_argument("--ttl", type=float, default=3600.0, help="seconds until it expires")
    one.add_argument("--count", type=int, default=1)
    one.set_defaults(run=_mint)

    for name, run, text in (
        ("agents", _agents, "who enrolled"),
        ("requests", _requests, "what was asked"),
    ):
        one = words.add_parser(name, help=text)
        one.add_argument("--watch", action="store_true")
        one.set_defaults(run=run)
    words.add_parser("violations", help="breaches of the contract").set_defaults(run=_violations)

    one = words.add_parser("faults", help="list; or: clear; or: add OPERATION KIND")
    one.add_argument("words", nargs="*")
    one.add_argument("--option", action="append", default=[], metavar="NAME=VALUE")
    one.set_defaults(run=_faults)

    one = words.add_parser("deploy", help="assign a deployment of FILES (spec.kv has a default)")
    one.add_argument("files", nargs="*", metavar="FILE")
    one.add_argument("--agent", help="to this agent only")
    one.add_argument("--posture", choices=("dev", "staging", "prod"))
    one.add_argument(
        "--broken", metavar="CODE", help="break one rule of contract 3, by its refusal code"
    )
    one.add_argument("--variant", help="how it is broken")
    one.set_defaults(run=_deploy)

    one = words.add_parser("approve", help="print an approval credential for a spec.kv")
    one.add_argument("spec", type=Path)
    one.add_argument("--posture", default="prod", choices=("dev", "staging", "prod"))
    one.set_defaults(run=_approve)

    one = words.add_parser("vectors", help="write the golden vectors")
    one.add_argument(
        "directory", type=Path, nargs="?", default=Path(__file__).parents[1] / "vectors"
    )
    one.set_defaults(run=_vectors)

    one = words.add_parser("rotate", help="a new signing key beside the old ones")
    one.add_argument("--retire", action="store_true", help="mark all older keys retired")
    one.add_argument("--not-after", help="RFC 3339")
    one.add_argument("--broken", help="break one rule of contract 2.5")
    one.set_defaults(run=_rotate)
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except Stopped as error:
        print(f"controlplane: error: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, BrokenPipeError):
        return 130
    return 0
