package egress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write golden files anew")

const table1 = `routes:
  - host: api.example.com
    path_allowlist: ["/repos/"]
  - host: whole.example.com
  - host: bearer.example.com
    auth: {scheme: Bearer, token_ref: GOOD}
  - host: token.example.com
    auth: {scheme: token, token_ref: GOOD}
  - host: unset.example.com
    auth: {scheme: Bearer, token_ref: UNSET}
  - host: bad.example.com
    auth: {scheme: Bearer, token_ref: BAD}
  - host: down.example.com
  - host: private.example.com
`

const theSecret = "s3cr3t-value"

func env(name string) string {
	return map[string]string{"GOOD": " " + theSecret + "\n", "BAD": theSecret + "\nX-Evil: 1", "OTHER": "other-secret"}[name]
}

// echo answers with what it was asked.
func echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set(Header, "spoofed")
	fmt.Fprintf(w, "%s %s\nHost: %s\n", r.Method, r.RequestURI, r.Host)
	r.Header.Write(w)
	fmt.Fprintf(w, "\n%s", body)
}

func newEchoWorld(t *testing.T) *world {
	w := newWorld(t)
	for i, host := range []string{"api", "whole", "bearer", "token", "unset", "bad"} {
		w.serve(host+".example.com", fmt.Sprintf("9.9.9.%d", i+1), http.HandlerFunc(echo))
	}
	w.names["private.example.com"] = []netip.Addr{netip.MustParseAddr("10.0.0.1")}
	return w
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

// TestRefusals: status, header and body of every refusal, with nothing resolved and nothing dialled.
func TestRefusals(t *testing.T) {
	for _, tt := range []struct {
		name    string
		withCA  bool
		method  string
		url     string
		kind    string
		status  int
		touches bool // the host is resolved, though not dialled
	}{
		{"host", false, "GET", "http://new.example.com/repos/golang/go?token=x", "host", 403, false},
		{"host-root", false, "GET", "http://new.example.com", "host", 403, false},
		{"host-tls", true, "POST", "https://new.example.com/v1/messages", "host", 403, false},
		{"host-odd-path", true, "GET", "https://new.example.com/a%2fb", "host", 403, false},
		{"path", true, "GET", "https://api.example.com/user", "path", 403, false},
		{"path-ambiguous", true, "GET", "https://api.example.com/repos/a%2f..%2fb", "path", 403, false},
		{"port", true, "GET", "https://whole.example.com:8443/x", "port", 403, false},
		{"auth", false, "GET", "http://bearer.example.com/x", "auth", 403, false},
		{"token-unset", true, "GET", "https://unset.example.com/x", "token", 502, false},
		{"token-bad", true, "GET", "https://bad.example.com/x", "token", 502, false},
		{"address", true, "GET", "https://private.example.com/x", "address", 403, true},
		{"connect-host", false, "CONNECT", "new.example.com:443", "host", 403, false},
		{"connect-port", false, "CONNECT", "whole.example.com:22", "port", 403, false},
		{"connect-paths", false, "CONNECT", "api.example.com:443", "ca", 403, false},
		{"connect-auth", false, "CONNECT", "bearer.example.com:443", "ca", 403, false},
		{"connect-self", false, "CONNECT", "_egress.local:443", "ca", 403, false},
		{"connect-address", false, "CONNECT", "private.example.com:443", "address", 403, true},
		{"connect-no-port", true, "CONNECT", "whole.example.com", "request", 400, false},
		{"scheme", false, "RAW", "GET https://whole.example.com/ HTTP/1.1\r\nHost: whole.example.com\r\n\r\n", "request", 400, false},
		{"zone", false, "RAW", "GET http://[fe80::1%25lo]/ HTTP/1.1\r\nHost: x\r\n\r\n", "request", 400, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newEchoWorld(t)
			p := w.start(table1, tt.withCA, Options{Env: env})
			var status int
			var kind, body string
			switch tt.method {
			case "CONNECT", "RAW":
				text := tt.url
				if tt.method == "CONNECT" {
					text = "CONNECT " + tt.url + " HTTP/1.1\r\nHost: " + tt.url + "\r\n\r\n"
				}
				res, err := http.ReadResponse(bufio.NewReader(p.raw(text)), nil)
				if err != nil {
					t.Fatal(err)
				}
				status, kind, body = answer(t, res)
			default:
				status, kind, body = ask(t, p.client(), tt.method, tt.url)
			}
			if status != tt.status || kind != tt.kind {
				t.Errorf("%s %s = %d %q, want %d %q", tt.method, tt.url, status, kind, tt.status, tt.kind)
			}
			golden(t, "refused-"+tt.name+".txt", body)
			touched := w.touched()
			if tt.touches != (len(touched) == 1) || len(touched) > 1 {
				t.Errorf("resolved and dialled %v, want %v", touched, tt.touches)
			}
			if log := p.log.String(); strings.Contains(log, theSecret) || strings.Contains(body, theSecret) {
				t.Errorf("the secret is in the log or the body:\n%s\n%s", log, body)
			}
		})
	}
}

