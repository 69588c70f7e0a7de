"""What an egress proxy allows, by the same routes.yaml and with the same answers as `supervise egress`.

Nothing here knows mitmproxy or opens a socket; decisions.yaml holds it against the Go implementation.
"""

import encodings.idna  # noqa: F401  the codec, also where imports are frozen
import hashlib
import ipaddress
import json
import os
import re
import stat
import unicodedata
from dataclasses import dataclass, field
from typing import Optional

try:  # mitmproxy's own dependency
    from ruamel.yaml import YAML

    def _scan(text):
        return YAML(typ="safe", pure=True).scan(text)

    def _load(text):
        return YAML(typ="safe", pure=True).load(text)  # refuses duplicate keys and several documents

except ImportError:
    import yaml

    class _Loader(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):
            keys = [k.value for k, _ in node.value]
            for k in keys:
                if keys.count(k) > 1:
                    raise ValueError(f"line {node.start_mark.line + 1}: duplicate key {k!r}")
            return super().construct_mapping(node, deep)

    def _scan(text):
        return yaml.scan(text, _Loader)

    def _load(text):
        return yaml.load(text, _Loader)


SELF_HOST = "_egress.local"
HEADER = "X-Supervise-Refused"
MAX_FILE = 256 << 10


# --- hosts ---

_LABEL = re.compile(r"[a-z0-9_-]{1,63}")


def key(host: str) -> str:
    """The form in which hosts are compared: lower-case ASCII without trailing dot, an IP address in its shortest form."""
    h = host.strip()
    h = h[:-1] if h.endswith(".") else h
    try:
        return str(ipaddress.ip_address(h.strip("[]")))
    except ValueError:
        pass
    if h.isascii():
        return h.lower()
    if any(c in h for c in "\u00df\u1e9e\u03c2\u200c\u200d"):
        # Python's codec knows IDNA 2003 only, which maps these to another host.
        raise ValueError(f"host {h[:80]!r} must be written in its xn-- form")
    return h.encode("idna").decode("ascii").lower().rstrip(".")


def valid_host(k: str) -> bool:
    try:
        return getattr(ipaddress.ip_address(k), "scope_id", None) is None
    except ValueError:
        return len(k) <= 253 and all(_LABEL.fullmatch(label) for label in k.split("."))


_REFUSED_NETS = [
    (name, [ipaddress.ip_network(n) for n in nets.split()])
    for name, nets in [
        ("cloud metadata", "169.254.169.254/32 fd00:ec2::/64 fd20:ce::254/128 100.100.100.200/32 168.63.129.16/32 192.0.0.192/32"),
        ("loopback", "127.0.0.0/8 ::1/128"),
        ("link-local", "169.254.0.0/16 fe80::/10"),
        ("private", "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 fc00::/7 fec0::/10"),
        ("carrier-grade NAT", "100.64.0.0/10"),
        ("unspecified", "0.0.0.0/8 ::/128"),
        ("multicast", "224.0.0.0/4 ff00::/8"),
        ("reserved", "192.0.0.0/24 192.0.2.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 240.0.0.0/4"
                     " ::/96 100::/64 2001::/23 2001:db8::/32 64:ff9b:1::/48 5f00::/16 3fff::/20"),
    ]
]
_EMBEDDED = [(ipaddress.ip_network(n), at) for n, at in (("64:ff9b::/96", 12), ("::ffff:0:0:0/96", 12), ("::ffff:0:0/96", 12), ("2002::/16", 2))]


def refused_class(address: str) -> str:
    """What kind of address this is when a name must not lead to it, and "" when it may."""
    a = ipaddress.ip_address(address)
    if getattr(a, "scope_id", None):
        return "link-local"
    if a.version == 6:
        for net, at in _EMBEDDED:
            if a in net:
                a = ipaddress.IPv4Address(a.packed[at:at + 4])
                break
    for name, nets in _REFUSED_NETS:
        if any(a.version == n.version and a in n for n in nets):
            return name
    return ""


# --- the route table ---


@dataclass(frozen=True)
class Auth:
    scheme: str
    token_ref: str


@dataclass(frozen=True)
class Route:
    host: str
    paths: tuple = ()
    auth: Optional[Auth] = None

    @property
    def whole(self) -> bool:
        """Every path is allowed, so that none needs to be understood."""
        return not self.paths or "/" in self.paths

    def allows(self, path: str) -> bool:
        return any(path.startswith(p) for p in self.paths)


