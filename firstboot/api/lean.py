"""Import this before `requests`, and it comes without the character detection that nothing here asks for.

chardet and charset_normalizer are 2.9 MiB of tables in a resident process (Debian 12, measured) and 10 ms of each
command's start; requests loads them to guess the encoding of a text, and our answers are bytes. What asks for a guess all
the same gets the real library, loaded then.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

_DETECTORS = ("chardet", "charset_normalizer")
# In the range of every requests from 2.25 on, which compares it and warns.
_VERSION = "3.0.4"


def _detect(data: bytes) -> dict[str, Any]:
    for name in _DETECTORS:
        try:
            found: dict[str, Any] = importlib.import_module(name).detect(data)
        except ImportError:
            continue
        return found
    return {"encoding": None, "confidence": 0.0, "language": ""}


def _import_requests() -> None:
    if any(name in sys.modules for name in ("requests", *_DETECTORS)):
        return  # somebody else's process: it has what it has
    stand_in: Any = types.ModuleType("chardet", "stands in while requests is imported")
    stand_in.__version__, stand_in.detect = _VERSION, _detect
    modules: dict[str, Any] = sys.modules
    modules.update(chardet=stand_in, charset_normalizer=None)
    try:
        importlib.import_module("requests")
    finally:
        for name in _DETECTORS:
            del modules[name]


_import_requests()
