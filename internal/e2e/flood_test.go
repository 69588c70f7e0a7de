package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// maxRSS bounds a flooded sidecar's own memory, in KiB: what the limits let in, twice over for the garbage collector. That is 32 MiB
// of bodies, which are there three times while they are read, or 2,048 held calls with their connections, at 64 KiB each;
// 2,048 other connections at 32 KiB; 32 MiB of proposals that are counted; and 16 MiB that it takes anyway.
const maxRSS = 2 * (128 + 64 + 32 + 16) << 10

// flooded is a bottle whose agent floods its sidecar, and another one beside it.
type flooded struct {
	*world
	other   *world
	metrics string
	addr    string
	client  *http.Client // of the flood
	fresh   *http.Client // a new connection each time
	fds     int
	asked   int
	peak    atomic.Int64 // KiB
	told    sync.Map     // what refused calls were told, with how often
}

func newFlooded(t *testing.T) *flooded {
	f := &flooded{world: newWorld(t), metrics: "127.0.0.1:" + freePort(t)}
	f.startProxy()
	f.startSide("SUPERVISE_METRICS=" + f.metrics)
	f.addr = "127.0.0.1:" + f.port
	other := *f.world
	other.bottle, other.port = "db", freePort(t)
	f.other = &other
	f.other.startSide()
	f.client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: -1, DisableKeepAlives: true}}
	f.fresh = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: -1, DisableKeepAlives: true}}
	f.honest(nil)
	f.until("it is at rest", func() bool { return f.side.descriptors() < 40 })
	f.fds = f.side.descriptors()
	return f
}

// honest is a call of each bottle that is asked before the flood, and decided during it.
func (f *flooded) honest(during func()) {
	f.t.Helper()
	f.asked++
	type one struct {
		w    *world
		ch   chan answer
		host string
	}
	var calls []one
	for i, w := range []*world{f.world, f.other} {
		c := one{w, make(chan answer, 1), fmt.Sprintf("honest%d-%d.example.com", f.asked, i)}
		go func() {
			c.ch <- rawCall(f.t.Context(), http.DefaultClient, w.sideURL, "2026-07-28", "", callParams("egress-block", fmt.Sprintf(`{"host":%q,"justification":"x"}`, c.host)))
		}()
		calls = append(calls, c)
	}
	ids := map[string]string{}
	f.until("the honest calls are open", func() bool {
		for _, it := range f.list() {
			for _, c := range calls {
				if strings.Contains(it.Summary, c.host) {
					ids[c.host] = it.ID
				}
			}
		}
		return len(ids) == len(calls)
	})
	if during != nil {
		during()
	}
	for _, c := range calls {
		f.must("reject", ids[c.host], "--notes", "no, "+c.host)
		if a := get(f.t, c.ch); !strings.HasPrefix(a.text, "status: rejected\nnotes: no, "+c.host+"\n") {
			f.t.Errorf("the honest call of %s: %s", c.w.bottle, a.text)
		}
	}
}

// flood runs attack, which returns when it has done its number or its context ends. stands is closed by it when it is at its
// worst. Meanwhile all that must work is seen to work.
func (f *flooded) flood(attack func(ctx context.Context, stands func())) {
	f.t.Helper()
	ctx, cancel := context.WithCancel(f.t.Context())
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	over, stands := make(chan struct{}), make(chan struct{})
	f.honest(func() {
		all.Go(func() {
			defer close(over)
			attack(ctx, sync.OnceFunc(func() { close(stands) }))
		})
		for up, rounds := false, 0; !up || rounds < 3; rounds++ {
			select {
			case <-stands:
				up = true
			case <-over:
				up = true
			default:
			}
			f.works()
		}
	})
	f.works()
	cancel()
	<-over
	f.until(fmt.Sprintf("descriptors are back at %d (%d now)", f.fds, f.side.descriptors()), func() bool { return f.side.descriptors() <= f.fds+8 })
	f.told.Range(func(text, n any) bool {
		f.t.Logf("%6d told: %s", n.(*atomic.Int64).Load(), text)
		return true
	})
	f.t.Logf("at most %d KiB", f.peak.Load())
	if f.peak.Load() > maxRSS {
		f.t.Errorf("the sidecar took %d KiB of its own, more than %d", f.peak.Load(), maxRSS)
	}
}

