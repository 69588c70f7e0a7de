package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// hold sends a call and waits until it holds. The response's headers have come by then.
func (f *fixture) hold(t *testing.T, ctx context.Context, r raw) *http.Response {
	t.Helper()
	res, err := f.send(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(res.Body)
		t.Fatalf("%s: %s", res.Status, b)
	}
	<-f.began
	return res
}

func TestHangUp(t *testing.T) {
	for _, tt := range []struct {
		name    string
		inline  bool
		session bool
		raw     raw
		after   time.Duration // the call ends
		grace   time.Duration // its exchange does
	}{
		{"bare", false, false, raw{body: askBody}, 0, 0},
		{"2026-07-28", false, false, raw{body: askBodyNew, version: "2026-07-28", header: newHeader}, 0, 0},
		{"session", false, true, raw{body: askBody, version: "2025-11-25"}, 0, time.Minute},
		{"bare, in the handler", true, false, raw{body: askBody}, 0, 0},
		{"2026-07-28, in the handler", true, false, raw{body: askBodyNew, version: "2026-07-28", header: newHeader}, 0, 0},
		{"session, in the handler", true, true, raw{body: askBody, version: "2025-11-25"}, time.Minute, time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := serve(t, Options{}, true)
				f.inline = tt.inline
				if tt.session {
					tt.raw.session = f.initialize(t)
				}
				ctx, cancel := context.WithCancel(t.Context())
				res := f.hold(t, ctx, tt.raw)
				start := time.Now()
				cancel()
				res.Body.Close()
				<-f.ended
				if got := time.Since(start); got != tt.after {
					t.Errorf("the call ended %s after its client hung up, want %s", got, tt.after)
				}
				synctest.Wait()
				if rest := tt.grace - tt.after; rest > 0 {
					time.Sleep(rest - time.Millisecond)
					if n := f.exchanges(); n != 1 {
						t.Errorf("%d exchanges can be resumed, want 1", n)
					}
					time.Sleep(time.Millisecond)
					synctest.Wait()
				}
				if n := f.exchanges(); n != 0 {
					t.Errorf("%d exchanges are left", n)
				}
				if len(f.delivered) != 0 {
					t.Error("an answer counts as delivered though nobody was there")
				}
			})
		})
	}
}

func (f *fixture) exchanges() int {
	f.srv.calls.mu.Lock()
	defer f.srv.calls.mu.Unlock()
	return len(f.srv.calls.exchanges)
}

// Hung-up calls leave no goroutine, wait or descriptor behind.
func TestManyHangUps(t *testing.T) {
	for _, session := range []bool{false, true} {
		t.Run(fmt.Sprintf("session=%v", session), func(t *testing.T) {
			f := serve(t, Options{Timings: Timings{Grace: time.Millisecond}}, false)
			f.warm(t)
			before := usage(t)
			var id, version string
			if session {
				id, version = f.initialize(t), "2025-11-25"
			}
			ctx, hangUp := context.WithCancel(t.Context())
			defer hangUp()
			for i := range 200 {
				body := strings.Replace(askBody, `"id":7`, fmt.Sprintf(`"id":%d`, 100+i), 1)
				res := f.hold(t, ctx, raw{body: body, session: id, version: version})
				defer res.Body.Close()
			}
			hangUp()
			for range 200 {
				<-f.ended
			}
			if session {
				res, err := f.send(t.Context(), raw{method: "DELETE", session: id})
				if err != nil {
					t.Fatal(err)
				}
				res.Body.Close()
			}
			f.wantIdle(t)
			f.client.CloseIdleConnections()
			before.wantBack(t)
		})
	}
}

type used struct{ goroutines, fds int }

func usage(t *testing.T) used {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("no /proc: descriptors cannot be counted")
	}
	return used{runtime.NumGoroutine(), len(fds)}
}

// warm makes what a first request makes and later ones do not, so that usage can be compared.
func (f *fixture) warm(t *testing.T) {
	t.Helper()
	res, err := f.client.Get(f.url + "health")
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, res.Body)
	res.Body.Close()
	f.client.CloseIdleConnections()
}

func (u used) wantBack(t *testing.T) {
	t.Helper()
	waitFor(t, "goroutines and descriptors to be given back", func() string {
		if now := usage(t); now.goroutines > u.goroutines || now.fds > u.fds {
			return fmt.Sprintf("%+v, was %+v", now, u)
		}
		return ""
	})
}

