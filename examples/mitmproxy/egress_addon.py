"""A mitmproxy addon that is an egress proxy for `supervise`: start it with run.sh, which sets what it needs.

Tried with mitmproxy 8.1.1.
"""

import asyncio
import os
import signal
import sys
from urllib.parse import quote

from mitmproxy import ctx, http

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import policy  # noqa: E402

POLL = 1.0  # seconds; some mounts announce nothing, so the file is read again


def say(text: str) -> None:
    # Hosts and kinds only: no path, query, header or body.
    print(f"egress: {text}", file=sys.stderr, flush=True)


class Egress:
    def __init__(self):
        self.tunnels = {}  # client connection id to the (host, port) of its CONNECT
        self.table = None
        self.ports = (80, 443)
        self.allow_private = frozenset()
        self.polling = None

    def load(self, loader):
        loader.add_option("routes", str, "", "the file with the routes")
        loader.add_option("ports", str, "80,443", "ports that may be reached")
        loader.add_option("allow_private", str, "", "hosts that may resolve to private addresses, separated by commas")

    def running(self):
        o = ctx.options
        for name, want in (("connection_strategy", "lazy"), ("upstream_cert", False), ("rawtcp", False), ("http2", False)):
            if getattr(o, name) != want:
                # Each of them would open a connection, or a way round, before anything is decided.
                say(f"{name} must be {want}: start it with run.sh")
                os._exit(1)
        self.ports = tuple(int(p) for p in o.ports.split(","))
        self.allow_private = frozenset(policy.key(h) for h in o.allow_private.split(",") if h.strip())
        self.table = policy.Table(o.routes)
        self.reload()
        loop = asyncio.get_running_loop()
        # Until here SIGHUP was ignored, by run.sh.
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        # What is checked is what is dialled: asyncio dials the addresses that this returns.
        resolve = loop.getaddrinfo

        async def checked(host, *args, **kwargs):
            name = host.decode() if isinstance(host, bytes) else host
            return policy.check_addresses(name, await resolve(host, *args, **kwargs), self.allow_private)

        loop.getaddrinfo = checked
        self.polling = asyncio.ensure_future(self.poll())
        say("ready")

    async def done(self):
        if self.polling:
            self.polling.cancel()

    async def poll(self):
        while True:
            await asyncio.sleep(POLL)
            self.reload()

    def reload(self):
        if self.table.reload():
            say(f"routes: generation {self.table.generation}, {len(self.table.routes)} hosts, last error {self.table.last_error!r}")

    def client_disconnected(self, client):
        self.tunnels.pop(client.id, None)

    def http_connect(self, flow: http.HTTPFlow):
        """Every CONNECT is accepted, and what is inside is judged there: a client shows its user that answer."""
        host = self.host(flow)
        if host is None or flow.client_conn.id in self.tunnels or self.table is None:
            flow.response = http.Response.make(400, b"egress refused: CONNECT needs host:port, once\n", {policy.HEADER: "request"})
            return
        flow.request.host = host
        self.tunnels[flow.client_conn.id] = (host, flow.request.port)

    @staticmethod
    def host(flow):
        try:
            k = policy.key(flow.request.host)
        except ValueError:
            return None
        return k if policy.valid_host(k) else None

    def requestheaders(self, flow: http.HTTPFlow):
        r = flow.request
        tunnel = self.tunnels.get(flow.client_conn.id)
        host = self.host(flow)
        if host is None or self.table is None:
            return self.refuse(flow, policy.Refusal("request", "the URL names no host", "Mend the URL."), "")
        if tunnel:
            for what, value in (("TLS server name (SNI)", flow.client_conn.sni), ("URL", r.authority), ("Host header", r.host_header)):
                if not self.names(tunnel, value, optional=what != "Host header"):
                    return self.refuse(flow, policy.Refusal(
                        "host", f"the {what} {ascii((value or '')[:200])} is not the CONNECT host {tunnel[0]}:{tunnel[1]}",
                        "Name one host in CONNECT, TLS and Host header."), tunnel[0])
            if (host, r.port) != tunnel:
                return self.refuse(flow, policy.Refusal("host", "the URL's host is not the CONNECT host", "Name one host."), tunnel[0])
        if host == policy.SELF_HOST:
            return self.answer_self(flow)
        if r.method in ("CONNECT", "TRACE"):
            return self.reply(flow, 405, f"egress: {r.method} is not passed on\n", {policy.HEADER: "request"})
        path, question, query = r.data.path.partition(b"?")
        d = policy.decide(self.table.routes, self.ports, r.scheme, host, r.port, path)
        if isinstance(d, policy.Refusal):
            return self.refuse(flow, d, host)
        authorization = None
        if d.route.auth:
            authorization, why = policy.credential(d.route.auth, os.environ)
            if authorization is None:
                return self.refuse(flow, policy.Refusal(
                    "token", f"the route for host {host} adds a credential that the egress proxy does not have: {why}",
                    "The route is there; asking for it again does not help. Tell the user that the operator must set this variable for the egress proxy."), host)
        # From here on the request goes out.
        if r.host != host:
            r.host = host
        r.authority = ""  # else an absolute URL goes to the origin
        r.host_header = f"[{host}]" if ":" in host else host
        if r.port != (443 if r.scheme == "https" else 80):
            r.host_header += f":{r.port}"
        if d.path is not None:
            r.data.path = d.path.encode("ascii") + question + query
        self.strip(r.headers)
        if authorization:
            r.headers["Authorization"] = authorization
        r.stream = True

    @staticmethod
    def names(tunnel, value, optional):
        """Whether value names the tunnel's host, and its port if it names one."""
        if not value:
            return optional
        host, port = value, str(tunnel[1])
        if not value.endswith("]") and (value.count(":") == 1 or value.startswith("[")):
            host, _, port = value.rpartition(":")
        try:
            return policy.key(host) == tunnel[0] and port == str(tunnel[1])
        except ValueError:
            return False

    @staticmethod
    def strip(headers):
        """Removes what is between the client and us. WebSocket is the one upgrade that is passed on."""
        websocket = headers.get("Upgrade", "").lower() == "websocket"
        named = [n.strip() for n in headers.get("Connection", "").split(",")]
        for n in named + ["Connection", "Keep-Alive", "Proxy-Authorization", "Proxy-Connection", "TE", "Upgrade",
                          "Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"]:
            if n.lower() not in ("", "host", "content-length", "transfer-encoding"):
                headers.pop(n, None)
        if websocket:
            headers["Connection"], headers["Upgrade"] = "Upgrade", "websocket"

    def responseheaders(self, flow: http.HTTPFlow):
        if flow.metadata.get("ours") or flow.response.status_code == 101:
            return
        flow.response.headers.pop(policy.HEADER, None)
        flow.response.stream = True

    def refuse(self, flow, refusal, host):
        r = flow.request
        say(f"refused: {refusal.kind} {host}:{r.port}")
        path = quote(r.data.path.partition(b"?")[0], safe="/%!$&'()*+,;=:@")[:200]
        port = "" if r.port == (443 if r.scheme == "https" else 80) else f":{r.port}"
        name = f"[{host}]" if ":" in host else host
        self.reply(flow, refusal.status, refusal.text(f"{r.method} {r.scheme}://{name}{port}{path}"), {policy.HEADER: refusal.kind})

    def answer_self(self, flow):
        r = flow.request
        if r.method not in ("GET", "HEAD"):
            self.reply(flow, 405, "egress: use GET\n", {"Allow": "GET, HEAD"})
        elif r.data.path.partition(b"?")[0] == b"/allowlist":
            self.reply(flow, 200, self.table.allowlist(os.environ), {"Content-Type": "application/json"})
        else:
            self.reply(flow, 404, "egress: GET /allowlist shows what is allowed\n", {})

    @staticmethod
    def reply(flow, status, text, headers):
        flow.metadata["ours"] = True
        flow.response = http.Response.make(status, text.encode(), {
            "Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store", **headers})


addons = [Egress()]
