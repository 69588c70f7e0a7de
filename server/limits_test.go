package server

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// What waits in its handler keeps what it sent. So much of that is taken and no more; light requests always are. A parked call
// keeps nothing of it.
func TestBodiesInProgress(t *testing.T) { everyWay(t, testBodiesInProgress) }

func testBodiesInProgress(t *testing.T, inline bool) {
	synctest.Test(t, func(t *testing.T) {
		f := serve(t, Options{}, true)
		f.inline = inline
		heavy := strings.Replace(askBody, `"arguments":{}`, `"arguments":{},"_meta":{"junk":"`+strings.Repeat("x", maxBody-1000)+`"}`, 1)
		if heavy == askBody {
			t.Fatal("askBody has no arguments")
		}
		fits := maxBodies / len(heavy)
		ctx, cancel := context.WithCancel(t.Context())
		for range fits {
			res := f.hold(t, ctx, raw{body: heavy})
			defer res.Body.Close()
		}
		if !inline {
			synctest.Wait()
			f.srv.bodies.mu.Lock()
			defer f.srv.bodies.mu.Unlock()
			if f.srv.bodies.taken != 0 {
				t.Errorf("%d bytes are in progress while calls are parked, want none", f.srv.bodies.taken)
			}
			cancel()
			return
		}
		for _, tt := range []struct {
			name, body, want string
			code             int
		}{
			{"one more", heavy, "are in progress", http.StatusServiceUnavailable},
			{"light", listBody, "tools", http.StatusOK},
		} {
			res, err := f.send(t.Context(), raw{body: tt.body})
			if err != nil {
				t.Fatalf("%s: %v", tt.name, err)
			}
			b, _ := io.ReadAll(res.Body)
			res.Body.Close()
			if res.StatusCode != tt.code || !strings.Contains(string(b), tt.want) {
				t.Errorf("%s: %s %.200q, want %d with %q", tt.name, res.Status, b, tt.code, tt.want)
			}
		}
		cancel()
		synctest.Wait()
		f.srv.bodies.mu.Lock()
		defer f.srv.bodies.mu.Unlock()
		if f.srv.bodies.taken != 0 {
			t.Errorf("%d bytes are in progress after all clients left, want none", f.srv.bodies.taken)
		}
	})
}

// Bodies of several messages are bounded in all: their short answers are all there at once when nobody reads them.
func TestBatchesInProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := serve(t, Options{}, true)
		taken := weighBatch(maxBatch) * (maxBatches/weighBatch(maxBatch) - 1)
		if !f.srv.batches.take(taken) {
			t.Fatal("a fresh server has no room")
		}
		second := strings.Replace(askBody, `"id":7`, `"id":8`, 1)
		var bodies []io.ReadCloser
		for range maxBatch / 2 {
			bodies = append(bodies, f.hold(t, t.Context(), raw{body: "[" + askBody + "," + second + "]"}).Body)
		}
		for body, code := range map[string]int{"[" + askBody + "," + second + "]": 503, askBody: 200, "[" + second + "]": 200} {
			ctx, cancel := context.WithCancel(t.Context())
			res, err := f.send(ctx, raw{body: body})
			if err != nil {
				t.Fatal(err)
			}
			if res.StatusCode != code || (code == 503) != (res.Header.Get("Retry-After") != "") {
				t.Errorf("%.20s…: %s, want %d", body, res.Status, code)
			}
			cancel()
			res.Body.Close()
		}
		for _, b := range bodies {
			b.Close()
		}
		synctest.Wait()
		f.srv.batches.give(taken)
		if n := f.srv.batches.taken; n != 0 {
			t.Errorf("%d bytes count when all are gone", n)
		}
	})
}

// What the SDK's decoder makes of many small objects is a hundred times as large as they are.
func TestTooMany(t *testing.T) {
	many := func(n int, s string) string { return strings.TrimSuffix(strings.Repeat(s+",", n), ",") }
	for _, tt := range []struct{ body, want string }{
		{askBodyNew, ""},
		{`{"a":"` + strings.Repeat(`{[,:\"\\`, 10_000) + `"}`, ""},
		{`[` + many(maxObjects, `{}`) + `]`, "a body may hold 16 messages, and this one holds 128"},
		{`{"params":[` + many(maxObjects-2, `{}`) + `]}`, ""},
		{`{"params":[` + many(maxObjects, `{}`) + `]}`, "128 objects and arrays, and 4096 keys and values: these are 130 and"},
		{`{"params":[` + many(maxObjects, `[]`) + `]}`, "these are 130 and"},
		{`{"params":` + strings.Repeat(`[`, maxObjects+1), "these are 130 and"},
		{`{"params":[` + many(maxValues, `1`) + `]}`, "these are 2 and 4097"},
		{`[` + many(2, `{"params":[`+many(maxValues-10, `1`)+`]}`) + `]`, ""},
		{`[` + many(maxBatch, `{"params":[`+many(maxObjects-2, `{}`)+`]}`) + `]`, ""},
		{`[` + many(maxBatch, `{"params":[`+many(maxObjects, `{}`)+`]}`) + `]`, "these are 2081 and"},
		{`]]]][{`, ""}, // is no JSON
	} {
		if err := tooMany([]byte(tt.body)); tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%.60s…: %v, want %q", tt.body, err, tt.want)
		}
	}
	f := serve(t, Options{}, false)
	res, err := f.send(t.Context(), raw{body: strings.Replace(askBody, `"arguments":{}`, `"arguments":{},"_meta":{"x":[`+many(1000, `{"":1}`)+`]}`, 1)})
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(res.Body)
	res.Body.Close()
	if res.StatusCode != http.StatusBadRequest || !strings.Contains(string(b), "a message may hold 128 objects") {
		t.Errorf("%s %s", res.Status, b)
	}
}