// TestForward: what an origin gets to see.
func TestForward(t *testing.T) {
	w := newEchoWorld(t)
	p := w.start(table1, true, Options{Env: env})
	for _, tt := range []struct {
		name   string
		method string
		url    string
		header http.Header
		body   string
		want   string
	}{
		{"plain", "POST", "http://whole.example.com/a/../b//c?x=1;y=2&&z",
			http.Header{"X-Own": {"1", "2"}}, "hello",
			"POST /a/../b//c?x=1;y=2&&z\nHost: whole.example.com\nContent-Length: 5\r\nX-Own: 1\r\nX-Own: 2\r\n\nhello"},
		{"empty path", "GET", "http://whole.example.com", nil, "", "GET /\nHost: whole.example.com\n\n"},
		{"hop by hop", "GET", "http://whole.example.com/",
			http.Header{"Connection": {"X-Drop"}, "X-Drop": {"1"}, "Proxy-Authorization": {"Basic eA=="}, "Proxy-Connection": {"keep-alive"},
				"Keep-Alive": {"5"}, "X-Forwarded-For": {"1.2.3.4"}, "Forwarded": {"for=1.2.3.4"}, "Te": {"gzip"}, "Cookie": {"a=b"}}, "",
			"GET /\nHost: whole.example.com\nCookie: a=b\r\n\n"},
		{"own authorization, no auth on the route", "GET", "http://whole.example.com/", http.Header{"Authorization": {"Basic eA=="}}, "",
			"GET /\nHost: whole.example.com\nAuthorization: Basic eA==\r\n\n"},
		{"normalised", "GET", "https://api.example.com/x/%2e%2e//%72epos/a%20b?q=%2e%2e/", nil, "",
			"GET /repos/a%20b?q=%2e%2e/\nHost: api.example.com\n\n"},
		{"bearer", "GET", "https://bearer.example.com/x", http.Header{"Authorization": {"Bearer mine", "Basic eA=="}}, "",
			"GET /x\nHost: bearer.example.com\nAuthorization: Bearer " + theSecret + "\r\n\n"},
		{"token", "GET", "https://token.example.com/x", http.Header{"Connection": {"Authorization"}}, "",
			"GET /x\nHost: token.example.com\nAuthorization: token " + theSecret + "\r\n\n"},
		{"upgrade to h2c is not offered", "GET", "https://bearer.example.com/x",
			http.Header{"Connection": {"Upgrade, HTTP2-Settings"}, "Upgrade": {"h2c"}, "Http2-Settings": {"AAMAAABkAAQAAP__"}}, "",
			"GET /x\nHost: bearer.example.com\nAuthorization: Bearer " + theSecret + "\r\n\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), tt.method, tt.url, strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			maps.Copy(req.Header, tt.header)
			req.Header["User-Agent"] = []string{""}
			c := p.client()
			c.Transport.(*http.Transport).DisableCompression = true
			res, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			status, kind, body := answer(t, res)
			if status != 200 || kind != "" {
				t.Errorf("status %d, refused %q; want 200 and no refusal, whatever the origin says", status, kind)
			}
			if diff := cmp.Diff(tt.want, body); diff != "" {
				t.Errorf("the origin saw (-want +got):\n%s", diff)
			}
		})
	}
	if log := p.log.String(); strings.Contains(log, theSecret) || strings.Contains(log, "/repos") {
		t.Errorf("a secret or a path is in the log:\n%s", log)
	}
}

