package tui

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"github.com/bot-bottle/supervise/internal/apply"
	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/queue"
)

// busyDay is an inbox with one of everything.
func busyDay() *fakeDesk {
	stuck := routeAsk(61, "db", "files.example.org", "/dump/")
	stuck.State, stuck.Error = operator.Stuck, "interrupted, and since then edited by someone else: /srv/bottles/db/routes.yaml. Nothing was touched. Look at it, then approve or reject again."
	failed := routeAsk(40, "mail", "smtp.example.org", "/")
	failed.State, failed.Error = operator.Failed, "applying: verify /srv/bottles/mail/routes.yaml: the proxy did not take it in 5s"
	again := routeAsk(12, "web", "cdn.example.net", "/lib/")
	again.Retry = &operator.Earlier{Status: queue.Rejected, Notes: "use the mirror", At: day, By: "ops@desk"}
	old := routeAsk(9000, "museum", "gopher.example.com", "/")
	old.Abandoned, old.Connected = true, operator.Unknown
	d := newDesk(stuck, failed, routeAsk(30, "web", "api.github.com", "/repos/"), tokenAsk(21, "build-farm-eu-central-1"), dockerAsk(14, "ml", 40), again, hostileAsk(3), old)
	d.problems = []operator.Problem{{Bottle: "evil", Name: "x\x1b[2J.proposal.json", Text: "does not parse: \x1b]0;owned\a"}}
	return d
}

// choose puts the cursor on a proposal by its place in the list.
func choose(r *rig, n int) {
	r.press("home")
	for range n {
		r.press("j")
	}
}

var screens = []struct {
	name string
	w, h int
	desk func() *fakeDesk
	do   func(r *rig)
}{
	{"empty", 80, 24, func() *fakeDesk {
		d := newDesk()
		d.bottles = []string{"web", "db"}
		return d
	}, nil},
	{"no-bottles", 80, 24, func() *fakeDesk { return newDesk() }, nil},
	{"one", 80, 24, func() *fakeDesk { return newDesk(routeAsk(1, "web", "api.github.com", "/repos/")) }, nil},
	{"full", 80, 24, busyDay, func(r *rig) { choose(r, 2) }},
	{"full-wide", 200, 60, busyDay, func(r *rig) { choose(r, 3) }},
	{"full-very-wide", 240, 40, busyDay, func(r *rig) { choose(r, 2) }},
	{"narrow-list", 50, 20, busyDay, func(r *rig) { choose(r, 3) }},
	{"narrow-card", 50, 20, busyDay, func(r *rig) { choose(r, 3); r.press("enter") }},
	{"tiny", 39, 9, busyDay, nil},
	{"error", 80, 24, busyDay, func(r *rig) { r.desk.setDown(errDown); r.change() }},
	{"stuck", 80, 24, busyDay, nil},
	{"failed", 80, 24, busyDay, func(r *rig) { choose(r, 1) }},
	{"hostile", 80, 24, busyDay, func(r *rig) { choose(r, 6) }},
	{"hostile-wide", 200, 60, busyDay, func(r *rig) { choose(r, 6) }},
	{"abandoned", 80, 24, busyDay, func(r *rig) { r.press("z", "end") }},
	{"by-host", 80, 24, busyDay, func(r *rig) { choose(r, 3); r.press("g") }},
	{"filter", 80, 24, busyDay, func(r *rig) { r.press("/"); r.write("web"); r.pass(time.Second) }},
	{"filter-nothing", 80, 24, busyDay, func(r *rig) { r.press("/"); r.write("zzz"); r.press("enter") }},
	{"ask-danger", 80, 24, busyDay, func(r *rig) { choose(r, 3); r.press("pgdown", "pgdown", "a") }},
	{"ask-unseen", 80, 24, busyDay, func(r *rig) { choose(r, 4); r.press("a") }},
	{"ask-reject", 80, 24, busyDay, func(r *rig) { choose(r, 2); r.press("r"); r.write("only /repos/x") }},
	{"ask-bulk", 80, 24, busyDay, func(r *rig) { choose(r, 2); r.press("pgdown", "space"); choose(r, 5); r.press("pgdown", "space", "a") }},
	{"approved", 80, 24, busyDay, func(r *rig) { choose(r, 2); r.press("pgdown", "a") }},
	{"elsewhere", 80, 24, busyDay, func(r *rig) {
		choose(r, 2)
		r.desk.decide(r.m.inbox.sel, queue.Rejected, "ops@desk", "web")
		r.change()
		r.press("a")
	}},
	{"changed", 80, 24, busyDay, func(r *rig) {
		choose(r, 2)
		p := routeAsk(30, "web", "api.github.com", "/repos/")
		p.Digest = strings.Repeat("9", 64)
		p.Findings = []operator.Finding{{Code: "wider-paths", Level: operator.Note, Text: "A known host gets more paths.", Evidence: "/repos/"}}
		r.desk.put(p)
		r.change()
		r.pass(time.Second)
	}},
	{"unmanaged", 80, 24, func() *fakeDesk {
		p := routeAsk(1, "web", "api.github.com", "/repos/")
		p.Targets, p.Unmanaged = nil, []apply.Kind{apply.KindEgress}
		return newDesk(p)
	}, func(r *rig) { r.press("a") }},
	{"edited", 80, 24, func() *fakeDesk {
		d := newDesk(routeAsk(1, "web", "api.github.com", "/repos/"))
		d.edited = func(_ operator.Ref, text string) (*operator.Preview, error) {
			p := routeAsk(1, "web", "api.github.com", "/repos/x/")
			p.Summary, p.Proposed = d.previews[0].Summary, d.previews[0].Proposed
			p.Digest, p.Edited = strings.Repeat("e", 64), untrusted(text)
			return p, nil
		}
		return d
	}, func(r *rig) {
		r.send(editedMsg{ref: r.m.inbox.sel, text: strings.ReplaceAll(r.desk.previews[0].Proposed.Raw(), "/repos/", "/repos/x/")})
		r.pass(time.Second)
	}},
	{"history", 80, 24, withPast, func(r *rig) { r.press("h", "j") }},
	{"history-wide", 200, 60, withPast, func(r *rig) { r.press("h") }},
	{"history-entry", 80, 24, withPast, func(r *rig) { r.press("h", "j", "enter") }},
	{"problems", 80, 24, busyDay, func(r *rig) { r.press("p") }},
	{"help", 80, 24, busyDay, func(r *rig) { r.press("?") }},
	{"help-wide", 200, 60, busyDay, func(r *rig) { r.press("?") }},
}

