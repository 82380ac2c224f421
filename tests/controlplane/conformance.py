"""Hold recorded requests against openapi.yaml: what the plane let pass, and what it refused, as its
log has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.controlplane.contract import operations


def complaints(requests: Sequence[dict[str, Any]]) -> list[str]:
    """One sentence for each recorded request of the client's that openapi.yaml does not
    describe.
    """
    found = []
    for row in requests:
        if (
            row["origin"] != "plane"
            or row["headers"].get("user-agent", "").find("byteor-firstboot/") != 0
        ):
            continue
        operation = operations().get(row["operation"] or "")
        if operation is None:
            found.append(
                f"request {row['id']}: {row['method']} {row['path']} is not in openapi.yaml"
            )
            continue
        streamed = operation.media_type == "multipart/form-data"
        body = None if streamed else row["body"].encode()
        for finding in operation.findings(
            row["path"], row["query"], list(row["headers"].items()), body
        ):
            found.append(f"request {row['id']} ({operation.name}): {finding.detail}")
    return found
