package model

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/routes"
	"github.com/bot-bottle/supervise/queue"
)

// person is what was done by hand to the files.
type person struct {
	hosts   map[string]bool // routes that a person added
	muddled map[string]bool // hosts whose routes a person, or an undo that did not end, has had a hand in
	undone  map[queue.ID]bool
}

const actionsPerRun = 250

// notNow is an action that there is nothing for; it does not count.
type notNow struct{}

// TestModel runs SUPERVISE_MODEL_STEPS actions (20,000; CI does 100,000).
func TestModel(t *testing.T) {
	want := 20_000
	if s := os.Getenv("SUPERVISE_MODEL_STEPS"); s != "" {
		var err error
		if want, err = strconv.Atoi(s); err != nil {
			t.Fatalf("SUPERVISE_MODEL_STEPS=%s must be a number of actions", s)
		}
	}
	for name, value := range map[string]string{"rapid.checks": strconv.Itoa(max(1, want/actionsPerRun)), "rapid.steps": strconv.Itoa(2 * actionsPerRun)} {
		old := flag.Lookup(name).Value.String()
		if err := flag.Set(name, value); err != nil {
			t.Fatal(err)
		}
		defer flag.Set(name, old)
	}
	p := new(proxy)
	srv := httptest.NewServer(p)
	defer srv.Close()
	base := t.TempDir()
	if shm, err := os.MkdirTemp("/dev/shm", "supervise-model-"); err == nil { // every step of it is synced
		base = shm
		defer os.RemoveAll(shm)
	}
	runs, actions, steps := 0, 0, 0
	counts := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		runs++
		dir := filepath.Join(base, strconv.Itoa(runs))
		if err := os.Mkdir(dir, 0o755); err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(dir)
		// Each run is in a bubble of its own, so that the fake time is none that rapid goes by. Its failure is a panic.
		var failure any
		defer func() {
			if failure != nil {
				panic(failure) // and not that of the bubble, for what it left
			}
		}()
		synctest.Test(t, func(*testing.T) {
			defer func() {
				failure = recover()
				if err, ok := failure.(runtime.Error); ok {
					failure = fmt.Sprintf("%v\n%s", err, debug.Stack())
				}
			}()
			n, s := run(rt, dir, p, srv.URL, counts)
			actions, steps = actions+n, steps+s
		})
	})
	t.Logf("%d runs, %d actions, %d durable steps of operators", runs, actions, steps)
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		t.Logf("%6d %s", counts[name], name)
	}
}

