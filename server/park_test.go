package server

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/bot-bottle/supervise/tools"
)

// post is a bare connection with a request on it.
func (f *fixture) post(t *testing.T, body string) (net.Conn, *bufio.Reader) {
	t.Helper()
	conn, err := f.srv.ln.(*memListener).dial(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	return conn, bufio.NewReader(conn)
}

// held is post of a call that waits, up to the headers of its response.
func (f *fixture) held(t *testing.T) (net.Conn, *bufio.Reader, *http.Response) {
	t.Helper()
	conn, br := f.post(t, askBody)
	res, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	<-f.began
	return conn, br, res
}

// What an agent chooses and a held call keeps is short: an id is, whatever the body's other keys look like.
func TestLongID(t *testing.T) {
	f := serve(t, Options{}, false)
	long := `"` + strings.Repeat("x", 300) + `"`
	short, err := f.send(t.Context(), raw{body: strings.Replace(askBody, `"id":7`, `"id":`+long+`,"id":7,"ID":8`, 1)})
	if err != nil {
		t.Fatal(err)
	}
	<-f.began
	f.answer <- "approved"
	if b, _ := io.ReadAll(short.Body); !strings.Contains(string(b), `"id":7,`) || strings.Contains(string(b), "xxx") {
		t.Errorf("of two ids the last one counts: %.300q", b)
	}
	short.Body.Close()
	for _, ids := range []string{`"id":` + long, `"id":` + long + `,"ID":7`, `"ID":7,"id":` + long, `"id":7,"id":` + long} {
		res, err := f.send(t.Context(), raw{body: strings.Replace(askBody, `"id":7`, ids, 1)})
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != http.StatusBadRequest || !strings.Contains(string(b), "256 bytes") || len(b) > 1000 {
			t.Errorf("%.20s…: %s %.200q, want 400 and the limit", ids, res.Status, b)
		}
	}
	if len(f.began) != 0 {
		t.Error("a call was held all the same")
	}
}

// A call that is cancelled before it waits never does, and no answer to it counts as delivered, though its client keeps reading.
func TestCancelledBeforeItWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := serve(t, Options{}, true)
		f.gate = make(chan struct{})
		id := f.initialize(t)
		res, err := f.send(t.Context(), raw{body: askBody, session: id, version: "2025-11-25"})
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		synctest.Wait() // it is before its gate
		no, err := f.send(t.Context(), raw{session: id, version: "2025-11-25", body: `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":7}}`})
		if err != nil {
			t.Fatal(err)
		}
		no.Body.Close()
		synctest.Wait()
		close(f.gate)
		synctest.Wait()
		if len(f.began) != 0 {
			t.Error("it waits")
		}
		select {
		case f.answer <- "approved":
			t.Error("an answer was taken")
		default:
		}
		io.Copy(io.Discard, res.Body) // ends
		synctest.Wait()
		if len(f.delivered) != 0 {
			t.Errorf("%q counts as delivered", <-f.delivered)
		}
		if n := f.exchanges(); n != 0 {
			t.Errorf("%d exchanges are left", n)
		}
	})
}

// Only one connection waits for an answer, also when the second comes before the call waits.
func TestResumeBeforeItWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := serve(t, Options{}, true)
		f.gate = make(chan struct{})
		id := f.initialize(t)
		res, err := f.send(t.Context(), raw{body: askBody, session: id, version: "2025-11-25"})
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		ev := readEvents(res.Body)
		last, _, _ := ev.next()
		synctest.Wait()
		sess, e, busy := f.srv.calls.get(id, last, &stream{}) // as a GET does that is slow from here on
		if !busy {
			f.srv.calls.leave(sess, e, false)
			t.Error("a stream whose connection lives can be resumed")
		}
		close(f.gate)
		<-f.began
		f.answer <- "approved"
		if got := ev.result(t); got != "approved" {
			t.Errorf("answer %q", got)
		}
		<-f.delivered
	})
}

// What a client sends after its request is no hang-up.
func TestMoreAfterTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := serve(t, Options{}, true)
		conn, _, res := f.held(t)
		for _, more := range []string{"\r\n", "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"} {
			if _, err := io.WriteString(conn, more); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if len(f.ended) != 0 {
			t.Fatalf("the call ended: %v", <-f.ended)
		}
		f.answer <- "approved"
		if got := readEvents(res.Body).result(t); got != "approved" {
			t.Errorf("answer %q", got)
		}
		<-f.delivered

		conn, _, _ = f.held(t)
		go io.WriteString(conn, strings.Repeat("x", 1<<20)) // no end of it is one
		<-f.ended
	})
}

