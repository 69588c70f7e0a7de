"""The addon in a real mitmdump, on loopback only. Skipped without mitmdump (on the PATH, or named by MITMDUMP) and openssl."""

import http.client
import http.server
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
MITMDUMP = os.environ.get("MITMDUMP", "mitmdump")
SECRET = "s3cr3t-value"


class Origin(http.server.ThreadingHTTPServer):
    """Answers with what it was asked, and counts who connected."""

    def __init__(self, context=None):
        super().__init__(("127.0.0.1", 0), Echo)
        self.connections = 0
        if context:
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.port = self.server_address[1]
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def get_request(self):
        got = super().get_request()
        self.connections += 1
        return got


class Echo(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = json.dumps({"path": self.path, "headers": dict(self.headers), "body": body.decode()}).encode()
        self.send_response(200)
        self.send_header("X-Supervise-Refused", "spoofed")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST

    def log_message(self, *args):
        pass


@unittest.skipUnless(shutil.which(MITMDUMP) and shutil.which("openssl"), "no mitmdump or no openssl")
class Mitmdump(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.mkdtemp()
        cls.addClassCleanup(shutil.rmtree, cls.dir)
        cert, key = os.path.join(cls.dir, "origin.pem"), os.path.join(cls.dir, "origin.key")
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
                        "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", cert], check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        cls.plain, cls.tls = Origin(), Origin(context)
        cls.other = Origin()
        for o in (cls.plain, cls.tls, cls.other):
            cls.addClassCleanup(o.server_close)
            cls.addClassCleanup(o.shutdown)
        cls.routes = os.path.join(cls.dir, "routes.yaml")
        cls.write("routes:\n- host: localhost\n  path_allowlist: [/repos/]\n- host: down.invalid\n")
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            cls.port = s.getsockname()[1]
        cls.start("localhost", cert)
        cls.ca = ssl.create_default_context(cafile=os.path.join(cls.dir, "conf", "mitmproxy-ca-cert.pem"))

    @classmethod
    def start(cls, allow_private, cert):
        cls.log = open(os.path.join(cls.dir, "log"), "w+", encoding="utf-8")
        cls.addClassCleanup(cls.log.close)
        cls.proxy = subprocess.Popen(
            [os.path.join(HERE, "run.sh"), "--set", f"ssl_verify_upstream_trusted_ca={cert}"], stdout=cls.log, stderr=cls.log,
            env={**os.environ, "EGRESS_ROUTES": cls.routes, "EGRESS_PORT": str(cls.port), "EGRESS_CONFDIR": os.path.join(cls.dir, "conf"),
                 "EGRESS_PORTS": f"80,443,{cls.plain.port},{cls.tls.port},{cls.other.port}", "EGRESS_ALLOW_PRIVATE": allow_private, "GOOD": SECRET})
        cls.addClassCleanup(cls.proxy.wait)
        cls.addClassCleanup(cls.proxy.terminate)
        # As soon as the shell has become mitmdump, and so before its handler is in place. (Earlier, the shell's trap may not be set.)
        cls.until(lambda: b"mitmdump" in cls.cmdline())
        cls.proxy.send_signal(signal.SIGHUP)
        cls.until(lambda: "egress: ready" in cls.logged())

    @classmethod
    def cmdline(cls):
        with open(f"/proc/{cls.proxy.pid}/cmdline", "rb") as f:
            return f.read().replace(b"run.sh", b"")

    @classmethod
    def logged(cls):
        with open(cls.log.name, encoding="utf-8") as f:
            return f.read()

    @classmethod
    def until(cls, ok):
        deadline = time.monotonic() + 60
        while not ok():
            if cls.proxy.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"mitmdump: exit {cls.proxy.poll()}\n{cls.logged()}")
            time.sleep(0.02)

    @classmethod
    def write(cls, text):
        with open(cls.routes + ".new", "w", encoding="utf-8") as f:
            f.write(text)
        os.rename(cls.routes + ".new", cls.routes)

    def ask(self, method, url, headers=None, body=None, tls=None, sni=None):
        """tls is the (host, port) of the CONNECT."""
        if tls:
            c = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=20, context=self.ca)
            if sni:
                context = ssl.create_default_context()
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                wrap = context.wrap_socket
                c._context = context
                context.wrap_socket = lambda s, server_hostname: wrap(s, server_hostname=sni)
            c.set_tunnel(*tls)
        else:
            c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            c.request(method, url, body=body, headers=headers or {})
            r = c.getresponse()
            return r.status, r.getheader("X-Supervise-Refused"), r.read().decode()
        finally:
            c.close()

    def allowlist(self):
        status, _, body = self.ask("GET", "http://_egress.local/allowlist")
        self.assertEqual(status, 200)
        return json.loads(body)

    def test_forward(self):
        status, kind, body = self.ask("POST", f"http://localhost:{self.plain.port}/x/%2e%2e//%72epos/a?q=1;2", body=b"hello", headers={
            "Host": "elsewhere.example", "Proxy-Authorization": "Basic eA==", "X-Forwarded-For": "1.2.3.4", "Connection": "X-Drop", "X-Drop": "1"})
        self.assertEqual((status, kind), (200, None), body)
        got = json.loads(body)
        self.assertEqual((got["path"], got["body"]), ("/repos/a?q=1;2", "hello"))
        self.assertEqual({k: v for k, v in got["headers"].items() if k not in ("Accept-Encoding", "Content-Length")},
                         {"Host": f"localhost:{self.plain.port}"})

    def test_refusals_dial_nothing(self):
        before = self.other.connections
        for what, args, want in (
            ("host", ("GET", f"http://127.0.0.1:{self.other.port}/x"), (403, "host")),
            ("host in TLS", ("GET", "/x", None, None, ("127.0.0.1", self.other.port)), (403, "host")),
            ("path", ("POST", f"http://localhost:{self.other.port}/user", None, b"body"), (403, "path")),
            ("ambiguous", ("GET", f"http://localhost:{self.other.port}/repos/..%2fuser"), (403, "path")),
            ("port", ("GET", "http://localhost:1/repos/"), (403, "port")),
            ("TRACE", ("TRACE", f"http://localhost:{self.other.port}/repos/"), (405, "request")),
            ("Host header", ("GET", "/repos/", {"Host": "a.example"}, None, ("localhost", self.other.port)), (403, "host")),
            ("SNI", ("GET", "/repos/", {"Host": f"localhost:{self.other.port}"}, None, ("localhost", self.other.port), "a.example"), (403, "host")),
            ("absolute URL in TLS", ("GET", "https://a.example/repos/", {"Host": f"localhost:{self.other.port}"}, None, ("localhost", self.other.port)), (403, "host")),
        ):
            with self.subTest(what):
                status, kind, body = self.ask(*args)
                self.assertEqual((status, kind), want, body)
                if want[0] == 403:
                    self.assertTrue(body.startswith("egress refused: "), body)
        self.assertEqual(self.other.connections, before)

    def test_not_http_goes_nowhere(self):
        before = self.other.connections
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as s:
            s.sendall(b"CONNECT localhost:%d HTTP/1.1\r\n\r\n" % self.other.port)
            self.assertIn(b" 200 ", s.recv(1000))
            s.sendall(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
            while s.recv(1000):
                pass
        self.assertEqual(self.other.connections, before)

    def test_unreachable(self):
        status, kind, _ = self.ask("GET", "http://down.invalid/")
        self.assertEqual((status, kind), (502, None))

    def test_reload(self):
        was = self.allowlist()
        with open(self.routes, encoding="utf-8") as f:
            text = f.read()

        def restore():
            self.write(text)
            self.until(lambda: self.allowlist()["sha256"] == was["sha256"])
        self.addCleanup(restore)
        self.write(text + "- host: localhost.\n")
        self.proxy.send_signal(signal.SIGHUP)
        self.until(lambda: self.allowlist()["last_error"])
        broken = self.allowlist()
        self.assertEqual((broken["routes"], broken["sha256"]), (was["routes"], was["sha256"]))
        # No signal: the poll finds it.
        self.write("routes:\n- host: localhost\n  auth: {scheme: Bearer, token_ref: GOOD}\n")
        self.until(lambda: not self.allowlist()["last_error"] and self.allowlist()["generation"] > was["generation"])
        self.assertEqual(self.allowlist()["routes"], [{"host": "localhost", "path_allowlist": [], "auth": True, "token": "present"}])
        status, _, body = self.ask("GET", "/a/../b", {"Authorization": "Bearer mine"}, None, ("localhost", self.tls.port))
        self.assertEqual(status, 200, body)
        got = json.loads(body)
        self.assertEqual((got["path"], got["headers"]["Authorization"]), ("/a/../b", f"Bearer {SECRET}"))
        status, kind, _ = self.ask("GET", f"http://localhost:{self.plain.port}/")
        self.assertEqual((status, kind), (403, "auth"))
        self.assertNotIn(SECRET, self.logged())
        self.assertNotIn("/repos", self.logged())


@unittest.skipUnless(shutil.which(MITMDUMP) and shutil.which("openssl"), "no mitmdump or no openssl")
class PrivateAddresses(Mitmdump):
    """The same names, none of which may be private."""

    @classmethod
    def start(cls, allow_private, cert):
        super().start("", cert)

    def test_forward(self):
        status, _, body = self.ask("GET", f"http://localhost:{self.plain.port}/repos/a")
        self.assertEqual(status, 502)
        self.assertIn("host localhost resolves to a loopback address", body)
        self.assertEqual(self.plain.connections, 0)

    test_reload = None


if __name__ == "__main__":
    unittest.main()