// TestOriginCannotRefuse: our header is not passed on from an early hint, nor from a trailer, whether announced or not.
func TestOriginCannotRefuse(t *testing.T) {
	w := newWorld(t)
	w.serve("whole.example.com", "9.9.9.1", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		h := rw.Header()
		h.Set("Link", "</a.css>; rel=preload")
		h.Set(Header, "host")
		rw.WriteHeader(http.StatusEarlyHints)
		for _, name := range r.URL.Query()["announced"] {
			h.Add("Trailer", name)
		}
		io.WriteString(rw, "body")
		http.NewResponseController(rw).Flush()
		for _, name := range r.URL.Query()["announced"] {
			h.Set(name, "host")
		}
		for _, name := range r.URL.Query()["not"] {
			h.Set(http.TrailerPrefix+name, "host")
		}
	}))
	p := w.start(table1, false, Options{})
	for _, tt := range []struct{ query, want string }{
		{"announced=" + Header, ""},
		{"announced=" + Header + "&announced=X-Other", "X-Other: host\r\n"},
		{"announced=" + Header + "&not=X-Other", "X-Other: host\r\n"},
		{"announced=X-Other&not=" + Header, "X-Other: host\r\n"},
		{"not=" + Header, ""},
		{"not=" + Header + "&not=X-Other", "X-Other: host\r\n"},
	} {
		all, err := io.ReadAll(p.raw("GET http://whole.example.com/?" + tt.query + " HTTP/1.1\r\nHost: x\r\nTE: trailers\r\nConnection: TE, close\r\n\r\n"))
		if err != nil {
			t.Fatal(err)
		}
		got := string(all)
		if !strings.HasPrefix(got, "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n") || !strings.HasSuffix(got, "\r\n4\r\nbody\r\n0\r\n"+tt.want+"\r\n") {
			t.Errorf("%s: got %q, want the early hint, the body and the trailer %q", tt.query, got, tt.want)
		}
		if strings.Contains(got, Header) {
			t.Errorf("%s: an origin's %s came through: %q", tt.query, Header, got)
		}
	}
}

// TestNoHintsBeforeHTTP11: a client of HTTP/1.0 would take an early hint for the answer.
func TestNoHintsBeforeHTTP11(t *testing.T) {
	w := newWorld(t)
	w.serve("whole.example.com", "9.9.9.1", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("X-Hint", "1")
		rw.WriteHeader(http.StatusEarlyHints)
		rw.Header().Del("X-Hint")
		io.WriteString(rw, "body")
	}))
	p := w.start(table1, false, Options{})
	all, err := io.ReadAll(p.raw("GET http://whole.example.com/ HTTP/1.0\r\n\r\n"))
	if got := string(all); err != nil || !strings.HasPrefix(got, "HTTP/1.0 200 OK\r\n") || !strings.HasSuffix(got, "\r\n\r\nbody") || strings.Contains(got, "X-Hint") {
		t.Errorf("got %q, %v; want the answer alone", got, err)
	}
}

// TestTrace: TRACE would send the credential back.
func TestTrace(t *testing.T) {
	p := newEchoWorld(t).start(table1, true, Options{Env: env})
	if status, kind, body := ask(t, p.client(), "TRACE", "https://bearer.example.com/"); status != 405 || kind != "request" || strings.Contains(body, theSecret) {
		t.Errorf("TRACE = %d %q %q, want 405 request", status, kind, body)
	}
}

