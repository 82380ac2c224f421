"""Hand out one enrollment token per instance: a token broker over AWS Secrets Manager, for tests.

``python -m tests.integration.broker ADDRESS CERTIFICATE SECRET SETTINGS``: POST / takes an
instance's identity document (PKCS #7, base64, as the metadata service gives it), verifies it with
CERTIFICATE, takes one token out of SECRET (JSON: {"tokens": [...], "given": {instance id: token}}),
and answers SETTINGS with it. An instance that asks again gets the same token. Prints its port.
"""

from __future__ import annotations

import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import boto3

ADDRESS, CERTIFICATE, SECRET, SETTINGS = sys.argv[1:]
STORE = boto3.client("secretsmanager")


def verified(document: bytes) -> dict[str, str]:
    """Return the instance's document; CalledProcessError unless CERTIFICATE's owner signed it."""
    verify = ["openssl", "smime", "-verify", "-inform", "PEM", "-noverify", "-nointern"]
    pem = b"-----BEGIN PKCS7-----\n" + document.strip() + b"\n-----END PKCS7-----\n"
    done = subprocess.run(
        [*verify, "-certfile", CERTIFICATE], input=pem, capture_output=True, check=True
    )
    return dict(json.loads(done.stdout))


def take(instance: str) -> str:
    """Move one token from the stock to `instance`; IndexError when there is none."""
    held = json.loads(STORE.get_secret_value(SecretId=SECRET)["SecretString"])
    if instance not in held["given"]:
        held["given"][instance] = held["tokens"].pop()
        STORE.put_secret_value(SecretId=SECRET, SecretString=json.dumps(held))
    return str(held["given"][instance])


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        document = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            token = take(verified(document)["instanceId"])
            status, body = 200, Path(SETTINGS).read_text() + f"\nenrollment_token: {token}\n"
        except subprocess.CalledProcessError:
            status, body = 403, "this is no identity document of ours\n"
        except IndexError:
            status, body = 503, "no token is left\n"
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())


if __name__ == "__main__":
    server = HTTPServer((ADDRESS, 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
