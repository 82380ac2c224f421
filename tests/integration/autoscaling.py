"""What surrounds an autoscaling group: signed instance identities and a broker with its store."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.boot.ec2 import MetadataService

TOP = Path(__file__).resolve().parents[2]
SECRET = "byteor/tokens"
STORE = (
    "import signal; from moto.server import ThreadedMotoServer as Server;"
    "server = Server('127.0.0.1', 0, verbose=False); server.start();"
    "print(server.get_host_and_port()[1], flush=True); signal.pause()"
)
CREATE = (
    "import boto3, sys; boto3.client('secretsmanager')"
    f".create_secret(Name='{SECRET}', SecretString=sys.argv[1])"
)


class SignedIdentity(MetadataService):
    """A metadata service that also has a signed identity document, as EC2 at `rsa2048`."""

    signed = b""

    def answer(self, path: str) -> bytes | None:
        return self.signed if path.endswith("/instance-identity/rsa2048") else super().answer(path)


class Signer:
    """A key and its certificate in `place`; signs documents as the platform does."""

    def __init__(self, place: Path) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("openssl is not on this machine (Debian: apt-get install openssl)")
        place.mkdir(exist_ok=True)
        self._key, self.certificate = place / "key.pem", place / "certificate.pem"
        words = ["-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test", "-days", "2"]
        self._openssl("req", *words, "-keyout", self._key, "-out", self.certificate)

    def sign(self, document: bytes) -> bytes:
        """Return the document in PKCS #7: base64 without the lines around it."""
        words = ["-sign", "-nodetach", "-binary", "-outform", "PEM", "-signer", self.certificate]
        pem = self._openssl("smime", *words, "-inkey", self._key, document=document)
        return b"\n".join(pem.splitlines()[1:-1])

    def _openssl(self, *words: object, document: bytes = b"") -> bytes:
        command = ["openssl", *map(str, words)]
        return subprocess.run(command, input=document, capture_output=True, check=True).stdout


@contextmanager
def broker(
    address: str, place: Path, *, certificate: Path, tokens: Sequence[str], settings: str
) -> Iterator[str]:
    """Run the broker over a Secrets Manager that moto stands in for; yields the broker's URL."""
    pytest.importorskip("moto")
    (place / "settings").write_text(settings)
    with ExitStack() as stack:
        port = _port_of(stack, "-c", STORE, env=os.environ)
        environ = {
            **os.environ,
            "HOME": str(place),
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_DEFAULT_REGION": "eu-central-1",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }
        stock = json.dumps({"tokens": list(tokens), "given": {}})
        subprocess.run([sys.executable, "-c", CREATE, stock], env=environ, check=True)
        given = [address, str(certificate), SECRET, str(place / "settings")]
        port = _port_of(stack, "-m", "tests.integration.broker", *given, env=environ)
        yield f"http://{address}:{port}"


def _port_of(stack: ExitStack, *words: str, env: Mapping[str, str]) -> str:
    """Start a process that lives as long as `stack`, and return the port that it prints."""
    process = subprocess.Popen(
        [sys.executable, *words], env=env, text=True, cwd=TOP,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    stack.enter_context(process)
    stack.callback(process.terminate)
    assert process.stdout is not None
    return process.stdout.readline().strip()
