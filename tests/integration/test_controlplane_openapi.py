"""openapi.yaml is true: schemathesis finds nothing against the running plane, and what does not conform is seen."""

from __future__ import annotations

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any, Dict, Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance, ignored_auth, missing_required_header, negative_data_rejection,
    positive_data_acceptance, response_headers_conformance, response_schema_conformance, status_code_conformance,
    unsupported_method, use_after_free,
)

from tests.controlplane import ControlPlane, contract
from tests.controlplane.conformance import complaints
from tests.controlplane.plain import PlainHost

SCHEMA = schemathesis.openapi.from_path(str(contract.DOCUMENT))
EXAMPLES = 25


@pytest.fixture
def host(control_plane: ControlPlane) -> Iterator[PlainHost]:
    with PlainHost(control_plane) as one:
        yield one.enrolled()


@pytest.mark.provokes_violations
@SCHEMA.parametrize()
@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate], database=None,
    suppress_health_check=list(HealthCheck),
)
def test_schemathesis_finds_nothing(case: Any, control_plane: ControlPlane, host: PlainHost) -> None:
    print(case, case.meta)
    raise SystemExit
