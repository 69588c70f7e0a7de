package tui

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/bot-bottle/supervise/internal/apply"
	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/queue"
)

// three is an inbox of three proposals that fit the screen, without a danger.
func three() *fakeDesk {
	return newDesk(routeAsk(3, "one", "a.example.com", "/a/"), routeAsk(2, "two", "b.example.com", "/b/"), routeAsk(1, "three", "c.example.com", "/c/"))
}

func digest(n int) string { return fmt.Sprintf("%064x", n) }

func TestApproveActsOnWhatIsShown(t *testing.T) {
	start(t, 120, 40, three(), func(r *rig) {
		r.press("j", "a")
		r.wantCalls("approve two " + digest(2))
		r.wantScreen("APPROVED by you", "approved, live: two: allow b.example.com /b/", "2 open")
		r.hit("a", "a")
		r.press("a", "r", "d", "e", "space")
		r.wantCalls() // no key acts on what is decided, nor on its neighbour
		r.press("j", "a")
		r.wantCalls("approve three " + digest(1))
	})
}

func TestBlockedIsSaidInTheInbox(t *testing.T) {
	blocked := routeAsk(2, "two", "b.example.com", "/b/")
	blocked.Blocked = "egress file /x/routes.yaml: there is no directory /x: create it, or correct supervise.yaml"
	blocked.Targets[0].Changed, blocked.Targets[0].Unknown = false, true
	start(t, 120, 40, newDesk(routeAsk(3, "one", "a.example.com", "/a/"), blocked), func(r *rig) {
		if got := regexp.MustCompile(`BLOCKED .*`).FindAllString(r.screen(), -1); len(got) != 1 || !strings.Contains(got[0], "b.example.com") {
			t.Errorf("BLOCKED stands before %q, want only b.example.com:\n%s", got, r.screen())
		}
		r.press("j")
		r.wantScreen("there is no directory /x", "cannot be worked out")
		r.wantNot("nothing changes")
	})
}

func TestUnmanagedIsSaidInTheInbox(t *testing.T) {
	byHand := routeAsk(2, "two", "b.example.com", "/b/")
	byHand.Unmanaged = []apply.Kind{apply.KindPipelock}
	start(t, 120, 40, newDesk(routeAsk(3, "one", "a.example.com", "/a/"), byHand), func(r *rig) {
		if got := regexp.MustCompile(`BY HAND .*`).FindAllString(r.screen(), -1); len(got) != 1 || !strings.Contains(got[0], "b.example.com") {
			t.Errorf("BY HAND stands before %q, want only b.example.com:\n%s", got, r.screen())
		}
	})
}

func TestTypedAheadHitsNothing(t *testing.T) {
	for _, keys := range [][]string{{"j", "a"}, {"j", "r", "1"}, {"j", "d", "y"}, {"j", "j", "a"}, {"a", "a", "a", "j", "a"}} {
		t.Run(strings.Join(keys, ""), func(t *testing.T) {
			start(t, 120, 40, three(), func(r *rig) {
				r.hit(keys...)
				for _, call := range r.desk.called() {
					if !strings.HasPrefix(call, "approve one ") { // which was on the screen when it was typed
						t.Errorf("typed ahead, %q led to %q", keys, call)
					}
				}
			})
		})
	}
	t.Run("before it is shown", func(t *testing.T) {
		desk := three()
		start(t, 120, 40, desk, func(r *rig) {
			r.desk.hold = make(chan struct{})
			r.send(keyMsg("j"))
			r.pass(time.Minute) // the preview takes its time
			r.wantScreen("looking…")
			r.press("a")
			r.wantCalls()
			r.wantScreen("It came on the screen only now")
			close(r.desk.hold)
			r.settle()
			r.hit("a")
			r.wantCalls() // it has been there for no time at all
			r.pass(DefaultSettle)
			r.press("a")
			r.wantCalls("approve two " + digest(2))
		})
	})
}