// connectTo opens a tunnel by hand.
func (r *running) connectTo(target string) (net.Conn, *http.Response) {
	r.t.Helper()
	c := r.raw("CONNECT " + target + " HTTP/1.1\r\nHost: " + target + "\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: "CONNECT"})
	if err != nil {
		r.t.Fatal(err)
	}
	return c, res
}

// TestOneHost: CONNECT, SNI and Host header must agree.
func TestOneHost(t *testing.T) {
	for _, tt := range []struct {
		name    string
		withCA  bool
		connect string
		sni     string
		request string
		want    string // status line's code and kind; "cut": the tunnel ends
	}{
		{"all agree", true, "whole.example.com:443", "whole.example.com", "GET / HTTP/1.1\r\nHost: whole.example.com\r\n\r\n", "200 "},
		{"case, dot and port", true, "Whole.example.com:443", "WHOLE.example.com", "GET / HTTP/1.1\r\nHost: whole.Example.com.:443\r\n\r\n", "200 "},
		{"no SNI", true, "whole.example.com:443", "", "GET / HTTP/1.1\r\nHost: whole.example.com\r\n\r\n", "200 "},
		{"SNI differs", true, "whole.example.com:443", "api.example.com", "GET / HTTP/1.1\r\nHost: whole.example.com\r\n\r\n", "403 host"},
		{"Host differs", true, "whole.example.com:443", "whole.example.com", "GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n", "403 host"},
		{"Host's port differs", true, "whole.example.com:443", "whole.example.com", "GET / HTTP/1.1\r\nHost: whole.example.com:80\r\n\r\n", "403 host"},
		{"absolute URL differs", true, "whole.example.com:443", "whole.example.com", "GET https://api.example.com/ HTTP/1.1\r\nHost: whole.example.com\r\n\r\n", "403 host"},
		{"no Host", true, "whole.example.com:443", "whole.example.com", "GET / HTTP/1.0\r\n\r\n", "403 host"},
		{"two Hosts", true, "whole.example.com:443", "whole.example.com", "GET / HTTP/1.1\r\nHost: whole.example.com\r\nHost: api.example.com\r\n\r\n", "400 "},
		{"CONNECT inside", true, "whole.example.com:443", "whole.example.com", "CONNECT whole.example.com:443 HTTP/1.1\r\nHost: whole.example.com:443\r\n\r\n", "405 request"},
		{"both lengths", true, "whole.example.com:443", "whole.example.com", "POST / HTTP/1.1\r\nHost: whole.example.com\r\nContent-Length: 4\r\nTransfer-Encoding: identity\r\n\r\nabcd", "501 "},
		{"unrouted", true, "new.example.com:443", "new.example.com", "GET / HTTP/1.1\r\nHost: new.example.com\r\n\r\n", "403 host"},
		{"tunnel", false, "whole.example.com:443", "whole.example.com", "GET / HTTP/1.1\r\nHost: whole.example.com\r\n\r\n", "200 spoofed"},
		{"tunnel, SNI differs", false, "whole.example.com:443", "api.example.com", "", "cut"},
		{"tunnel, no SNI", false, "whole.example.com:443", "", "", "cut"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newEchoWorld(t)
			p := w.start(table1, tt.withCA, Options{Env: env})
			c, res := p.connectTo(tt.connect)
			if res.StatusCode != 200 {
				t.Fatalf("CONNECT = %s, want 200", res.Status)
			}
			tc := tls.Client(c, &tls.Config{ServerName: tt.sni, InsecureSkipVerify: true})
			if err := tc.Handshake(); err != nil {
				if tt.want != "cut" {
					t.Errorf("handshake: %v", err)
				}
				return
			}
			io.WriteString(tc, tt.request)
			res, err := http.ReadResponse(bufio.NewReader(tc), nil)
			if err != nil {
				t.Fatal(err)
			}
			status, kind, body := answer(t, res)
			if got := fmt.Sprintf("%d %s", status, kind); got != tt.want {
				t.Errorf("answer = %s, want %s; body:\n%s", got, tt.want, body)
			}
		})
	}
}

// TestSmuggling: what has two readings is refused or sent on in one.
func TestSmuggling(t *testing.T) {
	w := newEchoWorld(t)
	p := w.start(table1, false, Options{})
	c := p.raw("POST http://whole.example.com/a HTTP/1.1\r\nHost: whole.example.com\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n" +
		"3\r\nabc\r\n0\r\n\r\nGET http://new.example.com/b HTTP/1.1\r\nHost: new.example.com\r\n\r\n")
	br := bufio.NewReader(c)
	res, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	status, _, body := answer(t, res)
	if status == 200 && (!strings.Contains(body, "\n\nabc") || strings.Contains(body, "Content-Length")) {
		t.Errorf("the origin saw %q, want the chunked body alone", body)
	}
	// Whatever follows is judged by itself or not read at all.
	if res, err := http.ReadResponse(br, nil); err == nil && res.StatusCode == 200 {
		t.Errorf("the second request got %s, want a refusal or the end", res.Status)
	}
}

// TestHostHeaderOfPlainRequest: the absolute URL governs.
func TestHostHeaderOfPlainRequest(t *testing.T) {
	p := newEchoWorld(t).start(table1, false, Options{})
	res, err := http.ReadResponse(bufio.NewReader(p.raw("GET http://whole.example.com/ HTTP/1.1\r\nHost: api.example.com\r\n\r\n")), nil)
	if err != nil {
		t.Fatal(err)
	}
	if status, _, body := answer(t, res); status != 200 || !strings.HasPrefix(body, "GET /\nHost: whole.example.com\n") {
		t.Errorf("GET = %d %q, want the URL's host at the origin", status, body)
	}
}

