package notify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/safetext"
	"github.com/bot-bottle/supervise/queue"
)

// board is a desk whose inbox a test changes.
type board struct {
	mu    sync.Mutex
	items []operator.Item // guarded by mu
	born  map[queue.ID]time.Time
	ch    chan struct{}
}

func newBoard() *board { return &board{born: map[queue.ID]time.Time{}, ch: make(chan struct{}, 1)} }

func (b *board) Changes(ctx context.Context) (<-chan struct{}, error) { return b.ch, nil }

func (b *board) Snapshot(context.Context) (*operator.Snapshot, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &operator.Snapshot{}
	for _, it := range b.items {
		it.Age = time.Since(b.born[it.ID])
		s.Items = append(s.Items, it)
	}
	return s, nil
}

func (b *board) ring() {
	select {
	case b.ch <- struct{}{}:
	default:
	}
}

func (b *board) add(bottle, summary string, dangers ...string) operator.Ref {
	b.mu.Lock()
	it := operator.Item{Ref: operator.Ref{Bottle: bottle, ID: queue.ID(fmt.Sprintf("id-%d", len(b.born)))}, Tool: "egress-block", Summary: safetext.Untrusted(summary), State: operator.Open, Connected: operator.Waiting}
	for _, d := range dangers {
		it.Findings, it.Danger = append(it.Findings, operator.Finding{Code: d, Level: operator.Danger}), true
	}
	b.items, b.born[it.ID] = append(b.items, it), time.Now()
	b.mu.Unlock()
	b.ring()
	return it.Ref
}

func (b *board) change(ref operator.Ref, f func(*operator.Item) (keep bool)) {
	b.mu.Lock()
	var left []operator.Item
	for _, it := range b.items {
		if it.Ref != ref || f(&it) {
			left = append(left, it)
		}
	}
	b.items = left
	b.mu.Unlock()
	b.ring()
}

func (b *board) remove(ref operator.Ref) {
	b.change(ref, func(*operator.Item) bool { return false })
}

// inbox is a sink that keeps what it got.
type inbox struct {
	mu   sync.Mutex
	got  []Message // guarded by mu
	slow time.Duration
	err  error
}

func (*inbox) Name() string { return "test" }

func (i *inbox) Deliver(ctx context.Context, m Message) error {
	pause(ctx, i.slow)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.got = append(i.got, m)
	return i.err
}

// titles takes what came, in short.
func (i *inbox) titles() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	out := []string{}
	for _, m := range i.got {
		out = append(out, m.Title+": "+strings.ReplaceAll(m.Text, "\n", " | "))
	}
	i.got = nil
	return out
}

func (i *inbox) want(t *testing.T, want ...string) {
	t.Helper()
	if want == nil {
		want = []string{}
	}
	if diff := cmp.Diff(want, i.titles()); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
}

// start runs a notifier until the returned function is called.
func start(t *testing.T, o Options) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, o) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestTelling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, in := newBoard(), &inbox{}
		stop := start(t, Options{Desk: b, Sinks: []Sink{in}, State: filepath.Join(t.TempDir(), "notify"), RemindAfter: 15 * time.Minute})
		defer stop()
		a := b.add("web", "allow a.example.com /x")
		time.Sleep(3 * time.Second)
		in.want(t, "web asks: web: allow a.example.com /x")

		// A burst is one message, dangers first; what was decided meanwhile is not in it.
		time.Sleep(time.Minute)
		b.add("api", "allow b.example.com")
		gone := b.add("api", "allow gone.example.com")
		b.add("web", "allow 10.0.0.1", "private", "ip-literal")
		b.remove(gone)
		time.Sleep(20 * time.Second)
		in.want(t, "2 proposals wait (danger): web: allow 10.0.0.1 [danger: private, ip-literal] | api: allow b.example.com")

		// A failed attempt is no arrival, and neither is one that is being decided and comes back.
		b.change(a, func(it *operator.Item) bool { it.State = operator.Deciding; return true })
		time.Sleep(time.Minute)
		b.change(a, func(it *operator.Item) bool { it.State = operator.Failed; return true })
		time.Sleep(time.Minute)
		in.want(t)

		// Once more after remind_after, and only once.
		time.Sleep(12 * time.Minute)
		in.want(t, "web still waits: web: allow a.example.com /x")
		time.Sleep(5 * time.Minute)
		in.want(t, "2 proposals still wait (danger): web: allow 10.0.0.1 [danger: private, ip-literal] | api: allow b.example.com")
		time.Sleep(5 * time.Hour)
		in.want(t)

		// An abandoned one is not worth a word.
		b.remove(a)
		c := b.add("web", "allow c.example.com")
		b.change(c, func(it *operator.Item) bool { it.Abandoned = true; return true })
		time.Sleep(time.Hour)
		in.want(t)
	})
}

