package tui

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/aymanbagabas/go-udiff"
	"github.com/charmbracelet/x/ansi"

	"github.com/bot-bottle/supervise/internal/apply"
	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/safetext"
	"github.com/bot-bottle/supervise/queue"
)

var update = flag.Bool("update", false, "write the golden files")

func TestMain(m *testing.M) {
	time.Local = time.UTC // times on golden screens
	os.Exit(m.Run())
}

// fakeDesk is a desk in memory: what it shows is what a test put there.
type fakeDesk struct {
	mu       sync.Mutex
	previews []*operator.Preview // in the order of the inbox
	gone     map[operator.Ref]*operator.Preview
	problems []operator.Problem
	bottles  []string
	down     error // Snapshot and Show fail with it
	history  []operator.LedgerEntry
	calls    []string
	changes  chan struct{}
	deaf     error         // Changes fails with it
	slow     time.Duration // of a Snapshot
	looks    int           // Snapshots

	edited  func(ref operator.Ref, edited string) (*operator.Preview, error)
	approve func(ctx context.Context, ref operator.Ref, d operator.Decision) (*operator.Result, error)
	undo    error         // Undo fails with it
	notes   []string      // Undo has them to say
	hold    chan struct{} // Show waits for it
}

func newDesk(previews ...*operator.Preview) *fakeDesk {
	d := &fakeDesk{gone: map[operator.Ref]*operator.Preview{}}
	for _, p := range previews {
		d.put(p)
	}
	return d
}

func (d *fakeDesk) put(p *operator.Preview) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !slices.Contains(d.bottles, p.Bottle) {
		d.bottles = append(d.bottles, p.Bottle)
	}
	if i := d.find(p.Ref); i >= 0 {
		d.previews[i] = p
		return
	}
	d.previews = append(d.previews, p)
}

func (d *fakeDesk) find(ref operator.Ref) int {
	return slices.IndexFunc(d.previews, func(p *operator.Preview) bool { return p.Ref == ref })
}

// decide takes a proposal out of the inbox, as decided by somebody; without a name it is gone altogether.
func (d *fakeDesk) decide(ref operator.Ref, status queue.Status, by, via string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	i := d.find(ref)
	if i < 0 {
		return
	}
	p := *d.previews[i]
	d.previews = slices.Delete(d.previews, i, i+1)
	if via == "" {
		return
	}
	p.State, p.Targets, p.Digest, p.Findings = operator.Decided, nil, "", nil
	p.Decision = &operator.Record{ID: ref.ID, Bottle: ref.Bottle, State: operator.Answered, Status: status, By: by, Via: via, At: day.Add(time.Hour)}
	d.gone[ref] = &p
}

func (d *fakeDesk) call(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls = append(d.calls, fmt.Sprintf(format, args...))
}

// called returns the verbs that were called since it was asked last.
func (d *fakeDesk) called() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	calls := d.calls
	d.calls = nil
	return calls
}

func (d *fakeDesk) setDown(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.down = err
}

func (d *fakeDesk) Snapshot(context.Context) (*operator.Snapshot, error) {
	d.mu.Lock()
	slow := d.slow
	d.mu.Unlock()
	time.Sleep(slow) // in the time of a bubble
	d.mu.Lock()
	defer d.mu.Unlock()
	d.looks++
	if d.down != nil {
		return nil, d.down
	}
	s := &operator.Snapshot{Problems: slices.Clone(d.problems), Bottles: slices.Clone(d.bottles)}
	for _, p := range d.previews {
		s.Items = append(s.Items, p.Item)
	}
	return s, nil
}