// works looks at all that a flood must not stop.
func (f *flooded) works() {
	f.t.Helper()
	for _, w := range []*world{f.world, f.other} {
		// A connection may have to make way for another; a probe is repeated then, and so is a call.
		f.until("GET /health of "+w.bottle+" is answered", func() bool {
			resp, err := f.fresh.Get(w.sideURL + "health")
			if err != nil {
				return false
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			return err == nil && resp.StatusCode == http.StatusOK && string(b) == "ok\n"
		})
		f.until("list-egress-routes of "+w.bottle+" is answered", func() bool {
			a := rawCall(f.t.Context(), f.fresh, w.sideURL, "2026-07-28", "", callParams("list-egress-routes", "{}"))
			return a.err == nil && !a.isError
		})
	}
	f.peak.Store(max(f.peak.Load(), int64(f.side.rssAnon())))
	names, size, seen := 0, int64(0), map[uint64]bool{}
	err := filepath.WalkDir(f.path("queue/"+f.bottle), func(_ string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if info, err := d.Info(); err == nil && !d.IsDir() {
			names++
			if ino := info.Sys().(*syscall.Stat_t).Ino; !seen[ino] {
				seen[ino] = true
				size += info.Size()
			}
		}
		return nil
	})
	if err != nil {
		f.t.Fatal(err)
	}
	// 32 open proposals of at most 2 MiB, each of which has two names for a moment, presence, the lock; and what the honest calls left.
	if names > 2*32+3+2*f.asked || size > 34*2<<20 {
		f.t.Fatalf("the mailbox holds %d files with %d bytes", names, size)
	}
}

var idRE = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f-]{27}|h\d[-\d]*\.example\.com|\b\d+ s\b|[A-Z0-9]{26}`)

// tell counts what a refused call was told.
func (f *flooded) tell(a answer) {
	text := a.text
	if a.err != nil {
		if errors.Is(a.err, context.Canceled) {
			return
		}
		if text = a.err.Error(); errors.Is(a.err, syscall.ECONNRESET) || errors.Is(a.err, syscall.EPIPE) {
			text = "(cut)"
		}
	}
	text = strings.ReplaceAll(idRE.ReplaceAllString(text, "…"), "\n", " ")
	text = text[:min(len(text), 300)]
	n, _ := f.told.LoadOrStore(text, new(atomic.Int64))
	n.(*atomic.Int64).Add(1)
}

func (f *flooded) hasTold(text string) (found bool) {
	f.told.Range(func(k, _ any) bool { found = strings.Contains(k.(string), text); return !found })
	return found
}

// wasTold fails unless some call was told text.
func (f *flooded) wasTold(text string) {
	f.t.Helper()
	if !f.hasTold(text) {
		f.t.Errorf("nobody was told %q", text)
	}
}

// spread runs do for 0 to n-1, width at a time.
func spread(ctx context.Context, n, width int, do func(i int)) {
	var next atomic.Int64
	var all sync.WaitGroup
	for range min(n, width) {
		all.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				do(i)
			}
		})
	}
	all.Wait()
}

// whole tells whether the floods are of full size: make flood. Otherwise they are a twentieth, as a part of the other tests.
func whole() bool { return os.Getenv("SUPERVISE_FLOOD") != "" && !testing.Short() }

func many(t *testing.T, n int) int {
	if !whole() {
		return n / 20
	}
	return n
}

func rawCall(ctx context.Context, c *http.Client, url, version, session, params string) answer {
	req, err := rawRequest(ctx, url, version, session, "tools/call", params)
	if err != nil {
		return answer{err: err}
	}
	resp, err := c.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	a, _ := rawAnswer(resp, resp.Body)
	return a
}

// Ten thousand identical calls: 2,048 are held, the others are told to come back; all have the one proposal.
func TestFloodIdentical(t *testing.T) {
	f := newFlooded(t)
	n := many(t, 10_000)
	var done atomic.Int64
	f.flood(func(ctx context.Context, stands func()) {
		spread(ctx, n, 2300, func(i int) {
			a := rawCall(ctx, f.client, f.sideURL, []string{"", "2026-07-28"}[i%2], "", callParams("egress-block", fmt.Sprintf(`{"host":"same.example.com","justification":"call %d"}`, i)))
			f.tell(a)
			if int(done.Add(1)) >= n-2200 {
				stands()
			}
		})
	})
	if whole() {
		f.wasTold("too many calls wait at once")
	}
}

// Ten thousand different calls: 32 proposals are open, and the others are told which, and what to do.
func TestFloodDifferent(t *testing.T) {
	f := newFlooded(t)
	n := many(t, 10_000)
	var done atomic.Int64
	f.flood(func(ctx context.Context, stands func()) {
		spread(ctx, n, 100, func(i int) {
			f.tell(rawCall(ctx, f.client, f.sideURL, []string{"", "2026-07-28"}[i%2], "", callParams("egress-block", fmt.Sprintf(`{"host":"h%d.example.com","justification":"x"}`, i))))
			if int(done.Add(1)) >= n-100 {
				stands()
			}
		})
	})
	f.wasTold("32 proposals of this sandbox wait for the operator already, which is the limit: call await-decision with one of these ids")
}

// Bodies that are too big, of every kind: stored, refused for what is in them, refused unread, without an end.
func TestFloodHuge(t *testing.T) {
	f := newFlooded(t)
	n := many(t, 240)
	filler := strings.Repeat(`\t`, 4<<20)
	dockerfile := func(i, size int) string {
		return callParams("capability-block", fmt.Sprintf(`{"dockerfile":"FROM debian:12\n# %d %s\n","justification":"x"}`, i, filler[:2*size]))
	}
	var done atomic.Int64
	f.flood(func(ctx context.Context, stands func()) {
		spread(ctx, n, 90, func(i int) {
			defer func() {
				if int(done.Add(1)) >= n-90 {
					stands()
				}
			}()
			switch i % 4 {
			case 0: // what may be stored: all of it escaped, so that it takes twice its size
				f.tell(rawCall(ctx, f.client, f.sideURL, "2026-07-28", "", dockerfile(i, 250<<10)))
			case 1:
				f.tell(rawCall(ctx, f.client, f.sideURL, "2026-07-28", "", dockerfile(i, 500<<10)))
			case 2:
				f.tell(rawCall(ctx, f.client, f.sideURL, "2026-07-28", "", dockerfile(i, 4<<20)))
			case 3:
				req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.sideURL, io.MultiReader(strings.NewReader(`{"jsonrpc":"2.0","id":1,"method":"`), endless{}))
				if err != nil {
					t.Error(err)
					return
				}
				resp, err := f.client.Do(req)
				if err != nil {
					return // it closed while we were still writing
				}
				b, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				f.tell(answer{err: &statusError{resp.StatusCode, string(b)}})
			}
		})
	})
	f.wasTold("the request's body is over 1048576 bytes")
	f.wasTold("capability-block: dockerfile ")
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

