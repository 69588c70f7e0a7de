package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/bot-bottle/supervise/tools"
)

// asker is a tool that waits as the real ones do: until the test answers, or its context ends.
type asker struct {
	inline    bool             // waits in the handler, although it need not
	gate      chan struct{}    // if not nil, what comes before a call waits for it, as for a disk
	began     chan *tools.Call // one for each call that has started to hold
	ended     chan error       // the cause, for each call that was not answered
	answer    chan string
	begun     chan string // its delivery has
	delivered chan string
	notSent   chan string                                                     // what had begun
	wait1     func(ctx context.Context, call *tools.Call) *mcp.CallToolResult // if not nil, waits instead
}

func newAsker() *asker {
	return &asker{
		began:     make(chan *tools.Call, 4096),
		ended:     make(chan error, 4096),
		answer:    make(chan string),
		begun:     make(chan string, 4096),
		delivered: make(chan string, 4096),
		notSent:   make(chan string, 4096),
	}
}

type askIn struct {
	Quiet bool `json:"quiet,omitempty"` // never Holding
}

func (a *asker) register(s *mcp.Server) {
	mcp.AddTool(s, &mcp.Tool{Name: "ask", Description: "asks and waits"}, a.ask)
	mcp.AddTool(s, &mcp.Tool{Name: "echo", Description: "answers at once"},
		func(context.Context, *mcp.CallToolRequest, struct{}) (*mcp.CallToolResult, any, error) {
			return text("echo"), nil, nil
		})
}

func (a *asker) ask(ctx context.Context, req *mcp.CallToolRequest, in askIn) (*mcp.CallToolResult, any, error) {
	call := tools.CallFrom(ctx)
	if !in.Quiet {
		call.Holding()
	}
	if a.gate != nil {
		<-a.gate
	}
	if call.Park == nil || a.inline || in.Quiet {
		a.began <- call
		res, err := a.wait(ctx, call)
		return res, nil, err
	}
	call.Park(func(ctx context.Context, _ tools.Notify) *mcp.CallToolResult {
		if a.wait1 != nil {
			return a.wait1(ctx, call)
		}
		a.began <- call
		res, _ := a.wait(ctx, call)
		return res
	})
	return text("stands in"), nil, nil
}

func (a *asker) deliver(call *tools.Call, s string) {
	call.OnDelivered(func() func(bool) {
		a.begun <- s
		return func(out bool) {
			if out {
				a.delivered <- s
			} else {
				a.notSent <- s
			}
		}
	})
}

func (a *asker) wait(ctx context.Context, call *tools.Call) (*mcp.CallToolResult, error) {
	select {
	case s := <-a.answer:
		a.deliver(call, s)
		return text(s), nil
	case <-ctx.Done():
		cause := context.Cause(ctx)
		if cause == tools.ErrShutdown {
			a.deliver(call, "pending")
			return text("status: pending"), nil
		}
		a.ended <- cause
		return nil, cause
	}
}

func text(s string) *mcp.CallToolResult {
	return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: s}}}
}

// fixture is a running server and how to reach it.
type fixture struct {
	*asker
	srv    *Server
	url    string
	client *http.Client
	fails  bool         // Run, and the test looks at its error
	stop   func() error // ends Run and returns its error; once
}

// serve runs a server; in a synctest bubble over an in-memory network.
func serve(t *testing.T, opts Options, inMemory bool) *fixture {
	t.Helper()
	return start(t, &fixture{asker: newAsker()}, opts, inMemory)
}

func start(t *testing.T, f *fixture, opts Options, inMemory bool) *fixture {
	t.Helper()
	opts.Register = f.register
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	tr := &http.Transport{MaxIdleConnsPerHost: 100}
	if inMemory {
		ln := newMemListener()
		opts.Listener = ln
		tr.DialContext = ln.dial
	}
	srv, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	f.srv = srv
	f.url = "http://localhost/"
	if !inMemory {
		f.url = "http://" + srv.Addr().String() + "/"
	}
	f.client = &http.Client{Transport: tr}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()
	f.stop = sync.OnceValue(func() error {
		cancel()
		err := <-done
		tr.CloseIdleConnections()
		return err
	})
	t.Cleanup(func() {
		if err := f.stop(); err != nil && !f.fails {
			t.Errorf("Run: %v", err)
		}
	})
	return f
}