// TestPlainInsideConnect is how clients open ws:// through a proxy.
func TestPlainInsideConnect(t *testing.T) {
	for _, withCA := range []bool{false, true} {
		p := newEchoWorld(t).start(table1, withCA, Options{})
		c, res := p.connectTo("whole.example.com:80")
		if res.StatusCode != 200 {
			t.Fatalf("CONNECT = %s, want 200", res.Status)
		}
		br := bufio.NewReader(c)
		for _, tt := range []struct{ host, want string }{{"whole.example.com", "200 "}, {"api.example.com", "403 host"}} {
			fmt.Fprintf(c, "GET /x HTTP/1.1\r\nHost: %s\r\n\r\n", tt.host)
			res, err := http.ReadResponse(br, nil)
			if err != nil {
				t.Fatal(err)
			}
			status, kind, _ := answer(t, res)
			if got := fmt.Sprintf("%d %s", status, kind); got != tt.want {
				t.Errorf("CA %v: GET with Host %s = %s, want %s", withCA, tt.host, got, tt.want)
			}
		}
	}
}

// TestHTTP1ByALPN: a client that can do HTTP/2 is talked out of it.
func TestHTTP1ByALPN(t *testing.T) {
	p := newEchoWorld(t).start(table1, true, Options{})
	c := p.client()
	c.Transport.(*http.Transport).ForceAttemptHTTP2 = true
	res, err := c.Get("https://whole.example.com/")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.Proto != "HTTP/1.1" || res.TLS.NegotiatedProtocol != "http/1.1" {
		t.Errorf("spoke %s, negotiated %q; want HTTP/1.1", res.Proto, res.TLS.NegotiatedProtocol)
	}
}

// TestUpgrade: a WebSocket handshake passes, and bytes then go both ways.
func TestUpgrade(t *testing.T) {
	w := newWorld(t)
	w.serve("whole.example.com", "9.9.9.1", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "websocket" || r.Header.Get("Connection") != "Upgrade" {
			http.Error(rw, "no upgrade", http.StatusBadRequest)
			return
		}
		c, buf, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		io.Copy(c, buf)
	}))
	p := w.start(table1, true, Options{})
	const hello = "GET %s HTTP/1.1\r\nHost: whole.example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
	for _, scheme := range []string{"http", "https"} {
		var c net.Conn
		if scheme == "http" {
			c = p.raw(fmt.Sprintf(hello, "http://whole.example.com/ws"))
		} else {
			raw, _ := p.connectTo("whole.example.com:443")
			c = tls.Client(raw, &tls.Config{ServerName: "whole.example.com", RootCAs: p.caPool})
			fmt.Fprintf(c, hello, "/ws")
		}
		br := bufio.NewReader(c)
		res, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != 101 {
			t.Fatalf("%s: %s, want 101", scheme, res.Status)
		}
		for _, word := range []string{"ping", "pong"} {
			io.WriteString(c, word)
			got := make([]byte, 4)
			if _, err := io.ReadFull(br, got); err != nil || string(got) != word {
				t.Errorf("%s: read %q, %v; want %q", scheme, got, err, word)
			}
		}
		c.Close()
	}
}

