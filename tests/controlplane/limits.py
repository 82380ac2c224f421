"""Rate limits per route group and credential: a fixed window, its headers, `Retry-After` in every
form.

Contract 2.6 has a host obey seconds and HTTP dates, and fall back to its own back-off for anything
else; the form is chosen per group so that each can be met.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from email.utils import formatdate
from typing import Any


class Limits:
    """Counts per (group, who) in windows that start with their first request."""

    def __init__(self) -> None:
        self._windows: dict[tuple[str, str], tuple[float, int]] = {}

    def headers(
        self, group: str, who: str, rule: Mapping[str, Any] | None
    ) -> tuple[bool, dict[str, str]]:
        """Count one request; return whether it is within the limit, and the headers to answer
        with.
        """
        if rule is None:
            return True, {}
        now, window_s, limit = time.time(), float(rule["window_s"]), int(rule["limit"])
        began, count = self._windows.get((group, who), (now, 0))
        if now - began >= window_s:
            began, count = now, 0
        self._windows[(group, who)] = (began, count + 1)
        left_s = max(0.0, began + window_s - now)
        headers = {
            "X-RateLimit-Limit": str(limit),
            "X-RateLimit-Remaining": str(max(0, limit - count - 1)),
            "X-RateLimit-Reset": str(math.ceil(began + window_s)),
        }
        if count < limit:
            return True, headers
        form = rule.get("retry_after", "seconds")
        if form == "seconds":
            headers["Retry-After"] = str(math.ceil(left_s))
        elif form == "date":
            headers["Retry-After"] = formatdate(math.ceil(now + left_s), usegmt=True)
        elif form != "absent":
            headers["Retry-After"] = str(form)
        return False, headers
