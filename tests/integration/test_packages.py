"""Packages: reproducible, complete, clean, and of versions that apt, dnf and pip put in order.

What is built here is the last commit: the packages never hold what is not committed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.version import Version

from firstboot import __version__
from tests.unit.texts import TOP

PARTS = "source,deb,rpm,wheel,sbom"
TOOLS = {"dpkg-buildpackage": "build-essential", "dh": "debhelper", "rpmbuild": "rpm"}


def clone(directory: Path, *commands: tuple[str, ...]) -> Path:
    subprocess.run(["git", "clone", "-q", str(TOP), str(directory)], check=True)
    for command in commands:
        git = ["git", "-c", "user.name=t", "-c", "user.email=t@t.example", "-C", str(directory)]
        subprocess.run([*git, *command], check=True, capture_output=True)
    return directory


def version(tree: Path) -> tuple[str, str, str]:
    done = subprocess.run(
        [str(tree / "image-build/version")], capture_output=True, text=True, check=True
    )
    shown, pep440, epoch = done.stdout.split()
    return shown, pep440, epoch


# -- versions


def test_versions_go_up_with_every_commit_and_release(tmp_path: Path) -> None:
    """0.1.0, a commit, a later one, 0.2.0: for dpkg, rpm and pip; a tarball knows its own."""
    later = {**os.environ, "GIT_COMMITTER_DATE": "2030-01-01T00:00:00Z"}
    tree = clone(tmp_path / "tree", ("tag", "-f", "v0.0.1"))
    first = version(tree)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t.example", "-C", str(tree)]
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True, env=later)
    second = version(tree)
    packed = subprocess.run([*git, "archive", "HEAD"], capture_output=True, check=True)
    (tmp_path / "unpacked").mkdir()
    subprocess.run(["tar", "-xC", str(tmp_path / "unpacked")], input=packed.stdout, check=True)
    assert version(tmp_path / "unpacked") == second
    release = second[0].partition("~")[0]
    subprocess.run([*git, "tag", f"v{release}"], check=True)
    third = version(tree)
    assert third[:2] == (release, release) and second[0].startswith(f"{release}~git20300101")
    rising = ["0.1.0", first[0], second[0], third[0]]
    for older, newer in zip(rising, rising[1:]):
        subprocess.run(["dpkg", "--compare-versions", older, "lt", newer], check=True)
        if shutil.which("rpm"):
            code = f'%{{lua: print(rpm.vercmp("{older}", "{newer}"))}}'
            done = subprocess.run(["rpm", "--eval", code], capture_output=True, text=True)
            assert done.stdout.strip() == "-1"
    assert Version("0.1.0") < Version(first[1]) < Version(second[1]) < Version(third[1])


def test_a_part_that_cannot_be_made_is_skipped_loudly(tmp_path: Path) -> None:
    """Without the tool: the reason in capitals, exit code 3, and the other parts."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("git", "env", "gzip", "tar"):
        (programs / name).symlink_to(str(shutil.which(name)))
    (programs / "python3").symlink_to(Path(sys.executable).resolve())
    tree = clone(tmp_path / "tree")
    done = subprocess.run(
        [str(tree / "image-build/build"), "--only", "rpm,sbom", str(tmp_path / "out")],
        capture_output=True, text=True, env={**os.environ, "PATH": str(programs)},
    )  # fmt: skip
    assert done.returncode == 3, done
    assert "SKIPPED: rpm: it needs rpm" in done.stderr
    (made,) = (tmp_path / "out").iterdir()
    document = json.loads(made.read_text())
    assert document["bomFormat"] == "CycloneDX" and len(document["components"]) == 3


def test_the_spec_has_the_version_of_the_code() -> None:
    """A distribution that builds a release's tarball gives no version."""
    spec = (TOP / "image-build/rpm/byteor-firstboot.spec").read_text()
    assert f"%global package_version {__version__}}}\n" in spec


# -- what is built


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The packages of the last commit, built twice in two places."""
    for program, package in TOOLS.items():
        if shutil.which(program) is None:
            pytest.skip(f"{package} is not on this machine (image-build/build --install-tools)")
    made = []
    for name in ("one", "another"):
        directory = tmp_path_factory.mktemp(name)
        tree, out = clone(directory / f"tree-{name}"), directory / "out"
        done = subprocess.run(
            [str(tree / "image-build/build"), "--only", PARTS, str(out)],
            capture_output=True, text=True, env={**os.environ, "TZ": f"UTC{len(made)}"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        made.append(out)
    return made[0], made[1]


def holds(names: Iterable[str], system: str, code: str, zsh: str) -> None:
    """Assert that a package's files are all that a host needs, below `system`."""
    found = {name.lstrip("./") for name in names}
    units = {path.name for path in (TOP / "units").iterdir() if ".conf" not in path.name}
    units.discard("50-byteor-firstboot.preset")
    modules = {
        str(path.relative_to(TOP / "firstboot")) for path in (TOP / "firstboot").rglob("*.py")
    }
    share = "usr/share" if system else "share"
    wanted = {
        *(f"{system}lib/systemd/system/{name}" for name in units),
        f"{system}lib/systemd/system-preset/50-byteor-firstboot.preset",
        *(f"{code}firstboot/{name}" for name in modules),
        *(f"{share}/bash-completion/completions/{name}" for name in ("byteor-agent", "byteor-firstboot")),
        *(f"{share}/zsh/{zsh}/_{name}" for name in ("byteor-agent", "byteor-firstboot")),
    }  # fmt: skip
    assert wanted <= found, wanted - found
    for page in ("5/byteor-firstboot.yaml.5", "8/byteor-agent.8", "8/byteor-firstboot.8"):
        assert any(name.startswith(f"{share}/man/man{page}") for name in found), page
    for kind in ("sysusers", "tmpfiles"):
        assert any(name.endswith(f"lib/{kind}.d/byteor-firstboot.conf") for name in found)