// HTTP/1.0, which some proxies speak to what is behind them, is held on the bare connection too, without chunks.
func TestHeldOnHTTP10(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := serve(t, Options{}, true)
		post := func() (net.Conn, *http.Response) {
			conn, err := f.srv.ln.(*memListener).dial(t.Context(), "", "")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			fmt.Fprintf(conn, "POST / HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\nContent-Length: %d\r\n\r\n%s", len(askBody), askBody)
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			<-f.began
			if _, err := io.WriteString(conn, "\r\n"); err != nil { // which net/http would take for the end of listening
				t.Fatal(err)
			}
			return conn, res
		}
		_, res := post()
		long := strings.Repeat("x", 3*piece)
		f.answer <- long
		b, err := io.ReadAll(res.Body)
		if err != nil || res.TransferEncoding != nil || strings.Count(string(b), long) != 1 || !strings.HasPrefix(string(b), ": waiting\n\n") || !strings.HasSuffix(string(b), "}\n\n") {
			t.Errorf("%d bytes, %v, %v: %.60q … %.60q", len(b), res.TransferEncoding, err, b, b[max(0, len(b)-60):])
		}
		<-f.delivered

		conn, _ := post()
		conn.Close()
		<-f.ended // at once, and not when a heartbeat fails
	})
}

// Asking again at the moment of the answer finds it being delivered: that is registered before the answer is written. If it cannot
// be, that is taken back.
func TestDeliveryBeginsBeforeTheAnswer(t *testing.T) {
	everyWay(t, func(t *testing.T, inline bool) {
		synctest.Test(t, func(t *testing.T) {
			f := serve(t, Options{}, true)
			f.inline = inline
			conn, br, _ := f.held(t)
			br.ReadString('\n') // what is in the buffer; nothing is read from here on
			f.answer <- "approved"
			synctest.Wait()
			if len(f.begun) != 1 {
				t.Errorf("while the answer is written its delivery has begun %d times, want once", len(f.begun))
			}
			conn.Close()
			synctest.Wait()
			if len(f.delivered) != 0 {
				t.Errorf("%q counts as delivered, which nobody read", <-f.delivered)
			}
			if len(f.begun) > 0 && len(f.notSent) != 1 {
				t.Error("what had begun was not taken back")
			}
		})
	})
}

// A client that does not read keeps nothing of the server alive beyond its end.
func TestShutdownWithStuckAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := serve(t, Options{}, true)
		f.fails = true
		f.held(t)
		f.answer <- "approved"
		synctest.Wait() // it is being written
		if err := f.stop(); err != nil {
			t.Errorf("Run: %v, want nil: it is the client's failure", err)
		}
		gone := make(chan struct{})
		go func() { f.srv.requests.Wait(); close(gone) }()
		synctest.Wait()
		select {
		case <-gone:
		default:
			t.Error("a request is left when Run has returned")
		}
	})
}

// Of a body with several messages none is parked, however it hides that.
func TestNoParkingInABatch(t *testing.T) {
	f := serve(t, Options{}, false)
	second := strings.Replace(askBody, `"id":7`, `"id":8`, 1)
	for name, body := range map[string]string{
		"two":            "[" + askBody + "," + second + "]",
		"another case":   "[" + askBody + "," + strings.Replace(second, `"method"`, `"Method":"","method"`, 1) + "]",
		"another case 2": "[" + askBody + "," + strings.Replace(second, `"method":"tools/call"`, `"method":"tools/call","Method":""`, 1) + "]",
		"a null id":      "[" + askBody + "," + strings.Replace(second, `"id":8`, `"id":8,"ID":null`, 1) + "]",
	} {
		res := f.hold(t, t.Context(), raw{body: body})
		<-f.began
		f.answer <- "approved"
		f.answer <- "approved"
		b, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || strings.Count(string(b), "approved") != 2 || strings.Contains(string(b), "stands in") {
			t.Errorf("%s: %q, %v, want two answers", name, b, err)
		}
		for range 2 {
			<-f.delivered
		}
	}
	f.wantIdle(t)
}

// parks is a server with one tool, which waits as the test says.
func parks(t *testing.T, wait func(ctx context.Context, call *tools.Call) *mcp.CallToolResult) *fixture {
	t.Helper()
	f := &fixture{asker: newAsker()}
	f.wait1 = wait
	return start(t, f, Options{}, false)
}

