"""``python -m firstboot`` is ``byteor-firstboot``."""

import sys

from firstboot.cli import firstboot_main

sys.exit(firstboot_main())
