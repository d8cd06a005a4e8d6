"""The page's server, made of the standard library's. It listens on this machine only and asks for a secret token.

A page of another site, open in the same browser, can send requests here. It does not know the token, and its Origin is
another one. If its name is made to point to this machine (DNS rebinding), its Host is another one. All three are
checked. Texts are sent as JSON, never as HTML. Left out: HTTPS and passwords, since nothing leaves the machine.
"""

import hmac
import json
import os
import secrets
import socketserver
import sys
import traceback
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from minift.errors import MiniftError
from minift.text.jsonl import parse_line

HOST = "127.0.0.1"
# In bytes: the largest request that is accepted, and the most that is read of a refused one.
LARGEST_BODY, MOST_DRAINED = 64 * 1024, 4 * 1024 * 1024
PAGE_POLICY = (
    "default-src 'none'; script-src 'nonce-{0}'; style-src 'nonce-{0}'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'")
DATA_POLICY = "default-src 'none'; frame-ancestors 'none'"


class Server(socketserver.ThreadingTCPServer):
    """Serves one Work on a port of this machine; 0 is any free port. serve_forever() starts it, shutdown() stops it."""

    daemon_threads = True
    # On Windows this would allow two programs to use one port.
    allow_reuse_address = os.name != "nt"
    request_queue_size = 32

    def __init__(self, work, port=0):
        self.work, self.token = work, secrets.token_urlsafe(32)
        self.page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
        try:
            super().__init__((HOST, port), Handler)
        except OSError as error:
            raise MiniftError(
                f"cannot listen on port {port}: {error.strerror}; take another, or --port 0 for any free "
                "one") from error
        self.hosts = {f"{name}:{self.server_address[1]}" for name in (HOST, "localhost")}
        # Browsers leave out the port 80.
        if self.server_address[1] == 80:
            self.hosts |= {HOST, "localhost"}

    def url(self, annotator=None):
        """The address of the page, with the token and, where given, the name of a person."""
        letters = annotator.encode() if annotator else b""
        name = "".join(chr(byte) if chr(byte).isalnum() and byte < 128 else f"%{byte:02X}" for byte in letters)
        return f"http://{HOST}:{self.server_address[1]}/?token={self.token}{'&name=' if name else ''}{name}"

    def handle_error(self, request, client_address):
        """A browser that closes the connection is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class Refused(Exception):
    """A request that is refused: the status and the reason."""

    def __init__(self, status, reason):
        super().__init__(reason)
        self.status = status


class Handler(BaseHTTPRequestHandler):
    """One request. The sender is checked first, then the path and the body."""

    server_version, sys_version = "minift", ""
    # Seconds without data, after which the connection is closed.
    timeout = 30
    # Whether the body has not been read yet.
    unread = True

    def do_GET(self):
        self.reply({"/": self.page, "/setup": lambda: self.server.work.setup()})

    def do_POST(self):
        work = self.server.work
        self.reply({
            "/state": lambda: work.state(**self.body("annotator")),
            "/answer": lambda: work.answer(**self.body("annotator", "identity", "value", "seconds")),
            "/undo": lambda: work.undo(**self.body("annotator", "last"))})

    def reply(self, routes):
        """Answer with what the path's function returns: an object, sent as JSON, or None when it has sent a page."""
        try:
            self.check_sender()
            route = routes.get(self.path.partition("?")[0])
            if route is None:
                raise Refused(404, "there is nothing at this address")
            answer = route()
            if answer is not None:
                self.send(200, answer)
        except Refused as refusal:
            self.drain()
            self.send(refusal.status, {"error": str(refusal)})
        except MiniftError as error:
            self.send(400, {"error": str(error)})
        # The browser has closed the connection, or sends nothing.
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:
            traceback.print_exc()
            self.send(500, {"error": f"a mistake in the program: {error!r:.200}; nothing was saved"})

    def check_sender(self):
        """Raises Refused unless Host, Origin (if there is one) and token are right."""
        hosts, origins = self.headers.get_all("Host", []), self.headers.get_all("Origin", [])
        if len(hosts) != 1 or hosts[0].lower() not in self.server.hosts:
            raise Refused(403, "foreign Host")
        if any(origin.lower() not in {f"http://{host}" for host in self.server.hosts} for origin in origins):
            raise Refused(403, "foreign Origin")
        token = self.headers.get("X-Token", "")
        # The printed address has the token in its query.
        if self.command == "GET":
            fields = dict(part.partition("=")[::2] for part in self.path.partition("?")[2].split("&"))
            token = token or fields.get("token", "")
        if not hmac.compare_digest(token.encode("utf-8", "replace"), self.server.token.encode()):
            raise Refused(403, "wrong or missing token; open the address that the command printed when it was started")

    def body(self, *keys):
        """The request's JSON object; it must have exactly these keys."""
        size = self.size()
        if size is None or self.headers.get("Transfer-Encoding"):
            raise Refused(411, "the request does not say how long it is")
        if size > LARGEST_BODY:
            raise Refused(413, f"more than {LARGEST_BODY // 1024} KB; write less")
        self.unread = False
        values = parse_line(self.rfile.read(size), "the request")
        if values.keys() != set(keys):
            raise MiniftError(f"the request: expected the keys {', '.join(keys)}; got {', '.join(values) or 'none'}")
        return values

    def size(self):
        """The announced number of bytes of the body; None when it is missing, or not in plain digits."""
        size = self.headers.get("Content-Length", "")
        return int(size) if size.isascii() and size.isdigit() and len(size) < 16 else None

    def drain(self):
        """Read the rest of a refused request, up to a limit. Otherwise the browser would lose the reply."""
        left = min(self.size() or 0, MOST_DRAINED) if self.unread else 0
        while left > 0 and (data := self.rfile.read1(min(left, LARGEST_BODY))):
            left -= len(data)

    def page(self):
        """Send the page. Only a random number is put into it, which lets its own scripts run and no others."""
        nonce = secrets.token_urlsafe(16)
        text = self.server.page.replace("{nonce}", nonce)
        self.send(200, text, "text/html", PAGE_POLICY.format(nonce))

    def send(self, status, content, kind="application/json", policy=DATA_POLICY):
        """Send an object as JSON, or a text as it is."""
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        headers = {
            "Content-Type": f"{kind}; charset=utf-8", "Content-Length": len(data), "Cache-Control": "no-store",
            "Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer", "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin"}
        for name, value in headers.items():
            self.send_header(name, str(value))
        if status == 405:
            self.send_header("Allow", "GET, POST")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def send_error(self, code, message=None, explain=None):
        """Called by the standard library for malformed requests, and for methods that have no do_ function here."""
        code = 405 if code == 501 else code
        self.send(code, {"error": message or "bad request"})

    def log_message(self, form, *args):
        """Print nothing, because the addresses hold the token."""