func withPast() *fakeDesk {
	d := busyDay()
	entry := func(n int, event string, st queue.Status, o queue.Outcome) operator.LedgerEntry {
		it := made(n, "web")
		return operator.LedgerEntry{Seq: int64(n), At: day.Add(time.Duration(n) * time.Minute), Event: event, Bottle: it.Bottle, ID: it.ID,
			Status: st, Outcome: o, By: "ops@desk", Via: "cli", Summary: "allow api.github.com /repos/"}
	}
	rejected := entry(4, operator.EventDecided, queue.Rejected, "")
	rejected.Summary, rejected.Notes = untrusted("allow "+hostileText), untrusted("no: "+hostileText)
	d.history = []operator.LedgerEntry{rejected, entry(3, operator.EventUndone, queue.Approved, queue.Live),
		entry(2, operator.EventApplied, queue.Approved, queue.Live), entry(1, operator.EventDecided, queue.Approved, "")}
	return d
}

func TestScreens(t *testing.T) {
	for _, tt := range screens {
		t.Run(tt.name, func(t *testing.T) {
			start(t, tt.w, tt.h, tt.desk(), func(r *rig) {
				if tt.do != nil {
					tt.do(r)
				}
				got := r.screen()
				checkScreen(t, got, tt.w, tt.h)
				golden(t, tt.name+".txt", trimmed(got))
			})
		})
	}
}

// TestColours holds how things are painted; the text is the same without.
func TestColours(t *testing.T) {
	start(t, 80, 24, busyDay(), func(r *rig) {
		choose(r, 3)
		r.press("pgdown")
		golden(t, "colours.txt", strings.ReplaceAll(r.m.View().Content, "\x1b", "␛")+"\n")
	})
}

// checkScreen wants exactly h lines of w cells, of nothing but what prints.
func checkScreen(t *testing.T, screen string, w, h int) {
	t.Helper()
	lines := strings.Split(screen, "\n")
	if w < leastWidth || h < leastHeight {
		return
	}
	if len(lines) != h {
		t.Errorf("%d lines, want %d:\n%s", len(lines), h, screen)
	}
	for i, l := range lines {
		if n := width(l); n > w || n < w && i < h-2 {
			t.Errorf("line %d is %d cells wide, want %d: %q", i, n, w, l)
		}
		for _, c := range l {
			if !unicode.IsPrint(c) {
				t.Errorf("line %d holds %U: %q", i, c, l)
			}
		}
	}
}

func trimmed(screen string) string {
	var b strings.Builder
	for l := range strings.SplitSeq(screen, "\n") {
		b.WriteString(strings.TrimRight(l, " ") + "\n")
	}
	return b.String()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v (go test -update writes it)", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; go test -update accepts it):\n%s", file, diff)
	}
}