func TestSelectionStays(t *testing.T) {
	start(t, 120, 40, three(), func(r *rig) {
		r.press("j")
		sel := r.m.inbox.sel
		check := func(what string) {
			t.Helper()
			if r.m.inbox.sel != sel || r.m.card.ref != sel {
				t.Errorf("%s: selected %v, shown %v, want %v", what, r.m.inbox.sel, r.m.card.ref, sel)
			}
		}
		r.desk.put(routeAsk(9, "four", "d.example.com", "/d/"))
		r.change()
		check("after another arrived")
		stuck := routeAsk(10, "five", "e.example.com", "/e/")
		r.desk.mu.Lock()
		r.desk.previews = slices.Insert(r.desk.previews, 0, stuck)
		r.desk.mu.Unlock()
		r.change()
		check("after another was put first")
		r.desk.decide(r.desk.previews[1].Ref, queue.Approved, "ops@desk", "cli")
		r.change()
		check("after one above was decided")
		r.send(tea.WindowSizeMsg{Width: 50, Height: 20})
		r.send(tea.WindowSizeMsg{Width: 200, Height: 60})
		check("after resizing")
		r.desk.setDown(errDown)
		r.change()
		r.wantScreen("The mailboxes cannot be read.", "NO MAILBOXES")
		r.press("a", "j", "r", "1")
		r.wantCalls()
		r.desk.setDown(nil)
		r.pass(lookEvery) // nobody tells that they are back
		check("after the mailboxes came back")
		r.pass(DefaultSettle)
		r.press("a")
		r.wantCalls("approve two " + digest(2))
	})
}

func TestDecidedElsewhere(t *testing.T) {
	start(t, 120, 40, three(), func(r *rig) {
		r.press("j")
		sel := r.m.inbox.sel
		r.desk.decide(sel, queue.Rejected, "ops@desk", "web")
		r.change()
		r.wantScreen("REJECTED by ops@desk (web)", "2 open")
		r.press("a", "r", "1", "d", "y", "e")
		r.wantCalls()
		r.wantScreen("It is decided: rejected by ops@desk (web).")
		if r.m.inbox.sel != sel {
			t.Errorf("selected %v, want still %v", r.m.inbox.sel, sel)
		}
		r.press("k")
		r.wantNot("ops@desk")
		r.wantScreen("1/2", "a.example.com")
	})
	t.Run("gone", func(t *testing.T) {
		start(t, 120, 40, three(), func(r *rig) {
			r.desk.decide(r.m.inbox.sel, "", "", "")
			r.change()
			r.wantScreen("It is gone from its mailbox")
			r.press("a", "r", "1")
			r.wantCalls()
		})
	})
	t.Run("between look and key", func(t *testing.T) {
		desk := three()
		desk.approve = func(_ context.Context, ref operator.Ref, _ operator.Decision) (*operator.Result, error) {
			desk.decide(ref, queue.Approved, "ops@desk", "cli")
			return nil, &operator.DecidedError{Ref: ref, Status: queue.Approved, By: "ops@desk", Via: "cli"}
		}
		start(t, 120, 40, desk, func(r *rig) {
			r.press("a")
			r.wantScreen("decided already, approved by ops@desk (cli): one:", "APPROVED by ops@desk (cli)")
			r.wantNot("by you", "NOT DONE")
		})
	})
}

func TestChangedUnderYou(t *testing.T) {
	changed := func() *operator.Preview {
		p := routeAsk(3, "one", "a.example.com", "/a/b/")
		p.Digest = digest(333)
		return p
	}
	t.Run("seen", func(t *testing.T) {
		start(t, 120, 40, three(), func(r *rig) {
			r.desk.put(changed())
			r.change()
			r.pass(DefaultSettle)
			r.wantScreen("CHANGED SINCE YOU LOOKED", "+ asks to  allow a.example.com /a/b/", "- asks to  allow a.example.com /a/")
			r.press("pgdown", "a")
			r.wantCalls()
			r.wantScreen("It has changed since you looked. Approve what it is now?")
			r.press("y")
			r.wantCalls("approve one " + digest(333))
		})
	})
	t.Run("and back", func(t *testing.T) {
		start(t, 120, 40, three(), func(r *rig) {
			r.desk.put(changed())
			r.change()
			r.desk.put(routeAsk(3, "one", "a.example.com", "/a/"))
			r.change()
			r.pass(DefaultSettle)
			r.wantNot("CHANGED")
			r.press("a")
			r.wantCalls("approve one " + digest(3))
		})
	})
	t.Run("while asked", func(t *testing.T) {
		start(t, 120, 40, newDesk(tokenAsk(3, "one")), func(r *rig) {
			r.press("a")
			r.write("credential")
			p := tokenAsk(3, "one")
			p.Digest = digest(333)
			r.desk.put(p)
			r.change()
			r.wantScreen("It has changed while you were at it: look again.")
			r.press("enter")
			r.wantCalls()
		})
	})
	t.Run("stale", func(t *testing.T) {
		desk := three()
		desk.approve = func(_ context.Context, ref operator.Ref, d operator.Decision) (*operator.Result, error) {
			if d.Digest != digest(3) {
				return nil, nil
			}
			desk.put(changed())
			return nil, &operator.StaleError{Ref: ref, Preview: changed()}
		}
		start(t, 120, 40, desk, func(r *rig) {
			r.press("a")
			r.wantCalls("approve one " + digest(3))
			r.wantScreen("not approved, it has changed: one:", "CHANGED SINCE YOU LOOKED", "+ asks to  allow a.example.com /a/b/")
			r.press("pgdown", "a", "y")
			r.wantCalls("approve one " + digest(333))
		})
	})
}