// A cut connection is resumed with GET, as often as it is cut, and the answer then counts as delivered.
func TestResume(t *testing.T) { everyWay(t, testResume) }

// everyWay runs a test with calls that wait in the server, as they do, and with ones that wait in their handlers, as those of a
// batch do.
func everyWay(t *testing.T, test func(t *testing.T, inline bool)) {
	t.Run("parked", func(t *testing.T) { test(t, false) })
	t.Run("in the handler", func(t *testing.T) { test(t, true) })
}

func testResume(t *testing.T, inline bool) {
	synctest.Test(t, func(t *testing.T) {
		f := serve(t, Options{}, true)
		f.inline = inline
		id := f.initialize(t)
		ctx, cancel := context.WithCancel(t.Context())
		res := f.hold(t, ctx, raw{body: askBody, session: id, version: "2025-11-25"})
		ev := readEvents(res.Body)
		last, _, _ := ev.next()
		if last == "" {
			t.Fatal("the first event has no id to resume from")
		}
		for range 3 {
			cancel()
			res.Body.Close()
			time.Sleep(59 * time.Second)
			ctx, cancel = context.WithCancel(t.Context())
			start := time.Now()
			var err error
			res, err = f.send(ctx, raw{method: "GET", session: id, version: "2025-11-25", header: map[string]string{"Last-Event-ID": last}})
			if err != nil {
				t.Fatal(err)
			}
			if res.StatusCode != http.StatusOK || time.Since(start) != 0 {
				t.Fatalf("GET: %s after %s, want 200 at once", res.Status, time.Since(start))
			}
			if !inline {
				<-f.ended
				<-f.began
			}
			ev = readEvents(res.Body)
			for time.Since(start) < 10*time.Minute { // longer than the grace
				if _, data, ok := ev.next(); !ok || !strings.HasPrefix(data, ":") {
					t.Fatalf("came %q, %v, want comments", data, ok)
				}
			}
		}
		defer cancel()
		f.answer <- "approved"
		if got := ev.result(t); got != "approved" {
			t.Errorf("answer %q", got)
		}
		<-f.delivered
		synctest.Wait()
		if n := f.exchanges(); n != 0 {
			t.Errorf("%d exchanges are left", n)
		}
	})
}

// An answer that came while the client was away is delivered when it resumes.
func TestAnsweredWhileAway(t *testing.T) { everyWay(t, testAnsweredWhileAway) }

func testAnsweredWhileAway(t *testing.T, inline bool) {
	synctest.Test(t, func(t *testing.T) {
		f := serve(t, Options{}, true)
		f.inline = inline
		id := f.initialize(t)
		ctx, cancel := context.WithCancel(t.Context())
		res := f.hold(t, ctx, raw{body: askBody, session: id, version: "2025-11-25"})
		last, _, _ := readEvents(res.Body).next()
		cancel()
		res.Body.Close()
		synctest.Wait()
		answer := func() { f.answer <- "approved" }
		if inline {
			answer()
		} else {
			go answer() // there for whoever asks next
		}
		synctest.Wait()
		if len(f.delivered) != 0 {
			t.Fatal("delivered while nobody was there")
		}
		res, err := f.send(t.Context(), raw{method: "GET", session: id, version: "2025-11-25", header: map[string]string{"Last-Event-ID": last}})
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if got := readEvents(res.Body).result(t); got != "approved" {
			t.Errorf("answer %q", got)
		}
		<-f.delivered
	})
}

// A second GET for a stream that is still connected is refused and changes nothing.
func TestResumeOfLiveStream(t *testing.T) { everyWay(t, testResumeOfLiveStream) }

func testResumeOfLiveStream(t *testing.T, inline bool) {
	f := serve(t, Options{}, false)
	f.inline = inline
	id := f.initialize(t)
	res := f.hold(t, t.Context(), raw{body: askBody, session: id, version: "2025-11-25"})
	defer res.Body.Close()
	ev := readEvents(res.Body)
	last, _, _ := ev.next()
	again, err := f.send(t.Context(), raw{method: "GET", session: id, version: "2025-11-25", header: map[string]string{"Last-Event-ID": last}})
	if err != nil {
		t.Fatal(err)
	}
	again.Body.Close()
	if again.StatusCode != http.StatusConflict {
		t.Errorf("second GET: %s, want 409", again.Status)
	}
	f.answer <- "approved"
	if got := ev.result(t); got != "approved" {
		t.Errorf("answer %q", got)
	}
	<-f.delivered
}