func (d *fakeDesk) Show(ctx context.Context, ref operator.Ref, edited *string) (*operator.Preview, error) {
	if d.hold != nil {
		select {
		case <-d.hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.down != nil {
		return nil, d.down
	}
	p := d.gone[ref]
	if i := d.find(ref); i >= 0 {
		p = d.previews[i]
		if edited != nil && d.edited != nil {
			return d.edited(ref, *edited)
		}
	}
	if p == nil {
		return nil, fmt.Errorf("%w: %s", operator.ErrNotFound, ref)
	}
	return new(*p), nil
}

func (d *fakeDesk) Approve(ctx context.Context, ref operator.Ref, dec operator.Decision) (*operator.Result, error) {
	text := fmt.Sprintf("approve %s %s", ref.Bottle, dec.Digest)
	if len(dec.Accept) > 0 {
		text += " accept " + strings.Join(dec.Accept, ",")
	}
	if dec.Unmanaged {
		text += " unmanaged"
	}
	if dec.File != nil {
		text += fmt.Sprintf(" file %q", *dec.File)
	}
	d.call("%s", text)
	if d.approve != nil {
		if res, err := d.approve(ctx, ref, dec); res != nil || err != nil {
			return res, err
		}
	}
	d.decide(ref, queue.Approved, "me@here", "tui")
	return &operator.Result{Ref: ref, Status: queue.Approved, Outcome: queue.Live, Undoable: true}, nil
}

func (d *fakeDesk) Reject(_ context.Context, ref operator.Ref, notes string) (*operator.Result, error) {
	d.call("reject %s %q", ref.Bottle, notes)
	d.decide(ref, queue.Rejected, "me@here", "tui")
	return &operator.Result{Ref: ref, Status: queue.Rejected}, nil
}

func (d *fakeDesk) Dismiss(_ context.Context, refs ...operator.Ref) ([]*operator.Result, error) {
	for _, ref := range refs {
		d.call("dismiss %s", ref.Bottle)
		d.decide(ref, queue.Rejected, "me@here", "tui")
	}
	return nil, nil
}

func (d *fakeDesk) Undo(_ context.Context, ref operator.Ref, _ io.Writer) (*operator.Result, error) {
	d.call("undo %s", ref.Bottle)
	if d.undo != nil {
		return nil, d.undo
	}
	return &operator.Result{Ref: ref, Status: queue.Approved, Notes: d.notes}, nil
}

func (d *fakeDesk) History(_ context.Context, f operator.HistoryFilter) iter.Seq2[operator.LedgerEntry, error] {
	d.mu.Lock()
	entries := slices.Clone(d.history)
	d.mu.Unlock()
	return func(yield func(operator.LedgerEntry, error) bool) {
		for _, e := range entries {
			if strings.Contains(e.Summary.Raw(), f.Query) && !yield(e, nil) {
				return
			}
		}
	}
}

func (d *fakeDesk) Changes(context.Context) (<-chan struct{}, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.changes, d.deaf
}

// rig runs a model without a terminal, in the time of a synctest bubble.
type rig struct {
	t    *testing.T
	m    *model
	desk *fakeDesk
	msgs chan tea.Msg
	raw  []string // what was written around the screen
	quit bool
}

// start runs f with a rig of a size.
func start(t *testing.T, w, h int, desk *fakeDesk, f func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		desk.changes = make(chan struct{}, 1) // of this bubble
		r := &rig{t: t, desk: desk, msgs: make(chan tea.Msg, 1<<16)}
		r.m = newModel(ctx, Options{Desk: desk, Root: "/srv/supervise/queue"})
		r.run(r.m.Init())
		r.send(tea.WindowSizeMsg{Width: w, Height: h})
		r.pass(time.Second)
		f(r)
		cancel()
		r.m.tasks.wait()
	})
}

func (r *rig) run(cmd tea.Cmd) {
	if cmd == nil {
		return
	}
	go func() {
		if msg := cmd(); msg != nil {
			r.msgs <- msg
		}
	}()
}

// settle delivers what is on its way, until nothing is.
func (r *rig) settle() {
	for {
		synctest.Wait()
		select {
		case msg := <-r.msgs:
			r.deliver(msg)
		default:
			return
		}
	}
}

