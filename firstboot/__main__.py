"""Run ``byteor-firstboot``, or with ``agent`` as the first word ``byteor-agent``."""

import sys

from firstboot.cli import agent_main, firstboot_main

sys.exit(agent_main(sys.argv[2:]) if sys.argv[1:2] == ["agent"] else firstboot_main())
