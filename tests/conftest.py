"""What every test gets: the installed package before the checkout, and the reference control
plane.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

# After site-packages: `firstboot` is the installed wheel, `tests` this tree.
sys.path.append(str(Path(__file__).resolve().parents[1]))

pytest_plugins = ["tests.controlplane.fixture"]


def pytest_configure() -> None:
    """Let tests interrupt their children where SIGINT is ignored, as in ``nohup ./tests/run &``."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
