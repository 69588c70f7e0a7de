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
			first := r.put(payload.NewPipelock("https://registry.npmjs.org/x"))
			if _, err := r.approve(d, first); err != nil {
				t.Fatal(err)
			}
			later, other := r.putFor(bottle)(egressFor("Registry.npmjs.org", "/")), r.put(egressFor("other.example.com"))
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
			if contains(read(t, r.gate), "registry.npmjs.org") {
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
	first := r.put(payload.NewPipelock("https://registry.npmjs.org/x"))
	if _, err := r.approve(d, first); err != nil {
		t.Fatal(err)
	}
	r.write(r.gate, baseGate)
	later := r.put(egressFor("registry.npmjs.org"))
	if _, err := r.approve(d, later); err != nil {
		t.Fatal(err)
	}
	r.write(r.gate, string(read(t, r.gate))+"# a note\n") // so that it is not what either of them wrote
	_, err := d.Undo(t.Context(), first, nil)
	if f, ok := errors.AsType[*apply.Failure](err); !ok || f.Step != "check" || !strings.Contains(err.Error(), "'supervise undo "+string(later.ID)+"'") {
		t.Errorf("Undo = %v; want it refused, naming %s", err, later)
	}
	if !contains(read(t, r.gate), "registry.npmjs.org") {
		t.Error("the host that the later one has added is gone from pipelock's list")
	}
	for _, ref := range []Ref{later, first} {
		if _, err := d.Undo(t.Context(), ref, nil); err != nil {
			t.Errorf("undoing the later one first: %v", err)
		}
	}
	r.audit(d)
}

// TestUndoByHand: a refusal that names another change ends when the host is out of pipelock's list, whoever took it out: the other one
// may be one that cannot be undone any more.
func TestUndoByHand(t *testing.T) {
	r := newRig(t).gated()
	d := r.desk("ann@host")
	first, later := r.put(payload.NewPipelock("https://registry.npmjs.org/x")), r.put(egressFor("registry.npmjs.org"))
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

// TestUndoBesideAnother: the route of one bottle is taken back although the route of another one, in a file of its own, needs the host
// in the list that they share. The host stays, and that is said.
func TestUndoBesideAnother(t *testing.T) {
	r := newRig(t).gated()
	d := r.desk("ann@host")
	first := r.put(egressFor("registry.npmjs.org"))
	if _, err := r.approve(d, first); err != nil {
		t.Fatal(err)
	}
	web := r.cfg
	api := filepath.Join(filepath.Dir(r.routes), "api.yaml")
	r.write(api, baseRoutes)
	r.cfg.Egress = &config.Egress{File: api}
	later := r.putFor("api")(egressFor("registry.npmjs.org"))
	if _, err := r.approve(d, later); err != nil {
		t.Fatal(err)
	}
	r.cfg = web
	gate, table := string(read(t, r.gate)), string(read(t, api))
	res, err := d.Undo(t.Context(), first, nil)
	if err != nil {
		t.Fatal(err)
	}
	if notes := strings.Join(res.Notes, "\n"); !strings.Contains(notes, "registry.npmjs.org stays in "+r.gate) || !strings.Contains(notes, string(later.ID)+" of bottle api") || res.Outcome != queue.Live {
		t.Errorf("Undo = %+v; want the host said to stay for %s", res, later)
	}
	r.wantRoutes(baseRoutes)
	if string(read(t, r.gate)) != gate || string(read(t, api)) != table {
		t.Error("what the other bottle needs was changed")
	}
	if ev := r.events(d, first); !slices.Equal(ev, []string{EventDecided, EventApplied, EventUndone}) {
		t.Errorf("ledger has %v", ev)
	}
	r.audit(d)
}
