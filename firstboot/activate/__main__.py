"""``python -m firstboot.activate --root DIR``: what an agent without systemd starts as its child."""

import sys

from firstboot.cli import agent_main

sys.exit(agent_main(["activate", *sys.argv[1:]]))
