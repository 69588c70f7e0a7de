package operator

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/queue"
)

// watched tells when somebody begins to wait for an answer to go out.
type watched struct {
	queue.Inbox
	waits func()
}

func (w watched) Changes(ctx context.Context) (<-chan struct{}, error) {
	w.waits()
	return w.Inbox.Changes(ctx)
}

// buildRig is a rig whose build and replace say in a file that they ran, and that has a proposal for a Dockerfile.
func buildRig(t *testing.T) (r *rig, ref Ref, ran func() string) {
	t.Helper()
	r = newRig(t)
	path := filepath.Join(r.root, "ran")
	log := func(word string) []string { return []string{"sh", "-c", "echo " + word + " >> " + path} }
	r.cfg.Capability.Build, r.cfg.Capability.Replace = log("build"), log("replace")
	ref = r.put(payload.NewCapability("FROM debian:12\nRUN true\nRUN apt-get install -y jq\n"))
	return r, ref, func() string {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return strings.Join(strings.Fields(string(b)), " ")
	}
}

// approveAnd approves as ann, and calls waits as soon as that has answered and waits before it replaces the bottle.
func (r *rig) approveAnd(ctx context.Context, ref Ref, waits func()) (*Result, error) {
	r.t.Helper()
	d := r.desk("ann@host")
	p := r.show(d, ref)
	d.opts.Inbox = watched{r.inbox, waits}
	return d.Approve(ctx, ref, Decision{Digest: p.Digest, Accept: p.Dangers()})
}

// notReplaced wants the ledger to end with what holds of a Dockerfile's change whose bottle was not replaced, and why.
func (r *rig) notReplaced(ref Ref, outcome queue.Outcome, why string) {
	r.t.Helper()
	d := r.desk("eve@host")
	for e, err := range d.History(r.t.Context(), HistoryFilter{ID: ref.ID, Limit: 1}) {
		if err != nil || e.Event != EventNotReplaced || e.Outcome != outcome || !strings.Contains(e.Error.Raw(), why) {
			r.t.Errorf("the last line of the ledger is %+v, %v; want %s, %q", e, err, outcome, why)
		}
	}
	if ev := r.events(d, ref); !slices.Equal(ev, []string{EventDecided, EventApplied, EventNotReplaced}) {
		r.t.Errorf("ledger has %v", ev)
	}
	r.audit(d)
}

// TestUndoBeforeReplace: a change that is undone before its bottle was replaced stays undone, whoever was to replace the bottle,
// and the bottle is not replaced any more.
func TestUndoBeforeReplace(t *testing.T) {
	check := func(t *testing.T, r *rig, ref Ref, ran string) {
		t.Helper()
		d := r.desk("eve@host")
		if got, err := d.Recover(t.Context()); len(got) != 0 || err != nil {
			t.Errorf("Recover = %+v, %v; want nothing to do", got, err)
		}
		if it := r.items(d); len(it) != 0 {
			t.Errorf("inbox = %+v", it)
		}
		rec, err := d.store.record(ref)
		if err != nil || rec.State != Undone || rec.By != "ann@host" || rec.UndoneBy != "bob@host" || rec.ReplacePending {
			t.Errorf("record = %+v, %v; want it undone by bob", rec, err)
		}
		if ev := r.events(d, ref); !slices.Equal(ev, []string{EventDecided, EventApplied, EventNotReplaced, EventUndone}) {
			t.Errorf("ledger has %v", ev)
		}
		if left, err := d.store.unfinished(); err != nil || len(left) != 0 {
			t.Errorf("unfinished: %v, %v", left, err)
		}
		if ran != "build build" {
			t.Errorf("ran %q, want two builds and no replace", ran)
		}
		r.audit(d)
	}
	undo := func(r *rig, ref Ref) {
		if _, err := r.desk("bob@host").Undo(r.t.Context(), ref, nil); err != nil {
			r.t.Errorf("undoing: %v", err)
		}
	}
	t.Run("whoever approved is gone", func(t *testing.T) {
		r, ref, ran := buildRig(t)
		ctx, cancel := context.WithCancel(t.Context())
		if _, err := r.approveAnd(ctx, ref, cancel); err == nil {
			t.Fatal("whoever was interrupted has approved all the same")
		}
		undo(r, ref)
		check(t, r, ref, ran())
	})
	t.Run("whoever approved waits", func(t *testing.T) {
		r, ref, ran := buildRig(t)
		res, err := r.approveAnd(t.Context(), ref, func() {
			undo(r, ref)
			if err := r.box.Archive(t.Context(), ref.ID); err != nil {
				t.Error(err)
			}
		})
		if err != nil || !strings.Contains(strings.Join(res.Notes, "\n"), "not replaced: somebody has begun to take the change back") || res.Outcome != "" || res.Undoable {
			t.Errorf("approving = %+v, %v; want to be told", res, err)
		}
		check(t, r, ref, ran())
	})
}