// Connections on which nothing comes, or as good as nothing: headers and bodies that drip, answers that nobody reads.
func TestFloodSlow(t *testing.T) {
	for name, slow := range map[string]struct{ text, told string }{
		"half open": {"", ""},
		"headers":   {"POST / HTTP/1.1\r\nHost: localhost\r\nX-A: ", ""},
		"bodies": {"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1048576\r\n\r\n{\"jsonrpc\":",
			"requests of over 33554432 bytes in all are in progress; answer or cancel some, or send less than 16384 bytes"},
		"idle": {"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", ""},
		"listening": {"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\nMCP-Protocol-Version: 2026-07-28\r\nMcp-Method: subscriptions/listen\r\n" + contentLength(listenBody),
			""}, // answered at once: nothing that can be listened for changes here
	} {
		t.Run(name, func(t *testing.T) {
			f := newFlooded(t)
			n := many(t, 6000)
			f.flood(func(ctx context.Context, stands func()) {
				conns := make([]net.Conn, n)
				var readers sync.WaitGroup
				defer readers.Wait()
				defer func() {
					for _, c := range conns {
						if c != nil {
							c.Close()
						}
					}
				}()
				spread(ctx, n, 50, func(i int) {
					c, err := (&net.Dialer{}).DialContext(ctx, "tcp", f.addr)
					if err != nil {
						return
					}
					conns[i] = c
					_, _ = io.WriteString(c, slow.text)
					if name == "listening" || name == "bodies" {
						readers.Go(func() {
							if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err == nil && resp.StatusCode != http.StatusOK {
								b, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
								f.tell(answer{err: &statusError{resp.StatusCode, string(b)}})
							}
						})
					}
				})
				drip := time.NewTicker(200 * time.Millisecond)
				defer drip.Stop()
				for {
					if !whole() || f.hasTold(slow.told) || slow.told == "" {
						stands()
					}
					select {
					case <-drip.C:
						for _, c := range conns {
							if c != nil && (name == "headers" || name == "bodies") {
								_, _ = io.WriteString(c, "x")
							}
						}
					case <-ctx.Done():
						return
					}
				}
			})
			if told := slow.told; told != "" && whole() {
				f.wasTold(told)
			}
		})
	}
}

const listenBody = `{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen","params":{"_meta":{` + meta2026 + `},"notifications":{"toolsListChanged":true}}}`

func contentLength(body string) string {
	return fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body)
}