// Slow or failing, a sink holds up neither the others nor the inbox, and hears of everything in the end.
func TestSlowSink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, slow, quick := newBoard(), &inbox{slow: time.Hour, err: errors.New("no")}, &inbox{}
		stop := start(t, Options{Desk: b, Sinks: []Sink{slow, quick}, State: filepath.Join(t.TempDir(), "notify")})
		defer stop()
		b.add("web", "allow a.example.com")
		time.Sleep(time.Minute)
		b.add("web", "allow b.example.com")
		time.Sleep(time.Minute)
		b.add("web", "allow c.example.com")
		time.Sleep(time.Minute)
		quick.want(t, "web asks: web: allow a.example.com", "web asks: web: allow b.example.com", "web asks: web: allow c.example.com")
		slow.want(t)
		time.Sleep(3 * time.Hour)
		slow.want(t, "web asks: web: allow a.example.com", "2 proposals wait: web: allow b.example.com | web: allow c.example.com")
	})
}

// What is to be told through a sink that is stuck is bounded, whatever comes and goes meanwhile.
func TestStuckSink(t *testing.T) {
	q := &outbox{wake: make(chan struct{}, 1), due: map[string]bool{}}
	var last operator.Item
	for i := range 5 * mostGone {
		last = operator.Item{Ref: operator.Ref{Bottle: "web", ID: queue.ID(fmt.Sprint(i))}}
		q.put([]operator.Item{last}, map[string]bool{key(last): false})
	}
	if n := len(q.due); n > mostGone+1 {
		t.Errorf("%d are due", n)
	}
	if items, _, open := q.take(); len(items) != 1 || items[0].Ref != last.Ref || open != 1 {
		t.Errorf("take = %v, %d; want the one that is open", items, open)
	}
}

// slowDesk takes its time to look, and always has something new.
type slowDesk struct {
	*board
	took time.Duration
	n    int
}

func (d *slowDesk) Snapshot(ctx context.Context) (*operator.Snapshot, error) {
	d.n++
	d.ring()
	pause(ctx, d.took)
	return d.board.Snapshot(ctx)
}

// A sidecar that changes something without end has us look half of the time at most.
func TestChangesWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &slowDesk{board: newBoard(), took: 2 * time.Second}
		stop := start(t, Options{Desk: d, Sinks: []Sink{&inbox{}}})
		time.Sleep(time.Minute)
		stop()
		if d.n > 16 {
			t.Errorf("%d looks of 2 s in a minute, want half of the time at most", d.n)
		}
	})
}

// Of two processes one notifies; when it ends the other takes over and repeats nothing.
func TestTakingOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		state := filepath.Join(t.TempDir(), "notify")
		b1, b2, one, two := newBoard(), newBoard(), &inbox{}, &inbox{}
		stop1 := start(t, Options{Desk: b1, Sinks: []Sink{one}, State: state})
		time.Sleep(time.Second)
		stop2 := start(t, Options{Desk: b2, Sinks: []Sink{two}, State: state})
		defer stop2()
		for _, b := range []*board{b1, b2} {
			b.add("web", "allow a.example.com")
		}
		time.Sleep(time.Minute)
		one.want(t, "web asks: web: allow a.example.com")
		two.want(t)
		stop1()
		b2.add("web", "allow b.example.com")
		time.Sleep(time.Minute)
		two.want(t, "web asks: web: allow b.example.com")
		stop2()
		// What is kept does not parse: rather twice than never.
		if err := os.WriteFile(state+".json", []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		stop3 := start(t, Options{Desk: b2, Sinks: []Sink{two}, State: state})
		defer stop3()
		time.Sleep(time.Minute)
		two.want(t, "2 proposals wait: web: allow a.example.com | web: allow b.example.com")
	})
}

