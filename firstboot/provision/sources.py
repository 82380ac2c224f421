"""Read every source of a token and settings, in order, and choose the one that counts.

`Rank` is the order; the choice is the one-source rule (contract 4.1, 4.2). ``python -m
firstboot.provision.sources`` prints the image's settings alone, checked, as ``settings.json`` has
them: for an agent in a container, whose identity is in its environment and whose process must not
load yaml.
"""

from __future__ import annotations

import argparse
import enum
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, Optional

from firstboot.base import files, log, private
from firstboot.base.errors import ByteorError, Invalid, LocalFault
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret
from firstboot.exchange import settings as frozen
from firstboot.exchange.settings import Settings
from firstboot.provision import userdata
from firstboot.provision.schema import OF_A_TOKEN, ROUTING, YAML_LIMIT, load_yaml, parse
from firstboot.provision.tokens import TokenClass
from firstboot.provision.userdata import NearMiss

TOKEN_LIMIT = 8192  # bytes
USER_DATA_LIMIT = 32 << 20
WRITE_FILES = "in write_files: permissions: '0600', and no owner other than root"


class Rank(enum.IntEnum):
    """The sources of a setting, the highest first (contract 4.2)."""

    TOKEN_FILE = 1
    CREDENTIAL = 2
    DROP_PLACE = 3
    USER_DATA = 4
    VENDOR_DATA = 5
    ETC_TOKEN = 6
    ENVIRONMENT = 7
    IMAGE = 8


@dataclass(frozen=True)
class Source:
    """One place that was read: its checked values without the token, and the token."""

    rank: Rank
    where: str
    values: Mapping[str, Any] = field(default_factory=dict)
    token: Secret | None = None
    path: Path | None = None
    misses: tuple[str, ...] = ()  # near misses beside what counts


@dataclass(frozen=True)
class Inputs:
    """The caller's part; `stdin` is what ``--token-file -`` read, once."""

    config: Path | None = None
    token_file: str | None = None
    stdin: bytes | None = None
    environ: Mapping[str, str] = field(default_factory=dict)
    credentials: Path | None = None


@dataclass(frozen=True)
class Found:
    """All sources merged.

    `tokens` is every token seen anywhere, with its source; `image` the image's own values; `fault`
    what a strict `gather` would have raised; `misses` are the warnings of near misses in user data.
    """

    settings: Settings = field(default_factory=Settings)
    token: Secret | None = None
    source: Source | None = None
    tokens: tuple[tuple[Source, Secret], ...] = ()
    warnings: tuple[str, ...] = ()
    image: Mapping[str, Any] = field(default_factory=dict)
    fault: ByteorError | None = None
    misses: tuple[str, ...] = ()


def gather(
    layout: Layout,
    inputs: Inputs,
    *,
    classify: Callable[[Secret], TokenClass],
    strict: bool = True,
    tighten: bool = False,
) -> Found:
    """Read every source; Invalid or LocalFault for a broken one that could redirect the token.

    Not `strict`: that fault is part of what was found, for a host that has its identity. `tighten`
    what others could read in the drop place: for `run` alone, whoever looks writes nothing.
    """
    sources: list[Source] = []
    broken: list[tuple[Rank, ByteorError]] = []
    for rank, read in sorted(_readers(layout, inputs, tighten), key=lambda each: each[0]):
        try:
            source = read()
        except (Invalid, LocalFault) as error:
            broken.append((rank, error))
        else:
            sources += [source] if source is not None else []
    chosen = _choose(sources, classify)
    warnings = []
    misses = [miss for source in sources for miss in source.misses]
    serious: ByteorError | None = None
    for rank, fault in broken:
        # A broken place below the token's cannot redirect it, and may be beyond anybody's reach on
        # this host. One of the same rank is the same source (the two credentials).
        below = rank not in (Rank.ENVIRONMENT, Rank.IMAGE)
        if isinstance(fault, NearMiss) and (chosen is not None or not strict):
            misses.append(str(fault))  # it is nobody's source
        elif chosen is not None and rank > chosen.rank and below:
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
        warnings=(*warnings, *misses, *ignored),
        image=next((source.values for source in sources if source.rank is Rank.IMAGE), {}),
        fault=serious,
        misses=tuple(misses),
    )