func run(rt *rapid.T, dir string, p *proxy, url string, counts map[string]int) (actions, steps int) {
	w := newWorld(rt, dir, p, url)
	hand := &person{map[string]bool{}, map[string]bool{}, map[queue.ID]bool{}}
	defer func() { // also of a run that failed: nothing may be left in the bubble
		for _, d := range w.desks {
			if d.op != nil && !d.op.ended() {
				d.kill()
			}
		}
		for _, c := range w.model.held {
			c.cancel()
		}
		w.side.stop()
		synctest.Wait()
	}()
	all := map[string]func(*rapid.T){
		"ask": func(t *rapid.T) {
			w.ask(rapid.IntRange(0, len(questions)-1).Draw(t, "question"), rapid.SampledFrom([]string{"please", "it fails with 403", "really"}).Draw(t, "words"),
				rapid.SampledFrom([]string{"patient", "hasty"}).Draw(t, "client"), rapid.IntRange(0, 3).Draw(t, "lost") == 0)
		},
		"await": func(t *rapid.T) {
			w.await(w.any(t, func(*asked) bool { return true }), rapid.SampledFrom([]string{"patient", "hasty"}).Draw(t, "client"), rapid.Bool().Draw(t, "lost"))
		},
		"hang up": func(t *rapid.T) {
			if len(w.model.held) == 0 {
				panic(notNow{})
			}
			w.drop(w.model.held[rapid.IntRange(0, len(w.model.held)-1).Draw(t, "call")])
		},
		"kill the sidecar": func(t *rapid.T) { w.restart() },
		"stop the sidecar": func(t *rapid.T) { w.terminate() },
		"time passes": func(t *rapid.T) {
			if w.busy() {
				panic(notNow{})
			}
			time.Sleep(rapid.SampledFrom([]time.Duration{2 * time.Second, 11 * time.Minute, 31 * time.Minute}).Draw(t, "time")) // in the bubble of the run
		},
		"a mailbox step fails": func(t *rapid.T) {
			a := &armed{rapid.SampledFrom([]string{"put", "respond", "undone", "archive"}).Draw(t, "step"), rapid.Bool().Draw(t, "done")}
			w.mu.Lock()
			w.model.armed = a
			w.mu.Unlock()
			w.arm(a)
		},
		"the proxy is deaf": func(t *rapid.T) {
			if err := p.deaf(true); err != nil {
				t.Fatal(err)
			}
		},
		"the proxy hears": func(t *rapid.T) {
			if err := p.deaf(false); err != nil {
				t.Fatal(err)
			}
		},
		"a person edits": func(t *rapid.T) { w.edit(t, hand) },
		"another program answers": func(t *rapid.T) {
			id := w.any(t, w.open)
			status := rapid.SampledFrom([]queue.Status{queue.Approved, queue.Rejected}).Draw(t, "status")
			if err := w.respond(context.Background(), "", queue.Response{ProposalID: id, Status: status, Notes: "by another program"}); err != nil && !errors.Is(err, queue.ErrDecided) && w.hits("respond") == nil {
				w.mu.Lock()
				a := w.model.byID[id]
				w.mu.Unlock()
				if w.decision(a) == nil && !isInjected(err) {
					t.Fatal(err)
				}
			}
		},
		"look": func(t *rapid.T) { w.look(t, w.idle(t)) },
		"approve": func(t *rapid.T) {
			d := w.idle(t)
			w.approve(t, d, w.any(t, func(a *asked) bool { return true }), false)
		},
		"approve an edit": func(t *rapid.T) {
			d := w.idle(t)
			w.approve(t, d, w.any(t, w.open), true)
		},
		"approve what is open": func(t *rapid.T) {
			d := w.idle(t)
			w.approve(t, d, w.any(t, w.open), false)
		},
		"reject": func(t *rapid.T) {
			d, id := w.idle(t), w.any(t, w.open)
			notes := rapid.SampledFrom([]string{"", "use the mirror"}).Draw(t, "notes")
			d.start("reject", id, notes, func(ctx context.Context) (*operator.Result, error) {
				return d.d.Reject(ctx, operator.Ref{Bottle: bottle, ID: id}, notes)
			})
		},
		"undo": func(t *rapid.T) {
			d, id := w.idle(t), w.any(t, func(a *asked) bool { return w.decision(a) != nil })
			hand.muddled[routes.Key(hostOf(w.model.byID[id].question))] = true
			if dec := w.decision(w.model.byID[id]); dec.payload.Host != "" {
				hand.muddled[dec.payload.Host] = true
			}
			w.disturb(hostOf(w.model.byID[id].question))
			d.start("undo", id, "", func(ctx context.Context) (*operator.Result, error) {
				return d.d.Undo(ctx, operator.Ref{Bottle: bottle, ID: id}, nil)
			})
		},
		"recover": func(t *rapid.T) {
			d := w.idle(t)
			d.start("recover", "", "", func(ctx context.Context) (*operator.Result, error) {
				_, err := d.d.Recover(ctx)
				return nil, err
			})
		},
		"go on": func(t *rapid.T) {
			d := w.running(t)
			for range rapid.IntRange(1, 6).Draw(t, "steps") {
				if d.op.ended() || !d.advance() {
					break
				}
			}
		},
		"go on to the end": func(t *rapid.T) { w.running(t).release(false) },
		"die":              func(t *rapid.T) { w.running(t).kill() },
	}
	// Of each list what comes earlier is drawn more often.
	some := func(names ...string) func(*rapid.T) {
		return func(t *rapid.T) {
			name := rapid.SampledFrom(names).Draw(t, "what")
			w.t = t
			defer func() {
				if r := recover(); r != nil && r != any(notNow{}) {
					panic(r)
				}
			}()
			all[name](t)
			actions++
			counts[name]++
		}
	}
	rt.Repeat(map[string]func(*rapid.T){
		"": func(t *rapid.T) {
			w.t = t
			w.settle()
			w.finished(hand)
			w.collect()
			w.checkStored()
			w.checkFiles("between actions")
		},
		"agent":           some("ask", "ask", "await", "hang up", "kill the sidecar", "stop the sidecar", "time passes"),
		"operator":        some("approve what is open", "go on", "approve", "reject", "approve an edit", "recover", "undo", "look"),
		"operator's life": some("go on to the end", "go on", "die", "go on to the end", "recover"),
		"world":           some("a mailbox step fails", "the proxy is deaf", "the proxy hears", "a person edits", "the proxy hears", "another program answers"),
	})
	w.t = rt
	w.end(hand)
	return actions, w.steps
}

