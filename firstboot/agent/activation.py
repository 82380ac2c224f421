"""What the activator left for us to read: the deployment in force and the key ring (contract 5; world-readable files).

Written by root, read here without trusting its shape: a damaged file is as if nothing were there, and one sentence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional

from firstboot import files
from firstboot.errors import LocalFault
from firstboot.frozen import IDENTIFIER
from firstboot.layout import Layout


@dataclass(frozen=True)
class Activation:
    """`deployment` and `signing_keys` as ``status.json`` shows them, None for nothing yet; `fault` if one is damaged."""

    deployment: Optional[Mapping[str, Any]] = None
    signing_keys: Optional[Mapping[str, Any]] = None
    fault: Optional[str] = None

    @property
    def signing_keys_version(self) -> Optional[int]:
        return self.signing_keys["version"] if self.signing_keys is not None else None


def read(layout: Layout) -> Activation:
    """Look at what is in force now."""
    faults = []

    def mapping(name: str) -> Dict[str, Any]:
        try:
            return files.read_json(layout.activation / name) or {}
        except LocalFault as error:
            faults.append(str(error))
            return {}

    current, ring = mapping("deployments.json").get("current"), mapping("keyring.json")
    version = ring.get("version")
    known = isinstance(version, int) and not isinstance(version, bool) and version >= 0
    return Activation(
        deployment=_deployment(current),
        signing_keys={"version": version, "source": ring.get("source"), "refused": ring.get("refused")} if known else None,
        fault="; ".join(faults) or None,
    )


def _deployment(current: Any) -> Optional[Dict[str, Any]]:
    """The four members that a heartbeat carries, or None when they are not all of their shape."""
    if not isinstance(current, dict):
        return None
    named, sequence = current.get("deployment_id"), current.get("sequence")
    texts = [current.get("spec_hash"), current.get("state")]
    if not isinstance(named, str) or not IDENTIFIER.match(named) or not all(isinstance(text, str) for text in texts):
        return None
    if not isinstance(sequence, int) or isinstance(sequence, bool):
        return None
    return {"deployment_id": named, "sequence": sequence, "spec_hash": texts[0], "state": texts[1]}
