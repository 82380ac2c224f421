"""Guests for tests: roots and the Debian package once a session, one network, and on a failure what
the guests say.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from . import host, roots
from .guest import Guest, GuestError
from .network import Link, Network

TOP = Path(__file__).resolve().parents[2]
# A guest that was booted by a fixture belongs to several tests: whatever fails, every guest that is
# up is shown.
_UP: list[Guest] = []
_JOURNAL_LINES = "60"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Guests are skipped without root, loudly; as root they must not be: what is missing is an
    error then.
    """
    if os.geteuid() == 0:
        return
    for item in items:
        if "boot" in item.keywords and item.get_closest_marker("boot"):
            item.add_marker(pytest.mark.skip(reason=host.why_not() or "guests need root"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, None]:
    """Put the journal of every guest that is up under the report of a failed test."""
    outcome = yield
    report = outcome.get_result()
    if report.failed and item.get_closest_marker("boot"):
        for guest in _UP:
            try:
                report.sections.append(
                    (f"journal of {guest.name}", guest.journal("-b", "-n", _JOURNAL_LINES))
                )
            except (GuestError, subprocess.SubprocessError, OSError) as error:
                report.sections.append((f"journal of {guest.name}", f"not to be had: {error}"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the matrix of test_matrix: hosts by checks."""
    rows: dict[str, dict[str, str]] = {}
    checks: dict[int, str] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            place = dict(getattr(report, "user_properties", ())).get("matrix")
            if place is not None:
                host_name, number, check = place
                checks[number] = check
                word = {"passed": "ok", "error": "FAILED"}.get(outcome, outcome.upper())
                rows.setdefault(host_name, {})[check] = word
    if rows:
        columns = [checks[number] for number in sorted(checks)]
        width = max(map(len, rows)) + 2
        terminalreporter.section("matrix")
        terminalreporter.write_line(" " * width + "".join(f"{check:<12}" for check in columns))
        for name, row in rows.items():
            cells = "".join(f"{row.get(check, '-'):<12}" for check in columns)
            terminalreporter.write_line(f"{name:<{width}}{cells}")


@pytest.fixture(scope="session", params=roots.SUITES)
def suite(request: pytest.FixtureRequest) -> str:
    """The Debian release that the guest is."""
    return str(request.param)


@pytest.fixture(scope="session")
def base(suite: str) -> Path:
    """The release's base root, cached outside the checkout."""
    return roots.base_root(suite)


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Debian package, as ``image-build/build-deb`` builds it from this checkout, or the one
    that GUEST_PACKAGE names.
    """
    if "GUEST_PACKAGE" in os.environ:
        return Path(os.environ["GUEST_PACKAGE"])
    directory = tmp_path_factory.mktemp("package")
    subprocess.run([str(TOP / "image-build/build-deb"), str(directory)], check=True)
    return next(directory.glob("*.deb"))


@pytest.fixture(scope="session")
def image(
    base: Path, package: Path, tmp_path_factory: pytest.TempPathFactory, suite: str
) -> Iterator[Sequence[Path]]:
    """The lower directories of a guest whose image has our package installed."""
    directory = tmp_path_factory.mktemp(f"image-{suite}")
    yield roots.install_package(package, lowers=[base], directory=directory).stack
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def network() -> Iterator[Network]:
    """This session's addresses."""
    with Network() as network:
        yield network


@pytest.fixture(scope="module")
def new_guest(
    network: Network, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Guest]]:
    """Make guests that have a link to the plane's address; all of them are gone when the module's
    tests are done.
    """
    made: list[Guest] = []

    def make(
        name: str,
        lowers: Sequence[Path] = (),
        *,
        layer: roots.Layer | None = None,
        link: Link | None = None,
    ) -> Guest:
        guest = Guest(
            name,
            lowers,
            tmp_path_factory.mktemp(name),
            link=link or network.new_link(),
            layer=layer,
        )
        made.append(guest)
        _UP.append(guest)
        return guest

    yield make
    for guest in made:
        _UP.remove(guest)
        guest.close()
        if "KEEP_GUESTS" not in os.environ:
            shutil.rmtree(guest.directory, ignore_errors=True)