// A result that cannot be encoded is an answer too.
func TestAnswerThatCannotBeEncoded(t *testing.T) {
	f := parks(t, func(_ context.Context, call *tools.Call) *mcp.CallToolResult {
		call.OnDelivered(func() func(bool) { t.Error("another answer counts as its delivery"); return func(bool) {} })
		return &mcp.CallToolResult{StructuredContent: make(chan int)}
	})
	res, err := f.send(t.Context(), raw{body: askBody})
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil || !strings.Contains(string(b), `"isError":true`) {
		t.Errorf("%q, %v, want a tool error", b, err)
	}
	f.wantIdle(t)
}

// A hook that fails leaves no connection behind.
func TestPanicOfAHeldCall(t *testing.T) {
	for _, where := range []string{"wait", "before", "after"} {
		t.Run(where, func(t *testing.T) {
			f := parks(t, func(_ context.Context, call *tools.Call) *mcp.CallToolResult {
				if where == "wait" {
					panic("in a test")
				}
				call.OnDelivered(func() func(bool) {
					if where == "before" {
						panic("in a test")
					}
					return func(bool) { panic("in a test") }
				})
				return text("approved")
			})
			res, err := f.send(t.Context(), raw{body: askBody})
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
			f.wantIdle(t)
			waitFor(t, "the connection to be gone", func() string {
				f.srv.conns.mu.Lock()
				defer f.srv.conns.mu.Unlock()
				if n := len(f.srv.conns.all); n > 0 {
					return fmt.Sprintf("%d connections", n)
				}
				return ""
			})
			f.srv.requests.Wait()
		})
	}
}

// Of a request's headers only those that somebody reads are kept, in memory of their own.
func TestNeededHeaders(t *testing.T) {
	h := http.Header{"X-Other": {"x"}, "Accept": {"a", "b"}, "Mcp-Session-Id": {"s"}, "Cookie": {"c"}, "Last-Event-Id": {"l_1"}, "Authorization": {"Bearer t"}}
	for i := range 1000 {
		h[fmt.Sprintf("A%d", i)] = []string{""}
		h[fmt.Sprintf("Mcp-Param-%d", i)] = []string{""}
	}
	got := needed(h)
	for name, want := range map[string]string{"Accept": "a,b", "Last-Event-Id": "l_1", "Authorization": "Bearer t", "X-Other": "", "Cookie": "", "A1": ""} {
		if s := strings.Join(got[name], ","); s != want {
			t.Errorf("%s: %q, want %q", name, s, want)
		}
	}
	if len(got) > maxMCPHeaders+8 {
		t.Errorf("%d headers are kept", len(got))
	}
}

// resumes has the call of a session answered on a GET that resumes it, and nothing left.
func (f *fixture) resumes(t *testing.T, id, last string) {
	t.Helper()
	again, err := f.send(t.Context(), raw{method: "GET", session: id, version: "2025-11-25", header: map[string]string{"Last-Event-ID": last}})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Body.Close()
	if again.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(again.Body)
		t.Fatalf("resuming: %s: %s", again.Status, b)
	}
	<-f.began
	f.answer <- "approved"
	if got := readEvents(again.Body).result(t); got != "approved" {
		t.Errorf("answer %q", got)
	}
	<-f.delivered
	if n := f.srv.events.held.Len(); n != 0 {
		t.Errorf("%d streams count as waited for when all is answered", n)
	}
}

// A session's calls can be resumed whatever else is asked in between.
func TestResumeAfterMuch(t *testing.T) {
	f := serve(t, Options{}, false)
	id := f.initialize(t)
	res := f.hold(t, t.Context(), raw{body: askBody, session: id, version: "2025-11-25"})
	last, _, _ := readEvents(res.Body).next()
	other := f.initialize(t)
	for range maxEventStreams + 10 {
		f.srv.events.Open(t.Context(), other, fmt.Sprint(f.srv.events.recent.Len()))
		f.srv.events.Append(t.Context(), other, fmt.Sprint(f.srv.events.recent.Len()-1), make([]byte, 4096))
	}
	res.Body.Close()
	<-f.ended // its connection is gone
	f.resumes(t, id, last)
}

