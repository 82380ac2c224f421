"""The seven sources: what each holds, which token counts, what a broken place stops, and whose
files are trusted.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from pathlib import Path
from typing import Any, Callable

import pytest

from firstboot.base.errors import ByteorError, Invalid, LocalFault
from firstboot.base.layout import Layout
from firstboot.base.secret import Secret
from firstboot.provision.sources import Found, Inputs, Rank, gather
from firstboot.provision.tokens import TokenClass

TOKENS = {rank: f"bet_canary_{rank.name.lower()}_0123456789" for rank in Rank}
ADDRESS = {rank: f"https://{rank.name.lower().replace('_', '-')}.example" for rank in Rank}
DROP_PLACE = "/run/byteor-firstboot/settings.yaml"


def mapping(rank: Rank, **more: Any) -> dict[str, Any]:
    return {"enrollment_token": TOKENS[rank], "api_base_url": ADDRESS[rank], **more}


def block(values: dict[str, Any]) -> str:
    return (
        "#cloud-config\n#byteor-firstboot:\n"
        + "".join(f"#  {key}: {value}\n" for key, value in values.items())
        + "{}\n"
    )


class Tree:
    """A host's files below one directory, and what the caller hands in."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root)
        self.inputs: dict[str, Any] = {}
        self.classes: dict[str, TokenClass] = {}

    def write(self, path: str, content: str | bytes, mode: int = 0o600) -> Path:
        target = self.layout.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        target.chmod(mode)
        return target

    def user_data(self, content: str | bytes, name: str = "user-data.txt") -> Path:
        """As cloud-init lays it out: the instance is an absolute link."""
        link = self.layout.root / "var/lib/cloud/instance"
        if not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to("/var/lib/cloud/instances/i-1")
        return self.write(f"/var/lib/cloud/instances/i-1/{name}", content)

    def credential(self, name: str, content: str) -> None:
        self.write(f"/run/credentials/unit/{name}", content, 0o400)
        self.inputs["credentials"] = self.layout.root / "run/credentials/unit"

    def put(self, rank: Rank, content: str | None = None) -> None:
        """Fill the place of `rank` with its own token (and address, where it has one), or with
        `content`.
        """
        whole = content if content is not None else json.dumps(mapping(rank))
        bare = content if content is not None else TOKENS[rank] + "\n"
        if rank is Rank.TOKEN_FILE:
            self.inputs["token_file"] = str(self.write("/given/token", bare))
        elif rank is Rank.CREDENTIAL:
            self.credential("byteor.firstboot", whole)
        elif rank is Rank.DROP_PLACE:
            self.write(DROP_PLACE, whole)
        elif rank is Rank.USER_DATA:
            self.user_data("#cloud-config\nbyteor: " + whole)
        elif rank is Rank.VENDOR_DATA:
            self.user_data("#cloud-config\nbyteor: " + whole, "vendor-data.txt")
        elif rank is Rank.ETC_TOKEN:
            self.write("/etc/byteor/enrollment-token", bare)
        elif rank is Rank.ENVIRONMENT:
            self.inputs["environ"] = {
                "BYTEOR_API_BASE_URL": content if content is not None else ADDRESS[rank]
            }
        else:
            self.write(
                "/etc/byteor/firstboot.yaml",
                content or json.dumps({"api_base_url": ADDRESS[rank]}),
                0o644,
            )

    def gather(self, layout: Layout | None = None, *, tighten: bool = False) -> Found:
        def classify(token: Secret) -> TokenClass:
            return self.classes.get(token.reveal(), TokenClass.FRESH)

        return gather(
            layout or self.layout, Inputs(**self.inputs), classify=classify, tighten=tighten
        )


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "root")


HOLDING = [rank for rank in Rank if rank not in (Rank.ENVIRONMENT, Rank.IMAGE)]


def test_nothing_anywhere_is_nothing(tree: Tree) -> None:
    """A bare host: no token, no settings, no error."""
    found = tree.gather()
    assert (
        found.token is None
        and found.tokens == ()
        and found.settings.api_base_url is None
        and found.warnings == ()
    )


@pytest.mark.parametrize("rank", HOLDING, ids=lambda rank: rank.name)
def test_each_source_gives_its_token(tree: Tree, rank: Rank) -> None:
    """Alone, with the image's address beneath where the source has none of its own."""
    tree.put(rank)
    tree.put(Rank.IMAGE)
    found = tree.gather()
    assert found.token == Secret(TOKENS[rank])
    assert found.source is not None and found.source.rank is rank
    bare = rank in (Rank.TOKEN_FILE, Rank.ETC_TOKEN)
    assert found.settings.api_base_url == ADDRESS[Rank.IMAGE if bare else rank]