func TestDelete(t *testing.T) { everyWay(t, testDelete) }

func testDelete(t *testing.T, inline bool) {
	f := serve(t, Options{}, false)
	f.inline = inline
	f.warm(t)
	before := usage(t)
	id := f.initialize(t)
	bodies := make(chan io.ReadCloser, 50)
	for i := range 50 {
		body := strings.Replace(askBody, `"id":7`, fmt.Sprintf(`"id":%d`, 100+i), 1)
		bodies <- f.hold(t, t.Context(), raw{body: body, session: id, version: "2025-11-25"}).Body
	}
	get, err := f.send(t.Context(), raw{method: "GET", session: id})
	if err != nil {
		t.Fatal(err)
	}
	res, err := f.send(t.Context(), raw{method: "DELETE", session: id, version: "2025-11-25"})
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusNoContent {
		t.Errorf("DELETE: %s, want 204", res.Status)
	}
	for range 50 {
		if cause := <-f.ended; cause != errEnded {
			t.Errorf("a call ended with %v, want %v", cause, errEnded)
		}
		b := <-bodies
		io.Copy(io.Discard, b) // ends, since the session has
		b.Close()
	}
	io.Copy(io.Discard, get.Body)
	get.Body.Close()
	if len(f.delivered) != 0 {
		t.Error("delivered after DELETE")
	}
	f.wantIdle(t)
	f.client.CloseIdleConnections()
	before.wantBack(t)
}

func TestCancelled(t *testing.T) {
	for _, version := range []string{"2025-11-25", "2026-07-28"} {
		t.Run(version, func(t *testing.T) {
			f := serve(t, Options{}, false)
			cs := connect(t, f, version)
			defer cs.Close()
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() {
				_, err := cs.CallTool(ctx, &mcp.CallToolParams{Name: "ask", Arguments: map[string]any{}})
				done <- err
			}()
			<-f.began
			cancel()
			if cause := <-f.ended; !errors.Is(cause, context.Canceled) && cause != errHungUp && cause != errCancelled {
				t.Errorf("the call ended with %v", cause)
			}
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("CallTool: %v, want canceled", err)
			}
		})
	}
}

// At the end every held call is answered, and what never ends by itself is ended.
func TestShutdown(t *testing.T) {
	f := serve(t, Options{}, false)
	f.warm(t)
	before := usage(t)
	id := f.initialize(t)
	get, err := f.send(t.Context(), raw{method: "GET", session: id})
	if err != nil {
		t.Fatal(err)
	}
	defer get.Body.Close()
	var held []*http.Response
	for i := range 20 {
		body := strings.Replace(askBody, `"id":7`, fmt.Sprintf(`"id":%d`, 100+i), 1)
		held = append(held,
			f.hold(t, t.Context(), raw{body: body, session: id, version: "2025-11-25"}),
			f.hold(t, t.Context(), raw{body: askBody}),
			f.hold(t, t.Context(), raw{body: askBodyNew, version: "2026-07-28", header: newHeader}))
	}
	start := time.Now()
	if err := f.stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	t.Logf("the end took %s", time.Since(start))
	for _, res := range held {
		if got := readEvents(res.Body).result(t); got != "status: pending" {
			t.Errorf("answer %q, want pending", got)
		}
		res.Body.Close()
	}
	if n := len(f.delivered); n != len(held) {
		t.Errorf("%d answers count as delivered, want %d", n, len(held))
	}
	get.Body.Close()
	f.client.CloseIdleConnections()
	waitFor(t, "goroutines to be gone", func() string {
		if now := usage(t); now.goroutines > before.goroutines || now.fds > before.fds {
			return fmt.Sprintf("%+v, was %+v", now, before)
		}
		return ""
	})
	if _, err := f.send(t.Context(), raw{body: askBody}); err == nil {
		t.Error("a request was served after the end")
	}
}