func TestHistorySearch(t *testing.T) {
	start(t, 120, 40, withPast(), func(r *rig) {
		r.press("h", "/")
		r.write("nothing like it")
		r.press("enter")
		r.wantScreen("Nothing in the ledger matches.")
		r.press("/")
		r.write("github")
		r.press("enter", "end", "enter")
		r.wantScreen("what     approved", "line     1 of the ledger")
	})
}

func TestNews(t *testing.T) {
	start(t, 120, 40, three(), func(r *rig) {
		if len(r.raw) > 0 {
			t.Errorf("what was there at the start was notified: %q", r.raw)
		}
		r.desk.put(routeAsk(7, "four", "d.example.com", "/d/"))
		r.change()
		want := "\a\x1b]9;supervise: four asks to allow d.example.com /d/\a"
		if len(r.raw) != 1 || r.raw[0] != want {
			t.Errorf("notified %q, want %q", r.raw, want)
		}
		r.change()
		r.desk.setDown(errDown)
		r.change()
		r.desk.setDown(nil)
		r.change()
		if len(r.raw) != 1 {
			t.Errorf("notified again: %q", r.raw[1:])
		}
		r.raw = nil
		r.desk.put(hostileAsk(8))
		r.desk.put(routeAsk(9, "six", "f.example.com", "/"))
		r.change()
		if len(r.raw) != 1 || !strings.HasSuffix(r.raw[0], " (DANGER), and 1 more\a") || strings.Count(r.raw[0], "\x1b") != 1 || strings.Count(r.raw[0], "\a") != 2 {
			t.Errorf("notified %q, want one safe note of two proposals", r.raw)
		}
	})
	t.Run("quiet", func(t *testing.T) {
		start(t, 120, 40, three(), func(r *rig) {
			r.m.opts.Quiet = true
			r.desk.put(routeAsk(7, "four", "d.example.com", "/d/"))
			r.change()
			if len(r.raw) > 0 {
				t.Errorf("notified %q, want nothing", r.raw)
			}
		})
	})
}

func TestFilterAndGroups(t *testing.T) {
	start(t, 200, 60, busyDay(), func(r *rig) {
		r.press("/")
		r.write("DANGER build")
		r.wantScreen("1/1", "8 open") // what is open is counted, whatever the filter
		r.press("enter", "pgdown", "a")
		r.wantScreen("type credential to accept it")
		r.press("esc", "esc")
		r.wantScreen("4/7")
		r.press("g")
		r.wantScreen("api.github.com (2)", "[inbox by host]")
		if r.m.inbox.sel.Bottle != "build-farm-eu-central-1" {
			t.Errorf("grouping moved the selection to %v", r.m.inbox.sel)
		}
		r.press("up")
		if r.m.inbox.sel.Bottle != "web" {
			t.Errorf("up chose %v, want the one above in the group", r.m.inbox.sel)
		}
	})
}

