"""Run by a process of its own: what cloud-init's own code makes of user data, as JSON lines.

``python cloudinit_reads.py DIST_PACKAGES < documents``: one document a line, in base64.
"""

from __future__ import annotations

import base64
import json
import logging
import sys


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    logging.disable(logging.CRITICAL)
    from cloudinit import util  # type: ignore[import-not-found]
    from cloudinit.config import cc_write_files  # type: ignore[import-not-found]
    from cloudinit.user_data import UserDataProcessor  # type: ignore[import-not-found]

    print(json.dumps(sys.modules["cloudinit"].__path__[0]), flush=True)
    for line in sys.stdin:
        written: dict[str, bytes] = {}
        seen: dict[str, list[str]] = {"parts": [], "byteor": []}
        try:
            message = UserDataProcessor({}).process(base64.b64decode(line))
            for part in message.walk():
                payload = part.get_payload(decode=True)
                if part.is_multipart() or not payload:
                    continue
                seen["parts"].append(base64.b64encode(payload).decode())
                if part.get_content_type() != "text/cloud-config":
                    continue
                config = util.load_yaml(payload.decode("utf-8", "replace"), default={})
                if "byteor" in config:
                    seen["byteor"].append(json.dumps(config["byteor"]))
                for entry in config.get("write_files", []):
                    steps = cc_write_files.canonicalize_extraction(entry.get("encoding"))
                    content = cc_write_files.extract_contents(entry.get("content", ""), steps)
                    content = content.encode() if isinstance(content, str) else content
                    path = entry["path"]
                    written[path] = (
                        written.get(path, b"") if entry.get("append") else b""
                    ) + content
        except Exception as error:  # whatever it is, the document says nothing
            seen["error"] = [repr(error)]
        texts = {path: base64.b64encode(content).decode() for path, content in written.items()}
        print(json.dumps({**seen, "written": texts}), flush=True)


if __name__ == "__main__":
    main()