// memListener is a network without sockets, for synctest.
type memListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newMemListener() *memListener {
	return &memListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *memListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *memListener) Addr() net.Addr {
	return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9100}
}

func (l *memListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case l.conns <- theirs:
		return ours, nil
	case <-l.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// raw is one POST or GET by hand.
type raw struct {
	method  string
	header  map[string]string
	body    string
	session string
	version string
}

func (f *fixture) send(ctx context.Context, r raw) (*http.Response, error) {
	method := r.method
	if method == "" {
		method = "POST"
	}
	req, err := http.NewRequestWithContext(ctx, method, f.url, strings.NewReader(r.body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	if r.session != "" {
		req.Header.Set("Mcp-Session-Id", r.session)
	}
	if r.version != "" {
		req.Header.Set("MCP-Protocol-Version", r.version)
	}
	for k, v := range r.header {
		req.Header.Set(k, v)
	}
	return f.client.Do(req)
}

// initialize opens a session by hand.
func (f *fixture) initialize(t *testing.T) string {
	t.Helper()
	res, err := f.send(t.Context(), raw{body: `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"hand","version":"1"}}}`})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(res.Body)
	id := res.Header.Get("Mcp-Session-Id")
	if id == "" {
		t.Fatalf("initialize: no session: %s: %s", res.Status, body)
	}
	res, err = f.send(t.Context(), raw{session: id, version: "2025-11-25", body: `{"jsonrpc":"2.0","method":"notifications/initialized"}`})
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusAccepted {
		t.Fatalf("initialized: %s, want 202", res.Status)
	}
	return id
}

const askBody = `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"ask","arguments":{}}}`

// askBodyNew is the same call as the protocol of 2026-07-28 wants it.
const askBodyNew = `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"ask","arguments":{},"_meta":{` +
	`"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"newbody","version":"1"},` +
	`"io.modelcontextprotocol/clientCapabilities":{}}}}`

// newHeader is what that protocol wants besides.
var newHeader = map[string]string{"Mcp-Method": "tools/call", "Mcp-Name": "ask"}

// events reads an event stream: what each event's data and id are, and the comments.
type events struct {
	sc *bufio.Scanner
}

func readEvents(body io.Reader) *events {
	sc := bufio.NewScanner(body)
	sc.Buffer(nil, 4<<20)
	return &events{sc}
}

// next returns the next event; or, with data ":", the next comment. At the end of the stream ok is false.
func (e *events) next() (id, data string, ok bool) {
	for e.sc.Scan() {
		line := e.sc.Text()
		switch {
		case strings.HasPrefix(line, ":"):
			data = ":" + strings.TrimSpace(line[1:])
		case strings.HasPrefix(line, "id: "):
			id = line[4:]
		case strings.HasPrefix(line, "data: "):
			data = line[6:]
		case line == "":
			return id, data, true
		}
	}
	return "", "", false
}

// result reads on to the message that answers a request and returns its text.
func (e *events) result(t *testing.T) string {
	t.Helper()
	for {
		_, data, ok := e.next()
		if !ok {
			t.Fatalf("the stream ended without an answer: %v", e.sc.Err())
		}
		var msg struct {
			ID     json.RawMessage
			Result struct {
				Content []struct{ Text string }
			}
			Error json.RawMessage
		}
		if !strings.HasPrefix(data, "{") || json.Unmarshal([]byte(data), &msg) != nil || len(msg.ID) == 0 {
			continue
		}
		if len(msg.Result.Content) == 0 {
			return "error: " + string(msg.Error)
		}
		return msg.Result.Content[0].Text
	}
}

func connect(t *testing.T, f *fixture, version string) *mcp.ClientSession {
	t.Helper()
	c := mcp.NewClient(&mcp.Implementation{Name: "go-" + version, Version: "1"}, nil)
	cs, err := c.Connect(t.Context(), &mcp.StreamableClientTransport{Endpoint: f.url, HTTPClient: f.client},
		&mcp.ClientSessionOptions{ProtocolVersion: version})
	if err != nil {
		t.Fatalf("connecting at %s: %v", version, err)
	}
	if got := cs.InitializeResult().ProtocolVersion; got != version {
		t.Fatalf("negotiated %s, want %s", got, version)
	}
	return cs
}

func TestClients(t *testing.T) {
	for _, version := range []string{"2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28"} {
		t.Run(version, func(t *testing.T) {
			f := serve(t, Options{}, false)
			cs := connect(t, f, version)
			init := cs.InitializeResult()
			if init.ServerInfo == nil || init.ServerInfo.Name != "supervise" {
				t.Errorf("server info %+v, want the name supervise", init.ServerInfo)
			}
			//lint:ignore SA1019 old clients still look at it
			if c := init.Capabilities; c.Tools == nil || c.Tools.ListChanged || c.Logging != nil {
				t.Errorf("capabilities %+v, want tools without list changes, no logging", c)
			}
			type answer struct {
				res *mcp.CallToolResult
				err error
			}
			got := make(chan answer, 1)
			go func() {
				res, err := cs.CallTool(t.Context(), &mcp.CallToolParams{Name: "ask", Arguments: map[string]any{}})
				got <- answer{res, err}
			}()
			call := <-f.began
			if want := "go-" + version; call.Client != want {
				t.Errorf("Call.Client = %q, want %q", call.Client, want)
			}
			if (call.Session == "") != (version == "2026-07-28") {
				t.Errorf("Call.Session = %q at %s", call.Session, version)
			}
			f.answer <- "status: approved"
			a := <-got
			if a.err != nil || a.res.Content[0].(*mcp.TextContent).Text != "status: approved" {
				t.Errorf("CallTool = %+v, %v", a.res, a.err)
			}
			if s := <-f.delivered; s != "status: approved" {
				t.Errorf("delivered %q", s)
			}
			if err := cs.Close(); err != nil {
				t.Errorf("closing the session: %v", err)
			}
			f.wantIdle(t)
		})
	}
}

// wantIdle waits until nothing is left of any call or session.
func (f *fixture) wantIdle(t *testing.T) {
	t.Helper()
	waitFor(t, "calls, exchanges, sessions and streams to be gone", func() string {
		r := f.srv.calls
		r.mu.Lock()
		defer r.mu.Unlock()
		f.srv.beats.mu.Lock()
		defer f.srv.beats.mu.Unlock()
		n, sdk := 0, 0
		for _, e := range r.exchanges {
			n += len(e.running)
		}
		for range f.srv.sdk().mcp.Sessions() {
			sdk++
		}
		if n+len(r.exchanges)+len(r.sessions)+r.lingering+f.srv.beats.streams.Len()+sdk == 0 {
			return ""
		}
		return fmt.Sprintf("%d calls, %d exchanges, %d sessions, %d lingering, %d streams, %d of the SDK's sessions",
			n, len(r.exchanges), len(r.sessions), r.lingering, f.srv.beats.streams.Len(), sdk)
	})
}

// waitFor waits for a condition that nothing announces; cond returns "" when it holds, else what is the case.
func waitFor(t *testing.T, what string, cond func() string) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for tick := time.NewTicker(time.Millisecond); ; {
		state := cond()
		if state == "" {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waiting for %s: %s", what, state)
		}
	}
}

// A client of the first kind never initialized anything.
func TestBareClient(t *testing.T) {
	f := serve(t, Options{}, false)
	done := make(chan string, 1)
	go func() {
		res, err := f.send(t.Context(), raw{body: askBody, header: map[string]string{"User-Agent": "oldagent/1.0 (linux)"}})
		if err != nil {
			done <- err.Error()
			return
		}
		defer res.Body.Close()
		done <- readEvents(res.Body).result(t)
	}()
	if call := <-f.began; call.Client != "oldagent" || call.Session != "" {
		t.Errorf("call of %q in session %q, want oldagent and none", call.Client, call.Session)
	}
	f.answer <- "status: rejected"
	if got := <-done; got != "status: rejected" {
		t.Errorf("answer %q", got)
	}
	<-f.delivered
	f.wantIdle(t)
}

// With the 2026-07-28 protocol the client's name comes with each request.
func TestNewClientName(t *testing.T) {
	f := serve(t, Options{}, false)
	res, err := f.send(t.Context(), raw{body: askBodyNew, version: "2026-07-28", header: newHeader})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if call := <-f.began; call.Client != "newbody" {
		t.Errorf("Call.Client = %q, want newbody", call.Client)
	}
	f.answer <- "ok"
	if got := readEvents(res.Body).result(t); got != "ok" {
		t.Errorf("answer %q", got)
	}
}

// The headers go out when the call holds, and a comment every 25 s from then on, for as long as it takes.
func TestHeartbeat(t *testing.T) {
	for _, tt := range []struct {
		name string
		raw  raw
	}{
		{"bare", raw{body: askBody}},
		{"2026-07-28", raw{body: askBodyNew, version: "2026-07-28", header: newHeader}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := serve(t, Options{}, true)
				start := time.Now()
				res, err := f.send(t.Context(), tt.raw) // returns with the headers
				if err != nil {
					t.Fatal(err)
				}
				defer res.Body.Close()
				if d := time.Since(start); d != 0 {
					t.Errorf("headers came after %s, want at once", d)
				}
				ev := readEvents(res.Body)
				if _, data, _ := ev.next(); data != ":waiting" {
					t.Errorf("first came %q, want the comment of a held call", data)
				}
				for i := range 500 {
					if _, data, ok := ev.next(); data != ":" || !ok {
						t.Fatalf("came %q, %v, want a comment", data, ok)
					}
					if got, want := time.Since(start), time.Duration(i+1)*25*time.Second; got != want {
						t.Fatalf("comment %d came after %s, want %s", i, got, want)
					}
				}
				f.answer <- "late"
				if got := ev.result(t); got != "late" {
					t.Errorf("answer %q", got)
				}
				<-f.delivered
				f.wantIdle(t)
			})
		})
	}
}