// A tool that does not end is not waited for without bound.
func TestShutdownIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		ln := newMemListener()
		f := &fixture{asker: newAsker(), url: "http://localhost/", client: &http.Client{Transport: &http.Transport{DialContext: ln.dial}}}
		srv, err := New(Options{Listener: ln, Register: func(s *mcp.Server) {
			mcp.AddTool(s, &mcp.Tool{Name: "ask"}, func(context.Context, *mcp.CallToolRequest, struct{}) (*mcp.CallToolResult, any, error) {
				f.began <- nil
				<-release
				return text("late"), nil, nil
			})
		}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- srv.Run(ctx) }()
		go func() {
			if res, err := f.send(t.Context(), raw{body: askBody}); err == nil {
				res.Body.Close()
			}
		}()
		<-f.began
		cancel()
		start := time.Now()
		if err := <-done; err == nil || !strings.Contains(err.Error(), "requests still run") {
			t.Errorf("Run: %v, want that requests still run", err)
		}
		if d := time.Since(start); d > 10*time.Second {
			t.Errorf("the end took %s, want at most 10 s", d)
		}
		close(release)
	})
}

// A thousand calls wait at once; all are answered, and everything they took is given back.
func TestThousand(t *testing.T) {
	f := serve(t, Options{}, false)
	f.warm(t)
	before := usage(t)
	cs := map[string]*mcp.ClientSession{"2025-11-25": connect(t, f, "2025-11-25"), "2026-07-28": connect(t, f, "2026-07-28")}
	const n = 1000
	got := make(chan string, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			switch i % 3 {
			case 0:
				res, err := f.send(t.Context(), raw{body: askBody})
				if err != nil {
					got <- err.Error()
					return
				}
				defer res.Body.Close()
				got <- readEvents(res.Body).result(t)
			default:
				version := []string{1: "2025-11-25", 2: "2026-07-28"}[i%3]
				res, err := cs[version].CallTool(t.Context(), &mcp.CallToolParams{Name: "ask", Arguments: map[string]any{}})
				if err != nil {
					got <- err.Error()
					return
				}
				got <- res.Content[0].(*mcp.TextContent).Text
			}
		})
	}
	for range n {
		<-f.began
	}
	start := time.Now()
	for range n {
		f.answer <- "approved"
	}
	for range n {
		if s := <-got; s != "approved" {
			t.Fatalf("answer %q", s)
		}
	}
	wg.Wait()
	t.Logf("%d answers took %s", n, time.Since(start))
	for range n {
		<-f.delivered
	}
	for version, c := range cs {
		if err := c.Close(); err != nil {
			t.Errorf("closing the session of %s: %v", version, err)
		}
	}
	f.wantIdle(t)
	f.client.CloseIdleConnections()
	before.wantBack(t)
}

func TestSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := serve(t, Options{MaxSessions: 3}, true)
		closing, closeInSDK := make(chan struct{}), f.srv.calls.close
		letGo := sync.OnceFunc(func() { close(closing) })
		f.srv.calls.close = func(id string) {
			<-closing
			closeInSDK(id)
		}
		a := f.initialize(t)
		time.Sleep(time.Second)
		b := f.initialize(t)
		time.Sleep(time.Second)
		f.initialize(t)
		time.Sleep(time.Second)
		// A fourth takes the place of the one that has been idle for longest, which is b: a has a call.
		res := f.hold(t, t.Context(), raw{body: askBody, session: a, version: "2025-11-25"})
		defer res.Body.Close()
		d := f.initialize(t)
		for range 2 { // before the SDK has closed it, and after
			gone, err := f.send(t.Context(), raw{body: askBody, session: b, version: "2025-11-25"})
			if err != nil {
				t.Fatal(err)
			}
			gone.Body.Close()
			if gone.StatusCode != http.StatusNotFound {
				t.Errorf("a call in the session that made way: %s, want 404", gone.Status)
			}
			letGo()
			synctest.Wait()
		}
		// When none is idle the answer says so.
		for range 2 {
			id := d
			if id == "" {
				id = f.initialize(t)
			}
			get, err := f.send(t.Context(), raw{method: "GET", session: id})
			if err != nil {
				t.Fatal(err)
			}
			defer get.Body.Close()
			d = ""
		}
		full, err := f.send(t.Context(), raw{body: initBody})
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(full.Body)
		full.Body.Close()
		if !strings.Contains(string(body), "3 sessions are open and none is idle") {
			t.Errorf("the fourth session got %s", body)
		}
		synctest.Wait()
		if n := len(f.srv.calls.sessions); n != 3 {
			t.Errorf("%d sessions are open, want 3", n)
		}
	})
}

