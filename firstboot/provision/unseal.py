"""``byteor-firstboot unseal``: open the identity and hand it to the agent, as its unit's privileged pre-start step.

Runs as root outside the agent's sandbox, so that the sealing key and the cryptography never enter the resident
process. A foreign or unreadable identity is not handed over: the agent then does not start, and `status` says why.
"""

from __future__ import annotations

from firstboot.base import accounts, files
from firstboot.base.layout import Layout
from firstboot.exchange import handover, settings
from firstboot.identity import store


def unseal(layout: Layout) -> int:
    """Write the hand-over file; the error says why there is nothing to hand over (exit 3, 7 or 8)."""
    files.remove(
        layout.handover
    )  # one that no agent took must not outlive the identity that it came from
    here = store.required(layout)
    handover.write(
        layout,
        handover.Handover(
            api_base_url=here.api_base_url,
            agent_id=here.agent_id,
            api_key=here.api_key,
            # The other ones stand in settings.json, where a later boot may change them.
            proxy=here.proxy if settings.has_password(here.proxy) else None,
            org_id=here.org_id,
            project_id=here.project_id,
            environment_id=here.environment_id,
            name=here.name,
            enrolled_at=here.enrolled_at,
            expires_at=here.expires_at,
            scopes=here.scopes,
        ),
        owner=_agent(layout),
    )
    return 0


def _agent(layout: Layout) -> tuple[int, int] | None:
    if not layout.is_host:
        return None
    user = accounts.agent()
    return user.pw_uid, user.pw_gid