// A session keeps what initialize said, so that is short, and what nobody reads of it is dropped.
func TestInitializeIsShort(t *testing.T) {
	f := serve(t, Options{}, false)
	body := `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"_meta":{"m":1},"protocolVersion":"2025-11-25","clientInfo":{"name":"c","version":"1"},"capabilities":{"roots":{},"experimental":{"e":{"x":"` + "%s" + `"}}}}}`
	for _, tt := range []struct{ size, code int }{{10, 200}, {maxInitialize, 413}} {
		res, err := f.send(t.Context(), raw{body: fmt.Sprintf(body, strings.Repeat("x", tt.size))})
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != tt.code {
			t.Errorf("%d bytes more: %s %.200s, want %d", tt.size, res.Status, b, tt.code)
		}
	}
	n := 0
	for ss := range f.srv.sdk().mcp.Sessions() {
		n++
		p := ss.InitializeParams()
		if p == nil || p.ClientInfo.Name != "c" || p.Meta != nil || p.Capabilities.Experimental != nil {
			t.Errorf("kept: %+v", p)
		}
	}
	if n != 1 {
		t.Errorf("%d sessions, want 1", n)
	}
}

// Of those who are in the middle of a write the one that has been stuck for longest makes way.
func TestWritersMakeWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ws := newWriters()
		cut := map[int]int{}
		var all []*stream
		goesOn := func(i int) {
			ws.goesOn(all[i], func(d time.Time) error {
				if d.After(time.Now()) {
					t.Error("cutting sets a deadline that is to come")
				}
				cut[i]++
				return nil
			})
		}
		for i := range maxWriting {
			all = append(all, &stream{})
			goesOn(i)
			time.Sleep(time.Millisecond)
		}
		if len(cut) != 0 {
			t.Fatalf("cut below the limit: %v", cut)
		}
		goesOn(0) // it is no longer the one that is stuck for longest
		for i := range 3 {
			all = append(all, &stream{})
			goesOn(maxWriting + i)
		}
		if len(cut) != 3 || cut[1] != 1 || cut[2] != 1 || cut[3] != 1 {
			t.Errorf("cut: %v, want 1, 2 and 3, once each", cut)
		}
		for _, w := range all {
			ws.done(w)
		}
		if len(ws.of) != 0 || ws.order.Len() != 0 {
			t.Errorf("%d and %d are left", len(ws.of), ws.order.Len())
		}
	})
}

func TestBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := serve(t, Options{}, true)
		for n, code := range map[int]int{1: 200, maxBatch: 200, maxBatch + 1: 400, 10_000: 400} {
			var list []string
			for i := range n {
				list = append(list, fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":"ping"}`, i+1))
			}
			res, err := f.send(t.Context(), raw{body: "[" + strings.Join(list, ",") + "]"})
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(res.Body)
			res.Body.Close()
			if res.StatusCode != code || code == 400 && !strings.Contains(string(b), fmt.Sprintf("a body may hold %d messages, and this one holds %d", maxBatch, n)) {
				t.Errorf("a batch of %d: %s %.200q, want %d", n, res.Status, b, code)
			}
		}
	})
}

// Connections past the limit make the idle ones go, and never one with a held call or an event stream.
func TestConnections(t *testing.T) {
	const most = 24
	f := serve(t, Options{MaxConns: most}, false)
	held := f.hold(t, t.Context(), raw{body: askBody})
	defer held.Body.Close()
	get, err := f.send(t.Context(), raw{method: "GET", session: f.initialize(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer get.Body.Close()
	for i := range 10 * most {
		c, err := net.Dial("tcp", f.srv.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, []string{"", "GET", "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{", "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"}[i%4])
	}
	res, err := http.Get(f.url + "health") // in a connection of its own, behind all of them
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	f.srv.conns.mu.Lock()
	if n := len(f.srv.conns.all); n > most {
		t.Errorf("%d connections are open, want at most %d", n, most)
	}
	f.srv.conns.mu.Unlock()
	f.answer <- "yes"
	if got := readEvents(held.Body).result(t); got != "yes" {
		t.Errorf("the held call is answered %q", got)
	}
	if n := f.srv.streams.Load(); n != 1 {
		t.Errorf("%d streams are open, want the one", n)
	}
	f.srv.streams.Add(maxStreams)
	defer f.srv.streams.Add(-maxStreams)
	res, err = f.send(t.Context(), raw{method: "GET", session: f.initialize(t)})
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(res.Body)
	res.Body.Close()
	if res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(b), "1024 event streams are open, which is the limit: end one") {
		t.Errorf("one stream more: %s %s", res.Status, b)
	}
}