// Thousands of sessions, and of clients that have none.
func TestFloodSessions(t *testing.T) {
	f := newFlooded(t)
	n := many(t, 5000)
	held, err := rawSession(t.Context(), f.client, f.sideURL)
	if err != nil {
		t.Fatal(err)
	}
	ch := make(chan answer, 1)
	go func() {
		ch <- rawCall(t.Context(), http.DefaultClient, f.sideURL, "2025-11-25", held, callParams("egress-block", `{"host":"held.example.com","justification":"x"}`))
	}()
	f.open(1)
	var done atomic.Int64
	f.flood(func(ctx context.Context, stands func()) {
		var busy sync.WaitGroup
		defer busy.Wait()
		spread(ctx, 300, 32, func(int) { // a session that is in use does not make way
			id, err := rawSession(ctx, f.client, f.sideURL)
			if err != nil {
				f.tell(answer{err: err})
				return
			}
			req, err := rawRequest(ctx, f.sideURL, "2025-11-25", id, "tools/call", callParams("egress-block", `{"host":"held.example.com","justification":"x"}`))
			if err != nil {
				t.Error(err)
				return
			}
			resp, err := f.client.Do(req)
			if err != nil {
				return
			}
			busy.Go(func() {
				defer resp.Body.Close()
				a, _ := rawAnswer(resp, resp.Body)
				f.tell(a)
			})
		})
		spread(ctx, n, 200, func(i int) {
			if i%2 == 0 {
				f.tell(rawCall(ctx, f.client, f.sideURL, "2026-07-28", "", callParams("await-decision", `{"proposal_id":"x"}`)))
			} else if _, err := rawSession(ctx, f.client, f.sideURL); err != nil {
				f.tell(answer{err: err})
			}
			if int(done.Add(1)) == n {
				stands()
				<-ctx.Done()
			}
		})
	})
	f.wasTold("256 sessions are open and none is idle: end one with DELETE, or try again later")
	for _, it := range f.open(1) {
		f.must("reject", it.ID)
	}
	if a := get(t, ch); !strings.HasPrefix(a.text, "status: rejected\n") {
		t.Errorf("the call of the first session: %s", a.text)
	}
}

// Ten thousand calls in bodies of sixteen, and bodies of more.
// TestFloodUnread: bodies of many messages whose answers nobody reads.
func TestFloodUnread(t *testing.T) {
	f := newFlooded(t)
	n := many(t, 2000)
	var body bytes.Buffer
	for k := range 16 {
		fmt.Fprintf(&body, `%c{"jsonrpc":"2.0","id":%d,"method":"tools/list"}`, "[,"[min(k, 1)], k+1)
	}
	request := fmt.Sprintf("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\nContent-Length: %d\r\n\r\n%s]", body.Len()+1, body.String())
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 2048) })
	}}
	var done atomic.Int64
	f.flood(func(ctx context.Context, stands func()) {
		spread(ctx, n, n, func(int) {
			conn, err := d.DialContext(ctx, "tcp", f.addr)
			if err == nil {
				defer conn.Close()
				if _, err := io.WriteString(conn, request); err == nil {
					if resp, err := http.ReadResponse(bufio.NewReaderSize(conn, 16), nil); err == nil && resp.StatusCode != http.StatusOK {
						b, _ := io.ReadAll(resp.Body)
						f.tell(answer{err: &statusError{resp.StatusCode, string(b)}})
					}
				}
			}
			if int(done.Add(1)) == n {
				stands()
			}
			<-ctx.Done()
		})
	})
	f.wasTold("many bodies of several messages are in progress: send one message at a time")
}

func TestFloodBatches(t *testing.T) {
	f := newFlooded(t)
	n := many(t, 10_000) / 16
	var done atomic.Int64
	f.flood(func(ctx context.Context, stands func()) {
		spread(ctx, n, 200, func(i int) {
			defer func() {
				if int(done.Add(1)) >= n-200 {
					stands()
				}
			}()
			var body bytes.Buffer
			for k := range []int{16, 16, 16, 2000}[i%4] {
				if k > 0 {
					body.WriteByte(',')
				}
				fmt.Fprintf(&body, `{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{%s}}`, k+1, callParams("egress-block", fmt.Sprintf(`{"host":"h%d-%d.example.com","justification":"x"}`, i, k)))
			}
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.sideURL, strings.NewReader("["+body.String()+"]"))
			if err != nil {
				t.Error(err)
				return
			}
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set("Accept", "application/json, text/event-stream")
			resp, err := f.client.Do(req)
			if err != nil {
				return
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				b, _ := io.ReadAll(resp.Body)
				f.tell(answer{err: &statusError{resp.StatusCode, string(b)}})
				return
			}
			a, _ := rawAnswer(resp, resp.Body)
			f.tell(a)
		})
	})
	f.wasTold("a body may hold 16 messages, and this one holds 2000: send fewer at once")
}
