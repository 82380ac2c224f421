"""Where a token and settings can come from, in order (contract 4.2), and which of them counts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional

from firstboot.base import files
from firstboot.base.errors import ByteorError, Invalid, LocalFault
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret
from firstboot.exchange.settings import Settings
from firstboot.provision import userdata
from firstboot.provision.schema import Rank, Source, load_yaml, merge, parse
from firstboot.provision.tokens import TokenClass

TOKEN_LIMIT = 8192
YAML_LIMIT = 1 << 20
USER_DATA_LIMIT = 32 << 20


@dataclass(frozen=True)
class Inputs:
    """What the caller hands in; `stdin` is what ``--token-file -`` read, once."""

    config: Path | None = None
    token_file: str | None = None
    stdin: bytes | None = None
    environ: Mapping[str, str] = field(default_factory=dict)
    credentials: Path | None = None


@dataclass(frozen=True)
class Found:
    """All sources merged; `tokens` is every token seen anywhere, with its source; `image` the image's own values."""

    settings: Settings = field(default_factory=Settings)
    token: Secret | None = None
    source: Source | None = None
    tokens: tuple[tuple[Source, Secret], ...] = ()
    warnings: tuple[str, ...] = ()
    image: Mapping[str, Any] = field(default_factory=dict)
    fault: ByteorError | None = None  # what `gather` would have raised


def gather(
    layout: Layout, inputs: Inputs, *, classify: Callable[[Secret], TokenClass], strict: bool = True
) -> Found:
    """Read every source; Invalid or LocalFault when one is broken that could matter for the token that would be used.

    Not `strict`: that fault is part of what was found, for a host that has its identity and only erases.
    """
    sources: list[Source] = []
    broken: list[tuple[Rank, ByteorError]] = []
    for rank, read in _readers(layout, inputs):
        try:
            source = read()
        except (Invalid, LocalFault) as error:
            broken.append((rank, error))
            continue
        if source is not None:
            sources.append(source)
    chosen = _choose(sources, classify)
    warnings = []
    serious: ByteorError | None = None
    for rank, fault in broken:
        # A broken place below the token's cannot redirect it, and may be beyond anybody's reach on this host.
        # One of the same rank is the same source (the two credentials).
        if chosen is not None and rank > chosen.rank and rank not in (Rank.ENVIRONMENT, Rank.IMAGE):
            warnings.append(str(fault))
        elif strict:
            raise fault
        else:
            serious = serious or fault
    settings, ignored = merge(sources, chosen=chosen)
    return Found(
        settings=settings,
        token=chosen.token if chosen is not None else None,
        source=chosen,
        tokens=tuple((source, source.token) for source in sources if source.token is not None),
        warnings=(*warnings, *ignored),
        image=next((source.values for source in sources if source.rank is Rank.IMAGE), {}),
        fault=serious,
    )


def _choose(sources: list[Source], classify: Callable[[Secret], TokenClass]) -> Source | None:
    holding = [source for source in sources if source.token is not None]
    for kind in (TokenClass.FRESH, TokenClass.REFUSED, TokenClass.SPENT):
        for source in sorted(holding, key=lambda source: source.rank):
            if source.token is not None and classify(source.token) is kind:
                return source
    return None


Reader = Callable[[], Optional[Source]]


def _readers(layout: Layout, inputs: Inputs) -> Iterator[tuple[Rank, Reader]]:
    yield Rank.TOKEN_FILE, lambda: _token_file(layout, inputs)
    yield Rank.CREDENTIAL, lambda: _bare_credential(inputs)
    yield Rank.CREDENTIAL, lambda: _mapping_credential(inputs)
    yield Rank.DROP_PLACE, lambda: _drop_place(layout)
    if not layout.is_host or _cloud_init_ran(layout):
        yield (
            Rank.USER_DATA,
            lambda: _stored(layout, Rank.USER_DATA, "user data", ("user-data.txt",)),
        )
        # In cloud-init's own order of precedence.
        yield (
            Rank.VENDOR_DATA,
            lambda: _stored(
                layout, Rank.VENDOR_DATA, "vendor data", ("vendor-data2.txt", "vendor-data.txt")
            ),
        )
    yield (
        Rank.ETC_TOKEN,
        lambda: _bare(
            files.read(layout.token_file, limit=TOKEN_LIMIT, private_to=layout.owner),
            Rank.ETC_TOKEN,
            layout.shown(layout.token_file),
            layout.token_file,
        ),
    )
    yield Rank.ENVIRONMENT, lambda: _environment(inputs)
    yield Rank.IMAGE, lambda: image(layout, inputs)


