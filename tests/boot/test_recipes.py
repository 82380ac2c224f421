"""Each recipe of image-build/recipes makes an image in which nothing is left; two guests from the
one of mmdebstrap are two hosts.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.controlplane import ControlPlane
from tests.integration.host import Host

from . import host, hosts, images, roots
from .guest import Guest
from .images import RECIPES
from .network import Network

pytestmark = [pytest.mark.boot, pytest.mark.slow, pytest.mark.timeout(1800)]

DEFAULTS = "api_base_url: https://api.example\norg_id: org_1\nheartbeat_interval_s: 5\n"
TESTING = {"TERM": "dumb", "LC_ALL": "C.UTF-8"}


def needs(*tools: str) -> None:
    """Skip where a recipe's tool is not on this machine."""
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not on this machine (Debian: apt-get install {tool})")


def call(*command: object, env: dict[str, str] | None = None, **keywords: str | Path) -> str:
    """Run a command of this machine; its output, and an error that shows it."""
    done = subprocess.run(
        list(map(str, command)),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, **TESTING, **(env or {})}, check=False, **keywords,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


@pytest.fixture(scope="module")
def defaults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("defaults") / "firstboot.yaml"
    path.write_text(DEFAULTS)
    return path


@pytest.fixture(scope="module")
def disk(package: Path, defaults: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the recipe of mmdebstrap makes."""
    needs("mmdebstrap", "mke2fs")
    directory = tmp_path_factory.mktemp("mmdebstrap")
    said = call(RECIPES / "mmdebstrap", package, defaults, directory)
    assert "safe to image" in said
    assert {path.name for path in directory.iterdir()} == {"image.raw", "vmlinuz", "initrd"}
    return directory / "image.raw"


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount disk images, read-only; they are unmounted when the test is done."""
    there: list[Path] = []

    def mount(image: Path, *, options: str = "loop,ro") -> Path:
        target = tmp_path / f"mounted-{len(there)}"
        target.mkdir()
        call("mount", "-o", options, image, target)
        there.append(target)
        return target

    yield mount
    for target in reversed(there):
        roots.unmount(target)


def test_two_guests_from_the_image_of_mmdebstrap(
    disk: Path,
    mounted: Callable[..., Path],
    network: Network,
    new_guest: Callable[..., Guest],
    tmp_path: Path,
) -> None:
    """Clean boots, two agents; the image has our defaults, and nothing is left in it."""
    root = mounted(disk)
    assert (root / "etc/byteor/firstboot.yaml").read_text() == DEFAULTS
    assert images.left_in(root) == ""
    with ControlPlane(tmp_path / "plane", host=network.plane_address) as plane:
        layer = roots.new_layer(tmp_path / "baked", [root])
        found = images.two_hosts(layer, new_guest, plane, tmp_path / "mm")
    assert all(len(set(column)) == 2 for column in zip(*found))


def test_virt_customize(
    disk: Path, package: Path, defaults: Path, mounted: Callable[..., Path], tmp_path: Path
) -> None:
    """On an image of another builder, with emulated processors; leftovers are removed."""
    needs("virt-customize")
    image = tmp_path / "image.raw"
    call("cp", "--sparse=always", disk, image)
    writable = mounted(image, options="loop")
    for name in ("etc/machine-id", "var/lib/systemd/random-seed"):
        (writable / name).write_text("f" * 32 + "\n")
    call("umount", writable)
    kernel = next((roots.base_root("bookworm", kernel=True) / "boot").glob("vmlinuz-*"))
    version = kernel.name.removeprefix("vmlinuz-")
    Path("/lib/modules").mkdir(exist_ok=True)  # supermin looks at it, whatever it is told
    env = {
        "LIBGUESTFS_BACKEND": "direct",
        "LIBGUESTFS_BACKEND_SETTINGS": "force_tcg",
        "LIBGUESTFS_CACHEDIR": str(tmp_path),
        "SUPERMIN_KERNEL": str(kernel),
        "SUPERMIN_KERNEL_VERSION": version,
        "SUPERMIN_MODULES": str(kernel.parents[1] / "lib/modules" / version),
    }
    said = call(RECIPES / "virt-customize", image, package, defaults, env=env)
    assert "Finishing off" in said
    assert images.left_in(mounted(image)) == ""


def mkosi_root() -> Path:
    """A root with mkosi 24 in it, cached beside the base roots: it needs a newer systemd."""
    root = roots.cache_directory() / "mkosi-24"
    if not root.exists():
        building = root.with_name("mkosi-24.building")
        shutil.rmtree(building, ignore_errors=True)
        include = "mkosi,debian-archive-keyring,e2fsprogs,apt-utils,ca-certificates,cpio"
        options = [
            "--mode=root", "--variant=apt", "--format=directory", f"--include={include}",
            '--aptopt=APT::Install-Recommends "false"',
            '--aptopt=APT::Default-Release "bookworm-backports"',
        ]  # fmt: skip
        suites = [f"deb {host.mirror()} bookworm{suite} main" for suite in ("", "-backports")]
        call("nice", "mmdebstrap", *options, "", building, *suites)
        building.rename(root)
    return root


def test_mkosi(package: Path, defaults: Path, mounted: Callable[..., Path], tmp_path: Path) -> None:
    """In a root of its own, from this machine's mirror; nothing is left in the disk that it makes."""
    needs("mmdebstrap", "systemd-nspawn")
    root = roots.mount(roots.new_layer(tmp_path / "tools", [mkosi_root()]))
    try:
        bake = root / "bake"
        shutil.copytree(RECIPES / "mkosi", bake)
        for path in (package, defaults, RECIPES / "provision"):
            shutil.copy(path, bake)
        sources = bake / "mkosi.pkgmngr/etc/apt/sources.list.d/mkosi.sources"
        sources.parent.mkdir(parents=True)
        sources.write_text(
            f"Types: deb\nURIs: {host.mirror()}\nSuites: bookworm\nComponents: main\n"
            "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
        )
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
        said = call(
            "systemd-nspawn", "--quiet", "--directory", root, "--register=no", "--keep-unit",
            "--capability=all", "--resolv-conf=off", "--chdir=/bake", "--pipe", "mkosi", "build",
        )  # fmt: skip
        assert "safe to image" in said
        [image] = bake.glob("image*.raw")
        table = json.loads(call("sfdisk", "--json", image))["partitiontable"]
        offset = max(table["partitions"], key=lambda part: part["size"])["start"] * 512
        left = images.left_in(mounted(image, options=f"loop,ro,offset={offset}"))
        assert left == ""
    finally:
        roots.unmount(root)


@pytest.fixture
def packer(package: Path, defaults: Path, tmp_path: Path) -> list[str]:
    """The recipe's directory as a builder copies it, and its variables."""
    needs("packer")
    shutil.copytree(RECIPES, tmp_path / "recipes")
    (tmp_path / "recipes/packer/plugins.pkr.hcl").unlink()  # the plugin is built in before 1.7
    found = [f"package={package}", f"defaults={defaults}"]
    return [word for value in found for word in ("-var", value)]


def test_packer_accepts_the_template(packer: list[str], tmp_path: Path) -> None:
    """Without asking for the image that it starts from."""
    base = ["-var", "base_checksum=none", "-var", f"base_url=file://{tmp_path}/base.qcow2"]
    call("packer", "validate", *packer, *base, ".", cwd=tmp_path / "recipes/packer")


def test_packer_runs_the_shared_script(
    packer: list[str],
    disk: Path,
    package: Path,
    defaults: Path,
    mounted: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """Through the null builder, in a chroot in place of a virtual machine."""
    root = roots.mount(roots.new_layer(tmp_path / "layer", [mounted(disk)]))
    try:
        (root / "etc/machine-id").write_text("f" * 32 + "\n")
        (root / "boot/efi/loader").mkdir(parents=True)  # of systemd-boot, which this image has not
        (root / "boot/efi/loader/random-seed").write_bytes(bytes(32))
        (root / "bake").mkdir()
        for path in (package, defaults, RECIPES / "provision"):
            shutil.copy(path, root / "bake")
        words = f"chroot {root} sh /bake/provision /bake/{package.name} /bake/{defaults.name}"
        (tmp_path / "null.pkr.hcl").write_text(
            'source "null" "here" {\n  communicator = "none"\n}\n'
            'build {\n  sources = ["source.null.here"]\n'
            f'  provisioner "shell-local" {{\n    inline = ["{words}"]\n  }}\n}}\n'
        )
        assert "safe to image" in call("packer", "build", tmp_path / "null.pkr.hcl")
        assert images.left_in(root) == ""
    finally:
        roots.unmount(root)


def test_the_container_of_buildah_runs_the_agent(
    package: Path, network: Network, tmp_path: Path
) -> None:
    """As its one user, with its identity in the environment; heartbeats arrive."""
    needs("buildah")
    storage = tmp_path / "storage.conf"
    storage.write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{tmp_path}/graph"\nrunroot = "{tmp_path}/run"\n'
    )
    env = {"CONTAINERS_STORAGE_CONF": str(storage), "BUILDAH_ISOLATION": "chroot"}
    base = call("buildah", "from", "scratch", env=env).strip()
    call("buildah", "copy", "--quiet", base, roots.base_root("bookworm"), "/", env=env)
    call("buildah", "commit", "--quiet", "--rm", base, "localhost/base", env=env)
    said = call(RECIPES / "buildah", package, "localhost/agent", "localhost/base", env=env)
    assert "safe to image" in said
    with ControlPlane(tmp_path / "plane", host=network.plane_address) as plane:
        elsewhere = Host(tmp_path / "elsewhere", plane)
        elsewhere.defaults()
        elsewhere.token(elsewhere.mint())
        assert elsewhere.run().code == 0
        assert elsewhere.call("byteor-firstboot", "unseal").code == 0
        handed = json.loads(elsewhere.path("run/byteor-agent/handover.json").read_text())
        given = {
            "BYTEOR_API_BASE_URL": handed["api_base_url"],
            "BYTEOR_AGENT_ID": handed["agent_id"],
            "BYTEOR_AGENT_API_KEY": handed["api_key"],
        }
        container = call("buildah", "from", "localhost/agent", env=env).strip()
        settings = tmp_path / "settings.yaml"
        settings.write_text(
            json.dumps({"ca_certificates": plane.ca_pem, "heartbeat_interval_s": hosts.PERIOD_S})
        )
        call("buildah", "copy", container, settings, "/etc/byteor/firstboot.yaml", env=env)
        variables = [word for name, value in given.items() for word in ("--env", f"{name}={value}")]
        agent = subprocess.Popen(
            ["buildah", "run", *variables, container, "--", "byteor-agent", "run"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, **env},
        )  # fmt: skip
        try:
            beats = plane.wait_for(lambda: plane.requests("heartbeat"), limit_s=60)
        finally:
            agent.terminate()
            said, _ = agent.communicate(timeout=30)
        assert beats, said