def _choose(sources: Sequence[Source], classify: Callable[[Secret], TokenClass]) -> Source | None:
    """Return the highest source of a fresh token, else of a refused, else of a spent one."""
    order = list(TokenClass)
    holding = [
        (order.index(classify(source.token)), source.rank, number)
        for number, source in enumerate(sources)
        if source.token is not None
    ]
    return sources[min(holding)[2]] if holding else None


Reader = Callable[[], Optional[Source]]


def _readers(layout: Layout, inputs: Inputs, tighten: bool) -> Iterator[tuple[Rank, Reader]]:
    yield Rank.TOKEN_FILE, lambda: _token_file(inputs)
    for name, kind in (("byteor.enrollment-token", _bare), ("byteor.firstboot", _mapping)):
        if inputs.credentials is not None:
            path = inputs.credentials / name
            yield Rank.CREDENTIAL, _reader(kind, Rank.CREDENTIAL, f"credential {name}", path)
    yield Rank.DROP_PLACE, lambda: _drop_place(layout, tighten)
    if not layout.is_host or _cloud_init_ran(layout):
        # Vendor data in cloud-init's own order of precedence.
        for rank, where, names in (
            (Rank.USER_DATA, "user data", ["user-data.txt"]),
            (Rank.VENDOR_DATA, "vendor data", ["vendor-data2.txt", "vendor-data.txt"]),
        ):
            yield rank, _stored(layout, rank, where, names)
    where = layout.shown(layout.token_file)
    yield Rank.ETC_TOKEN, _reader(_bare, Rank.ETC_TOKEN, where, layout.token_file, layout.owner)
    yield Rank.ENVIRONMENT, lambda: _environment(inputs)
    yield Rank.IMAGE, lambda: image(layout, inputs)


Parser = Callable[[bytes, Rank, str, Optional[Path]], Source]


def _reader(
    kind: Parser, rank: Rank, where: str, path: Path, private_to: int | None = None
) -> Reader:
    def read() -> Source | None:
        limit = TOKEN_LIMIT if kind is _bare else YAML_LIMIT
        data = files.read(path, limit=limit, private_to=private_to)
        return None if data is None else kind(data, rank, where, path)

    return read


def _bare(data: bytes, rank: Rank, where: str, path: Path | None) -> Source:
    try:
        text = data.decode("ascii").strip()
    except UnicodeDecodeError:
        raise Invalid(
            f"{where} is not a token: {OF_A_TOKEN}",
            hint="write the token alone into it, as it was minted",
        ) from None
    return _source({"enrollment_token": text} if text else None, rank, where, path)


def _mapping(data: bytes, rank: Rank, where: str, path: Path | None) -> Source:
    return _source(load_yaml(data, where=where), rank, where, path)


def _source(raw: Any, rank: Rank, where: str, path: Path | None) -> Source:
    values = parse(raw, where=where, image=rank is Rank.IMAGE)
    token = values.pop("enrollment_token", None)
    return Source(rank, where, values, token, path)


def _token_file(inputs: Inputs) -> Source | None:
    if inputs.token_file is None:
        return None
    if inputs.token_file == "-":
        return _bare(inputs.stdin or b"", Rank.TOKEN_FILE, "the token on stdin", None)
    path = Path(inputs.token_file)
    found = _reader(_bare, Rank.TOKEN_FILE, str(path), path, os.geteuid())()
    if found is None:
        raise Invalid(
            f"there is no token file {path}", hint="give the path of a file, or - and stdin"
        )
    return found


def _drop_place(layout: Layout, tighten: bool) -> Source | None:
    """Read the file that write_files makes, 0644 unless told otherwise.

    One that others could write, that is somebody's or has a second name is never used.
    """
    path = layout.drop_place
    if not private.check_directory(path.parent, owner=layout.owner, tighten=tighten):
        return None
    shown = layout.shown(path)
    private.check_unwritten(path, owner=layout.owner, one_link=True, hint=WRITE_FILES)
    if tighten and private.tighten(path):
        log.warning(f"others could read the token in {shown}: it is private now", hint=WRITE_FILES)
    return _reader(_mapping, Rank.DROP_PLACE, shown, path)()