// So can one that was hung up while its proposal was being stored.
func TestResumeOfOneThatHungUpEarly(t *testing.T) {
	f := serve(t, Options{}, false)
	f.gate = make(chan struct{})
	id := f.initialize(t)
	ctx, cancel := context.WithCancel(t.Context())
	res, err := f.send(ctx, raw{body: askBody, session: id, version: "2025-11-25"})
	if err != nil {
		t.Fatal(err)
	}
	last, _, _ := readEvents(res.Body).next()
	cancel()
	res.Body.Close()
	var e *exchange
	waitFor(t, "the server to notice", func() string {
		f.srv.calls.mu.Lock()
		defer f.srv.calls.mu.Unlock()
		for _, e = range f.srv.calls.exchanges {
			if e.post.ctx.Err() == nil {
				return "its connection lives"
			}
		}
		return ""
	})
	close(f.gate)
	waitFor(t, "the call to be parked", func() string {
		f.srv.calls.mu.Lock()
		defer f.srv.calls.mu.Unlock()
		if e.parked == nil || e.conns > 0 {
			return fmt.Sprintf("parked %v, %d connections", e.parked != nil, e.conns)
		}
		return ""
	})
	other := f.initialize(t)
	for i := range maxEventStreams + 10 {
		f.srv.events.Open(t.Context(), other, fmt.Sprint(i))
	}
	f.resumes(t, id, last)
}

// What a stream sends again is weighed too: once the store has forgotten it, it is in nobody's copy but this one's.
func TestReplayTakesAPlace(t *testing.T) {
	f := serve(t, Options{}, false)
	id := f.initialize(t)
	f.srv.events.Open(t.Context(), id, "s")
	f.srv.events.Append(t.Context(), id, "s", nil)
	long := `{"jsonrpc":"2.0","id":7,"result":{"x":"` + strings.Repeat("x", 100_000) + `"}}`
	f.srv.events.Append(t.Context(), id, "s", []byte(long))
	resume := func() *http.Response {
		res, err := f.send(t.Context(), raw{method: "GET", session: id, version: "2025-11-25", header: map[string]string{"Last-Event-ID": "s_0"}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { res.Body.Close() })
		return res
	}
	if !f.srv.answers.take(maxAnswers) {
		t.Fatal("places are taken")
	}
	res := resume()
	b, _ := io.ReadAll(res.Body)
	if res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") == "" || !strings.Contains(string(b), "resume this stream in some seconds") {
		t.Errorf("without a place: %s %v %s", res.Status, res.Header, b)
	}
	f.srv.answers.free.Release(maxAnswers)
	res = resume()
	ev := readEvents(res.Body)
	ev.next() // that it is resumed
	if _, data, _ := ev.next(); data != long {
		t.Errorf("with a place: %s, %d bytes", res.Status, len(data))
	}
	res.Body.Close()
	waitFor(t, "the place to be given back", func() string {
		if !f.srv.answers.take(maxAnswers) {
			return "it is taken"
		}
		f.srv.answers.free.Release(maxAnswers)
		return ""
	})
}

// The place for what a stream sends again is given back when that is written, whatever it was.
func TestPlaceOfAReplay(t *testing.T) {
	for _, answers := range []string{"", `"id":7,"result":{},`} {
		rec := httptest.NewRecorder()
		ps := newPlaces(newWriters())
		ctx, drop := context.WithCancelCause(t.Context())
		w := &stream{rw: rec, rc: http.NewResponseController(rec), ctx: ctx, drop: drop, beats: newWheel(time.Hour, time.Second), within: time.Second,
			sending: func(string, string) func(bool) { return func(bool) {} }}
		msg := event([]byte(`{"jsonrpc":"2.0",` + answers + `"x":"` + strings.Repeat("x", 10_000) + `"}`))
		weight := weighAnswer(3 * len(msg))
		if !ps.take(weight) {
			t.Fatal("no place")
		}
		w.oweReplay(ps, weight, 3*len(msg))
		for i := range 3 {
			if len(ps.all) != 1 {
				t.Errorf("answers %q: given back when %d of 3 are written", answers, i)
			}
			if _, err := w.Write(msg); err != nil {
				t.Fatal(err)
			}
		}
		if len(ps.all) != 0 || !ps.take(maxAnswers) {
			t.Errorf("answers %q: not given back when all is written", answers)
		}
	}
}