def parse_routes(data: bytes) -> dict:
    """Reads a route table: routes by key, in the file's order. Strict; ValueError."""
    if len(data) > MAX_FILE:
        raise ValueError(f"over {MAX_FILE} bytes")
    text = data.decode("utf-8")
    try:
        for token in _scan(text):
            if type(token).__name__ in ("AnchorToken", "AliasToken", "TagToken", "DirectiveToken"):
                raise ValueError(f"line {token.start_mark.line + 1}: anchors, aliases, tags and directives are not allowed")
        doc = _load(text)
    except ValueError:
        raise
    except Exception as e:  # the two libraries share no error class
        mark = getattr(e, "problem_mark", None)
        raise ValueError(f"line {mark.line + 1}: {e.problem}" if mark else str(e)) from e
    table = {}
    for i, r in enumerate(_want(_want(doc, "the file", dict, {"routes"}).get("routes"), "routes", list)):
        what = f"routes[{i}]"
        _want(r, what, dict, {"host", "path_allowlist", "auth"})
        k = key(_want(r.get("host"), what + ".host", str))
        if not valid_host(k):
            raise ValueError(f"{what}.host {k[:80]!r} must be a bare host name")
        if k in table:
            raise ValueError(f"{what}.host {k!r} is there twice")
        paths = tuple(_want(p, what + ".path_allowlist", str) for p in _want(r.get("path_allowlist"), what + ".path_allowlist", list))
        for p in paths:
            if not p.startswith("/"):
                raise ValueError(f"{what}.path_allowlist: {p[:80]!r} must start with '/'")
        auth = None
        if r.get("auth") is not None:
            a = _want(r["auth"], what + ".auth", dict, {"scheme", "token_ref"})
            if a.get("scheme") not in ("Bearer", "token"):
                raise ValueError(f"{what}.auth.scheme must be Bearer or token")
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", _want(a.get("token_ref"), what + ".auth.token_ref", str)):
                raise ValueError(f"{what}.auth.token_ref must be the name of an environment variable")
            auth = Auth(a["scheme"], a["token_ref"])
        table[k] = Route(k, paths, auth)
    return table


def _want(v, what, kind, keys=None):
    if v is None and kind in (dict, list):
        v = kind()
    if not isinstance(v, kind):
        raise ValueError(f"{what} must be a {kind.__name__}")
    if keys is not None and not set(v) <= keys:
        raise ValueError(f"{what} has an unknown key {sorted(map(str, set(v) - keys))[0]!r}")
    return v


class Table:
    """The table in force. A file that cannot be used leaves it as it is."""

    def __init__(self, file: str):
        self.file = file
        self.routes: dict = {}
        self.generation = 0
        self.sha256 = ""
        self.last_error: Optional[str] = None

    def reload(self) -> bool:
        """Tells whether anything differs from the last time: another table, or another error."""
        before = (self.generation, self.last_error)
        try:
            data = _read(self.file)
            digest = hashlib.sha256(data).hexdigest()
            if digest != self.sha256:
                self.routes = parse_routes(data)
                self.sha256 = digest
                self.generation += 1
            self.last_error = None
        except (OSError, ValueError, RecursionError) as e:
            self.last_error = f"{os.path.basename(self.file)}: {getattr(e, 'strerror', None) or e}"
        return before != (self.generation, self.last_error)

    def allowlist(self, env) -> str:
        return json.dumps({
            "routes": [{
                "host": r.host,
                "path_allowlist": list(r.paths),
                "auth": r.auth is not None,
                "token": "none" if r.auth is None else "present" if credential(r.auth, env)[0] else "missing",
            } for r in self.routes.values()],
            "generation": self.generation,
            "sha256": self.sha256,
            "last_error": self.last_error,
        }, indent=2, ensure_ascii=False) + "\n"


def _read(file: str) -> bytes:
    fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO in its place must not hang us
    with open(fd, "rb") as f:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("not a regular file")
        return f.read(MAX_FILE + 1)


def credential(auth: Auth, env) -> tuple:
    """The Authorization header, or None and why."""
    v = env.get(auth.token_ref, "").strip()
    if not v:
        return None, f"the variable {auth.token_ref} is not set"
    if any(not "!" <= c <= "~" for c in v):
        return None, f"the variable {auth.token_ref} holds what cannot be in a header"
    return f"{auth.scheme} {v}", ""


# --- paths ---


class Ambiguous(Exception):
    """Ends a sentence that begins "the path"."""


_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_AS_IS = _UNRESERVED | frozenset(b"/!$&'()*+,=:@")
_HEX = re.compile(rb"[0-9A-Fa-f]{2}")


def normalise(raw: bytes) -> tuple:
    """The one form of a path that is both matched and forwarded: (as it is sent, decoded)."""
    raw = raw or b"/"
    if raw[:1] != b"/":
        raise Ambiguous("must start with '/'")
    esc, plain, i = bytearray(), bytearray(), 0
    while i < len(raw):
        c, encoded = raw[i], False
        if c == 0x25:
            if not _HEX.fullmatch(raw[i + 1:i + 3]):
                raise Ambiguous("has a '%' without two hexadecimal digits")
            c, encoded = int(raw[i + 1:i + 3], 16), True
            i += 2
        i += 1
        if c < 0x20 or c == 0x7F:
            raise Ambiguous("has a control character")
        if c == 0x5C:
            raise Ambiguous("has a backslash, which some servers read as '/'")
        if c == 0x3B:
            raise Ambiguous("has a ';', after which some servers ignore the rest of a segment")
        if c == 0x2F and encoded:
            raise Ambiguous("has an encoded '/' (%2F), which some servers decode before they look at the path")
        if c == 0x25:
            raise Ambiguous("has an encoded '%' (%25), which some servers decode twice")
        plain.append(c)
        if c in _UNRESERVED or not encoded and c in _AS_IS:
            esc.append(c)
        else:
            esc += b"%%%02X" % c
    try:
        text = plain.decode("utf-8")
    except UnicodeDecodeError:
        raise Ambiguous("is not UTF-8 once decoded") from None
    # '/' is never encoded here, so that both forms have the same segments.
    return _resolve_dots(esc.decode("ascii")), _resolve_dots(text)