func TestFilterOfIDs(t *testing.T) {
	p, other := routeAsk(1, "b05", "a.example.com", "/"), routeAsk(2, "b29", "b.example.com", "/")
	p.ID = "0197f3b2-0001-7c3a-9b29-3f6f0a2c4d1e"
	start(t, 120, 40, newDesk(p, other), func(r *rig) {
		for _, tt := range []struct{ filter, want string }{
			{"b29", "b29"},           // a piece of the other's id
			{"0197F3B2-0001", "b05"}, // the start of one
			{"f3b2-0002", ""},
			{"019", ""}, // too short for an id
		} {
			r.press("/")
			r.write(tt.filter)
			r.press("enter")
			if tt.want == "" {
				r.wantScreen("Nothing matches the filter.")
			} else if r.wantScreen("1/1"); r.m.inbox.sel.Bottle != tt.want {
				t.Errorf("filter %q chose %v, want %s", tt.filter, r.m.inbox.sel, tt.want)
			}
			r.press("esc")
		}
	})
}

// TestFilterByWhatTheListShows: the words of the columns find their lines, and so do those of other desks.
func TestFilterByWhatTheListShows(t *testing.T) {
	image := dockerAsk(3, "c", 2)
	image.Connected = operator.Away
	start(t, 120, 40, newDesk(routeAsk(1, "a", "a.example.com", "/"), routeAsk(2, "b", "b.example.com", "/"), image), func(r *rig) {
		r.wantScreen("waits", "docker")
		for filter, want := range map[string]string{"waits": "/2", "waiting": "/2", "docker": "1/1", "away": "1/1", "egress": "/2", "dockerfile": "1/1"} {
			r.press("/")
			r.write(filter)
			r.press("enter")
			r.wantScreen(want)
			r.press("esc")
		}
	})
}

// TestFilterAfterDeciding: what is decided stays where it was, until the filter changes.
func TestFilterAfterDeciding(t *testing.T) {
	start(t, 120, 40, three(), func(r *rig) {
		r.press("a")
		r.wantScreen("APPROVED by you", "1/3")
		r.press("/")
		r.write("c.example")
		r.wantScreen("1/1", "allow c.example.com /c/")
		r.wantNot("APPROVED by you")
		r.press("esc")
		r.wantScreen("2/2")
	})
}

// TestLooks: at once when something changes, now and then when nothing does, and half of the time at most when looking is slow
// and changes never end.
func TestLooks(t *testing.T) {
	for _, tt := range []struct {
		name        string
		slow        time.Duration
		changes     bool
		least, most int // in 20 s
	}{
		{"idle", 0, false, 9, 11},
		{"idle and slow", time.Second, false, 1, 3},
		{"changes", 0, true, 200, 400},
		{"changes and slow", time.Second, true, 8, 11},
	} {
		t.Run(tt.name, func(t *testing.T) {
			start(t, 80, 24, three(), func(r *rig) {
				r.desk.mu.Lock()
				r.desk.slow, r.desk.looks = tt.slow, 0
				r.desk.mu.Unlock()
				for range 200 {
					if tt.changes {
						select {
						case r.desk.changes <- struct{}{}:
						default:
						}
					}
					r.pass(100 * time.Millisecond)
				}
				r.desk.mu.Lock()
				n := r.desk.looks
				r.desk.mu.Unlock()
				if n < tt.least || n > tt.most {
					t.Errorf("looked %d times in 20 s, want %d to %d", n, tt.least, tt.most)
				}
			})
		})
	}
}

func TestNotToldOfChanges(t *testing.T) {
	desk := three()
	desk.deaf = errors.New("too many open files\x1b[2J")
	start(t, 120, 24, desk, func(r *rig) {
		r.wantScreen(`not live: too many open files\x1b[2J`, "3 open")
		r.desk.put(routeAsk(9, "four", "d.example.com", "/d/"))
		r.pass(lookEvery)
		r.wantScreen("4 open") // seen all the same
		r.desk.mu.Lock()
		r.desk.deaf = nil
		r.desk.mu.Unlock()
		r.pass(time.Second)
		r.wantNot("not live")
		r.desk.mu.Lock()
		old := r.desk.changes
		r.desk.changes = make(chan struct{}, 1)
		r.desk.mu.Unlock()
		close(old) // the watch ends, and another one begins
		r.pass(time.Second)
		r.desk.put(routeAsk(10, "five", "e.example.com", "/e/"))
		r.change()
		r.wantScreen("5 open")
	})
}

