"""The upload check of ``verify``: what each outcome of the spool means for an operator."""

from __future__ import annotations

from typing import Callable

import pytest

from firstboot.base.errors import ByteorError, LocalFault, Refused, TryAgain
from firstboot.commands.verify import FAILED, NOT_CHECKED, OK, judge, uploaded


def raising(error: ByteorError) -> Callable[[], str]:
    def upload() -> str:
        raise error

    return upload


@pytest.mark.parametrize(
    ("upload", "result", "seen", "advice"),
    [
        (lambda: "art_1", OK, "art_1 is stored", None),
        (
            raising(Refused("the plane refused art_1: 415", hint="byteor-agent retry art_1")),
            FAILED,
            "415",
            "retry",
        ),
        (
            raising(LocalFault("the agent is not running", hint="systemctl")),
            FAILED,
            "not running",
            "systemctl",
        ),
        (
            raising(TryAgain("not uploaded within 60 s")),
            FAILED,
            "within 60 s",
            "retried automatically",
        ),
    ],
)
def test_each_outcome_of_the_test_upload(
    upload: Callable[[], str], result: str, seen: str, advice: str | None
) -> None:
    """Stored is ok; refused, not sent and too late are failures, each with what to do."""
    check = judge("artifact upload", lambda: uploaded(upload))
    assert check.result == result and seen in check.seen
    assert check.advice is None if advice is None else advice in str(check.advice)


def test_nobody_uploads_unasked() -> None:
    """Without --upload-test the check says how to make it, and nothing is sent."""
    got, _, hint = uploaded(None)
    assert got == NOT_CHECKED and "--upload-test" in str(hint)
