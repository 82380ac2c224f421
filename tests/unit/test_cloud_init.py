"""What cloud-init's own parser sees of generated user data, we see too: two versions of it."""

from __future__ import annotations

import base64
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from firstboot.base.errors import Invalid
from firstboot.provision import block, userdata
from firstboot.provision.schema import load_yaml
from firstboot.provision.writefiles import DROP_PLACE, TOKEN_FILE
from tests.boot.roots import cache_directory
from tests.unit import generated

DOCUMENTS = 2_000
READER = Path(__file__).with_name("cloudinit_reads.py")
FOUND = {
    suite: next(
        iter(sorted(cache_directory().glob(f"{suite}-*/usr/lib/python3/dist-packages/cloudinit"))),
        None,
    )
    for suite in ("bookworm", "trixie")
}


def document(seed: int) -> bytes:
    dice = random.Random(seed)
    mapping = {"api_base_url": "https://api.example", "enrollment_token": generated.token(dice)}
    return generated.packed(generated.cloud_config(mapping, dice).text, dice)


def carried(seen: dict[str, Any]) -> list[Any]:
    """Return the mappings that cloud-init's view of a document holds for us."""
    found = [json.loads(one) for one in seen["byteor"]]
    for part in seen["parts"]:
        text = base64.b64decode(part)
        try:
            found += [load_yaml(one.text, where="it") for one in block.blocks(text)]
        except block.Misplaced:
            continue  # what it does not unpack any further
    written = {path: base64.b64decode(text) for path, text in seen["written"].items()}
    if DROP_PLACE in written:
        found.append(load_yaml(written[DROP_PLACE], where="it"))
    elif TOKEN_FILE in written:
        found.append({"enrollment_token": written[TOKEN_FILE].decode().strip()})
    return found


@pytest.mark.parametrize("suite", FOUND)
def test_what_cloud_init_sees_is_what_we_see(suite: str) -> None:
    """Thousands of documents: each mapping that its own code finds is the one that we read."""
    package = FOUND[suite]
    if package is None:
        pytest.skip(f"cloud-init of Debian {suite} is not here: ./tests/run --boot fetches it")
    lines = b"\n".join(base64.b64encode(document(seed)) for seed in range(DOCUMENTS)) + b"\n"
    done = subprocess.run(
        [sys.executable, str(READER), str(package.parent)],
        input=lines,
        capture_output=True,
        check=True,
    )
    where, *answers = done.stdout.decode().splitlines()
    assert json.loads(where).startswith(str(package.parent)) and len(answers) == DOCUMENTS
    compared = 0
    for seed, answer in enumerate(answers):
        expected = carried(json.loads(answer))
        if len(expected) != 1:
            continue
        try:
            found = userdata.read(document(seed), where="user data")
        except Invalid as error:
            pytest.fail(f"seed {seed}: cloud-init reads it, and we say: {error}")
        assert found is not None and found.raw == expected[0], f"seed {seed}"
        compared += 1
    assert compared > DOCUMENTS // 3, compared
