"""python3 -m unittest: needs PyYAML or ruamel.yaml, no mitmproxy."""

import json
import os
import tempfile
import unittest

import policy

HERE = os.path.dirname(os.path.abspath(__file__))
GOLDEN = os.path.join(HERE, "..", "..", "internal", "egress", "testdata")


def routes(text):
    return policy.parse_routes(text.encode())


class Decisions(unittest.TestCase):
    def test_vectors(self):
        with open(os.path.join(HERE, "decisions.yaml"), encoding="utf-8") as f:
            vectors = policy._load(f.read())
        table = routes(vectors["routes"])
        self.assertGreater(len(vectors["cases"]), 50)
        for c in vectors["cases"]:
            with self.subTest(c["name"]):
                host = policy.key(c["host"])
                self.assertTrue(policy.valid_host(host))
                d = policy.decide(table, vectors["ports"], c["scheme"], host, c["port"], c["path"].encode())
                if isinstance(d, policy.Refusal):
                    self.assertEqual(d.kind, c.get("refused"), d.why)
                    if "ask" in c:
                        self.assertEqual(d.ask.get("path_allowlist", []), c["ask"])
                else:
                    self.assertEqual(c["path"] if d.path is None else d.path, c.get("forward"))

    def test_normal_form_is_stable(self):
        for raw in (b"/", b"/a/../b", b"/%72epos//a%20b/.", b"/\xc3\xbc/%c3%bc", b"/a@b%40c"):
            escaped, plain = policy.normalise(raw)
            self.assertEqual(policy.normalise(escaped.encode()), (escaped, plain))

    def test_texts(self):
        """The same words as the Go proxy's."""
        table = routes("routes:\n- host: api.example.com\n  path_allowlist: [/repos/]\n- host: bearer.example.com\n  auth: {scheme: Bearer, token_ref: X}\n")
        for name, scheme, host, port, path, what in (
            ("host", "http", "new.example.com", 80, b"/repos/golang/go", "GET http://new.example.com/repos/golang/go"),
            ("host-odd-path", "https", "new.example.com", 443, b"/a%2fb", "GET https://new.example.com/a%2fb"),
            ("path", "https", "api.example.com", 443, b"/user", "GET https://api.example.com/user"),
            ("path-ambiguous", "https", "api.example.com", 443, b"/repos/a%2f..%2fb", "GET https://api.example.com/repos/a%2f..%2fb"),
            ("port", "https", "whole.example.com", 8443, b"/x", "GET https://whole.example.com:8443/x"),
            ("auth", "http", "bearer.example.com", 80, b"/x", "GET http://bearer.example.com/x"),
        ):
            with self.subTest(name), open(os.path.join(GOLDEN, f"refused-{name}.txt"), encoding="utf-8") as f:
                d = policy.decide(table, (80, 443), scheme, host, port, path)
                self.assertEqual(d.text(what), f.read())


class Hosts(unittest.TestCase):
    def test_key(self):
        for given, want in (("API.GitHub.com.", "api.github.com"), ("bücher.example", "xn--bcher-kva.example"),
                            ("[::1]", "::1"), ("0:0:0:0:0:0:0:1", "::1"), ("my_bucket.a", "my_bucket.a")):
            self.assertEqual(policy.key(given), want)
        with self.assertRaises(ValueError):
            policy.key("faß.example")

    def test_valid_host(self):
        for good in ("a", "my_bucket.a", "127.0.0.1", "::1"):
            self.assertTrue(policy.valid_host(good), good)
        for bad in ("", "a..b", "*.a", "a b", "user@a", "a/b", "fe80::1%eth0", "a" * 64, "a." * 127 + "com"):
            self.assertFalse(policy.valid_host(bad), bad)

    def test_refused_class(self):
        for address, want in (
            ("8.8.8.8", ""), ("2606:4700::1111", ""), ("::ffff:8.8.8.8", ""), ("64:ff9b::808:808", ""),
            ("127.0.0.1", "loopback"), ("::1", "loopback"), ("::ffff:127.0.0.1", "loopback"), ("64:ff9b::7f00:1", "loopback"),
            ("2002:7f00:1::", "loopback"), ("fe80::1%eth0", "link-local"), ("169.254.169.254", "cloud metadata"),
            ("fd00:ec2::254", "cloud metadata"), ("10.1.2.3", "private"), ("fd12::1", "private"), ("100.64.0.1", "carrier-grade NAT"),
            ("0.0.0.0", "unspecified"), ("::", "unspecified"), ("ff02::1", "multicast"), ("255.255.255.255", "reserved"), ("::7f00:1", "reserved"),
        ):
            self.assertEqual(policy.refused_class(address), want, address)

    def test_check_addresses(self):
        def info(*addresses):
            return [(0, 0, 0, "", (a, 443)) for a in addresses]
        self.assertEqual(policy.check_addresses("a", info("10.0.0.1", "8.8.8.8"), ()), info("8.8.8.8"))
        self.assertEqual(policy.check_addresses("a", info("10.0.0.1"), {"a"}), info("10.0.0.1"))
        with self.assertRaisesRegex(OSError, "host a resolves to a loopback address"):
            policy.check_addresses("a", info("127.0.0.1", "10.0.0.1"), {"b"})


