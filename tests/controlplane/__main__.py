"""``python -m tests.controlplane``."""

from __future__ import annotations

import sys

from tests.controlplane.cli import main

sys.exit(main())