// A terminal's own notifier shares nothing, and does not ring for what is on the screen already.
func TestPrivate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, in := newBoard(), &inbox{}
		b.add("web", "allow a.example.com")
		stop := start(t, Options{Desk: b, Sinks: []Sink{in}})
		defer stop()
		time.Sleep(time.Minute)
		in.want(t)
		b.add("web", "allow b.example.com")
		time.Sleep(time.Minute)
		in.want(t, "web asks: web: allow b.example.com")
	})
}

func TestMessage(t *testing.T) {
	var items []operator.Item
	hostile := "allow \x1b]0;x\x07\u202e<b>\n@/etc/passwd " + strings.Repeat("long", 100)
	for i := range 25 {
		items = append(items, operator.Item{Ref: operator.Ref{Bottle: "web", ID: queue.ID(fmt.Sprint(i))}, Tool: "egress\nblock", Summary: safetext.Untrusted(hostile), Age: time.Hour})
	}
	m := message(items, map[string]bool{"web/3": true}, 30, "http://127.0.0.1:9101")
	if m.Event != "arrived" || len(m.Proposals) != 20 || m.More != 5 || m.Open != 30 || m.Title != "25 proposals wait" {
		t.Errorf("message is %s, %q, %d proposals and %d more of %d", m.Event, m.Title, len(m.Proposals), m.More, m.Open)
	}
	if !m.Proposals[19].Reminder && m.Proposals[0].Reminder {
		t.Error("a reminder comes before news")
	}
	for line := range strings.SplitSeq(m.Text, "\n") {
		if len([]rune(line)) > 130 || !strings.HasPrefix(line, "web: allow \\x1b]0;x\\x07\\u202e<b>\\n") && line != "and 5 more" {
			t.Errorf("a line is %q", line)
		}
	}
	b, err := safetext.JSON(m)
	if err != nil {
		t.Fatal(err)
	}
	var back Message
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(m, back); diff != "" {
		t.Errorf("JSON (-want +got):\n%s", diff)
	}
}

func one() Message {
	return message([]operator.Item{{Ref: operator.Ref{Bottle: "web", ID: "1"}, Summary: "allow $(touch x) `id` -rf"}}, nil, 1, "http://u/")
}

func TestExec(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	s := Exec(dir, []string{"sh", "-c", `cat >"$0.json"; printf '%s\n' "$@" >"$0"`, "out", "-t", "{title}", "{text}", "{url}", "{other}"})
	if err := s.Deliver(t.Context(), one()); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if want := "-t\nweb asks\nweb: allow $(touch x) `id` -rf\nhttp://u/\n{other}\n"; string(got) != want {
		t.Errorf("arguments are %q, want %q", got, want)
	}
	var m Message
	b, err := os.ReadFile(out + ".json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &m); err != nil || m.Title != "web asks" {
		t.Errorf("its input is %s: %v", b, err)
	}
	err = Exec("", []string{"sh", "-c", "printf 'no\\033[31m bus\\n' >&2; exit 3"}).Deliver(t.Context(), one())
	if err == nil || !strings.Contains(err.Error(), `exit status 3: no\x1b[31m bus`) {
		t.Errorf("a failing program: %v", err)
	}
	if err := Exec("", []string{"/nonexistent/x"}).Deliver(t.Context(), one()); err == nil {
		t.Error("a missing program: no error")
	}
	// One that hangs, and leaves a child that holds its output.
	begun := time.Now()
	err = execSink{"", []string{"sh", "-c", "sleep 30 & wait"}, 100 * time.Millisecond}.Deliver(t.Context(), one())
	if err == nil || !strings.Contains(err.Error(), "longer than") || time.Since(begun) > 10*time.Second {
		t.Errorf("a hanging program: %v after %v", err, time.Since(begun))
	}
	if err := Exec("", []string{"true"}).Deliver(t.Context(), one()); err != nil {
		t.Errorf("one that does not read its input: %v", err)
	}
	// One that exits 0, and leaves a child that shows it.
	if err := Exec("", []string{"sh", "-c", `sleep 30 & echo $! >"$0"`, out}).Deliver(t.Context(), one()); err != nil {
		t.Errorf("one that leaves a child: %v", err)
	}
	if got, err = os.ReadFile(out); err != nil {
		t.Fatal(err)
	}
	if pid, err := strconv.Atoi(strings.TrimSpace(string(got))); err != nil || pid <= 1 || syscall.Kill(pid, syscall.SIGKILL) != nil {
		t.Errorf("the child is %q", got)
	}
}