// A session ends when it has had no request for the timeout; a held call, a resumed one and an open GET all count.
func TestSessionTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := serve(t, Options{}, true)
		id := f.initialize(t)
		res := f.hold(t, t.Context(), raw{body: askBody, session: id, version: "2025-11-25"})
		ev := readEvents(res.Body)
		for start := time.Now(); time.Since(start) < 5*time.Hour; {
			ev.next()
		}
		f.answer <- "approved"
		if got := ev.result(t); got != "approved" {
			t.Errorf("answer %q", got)
		}
		res.Body.Close()
		ping := raw{body: `{"jsonrpc":"2.0","id":3,"method":"ping"}`, session: id, version: "2025-11-25"}
		for range 3 {
			time.Sleep(29 * time.Minute)
			res, err := f.send(t.Context(), ping)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if res.StatusCode != http.StatusOK {
				t.Fatalf("ping after 29 minutes: %s", res.Status)
			}
		}
		time.Sleep(32 * time.Minute) // the last ping may count as hung up, and then there is a minute of grace first
		res, err := f.send(t.Context(), ping)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusNotFound {
			t.Errorf("ping after 32 minutes: %s, want 404", res.Status)
		}
	})
}

// Before what the tools need is there, the server says that it lives and that it is not ready, and requests wait.
func TestOpening(t *testing.T) {
	for _, opens := range []bool{true, false} {
		t.Run(fmt.Sprintf("opens=%v", opens), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				opened := make(chan struct{})
				f := serve(t, Options{Opened: opened}, true)
				for path, want := range map[string]string{"health": "200 starting\n", "ready": "503 not ready; the sidecar's log says why\n"} {
					res, err := f.client.Get(f.url + path)
					if err != nil {
						t.Fatal(err)
					}
					body, err := io.ReadAll(res.Body)
					res.Body.Close()
					if got := fmt.Sprintf("%d %s", res.StatusCode, body); got != want || err != nil {
						t.Errorf("/%s: %q, %v, want %q", path, got, err, want)
					}
				}
				got := make(chan string, 1)
				go func() {
					res, err := f.send(t.Context(), raw{body: listBody})
					if err != nil {
						t.Error(err)
						got <- ""
						return
					}
					body, _ := io.ReadAll(res.Body)
					res.Body.Close()
					got <- fmt.Sprintf("%d %s %s", res.StatusCode, res.Header.Get("Retry-After"), body)
				}()
				time.Sleep(time.Second)
				synctest.Wait()
				if len(got) != 0 {
					t.Fatalf("answered with %s before it was open", <-got)
				}
				want := "200 "
				if opens {
					close(opened)
				} else {
					want = "503 5 shutting down before the mailbox is open"
					if err := f.stop(); err != nil {
						t.Errorf("Run: %v", err)
					}
				}
				if s := <-got; !strings.HasPrefix(s, want) {
					t.Errorf("answered with %s, want %s", s, want)
				}
			})
		})
	}
}

// What goes out in the stand-in's place is what the SDK would have written of the same result.
func TestParkedAnswerIsTheSDKs(t *testing.T) {
	for name, r := range map[string]raw{
		"bare":       {body: askBody},
		"2026-07-28": {body: askBodyNew, version: "2026-07-28", header: newHeader},
		"session":    {body: askBody, version: "2025-11-25"},
		"hostile id": {body: strings.Replace(askBody, `"id":7`, `"id":"},\"result\":{\"x\":\"\\u2028<&"`, 1)},
	} {
		t.Run(name, func(t *testing.T) {
			var answers [2]string
			for i, inline := range []bool{true, false} {
				f := serve(t, Options{}, false)
				f.inline = inline
				if r.version == "2025-11-25" {
					r.session = f.initialize(t)
				}
				res := f.hold(t, t.Context(), r)
				if !res.Close {
					t.Error("the response does not say that it ends its connection")
				}
				f.answer <- "approved, \"it\" <is>"
				for ev := readEvents(res.Body); ; {
					id, data, ok := ev.next()
					if !ok {
						break
					}
					if strings.Contains(data, `"result"`) {
						_, n, _ := strings.Cut(id, "_") // the stream's name is random
						answers[i] += n + " " + data + "\n"
					}
				}
				res.Body.Close()
				<-f.delivered
			}
			if answers[0] == "" || answers[0] != answers[1] {
				t.Errorf("parked:\n%s\nin the handler:\n%s", answers[1], answers[0])
			}
		})
	}
}
