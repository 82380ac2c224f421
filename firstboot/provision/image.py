"""The image's settings alone, checked and printed as ``settings.json`` has them: for an agent in a container.

``python -m firstboot.provision.image --root DIR [--config FILE]``. The agent has its identity from its environment there, no
first boot has frozen anything, and yaml must not be loaded in the process that stays.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from firstboot.base import log
from firstboot.base.errors import ByteorError
from firstboot.base.layout import Layout
from firstboot.exchange import settings as frozen
from firstboot.exchange.settings import Settings, freeze
from firstboot.provision.schema import merge
from firstboot.provision.sources import Inputs, image


def settings_of(layout: Layout, *, config: Path | None) -> Settings:
    """The settings of the file `config`, or of the image's defaults; Invalid and LocalFault as for `byteor-firstboot run`."""
    source = image(layout, Inputs(config=config))
    return merge([source] if source is not None else [], chosen=None)[0]


def in_force(layout: Layout, *, config: Path | None) -> Settings:
    """What first boot froze; where nothing is frozen, as in a container, or with `config`: the file that the agent reads."""
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
        if error.hint:
            log.hint(error.hint)
        return error.exit_code
    print(json.dumps(freeze(settings)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