// TestNotifySend: a desktop reads markup in the text, and notify-send itself backslashes.
func TestNotifySend(t *testing.T) {
	dir := t.TempDir()
	prog := filepath.Join(dir, "notify-send")
	if err := os.WriteFile(prog, []byte("#!/bin/sh\nprintf '%s\\n' \"$@\" >\"$0.out\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	m := one()
	m.Text = `web: let https://a.example/<b>\342\200\256?a=1&lt=2 through pipelock`
	if err := Exec("", []string{prog, "{title}", "{text}"}).Deliver(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(prog + ".out")
	if err != nil {
		t.Fatal(err)
	}
	if want := "web asks\nweb: let https://a.example/&lt;b&gt;\\\\342\\\\200\\\\256?a=1&amp;lt=2 through pipelock\n"; string(got) != want {
		t.Errorf("arguments are %q, want %q", got, want)
	}
}

func TestTerminal(t *testing.T) {
	var b strings.Builder
	if err := Terminal(&b).Deliver(t.Context(), one()); err != nil {
		t.Fatal(err)
	}
	if want := "\x1b]9;supervise: web: allow $(touch x) `id` -rf\x07\x07"; b.String() != want {
		t.Errorf("the terminal gets %q, want %q", b.String(), want)
	}
}

func TestWebhook(t *testing.T) {
	secret := []byte("s3cret")
	type hit struct{ delivery, body string }
	for _, tt := range []struct {
		name    string
		answers []int
		hits    int
		want    string // of the error
	}{
		{"at once", []int{200}, 1, ""},
		{"created", []int{201}, 1, ""},
		{"the third time", []int{503, 429, 204}, 3, ""},
		{"never", []int{500, 500, 500, 500, 500, 500}, 4, "after 4 attempts: it answers 500"},
		{"gone", []int{410, 200}, 1, "after 1 attempts: it answers 410"},
		{"moved", []int{302, 200}, 1, "after 1 attempts: it answers 302"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var hits []hit
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				if err != nil {
					t.Error(err)
				}
				sig, v1, _ := strings.Cut(r.Header.Get("Supervise-Signature"), ",v1=")
				if r.Method != "POST" || r.Header.Get("Content-Type") != "application/json" || Sign(secret, strings.TrimPrefix(sig, "t="), body) != v1 {
					t.Errorf("%s with %v", r.Method, r.Header)
				}
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(tt.answers[len(hits)])
				hits = append(hits, hit{r.Header.Get("Supervise-Delivery"), string(body)})
			}))
			defer srv.Close()
			err := Webhook(WebhookOptions{URL: srv.URL + "/secret-path", Secret: secret, Pauses: []time.Duration{1, 1, 1}}).Deliver(t.Context(), one())
			if got := fmt.Sprint(err); tt.want == "" && err != nil || tt.want != "" && !strings.HasPrefix(got, tt.want) {
				t.Errorf("Deliver: %v, want %q", err, tt.want)
			}
			if len(hits) != tt.hits {
				t.Errorf("%d requests, want %d", len(hits), tt.hits)
			}
			for _, h := range hits {
				if h != hits[0] || len(h.delivery) < 20 {
					t.Errorf("a repeat differs: %v, %v", h, hits[0])
				}
			}
		})
	}
	t.Run("out of reach", func(t *testing.T) {
		srv := httptest.NewServer(nil)
		srv.Close()
		w := Webhook(WebhookOptions{URL: srv.URL + "/secret-path", Pauses: []time.Duration{1}})
		err := w.Deliver(t.Context(), one())
		if err == nil || !strings.HasPrefix(err.Error(), "after 2 attempts: ") || strings.Contains(err.Error()+w.Name(), "secret-path") {
			t.Errorf("%s: %v, want two attempts and no word of the path", w.Name(), err)
		}
	})
	t.Run("the end", func(t *testing.T) {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "3000")
			w.WriteHeader(503)
		}))
		defer srv.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if err := Webhook(WebhookOptions{URL: srv.URL}).Deliver(ctx, one()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Deliver: %v, want it to end with its context", err)
		}
	})
}
