"""Print how many MB of an incident bundle's text redaction reads in a second of CPU, each run.

A program of its own, so that another interpreter can run it: it imports `firstboot` alone.
"""

from __future__ import annotations

import json
import random
import time

from firstboot.base.redaction import redact

WORDS = [
    "adapter",
    "nasdaq",
    "started",
    "venue",
    "latency",
    "order",
    "filled",
    "session",
    "heartbeat",
    "risk",
    "check",
    "passed",
    "limit",
    "gateway",
    "connect",
    "timeout",
    "retry",
    "deployment",
    "sequence",
    "envelope",
    "bytes",
    "in",
    "flight",
    "queue",
    "monkey",
    "key",
]
RUNS = 5


def incident(size: int) -> bytes:
    """Return `size` bytes of what a bundle holds: journal, JSON lines, logfmt, numbers, a secret."""
    chance = random.Random(1)
    lines, length, number = [], 0, 0
    while length < size:
        number += 1
        words = " ".join(chance.choices(WORDS, k=12))
        spec = f"{chance.getrandbits(128):032x}"
        kinds = (
            f"Nov 24 16:18:{number % 60:02d} edge-node-01 byteor-runtime[811]: {words}",
            json.dumps(
                {"level": "info", "msg": words, "order_id": spec, "key": f"orders.{number}"}
            ),
            f"level=info ts={number} url=https://api.example/api/v1/agents/agt_1 status=200 n={spec}",
            " ".join(f"{chance.getrandbits(32):x}" for _ in range(12)),
        )
        line = kinds[number % 4] if number % 1000 else f"retrying with token={spec}"
        lines.append(line)
        length += len(line) + 1
    return "\n".join(lines).encode()[:size]


def rates(size: int = 8 << 20) -> list[float]:
    """Return MB a second of each run, a MB being 10^6 bytes."""
    data, found = incident(size), []
    for _ in range(RUNS):
        begin = time.process_time()
        redact(data)
        found.append(size / 1e6 / (time.process_time() - begin))
    return found


if __name__ == "__main__":
    print(json.dumps(rates()))
