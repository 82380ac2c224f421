"""Request 5 on its way: a bundle, or the rest of one, from the plane or from the one other place that the plane names.

The credential goes to the plane's own origin alone. The address of the other place is a secret as well (whoever has it
has the bundle): it stands in no message. What answers there is not the plane, so its word is never more than "not now".
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit

from firstboot.api import messages
from firstboot.api.stream import Stream
from firstboot.api.transport import Transport
from firstboot.base.errors import TryAgain
from firstboot.base.secret import Secret

REDIRECTS = (301, 302, 303, 307, 308)
WHOLE, PART, NO_SUCH_RANGE = 200, 206, 416
LONGEST_ADDRESS = 8192  # characters; signed addresses come near 2,000


@dataclass(frozen=True)
class Coming:
    """Bytes that come: `start` is where they belong, `total` how long the whole is said to be, `tag` what to ask with next.

    `start` is None where the server does not say where its part begins.
    """

    stream: Stream
    start: int | None
    total: int | None
    tag: str | None


class StartOver(TryAgain):
    """What is on the disk cannot be continued: the next attempt has to begin with the first byte."""


@contextmanager
def answered(
    transport: Transport, url: str, *, bearer: Secret, have: int, tag: str | None, deadline_s: float
) -> Iterator[Stream]:
    """Ask for what follows the first `have` bytes and hand out the answer, which is bytes or the plane's own word.

    TryAgain when the other place gives no bytes or the plane names none that may be asked.
    """
    headers = {"Accept": "application/gzip, application/problem+json"}
    if have and tag is not None:
        headers.update({"Range": f"bytes={have}-", "If-Range": tag})
    with transport.stream(
        "GET", url, bearer=bearer, headers=headers, deadline_s=deadline_s
    ) as answer:
        if answer.status not in REDIRECTS:
            yield answer
            return
        place = _place(url, answer.headers.get("location"))
    credential = bearer if _origin(urlsplit(place)) == _origin(urlsplit(url)) else None
    with _there(
        transport, place, bearer=credential, headers=headers, deadline_s=deadline_s
    ) as answer:
        if answer.status not in (WHOLE, PART, NO_SUCH_RANGE):
            now = messages.retry_after(answer.headers.get("retry-after"), now=float("inf"))
            raise TryAgain(
                f"where the plane sent us for the bundle, something answered {answer.status}",
                retry_after=now,
            )
        yield answer


@contextmanager
def _there(
    transport: Transport,
    place: str,
    *,
    bearer: Secret | None,
    headers: dict[str, str],
    deadline_s: float,
) -> Iterator[Stream]:
    try:
        stream = transport.stream(
            "GET", place, bearer=bearer, headers=headers, deadline_s=deadline_s
        )
        with stream as answer:
            yield answer
    except UnicodeError as error:  # a host name that no resolver takes
        raise TryAgain(
            "the plane sent us for the bundle to an address that is not usable"
        ) from error


def coming(answer: Stream, *, have: int, tag: str | None) -> Coming:
    """Read the head of a 200 or 206; StartOver when the part is not the one that was asked for."""
    theirs = messages.entity_tag(answer.headers.get("etag"))
    if answer.status == WHOLE:
        length = answer.headers.get("content-length", "")
        return Coming(
            answer, 0, int(length) if length.isdigit() and len(length) <= 15 else None, theirs
        )
    said = messages.content_range(answer.headers.get("content-range"))
    if said is None or said[0] != have or not have:
        raise StartOver("the part of the bundle that came is not the one that was asked for")
    if theirs is not None and theirs != tag:
        raise StartOver("the bundle changed at the plane while it was being fetched")
    return Coming(answer, said[0], said[1], theirs or tag)


def _place(url: str, location: str | None) -> str:
    """The address that a redirect names, if it may be asked: https (or the plane's own origin), and not link-local."""
    refused = TryAgain("the plane sent us for the bundle to an address that may not be asked")
    if (
        not location
        or len(location) > LONGEST_ADDRESS
        or not all("!" <= c <= "~" for c in location)
    ):
        raise refused
    try:
        place = urljoin(url, location)
        parts = urlsplit(place)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise refused from None
    own = _origin(parts) == _origin(urlsplit(url))
    if (
        not host
        or port == 0
        or parts.username is not None
        or not (parts.scheme == "https" or own)
        or _link_local(host)
    ):
        raise refused
    return place


def _origin(parts: SplitResult) -> tuple[str, str, int]:
    return (
        parts.scheme,
        (parts.hostname or "").lower(),
        parts.port or (443 if parts.scheme == "https" else 80),
    )


def _link_local(host: str) -> bool:
    """Whether it is an address of this link, in whatever way resolvers let one be written (0xa9fea9fe).

    Names are not resolved here: who answers there over https must have a certificate for the name, which no metadata
    service has.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:
            address = ipaddress.IPv4Address(socket.inet_aton(host))
        except (OSError, ValueError):
            return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_link_local)