// TestFailedUndoBeforeReplace: when what was built of the Dockerfile could not be taken back, the bottle is not replaced by it.
func TestFailedUndoBeforeReplace(t *testing.T) {
	r, ref, ran := buildRig(t)
	res, err := r.approveAnd(t.Context(), ref, func() {
		r.cfg.Capability.Build = []string{"false"}
		if _, err := r.desk("bob@host").Undo(t.Context(), ref, nil); err == nil {
			t.Error("undone without a build")
		}
		if err := r.box.Archive(t.Context(), ref.ID); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := r.desk("eve@host").Recover(t.Context()); len(got) != 0 || err != nil {
		t.Errorf("Recover = %+v, %v; want nothing to do", got, err)
	}
	if rec, err := r.desk("eve@host").store.record(ref); err != nil || rec.State != Answered || rec.Outcome != queue.Built {
		t.Errorf("record = %+v, %v; want it answered, and built at most", rec, err)
	}
	r.notReplaced(ref, queue.Built, "the bottle was not replaced: bob@host has begun to take the change back")
	if ran() != "build" || !strings.Contains(strings.Join(res.Notes, "\n"), "not replaced: bob@host has begun to take the change back") {
		t.Errorf("ran %q, want one build: %+v", ran(), res)
	}
}

// TestReplaceIsHeld: who waits to replace a bottle is left to it by every other command, until it dies.
func TestReplaceIsHeld(t *testing.T) {
	r, ref, ran := buildRig(t)
	looked := 0
	look := func() {
		looked++
		if got, err := r.desk("bob@host").Recover(t.Context()); len(got) != 0 || err != nil {
			t.Errorf("Recover = %+v, %v; want it left to whoever approved", got, err)
		}
		if ran() != "build" {
			t.Errorf("ran %q, want no replace yet", ran())
		}
		if looked == 1 {
			if err := r.box.Archive(t.Context(), ref.ID); err != nil {
				t.Error(err)
			}
		}
	}
	res, err := r.approveAnd(t.Context(), ref, look)
	if err != nil || looked == 0 || ran() != "build replace" || !strings.Contains(strings.Join(res.Notes, "\n"), "the bottle was replaced; the answer had gone out") {
		t.Errorf("approving = %+v, %v; ran %q, looked at %d times", res, err, ran(), looked)
	}
	if got, err := r.desk("bob@host").Recover(t.Context()); len(got) != 0 || err != nil {
		t.Errorf("Recover = %+v, %v; want nothing to do", got, err)
	}

	r, ref, ran = buildRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := r.approveAnd(ctx, ref, cancel); err == nil {
		t.Fatal("whoever was interrupted has approved all the same")
	}
	if err := r.box.Archive(t.Context(), ref.ID); err != nil {
		t.Fatal(err)
	}
	got, err := r.desk("bob@host").Recover(t.Context())
	if err != nil || len(got) != 1 || got[0] != (Recovered{ref, Answered, "the bottle was replaced; the answer had gone out"}) || ran() != "build replace" {
		t.Errorf("Recover = %+v, %v; ran %q; want the bottle replaced", got, err, ran())
	}
	if left, err := r.desk("bob@host").store.unfinished(); err != nil || len(left) != 0 {
		t.Errorf("unfinished: %v, %v", left, err)
	}
}

// TestReplaceWaitsOnce: who replaces a bottle in the place of one that was interrupted does not wait anew for the answer to go out.
func TestReplaceWaitsOnce(t *testing.T) {
	for _, long := range []bool{true, false} { // ago
		r, ref, ran := buildRig(t)
		ctx, cancel := context.WithCancel(t.Context())
		if _, err := r.approveAnd(ctx, ref, cancel); err == nil {
			t.Fatal("whoever was interrupted has approved all the same")
		}
		if ago := time.Now().Add(-replaceAfter); long {
			if err := os.Chtimes(filepath.Join(r.root, ".desk", recordName(ref)), ago, ago); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel = context.WithCancel(t.Context())
		defer cancel()
		waited := false
		bob := r.desk("bob@host")
		bob.opts.Inbox = watched{r.inbox, func() { waited = true; cancel() }}
		got, err := bob.Recover(ctx)
		if waited == long || (err == nil) != long {
			t.Errorf("answered long ago: %v; Recover = %+v, %v, having waited: %v", long, got, err, waited)
		}
		if want := map[bool]string{true: "build replace", false: "build"}[long]; ran() != want {
			t.Errorf("answered long ago: %v; ran %q, want %q", long, ran(), want)
		}
	}
}

// TestForgetBeforeReplace: a bottle that is gone is forgotten, and not brought back by what an interrupted command left to do.
func TestForgetBeforeReplace(t *testing.T) {
	r, ref, ran := buildRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := r.approveAnd(ctx, ref, cancel); err == nil {
		t.Fatal("whoever was interrupted has approved all the same")
	}
	d := r.desk("bob@host")
	if err := d.Forget(t.Context(), "web"); err == nil { // its sidecar runs
		t.Error("forgotten while it is in use")
	}
	if rec, err := d.store.record(ref); err != nil || !rec.ReplacePending {
		t.Errorf("record = %+v, %v; want the bottle still to be replaced", rec, err)
	}
	if err := r.box.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d.Forget(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	if got, err := d.Recover(t.Context()); err != nil || len(got) != 0 || ran() != "build" {
		t.Errorf("Recover = %+v, %v; ran %q, want the bottle left alone", got, err, ran())
	}
	r.notReplaced(ref, queue.Built, "bob@host has forgotten it")
}

// halfForgetful cannot remove all files of a bottle.
type halfForgetful struct{ queue.Inbox }

func (i halfForgetful) Forget(ctx context.Context, bottle string) error {
	return errors.Join(i.Inbox.Forget(ctx, bottle), errors.New("what is left is in its place"))
}

// TestForgetHalfBeforeReplace: a bottle of which files are left is none any more, and is not replaced.
func TestForgetHalfBeforeReplace(t *testing.T) {
	r, ref, ran := buildRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := r.approveAnd(ctx, ref, cancel); err == nil {
		t.Fatal("whoever was interrupted has approved all the same")
	}
	if err := r.box.Close(); err != nil {
		t.Fatal(err)
	}
	d := r.desk("bob@host")
	d.opts.Inbox = halfForgetful{d.opts.Inbox}
	if err := d.Forget(t.Context(), "web"); err == nil || !strings.Contains(err.Error(), "what is left is in its place") {
		t.Errorf("Forget = %v, want what is left", err)
	}
	if got, err := d.Recover(t.Context()); err != nil || len(got) != 0 || ran() != "build" {
		t.Errorf("Recover = %+v, %v; ran %q, want the bottle left alone", got, err, ran())
	}
	r.notReplaced(ref, queue.Built, "bob@host has forgotten it")
}

// leftRunning is what a desk that was killed has left replacing the bottle; ended looks whether somebody has ended it since.
func (r *rig) leftRunning() (ended func()) {
	r.t.Helper()
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		r.t.Skip("this system does not tell what a process is: ", err)
	}
	left := exec.Command("sleep", "600")
	left.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := left.Start(); err != nil {
		r.t.Fatal(err)
	}
	gone := make(chan error, 1)
	go func() { gone <- left.Wait() }()
	r.t.Cleanup(func() { _ = left.Process.Kill() })
	stat := strings.Fields(string(read(r.t, fmt.Sprintf("/proc/%d/stat", left.Process.Pid))))
	note := filepath.Join(r.root, ".desk", "locks", "web.running")
	r.write(note, fmt.Sprintf("%d %s/%s\n", left.Process.Pid, strings.TrimSpace(string(boot)), stat[21]))
	return func() {
		r.t.Helper()
		if _, err := os.Stat(note); !os.IsNotExist(err) {
			r.t.Errorf("what was left replacing the bottle is still noted: %v", err)
			return
		}
		if err := <-gone; err == nil {
			r.t.Error("what was left replacing the bottle has ended by itself")
		}
	}
}

// TestRefusedUndoWhileReplacing: an undo that gives up replacing the bottle and cannot begin has ended what was left replacing it.
func TestRefusedUndoWhileReplacing(t *testing.T) {
	r, ref, ran := buildRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := r.approveAnd(ctx, ref, cancel); err == nil {
		t.Fatal("whoever was interrupted has approved all the same")
	}
	ended := r.leftRunning()
	d := r.desk("bob@host")
	rec, err := d.store.record(ref)
	if err != nil {
		t.Fatal(err)
	}
	r.write(filepath.Join(r.root, ".desk", "web", rec.Targets[0].Backup), "FROM edited\n")
	var said strings.Builder
	if _, err := d.Undo(t.Context(), ref, &said); err == nil || !strings.Contains(said.String(), "ended process") {
		t.Errorf("Undo = %v, and said %q; want it refused, and to be told what was ended", err, said.String())
	}
	ended()
	if ran() != "build" {
		t.Errorf("ran %q, want the bottle left alone", ran())
	}
	r.notReplaced(ref, queue.Built, "bob@host has begun to take the change back; ended process")
}

// TestForgetWhileReplacing: nor by a command that a desk which was killed has left replacing it. Whoever waits to replace it is told why
// it is not.
func TestForgetWhileReplacing(t *testing.T) {
	r, ref, ran := buildRig(t)
	var ended func()
	res, err := r.approveAnd(t.Context(), ref, func() {
		ended = r.leftRunning()
		if err := r.box.Close(); err != nil {
			t.Error(err)
		}
		if err := r.desk("bob@host").Forget(t.Context(), "web"); err != nil {
			t.Error(err)
		}
	})
	ended()
	if err != nil || !strings.Contains(strings.Join(res.Notes, "\n"), "not replaced: bob@host has forgotten it") {
		t.Errorf("approving = %+v, %v; want to be told", res, err)
	}
	if ran() != "build" {
		t.Errorf("ran %q, want the bottle left alone", ran())
	}
	r.notReplaced(ref, queue.Built, "has forgotten it; ended process")
}

// TestUndoAfterACrashWhenNotReplaced: nor does an undo leave out what the ledger lacks, when one that was killed has not come to it.
func TestUndoAfterACrashWhenNotReplaced(t *testing.T) {
	r, ref, ran := buildRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := r.approveAnd(ctx, ref, cancel); err == nil {
		t.Fatal("whoever was interrupted has approved all the same")
	}
	r.step = func(name string) error {
		if name == "ledger not-replaced" {
			return errCrash
		}
		return nil
	}
	if _, err := r.desk("bob@host").Undo(t.Context(), ref, nil); !errors.Is(err, errCrash) {
		t.Fatalf("Undo = %v", err)
	}
	r.step = nil
	d := r.desk("eve@host")
	if _, err := d.Undo(t.Context(), ref, nil); err != nil {
		t.Fatal(err)
	}
	if ev := r.events(d, ref); !slices.Equal(ev, []string{EventDecided, EventApplied, EventNotReplaced, EventUndone}) {
		t.Errorf("ledger has %v", ev)
	}
	if left, err := d.store.unfinished(); err != nil || len(left) != 0 || ran() != "build build" {
		t.Errorf("unfinished: %v, %v; ran %q", left, err, ran())
	}
	r.audit(d)
}

// TestCrashWhenNotReplaced: whoever is killed while he says that a bottle was not replaced leaves a ledger that says what holds.
func TestCrashWhenNotReplaced(t *testing.T) {
	for _, by := range []string{"a replace that fails", "undo"} {
		for _, at := range []string{"ledger not-replaced", "record answered", "end"} {
			t.Run(by+", "+at, func(t *testing.T) {
				r, ref, ran := buildRig(t)
				replace := r.cfg.Capability.Replace
				var dead bool
				crash := func(name string) error {
					if dead = dead || name == at; dead {
						return errCrash
					}
					return nil
				}
				if by == "undo" {
					ctx, cancel := context.WithCancel(t.Context())
					if _, err := r.approveAnd(ctx, ref, cancel); err == nil {
						t.Fatal("whoever was interrupted has approved all the same")
					}
					r.step = crash
					if _, err := r.desk("bob@host").Undo(t.Context(), ref, nil); !errors.Is(err, errCrash) {
						t.Errorf("Undo = %v", err)
					}
				} else {
					d := r.desk("ann@host")
					d.opts.Hand = replacing{d.opts.Hand, func() { r.step = crash }}
					r.cfg.Capability.Replace = []string{"false"}
					p := r.show(d, ref)
					d.opts.Inbox = watched{r.inbox, func() {
						if err := r.box.Archive(t.Context(), ref.ID); err != nil {
							t.Error(err)
						}
					}}
					_, _ = d.Approve(t.Context(), ref, Decision{Digest: p.Digest, Accept: p.Dangers()})
				}
				if !dead {
					t.Fatal("not killed")
				}
				r.step, r.cfg.Capability.Replace = nil, replace
				if err := r.box.Archive(t.Context(), ref.ID); err != nil {
					t.Error(err)
				}
				d := r.desk("eve@host")
				if _, err := d.Recover(t.Context()); err != nil {
					t.Error(err)
				}
				replaced := strings.Contains(ran(), "replace")
				if said := slices.Contains(r.events(d, ref), EventNotReplaced); said == replaced {
					t.Errorf("replaced: %v; the ledger has %v", replaced, r.events(d, ref))
				}
				if rec, err := d.store.record(ref); err != nil || rec.ReplacePending || (rec.Outcome == queue.Live) != replaced {
					t.Errorf("replaced: %v; record = %+v, %v", replaced, rec, err)
				}
				if left, err := d.store.unfinished(); err != nil || len(left) != 0 {
					t.Errorf("unfinished: %v, %v", left, err)
				}
				r.audit(d)
			})
		}
	}
}

// TestReplaceOnAFullDisk: a bottle is not replaced while that cannot be recorded: each look of a desk that goes on would do it again.
func TestReplaceOnAFullDisk(t *testing.T) {
	r, ref, ran := buildRig(t)
	full := false
	r.step = func(name string) error {
		if full && name == "record answered" {
			return unix.ENOSPC
		}
		return nil
	}
	_, err := r.approveAnd(t.Context(), ref, func() {
		full = true
		if err := r.box.Archive(t.Context(), ref.ID); err != nil {
			t.Error(err)
		}
	})
	for range 2 {
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("replacing the bottle: %v; want the disk said to be full", err)
		}
		if ran() != "build" {
			t.Errorf("ran %q, want no replace", ran())
		}
		_, err = r.desk("bob@host").Recover(t.Context())
	}
	full = false
	if got, err := r.desk("bob@host").Recover(t.Context()); err != nil || len(got) != 1 || ran() != "build replace" {
		t.Errorf("with room again: %+v, %v; ran %q, want the bottle replaced once", got, err, ran())
	}
	if got, err := r.desk("bob@host").Recover(t.Context()); err != nil || len(got) != 0 {
		t.Errorf("Recover = %+v, %v; want nothing left", got, err)
	}
}

// TestReplaceIsConfigured: a bottle is waited for and replaced only if something is configured that replaces it; the operator and
// the agent are told of nothing else.
func TestReplaceIsConfigured(t *testing.T) {
	for _, tt := range []struct {
		name  string
		setup func(r *rig)
		ran   string
		agent queue.Outcome // what it is told
		want  queue.Outcome
		note  string
	}{
		{"build and replace", func(*rig) {}, "build replace", queue.Live, queue.Live, "the bottle was replaced"},
		{"replace alone", func(r *rig) { r.cfg.Capability.Build = nil }, "replace", queue.Unverified, queue.Unverified, "the bottle was replaced"},
		{"a replace that fails", func(r *rig) { r.cfg.Capability.Replace = []string{"false"} }, "build", queue.Live, queue.Built, "the bottle was not replaced: replacing bottle web: running false: exit status 1"},
		{"build alone", func(r *rig) { r.cfg.Capability.Replace = nil }, "build", queue.Built, queue.Built, ""},
		{"neither", func(r *rig) { r.cfg.Capability.Build, r.cfg.Capability.Replace = nil, nil }, "", queue.Acknowledged, queue.Acknowledged, ""},
		{"unmanaged", func(r *rig) { r.cfg.Capability = nil }, "", queue.Unverified, queue.Unverified, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, ref, ran := buildRig(t)
			tt.setup(r)
			d := r.desk("ann@host")
			p := r.show(d, ref)
			waited := false
			d.opts.Inbox = watched{r.inbox, func() {
				waited = true
				if err := r.box.Archive(t.Context(), ref.ID); err != nil {
					t.Error(err)
				}
			}}
			res, err := d.Approve(t.Context(), ref, Decision{Digest: p.Digest, Accept: p.Dangers(), Unmanaged: true})
			if err != nil {
				t.Fatal(err)
			}
			notes := strings.Join(res.Notes, "\n")
			if res.Outcome != tt.want || res.Undoable != (tt.name != "unmanaged") || waited != (tt.note != "") || !strings.Contains(notes, tt.note) || strings.Contains(notes, "the bottle was") != waited {
				t.Errorf("approving = %+v, having waited: %v; want %s with note %q", res, waited, tt.want, tt.note)
			}
			if resp := r.response(ref); resp.Outcome != tt.agent {
				t.Errorf("the agent is told %q, want %q", resp.Outcome, tt.agent)
			}
			if rec, err := d.store.record(ref); err != nil || rec.State != Answered || rec.Outcome != tt.want || rec.ReplacePending {
				t.Errorf("record = %+v, %v; want %s", rec, err, tt.want)
			}
			if ran() != tt.ran {
				t.Errorf("ran %q, want %q", ran(), tt.ran)
			}
			if fails := tt.name == "a replace that fails"; fails {
				r.notReplaced(ref, tt.want, tt.note)
			} else if ev := r.events(d, ref); !slices.Equal(ev, []string{EventDecided, EventApplied}) {
				t.Errorf("ledger has %v", ev)
			}
			if left, err := d.store.unfinished(); err != nil || len(left) != 0 {
				t.Errorf("unfinished: %v, %v", left, err)
			}
		})
	}
}

// TestLostAfterBuild: another program rejects what was built already. The image is built again from the Dockerfile as it was.
func TestLostAfterBuild(t *testing.T) {
	for _, fails := range []bool{false, true} {
		r := newRig(t)
		before := string(read(t, r.docker))
		image := filepath.Join(r.root, "image")
		r.cfg.Capability.Build = []string{"cp", r.docker, image}
		d := r.desk("ann@host")
		ref := r.put(payload.NewCapability("FROM debian:12\nRUN evil\n"))
		r.step = func(name string) error {
			if name == "respond" {
				r.respond(ref, queue.Rejected, "no")
				if fails {
					r.cfg.Capability.Build = []string{"false"}
				}
			}
			return nil
		}
		if _, err := r.approve(d, ref); !isDecided(err, "") {
			t.Errorf("approving: %v, want decided by another program", err)
		}
		if got := string(read(t, r.docker)); got != before {
			t.Errorf("the Dockerfile is %q", got)
		}
		rec, err := d.store.record(ref)
		if err != nil || rec.State != Foreign {
			t.Fatalf("record = %+v, %v", rec, err)
		}
		if got := string(read(t, image)); (got == before) == fails {
			t.Errorf("the image is of %q", got)
		}
		if told := strings.Contains(rec.Error.Raw(), "but not all of it: "); told != fails {
			t.Errorf("the record says %q", rec.Error.Raw())
		}
	}
}

// TestUndoCreatedDockerfile: there is nothing to build when there was no Dockerfile before, and the undo is done all the same.
func TestUndoCreatedDockerfile(t *testing.T) {
	r := newRig(t)
	if err := os.Remove(r.docker); err != nil {
		t.Fatal(err)
	}
	r.cfg.Capability.Build = []string{"test", "-f", r.docker}
	d := r.desk("ann@host")
	ref := r.put(payload.NewCapability("FROM debian:12\nRUN true\n"))
	if _, err := r.approve(d, ref); err != nil {
		t.Fatal(err)
	}
	res, err := d.Undo(t.Context(), ref, nil)
	if err != nil || res.Outcome != queue.Acknowledged || !strings.Contains(strings.Join(res.Notes, "\n"), "what was built of it, if anything, is still there") {
		t.Errorf("Undo = %+v, %v", res, err)
	}
	if _, err := os.Stat(r.docker); !os.IsNotExist(err) {
		t.Errorf("the Dockerfile: %v", err)
	}
	if rec, err := d.store.record(ref); err != nil || rec.State != Undone {
		t.Errorf("record = %+v, %v", rec, err)
	}
}
