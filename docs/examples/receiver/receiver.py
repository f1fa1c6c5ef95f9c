"""A receiver of mailhook's webhooks with the standard library alone.

    WEBHOOK_SECRET=whsec_... PORT=8000 python3 receiver.py
"""

import base64
import hashlib
import hmac
import json
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


# begin verify
def key_of(secret):
    """Return the key bytes that a secret stands for."""
    if secret.startswith("whsec_"):
        key = base64.b64decode(secret[len("whsec_"):], validate=True)
    else:
        key = secret.encode("utf-8")
    if not key:
        raise ValueError("the secret is empty")
    return key


def verify(key, headers, body, now):
    """Raise ValueError unless the request was signed with the key within five minutes of now.

    The body is the bytes as received, before any JSON parser.
    """
    msg_id = headers.get("webhook-id")
    sent_at = headers.get("webhook-timestamp")
    signatures = headers.get("webhook-signature")
    if not (msg_id and sent_at and signatures):
        raise ValueError("a webhook header is missing")
    if not sent_at.isdigit():
        raise ValueError("webhook-timestamp is not a number")
    if abs(now - int(sent_at)) > 300:
        raise ValueError("webhook-timestamp is more than five minutes off")
    signed = msg_id.encode() + b"." + sent_at.encode() + b"." + body
    want = b"v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest())
    if not any(hmac.compare_digest(s.encode(), want) for s in signatures.split()):
        raise ValueError("no signature matches")
# end verify


class Receiver(BaseHTTPRequestHandler):
    timeout = 15
    key = b""

    def do_POST(self):
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > 1 << 20:
            return self.answer(400, "the body cannot be read")
        body = self.rfile.read(int(length))
        try:
            verify(self.key, self.headers, body, time.time())
        except ValueError as err:
            return self.answer(401, str(err))
        try:
            event = json.loads(body)
        except ValueError:
            return self.answer(400, "the body is not JSON")
        # Here: store the event under its id, ignore an id that is stored already, work on it later.
        print(event["id"], event["type"], flush=True)
        self.answer(204)

    def answer(self, status, text=""):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args):
        pass


if __name__ == "__main__":
    Receiver.key = key_of(os.environ.get("WEBHOOK_SECRET", ""))
    address = ("127.0.0.1", int(os.environ.get("PORT", "8000")))
    ThreadingHTTPServer(address, Receiver).serve_forever()
