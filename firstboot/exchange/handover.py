"""Hand-over of the identity to the resident agent, in a file that it reads once.

`unseal` writes ``/run/byteor-agent/handover.json`` (tmpfs, 0400, the agent's) as root; the agent
takes it when it starts. So no sealing key, no cryptography and no yaml is ever in the resident
process: this module imports none of them, nor `identity`.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Annotated, Any, Optional

from firstboot.base import documents, files
from firstboot.base.clock import instant
from firstboot.base.documents import Rule
from firstboot.base.errors import Corrupt
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret

VERSION = 1
HANDOVER_LIMIT = 1 << 16  # bytes; a runtime key and a few ids

_TEXTS = ("api_base_url", "agent_id", "org_id", "project_id", "environment_id", "enrolled_at")

REENROLL = (
    "byteor-firstboot reenroll --token-file - < FILE, with a fresh enrollment token, "
    "gives a new key"
)

# Where an agent's identity came from, as `status` says it.
SEALED, ENVIRONMENT = "sealed", "environment"


EXPIRY_WARNING_S = 14 * 86400.0
Text = Annotated[str, Rule(bool, "a text that is not empty")]


def key_ends(expires_at: str | None, now: float) -> str | None:
    """Return a sentence on the runtime key's end, from 14 days before it; else None."""
    end = instant(expires_at)
    if end is None or end - now > EXPIRY_WARNING_S:
        return None
    return f"the runtime key {'expires' if end > now else 'expired'} at {expires_at}"


@dataclass(frozen=True)
class Handover:
    """The agent's three values (base URL, id, key), its proxy, and what `status` shows.

    Times are RFC 3339. What comes from a container's environment knows no enrollment, and of its
    place what the settings file says.
    """

    api_base_url: Text
    agent_id: Text
    api_key: Annotated[Secret, Rule(bool, "a key")]
    proxy: Optional[Secret] = None
    org_id: Optional[Text] = None
    project_id: Optional[Text] = None
    environment_id: Optional[Text] = None
    name: Optional[Text] = None
    enrolled_at: Optional[Text] = None
    expires_at: Optional[Text] = None
    scopes: tuple[Text, ...] = ()
    source: str = SEALED

    def shown(self) -> dict[str, Any]:
        """Return what may be published in `status.json`: everything but the key and the proxy."""
        names = (*_TEXTS, "name", "expires_at", "source")
        return {**{name: getattr(self, name) for name in names}, "scopes": list(self.scopes)}


def write(layout: Layout, handed: Handover, *, owner: files.Owner | None = None) -> None:
    """Hand over, replacing what no agent came to read; `owner` is the agent's (uid, gid).

    The directory is the agent's own, so root follows nothing in it. It is made, 0755, where systemd
    has not done so.
    """
    document = {
        "v": VERSION,
        **handed.shown(),
        "api_key": handed.api_key.reveal(),
        "proxy": None if handed.proxy is None else handed.proxy.reveal(),
    }
    files.make_directory(layout.agent_run, 0o755, owner=owner)
    data = (json.dumps(document, sort_keys=True) + "\n").encode()
    files.write_into(layout.agent_run, layout.handover.name, data, mode=0o400, owner=owner)


def take(layout: Layout) -> Handover | None:
    """Return what was handed over and unlink it, None when nothing was.

    Corrupt, and unlinked too, when it is damaged. LocalFault, and it stays, when it does not belong
    to the user who asks, or others could have read it: then it was not `unseal` that put it there.
    """
    data = files.read(layout.handover, limit=HANDOVER_LIMIT, private_to=os.geteuid())
    if data is None:
        return None
    try:
        document = documents.load(data)
        found = documents.parse(Handover, document)
        if document.get("v") != VERSION or found.source != SEALED:
            raise ValueError("not what `unseal` hands over")
        if any(getattr(found, name) is None for name in _TEXTS):
            raise ValueError("a member is missing")
        return found
    except ValueError:
        # `from None`: the text of the document may be in the chain, and the key is in it.
        raise Corrupt(
            f"{layout.handover} is damaged", hint="systemctl restart byteor-agent makes a fresh one"
        ) from None
    finally:
        # After it was read whole, and also when it is damaged: the next start gets a fresh one.
        files.remove(layout.handover)