def _resolve_dots(p: str) -> str:
    out = []
    segments = p[1:].split("/")
    for s in segments:
        if s in ("", "."):
            continue
        if s == "..":
            del out[-1:]
        elif not s.replace("%20", " ").strip(". "):
            raise Ambiguous("has a segment of dots or spaces only, which some servers shorten")
        else:
            out.append(s)
    if out and segments[-1] in ("", ".", ".."):
        out.append("")
    return "/" + "/".join(out)


# --- decisions ---


@dataclass
class Refusal:
    kind: str
    why: str
    mend: str = ""
    ask: Optional[dict] = field(default=None)

    @property
    def status(self) -> int:
        return {"token": 502, "request": 400}.get(self.kind, 403)

    def text(self, what: str) -> str:
        """Written for a model that is stuck: what, why, and what to do."""
        head = f"egress refused: {what}\nreason: {self.why}\n\n"
        if self.ask is None:
            return head + self.mend + "\n"
        scope = ("path_allowlist holds path prefixes: change them to what you need, or leave them out for the whole host.\n"
                 if "path_allowlist" in self.ask else "This asks for the whole host.\n")
        return (head + 'To ask for it, call the tool egress-block of the MCP server "supervise" with these arguments:\n\n'
                + json.dumps(self.ask, indent=2, ensure_ascii=False) + "\n\n" + scope
                + "The call waits until a person has decided. Once it is approved, send this request again.\n"
                "The tool list-egress-routes shows what is allowed now.\n")


@dataclass
class Grant:
    route: Route
    path: Optional[str]  # None: the path goes on as it came


def suggest(host: str, path: bytes) -> dict:
    """The first segment as a prefix, encoded where egress-block takes it in no other way."""
    ask = {"host": host}
    try:
        escaped, plain = normalise(path)
        if len(plain.encode()) <= 512:
            prefix = _first_segment(plain)
            if any(c in "?#\ufffd\ufeff" or c.isspace() or unicodedata.category(c) == "Cc" for c in prefix):
                prefix = _first_segment(escaped)
            prefix = prefix.partition("*")[0]  # not a wildcard, and taken for one
            last = prefix.rpartition("/")[2]
            if not last.replace("%20", " ").strip(". "):
                prefix = prefix[:len(prefix) - len(last)]  # no segment of its own
            if prefix != "/" and len(prefix.encode()) <= 1024:
                ask["path_allowlist"] = [prefix]
    except Ambiguous:
        pass
    ask["justification"] = "WHY YOU NEED THIS"
    return ask


def _first_segment(path: str) -> str:
    first, slash, _ = path[1:].partition("/")
    return f"/{first}{slash}"


def ambiguous(e: Ambiguous) -> Refusal:
    return Refusal("path", f"the path {e}",
                   "Send the path in its plain form. If the service needs it as it is, its host can only be allowed whole: "
                   "ask with egress-block, without path_allowlist.")


def decide(routes: dict, ports, scheme: str, host: str, port: int, path: bytes):
    """A Grant or a Refusal. host is in the form of key; path is as the client sent it, without query."""
    if port not in ports:
        return Refusal("port", f"port {port} is not allowed on any host, only {', '.join(map(str, ports))}",
                       "No tool opens a port. Use an allowed one if the service has it; else tell the user.")
    route = routes.get(host)
    if route is None:
        return Refusal("host", f"there is no route for host {host}", ask=suggest(host, path))
    if route.auth and scheme != "https":
        return Refusal("auth", f"the route for host {host} adds a credential, which is never sent over plain http",
                       "Send the same request with https://.")
    if route.whole:
        if path[:1] not in (b"", b"/"):
            return ambiguous(Ambiguous("must start with '/'"))
        return Grant(route, None)
    try:
        escaped, plain = normalise(path)
    except Ambiguous as e:
        return ambiguous(e)
    # A prefix may be written either way: "/a b/" or "/a%20b/".
    if not route.allows(plain) and not route.allows(escaped):
        return Refusal("path", f"host {host} is allowed for other paths only, not for this one", ask=suggest(host, path))
    return Grant(route, escaped)


def check_addresses(host: str, infos: list, allow_private) -> list:
    """Drops from getaddrinfo's answer what a name must not lead to. OSError if nothing is left."""
    if host in allow_private:
        return infos
    good, refused = [], ""
    for info in infos:
        c = refused_class(info[4][0])
        if c:
            refused = refused or c
        else:
            good.append(info)
    if infos and not good:
        raise OSError(f"egress refused: host {host} resolves to a {refused} address, which is never reached by name")
    return good