// The place that a call had on an earlier connection is not that of its answer on this one.
func TestPlaceOfAnEarlierConnection(t *testing.T) {
	long := strings.Repeat("x", 100_000)
	began, back := make(chan struct{}, 1), false
	f := parks(t, func(ctx context.Context, call *tools.Call) *mcp.CallToolResult {
		if back {
			return text(long)
		}
		back = true
		if err := call.Room(len(long)); err != nil {
			t.Error(err)
		}
		began <- struct{}{}
		<-ctx.Done()
		return nil
	})
	id := f.initialize(t)
	res, err := f.send(t.Context(), raw{body: askBody, session: id, version: "2025-11-25"})
	if err != nil {
		t.Fatal(err)
	}
	last, _, _ := readEvents(res.Body).next()
	<-began
	res.Body.Close()
	waitFor(t, "all places", func() string {
		if !f.srv.answers.take(maxAnswers) {
			return "one is taken"
		}
		return ""
	})
	again, err := f.send(t.Context(), raw{method: "GET", session: id, version: "2025-11-25", header: map[string]string{"Last-Event-ID": last}})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Body.Close()
	if got := readEvents(again.Body).result(t); got != tools.ErrBusy.Error() {
		t.Errorf("without a place: %.100q", got)
	}
}

// Long answers take a bounded part of memory: past it they wait for those before, and who does not read his loses it.
func TestLongAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := serve(t, Options{}, true)
		f.fails = true
		long := strings.Repeat("x", 2<<20)
		places := maxAnswers / (copies * (len(long) + 1024))
		for range places + 3 {
			f.held(t)
		}
		for range places + 3 {
			f.answer <- long
		}
		synctest.Wait()
		if n := len(f.begun); n != places {
			t.Errorf("%d answers are being written, want %d", n, places)
		}
		// A short one is not held up.
		res := f.hold(t, t.Context(), raw{body: askBody})
		f.answer <- "approved"
		if got := readEvents(res.Body).result(t); got != "approved" {
			t.Errorf("answer %q", got)
		}
		res.Body.Close()
		<-f.delivered
		time.Sleep(stuckFor + lookAgain)
		synctest.Wait()
		if n := len(f.notSent); n != 3 {
			t.Errorf("%d answers count as not sent after %v, want %d: as many as others want", n, stuckFor+lookAgain, 3)
		}
		if n := len(f.begun); n != places+3+1 {
			t.Errorf("%d answers were begun, want all", n)
		}
	})
}

// An answer that was read for one call alone does not wait for a place with that, and one that many have a copy of does, but not
// beyond its call.
func TestPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := serve(t, Options{}, true)
		s := f.srv
		full := func() int64 { // all places are taken, but so many bytes
			const left = 1000
			if !s.answers.take(maxAnswers - left) {
				t.Fatal("places are taken")
			}
			return maxAnswers - left
		}
		long := func(d tools.Decision) *mcp.CallToolResult {
			d.FinalFile = strings.Repeat("<", 100_000)
			return &mcp.CallToolResult{Meta: mcp.Meta{tools.DecisionKey: d}}
		}
		w := &stream{}
		e := &exchange{alone: true, out: w}
		if res, err := s.place(t.Context(), e, long(tools.Decision{})); err != nil || res.IsError || len(w.owes) != 1 {
			t.Errorf("where there is room: %+v, %v, %d places", res, err, len(w.owes))
		}
		w.paidLocked()
		batch := &exchange{out: &stream{}, delivered: []func() func(bool){nil}}
		if res, err := s.place(t.Context(), batch, long(tools.Decision{})); err != nil || !res.IsError || len(batch.out.owes) != 0 || batch.delivered != nil {
			t.Errorf("in a batch: %+v, %v, want to be told to fetch it alone, and nothing delivered", res, err)
		}
		taken := full()
		if res, err := s.place(t.Context(), e, long(tools.Decision{})); err != nil || !res.IsError {
			t.Errorf("one that was read again: %+v, %v, want to be told to call again", res, err)
		}
		if res, err := s.place(t.Context(), e, text("short")); err != nil || res.IsError {
			t.Errorf("a short one: %+v, %v", res, err)
		}
		for _, cause := range []error{tools.ErrShutdown, errCancelled, tools.ErrBusy} {
			e.delivered = []func() func(bool){func() func(bool) { return nil }}
			ctx, cancel := context.WithCancelCause(t.Context())
			type got struct {
				res *mcp.CallToolResult
				err error
			}
			done := make(chan got, 1)
			go func() {
				res, err := s.place(ctx, e, long(tools.Decision{Status: "modified", ProposalID: "p1", Tool: "capability-block", Subject: "the Dockerfile"}))
				done <- got{res, err}
			}()
			synctest.Wait()
			if len(done) != 0 {
				t.Fatal("it does not wait")
			}
			start := time.Now()
			if cause != tools.ErrBusy { // that comes by itself
				cancel(cause)
			}
			g := <-done
			if cause == errCancelled && g.err != errCancelled || cause != errCancelled && (g.err != nil || !strings.HasPrefix(g.res.Content[0].(*mcp.TextContent).Text, "status: pending\nproposal_id: p1\n")) {
				t.Errorf("%v: %+v, %v", cause, g.res, g.err)
			}
			if took := time.Since(start); cause == tools.ErrBusy && took != placeWait {
				t.Errorf("it waited %v, want %v", took, placeWait)
			}
			cancel(nil)
			if e.delivered != nil {
				t.Errorf("%v: what is given in its place counts as its delivery", cause)
			}
		}
		s.answers.free.Release(taken)
		if !s.answers.take(maxAnswers) {
			t.Error("places were not given back")
		}
		s.answers.free.Release(maxAnswers)
	})
}