// TestUpgradeWithBody: an empty body is none, however late it ends, and with another there is no upgrade, whatever the origin says.
func TestUpgradeWithBody(t *testing.T) {
	w := newWorld(t)
	asked := make(chan struct{}, 1) // the origin is
	w.serve("whole.example.com", "9.9.9.1", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		select {
		case asked <- struct{}{}:
		default:
		}
		if r.URL.Path == "/ws" && r.Header.Get("Upgrade") != "websocket" {
			echo(rw, r)
			return
		}
		c, buf, err := http.NewResponseController(rw).Hijack() // with the body unread
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\n")
		if r.URL.Path != "/bare" {
			io.WriteString(c, "Connection: Upgrade\r\nUpgrade: websocket\r\n")
		}
		io.WriteString(c, "\r\n")
		io.Copy(c, buf)
	}))
	const (
		upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n"
		chunked = "Transfer-Encoding: chunked\r\n"
		length  = "Content-Length: 3\r\n"
	)
	for _, tt := range []struct {
		name, path, header string
		body               []string      // sent one by one
		want               string        // status line's code and kind
		limit              time.Duration // for the first of the body; if zero, the default
	}{
		{"empty", "/ws", upgrade + chunked, []string{"0\r\n\r\n"}, "101 ", 0},
		{"empty, ends later", "/ws", upgrade + chunked, []string{"", "0\r\n\r\n"}, "101 ", 0},
		{"chunked", "/ws", upgrade + chunked, []string{"3\r\nabc\r\n0\r\n\r\n"}, "200 ", 0},
		{"chunked, ends later", "/ws", upgrade + chunked, []string{"3\r\nabc\r\n", "0\r\n\r\n"}, "200 ", 0},
		{"of a length", "/ws", upgrade + length, []string{"abc"}, "200 ", 0},
		{"of a length, ends later", "/ws", upgrade + length, []string{"a", "bc"}, "200 ", 0},
		{"of a length, ends after the limit", "/ws", upgrade + length, []string{"a", "bc"}, "200 ", 500 * time.Millisecond},
		{"never begins", "/ws", upgrade + chunked, nil, "400 request", 500 * time.Millisecond},
		{"never ends, unasked", "/always", upgrade + length, []string{"a"}, "502 ", 0},
		{"never ends, unasked, bare", "/bare", upgrade + length, []string{"a"}, "502 ", 0},
		{"unasked", "/always", "", nil, "502 ", 0},
		{"unasked, bare", "/bare", "", nil, "502 ", 0},
	} {
		for _, scheme := range []string{"http", "https"} {
			t.Run(tt.name+" "+scheme, func(t *testing.T) {
				select {
				case <-asked: // by the one before
				default:
				}
				p := w.start(table1, true, Options{Timings: Timings{Header: tt.limit}})
				var c net.Conn
				uri := "http://whole.example.com" + tt.path
				if scheme == "http" {
					c = p.raw("")
				} else {
					raw, _ := p.connectTo("whole.example.com:443")
					c, uri = tls.Client(raw, &tls.Config{ServerName: "whole.example.com", RootCAs: p.caPool}), tt.path
				}
				io.WriteString(c, "GET "+uri+" HTTP/1.1\r\nHost: whole.example.com\r\n"+tt.header+"\r\n")
				for i, piece := range tt.body {
					if i > 0 && tt.body[0] != "" { // what began goes on to the origin
						<-asked
						<-time.After(tt.limit) // which is over then: it is for the beginning
					} else if i > 0 {
						select {
						case <-asked:
							t.Error("the origin is asked before it is known whether there is a body")
						case <-time.After(20 * time.Millisecond):
						}
					}
					io.WriteString(c, piece)
				}
				br := bufio.NewReader(c)
				res, err := http.ReadResponse(br, nil)
				if err != nil {
					t.Fatal(err)
				}
				if got := fmt.Sprintf("%d %s", res.StatusCode, res.Header.Get(Header)); got != tt.want {
					t.Fatalf("answer = %s, want %s", got, tt.want)
				}
				switch res.StatusCode {
				case 101:
					for _, word := range []string{"ping", "pong"} {
						io.WriteString(c, word)
						got := make([]byte, 4)
						if _, err := io.ReadFull(br, got); err != nil || string(got) != word {
							t.Errorf("read %q, %v; want %q", got, err, word)
						}
					}
				case 200:
					if _, _, body := answer(t, res); strings.Contains(body, "Upgrade") || !strings.HasSuffix(body, "\n\nabc") {
						t.Errorf("the origin saw %q, want the body and no upgrade", body)
					}
				default:
					if unread := len(tt.header) > 0; res.Close != unread {
						t.Errorf("close %v, want %v", res.Close, unread)
					}
				}
				c.Close()
				if err := p.stop(); err != nil {
					t.Error(err)
				}
				if log := p.log.String(); strings.Contains(log, "panic") {
					t.Errorf("the proxy panicked:\n%s", log)
				}
			})
		}
	}
}

