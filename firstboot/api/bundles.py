"""Request 5 on its way: a bundle, or the rest of one.

It comes from the control plane, or from the one place that this redirects to. The credential goes
to the control plane's own origin alone. The address of the other place is a secret as well (it
alone gives the bundle): its path and query stand in no message. What answers there is not the
control plane, so whatever it says is never more than "not now".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urljoin, urlsplit

from firstboot.api import messages
from firstboot.api.connection import DEADLINE_S
from firstboot.api.proxies import is_link_local
from firstboot.api.stream import PART, Stream, media_type
from firstboot.base.clock import monotonic
from firstboot.base.errors import TryAgain
from firstboot.base.secret import Secret

if TYPE_CHECKING:
    from firstboot.api.transport import Transport

REDIRECTS = (301, 302, 303, 307, 308)
WHOLE, NO_SUCH_RANGE = 200, 416
LONGEST_ADDRESS = 8192  # characters; signed addresses come near 2,000
GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Coming:
    """Bytes that come, from `start` on.

    `total` is the length of the whole, where it is said; `tag` is what to ask for the rest with.
    """

    stream: Stream
    start: int
    total: int | None
    tag: str | None


class StartOver(TryAgain):
    """The bytes on disk cannot be continued: the next attempt begins anew."""

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="retried automatically, from the first byte on")


@contextmanager
def answered(
    transport: Transport, url: str, *, bearer: Secret, have: int, tag: str | None, deadline_s: float
) -> Iterator[Stream]:
    """Ask for what follows the first `have` bytes.

    Yields the bytes, or what the control plane answers in their place. TryAgain when the other
    place gives no bytes, or the control plane names none that may be asked.
    """
    headers = {"Accept": "application/gzip, application/problem+json"}
    if have and tag is not None:
        headers.update({"Range": f"bytes={have}-", "If-Range": tag})
    began = monotonic()
    with transport.stream(
        "GET", url, bearer=bearer, headers=headers, deadline_s=deadline_s
    ) as answer:
        if answer.status not in REDIRECTS:
            yield answer
            return
        place = _place(url, answer.headers.get("location", ""))
    own = _origin(urlsplit(place)) == _origin(urlsplit(url))
    with transport.stream(
        "GET",
        place,
        bearer=bearer if own else None,
        headers=headers,
        deadline_s=deadline_s,
        head_s=DEADLINE_S - (monotonic() - began),  # both heads together: a watchdog waits
    ) as answer:
        if answer.status not in (WHOLE, PART, NO_SUCH_RANGE):
            now = messages.retry_after(answer.headers.get("retry-after"), now=float("inf"))
            raise TryAgain(
                f"the store that the control plane named for the bundle answered {answer.status}",
                hint="the next attempt asks the control plane for a new address; if it persists, "
                "check the store",
                retry_after=now,
            )
        yield answer


def is_bundle(answer: Stream) -> bool:
    """Return True for a bundle, False for a page in its place.

    Stores give bundles any media type, a text's too: then the first bytes decide.
    """
    media = media_type(answer.headers)
    words = media.startswith("text/") or media.endswith(("json", "xml"))
    if answer.status == PART:
        return not words or "content-range" in answer.headers
    return answer.status == WHOLE and (not words or answer.begins_with(GZIP))


def coming(answer: Stream, *, have: int, tag: str | None) -> Coming:
    """Read the head of a 200 or 206; StartOver for another part."""
    theirs = messages.entity_tag(answer.headers.get("etag"))
    if answer.status == WHOLE:
        length = answer.headers.get("content-length", "")
        known = length.isdigit() and len(length) <= 15 and "content-encoding" not in answer.headers
        return Coming(answer, 0, int(length) if known else None, theirs)
    said = messages.content_range(answer.headers.get("content-range"))
    if said is None or said[0] != have or not have:
        raise StartOver("the part of the bundle that came is not the one that was asked for")
    if theirs is not None and theirs != tag:
        raise StartOver("the bundle changed where it is kept while it was being fetched")
    return Coming(answer, have, said[1], theirs or tag)


def _place(url: str, location: str) -> str:
    """Return where a redirect leads; TryAgain unless that may be asked.

    Https, or the control plane itself, and not link-local. Names are not resolved here: who answers
    at a link-local address over https must have a certificate for the name, which no metadata
    service has.
    """
    refused = TryAgain(
        "the control plane redirected the bundle to an address that may not be asked",
        hint="the address must be https, without user, and not link-local",
    )
    if not 0 < len(location) <= LONGEST_ADDRESS or not all("!" <= c <= "~" for c in location):
        raise refused
    try:
        place = urljoin(url, location)
        parts = urlsplit(place)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise refused from None
    secure = parts.scheme == "https" or _origin(parts) == _origin(urlsplit(url))
    if not host or port == 0 or parts.username is not None or not secure or is_link_local(host):
        raise refused
    return place


def _origin(parts: SplitResult) -> tuple[str, str, int]:
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.scheme, (parts.hostname or "").lower(), port
