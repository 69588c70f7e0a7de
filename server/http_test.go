package server

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

const listBody = `{"jsonrpc":"2.0","id":1,"method":"tools/list"}`

const (
	initBody    = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"x","version":"1"}}}`
	initBodyNew = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28",` +
		`"io.modelcontextprotocol/clientCapabilities":{}},"protocolVersion":"2026-07-28","capabilities":{},"clientInfo":{"name":"x","version":"1"}}}`
)

func TestSurface(t *testing.T) {
	hostname, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	f := serve(t, Options{AllowedHosts: []string{"supervise.bots.svc"}}, false)
	big := `{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"x":"` + strings.Repeat("a", maxBody) + `"}}`
	for _, tt := range []struct {
		name   string
		method string
		path   string
		header string // "K: V", parted by newlines; Host is special
		body   string
		status int
		want   string // in the body, or in a header if it has the form "K: V"
	}{
		{"health", "GET", "/health", "", "", 200, "ok\n"},
		{"health of an event stream reader", "GET", "/health", "Accept: text/event-stream", "", 200, "ok\n"},
		{"ready", "GET", "/ready", "", "", 200, "ready\n"},
		{"GET", "GET", "/", "", "", 405, "use POST for MCP requests\n"},
		{"GET says what is allowed", "GET", "/", "", "", 405, "Allow: POST"},
		{"GET that accepts anything", "GET", "/mcp", "Accept: */*", "", 405, "use POST for MCP requests\n"},
		{"GET for events without a session", "GET", "/", "Accept: text/event-stream", "", 400, "Mcp-Session-Id"},
		{"GET of an unknown session", "GET", "/", "Mcp-Session-Id: nosuch\nAccept: text/event-stream", "", 404, "session not found"},
		{"GET of the new protocol", "GET", "/", "MCP-Protocol-Version: 2026-07-28\nAccept: text/event-stream", "", 405, "Allow: POST"},
		{"DELETE of an unknown session", "DELETE", "/", "Mcp-Session-Id: nosuch", "", 404, "session not found"},
		{"DELETE without a session", "DELETE", "/", "", "", 405, "Allow: POST, GET, DELETE"},
		{"PUT", "PUT", "/", "", "{}", 405, "Allow: POST, GET, DELETE"},
		{"HEAD", "HEAD", "/health", "", "", 405, "Allow: POST, GET, DELETE"},
		{"OPTIONS", "OPTIONS", "/", "", "", 405, "use POST"},
		{"POST to health", "POST", "/health", "", listBody, 200, `"echo"`},
		{"POST to any path", "POST", "/a/b", "", listBody, 200, `"echo"`},
		{"POST that is no JSON", "POST", "/", "", "hello", 400, "malformed payload"},
		{"POST with more behind it", "POST", "/", "", listBody + " x", 400, "malformed payload"},
		{"POST of two messages that are no array", "POST", "/", "", listBody + listBody, 400, "malformed payload"},
		{"POST of an array with more behind it", "POST", "/", "", "[" + listBody + "] x", 400, "malformed payload"},
		{"POST of an array of others", "POST", "/", "", "[1]", 400, "malformed payload"},
		{"header of 32 KiB", "POST", "/", "X: " + strings.Repeat("x", 32<<10), listBody, 431, ""},
		{"POST of nothing", "POST", "/", "", "", 400, "non-empty body"},
		{"POST of too much, stateless", "POST", "/", "", big, 413, "over 1048576 bytes"},
		{"POST of too much, with a version", "POST", "/", "MCP-Protocol-Version: 2025-11-25", big, 413, "over 1048576 bytes"},
		{"POST in an unknown session", "POST", "/", "Mcp-Session-Id: nosuch\nMCP-Protocol-Version: 2025-11-25", listBody, 404, "session not found"},
		{"unknown version", "POST", "/", "MCP-Protocol-Version: zzz", listBody, 400, `\"zzz\" is not supported; use one of 2026-07-28, 2025-11-25`},
		{"version of the future", "POST", "/", "MCP-Protocol-Version: 2099-01-01", listBody, 400, `"id":1`},
		{"version of the past", "POST", "/", "MCP-Protocol-Version: 1999-01-01", listBody, 400, `"requested":"1999-01-01"`},
		{"initialize of the new era", "POST", "/", "MCP-Protocol-Version: 2026-07-28\nMcp-Method: initialize", initBodyNew, 404, "-32601"},
		{"hostile version", "POST", "/", "MCP-Protocol-Version: \u202e<b>", listBody, 400, `202e`},
		{"Host supervise", "POST", "/", "Host: supervise:9100", listBody, 200, `"echo"`},
		{"Host localhost", "POST", "/", "Host: LOCALHOST", listBody, 200, `"echo"`},
		{"Host with a dot", "POST", "/", "Host: localhost.:80", listBody, 200, `"echo"`},
		{"Host of IPv6 loopback", "POST", "/", "Host: [::1]:9100", listBody, 200, `"echo"`},
		{"own Host", "POST", "/", "Host: " + hostname, listBody, 200, `"echo"`},
		{"allowed Host", "POST", "/", "Host: supervise.bots.svc:80", listBody, 200, `"echo"`},
		{"rebound Host", "POST", "/", "Host: evil.example", listBody, 403, "SUPERVISE_ALLOWED_HOSTS"},
		{"rebound Host to health", "GET", "/health", "Host: evil.example", "", 403, `Host "evil.example" is not a name`},
		{"Host that ends like ours", "POST", "/", "Host: notlocalhost", listBody, 403, "SUPERVISE_ALLOWED_HOSTS"},
		{"another address as Host", "POST", "/", "Host: 10.1.2.3", listBody, 403, "SUPERVISE_ALLOWED_HOSTS"},
		{"own Origin", "POST", "/", "Origin: http://localhost:5173", listBody, 200, `"echo"`},
		{"foreign Origin", "POST", "/", "Origin: https://evil.example", listBody, 403, `Origin "https://evil.example" is not a name`},
		{"null Origin", "POST", "/", "Origin: null", listBody, 403, "SUPERVISE_ALLOWED_HOSTS"},
		{"no MIME sniffing", "GET", "/health", "", "", 200, "X-Content-Type-Options: nosniff"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			req, err := http.NewRequest(tt.method, "http://"+f.srv.Addr().String()+tt.path, strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			if tt.method == "POST" {
				req.Header.Set("Content-Type", "application/json")
				req.Header.Set("Accept", "application/json, text/event-stream")
			}
			for line := range strings.Lines(tt.header) {
				k, v, _ := strings.Cut(strings.TrimSpace(line), ": ")
				if k == "Host" {
					req.Host = v
				}
				req.Header.Set(k, v)
			}
			res, err := f.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			if err != nil {
				t.Fatal(err)
			}
			if res.StatusCode != tt.status {
				t.Errorf("status %d, want %d; body %.200q", res.StatusCode, tt.status, body)
			}
			if k, v, ok := strings.Cut(tt.want, ": "); ok && !strings.Contains(k, " ") {
				if got := res.Header.Get(k); got != v {
					t.Errorf("%s: %q, want %q", k, got, v)
				}
			} else if !strings.Contains(string(body), tt.want) {
				t.Errorf("body %.300q, want %q in it", body, tt.want)
			}
		})
	}
	f.wantIdle(t)
}