@pytest.mark.minutes
@pytest.mark.timeout(900)
class TestBuilt:
    """Of one commit, in every form."""

    def test_two_builds_are_equal(self, built: tuple[Path, Path]) -> None:
        """Byte for byte, wherever and in whatever time zone they were made."""
        one, another = built
        assert sorted(path.name for path in one.iterdir()) == sorted(
            path.name for path in another.iterdir()
        )
        assert len(list(one.iterdir())) == 5
        for path in one.iterdir():
            assert path.read_bytes() == (another / path.name).read_bytes(), path.name

    def test_the_deb_is_whole_and_clean(self, built: tuple[Path, Path]) -> None:
        """Files where Debian has them; lintian finds nothing that has no reason."""
        (deb,) = built[0].glob("*.deb")
        done = subprocess.run(["dpkg", "-c", str(deb)], capture_output=True, text=True, check=True)
        names = [line.split()[5] for line in done.stdout.splitlines()]
        moved = [name.replace("./lib/", "./usr/lib/") for name in names]
        holds(moved, "usr/", "usr/lib/python3/dist-packages/", "vendor-completions")
        if shutil.which("lintian"):
            found = subprocess.run(
                ["lintian", "--allow-root", "--fail-on", "error,warning", str(deb)],
                capture_output=True, text=True,
            )  # fmt: skip
            assert found.returncode == 0, found.stdout

    def test_the_rpm_is_whole_and_clean(self, built: tuple[Path, Path]) -> None:
        """For every Python; it needs what RHEL 9 has, by the names that it has there."""
        (rpm,) = built[0].glob("*.rpm")

        def ask(*words: str) -> list[str]:
            command = ["rpm", "-qp", *words, str(rpm)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            return done.stdout.splitlines()

        holds(ask("-l"), "usr/", "usr/share/byteor-firstboot/", "site-functions")
        needs = {line.split()[0] for line in ask("--requires")}
        assert {f"python3-{name}" for name in ("cryptography", "pyyaml", "requests")} <= needs
        scripts = "\n".join(ask("--scripts"))
        for line in scripts.splitlines():
            if "systemctl" in line:
                assert "--no-block" in line or "is-enabled" in line or "daemon-reload" in line, line
        assert "install-system-units byteor-firstboot.service" in scripts and "%" not in scripts
        if shutil.which("rpmlint"):
            rules = TOP / "image-build/rpm/rpmlint.toml"
            found = subprocess.run(
                ["rpmlint", "-c", str(rules), str(rpm)], capture_output=True, text=True
            )
            assert " 0 errors, 0 warnings" in found.stdout, found.stdout

    def test_the_wheel_has_units_that_find_their_programs(self, built: tuple[Path, Path]) -> None:
        """Below /usr/local systemd reads them, and looks for the programs by name."""
        (path,) = built[0].glob("*.whl")
        with zipfile.ZipFile(path) as wheel:
            names = [name.partition(".data/data/")[2] or name for name in wheel.namelist()]
            holds(names, "", "", "site-functions")
            for name in wheel.namelist():
                if name.endswith(".service"):
                    text = wheel.read(name).decode()
                    assert "/usr/bin/byteor" not in text and "=byteor-" in text.replace("+", "")

    def test_a_dnf_repository_is_signed(self, built: tuple[Path, Path], tmp_path: Path) -> None:
        """The package and the index, by the key that was named; without one nothing is made."""
        missing = [tool for tool in ("createrepo_c", "rpmsign", "gpg") if not shutil.which(tool)]
        if missing:
            pytest.skip(f"not on this machine: {', '.join(missing)}")
        (rpm,) = built[0].glob("*.rpm")
        home, out = tmp_path / "gpg", tmp_path / "out"
        home.mkdir(0o700)
        environ = {**os.environ, "GNUPGHOME": str(home)}
        words = [str(TOP / "image-build/repository"), "--key", "t@t.example", str(out), str(rpm)]
        assert subprocess.run(words, env=environ, capture_output=True).returncode == 1
        make = [
            "--passphrase",
            "",
            "--quick-generate-key",
            "t@t.example",
            "rsa2048",
            "sign",
            "never",
        ]
        subprocess.run(["gpg", "--batch", "--quiet", *make], env=environ, check=True)
        try:
            subprocess.run(words, env=environ, check=True)
            index = str(out / "dnf/repodata/repomd.xml")
            subprocess.run(["gpg", "--verify", f"{index}.asc", index], env=environ, check=True)
        finally:
            subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False)
        database = ["--dbpath", str(tmp_path / "db")]
        imported = ["rpm", *database, "--import", str(out / "byteor-firstboot.asc")]
        subprocess.run(imported, check=True)
        (signed,) = (out / "dnf").glob("*.rpm")
        done = subprocess.run(["rpm", *database, "-K", str(signed)], capture_output=True, text=True)
        assert "digests signatures OK" in done.stdout, done.stdout