@pytest.mark.parametrize("first", HOLDING, ids=lambda rank: rank.name)
def test_the_highest_fresh_token_counts_and_every_token_is_seen(tree: Tree, first: Rank) -> None:
    """With every source from `first` down filled; what a lower one says of the address is ignored
    with a warning.
    """
    for rank in Rank:
        if rank >= first:
            tree.put(rank)
    found = tree.gather()
    assert found.token == Secret(TOKENS[first])
    assert {token.reveal() for _, token in found.tokens} == {
        TOKENS[rank] for rank in HOLDING if rank >= first
    }
    bare = first in (Rank.TOKEN_FILE, Rank.ETC_TOKEN)
    assert found.settings.api_base_url == ADDRESS[Rank.ENVIRONMENT if bare else first]
    with_address = {Rank.CREDENTIAL, Rank.DROP_PLACE, Rank.USER_DATA, Rank.VENDOR_DATA}
    assert len(found.warnings) == len([rank for rank in with_address if rank > first])
    assert not any("canary" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("classes", "chosen"),
    [
        ({}, Rank.DROP_PLACE),
        ({Rank.DROP_PLACE: TokenClass.SPENT}, Rank.USER_DATA),
        ({Rank.DROP_PLACE: TokenClass.REFUSED}, Rank.USER_DATA),
        ({Rank.DROP_PLACE: TokenClass.SPENT, Rank.USER_DATA: TokenClass.SPENT}, Rank.ETC_TOKEN),
        (
            {
                Rank.DROP_PLACE: TokenClass.SPENT,
                Rank.USER_DATA: TokenClass.REFUSED,
                Rank.ETC_TOKEN: TokenClass.REFUSED,
            },
            Rank.USER_DATA,
        ),
        (
            dict.fromkeys((Rank.DROP_PLACE, Rank.USER_DATA, Rank.ETC_TOKEN), TokenClass.SPENT),
            Rank.DROP_PLACE,
        ),
    ],
)
def test_fresh_goes_before_refused_and_refused_before_spent(
    tree: Tree, classes: dict[Rank, TokenClass], chosen: Rank
) -> None:
    """A token that a datasource puts back does not hide a new one below it."""
    for rank in (Rank.DROP_PLACE, Rank.USER_DATA, Rank.ETC_TOKEN):
        tree.put(rank)
    tree.classes = {TOKENS[rank]: kind for rank, kind in classes.items()}
    found = tree.gather()
    assert found.source is not None and found.source.rank is chosen
    assert len(found.tokens) == 3


def test_the_bare_credential_goes_with_the_mapping_beside_it(tree: Tree) -> None:
    """One source: token from the one, address from the other, nothing to warn of."""
    tree.credential("byteor.enrollment-token", TOKENS[Rank.TOKEN_FILE])
    tree.credential("byteor.firstboot", json.dumps({"api_base_url": ADDRESS[Rank.CREDENTIAL]}))
    tree.put(Rank.IMAGE)
    found = tree.gather()
    assert found.token == Secret(TOKENS[Rank.TOKEN_FILE])
    assert found.settings.api_base_url == ADDRESS[Rank.CREDENTIAL]
    assert found.warnings == ()


def test_a_broken_mapping_beside_the_bare_credential_stops(tree: Tree) -> None:
    """It could have said where the token goes."""
    tree.credential("byteor.enrollment-token", TOKENS[Rank.TOKEN_FILE])
    tree.credential("byteor.firstboot", "api_base_url: [")
    tree.put(Rank.IMAGE)
    with pytest.raises(Invalid, match="byteor.firstboot"):
        tree.gather()


BROKEN = "api_base_url: ["


@pytest.mark.parametrize(
    "rank", [rank for rank in HOLDING if rank not in (Rank.TOKEN_FILE, Rank.ETC_TOKEN)], ids=str
)
def test_a_broken_source_above_the_token_stops_and_one_below_is_a_warning(
    tree: Tree, rank: Rank
) -> None:
    """What ranks above could have redirected the token; what ranks below could not."""
    tree.put(Rank.ETC_TOKEN)
    tree.put(rank, BROKEN)
    with pytest.raises(Invalid):
        tree.gather()
    tree.put(Rank.TOKEN_FILE)
    found = tree.gather()
    assert found.token == Secret(TOKENS[Rank.TOKEN_FILE])
    assert len(found.warnings) == 1