func (d *desk) kill() {
	d.release(true)
	if !d.op.ended() {
		d.w.t.Fatalf("%s of %s does not end when it is killed", d.op.what, d.op.id)
	}
	d.op = nil
	d.open()
}

func isInjected(err error) bool { return errors.Is(err, errInjected) }

var errInjected = errors.New("injected fault")

// arm makes one step of the mailbox fail, once.
func (w *world) arm(a *armed) {
	w.mem.SetFault(func(step string, done bool) error {
		if step != a.step || done != a.done {
			return nil
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.model.armed != a {
			return nil
		}
		w.model.armed = nil
		return fmt.Errorf("%s (done %v): %w", step, done, errInjected)
	})
}

func (w *world) open(a *asked) bool { return w.decision(a) == nil }

// any draws a proposal.
func (w *world) any(t *rapid.T, ok func(*asked) bool) queue.ID {
	var ids []queue.ID
	for id, a := range w.model.byID {
		if ok(a) {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		panic(notNow{})
	}
	slices.Sort(ids)
	return ids[len(ids)-1-rapid.IntRange(0, min(len(ids), 5)-1).Draw(t, "proposal")]
}

func (w *world) busy() bool {
	return slices.ContainsFunc(w.desks, func(d *desk) bool { return d.op != nil })
}

func (w *world) idle(t *rapid.T) *desk {
	return w.oneOf(t, func(d *desk) bool { return d.op == nil })
}
func (w *world) running(t *rapid.T) *desk {
	return w.oneOf(t, func(d *desk) bool { return d.op != nil })
}

func (w *world) oneOf(t *rapid.T, ok func(*desk) bool) *desk {
	var some []*desk
	for _, d := range w.desks {
		if ok(d) {
			some = append(some, d)
		}
	}
	if len(some) == 0 {
		panic(notNow{})
	}
	return some[rapid.IntRange(0, len(some)-1).Draw(t, "operator")]
}

// look has an operator look at one proposal; what was seen may be decided on much later.
func (w *world) look(t *rapid.T, d *desk) {
	id := w.any(t, func(*asked) bool { return true })
	d.start("look", id, "", func(ctx context.Context) (*operator.Result, error) {
		p, err := d.d.Show(ctx, operator.Ref{Bottle: bottle, ID: id}, nil)
		if err == nil {
			d.seen[id] = p
		}
		return nil, err
	})
}

func (w *world) approve(t *rapid.T, d *desk, id queue.ID, edited bool) {
	a := w.model.byID[id]
	a.attempted = true
	var file *string
	if edited {
		file = &questions[a.question].edit
	}
	seen := d.seen[id]
	if edited || seen == nil || rapid.Bool().Draw(t, "look again") {
		seen = nil
	}
	d.start("approve", id, "fine", func(ctx context.Context) (*operator.Result, error) {
		ref := operator.Ref{Bottle: bottle, ID: id}
		if seen == nil {
			var err error
			if seen, err = d.d.Show(ctx, ref, file); err != nil {
				return nil, err
			}
		}
		return d.d.Approve(ctx, ref, operator.Decision{Digest: seen.Digest, Accept: seen.Dangers(), Notes: "fine", File: file})
	})
}

// disturb notes that the route of a host may go away while somebody approves it.
func (w *world) disturb(host string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.model.byID {
		if a.attempted && a.decision == nil && (host == "" || hostOf(a.question) == host) {
			a.disturbed = true
		}
	}
}

// edit is a person with an editor, who adds a line to both files and perhaps more.
func (w *world) edit(t *rapid.T, hand *person) {
	what := rapid.SampledFrom([]string{"a comment", "a host", "not a host"}).Draw(t, "edit")
	data, err := os.ReadFile(w.routesFile())
	if err != nil {
		t.Fatal(err)
	}
	switch what {
	case "a host":
		host := fmt.Sprintf("by-hand-%d.example.com", w.humans)
		hand.hosts[host] = true
		data, err = routes.Set(data, host, &routes.Route{Host: host})
	case "not a host":
		host := hostOf(rapid.IntRange(0, 2).Draw(t, "host"))
		hand.muddled[host] = true
		w.disturb(host)
		var table routes.Table
		if table, err = routes.Parse(data); err == nil && table.Lookup(host) != nil {
			data, err = routes.Set(data, host, nil)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	other, err := os.ReadFile(w.pipelockFile())
	if err != nil {
		t.Fatal(err)
	}
	mark := fmt.Sprintf("# person %d\n", w.humans)
	if err := errors.Join(os.WriteFile(w.routesFile(), append(data, mark...), 0o644), os.WriteFile(w.pipelockFile(), append(other, mark...), 0o644)); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	w.humans++
	w.mu.Unlock()
	// What an operator's program wrote and does not know any more cannot be put back: it stays, and the operator is told.
	// So it is when another program has answered meanwhile.
	for _, a := range w.model.byID {
		if d := w.decision(a); a.attempted && (d == nil || d.foreign) {
			hand.muddled[routes.Key(hostOf(a.question))] = true
		}
	}
}

// finished checks how operators' programs ended.
func (w *world) finished(hand *person) {
	for _, d := range w.desks {
		o := d.op
		if o == nil || !o.ended() {
			continue
		}
		d.op = nil
		var dec *decision
		if o.id != "" {
			dec = w.decision(w.model.byID[o.id])
		}
		if de, ok := errors.AsType[*operator.DecidedError](o.err); ok {
			// Somebody else was first, or this very operator was in an earlier life.
			if dec == nil || !dec.decidedBy(de.By) || de.Status != dec.resp.Status {
				w.t.Fatalf("%s of %s by %s: %+v, but it is %+v", o.what, o.id, d.name, de, dec)
			}
			continue
		}
		if o.err != nil || o.what == "look" || o.what == "recover" {
			continue
		}
		switch o.what {
		case "undo":
			hand.undone[o.id] = true
		default:
			if dec == nil || !dec.decidedBy(d.name) || dec.resp.Status != o.res.Status || dec.resp.Notes != o.notes || (dec.resp.Status == queue.Rejected) != (o.what == "reject") {
				w.t.Fatalf("%s of %s by %s is done: %+v, but it is %+v", o.what, o.id, d.name, o.res, dec)
			}
			delete(d.seen, o.id)
		}
	}
}

// end lets everything heal and come to an end, and checks what is left.
func (w *world) end(hand *person) {
	w.mem.SetFault(nil)
	w.mu.Lock()
	w.model.armed = nil
	w.mu.Unlock()
	if err := w.proxy.deaf(false); err != nil {
		w.t.Fatal(err)
	}
	for range 2 { // one may have waited for the other
		for _, d := range w.desks {
			if d.op != nil && !d.op.ended() {
				d.release(false)
			}
		}
	}
	for _, d := range w.desks {
		if d.op != nil && !d.op.ended() {
			w.t.Fatalf("%s of %s does not end", d.op.what, d.op.id)
		}
	}
	w.finished(hand)
	w.collect()

	d := w.desks[0]
	d.op = &op{free: true, done: make(chan struct{}), cancel: func() {}}
	close(d.op.done)
	ctx := context.Background()
	if _, err := d.d.Recover(ctx); err != nil {
		w.t.Fatalf("recovering: %v", err)
	}
	w.settle()
	w.collect()
	left, err := os.ReadDir(filepath.Join(w.root(), ".desk", "unfinished"))
	if err != nil || len(left) > 0 {
		w.t.Fatalf("after recovery %v is unfinished, %v", left, err)
	}
	snap, err := d.d.Snapshot(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	var listed, open []queue.ID
	for _, it := range snap.Items {
		listed = append(listed, it.ID)
		if it.State == operator.Stuck {
			hand.muddled[routes.Key(hostOf(w.model.byID[it.ID].question))] = true
		}
	}
	for id, a := range w.model.byID {
		if w.open(a) {
			open = append(open, id)
		}
	}
	slices.Sort(listed)
	slices.Sort(open)
	if !slices.Equal(listed, open) {
		w.t.Fatalf("the inbox has %v, want %v", listed, open)
	}
	table, _, err := w.proxy.table()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.authority(table, hand.undone, hand.hosts, hand.muddled); err != nil {
		w.t.Fatal(err)
	}
	for id, a := range w.model.byID {
		dec := w.decision(a)
		if dec != nil && !dec.foreign && dec.resp.Status != queue.Rejected && dec.payload.Tool == payload.Egress && !hand.muddled[dec.payload.Host] {
			if err := tableCovers(table, dec.payload); err != nil {
				w.t.Fatalf("%s was answered %s (%s), and %v", id, dec.resp.Status, dec.resp.Outcome, err)
			}
		}
	}

	// Each gets its one decision, and each agent its answer.
	for _, id := range open {
		if _, err := d.d.Reject(ctx, operator.Ref{Bottle: bottle, ID: id}, "the end"); err != nil {
			w.t.Fatal(err)
		}
	}
	w.settle()
	w.collect()
	w.restart()
	for _, id := range slices.Sorted(maps.Keys(w.model.byID)) {
		w.await(id, "patient", false)
		if a := w.model.byID[id]; len(w.model.held) > 0 || a.delivered.IsZero() {
			w.t.Fatalf("%s is not answered in the end", id)
		}
	}
	w.checkStored()
	w.checkFiles("in the end")
	rep, err := d.d.Audit(ctx, "")
	if err != nil || !rep.OK() {
		w.t.Fatalf("the ledger does not verify: %+v, %v", rep, err)
	}
	w.checkLedger(d)
}

// checkLedger: of each proposal the ledger tells one story that ends as it was decided.
func (w *world) checkLedger(d *desk) {
	type story struct{ decided, applied, ended map[int]int }
	stories := map[queue.ID]*story{}
	last := map[queue.ID]operator.LedgerEntry{}
	var all []operator.LedgerEntry
	for e, err := range d.d.History(context.Background(), operator.HistoryFilter{}) {
		if err != nil {
			w.t.Fatal(err)
		}
		all = append(all, e)
	}
	for _, e := range slices.Backward(all) {
		s := stories[e.ID]
		if s == nil {
			s = &story{map[int]int{}, map[int]int{}, map[int]int{}}
			stories[e.ID] = s
		}
		switch e.Event {
		case operator.EventDecided:
			s.decided[e.Attempt]++
			if s.decided[e.Attempt] > 1 {
				w.t.Fatalf("%s: attempt %d is decided twice in the ledger", e.ID, e.Attempt)
			}
		case operator.EventApplied:
			s.applied[e.Attempt]++
			if s.applied[e.Attempt] > 1 || s.decided[e.Attempt] != 1 {
				w.t.Fatalf("%s: attempt %d is applied %d times and decided %d times", e.ID, e.Attempt, s.applied[e.Attempt], s.decided[e.Attempt])
			}
		}
		if e.Event != operator.EventUndone {
			last[e.ID] = e
		}
	}
	for id, a := range w.model.byID {
		dec, e := w.decision(a), last[id]
		if dec.foreign && slices.Contains([]string{"", operator.EventFailed, operator.EventStuck}, e.Event) {
			continue // another program's answer that no operator has looked at since
		}
		want := operator.EventApplied
		switch {
		case dec.foreign:
			want = operator.EventForeign
		case dec.resp.Status == queue.Rejected:
			want = operator.EventDecided
		}
		if e.Event != want || !dec.decidedBy(e.By) || e.Status != dec.resp.Status {
			w.t.Fatalf("the last line of %s in the ledger is %s of attempt %d, %s by %q, want %s, %s by %q", id, e.Event, e.Attempt, e.Status, e.By, want, dec.resp.Status, dec.by)
		}
	}
}
