"""A reenroll that was cut between settings.json and the identity re-routes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from firstboot.base import files
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret
from firstboot.exchange import settings as frozen
from firstboot.exchange.settings import Settings
from firstboot.identity import store
from firstboot.identity.store import Identity
from firstboot.provision import freezing
from firstboot.provision.writefiles import mode_of

HERE = Identity(
    api_base_url="https://old.example",
    org_id="org_1",
    project_id="prj_1",
    environment_id="env_1",
    agent_id="agt_1",
    name="edge",
    api_key=Secret("brk_0123456789abcdef"),
    scopes=(),
    expires_at=None,
    enrolled_at="2026-01-01T00:00:00Z",
    proxy=None,
    ca_certificates="OLD",
    routed=True,
)


@pytest.mark.parametrize("written", ["another", "the same"])
def test_settings_of_another_enrollment_do_not_reroute_the_identity(
    tmp_path: Path, written: str
) -> None:
    """CA and ids stay those of the identity that opens here; a file of its own is kept as it is."""
    layout = Layout(tmp_path)
    files.make_directory(layout.identity, 0o700)
    store.save(layout, HERE, seal="file")
    place = {key: getattr(HERE, key) for key in ("project_id", "environment_id")}
    own = Settings(HERE.api_base_url, "org_1", **place, ca_certificates="OLD", key_sets=())
    other = replace(own, org_id="org_2", api_base_url="https://new.example", ca_certificates="NEW")
    chosen = other if written == "another" else own
    files.write_json(layout.settings, frozen.freeze(chosen), mode=0o644)
    freezing.freeze_again(layout, store.look(layout), {}, boot_id="b")
    assert frozen.load(layout) == own
    again = store.look(layout).identity
    assert again is not None
    assert (again.ca_certificates, again.org_id) == ("OLD", "org_1")


@pytest.mark.parametrize("odd", ["!!int ''", "!!int _", "!!int", "!!int 0x", "'0o9'", "[1]", "{}"])
def test_an_odd_mode_is_the_default(odd: str) -> None:
    """PyYAML raises more than ValueError for an integer that is none."""
    node = yaml.compose(f"permissions: {odd}")
    entry = {key.value: value for key, value in node.value}
    assert mode_of(entry) == 0o644