// The answer of a call that waits in its handler, as in a batch, is weighed where it goes out: on the GET that resumed it.
func TestLongAnswerResumed(t *testing.T) {
	f := serve(t, Options{}, false)
	f.inline = true
	id := f.initialize(t)
	res := f.hold(t, t.Context(), raw{body: askBody, session: id, version: "2025-11-25"})
	last, _, _ := readEvents(res.Body).next()
	res.Body.Close()
	f.srv.calls.mu.Lock()
	var e *exchange
	for _, e = range f.srv.calls.exchanges {
	}
	f.srv.calls.mu.Unlock()
	waitFor(t, "the POST to be gone", func() string {
		f.srv.calls.mu.Lock()
		defer f.srv.calls.mu.Unlock()
		if e.conns > 0 {
			return "it is there"
		}
		return ""
	})
	again, err := f.send(t.Context(), raw{method: "GET", session: id, version: "2025-11-25", header: map[string]string{"Last-Event-ID": last}})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Body.Close()
	if out := f.srv.calls.goesOutOn(e); out == e.post {
		t.Error("its answers are weighed on the connection that is gone")
	}
	f.answer <- "approved"
	if got := readEvents(again.Body).result(t); got != "approved" {
		t.Errorf("answer %q", got)
	}
	<-f.delivered
}

// A client that reads slowly has its answer, and one that does not gives its place back.
func TestSlowReaderOfALongAnswer(t *testing.T) {
	everyWay(t, func(t *testing.T, inline bool) {
		synctest.Test(t, func(t *testing.T) {
			f := serve(t, Options{}, true)
			f.inline = inline
			_, _, res := f.held(t)
			var err error
			long := strings.Repeat("x", 60_000)
			f.answer <- long
			var got []byte
			buf := make([]byte, piece)
			for err == nil {
				time.Sleep(slowest / 8) // a read has 4 KiB
				var n int
				n, err = res.Body.Read(buf)
				got = append(got, buf[:n]...)
			}
			if err != io.EOF || !strings.Contains(string(got), long) {
				t.Errorf("%d bytes, %v, want all", len(got), err)
			}
			<-f.delivered
		})
	})
}

// A client that sends something while it reads gets all of its answer: the connection is not reset over that.
func TestMoreWhileReading(t *testing.T) {
	f := serve(t, Options{}, false)
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096) })
	}}
	conn, err := d.DialContext(t.Context(), "tcp", f.srv.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\nContent-Length: %d\r\n\r\n%s", len(askBody), askBody)
	<-f.began
	long := strings.Repeat("x", 25_000) // it fits what the system keeps, so that it is written at once
	f.answer <- long
	<-f.delivered // and the server is done
	if _, err := io.WriteString(conn, "\r\n"); err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(conn)
	if err != nil || !strings.Contains(string(all), long) || !strings.HasSuffix(string(all), "\r\n0\r\n\r\n") {
		t.Errorf("%d bytes, %v, want all of it", len(all), err)
	}
}

// A place is given back when the answer has been written, however long it turned out, also of a call that waits in its handler.
func TestPlaceIsGivenBack(t *testing.T) {
	everyWay(t, func(t *testing.T, inline bool) {
		synctest.Test(t, func(t *testing.T) {
			f := serve(t, Options{}, true)
			f.inline = inline
			res := f.hold(t, t.Context(), raw{body: askBody})
			f.answer <- strings.Repeat("\n", 10_000) // 60,000 by our count, 20,000 on the wire
			if got := readEvents(res.Body).result(t); len(got) != 10_000 {
				t.Errorf("%d bytes", len(got))
			}
			res.Body.Close()
			<-f.delivered
			synctest.Wait()
			if !f.srv.answers.take(maxAnswers) {
				t.Error("a place is still taken")
			}
		})
	})
}