class Routes(unittest.TestCase):
    def test_refuses(self):
        for text, want in (
            ("- host: a.com\n", "the file must be a dict"),
            ("other: []\n", "unknown key 'other'"),
            ("routes:\n- host: a.com\n  ports: [1]\n", "unknown key 'ports'"),
            ("routes:\n- path_allowlist: [/a]\n", r"routes\[0\].host must be a str"),
            ("routes:\n- host: a.com\n- host: A.com.\n", "is there twice"),
            ("routes:\n- host: https://a.com\n", "must be a bare host name"),
            ("routes:\n- host: '*.a.com'\n", "must be a bare host name"),
            ("routes:\n- host: a.com\n  path_allowlist: [a]\n", "must start with '/'"),
            ("routes:\n- host: a.com\n  auth: {scheme: Basic, token_ref: X}\n", "must be Bearer or token"),
            ("routes:\n- host: a.com\n  auth: {scheme: token, token_ref: $X}\n", "environment variable"),
            ("routes:\n- host: a.com\n  host: b.com\n", "(?i)duplicate key"),
            ("routes: &a []\n", "line 1: anchors"),
            ("routes: [\n", "line"),
            ("routes: []\n---\nroutes: []\n", "."),
        ):
            with self.subTest(text), self.assertRaisesRegex(ValueError, want):
                routes(text)
        self.assertEqual(routes(""), {})

    def test_reload(self):
        env = {"SET": "x", "BAD": "x\ny"}
        with tempfile.TemporaryDirectory() as d:
            file = os.path.join(d, "routes.yaml")
            t = policy.Table(file)
            self.assertTrue(t.reload())
            self.assertEqual((t.generation, t.sha256, t.last_error), (0, "", "routes.yaml: No such file or directory"))
            self.assertFalse(t.reload(), "the same error is no news")

            def write(text):
                with open(file, "w", encoding="utf-8") as f:
                    f.write(text)

            write("routes:\n- host: A.com\n  path_allowlist: [/x]\n- host: b.com\n  auth: {scheme: token, token_ref: SET}\n"
                  "- host: c.com\n  auth: {scheme: token, token_ref: UNSET}\n- host: d.com\n  auth: {scheme: token, token_ref: BAD}\n")
            self.assertTrue(t.reload())
            first = json.loads(t.allowlist(env))
            self.assertEqual(first, {
                "routes": [
                    {"host": "a.com", "path_allowlist": ["/x"], "auth": False, "token": "none"},
                    {"host": "b.com", "path_allowlist": [], "auth": True, "token": "present"},
                    {"host": "c.com", "path_allowlist": [], "auth": True, "token": "missing"},
                    {"host": "d.com", "path_allowlist": [], "auth": True, "token": "missing"},
                ],
                "generation": 1, "sha256": t.sha256, "last_error": None,
            })
            self.assertEqual(len(t.sha256), 64)
            write("routes: 5\n")
            self.assertTrue(t.reload())
            broken = json.loads(t.allowlist(env))
            self.assertEqual(broken["last_error"], "routes.yaml: routes must be a list")
            self.assertEqual((broken["routes"], broken["sha256"], broken["generation"]), (first["routes"], first["sha256"], 1))
            write("routes: []\n")
            self.assertTrue(t.reload())
            self.assertEqual((t.generation, t.routes, t.last_error), (2, {}, None))
            os.remove(file)
            os.mkfifo(file)
            self.assertTrue(t.reload())
            self.assertEqual(t.last_error, "routes.yaml: not a regular file")


if __name__ == "__main__":
    unittest.main()