@pytest.mark.parametrize("rank", [Rank.ENVIRONMENT, Rank.IMAGE], ids=str)
def test_a_broken_ground_always_stops(tree: Tree, rank: Rank) -> None:
    """Environment and image lie beneath every source."""
    tree.put(Rank.TOKEN_FILE)
    tree.put(rank, BROKEN if rank is Rank.IMAGE else "http://plane.example")
    with pytest.raises(Invalid):
        tree.gather()


@pytest.mark.parametrize("rank", HOLDING, ids=lambda rank: rank.name)
@pytest.mark.parametrize(
    "token",
    ["bet_short", "bet canary with spaces 0123", "bet_canar\xff_0123456789", "bet_canary" * 500],
)
def test_a_token_of_another_shape_is_invalid_and_not_quoted(
    tree: Tree, rank: Rank, token: str
) -> None:
    """16 to 4096 visible ASCII characters, in every source."""
    bare = rank in (Rank.TOKEN_FILE, Rank.ETC_TOKEN)
    tree.put(rank, token if bare else json.dumps({"enrollment_token": token}))
    with pytest.raises(Invalid) as caught:
        tree.gather()
    assert "bet" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize("content", ["", "\n", " \n\n", "x" * 30, "x" * 30 + "\n"])
@pytest.mark.parametrize("rank", [Rank.TOKEN_FILE, Rank.ETC_TOKEN], ids=str)
def test_an_empty_or_erased_bare_file_is_no_token(tree: Tree, rank: Rank, content: str) -> None:
    """What erasing leaves, and what an empty credential file is."""
    tree.put(rank, content)
    assert tree.gather().token is None


def test_a_token_with_line_ends_around_it_is_the_token(tree: Tree) -> None:
    """`echo`, editors and Windows add them."""
    tree.put(Rank.ETC_TOKEN, f"{TOKENS[Rank.ETC_TOKEN]}\r\n\n")
    assert tree.gather().token == Secret(TOKENS[Rank.ETC_TOKEN])


def test_the_token_on_stdin(tree: Tree) -> None:
    """``--token-file -``: the bytes are handed in, read once, and looked at as often as needed."""
    tree.inputs = {"token_file": "-", "stdin": TOKENS[Rank.TOKEN_FILE].encode() + b"\n"}
    for _ in range(2):
        assert tree.gather().token == Secret(TOKENS[Rank.TOKEN_FILE])


def test_a_token_file_that_is_not_there_is_an_error(tree: Tree) -> None:
    """The caller named it: silence would look like a host without a token."""
    tree.inputs = {"token_file": str(tree.layout.root / "absent")}
    with pytest.raises(Invalid, match="absent"):
        tree.gather()


def test_only_one_name_of_the_environment_is_read(tree: Tree) -> None:
    """No token, no id and no other address comes from there."""
    names = ("ENROLLMENT", "ENROLLMENT_TOKEN", "ORG_ID", "NAME", "PROXY")
    tree.inputs["environ"] = {
        "BYTEOR_API_BASE_URL": "https://here.example/api/v1",
        **{f"BYTEOR_{name}": "x" for name in names},
    }
    found = tree.gather()
    assert found.settings.api_base_url == "https://here.example"
    assert found.token is None and found.settings.org_id is None and found.settings.proxy is None


def test_the_environment_goes_before_the_image(tree: Tree) -> None:
    """Rank 6 above rank 7."""
    tree.put(Rank.ENVIRONMENT)
    tree.put(Rank.IMAGE)
    assert tree.gather().settings.api_base_url == ADDRESS[Rank.ENVIRONMENT]


def test_another_file_in_place_of_the_images(tree: Tree, tmp_path: Path) -> None:
    """``--config FILE`` is read in its place, through links, and must be there; its own values are
    what re-freezes.
    """
    tree.put(Rank.IMAGE)
    (tmp_path / "real.yaml").write_text("api_base_url: https://given.example")
    (tmp_path / "given.yaml").symlink_to("real.yaml")
    tree.inputs["config"] = tmp_path / "given.yaml"
    found = tree.gather()
    assert found.settings.api_base_url == "https://given.example" == found.image["api_base_url"]
    tree.inputs["config"] = tmp_path / "absent.yaml"
    with pytest.raises(Invalid, match="absent.yaml"):
        tree.gather()
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    tree.inputs["config"] = tmp_path / "loop.yaml"
    with pytest.raises(ByteorError, match="loop.yaml"):
        tree.gather()


# -- whose files are trusted

