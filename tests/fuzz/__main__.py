"""``python -m tests.fuzz``: each target under atheris for some seconds, starting from the golden
vectors.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.targets import TARGETS, seeds

CHILD = """
import sys
import atheris
with atheris.instrument_imports(include=["firstboot"]):
    from tests.fuzz.targets import TARGETS
target = TARGETS[sys.argv.pop(1)]
atheris.Setup(sys.argv, lambda data: target(bytes(data)))
atheris.Fuzz()
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=30, help="for each target (30)")
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help=f"some of {', '.join(TARGETS)}"
    )
    chosen = parser.parse_args()
    for name in chosen.targets or TARGETS:
        with tempfile.TemporaryDirectory() as scratch:
            for number, data in enumerate(seeds(name)):
                Path(scratch, str(number)).write_bytes(data)
            command = [
                sys.executable,
                "-c",
                CHILD,
                name,
                scratch,
                f"-max_total_time={chosen.seconds}",
                "-max_len=65536",
            ]
            done = subprocess.run(
                [*command, f"-artifact_prefix={scratch}/"], capture_output=True, text=True
            )
        last = [line for line in done.stderr.splitlines() if line.startswith("Done ")]
        print(f"{name}: {last[-1] if last else 'stopped'}", flush=True)
        if done.returncode:
            print(done.stderr[-4000:])
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