def _cloud_init_ran(layout: Layout) -> bool:
    """Return True when cloud-init's network stage ran in this boot.

    Its files on tmpfs say so; the instance link outlives the boot.
    """
    names = (".instance-id", "instance-data.json")
    return any((layout.cloud_run / name).exists() for name in names)


def _stored(layout: Layout, rank: Rank, where: str, names: Sequence[str]) -> Reader:
    """Read what cloud-init stored: as received, then (``.i``) what `#include` and archives held."""

    def read() -> Source | None:
        for name in (name + suffix for name in names for suffix in ("", ".i")):
            path = layout.path(f"/var/lib/cloud/instance/{name}")
            data = files.read(path, limit=USER_DATA_LIMIT, private_to=layout.owner)
            reading = userdata.examine(data or b"", where=where)
            found = reading.chosen()
            if found is not None:
                source = _source(found.raw, rank, where, path)
                return replace(source, misses=tuple(map(str, reading.misses)))
        return None

    return read


def _environment(inputs: Inputs) -> Source | None:
    address = inputs.environ.get("BYTEOR_API_BASE_URL")
    if not address:
        return None
    return _source({"api_base_url": address}, Rank.ENVIRONMENT, "BYTEOR_API_BASE_URL", None)


def image(layout: Layout, inputs: Inputs) -> Source | None:
    """Read the image's defaults, or the file that stands in for them."""
    path = inputs.config or layout.image_defaults
    # realpath and not resolve(): before Python 3.13 the latter raises an error of its own for a
    # loop of links.
    target = Path(os.path.realpath(path)) if inputs.config or layout.is_host else path
    # It names what root runs, and where a token goes.
    private.check_unwritten(target, owner=layout.owner)
    data = files.read(target, limit=YAML_LIMIT)
    if data is None and inputs.config is not None:
        raise Invalid(f"there is no file {path}", hint="--config names the file to read")
    return None if data is None else _mapping(data, Rank.IMAGE, layout.shown(path), path)


def merge(sources: Sequence[Source], *, chosen: Source | None) -> tuple[Settings, tuple[str, ...]]:
    """Merge by rank, with a warning for each value that the one-source rule ignores.

    Routing comes from `chosen`, or from the environment and the image beneath it.
    """
    values: dict[str, Any] = {}
    given: dict[str, Rank] = {}
    ignored: list[tuple[str, Source]] = []
    for source in sorted(sources, key=lambda source: source.rank):
        # By rank and not by identity: the two systemd credentials are one source.
        trusted = chosen is None or source.rank in (chosen.rank, Rank.ENVIRONMENT, Rank.IMAGE)
        for key, value in source.values.items():
            if key in ROUTING and not trusted:
                ignored.append((key, source))
            elif key not in values:
                values[key], given[key] = value, source.rank
    because = f"the token came from {chosen.where}" if chosen is not None else ""
    warnings = tuple(
        # What says the same misleads nobody: write_files is read from the drop place and from user
        # data.
        f"{key} in {source.where} is ignored: {because}"
        for key, source in ignored
        if source.values[key] != values.get(key)
    )
    from_image = sorted(key for key, rank in given.items() if rank is Rank.IMAGE)
    pinned = sorted(set(given) - set(from_image))
    return Settings(**values, pinned=tuple(pinned), from_image=tuple(from_image)), warnings


def settings_of(layout: Layout, *, config: Path | None) -> Settings:
    """Return the settings of the file `config`, or of the image's defaults."""
    source = image(layout, Inputs(config=config))
    return merge([source] if source is not None else [], chosen=None)[0]


def in_force(layout: Layout, *, config: Path | None) -> Settings:
    """Return what first boot froze, else (a container, or `config`) what the agent's file says."""
    image_is_there = (config or layout.image_defaults).exists()
    if config is None and (layout.settings.exists() or not image_is_there):
        return frozen.load(layout)
    return settings_of(layout, config=config)


def main() -> int:
    """Print the settings; the exit code and the words are those of `byteor-agent run`."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--config", type=Path)
    arguments = parser.parse_args()
    log.set_up("byteor-agent", verbose=False)
    try:
        settings = settings_of(Layout(arguments.root), config=arguments.config)
    except ByteorError as error:
        log.error(str(error))
        log.hint(error.hint)
        return error.exit_code
    print(json.dumps(frozen.freeze(settings)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
