"""One entry of cloud-init's `write_files`, read as cloud-init reads it."""

from __future__ import annotations

import posixpath

import yaml

from firstboot.base.errors import Invalid
from firstboot.base.layout import Layout
from firstboot.provision.decode import unbase64
from firstboot.provision.parts import gunzip

DROP_PLACE = Layout.drop_place.absolute
TOKEN_FILE = Layout.token_file.absolute
CONTENT_LIMIT = 256 << 10  # bytes of a content that is unpacked


def fields(node: yaml.Node) -> dict[str, yaml.Node]:
    """Return the entries of a mapping by their text keys; keys of other shapes are none of ours."""
    entries = node.value if isinstance(node, yaml.MappingNode) else []
    return {key.value: value for key, value in entries if isinstance(key, yaml.ScalarNode)}


def entries(root: yaml.Node | None) -> list[dict[str, yaml.Node]]:
    """Return the entries of `write_files` in a cloud-config."""
    listed = fields(root).get("write_files") if root is not None else None
    return [fields(one) for one in listed.value] if isinstance(listed, yaml.SequenceNode) else []


def text(node: yaml.Node | None) -> str:
    """Return the text of a scalar, and nothing for anything else."""
    return str(node.value) if isinstance(node, yaml.ScalarNode) else ""


def true(node: yaml.Node | None) -> bool:
    return text(node).lower() in ("true", "yes", "on", "1")


def normal(path: str) -> str:
    path = posixpath.normpath(path)
    return path[len("/var") :] if path.startswith("/var/run/") else path


def is_ours(path: str) -> bool:
    """Return True for a path of `write_files` that first boot reads."""
    return normal(path) in (DROP_PLACE, TOKEN_FILE)


def content_of(entry: dict[str, yaml.Node], where: str) -> bytes:
    """Return what an entry of `write_files` writes; Invalid where it is no text or damaged.

    As cloud-init's cc_write_files.canonicalize_extraction: an encoding that it does not know is
    plain text.
    """
    content = entry.get("content")
    if content is None:
        return b""
    if not isinstance(content, yaml.ScalarNode):
        raise Invalid(f"{where} is not a text", hint="content: | and the text below it")
    steps = set(text(entry.get("encoding")).strip().lower().split("+"))
    data = bytes_of(content, where)
    if steps & {"b64", "base64"}:
        data = _plain_of(data, where)
    if steps & {"gz", "gzip"}:
        unpacked = gunzip(data, limit=CONTENT_LIMIT)
        if unpacked is None:
            raise Invalid(f"{where} is not gzip", hint="correct its encoding:")
        data = unpacked
    return data


def mode_of(entry: dict[str, yaml.Node]) -> int:
    """Return the mode that an entry gives its file, as cloud-init takes it: else 0644."""
    node = entry.get("permissions")
    try:
        if node is not None and node.tag == "tag:yaml.org,2002:int":
            return int(yaml.constructor.SafeConstructor().construct_object(node))
        return int(text(node), 8)
    except (ValueError, LookupError, TypeError):  # whatever PyYAML raises for an odd integer
        return 0o644


def permitted(path: str, entry: dict[str, yaml.Node]) -> tuple[str | None, str | None]:
    """Return a warning and a refusal for the owner and the mode that an entry gives its file.

    The file is used, and tightened, where root owns it and nobody else may write it.
    """
    owner, mode = text(entry.get("owner")).split(":")[0].strip(), mode_of(entry)
    if owner not in ("", "root", "0"):
        return None, f"owner of {path} in write_files must be root"
    if mode & 0o022 or not mode & 0o400:
        return None, f"permissions of {path} in write_files must be '0600'"
    if not mode & 0o077:
        return None, None
    return (
        f"others can read {path} until first boot tightens it: give it permissions: '0600' in "
        "write_files",
        None,
    )


def bytes_of(node: yaml.ScalarNode, where: str) -> bytes:
    """Return the bytes that cloud-init would see: YAML itself decodes those of a ``!!binary``."""
    data: bytes = node.value.encode()
    return _plain_of(data, where) if node.tag == "tag:yaml.org,2002:binary" else data


def _plain_of(data: bytes, where: str) -> bytes:
    try:
        return unbase64(data)
    except ValueError:
        raise Invalid(f"{where} is not base64", hint="correct its encoding:") from None