// TestKeepsNothing: after 10,000 proposals have come and gone, nothing is kept of them, and the memory that is used is what
// it was after the first 2,000.
func TestKeepsNothing(t *testing.T) {
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	start(t, 80, 24, newDesk(), func(r *rig) {
		var before uint64
		for i := range 1000 {
			if i == 200 {
				before = heap()
			}
			r.raw = nil
			r.desk.mu.Lock()
			r.desk.previews, r.desk.bottles, r.desk.calls = nil, nil, nil
			clear(r.desk.gone)
			r.desk.mu.Unlock()
			for j := range 10 {
				r.desk.put(routeAsk(i*10+j, fmt.Sprintf("b%d", j), "a.example.com", "/"))
			}
			r.change()
			r.hit("j", "space")
			r.pass(2 * time.Second) // in which the timers of these end
		}
		m := r.m
		if n := len(m.cards); n > 3 {
			t.Errorf("%d cards are kept", n)
		}
		for what, n := range map[string]int{"index": len(m.inbox.index), "rows": len(m.inbox.rows), "marks": len(m.inbox.marks)} {
			if n > 11 {
				t.Errorf("%s holds %d, want at most what is open", what, n)
			}
		}
		after := heap()
		t.Logf("after 2000: %d KiB, after 10000: %d KiB", before>>10, after>>10)
		if after > before+512<<10 {
			t.Errorf("the heap grew from %d to %d KiB over 8000 proposals", before>>10, after>>10)
		}
	})
}

func crowd(n int) *fakeDesk {
	d := newDesk()
	for i := range n {
		d.previews = append(d.previews, routeAsk(i+1, fmt.Sprintf("bottle-%d", i%40), fmt.Sprintf("h%d.example.com", i), "/"))
		d.bottles = []string{"bottle-0"}
	}
	return d
}

// firstScreen is all that the terminal does from a snapshot to a drawn screen.
func firstScreen(m *model, s *operator.Snapshot, p *operator.Preview) int {
	m.Update(tea.WindowSizeMsg{Width: 120, Height: 40})
	m.Update(snapshotMsg{s: s})
	m.Update(showMsg{ref: p.Ref, p: p})
	return len(m.View().Content)
}

func BenchmarkFirstScreen(b *testing.B) {
	for _, n := range []int{10, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			desk := crowd(n)
			s, err := desk.Snapshot(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				firstScreen(newModel(b.Context(), Options{Desk: desk}), s, desk.previews[0])
			}
		})
	}
}

// BenchmarkFirstScreenRatio reports how many times as long the first screen takes with a hundred times as much open: at most 3.
func BenchmarkFirstScreenRatio(b *testing.B) {
	best := func(n int) time.Duration {
		desk := crowd(n)
		s, err := desk.Snapshot(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		least := time.Hour
		for range 50 {
			begin := time.Now()
			firstScreen(newModel(b.Context(), Options{Desk: desk}), s, desk.previews[0])
			least = min(least, time.Since(begin))
		}
		return least
	}
	for b.Loop() {
		few, many := best(10), best(1000)
		b.ReportMetric(float64(many)/float64(few), "x")
	}
}

// TestManyOpen: the end of a long list is as good as its beginning.
func TestManyOpen(t *testing.T) {
	start(t, 80, 24, crowd(1000), func(r *rig) {
		r.press("end")
		r.wantScreen("1000/1000", "allow h999.example.com")
		checkScreen(t, r.screen(), 80, 24)
		r.press("/")
		r.write("h500.")
		r.wantScreen("1/1", "allow h500.example.com")
	})
}

func TestResizing(t *testing.T) {
	start(t, 80, 24, busyDay(), func(r *rig) {
		choose(r, 6)
		for w := 1; w <= 210; w += 7 {
			for _, h := range []int{1, 9, 10, 17, 60} {
				r.send(tea.WindowSizeMsg{Width: w, Height: h})
				checkScreen(t, r.screen(), w, h)
				r.hit("enter")
				checkScreen(t, r.screen(), w, h)
			}
		}
	})
}

func TestTasksEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		ts := &tasks{ctx: ctx}
		got := make(chan tea.Msg, 1)
		cmd := ts.after(time.Hour, secondMsg{})
		go func() { got <- cmd() }()
		synctest.Wait()
		cancel()
		ts.wait()
		if msg := <-got; msg != nil {
			t.Errorf("a timer that was ended said %v", msg)
		}
		if msg := ts.after(0, secondMsg{})(); msg != nil {
			t.Errorf("a task after the end said %v", msg)
		}
	})
}