// TestIDs: an id comes back as it was sent, or is refused.
func TestIDs(t *testing.T) {
	f := serve(t, Options{}, false)
	for _, tt := range []struct {
		id string
		ok bool
	}{
		{"1", true}, {"0", true}, {"-7", true}, {`"1.5"`, true}, {`""`, true},
		{"9007199254740991", true}, {"-9007199254740991", true},
		{"9007199254740993", false}, {"-9007199254740993", false}, {"9223372036854775807", false}, // more than a float64 holds
		{"1.5", false}, {"1.0", false}, {"1e3", false}, {"1" + strings.Repeat("0", 30), false},
		{"true", false}, {"{}", false}, {"[1]", false},
	} {
		for name, body := range map[string]string{
			"alone":    `{"jsonrpc":"2.0","id":` + tt.id + `,"method":"ping"}`,
			"in batch": `[{"jsonrpc":"2.0","id":"a","method":"ping"},{"jsonrpc":"2.0","id":` + tt.id + `,"method":"ping"}]`,
		} {
			res, err := f.send(t.Context(), raw{body: body})
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(res.Body)
			res.Body.Close()
			if err != nil {
				t.Fatal(err)
			}
			if tt.ok {
				if !strings.Contains(string(b), `"id":`+tt.id+`,`) || res.StatusCode != 200 {
					t.Errorf("id %s %s: %s %.300s, want it back", tt.id, name, res.Status, b)
				}
				continue
			}
			var got struct {
				ID    json.RawMessage
				Error struct {
					Code    int
					Message string
				}
			}
			if err := json.Unmarshal(b, &got); err != nil || res.StatusCode != 400 || string(got.ID) != "null" || got.Error.Code != -32600 ||
				!strings.Contains(got.Error.Message, "id "+tt.id+" must be a string of at most 256 bytes, or an integer from -9007199254740991 to 9007199254740991") {
				t.Errorf("id %s %s: %s %.300s, want it refused with its name", tt.id, name, res.Status, b)
			}
		}
	}
	f.wantIdle(t)
}