SPOIL: dict[str, Callable[[Path], object]] = {
    "readable by others": lambda path: path.chmod(0o644),
    "readable by the group": lambda path: path.chmod(0o640),
    "a hard link": lambda path: os.link(path, path.with_name("other")),
    "a symbolic link": lambda path: (
        path.rename(path.with_name("other")),
        path.symlink_to("other"),
    ),
    "a FIFO": lambda path: (path.unlink(), os.mkfifo(path, 0o600)),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("spoil", SPOIL)
@pytest.mark.parametrize(
    "place", ["/given/token", DROP_PLACE, "/etc/byteor/enrollment-token", "user data"]
)
def test_a_secret_is_read_from_a_private_regular_file_with_one_name(
    tree: Tree, place: str, spoil: str
) -> None:
    """Anything else is said, with the path, and is not used; but write_files makes a file 0644."""
    if place == DROP_PLACE and spoil.startswith("readable"):
        pytest.skip("see test_a_drop_file_that_others_could_only_read_is_tightened")
    ranks = {
        "/given/token": Rank.TOKEN_FILE,
        DROP_PLACE: Rank.DROP_PLACE,
        "user data": Rank.USER_DATA,
    }
    tree.put(ranks.get(place, Rank.ETC_TOKEN))
    path = "/var/lib/cloud/instances/i-1/user-data.txt" if place == "user data" else place
    SPOIL[spoil](tree.layout.root / path.lstrip("/"))
    with pytest.raises(LocalFault) as caught:
        tree.gather()
    assert path.rsplit("/", 1)[1] in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a file of another owner")
@pytest.mark.parametrize(
    "rank", [Rank.TOKEN_FILE, Rank.DROP_PLACE, Rank.USER_DATA, Rank.ETC_TOKEN], ids=str
)
def test_a_secret_of_another_owner_is_not_read(tree: Tree, rank: Rank) -> None:
    """Who owns it could have chosen where the host enrolls."""
    tree.put(rank)
    for path in tree.layout.root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            os.chown(path, 12345, 12345)
    with pytest.raises(LocalFault, match="12345"):
        tree.gather()


def test_the_drop_place_is_tightened_and_never_shared(tree: Tree) -> None:
    """cloud-init makes the directory 0755: it becomes 0700; one that others may write in is
    refused.
    """
    tree.put(Rank.DROP_PLACE)
    directory = tree.layout.drop_place.parent
    directory.chmod(0o755)
    assert tree.gather().token is not None
    assert directory.stat().st_mode & 0o777 == 0o755, "whoever only looks writes nothing"
    assert tree.gather(tighten=True).token is not None
    assert directory.stat().st_mode & 0o777 == 0o700
    directory.chmod(0o777)
    with pytest.raises(LocalFault, match="written by others"):
        tree.gather(tighten=True)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o444])