// TestStreaming: each piece goes through before the next is sent, both ways, in every mode.
func TestStreaming(t *testing.T) {
	w := newWorld(t)
	w.serve("whole.example.com", "9.9.9.1", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(rw)
		if err := rc.EnableFullDuplex(); err != nil {
			t.Error(err)
		}
		rw.WriteHeader(200)
		rc.Flush()
		buf := make([]byte, 64)
		for {
			n, err := r.Body.Read(buf)
			rw.Write(bytes.ToUpper(buf[:n]))
			rc.Flush()
			if err != nil {
				return
			}
		}
	}))
	for _, mode := range []struct {
		scheme string
		withCA bool
	}{{"http", false}, {"https", false}, {"https", true}} {
		p := w.start(table1, mode.withCA, Options{})
		pr, pw := io.Pipe()
		req, err := http.NewRequestWithContext(t.Context(), "POST", mode.scheme+"://whole.example.com/", pr)
		if err != nil {
			t.Fatal(err)
		}
		res, err := p.client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 3)
		for _, word := range []string{"one", "two", "six"} {
			io.WriteString(pw, word)
			if _, err := io.ReadFull(res.Body, got); err != nil || string(got) != strings.ToUpper(word) {
				t.Fatalf("%v: read %q, %v; want %q", mode, got, err, strings.ToUpper(word))
			}
		}
		pw.Close()
		if rest, err := io.ReadAll(res.Body); err != nil || len(rest) > 0 {
			t.Errorf("%v: rest %q, %v; want the end", mode, rest, err)
		}
		res.Body.Close()
	}
}

// TestClientGone: whoever hangs up ends the origin's work too.
func TestClientGone(t *testing.T) {
	w := newWorld(t)
	began, ended := make(chan struct{}), make(chan struct{})
	w.serve("whole.example.com", "9.9.9.1", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		began <- struct{}{}
		<-r.Context().Done()
		ended <- struct{}{}
	}))
	for _, mode := range []struct {
		scheme string
		withCA bool
	}{{"http", false}, {"https", false}, {"https", true}} {
		p := w.start(table1, mode.withCA, Options{})
		ctx, cancel := context.WithCancel(t.Context())
		req, err := http.NewRequestWithContext(ctx, "GET", mode.scheme+"://whole.example.com/", nil)
		if err != nil {
			t.Fatal(err)
		}
		failed := make(chan error, 1)
		go func() {
			_, err := p.client().Do(req)
			failed <- err
		}()
		<-began
		cancel()
		if err := <-failed; !errors.Is(err, context.Canceled) {
			t.Errorf("%v: Do = %v, want canceled", mode, err)
		}
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			t.Fatalf("%v: the origin still works for nobody", mode)
		}
	}
}

// TestUnreachable: an allowed host that is down is not refused.
func TestUnreachable(t *testing.T) {
	p := newEchoWorld(t).start(table1, true, Options{})
	for _, scheme := range []string{"http", "https"} {
		status, kind, body := ask(t, p.client(), "GET", scheme+"://down.example.com/x")
		if status != 502 || kind != "" || !strings.Contains(body, "is allowed, but could not be reached: resolving down.example.com") {
			t.Errorf("%s = %d %q %q, want a 502 that names the cause", scheme, status, kind, body)
		}
	}
}

// TestOddAnswers: what an origin says in HTTP of its own making does no harm.
func TestOddAnswers(t *testing.T) {
	w := newWorld(t)
	w.serve("whole.example.com", "9.9.9.1", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		c, _, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 "+r.URL.Path[1:]+" What\r\nContent-Length: 0\r\n\r\n")
	}))
	p := w.start(table1, true, Options{})
	for _, tt := range []struct {
		status string
		want   int
	}{{"000", 502}, {"099", 502}, {"599", 599}, {"999", 999}, {"20", 502}, {"-20", 502}, {"2000", 502}} {
		for _, scheme := range []string{"http", "https"} {
			if status, kind, body := ask(t, p.client(), "GET", scheme+"://whole.example.com/"+tt.status); status != tt.want || kind != "" {
				t.Errorf("%s: status %s = %d %q %q, want %d", scheme, tt.status, status, kind, body, tt.want)
			}
		}
	}
	if err := p.stop(); err != nil {
		t.Error(err)
	}
	if log := p.log.String(); strings.Contains(log, "panic") {
		t.Errorf("the proxy panicked:\n%s", log)
	}
}

