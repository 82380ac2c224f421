"""``byteor-agent status``: what the agent last wrote about itself, for people and for programs.

Reads `status.json` alone, so it needs no root and works while the agent is down; the exit code is 0 whenever there is
something to show. The JSON is the file's own, with ``age_s`` added (README, "JSON").
"""

from __future__ import annotations

import json
import sys
from typing import Any, Dict, List, Optional

from firstboot import files
from firstboot.clock import Clock, from_rfc3339
from firstboot.errors import LocalFault, NoToken
from firstboot.layout import Layout


def read(layout: Layout, clock: Clock) -> Optional[Dict[str, Any]]:
    """Return the agent's status document with its age in seconds, None when it never ran since boot."""
    document = files.read_json(layout.agent_status)
    if document is not None:
        try:
            document["age_s"] = max(0, int(clock.wall() - from_rfc3339(str(document.get("written_at")))))
        except ValueError:
            document["age_s"] = None
    return document


def status(layout: Layout, *, as_json: bool) -> int:
    """Print the status; LocalFault when the agent has not run since boot, NoToken when it has nothing to run with."""
    document = read(layout, Clock())
    if document is None and layout.settings.exists():
        raise LocalFault("the agent has not run since boot", hint="byteor-firstboot status says where this host is")
    if document is None:
        raise NoToken("this host is not enrolled", hint="byteor-firstboot status says where it is")
    if as_json:
        print(json.dumps(document, sort_keys=True, indent=1))
    else:
        sys.stdout.write("\n".join(_page(document)) + "\n")
    return 0


def _page(document: Dict[str, Any]) -> List[str]:
    identity = document.get("identity") or {}
    state = "running" if document.get("running") else "stopped"
    lines = [
        f"agent      {identity.get('agent_id')} ({identity.get('name')}), {state}",
        f"plane      {identity.get('api_base_url')}, environment {identity.get('environment_id')}",
        f"identity   {identity.get('source')}",
        f"enrolled   {identity.get('enrolled_at')}, key until {identity.get('expires_at') or 'revoked'}",
        f"written    {document.get('written_at')} ({document.get('age_s')} s ago)",
    ]
    for name, loop in sorted((document.get("loops") or {}).items()):
        success, attempt = loop.get("last_success_at") or "never", loop.get("next_attempt_at") or "-"
        lines.append(f"{name:<10} last success {success}, next attempt {attempt}")
        if loop.get("problem"):
            lines.append(f"  problem: {loop['problem']}")
            if loop.get("hint"):
                lines.append(f"  hint:    {loop['hint']}")
    if not document.get("problems"):
        lines.append("problems   none")
    return lines