func (r *rig) deliver(msg tea.Msg) {
	switch msg := msg.(type) {
	case tea.BatchMsg:
		for _, cmd := range msg {
			r.run(cmd)
		}
	case tea.RawMsg:
		r.raw = append(r.raw, fmt.Sprint(msg.Msg))
	case tea.QuitMsg:
		r.quit = true
	default:
		_, cmd := r.m.Update(msg)
		r.m.View()
		r.run(cmd)
	}
}

// send delivers a message and all that comes of it without time passing.
func (r *rig) send(msg tea.Msg) {
	r.deliver(msg)
	r.settle()
}

// pass lets time pass.
func (r *rig) pass(d time.Duration) {
	r.settle()
	time.Sleep(d) // in the time of a bubble
	r.settle()
}

// press sends keys with the time between them that a person who looks takes.
func (r *rig) press(keys ...string) {
	for _, k := range keys {
		r.send(keyMsg(k))
		r.pass(DefaultSettle)
	}
}

// hit sends keys at once.
func (r *rig) hit(keys ...string) {
	for _, k := range keys {
		r.deliver(keyMsg(k))
	}
	r.settle()
}

func (r *rig) write(text string) {
	for _, c := range text {
		r.send(keyMsg(string(c)))
	}
}

// change tells of a change, as the desk would.
func (r *rig) change() {
	r.desk.changes <- struct{}{}
	r.settle()
}

var special = map[string]rune{"enter": tea.KeyEnter, "esc": tea.KeyEscape, "space": tea.KeySpace, "tab": tea.KeyTab,
	"pgdown": tea.KeyPgDown, "pgup": tea.KeyPgUp, "home": tea.KeyHome, "end": tea.KeyEnd, "up": tea.KeyUp, "down": tea.KeyDown, "backspace": tea.KeyBackspace}

func keyMsg(k string) tea.KeyPressMsg {
	if rest, ok := strings.CutPrefix(k, "ctrl+"); ok {
		return tea.KeyPressMsg{Code: rune(rest[0]), Mod: tea.ModCtrl}
	}
	if k == " " || k == "space" {
		return tea.KeyPressMsg{Code: tea.KeySpace, Text: " "}
	}
	if c, ok := special[k]; ok {
		return tea.KeyPressMsg{Code: c}
	}
	return tea.KeyPressMsg{Code: []rune(k)[0], Text: k}
}

// screen is what is shown, without colours.
func (r *rig) screen() string { return ansi.Strip(r.m.View().Content) }

func (r *rig) wantScreen(texts ...string) {
	r.t.Helper()
	screen := r.screen()
	for _, text := range texts {
		if !strings.Contains(screen, text) {
			r.t.Errorf("the screen lacks %q:\n%s", text, screen)
		}
	}
}

func (r *rig) wantNot(texts ...string) {
	r.t.Helper()
	screen := r.screen()
	for _, text := range texts {
		if strings.Contains(screen, text) {
			r.t.Errorf("the screen has %q:\n%s", text, screen)
		}
	}
}

func (r *rig) wantCalls(want ...string) {
	r.t.Helper()
	if got := r.desk.called(); !slices.Equal(got, want) {
		r.t.Errorf("the desk was asked for %q, want %q; the screen:\n%s", got, want, r.screen())
	}
}

// day is when everything on the golden screens happened.
var day = time.Date(2026, 5, 17, 9, 30, 0, 0, time.UTC)

// made numbers proposals, so that each has an id and a digest of its own.
func made(n int, bottle string) operator.Item {
	return operator.Item{
		Ref:       operator.Ref{Bottle: bottle, ID: queue.ID(fmt.Sprintf("0197f3b2-%04x-7c3a-9b58-3f6f0a2c4d1e", n))},
		ArrivedAt: day, Age: time.Duration(n) * time.Minute, Connected: operator.Waiting, State: operator.Open,
	}
}

