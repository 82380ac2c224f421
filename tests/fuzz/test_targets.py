"""Every parser of what comes from outside, under arbitrary bytes and damaged examples: no exception
but ours.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, seeds

FEW = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("name", TARGETS)
def test_examples_are_taken(name: str) -> None:
    """The examples that fuzzing starts from pass, and there are some."""
    assert len(seeds(name)) >= 3
    for data in seeds(name):
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.binary(max_size=2000))
@FEW
def test_arbitrary_bytes(name: str, data: bytes) -> None:
    """Anything at all is refused in an orderly way."""
    TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.data())
@FEW
def test_damaged_examples(name: str, data: st.DataObject) -> None:
    """A good example with bytes changed, cut or put in: what arbitrary bytes never reach."""
    mutated = bytearray(data.draw(st.sampled_from(seeds(name))))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(mutated) - 1)))
        piece = data.draw(st.binary(max_size=8))
        mutated[at : at + data.draw(st.integers(0, 8))] = piece
    TARGETS[name](bytes(mutated))
