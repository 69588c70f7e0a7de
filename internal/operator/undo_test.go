package operator

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bot-bottle/supervise/internal/apply"
	"github.com/bot-bottle/supervise/internal/config"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/queue"
)

// TestUndoOfWhatOthersNeed: a host of pipelock's list that a later approval found there, and added a route for, is not taken away
// under it; it is when that one is undone, or was.
func TestUndoOfWhatOthersNeed(t *testing.T) {
	for _, bottle := range []string{"web", "api"} { // which have the same files
		t.Run(bottle, func(t *testing.T) {
			r := newRig(t).gated()
			d := r.desk("ann@host")
			first := r.put(payload.NewPipelock("https://packages.acme.test/x"))
			if _, err := r.approve(d, first); err != nil {
				t.Fatal(err)
			}
			later, other := r.putFor(bottle)(egressFor("Packages.acme.test", "/")), r.put(egressFor("other.example.com"))
			for _, ref := range []Ref{later, other} {
				if _, err := r.approve(d, ref); err != nil {
					t.Fatal(err)
				}
			}
			gate, table := string(read(t, r.gate)), string(read(t, r.routes))
			_, err := d.Undo(t.Context(), first, nil)
			f, ok := errors.AsType[*apply.Failure](err)
			if !ok || f.Step != "check" || !f.Undo || f.Path != r.gate || len(f.Restored) != 0 || !strings.Contains(err.Error(), "'supervise undo "+string(later.ID)+"'") ||
				!strings.Contains(err.Error(), "bottle "+bottle) || strings.Contains(err.Error(), string(other.ID)) {
				t.Errorf("Undo = %v; want it refused, naming %s of bottle %s", err, later, bottle)
			}
			if got := string(read(t, r.gate)); got != gate {
				t.Errorf("pipelock's file is\n%s\nwant\n%s", got, gate)
			}
			r.wantRoutes(table)
			if rec, err := d.store.record(first); err != nil || rec.State != Answered {
				t.Errorf("record = %+v, %v; want it as it was", rec, err)
			}
			for _, ref := range []Ref{later, first} {
				if _, err := d.Undo(t.Context(), ref, nil); err != nil {
					t.Errorf("undoing the later one first: %v", err)
				}
			}
			if contains(read(t, r.gate), "packages.acme.test") {
				t.Error("the host is still in pipelock's list")
			}
			r.audit(d)
		})
	}
	t.Run("one that changed nothing", func(t *testing.T) { // it cannot be undone itself
		r := newRig(t).gated()
		d := r.desk("ann@host")
		first, same := r.put(payload.NewPipelock("https://pypi.org/x")), r.put(egressFor("pypi.org"))
		for _, ref := range []Ref{first, same} {
			if _, err := r.approve(d, ref); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := d.Undo(t.Context(), first, nil); err != nil {
			t.Error(err)
		}
		if string(read(t, r.gate)) != baseGate {
			t.Error("the host is still in pipelock's list")
		}
	})
}

// TestUndoOfWhatOthersAdded: what was taken out of pipelock's list by hand, or by an undo that was interrupted, and what a later
// approval has added again, is that one's.
func TestUndoOfWhatOthersAdded(t *testing.T) {
	r := newRig(t).gated()
	d := r.desk("ann@host")
	first := r.put(payload.NewPipelock("https://packages.acme.test/x"))
	if _, err := r.approve(d, first); err != nil {
		t.Fatal(err)
	}
	r.write(r.gate, baseGate)
	later := r.put(egressFor("packages.acme.test"))
	if _, err := r.approve(d, later); err != nil {
		t.Fatal(err)
	}
	r.write(r.gate, string(read(t, r.gate))+"# a note\n") // so that it is not what either of them wrote
	_, err := d.Undo(t.Context(), first, nil)
	if f, ok := errors.AsType[*apply.Failure](err); !ok || f.Step != "check" || !strings.Contains(err.Error(), "'supervise undo "+string(later.ID)+"'") {
		t.Errorf("Undo = %v; want it refused, naming %s", err, later)
	}
	if !contains(read(t, r.gate), "packages.acme.test") {
		t.Error("the host that the later one has added is gone from pipelock's list")
	}
	for _, ref := range []Ref{later, first} {
		if _, err := d.Undo(t.Context(), ref, nil); err != nil {
			t.Errorf("undoing the later one first: %v", err)
		}
	}
	r.audit(d)
}

// TestUndoOfWhatIsWrittenOtherwise: a host that was written by hand with other capitals is the same one.
func TestUndoOfWhatIsWrittenOtherwise(t *testing.T) {
	r := newRig(t).gated()
	d := r.desk("ann@host")
	first := r.put(payload.NewPipelock("https://packages.acme.test/x"))
	if _, err := r.approve(d, first); err != nil {
		t.Fatal(err)
	}
	r.write(r.gate, strings.ReplaceAll(string(read(t, r.gate)), "packages.acme.test", "Packages.acme.test"))
	later := r.put(egressFor("packages.acme.test"))
	if _, err := r.approve(d, later); err != nil {
		t.Fatal(err)
	}
	_, err := d.Undo(t.Context(), first, nil)
	if f, ok := errors.AsType[*apply.Failure](err); !ok || f.Step != "check" || !strings.Contains(err.Error(), "'supervise undo "+string(later.ID)+"'") {
		t.Errorf("Undo = %v; want it refused, naming %s", err, later)
	}
	if !contains(read(t, r.gate), "Packages.acme.test") {
		t.Error("the host that the later one needs is gone from pipelock's list")
	}
	for _, ref := range []Ref{later, first} {
		if _, err := d.Undo(t.Context(), ref, nil); err != nil {
			t.Errorf("undoing the later one first: %v", err)
		}
	}
	if string(read(t, r.gate)) != baseGate {
		t.Error("the host is still in pipelock's list")
	}
}

// TestUndoByHand: a refusal that names another change ends when the host is out of pipelock's list, whoever took it out: the other one
// may be one that cannot be undone any more.
func TestUndoByHand(t *testing.T) {
	r := newRig(t).gated()
	d := r.desk("ann@host")
	first, later := r.put(payload.NewPipelock("https://packages.acme.test/x")), r.put(egressFor("packages.acme.test"))
	for _, ref := range []Ref{first, later} {
		if _, err := r.approve(d, ref); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(r.routes); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []Ref{later, first} {
		if _, err := d.Undo(t.Context(), ref, nil); err == nil {
			t.Fatalf("%s was undone", ref)
		}
	}
	gate := baseGate + "# a note\n"
	r.write(r.gate, gate)
	if _, err := d.Undo(t.Context(), first, nil); err != nil {
		t.Error(err)
	}
	if got := string(read(t, r.gate)); got != gate {
		t.Errorf("pipelock's file is\n%s\nwant\n%s", got, gate)
	}
}

// besides is a rig whose bottle has a route, and the host in a list that it shares with another bottle, which has a route to the
// same host in a file of its own; both approved, and the first one as far as the step says: "" is to its end.
func besides(t *testing.T, fails string) (r *rig, first, later Ref, untouched func()) {
	t.Helper()
	r = newRig(t).gated()
	r.step = func(name string) error {
		if name == fails {
			return errCrash
		}
		return nil
	}
	first = r.put(egressFor("packages.acme.test"))
	if _, err := r.approve(r.desk("ann@host"), first); errors.Is(err, errCrash) != (fails != "") {
		t.Fatal(err)
	}
	r.step = nil
	web := r.cfg
	api := filepath.Join(filepath.Dir(r.routes), "api.yaml")
	r.write(api, baseRoutes)
	r.cfg.Egress = &config.Egress{File: api}
	later = r.putFor("api")(egressFor("packages.acme.test"))
	if _, err := r.approve(r.desk("ann@host"), later); err != nil {
		t.Fatal(err)
	}
	r.cfg = web
	gate, table := string(read(t, r.gate)), string(read(t, api))
	return r, first, later, func() {
		t.Helper()
		if got := string(read(t, r.gate)); got != gate {
			t.Errorf("pipelock's file is\n%s\nwant\n%s", got, gate)
		}
		if string(read(t, api)) != table {
			t.Error("the other bottle's routes were changed")
		}
	}
}

// TestUndoBesideAnother: the route of one bottle is taken back although the route of another one, in a file of its own, needs the host
// in the list that they share. The host stays, and that is said.
func TestUndoBesideAnother(t *testing.T) {
	r, first, later, untouched := besides(t, "")
	d := r.desk("ann@host")
	res, err := d.Undo(t.Context(), first, nil)
	if err != nil {
		t.Fatal(err)
	}
	if notes := strings.Join(res.Notes, "\n"); !strings.Contains(notes, "packages.acme.test stays in "+r.gate) || !strings.Contains(notes, string(later.ID)+" of bottle api") || res.Outcome != queue.Live {
		t.Errorf("Undo = %+v; want the host said to stay for %s", res, later)
	}
	r.wantRoutes(baseRoutes)
	untouched()
	if ev := r.events(d, first); !slices.Equal(ev, []string{EventDecided, EventApplied, EventUndone}) {
		t.Errorf("ledger has %v", ev)
	}
	r.audit(d)
}

// TestCrashInUndoBesideAnother: the same of one whose agent could not be told, and whoever took it back was killed half-way.
func TestCrashInUndoBesideAnother(t *testing.T) {
	r, first, _, untouched := besides(t, "respond")
	r.step = func(name string) error {
		if name == "respond" || name == "egress.reload" {
			return errCrash
		}
		return nil
	}
	if _, err := r.desk("bob@host").Undo(t.Context(), first, nil); !errors.Is(err, errCrash) {
		t.Fatalf("Undo = %v", err)
	}
	r.wantRoutes(baseRoutes)
	r.step = nil
	d := r.desk("eve@host")
	got, err := d.Recover(t.Context())
	if err != nil || len(got) != 1 || got[0].State != RecordFailed || !strings.Contains(got[0].Text, "packages.acme.test stays in "+r.gate) {
		t.Errorf("Recover = %+v, %v; want to be told that the host stays", got, err)
	}
	untouched()
	r.audit(d)
}

// TestLostBesideAnother: a sidecar whose proposal is gone before it was answered takes nothing from another bottle that rests on it.
func TestLostBesideAnother(t *testing.T) {
	r := newRig(t).gated()
	d := r.desk("ann@host")
	first := r.put(payload.NewPipelock("https://packages.acme.test/x"))
	r.step = func(name string) error {
		if name == "respond" {
			return errCrash
		}
		return nil
	}
	if _, err := r.approve(d, first); !errors.Is(err, errCrash) {
		t.Fatalf("approving: %v", err)
	}
	r.step = nil
	later := r.putFor("api")(egressFor("packages.acme.test"))
	if _, err := r.approve(d, later); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(r.root, "web", string(first.ID)+".proposal.json")); err != nil {
		t.Fatal(err)
	}
	gate := string(read(t, r.gate))
	got, err := d.Recover(t.Context())
	if err != nil || len(got) != 1 || got[0].State != Foreign || !strings.Contains(got[0].Text, "packages.acme.test stays in "+r.gate) {
		t.Errorf("Recover = %+v, %v; want to be told that the host stays", got, err)
	}
	if string(read(t, r.gate)) != gate {
		t.Error("the host that the other bottle needs is gone from pipelock's list")
	}
	if _, err := d.Undo(t.Context(), later, nil); err != nil {
		t.Error(err)
	}
	r.audit(d)
}