def _bare(data: bytes | None, rank: Rank, where: str, path: Path | None) -> Source | None:
    if data is None:
        return None
    try:
        text = data.decode("ascii").strip()
    except UnicodeDecodeError:
        raise Invalid(f"{where} is not a token: 16 to 4096 visible ASCII characters") from None
    values = parse({"enrollment_token": text}, where=where, rank=rank) if text else {}
    return Source(rank, where, {}, values.get("enrollment_token"), path)


def _mapping(data: bytes | None, rank: Rank, where: str, path: Path | None) -> Source | None:
    if data is None:
        return None
    return _source(load_yaml(data, where=where), rank, where, path)


def _source(raw: Any, rank: Rank, where: str, path: Path | None) -> Source:
    values = parse(raw, where=where, rank=rank)
    token = values.pop("enrollment_token", None)
    return Source(rank, where, values, token, path)


def _token_file(layout: Layout, inputs: Inputs) -> Source | None:
    if inputs.token_file is None:
        return None
    if inputs.token_file == "-":
        return _bare(inputs.stdin or b"", Rank.TOKEN_FILE, "the token on stdin", None)
    path = Path(inputs.token_file)
    data = files.read(path, limit=TOKEN_LIMIT, private_to=os.geteuid())
    if data is None:
        raise Invalid(f"there is no token file {path}")
    return _bare(data, Rank.TOKEN_FILE, str(path), path)


def _bare_credential(inputs: Inputs) -> Source | None:
    if inputs.credentials is None:
        return None
    path = inputs.credentials / "byteor.enrollment-token"
    return _bare(
        files.read(path, limit=TOKEN_LIMIT),
        Rank.CREDENTIAL,
        "credential byteor.enrollment-token",
        path,
    )


def _mapping_credential(inputs: Inputs) -> Source | None:
    if inputs.credentials is None:
        return None
    path = inputs.credentials / "byteor.firstboot"
    return _mapping(
        files.read(path, limit=YAML_LIMIT), Rank.CREDENTIAL, "credential byteor.firstboot", path
    )


def _drop_place(layout: Layout) -> Source | None:
    path = layout.drop_place
    if not files.check_private_directory(path.parent, owner=layout.owner):
        return None
    data = files.read(path, limit=YAML_LIMIT, private_to=layout.owner)
    return _mapping(data, Rank.DROP_PLACE, layout.shown(path), path)


def _cloud_init_ran(layout: Layout) -> bool:
    """True when cloud-init's network stage ran in this boot: its files on tmpfs say so, the instance link does not."""
    return (layout.cloud_run / ".instance-id").exists() or (
        layout.cloud_run / "instance-data.json"
    ).exists()


def _stored(layout: Layout, rank: Rank, where: str, names: tuple[str, ...]) -> Source | None:
    """Read what cloud-init stored: as received, then (``.i``) with what `#include` fetched and archives held."""
    for name in [name + suffix for name in names for suffix in ("", ".i")]:
        path = layout.path(f"/var/lib/cloud/instance/{name}")
        data = files.read(path, limit=USER_DATA_LIMIT, private_to=layout.owner)
        found = userdata.read(data, where=where) if data is not None else None
        if found is not None:
            return _source(found.raw, rank, where, path)
    return None


def _environment(inputs: Inputs) -> Source | None:
    address = inputs.environ.get("BYTEOR_API_BASE_URL")
    if not address:
        return None
    return _source({"api_base_url": address}, Rank.ENVIRONMENT, "BYTEOR_API_BASE_URL", None)


def image(layout: Layout, inputs: Inputs) -> Source | None:
    """Read the image's defaults, or the file that stands in for them; Invalid or LocalFault when they are broken."""
    path = inputs.config or layout.image_defaults
    # realpath and not resolve(): the latter raises a RuntimeError of its own for a loop of links before Python 3.13.
    target = Path(os.path.realpath(path)) if inputs.config or layout.is_host else path
    data = files.read(target, limit=YAML_LIMIT)
    if data is None and inputs.config is not None:
        raise Invalid(f"there is no file {path}")
    return _mapping(data, Rank.IMAGE, layout.shown(path), path)