func TestLocalAddressAsHost(t *testing.T) {
	l, err := newHostList("0.0.0.0:9100", nil)
	if err != nil {
		t.Fatal(err)
	}
	local := &net.TCPAddr{IP: net.ParseIP("172.18.0.3"), Port: 9100}
	for host, want := range map[string]bool{
		"172.18.0.3:9100": true, "172.18.0.3": true, "172.18.0.4": false, "[::ffff:172.18.0.3]": true,
		"127.9.9.9": true, "": false, "[": false, "0.0.0.0": false, "[::]": false,
	} {
		if got := l.allows(host, local); got != want {
			t.Errorf("allows(%q) on %s = %v, want %v", host, local, got, want)
		}
	}
}

func TestToken(t *testing.T) {
	f := serve(t, Options{Token: "s3cret"}, false)
	for _, tt := range []struct {
		path, auth string
		status     int
	}{
		{"/", "", 401},
		{"/", "Bearer", 401},
		{"/", "Bearer wrong", 401},
		{"/", "Bearer s3cret2", 401},
		{"/", "Basic s3cret", 401},
		{"/", "Bearer s3cret", 200},
		{"/", "bearer s3cret", 200},
	} {
		res, err := f.send(t.Context(), raw{body: listBody, header: map[string]string{"Authorization": tt.auth}})
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != tt.status {
			t.Errorf("Authorization %q: %s, want %d", tt.auth, res.Status, tt.status)
		}
		if tt.status == 401 {
			if res.Header.Get("WWW-Authenticate") == "" || !strings.Contains(string(body), "SUPERVISE_TOKEN") || strings.Contains(string(body), "s3cret") {
				t.Errorf("Authorization %q: no challenge, or no mend: %s", tt.auth, body)
			}
		}
	}
	for _, path := range []string{"health", "ready"} {
		res, err := f.client.Get(f.url + path)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusOK {
			t.Errorf("GET /%s without a token: %s, want 200", path, res.Status)
		}
	}
	res, err := f.send(t.Context(), raw{method: "PUT"})
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusUnauthorized {
		t.Errorf("PUT without a token: %s, want 401", res.Status)
	}
}

func TestReady(t *testing.T) {
	var broken error
	f := serve(t, Options{Ready: func() error { return broken }}, false)
	for _, err := range []error{nil, fmt.Errorf("mailbox vanished"), nil} {
		broken = err
		res, rerr := f.client.Get(f.url + "ready")
		if rerr != nil {
			t.Fatal(rerr)
		}
		res.Body.Close()
		want := http.StatusOK
		if err != nil {
			want = http.StatusServiceUnavailable
		}
		if res.StatusCode != want {
			t.Errorf("ready with %v: %s, want %d", err, res.Status, want)
		}
	}
}

// A client cannot name the exchange that its call belongs to.
func TestForgedKey(t *testing.T) {
	f := serve(t, Options{}, false)
	res := f.hold(t, t.Context(), raw{body: askBody})
	defer res.Body.Close()
	f.srv.calls.mu.Lock()
	var key string
	for key = range f.srv.calls.exchanges {
	}
	f.srv.calls.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	forged := f.hold(t, ctx, raw{body: askBody, header: map[string]string{keyHeader: key}})
	cancel()
	forged.Body.Close()
	<-f.ended // the forged call alone
	f.answer <- "mine"
	if got := readEvents(res.Body).result(t); got != "mine" {
		t.Errorf("answer %q", got)
	}
}

// Who sends headers or a body byte by byte is cut off; a call that holds is not.
func TestSlowBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := serve(t, Options{}, true)
		ln := f.srv.ln.(*memListener)
		for _, tt := range []struct {
			name, send, want string
			after            time.Duration
		}{
			{"headers", "POST / HTTP/1.1\r\nHost: localhost\r\nX-A: ", "", 10 * time.Second},
			{"body", "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{", "408 Request Timeout", 30 * time.Second},
			{"body of a refused request", "POST / HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 100\r\n\r\n{", "403 Forbidden", 30 * time.Second},
		} {
			conn, err := ln.dial(t.Context(), "", "")
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			if _, err := io.WriteString(conn, tt.send); err != nil {
				t.Fatal(err)
			}
			got, _ := io.ReadAll(conn)
			if !strings.Contains(string(got), tt.want) {
				t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
			}
			if d := time.Since(start); d < tt.after || d > tt.after+5*time.Second {
				t.Errorf("%s: closed after %s, want %s", tt.name, d, tt.after)
			}
			conn.Close()
		}
	})
}