// Before a call holds nothing goes out: the SDK may still choose another status.
func TestNoHeadersBeforeHolding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := serve(t, Options{}, true)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		body := strings.Replace(askBody, "{}", `{"quiet":true}`, 1)
		if res, err := f.send(ctx, raw{body: body}); err == nil {
			res.Body.Close()
			t.Errorf("headers came (%s) though the call does not hold", res.Status)
		}
		<-f.ended
	})
}

func TestErrorStatusOfNewProtocol(t *testing.T) {
	f := serve(t, Options{}, false)
	body := strings.Replace(askBodyNew, `"ask"`, `"nosuch"`, 1)
	res, err := f.send(t.Context(), raw{body: body, version: "2026-07-28", header: map[string]string{"Mcp-Method": "tools/call", "Mcp-Name": "nosuch"}})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if got := res.StatusCode; got != http.StatusBadRequest {
		b, _ := io.ReadAll(res.Body)
		t.Errorf("unknown tool: %s %s, want 400", res.Status, b)
	}
	f.wantIdle(t)
}

// A reader that takes nothing costs the others nothing, and is dropped.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := serve(t, Options{}, true)
		ln := f.srv.ln.(*memListener)
		slow, err := ln.dial(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		defer slow.Close()
		// It sends a call, reads the first bytes of the answer and then no more.
		fmt.Fprintf(slow, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\nContent-Length: %d\r\n\r\n%s", len(askBody), askBody)
		head := make([]byte, 4096)
		var seen []byte
		for !bytes.Contains(seen, []byte(": waiting\n\n\r\n")) {
			n, err := slow.Read(head)
			if err != nil {
				t.Fatal(err)
			}
			seen = append(seen, head[:n]...)
		}
		<-f.began

		start := time.Now()
		res, err := f.send(t.Context(), raw{body: askBody})
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		<-f.began
		ev := readEvents(res.Body)
		ev.next()
		for i := range 4 {
			ev.next()
			if got, most := time.Since(start), time.Duration(i+1)*25*time.Second+time.Second; got > most {
				t.Errorf("comment %d came after %s, want at most %s", i, got, most)
			}
		}
		if cause := <-f.ended; !errors.Is(cause, errSlow) {
			t.Errorf("the slow call ended with %v, want %v", cause, errSlow)
		}
	})
}