// routeAsk asks for a host with a path.
func routeAsk(n int, bottle, host, path string) *operator.Preview {
	it := made(n, bottle)
	it.Tool, it.Host = payload.Egress, safetext.Untrusted(host)
	it.Summary = safetext.Untrusted("allow " + host + " " + path)
	it.Findings = []operator.Finding{{Code: "new-host", Level: operator.Note, Text: "The bottle cannot reach this host yet.", Evidence: safetext.Untrusted(host)}}
	file := "/srv/bottles/" + bottle + "/routes.yaml"
	return &operator.Preview{
		Item: it, Justification: "The tests fetch a fixture from there.", Digest: fmt.Sprintf("%064x", n),
		Proposed: safetext.Untrusted(fmt.Sprintf("{\n  \"host\": %q,\n  \"path_allowlist\": [\n    %q\n  ]\n}\n", host, path)),
		Targets: []operator.TargetView{{Kind: apply.KindEgress, Path: file, Changed: true, After: safetext.Untrusted(host), Diff: safetext.Untrusted(
			"--- " + file + "\n+++ " + file + "\n@@ -1,3 +1,6 @@\n routes:\n   - host: pypi.org\n     path_allowlist: [/simple/]\n+  - host: " + host + "\n+    path_allowlist:\n+      - " + path + "\n")}},
	}
}

// tokenAsk asks for a host with a secret.
func tokenAsk(n int, bottle string) *operator.Preview {
	p := routeAsk(n, bottle, "api.github.com", "/orgs/")
	p.Summary += " with Bearer GH_TOKEN"
	p.Danger = true
	p.Findings = append([]operator.Finding{{Code: "credential", Level: operator.Danger, Text: "The proxy will add a secret to every request to this host.", Evidence: "Bearer GH_TOKEN to api.github.com"}}, p.Findings...)
	return p
}

// dockerAsk asks for a Dockerfile of many lines.
func dockerAsk(n int, bottle string, lines int) *operator.Preview {
	it := made(n, bottle)
	it.Tool, it.Connected = payload.Capability, operator.Away
	it.Summary = safetext.Untrusted(fmt.Sprintf("replace the Dockerfile (%d lines, %d bytes)", lines, lines*20))
	file := "/srv/bottles/" + bottle + "/Dockerfile"
	var b strings.Builder
	fmt.Fprintf(&b, "--- %[1]s\n+++ %[1]s\n@@ -1,1 +1,%d @@\n FROM debian\n", file, lines+1)
	for i := range lines {
		fmt.Fprintf(&b, "+RUN step %d\n", i)
	}
	return &operator.Preview{
		Item: it, Justification: "ripgrep is missing", Digest: fmt.Sprintf("%064x", n), Proposed: "FROM debian\n",
		Targets: []operator.TargetView{{Kind: apply.KindDockerfile, Path: file, Changed: true, Diff: safetext.Untrusted(b.String())}},
	}
}

const hostileText = "\x1b[31mred\x1b[0m \x1b]52;c;aGk=\a\u202egnp.exe\u200b\r\n+ fake: true\n│ fence\n\x00\x9b2J\xff" +
	"👨\u200d👩\u200d👧 🇩🇪🇩🇪 ｗｉｄｅ 각 नि e\u0301\u0301\u0301\u0301\u0301\u0301\U000e0041\t|\tend"

// hostileAsk has hostile text wherever an agent can put any.
func hostileAsk(n int) *operator.Preview {
	p := routeAsk(n, "evil", "xn--pple-43d.com", "/")
	text := safetext.Untrusted(hostileText)
	p.Summary, p.Host = "allow "+text, text
	p.Justification = text + safetext.Untrusted(strings.Repeat("x", 300))
	p.Proposed = text
	p.Findings = []operator.Finding{{Code: "punycode", Level: operator.Danger, Text: "The host's name has letters beyond ASCII.", Evidence: text}}
	p.Danger = true
	p.Retry = &operator.Earlier{Status: queue.Rejected, Notes: text, At: day, By: "ops@desk"}
	p.Targets[0].Diff = untrusted(udiff.Unified("a", "b", "before\n"+hostileText, hostileText+"\nafter"))
	return p
}

var errDown = errors.New("listing the mailboxes under /srv/supervise/queue: no such file or directory")

func untrusted(s string) safetext.Untrusted { return safetext.Untrusted(s) }