// TestBodyLeftUnread: whoever is answered before his body was read has the whole answer, and a connection that goes on or ends
// properly: after each such request there is another.
func TestBodyLeftUnread(t *testing.T) {
	w := newWorld(t)
	w.serve("whole.example.com", "9.9.9.1", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/early" {
			http.NewResponseController(rw).EnableFullDuplex() // else net/http reads the body first
			rw.Header().Set("Connection", "close")            // else it panics, as the proxy did
			rw.WriteHeader(http.StatusRequestEntityTooLarge)
			io.WriteString(rw, "too large")
			return
		}
		io.Copy(rw, r.Body)
	}))
	for _, scheme := range []string{"http", "https"} {
		p := w.start(table1, true, Options{})
		client := p.client()
		for _, tt := range []struct {
			url   string
			size  int
			want  int
			close []bool // the connection may be used again, or not
		}{
			{"down.example.com/x", 9, 502, []bool{true}},
			{"whole.example.com/early", 100 << 10, 413, []bool{true, false}},
			{"whole.example.com/early", 3 << 20, 413, []bool{true, false}},
			{"whole.example.com/", 100 << 10, 200, []bool{false}},
		} {
			for range 3 {
				res, err := client.Post(scheme+"://"+tt.url, "text/plain", bytes.NewReader(make([]byte, tt.size)))
				if err != nil {
					t.Fatalf("%s %s, %d bytes: %v", scheme, tt.url, tt.size, err)
				}
				if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != tt.want || !slices.Contains(tt.close, res.Close) {
					t.Errorf("%s %s, %d bytes: %d, close %v, %v; want %d, close %v", scheme, tt.url, tt.size, res.StatusCode, res.Close, err, tt.want, tt.close)
				}
				res.Body.Close()
			}
		}
		if err := p.stop(); err != nil {
			t.Error(err)
		}
		if strings.Contains(p.log.String(), "panic") {
			t.Errorf("%s: the proxy panicked", scheme)
		}
	}
}

// TestRefusedWithALargeBody: whoever sends all of it before he reads has the refusal, and so has he who waits for it in the middle.
func TestRefusedWithALargeBody(t *testing.T) {
	p := newEchoWorld(t).start(table1, true, Options{})
	piece := strings.Repeat("a", 1<<20)
	for _, tt := range []struct {
		name, header  string
		before, after int // pieces
	}{
		{"large", "Content-Length: 33554432\r\n", 32, 0},
		{"chunked", "Transfer-Encoding: chunked\r\n", 32, 0},
		{"in the middle", "Content-Length: 33554432\r\n", 1, 31},
		{"in the middle, chunked", "Transfer-Encoding: chunked\r\n", 1, 31},
	} {
		for _, scheme := range []string{"http", "https"} {
			var c net.Conn
			uri := "http://new.example.com/"
			if scheme == "http" {
				c = p.raw("")
			} else {
				raw, _ := p.connectTo("new.example.com:443")
				c, uri = tls.Client(raw, &tls.Config{ServerName: "new.example.com", RootCAs: p.caPool}), "/"
			}
			send := func(n int) {
				for range n {
					text := piece
					if strings.Contains(tt.header, "chunked") {
						text = fmt.Sprintf("%x\r\n%s\r\n", len(piece), piece)
					}
					if _, err := io.WriteString(c, text); err != nil {
						t.Fatalf("%s %s: sending: %v", scheme, tt.name, err)
					}
				}
			}
			io.WriteString(c, "POST "+uri+" HTTP/1.1\r\nHost: new.example.com\r\n"+tt.header+"\r\n")
			send(tt.before)
			res, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatalf("%s %s: %v", scheme, tt.name, err)
			}
			if status, kind, body := answer(t, res); status != 403 || kind != "host" || !strings.Contains(body, "egress-block") || !res.Close {
				t.Errorf("%s %s = %d %q %q, close %v; want 403 host, and the connection's end", scheme, tt.name, status, kind, body, res.Close)
			}
			send(tt.after)
			c.Close()
		}
	}
	if err := p.stop(); err != nil {
		t.Error(err)
	}
	if log := p.log.String(); strings.Contains(log, "panic") {
		t.Errorf("the proxy panicked:\n%s", log)
	}
}

// TestOriginCertificate: the proxy checks what the client no longer can.
func TestOriginCertificate(t *testing.T) {
	w := newEchoWorld(t)
	w.servers["9.9.9.2:443"] = w.servers["9.9.9.1:443"] // whole.example.com shows another's certificate
	p := w.start(table1, true, Options{})
	if status, _, body := ask(t, p.client(), "GET", "https://whole.example.com/"); status != 502 || !strings.Contains(body, "certificate is valid for api.example.com") {
		t.Errorf("GET = %d %q, want 502 for the wrong certificate", status, body)
	}
}