// A connection serves requests until one of them is held: it ends with that one's response, which says so beforehand.
func TestConnectionEndsWithHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := serve(t, Options{}, true)
		conn, err := f.srv.ln.(*memListener).dial(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		br := bufio.NewReader(conn)
		request := func(body, want string) *http.Response {
			t.Helper()
			fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
			res, err := http.ReadResponse(br, nil)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(res.Body)
			if err != nil || !strings.Contains(string(got), want) {
				t.Fatalf("got %q, %v, want %s", got, err, want)
			}
			time.Sleep(90 * time.Second)
			return res
		}
		for range 3 {
			if res := request(`{"jsonrpc":"2.0","id":1,"method":"ping"}`, `"result":{}`); res.Close {
				t.Error("a response that is not held ends the connection")
			}
		}
		go func() {
			<-f.began
			time.Sleep(time.Hour)
			f.answer <- "approved"
		}()
		if res := request(askBody, "approved"); !res.Close {
			t.Error("a held response does not say that it ends the connection")
		}
		if _, err := br.ReadByte(); err != io.EOF {
			t.Errorf("after a held response: %v, want the end", err)
		}
	})
}

func TestListenAddr(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, err = New(Options{Addr: ln.Addr().String(), Register: func(*mcp.Server) {}})
	if err == nil || !strings.Contains(err.Error(), "SUPERVISE_PORT") || !strings.Contains(err.Error(), ln.Addr().String()) {
		t.Errorf("New on a taken port: %v, want the address and the mend", err)
	}
	_, err = New(Options{AllowedHosts: []string{"http://x/"}, Register: func(*mcp.Server) {}})
	if err == nil || !strings.Contains(err.Error(), "SUPERVISE_ALLOWED_HOSTS") {
		t.Errorf("New with a URL as allowed host: %v, want the variable", err)
	}
	srv, err := New(Options{Register: func(*mcp.Server) {}})
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func TestParseEvent(t *testing.T) {
	for _, tt := range []struct{ in, event, answers string }{
		{"event: prime\nid: AB_0\ndata: \n\n", "AB_0", ""},
		{"event: message\nid: AB_1\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\"params\":{}}\n\n", "AB_1", ""},
		{"event: message\nid: AB_2\ndata: {\"jsonrpc\":\"2.0\",\"id\":7,\"result\":{\"id\":9}}\n\n", "AB_2", "7"},
		{"event: message\ndata: {\"jsonrpc\":\"2.0\",\"id\":\"x\",\"error\":{}}\n\n", "", `"x"`},
		{"event: message\ndata: {\"jsonrpc\":\"2.0\",\"id\":3,\"method\":\"ping\"}\n\n", "", ""},
		{`{"jsonrpc":"2.0","id":3,"error":{"code":-32602}}`, "", "3"},
		{`{"jsonrpc":"2.0","id":null,"error":{"code":-32602}}`, "", ""},
		{": comment\n\n", "", ""},
		{"Bad Request\n", "", ""},
	} {
		if event, answers := parseEvent([]byte(tt.in)); event != tt.event || answers != tt.answers {
			t.Errorf("parseEvent(%q) = %q, %q, want %q, %q", tt.in, event, answers, tt.event, tt.answers)
		}
	}
}

func TestEventStore(t *testing.T) {
	s := newEventStore()
	ctx := t.Context()
	read := func(stream string, after int) (n int, err error) {
		for _, e := range s.After(ctx, "s", stream, after) {
			if e != nil {
				return n, e
			}
			n++
		}
		return n, nil
	}
	check := func(stream string, after, want int, wantErr bool) {
		t.Helper()
		if n, err := read(stream, after); n != want || (err != nil) != wantErr {
			t.Errorf("After(%q, %d): %d events, %v, want %d, error %v", stream, after, n, err, want, wantErr)
		}
	}
	s.Open(ctx, "s", "a")
	for range maxStreamEvents + 10 {
		if err := s.Append(ctx, "s", "a", []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	check("a", 9, maxStreamEvents, false)
	check("a", 8, 0, true) // dropped
	check("a", maxStreamEvents+9, 0, false)
	check("a", 1<<40, 0, false)
	check("nosuch", 0, 0, true)
	if err := s.Append(ctx, "s", "nosuch", nil); err == nil {
		t.Error("Append to a stream that was not opened succeeded")
	}
	// Large answers push out old streams, not the new one.
	for i := range 20 {
		name := fmt.Sprint(i)
		s.Open(ctx, "s", name)
		s.Append(ctx, "s", name, make([]byte, 1<<20))
	}
	check("a", 70, 0, true)
	check("19", -1, 1, false)
	if s.bytes > maxEventBytes {
		t.Errorf("%d bytes are kept, want at most %d", s.bytes, maxEventBytes)
	}
	for i := range 2 * maxEventStreams {
		s.Open(ctx, "t", fmt.Sprint(i))
	}
	if n := s.recent.Len(); n > maxEventStreams || n != len(s.byKey) {
		t.Errorf("%d streams (%d keys) are kept, want at most %d", n, len(s.byKey), maxEventStreams)
	}
	// One on which a person is waited for goes last, and only as long as one is.
	flood := func() {
		for i := range 2 * maxEventStreams {
			s.Open(ctx, "t", fmt.Sprint("more", i))
		}
	}
	s.Open(ctx, "s", "held")
	s.Append(ctx, "s", "held", []byte("x"))
	s.hold("s", "held", true)
	flood()
	check("held", -1, 1, false)
	s.hold("s", "held", false)
	flood()
	check("held", -1, 0, true)
	for i := range 2 * maxEventStreams {
		s.Open(ctx, "s", fmt.Sprint("all", i))
		s.hold("s", fmt.Sprintf("all%d", i), true)
	}
	if n := s.recent.Len() + s.held.Len(); n > maxEventStreams || n != len(s.byKey) {
		t.Errorf("%d streams (%d keys) are kept when all are waited for, want at most %d", n, len(s.byKey), maxEventStreams)
	}
	check(fmt.Sprint("all", 2*maxEventStreams-1), -1, 0, false)
	s.SessionClosed(ctx, "t")
	s.SessionClosed(ctx, "s")
	if s.bytes != 0 || s.recent.Len()+s.held.Len() != 0 || len(s.byKey) != 0 {
		t.Errorf("after the sessions closed %d bytes, %d streams, %d keys are left", s.bytes, s.recent.Len()+s.held.Len(), len(s.byKey))
	}
}

// Whatever comes is answered, without a panic and without anything left behind.
func FuzzHTTP(f *testing.F) {
	for _, body := range []string{listBody, askBody, askBodyNew, "", "[]", "[" + listBody + "," + listBody + "]", `{"id":{}}`, `{"jsonrpc":"2.0","id":1.5,"method":"ping"}`, `null`,
		initBody,
		`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":7}}`,
		`{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen","params":{"notifications":{"toolsListChanged":true}}}`} {
		for _, version := range []string{"", "2025-03-26", "2025-11-25", "2026-07-28", "zzz"} {
			f.Add("POST", body, version, "", "application/json, text/event-stream", "")
		}
	}
	f.Add("GET", "", "2025-11-25", "x", "text/event-stream", "a_0")
	f.Add("DELETE", "", "", "x", "", "")
	ask := newAsker()
	srv, err := New(Options{MaxSessions: 8, Register: ask.register})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { srv.Close() })
	f.Fuzz(func(t *testing.T, method, body, version, session, accept, event string) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, method, "http://localhost/", strings.NewReader(body))
		if err != nil {
			t.Skip()
		}
		for k, v := range map[string]string{"Content-Type": "application/json", "Accept": accept, versionHeader: version,
			sessionHeader: session, eventHeader: event, "Mcp-Method": "tools/call", "Mcp-Name": "ask"} {
			if v != "" {
				req.Header.Set(k, v)
			}
		}
		rec := httptest.NewRecorder()
		done := make(chan struct{})
		go func() {
			defer close(done)
			srv.ServeHTTP(rec, req)
		}()
		select {
		case <-done:
		case <-ask.began: // a call that holds ends with its client
			cancel()
			<-done
		}
		if rec.Code < 200 || rec.Code > 599 {
			t.Errorf("status %d", rec.Code)
		}
		srv.calls.mu.Lock()
		defer srv.calls.mu.Unlock()
		if n := len(srv.calls.sessions); n > 8 {
			t.Errorf("%d sessions are open, want at most 8", n)
		}
		for _, e := range srv.calls.exchanges {
			if e.conns > 0 {
				t.Errorf("an exchange counts %d connections after its request", e.conns)
			}
		}
	})
}