def test_a_drop_file_that_others_could_only_read_is_tightened(
    tree: Tree, mode: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """As write_files makes it without `permissions`: used, made private by `run`, and said."""
    tree.put(Rank.DROP_PLACE)
    path = tree.layout.drop_place
    path.chmod(mode)
    assert tree.gather().token is not None
    assert path.stat().st_mode & 0o777 == mode
    assert tree.gather(tighten=True).token is not None
    assert path.stat().st_mode & 0o077 == 0
    said = capsys.readouterr().err
    assert "could read the token" in said and TOKENS[Rank.DROP_PLACE] not in said


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_drop_file_that_others_could_write_is_never_used(tree: Tree, mode: int) -> None:
    """They could have chosen where the host enrolls: the hint names what to write in user data."""
    tree.put(Rank.DROP_PLACE)
    tree.layout.drop_place.chmod(mode)
    with pytest.raises(LocalFault, match="written by others") as caught:
        tree.gather(tighten=True)
    assert "permissions: '0600'" in str(caught.value.hint)
    assert tree.layout.drop_place.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_defaults_that_others_may_write_are_refused(tree: Tree, mode: int) -> None:
    """As sshd and sudo do: they name what root runs, and where a token goes."""
    tree.put(Rank.IMAGE)
    tree.layout.image_defaults.chmod(mode)
    with pytest.raises(LocalFault, match="written by others") as caught:
        tree.gather()
    assert caught.value.hint


# -- user data as cloud-init stored it

VALUES = mapping(Rank.USER_DATA)
AS_MIME = MIMEMultipart()
AS_MIME.attach(MIMEText("#!/bin/sh\n", "x-shellscript"))
AS_MIME.attach(MIMEText(block(VALUES), "cloud-config", "utf-8"))
STORED = {
    "plain": block(VALUES).encode(),
    "gzip": gzip.compress(block(VALUES).encode()),
    "MIME": AS_MIME.as_bytes(),
    "base64": base64.b64encode(block(VALUES).encode()),
}


@pytest.mark.parametrize("form", STORED)
def test_stored_user_data_is_read_as_it_was_received(tree: Tree, form: str) -> None:
    """``user-data.txt`` keeps what the platform sent, packed or not; the absolute instance link
    stays in the root.
    """
    tree.user_data(STORED[form])
    found = tree.gather()
    assert found.token == Secret(TOKENS[Rank.USER_DATA])
    assert found.settings.api_base_url == ADDRESS[Rank.USER_DATA]


def test_what_an_include_fetched_is_read_from_the_processed_form(tree: Tree) -> None:
    """Only ``user-data.txt.i`` has it; what was received goes first where it says something
    itself.
    """
    tree.user_data("#include\nhttps://seed.example/byteor\n")
    tree.user_data(AS_MIME.as_bytes(), "user-data.txt.i")
    assert tree.gather().token == Secret(TOKENS[Rank.USER_DATA])
    tree.user_data(block(mapping(Rank.USER_DATA, enrollment_token="x" * 30)))
    assert tree.gather().token is None, "erased: the processed form must not bring it back"


def test_vendor_data_is_another_source_and_its_second_file_goes_first(tree: Tree) -> None:
    """In cloud-init's own order of precedence; below user data, whose address it cannot change."""
    tree.user_data(block(mapping(Rank.VENDOR_DATA)), "vendor-data.txt")
    tree.user_data(block({**VALUES, "name": "second"}), "vendor-data2.txt")
    found = tree.gather()
    assert found.source is not None and found.source.rank is Rank.VENDOR_DATA
    assert (found.token, found.settings.name) == (Secret(TOKENS[Rank.USER_DATA]), "second")
    tree.user_data(block(mapping(Rank.USER_DATA, enrollment_token="bet_of_the_user_0123456789")))
    tree.user_data(block(mapping(Rank.VENDOR_DATA)), "vendor-data2.txt")
    found = tree.gather()
    assert found.token == Secret("bet_of_the_user_0123456789")
    assert found.settings.api_base_url == ADDRESS[Rank.USER_DATA]
    assert [warning for warning in found.warnings if "vendor data" in warning]


def test_the_write_files_form_is_one_token_in_two_places_without_a_warning(tree: Tree) -> None:
    """cloud-init put it into the drop place; user data still has it."""
    entry = {"path": DROP_PLACE, "permissions": "0600", "content": json.dumps(VALUES)}
    tree.user_data("#cloud-config\n" + json.dumps({"write_files": [entry]}))
    tree.write(DROP_PLACE, json.dumps(VALUES))
    found = tree.gather()
    assert found.source is not None and found.source.rank is Rank.DROP_PLACE
    assert len(found.tokens) == 2 and {token.reveal() for _, token in found.tokens} == {
        TOKENS[Rank.USER_DATA]
    }
    assert found.warnings == ()


class Running(Layout):
    """A tree that passes for the running host: there it matters whether cloud-init ran in this
    boot.
    """

    @property
    def is_host(self) -> bool:
        return True

    @property
    def owner(self) -> int:
        return os.geteuid()

    def path(self, absolute: str, *, follow: bool = False) -> Path:
        return self.root / absolute.lstrip("/")


@pytest.mark.parametrize(
    ("evidence", "counts"),
    [
        ((), False),
        (("disabled", "cloud-init-generator.log", "ds-identify.log"), False),
        (("enabled", "ds-identify.log"), False),
        ((".instance-id",), True),
        (("instance-data.json", "enabled"), True),
    ],
)
def test_user_data_counts_only_if_cloud_init_ran_in_this_boot(
    tree: Tree, evidence: tuple[str, ...], counts: bool
) -> None:
    """The instance link outlives a detached seed; what the stages write on tmpfs does not."""
    instances = tree.layout.root / "var/lib/cloud/instances/i-1"
    tree.write("/var/lib/cloud/instances/i-1/user-data.txt", block(VALUES))
    (instances.parents[1] / "instance").symlink_to("instances/i-1")
    for name in evidence:
        tree.write(f"/run/cloud-init/{name}", "i-1\n", 0o644)
    tree.put(Rank.ETC_TOKEN)
    expected = Rank.USER_DATA if counts else Rank.ETC_TOKEN
    assert tree.gather(Running(tree.layout.root)).token == Secret(TOKENS[expected])
