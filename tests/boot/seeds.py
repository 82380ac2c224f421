"""What a datasource hands to cloud-init: the files that lead to user data, and user data with our
settings.
"""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from .network import Link

NOCLOUD = "/var/lib/cloud/seed/nocloud"


class _Dumper(yaml.SafeDumper):
    """YAML as a person writes it: text of several lines as a literal block."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", value, style="|" if "\n" in value else None
    )


_Dumper.add_representer(str, _text)


def to_yaml(value: object) -> str:
    """``value`` as YAML."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=1000)


def comment_block(settings: Mapping[str, object]) -> str:
    """The recommended form of our settings in user data: comment lines, which cloud-init neither
    parses nor copies.
    """
    return "".join(
        f"#{line}\n" for line in to_yaml({"byteor-firstboot": dict(settings)}).splitlines()
    )


def user_data(settings: Mapping[str, object] | None, *, body: Mapping[str, object]) -> str:
    """A ``#cloud-config`` with ``settings`` (or without any) and an ordinary body, which must not
    be empty.
    """
    block = "" if settings is None else comment_block(settings)
    return "#cloud-config\n" + block + to_yaml(dict(body))


def nocloud(text: str, *, name: str, link: Link | None) -> dict[str, str]:
    """The files of a NoCloud seed directory with this user data, by their path in the guest."""
    files = {
        f"{NOCLOUD}/meta-data": to_yaml({"instance-id": f"i-{name}", "local-hostname": name}),
        f"{NOCLOUD}/user-data": text,
    }
    if link is not None:
        files[f"{NOCLOUD}/network-config"] = to_yaml(_static_network(link))
    return files


def ec2(*, metadata_url: str, link: Link) -> dict[str, str]:
    """The files that make cloud-init's own EC2 datasource ask a metadata service at
    ``metadata_url``.
    """
    return {
        "/etc/cloud/ds-identify.cfg": "policy: enabled\ndatasource: Ec2\n",
        "/etc/cloud/cloud.cfg.d/90_ec2.cfg": to_yaml(
            {
                "datasource_list": ["Ec2"],
                "datasource": {
                    "Ec2": {"strict_id": False, "metadata_urls": [metadata_url], "max_wait": 20}
                },
                "network": _static_network(link),
                # or cloud-init tells udev of hotplug rules: a container has no udev
                "updates": {"network": {"when": ["boot-new-instance"]}},
            }
        ),
    }


def _static_network(link: Link) -> dict[str, object]:
    subnet = {"type": "static", "address": f"{link.there}/30", "gateway": link.here}
    return {"version": 1, "config": [{"type": "physical", "name": "host0", "subnets": [subnet]}]}
