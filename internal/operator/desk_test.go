package operator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bot-bottle/supervise/internal/apply"
	"github.com/bot-bottle/supervise/internal/config"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/safetext"
	"github.com/bot-bottle/supervise/queue"
)

func TestApprove(t *testing.T) {
	r := newRig(t)
	d := r.desk("ann@host")
	ref := r.put(egressFor("Packages.ACME.test", "/left-pad"))
	p := r.show(d, ref)
	if p.State != Open || p.Digest == "" || len(p.Targets) != 1 || !p.Targets[0].Changed || !strings.Contains(p.Targets[0].Diff.Raw(), "+") {
		t.Fatalf("preview = %+v, want it open with one changed target", p)
	}
	if len(p.Findings) == 0 {
		t.Error("a new host raises no finding")
	}
	res, err := d.Approve(t.Context(), ref, Decision{Digest: p.Digest, Accept: p.Dangers(), Notes: "only this one"})
	if err != nil {
		t.Fatal(err)
	}
	if res.Status != queue.Approved || res.Outcome != queue.Live {
		t.Errorf("result = %+v, want approved and live", res)
	}
	got := r.response(ref)
	if got == nil || got.Status != queue.Approved || got.Outcome != queue.Live || got.Notes != "only this one" || got.Digest != p.Digest || got.FinalFile != "" {
		t.Errorf("response = %+v", got)
	}
	after := read(t, r.routes)
	if !contains(after, "Packages.ACME.test") && !contains(after, "packages.acme.test") || !strings.HasPrefix(string(after), strings.TrimSuffix(baseRoutes, "\n")) {
		t.Errorf("routes.yaml is\n%s", after)
	}
	if ev := r.events(d, ref); !slices.Equal(ev, []string{EventDecided, EventApplied}) {
		t.Errorf("ledger has %v", ev)
	}
	r.audit(d)
	if n := len(r.items(d)); n != 0 {
		t.Errorf("inbox still has %d items", n)
	}
	if left, err := d.store.unfinished(); err != nil || len(left) != 0 {
		t.Errorf("unfinished: %v, %v", left, err)
	}
	// A second decision learns who made the first, whichever it is.
	if _, err := r.approve(r.desk("bob@host"), ref); !isDecided(err, "ann@host") {
		t.Errorf("approving again: %v, want decided by ann@host", err)
	}
	if _, err := r.desk("bob@host").Reject(t.Context(), ref, ""); !isDecided(err, "ann@host") {
		t.Errorf("rejecting after: %v, want decided by ann@host", err)
	}
	p = r.show(d, ref)
	if p.State != Decided || p.Decision == nil || p.Decision.By != "ann@host" || p.Decision.State != Answered {
		t.Errorf("a decided proposal shows %+v", p.Decision)
	}
}

func isDecided(err error, by string) bool {
	e, ok := errors.AsType[*DecidedError](err)
	return ok && e.By == by
}

func TestApproveBindsToWhatWasSeen(t *testing.T) {
	tests := []struct {
		name  string
		after func(r *rig)
		stale bool
	}{
		{"nothing changed", func(*rig) {}, false},
		{"an unrelated entry was added", func(r *rig) {
			r.write(r.routes, baseRoutes+"  - host: files.example.net\n    path_allowlist: [/x/]\n")
		}, false},
		{"a comment was added", func(r *rig) { r.write(r.routes, "# hello\n"+baseRoutes) }, false},
		{"the touched entry was widened by hand", func(r *rig) {
			r.write(r.routes, strings.Replace(baseRoutes, "    path_allowlist:\n      - /repos/\n", "", 1))
		}, true},
		{"the touched entry got another path", func(r *rig) {
			r.write(r.routes, strings.Replace(baseRoutes, "      - /repos/\n", "      - /repos/\n      - /user\n", 1))
		}, true},
		{"the touched entry was removed", func(r *rig) {
			r.write(r.routes, "routes:\n  - host: pypi.org\n")
		}, true},
		{"the bottle's file is another one", func(r *rig) {
			other := filepath.Join(filepath.Dir(r.routes), "other.yaml")
			r.write(other, baseRoutes)
			r.cfg.Egress.File = other
			r.proxy.mu.Lock()
			r.proxy.path = other
			r.proxy.mu.Unlock()
		}, true},
		{"pipelock holds nothing back any more", func(r *rig) { // a finding; the entry is as it was
			r.write(r.gate, strings.Replace(baseGate, "strict", "balanced", 1))
		}, true},
		{"the bottle has no second gate any more", func(r *rig) { r.cfg.Pipelock = nil }, true},
		{"the proposal was altered", func(r *rig) { // by a hostile sidecar
			names, _ := filepath.Glob(filepath.Join(r.root, "web", "*.proposal.json"))
			b := strings.Replace(string(read(r.t, names[0])), "the build needs it", "the build needs it!", 1)
			r.write(names[0]+".new", b)
			if err := os.Rename(names[0]+".new", names[0]); err != nil {
				r.t.Fatal(err)
			}
		}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t).gated()
			ref := r.put(egressFor("api.github.com", "/orgs/"))
			p := r.show(r.desk("ann@host"), ref)
			tt.after(r)
			before := read(t, r.routes)
			_, err := r.desk("ann@host").Approve(t.Context(), ref, Decision{Digest: p.Digest, Accept: p.Dangers()})
			if !tt.stale {
				if err != nil || r.response(ref) == nil {
					t.Errorf("approving: %v, want it approved", err)
				}
				return
			}
			stale, ok := errors.AsType[*StaleError](err)
			if !ok {
				t.Fatalf("approving: %v, want stale", err)
			}
			if stale.Preview.Digest == p.Digest || stale.Preview.Digest == "" {
				t.Errorf("the new preview has digest %q, as the old one", stale.Preview.Digest)
			}
			if r.response(ref) != nil || string(read(t, r.routes)) != string(before) {
				t.Error("a stale decision changed something")
			}
			if rec, err := r.desk("x").store.record(ref); rec != nil || err != nil {
				t.Errorf("a stale decision left the record %+v, %v", rec, err)
			}
			// Deciding on the new preview works.
			if _, err := r.desk("ann@host").Approve(t.Context(), ref, Decision{Digest: stale.Preview.Digest, Accept: stale.Preview.Dangers()}); err != nil {
				t.Errorf("approving the new preview: %v", err)
			}
		})
	}
}

// TestDigestCovers: each thing that an operator decides on changes the digest, and what is only shown does not.
func TestDigestCovers(t *testing.T) {
	p := queue.Proposal{ID: queue.NewID(), Bottle: "web", Tool: payload.Egress, ProposedFile: "x", Justification: "why"}
	of := func(change func(p *queue.Proposal, c *considered)) string {
		t.Helper()
		q, err := egressFor("a.example")
		if err != nil {
			t.Fatal(err)
		}
		p, c := p, &considered{Preview: &Preview{}, payload: q, plan: &apply.Plan{}}
		c.Findings = []Finding{{Code: "new-host", Level: Note}}
		c.plan.Targets = []apply.Target{{Kind: apply.KindEgress, Path: "/link", Real: "/file", Exists: true, Before: []byte("a"), After: []byte("b"), EntryBefore: "", EntryAfter: "b"}}
		change(&p, c)
		return digest(p, c)
	}
	was := of(func(*queue.Proposal, *considered) {})
	for _, tt := range []struct {
		what   string
		change func(p *queue.Proposal, c *considered)
		same   bool
	}{
		{"the id", func(p *queue.Proposal, _ *considered) { p.ID = queue.NewID() }, false},
		{"the bottle", func(p *queue.Proposal, _ *considered) { p.Bottle = "api" }, false},
		{"the tool", func(p *queue.Proposal, _ *considered) { p.Tool = payload.Pipelock }, false},
		{"what was proposed", func(p *queue.Proposal, _ *considered) { p.ProposedFile = "y" }, false},
		{"the justification", func(p *queue.Proposal, _ *considered) { p.Justification = "why not" }, false},
		{"what would be applied", func(_ *queue.Proposal, c *considered) { c.payload.Route.PathAllowlist = []string{"/x"} }, false},
		{"a target's kind", func(_ *queue.Proposal, c *considered) { c.plan.Targets[0].Kind = apply.KindPipelock }, false},
		{"a target's real path", func(_ *queue.Proposal, c *considered) { c.plan.Targets[0].Real = "/other" }, false},
		{"the entry before", func(_ *queue.Proposal, c *considered) { c.plan.Targets[0].EntryBefore = "a" }, false},
		{"the entry after", func(_ *queue.Proposal, c *considered) { c.plan.Targets[0].EntryAfter = "c" }, false},
		{"whether it changes", func(_ *queue.Proposal, c *considered) { c.plan.Targets[0].After = []byte("a") }, false},
		{"another target", func(_ *queue.Proposal, c *considered) { c.plan.Targets = append(c.plan.Targets, c.plan.Targets[0]) }, false},
		{"an unmanaged target", func(_ *queue.Proposal, c *considered) { c.plan.Unmanaged = []apply.Kind{apply.KindPipelock} }, false},
		{"another finding", func(_ *queue.Proposal, c *considered) { c.Findings[0].Code = "covered" }, false},
		{"one more finding", func(_ *queue.Proposal, c *considered) {
			c.Findings = append(c.Findings, Finding{Code: "public-suffix", Level: Note})
		}, false},
		{"a finding's level", func(_ *queue.Proposal, c *considered) { c.Findings[0].Level = Danger }, false},
		{"a finding's words", func(_ *queue.Proposal, c *considered) { c.Findings[0].Text = "new" }, true},
		{"the rest of a file", func(_ *queue.Proposal, c *considered) {
			c.plan.Targets[0].Before, c.plan.Targets[0].After = []byte("# a"), []byte("# b")
		}, true},
	} {
		if same := of(tt.change) == was; same != tt.same {
			t.Errorf("with %s changed the digest is the same: %v, want %v", tt.what, same, tt.same)
		}
	}
}

// before is a hand that is told when the targets are about to be locked.
type before struct {
	apply.Hand
	lock func()
}

func (h before) Lock(ctx context.Context, real []string) (func(), error) {
	h.lock()
	return h.Hand.Lock(ctx, real)
}

// TestApproveLooksUnderTheLocks: what happens between the look that finds the files to lock and the locks is seen.
func TestApproveLooksUnderTheLocks(t *testing.T) {
	for _, tt := range []struct {
		name   string
		before func(r *rig) // after the preview was made
		locked func(r *rig) // right before the locks are taken
	}{
		{"the entry is edited", func(*rig) {}, func(r *rig) {
			r.write(r.routes, strings.Replace(baseRoutes, "      - /repos/\n", "      - /repos/\n      - /user\n", 1))
		}},
		{"another file is locked than what was seen", func(r *rig) { r.point("b.yaml") }, func(r *rig) { r.point("a.yaml") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			for _, name := range []string{"a.yaml", "b.yaml"} {
				r.write(filepath.Join(filepath.Dir(r.routes), name), baseRoutes)
			}
			r.point("a.yaml")
			d := r.desk("ann@host")
			ref := r.put(egressFor("api.github.com", "/orgs/"))
			p := r.show(d, ref)
			tt.before(r)
			d.opts.Hand = before{d.opts.Hand, func() { tt.locked(r) }}
			_, err := d.Approve(t.Context(), ref, Decision{Digest: p.Digest, Accept: p.Dangers()})
			if _, ok := errors.AsType[*StaleError](err); !ok {
				t.Errorf("approving: %v, want stale", err)
			}
			if b := read(t, r.routes); contains(b, "/orgs/") {
				t.Errorf("what was not seen under the locks was changed:\n%s", b)
			}
		})
	}
}

// point makes routes.yaml a link to another file beside it.
func (r *rig) point(name string) {
	r.t.Helper()
	if err := os.Remove(r.routes); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Symlink(name, r.routes); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) write(path, data string) {
	r.t.Helper()
	if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

func TestDangersMustBeAccepted(t *testing.T) {
	r := newRig(t)
	d := r.desk("ann@host")
	ref := r.put(egressFor("api.github.com")) // widens a scoped host
	p := r.show(d, ref)
	if !p.Danger || len(p.Dangers()) == 0 {
		t.Fatalf("widening raises %v, want a danger", p.Findings)
	}
	_, err := d.Approve(t.Context(), ref, Decision{Digest: p.Digest, Accept: []string{"something-else"}})
	de, ok := errors.AsType[*DangerError](err)
	if !ok || len(de.Findings) != len(p.Dangers()) {
		t.Fatalf("approving without accepting: %v, want a DangerError", err)
	}
	r.wantRoutes(baseRoutes)
	if _, err := d.Approve(t.Context(), ref, Decision{Digest: p.Digest, Accept: p.Dangers()}); err != nil {
		t.Fatal(err)
	}
	for e, err := range d.History(t.Context(), HistoryFilter{ID: ref.ID, Event: EventDecided}) {
		if err != nil || !slices.Equal(e.Accepted, p.Dangers()) {
			t.Errorf("the ledger has accepted %v, %v, want %v", e.Accepted, err, p.Dangers())
		}
	}
}

// A proxy that does not take the new table: everything is as before, and the operator can try again.
func TestFailedApplyIsPutBackAndOpenAgain(t *testing.T) {
	r := newRig(t)
	r.verify = 50 * time.Millisecond
	r.proxy.freeze(t)
	d := r.desk("ann@host")
	ref := r.put(egressFor("packages.acme.test", "/"))
	_, err := r.approve(d, ref)
	if _, ok := errors.AsType[*apply.Failure](err); !ok {
		t.Fatalf("approving with a deaf proxy: %v, want an apply.Failure", err)
	}
	r.wantRoutes(baseRoutes)
	if resp := r.response(ref); resp != nil {
		t.Errorf("the agent was answered: %+v", resp)
	}
	it := r.items(d)
	if len(it) != 1 || it[0].State != Failed || it[0].Error == "" {
		t.Fatalf("inbox = %+v, want the proposal failed, with why", it)
	}
	r.proxy.thaw()
	r.verify = 0
	if _, err := r.approve(r.desk("bob@host"), ref); err != nil {
		t.Fatalf("approving again: %v", err)
	}
	if ev := r.events(d, ref); !slices.Equal(ev, []string{EventDecided, EventFailed, EventDecided, EventApplied}) {
		t.Errorf("ledger has %v", ev)
	}
	rec, err := d.store.record(ref)
	if err != nil || rec.Attempt != 2 || rec.By != "bob@host" {
		t.Errorf("record = %+v, %v", rec, err)
	}
	r.audit(d)
}

func TestModify(t *testing.T) {
	r := newRig(t)
	d := r.desk("ann@host")
	ref := r.put(egressFor("packages.acme.test"))
	for _, bad := range []string{"", "not json", `{"host":"a.example","extra":1}`, `{"host":"https://a.example"}`} {
		if _, err := d.Show(t.Context(), ref, &bad); !isEdit(err) {
			t.Errorf("editing to %q: %v, want an EditError", bad, err)
		}
	}
	same := ` { "host" : "PACKAGES.acme.test" } `
	p, err := d.Show(t.Context(), ref, &same)
	if err != nil || p.Edited != "" {
		t.Errorf("an edit that says the same: edited %q, %v, want none", p.Edited, err)
	}
	edit := `{"host":"packages.acme.test","path_allowlist":["/left-pad"]}`
	p, err = d.Show(t.Context(), ref, &edit)
	if err != nil {
		t.Fatal(err)
	}
	if q := r.show(d, ref); q.Digest == p.Digest {
		t.Error("the edit has the digest of what was proposed")
	}
	if _, err := d.Approve(t.Context(), ref, Decision{Digest: p.Digest, Accept: p.Dangers()}); !errors.As(err, new(*StaleError)) {
		t.Errorf("approving the original with the edit's digest: %v, want stale", err)
	}
	res, err := d.Approve(t.Context(), ref, Decision{Digest: p.Digest, Accept: p.Dangers(), File: &edit})
	if err != nil || res.Status != queue.Modified {
		t.Fatalf("approving the edit = %+v, %v", res, err)
	}
	want := "{\n  \"host\": \"packages.acme.test\",\n  \"path_allowlist\": [\n    \"/left-pad\"\n  ]\n}\n"
	if got := r.response(ref); got.FinalFile != want || got.Status != queue.Modified {
		t.Errorf("response = %+v, want modified with final file %q", got, want)
	}
	if b := read(t, r.routes); !contains(b, "/left-pad") {
		t.Errorf("what was applied is not the edit:\n%s", b)
	}
}

func isEdit(err error) bool { _, ok := errors.AsType[*EditError](err); return ok }

func TestMalformedCanOnlyBeRejected(t *testing.T) {
	r := newRig(t)
	d := r.desk("ann@host")
	for _, file := range []string{"{}", `{"host":"a.example\u001b[31m"}`, `{"host":"a.example","host":"b.example"}`, "\x00"} {
		ref := r.putRaw(payload.Egress, file, "x")
		p := r.show(d, ref)
		if p.State != Bad || p.Blocked == "" || strings.ContainsAny(p.Blocked+p.Error, "\x1b\x00") {
			t.Errorf("%q: state %s, blocked %q, want bad and escaped", file, p.State, p.Blocked)
		}
		if _, err := d.Approve(t.Context(), ref, Decision{Digest: p.Digest}); !errors.Is(err, ErrBlocked) {
			t.Errorf("%q: approving: %v, want ErrBlocked", file, err)
		}
		if _, err := d.Reject(t.Context(), ref, "malformed"); err != nil {
			t.Errorf("%q: rejecting: %v", file, err)
		}
		if got := r.response(ref); got == nil || got.Status != queue.Rejected {
			t.Errorf("%q: response = %+v", file, got)
		}
	}
	r.wantRoutes(baseRoutes)
}

func TestUnmanaged(t *testing.T) {
	r := newRig(t)
	r.cfg.Egress = nil
	d := r.desk("ann@host")
	ref := r.put(egressFor("packages.acme.test"))
	p := r.show(d, ref)
	if _, err := d.Approve(t.Context(), ref, Decision{Digest: p.Digest, Accept: p.Dangers()}); !errors.As(err, new(*UnmanagedError)) {
		t.Fatalf("approving: %v, want an UnmanagedError", err)
	}
	res, err := d.Approve(t.Context(), ref, Decision{Digest: p.Digest, Accept: p.Dangers(), Unmanaged: true})
	if err != nil || res.Outcome != queue.Unverified {
		t.Fatalf("approving as done by hand = %+v, %v, want unverified", res, err)
	}
	if got := r.response(ref); got.Outcome != queue.Unverified {
		t.Errorf("response = %+v", got)
	}
}

func TestReject(t *testing.T) {
	r := newRig(t)
	d := r.desk("ann@host")
	ref := r.put(egressFor("packages.acme.test"))
	if _, err := d.Reject(t.Context(), ref, "use the mirror\n\"quoted\" ü"); err != nil {
		t.Fatal(err)
	}
	if got := r.response(ref); got.Status != queue.Rejected || got.Notes != "use the mirror\n\"quoted\" ü" {
		t.Errorf("response = %+v, want the notes as typed", got)
	}
	r.wantRoutes(baseRoutes)
	// The same question again shows what was decided before.
	again := r.put(egressFor("packages.acme.TEST"))
	it := r.items(d)
	if len(it) != 1 || it[0].ID != again.ID || it[0].Retry == nil || it[0].Retry.ID != ref.ID || it[0].Retry.Status != queue.Rejected {
		t.Errorf("inbox = %+v, want a retry of %s", it, ref)
	}
	if _, err := d.Dismiss(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	if got := r.response(again); got.Notes != DismissNotes {
		t.Errorf("dismissed with %q, want %q", got.Notes, DismissNotes)
	}
	if _, err := d.Dismiss(t.Context(), again, Ref{"web", queue.NewID()}); !errors.Is(err, ErrNotFound) || !isDecided(err, "ann@host") {
		t.Errorf("dismissing a decided and an unknown one: %v, want both errors", err)
	}
}

// TestNotesThatAreNotUTF8: a note from a terminal with another encoding reaches the agent at once, with what can be sent of it.
func TestNotesThatAreNotUTF8(t *testing.T) {
	r := newRig(t)
	d := r.desk("ann@host")
	ref := r.put(egressFor("packages.acme.test", "/"))
	p := r.show(d, ref)
	if _, err := d.Approve(t.Context(), ref, Decision{Digest: p.Digest, Accept: p.Dangers(), Notes: "caf\xe9"}); err != nil {
		t.Error(err)
	}
	if got := r.response(ref); got == nil || got.Status != queue.Approved || got.Notes != "caf\ufffd" {
		t.Errorf("response = %+v", got)
	}
	ref = r.put(egressFor("b.example.com", "/"))
	if _, err := d.Reject(t.Context(), ref, "caf\xe9"); err != nil {
		t.Error(err)
	}
	if got := r.response(ref); got == nil || got.Status != queue.Rejected || got.Notes != "caf\ufffd" {
		t.Errorf("response = %+v", got)
	}
	r.audit(d)
}

// Another program's answer is final: before we decide, and between our applying and our answering.
func TestForeign(t *testing.T) {
	t.Run("before", func(t *testing.T) {
		r := newRig(t)
		d := r.desk("ann@host")
		ref := r.put(egressFor("packages.acme.test"))
		p := r.show(d, ref)
		r.respond(ref, queue.Rejected, "no")
		if _, err := d.Approve(t.Context(), ref, Decision{Digest: p.Digest, Accept: p.Dangers()}); !isDecided(err, "") {
			t.Errorf("approving: %v, want decided by another program", err)
		}
		r.wantRoutes(baseRoutes)
		if ev := r.events(d, ref); !slices.Equal(ev, []string{EventForeign}) {
			t.Errorf("ledger has %v", ev)
		}
	})
	t.Run("seen in the inbox", func(t *testing.T) {
		r := newRig(t)
		d := r.desk("ann@host")
		ref := r.put(egressFor("packages.acme.test"))
		r.respond(ref, queue.Approved, "")
		for range 3 {
			if it := r.items(d); len(it) != 0 {
				t.Errorf("inbox = %+v", it)
			}
		}
		if ev := r.events(d, ref); !slices.Equal(ev, []string{EventForeign}) {
			t.Errorf("ledger has %v, want it once", ev)
		}
	})
	t.Run("while we apply", func(t *testing.T) {
		r := newRig(t)
		ref := r.put(egressFor("packages.acme.test"))
		d := r.desk("ann@host")
		r.step = func(name string) error {
			if name == "respond" {
				r.respond(ref, queue.Rejected, "no")
			}
			return nil
		}
		_, err := r.approve(d, ref)
		if !isDecided(err, "") {
			t.Errorf("approving: %v, want decided by another program", err)
		}
		r.wantRoutes(baseRoutes)
		if ev := r.events(d, ref); !slices.Equal(ev, []string{EventDecided, EventApplied, EventForeign}) {
			t.Errorf("ledger has %v", ev)
		}
		if got := r.response(ref); got.Status != queue.Rejected || got.Notes != "no" {
			t.Errorf("response = %+v, want the other's", got)
		}
		if left, _ := d.store.unfinished(); len(left) != 0 {
			t.Errorf("unfinished: %v", left)
		}
	})
}

// TestForeignAlike: an answer that has not all of ours is another program's, and what it stands for was not applied by us.
func TestForeignAlike(t *testing.T) {
	for _, tt := range []struct {
		what   string
		change func(resp *queue.Response)
		ours   bool
	}{
		{"nothing", func(*queue.Response) {}, true},
		{"the status", func(resp *queue.Response) { resp.Status = queue.Modified }, false},
		{"the notes", func(resp *queue.Response) { resp.Notes = "all yours" }, false},
		{"the final file", func(resp *queue.Response) { resp.FinalFile = `{"host":"evil.example"}` }, false},
		{"the digest", func(resp *queue.Response) { resp.Digest = "" }, false},
		{"the time", func(resp *queue.Response) { resp.DecidedAt = resp.DecidedAt.Add(time.Second) }, false},
	} {
		t.Run(tt.what, func(t *testing.T) {
			r := newRig(t)
			ref := r.put(egressFor("packages.acme.test"))
			d := r.desk("ann@host")
			var after string
			r.step = func(name string) error {
				if name != "respond" {
					return nil
				}
				after = string(read(t, r.routes))
				rec, err := d.store.record(ref)
				if err != nil {
					return err
				}
				resp := rec.response()
				tt.change(&resp)
				return r.inbox.Respond(t.Context(), ref.Bottle, resp)
			}
			_, err := r.approve(d, ref)
			rec, rerr := d.store.record(ref)
			if rerr != nil {
				t.Fatal(rerr)
			}
			if tt.ours {
				if err != nil || rec.State != Answered {
					t.Errorf("approving: %v, record %s; want our own answer known", err, rec.State)
				}
				r.wantRoutes(after)
				return
			}
			if !isDecided(err, "") || rec.State != Foreign {
				t.Errorf("approving: %v, record %s; want decided by another program", err, rec.State)
			}
			r.wantRoutes(baseRoutes)
		})
	}
}

// TestForeignAfterACrash: another program answers what an interrupted decision left, before and after it was written.
func TestForeignAfterACrash(t *testing.T) {
	for _, at := range []string{"egress.write", "egress.verify"} {
		t.Run(at, func(t *testing.T) {
			r := newRig(t)
			ref := r.put(egressFor("packages.acme.test"))
			d := r.desk("ann@host")
			dead := false
			r.step = func(name string) error {
				if dead = dead || name == at; dead {
					return errCrash
				}
				return nil
			}
			if _, err := r.approve(d, ref); !errors.Is(err, errCrash) {
				t.Fatalf("approving: %v, want it interrupted", err)
			}
			r.step = nil
			r.respond(ref, queue.Rejected, "no")
			got, err := r.desk("bob@host").Recover(t.Context())
			if err != nil || len(got) != 1 || got[0].State != Foreign {
				t.Errorf("Recover = %+v, %v; want another program's", got, err)
			}
			r.wantRoutes(baseRoutes)
			if ev := r.events(d, ref); !slices.Equal(ev, []string{EventDecided, EventForeign}) {
				t.Errorf("ledger has %v", ev)
			}
		})
	}
}

// TestAnswerRemoved: a hostile sidecar that removes an answer does not get its proposal open again.
func TestAnswerRemoved(t *testing.T) {
	for _, undone := range []bool{false, true} {
		r := newRig(t)
		ref := r.put(egressFor("packages.acme.test"))
		d := r.desk("ann@host")
		p := r.show(d, ref)
		if _, err := r.approve(d, ref); err != nil {
			t.Fatal(err)
		}
		if undone {
			if _, err := d.Undo(t.Context(), ref, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Remove(filepath.Join(r.root, "web", string(ref.ID)+".response.json")); err != nil {
			t.Fatal(err)
		}
		r.openInbox() // which has not seen it
		d = r.desk("bob@host")
		was := string(read(t, r.routes))
		if it := r.items(d); len(it) != 0 {
			t.Errorf("undone %v: inbox = %+v, want nothing open", undone, it)
		}
		if s := r.show(d, ref); s.State != Decided || s.Decision == nil || s.Decision.By != "ann@host" {
			t.Errorf("undone %v: it shows %s, %+v", undone, s.State, s.Decision)
		}
		if _, err := d.Approve(t.Context(), ref, Decision{Digest: p.Digest, Accept: p.Dangers()}); !isDecided(err, "ann@host") {
			t.Errorf("undone %v: approving: %v, want decided", undone, err)
		}
		if _, err := d.Reject(t.Context(), ref, ""); !isDecided(err, "ann@host") {
			t.Errorf("undone %v: rejecting: %v, want decided", undone, err)
		}
		r.wantRoutes(was)
	}
}

// TestEditedBackup: a file is never restored from a backup that is not what was kept.
func TestEditedBackup(t *testing.T) {
	r := newRig(t)
	ref := r.put(egressFor("packages.acme.test"))
	d := r.desk("ann@host")
	if _, err := r.approve(d, ref); err != nil {
		t.Fatal(err)
	}
	after := string(read(t, r.routes))
	backup := filepath.Join(r.root, ".desk", "web", string(ref.ID)+".1.egress")
	if string(read(t, backup)) != baseRoutes {
		t.Fatalf("the backup is not what the file was")
	}
	r.write(backup, "routes: [{host: evil.example}]\n")
	if _, err := d.Undo(t.Context(), ref, nil); err == nil || !strings.Contains(err.Error(), "the backup of "+r.routes+" has hash ") {
		t.Errorf("undoing with an edited backup: %v", err)
	}
	r.wantRoutes(after)
}

// TestRecoverLeavesTheBusy: a bottle that somebody decides for is left to it, and in no other's way.
func TestRecoverLeavesTheBusy(t *testing.T) {
	r := newRig(t)
	d := r.desk("ann@host")
	busy, free := r.put(egressFor("a.example.com", "/")), r.putFor("api")(egressFor("b.example.com", "/"))
	for _, ref := range []Ref{busy, free} {
		r.step = func(name string) error {
			if name == "respond" {
				return errCrash
			}
			return nil
		}
		if _, err := r.approve(d, ref); !errors.Is(err, errCrash) {
			t.Fatalf("approving: %v, want it interrupted", err)
		}
	}
	r.step = nil
	unlock, err := d.lockBottle(t.Context(), "web", "looking", nil)
	if err != nil {
		t.Fatal(err)
	}
	bob := r.desk("bob@host")
	if got, err := bob.Recover(t.Context()); err != nil || len(got) != 1 || got[0].Ref != free {
		t.Errorf("Recover = %+v, %v; want the other bottle's alone", got, err)
	}
	unlock()
	if got, err := bob.Recover(t.Context()); err != nil || len(got) != 1 || got[0].Ref != busy {
		t.Errorf("Recover = %+v, %v; want it when nobody is busy with it", got, err)
	}
}

// What a hostile sidecar answers in the operator's place costs the desk little: a bounded number of bounded records, and what
// is not recorded is said.
func TestForeignIsBounded(t *testing.T) {
	r := newRig(t)
	d := r.desk("ann@host")
	long := strings.Repeat("é\x00\u202e", 25_000) // escaped it is over what a ledger line holds
	file := "FROM debian:12\n# " + strings.Repeat("x", 100_000)
	answer := func(n int) (refs []Ref) {
		for range n {
			ref := r.putRaw(payload.Capability, file, "the build needs it")
			if err := r.inbox.Respond(t.Context(), "web", queue.Response{ProposalID: ref.ID, Status: queue.Modified, Notes: long, FinalFile: file}); err != nil {
				t.Fatal(err)
			}
			refs = append(refs, ref)
		}
		return refs
	}
	look := func(recorded, problems int) []Problem {
		t.Helper()
		s, err := d.Snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Items) != 0 || len(s.Problems) != problems {
			t.Errorf("%d items, problems %+v; want none, and %d", len(s.Items), s.Problems, problems)
		}
		n := 0
		for e, err := range d.History(t.Context(), HistoryFilter{}) {
			if err != nil {
				t.Fatal(err)
			}
			if n++; e.Event != EventForeign || len(e.Notes) > 5000 || !strings.Contains(e.Notes.Raw(), "bytes more") {
				t.Errorf("%s has notes of %d bytes", e.Event, len(e.Notes))
			}
		}
		records, err := filepath.Glob(filepath.Join(r.root, ".desk", "web", "*-*.json"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range records {
			if size := len(read(t, name)); size > 64<<10 {
				t.Errorf("%s has %d bytes", name, size)
			}
		}
		if n != recorded || len(records) != recorded {
			t.Errorf("%d ledger lines and %d records, want %d", n, len(records), recorded)
		}
		return s.Problems
	}

	refs := answer(maxForeign + 5)
	r.step = func(name string) error {
		if name == "ledger foreign" {
			return errCrash
		}
		return nil
	}
	if p := look(0, 1); len(p) > 0 && !strings.Contains(p[0].Text.Raw(), errCrash.Error()) {
		t.Errorf("problem %+v, want why nothing is recorded", p)
	}
	r.step = nil
	look(maxForeign, 0)
	look(maxForeign+5, 0)
	look(maxForeign+5, 0)
	if rec, err := d.store.record(refs[0]); err != nil || rec.State != Foreign || rec.Status != queue.Modified || !strings.HasPrefix(rec.Notes.Raw(), "é") {
		t.Errorf("record = %+v, %v", rec, err)
	}

	if err := d.store.countForeign("web", maxForeignDay-2); err != nil {
		t.Fatal(err)
	}
	answer(5)
	for range 2 {
		if p := look(maxForeign+7, 1); len(p) > 0 && (!strings.Contains(p[0].Text.Raw(), "3 answers of another program are not recorded") || !p[0].Aside) {
			t.Errorf("problem %+v, want one behind which nothing open hides", p)
		}
	}
	r.write(filepath.Join(r.root, ".desk", "web", "foreign.json"), `{"day":"2026-01-01","n":200}`)
	look(maxForeign+10, 0)
	r.audit(d)
}

// A tool's name may be a megabyte long, and notes too: deciding is recorded all the same.
func TestLedgerLineIsBounded(t *testing.T) {
	r := newRig(t)
	d := r.desk("ann@host")
	ref := r.putRaw(strings.Repeat("tool", 100_000), "x", "y")
	if _, err := d.Reject(t.Context(), ref, strings.Repeat("no ", 100_000)); err != nil {
		t.Fatal(err)
	}
	if resp := r.response(ref); resp == nil || len(resp.Notes) != 300_000 {
		t.Errorf("response = %+.100v, want all of the notes", resp)
	}
	if ev := r.events(d, ref); !slices.Equal(ev, []string{EventDecided}) {
		t.Errorf("ledger has %v", ev)
	}
	r.audit(d)
}

func TestTwoOperators(t *testing.T) {
	r := newRig(t)
	for round := range 100 {
		ref := r.put(egressFor(fmt.Sprintf("h%d.example.com", round), "/x"))
		desks := []*Desk{r.desk("ann@host"), r.desk("bob@host")}
		errs := make([]error, 2)
		digest := r.show(desks[0], ref)
		var wg sync.WaitGroup
		for i, d := range desks {
			wg.Go(func() {
				_, errs[i] = d.Approve(t.Context(), ref, Decision{Digest: digest.Digest, Accept: digest.Dangers()})
			})
		}
		wg.Wait()
		won := slices.IndexFunc(errs, func(err error) bool { return err == nil })
		if won < 0 || !isDecided(errs[1-won], desks[won].opts.By) {
			t.Fatalf("round %d: %v, want one to win and the other to learn who", round, errs)
		}
		if ev := r.events(desks[0], ref); !slices.Equal(ev, []string{EventDecided, EventApplied}) {
			t.Fatalf("round %d: ledger has %v, want one apply", round, ev)
		}
		if n := strings.Count(string(read(t, r.routes)), fmt.Sprintf("h%d.example.com", round)); n != 1 {
			t.Fatalf("round %d: the route is there %d times", round, n)
		}
		if err := r.box.Archive(t.Context(), ref.ID); err != nil {
			t.Fatal(err)
		}
	}
	r.audit(r.desk("ann@host"))
}

// checkRecovered says what must hold whenever a decision was interrupted, wherever that was.
func checkRecovered(t *testing.T, r *rig, ref Ref, where string) {
	t.Helper()
	d := r.desk("eve@host")
	if _, err := d.Recover(t.Context()); err != nil {
		t.Fatalf("%s: recovering: %v", where, err)
	}
	rec, err := d.store.record(ref)
	if err != nil {
		t.Fatalf("%s: %v", where, err)
	}
	resp, file, gate := r.response(ref), string(read(t, r.routes)), ""
	if r.gate != "" {
		gate = string(read(t, r.gate))
	}
	switch {
	case rec.open():
		if resp != nil || file != baseRoutes || r.gate != "" && gate != baseGate {
			t.Fatalf("%s: open again, but response = %+v, routes.yaml is\n%s\nand pipelock.yaml\n%s", where, resp, file, gate)
		}
		if n := len(r.items(d)); n != 1 {
			t.Fatalf("%s: open again, but the inbox has %d items", where, n)
		}
		if _, err := r.approve(d, ref); err != nil {
			t.Fatalf("%s: approving again: %v", where, err)
		}
	case rec.State == Answered:
		if resp == nil || resp.Status != queue.Approved || resp.Outcome != queue.Live || !strings.Contains(file, "packages.acme.test") || r.gate != "" && !strings.Contains(gate, "packages.acme.test") {
			t.Fatalf("%s: answered, but response = %+v, routes.yaml is\n%s\nand pipelock.yaml\n%s", where, resp, file, gate)
		}
	default:
		t.Fatalf("%s: state %s after recovery", where, rec.State)
	}
	if resp := r.response(ref); resp == nil || resp.Status != queue.Approved {
		t.Fatalf("%s: in the end response = %+v", where, resp)
	}
	if n := strings.Count(string(read(t, r.routes)), "packages.acme.test"); n != 1 {
		t.Fatalf("%s: the route is there %d times", where, n)
	}
	if r.gate != "" && strings.Count(string(read(t, r.gate)), "packages.acme.test") != 1 {
		t.Fatalf("%s: in the end pipelock.yaml is\n%s", where, read(t, r.gate))
	}
	ev := r.events(d, ref)
	if ev[len(ev)-1] != EventApplied || ev[0] != EventDecided {
		t.Fatalf("%s: ledger has %v", where, ev)
	}
	for i, e := range ev { // decided, then failed or applied, in turn
		if (i%2 == 0) != (e == EventDecided) {
			t.Fatalf("%s: ledger has %v", where, ev)
		}
	}
	r.audit(d)
	if left, err := d.store.unfinished(); err != nil || len(left) != 0 {
		t.Fatalf("%s: unfinished: %v, %v", where, left, err)
	}
}

// TestCrashAtEveryStep ends approving before each durable step, once without and once with the steps of recovery
// failing in turn too.
func TestCrashAtEveryStep(t *testing.T) {
	t.Run("egress", func(t *testing.T) { testCrashAtEveryStep(t, newRig) })
	t.Run("pipelock and egress", func(t *testing.T) {
		testCrashAtEveryStep(t, func(t testing.TB) *rig { return newRig(t).gated() })
	})
}

func testCrashAtEveryStep(t *testing.T, newRig func(testing.TB) *rig) {
	var steps []string
	for n := 1; ; n++ {
		r := newRig(t)
		ref := r.put(egressFor("packages.acme.test", "/"))
		d := r.desk("ann@host")
		p := r.show(d, ref)
		var names []string
		r.step = crashAt(n, &names)
		_, err := d.Approve(t.Context(), ref, Decision{Digest: p.Digest, Accept: p.Dangers()})
		where := fmt.Sprintf("crash at step %d of %q", n, names)
		if err == nil && len(names) < n {
			steps = names
			break
		}
		if n > 60 {
			t.Fatal("approving takes more than 60 steps")
		}
		r.step = nil
		checkRecovered(t, r, ref, where)
	}
	if len(steps) < 10 {
		t.Errorf("only %d steps were interrupted: %q", len(steps), steps)
	}
	t.Logf("%d steps: %q", len(steps), steps)
	for n := 1; n <= len(steps); n++ { // crash again while recovering
		for m := 1; m <= 12; m++ {
			r := newRig(t)
			ref := r.put(egressFor("packages.acme.test", "/"))
			d := r.desk("ann@host")
			p := r.show(d, ref)
			r.step = crashAt(n, nil)
			_, _ = d.Approve(t.Context(), ref, Decision{Digest: p.Digest, Accept: p.Dangers()})
			var again []string
			r.step = crashAt(m, &again)
			_, _ = r.desk("dan@host").Recover(t.Context())
			done := len(again) < m
			r.step = nil
			checkRecovered(t, r, ref, fmt.Sprintf("crash at step %d (%s), then at %d of recovery %q", n, steps[n-1], m, again))
			if done {
				break
			}
		}
	}
}

// TestCrashAndAnotherDecides: a command that was waiting for the bottle, or for a file that two bottles share, when another one
// died has looked for what is unfinished before that. What it changes must not make the dead one's file look as if a person had
// edited it.
func TestCrashAndAnotherDecides(t *testing.T) {
	t.Run("same bottle", func(t *testing.T) { testCrashAndAnotherDecides(t, "web") })
	t.Run("same file", func(t *testing.T) { testCrashAndAnotherDecides(t, "api") })
}

func testCrashAndAnotherDecides(t *testing.T, bottle string) {
	for _, what := range []string{"approve", "undo"} {
		for n := 1; ; n++ {
			r := newRig(t)
			first := r.putFor(bottle)(egressFor("gomods.acme.test", "/"))
			ref := r.put(egressFor("packages.acme.test", "/"))
			second := r.putFor(bottle)(egressFor("crates.io", "/"))
			d, other := r.desk("ann@host"), r.desk("dan@host")
			if _, err := r.approve(d, first); err != nil {
				t.Fatal(err)
			}
			p := r.show(d, ref)
			var names []string
			r.step = crashAt(n, &names)
			_, err := d.Approve(t.Context(), ref, Decision{Digest: p.Digest, Accept: p.Dangers()})
			r.step = nil
			if err == nil && len(names) < n {
				break
			}
			where := fmt.Sprintf("crash at step %d of %q, then %s", n, names, what)
			if what == "approve" {
				_, err = r.approve(other, second)
			} else {
				_, err = other.Undo(t.Context(), first, nil)
			}
			if err != nil {
				t.Fatalf("%s: %v", where, err)
			}
			if _, err := r.desk("eve@host").Recover(t.Context()); err != nil {
				t.Errorf("%s: Recover: %v", where, err)
			}
			for _, it := range r.items(other) {
				if it.ID == ref.ID && it.State != Open && it.State != Failed {
					t.Errorf("%s: it is %s: %s", where, it.State, it.Error)
				}
			}
			answered := r.response(ref) != nil
			if has := strings.Contains(string(read(t, r.routes)), "packages.acme.test"); has != answered {
				t.Errorf("%s: the route is there: %v, the agent has its answer: %v", where, has, answered)
			}
			r.audit(other)
		}
	}
}

// TestKilledAtEveryStep is the same with a real process and a real SIGKILL, where nothing deferred runs.
func TestKilledAtEveryStep(t *testing.T) {
	if n := os.Getenv("OPERATOR_TEST_KILL_AT"); n != "" {
		killedChild(t, n)
		return
	}
	t.Run("egress", func(t *testing.T) { testKilledAtEveryStep(t, newRig) })
	t.Run("pipelock and egress", func(t *testing.T) {
		testKilledAtEveryStep(t, func(t testing.TB) *rig { return newRig(t).gated() })
	})
}

func testKilledAtEveryStep(t *testing.T, newRig func(testing.TB) *rig) {
	for n := 1; ; n++ {
		r := newRig(t)
		ref := r.put(egressFor("packages.acme.test", "/"))
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledAtEveryStep$")
		cmd.Env = append(os.Environ(), "OPERATOR_TEST_KILL_AT="+strconv.Itoa(n), "OPERATOR_TEST_ROOT="+r.root, "OPERATOR_TEST_ROUTES="+r.routes, "OPERATOR_TEST_URL="+r.proxy.URL, "OPERATOR_TEST_ID="+string(ref.ID), "OPERATOR_TEST_GATE="+r.gate)
		out, err := cmd.CombinedOutput()
		if err == nil {
			if n < 10 {
				t.Errorf("the child finished at step %d: it was never killed late", n)
			}
			break
		}
		if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
			t.Fatalf("kill at %d: the child ended with %v:\n%s", n, err, out)
		}
		checkRecovered(t, r, ref, fmt.Sprintf("killed at step %d", n))
	}
}

func killedChild(t *testing.T, at string) {
	n, err := strconv.Atoi(at)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, root: os.Getenv("OPERATOR_TEST_ROOT"), routes: os.Getenv("OPERATOR_TEST_ROUTES")}
	r.cfg.Egress = newEgress(r.routes, os.Getenv("OPERATOR_TEST_URL"))
	if gate := os.Getenv("OPERATOR_TEST_GATE"); gate != "" {
		r.cfg.Pipelock = &config.Pipelock{File: gate}
	}
	r.openInbox()
	d := r.desk("ann@host")
	ref := Ref{"web", queue.ID(os.Getenv("OPERATOR_TEST_ID"))}
	p := r.show(d, ref)
	r.step = func(string) error {
		if n--; n == 0 {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		return nil
	}
	if _, err := d.Approve(t.Context(), ref, Decision{Digest: p.Digest, Accept: p.Dangers()}); err != nil {
		t.Fatal(err)
	}
}

// Somebody edits the file after we were interrupted: nothing is touched, and a person is asked.
func TestStuck(t *testing.T) {
	r := newRig(t)
	ref := r.put(egressFor("packages.acme.test", "/"))
	other := r.put(egressFor("a.example.com"))
	d := r.desk("ann@host")
	p := r.show(d, ref)
	r.step = func(name string) error {
		if name == "egress.verify" || name == "record failed" || name == "ledger failed" {
			return errCrash
		}
		return nil
	}
	if _, err := d.Approve(t.Context(), ref, Decision{Digest: p.Digest, Accept: p.Dangers()}); !errors.Is(err, errCrash) {
		t.Fatalf("approving: %v, want it interrupted", err)
	}
	r.step = nil
	edited := string(read(t, r.routes)) + "# and I was here\n"
	r.write(r.routes, edited)
	done, err := d.Recover(t.Context())
	if err != nil || len(done) != 1 || done[0].State != RecordStuck {
		t.Fatalf("Recover = %+v, %v, want it stuck", done, err)
	}
	r.wantRoutes(edited)
	it := r.items(d)
	if len(it) != 2 || it[0].ID != ref.ID || it[0].State != Stuck || it[1].ID != other.ID {
		t.Fatalf("inbox = %+v, want the stuck one first", it)
	}
	// The file has the route already, by our own hand or another's: approving again answers.
	res, err := r.approve(d, ref)
	if err != nil || res.Outcome != queue.Unchanged {
		t.Errorf("approving again = %+v, %v, want unchanged", res, err)
	}
	r.wantRoutes(edited)
}

func TestUndo(t *testing.T) {
	r := newRig(t)
	d := r.desk("ann@host")
	ref := r.put(egressFor("packages.acme.test", "/"))
	if _, err := d.Undo(t.Context(), ref, nil); !errors.Is(err, ErrNotUndoable) {
		t.Errorf("undoing an open one: %v", err)
	}
	if _, err := r.approve(d, ref); err != nil {
		t.Fatal(err)
	}
	r.write(r.routes, string(read(t, r.routes))+"  - host: later.example.com\n") // meanwhile
	if _, err := d.Undo(t.Context(), ref, nil); err != nil {
		t.Fatal(err)
	}
	r.wantRoutes(baseRoutes + "  - host: later.example.com\n")
	if e, err := r.box.Get(t.Context(), ref.ID); err != nil || time.Since(e.Undone).Abs() > time.Minute {
		t.Errorf("the sidecar has %+v, %v; want that it was taken back", e, err)
	}
	if _, err := d.Undo(t.Context(), ref, nil); !errors.Is(err, ErrNotUndoable) {
		t.Errorf("undoing twice: %v", err)
	}
	if ev := r.events(d, ref); !slices.Equal(ev, []string{EventDecided, EventApplied, EventUndone}) {
		t.Errorf("ledger has %v", ev)
	}
	r.audit(d)

	ref = r.put(egressFor("packages.acme.test", "/"))
	if _, err := r.approve(d, ref); err != nil {
		t.Fatal(err)
	}
	edited := strings.Replace(string(read(t, r.routes)), "packages.acme.test", "PACKAGES.acme.test", 1)
	edited = strings.Replace(edited, "later.example.com", "much-later.example.com", 1)
	edited = strings.Replace(edited, `"/"`, `"/x"`, 1)
	edited = strings.Replace(edited, "- /\n", "- /x\n", 1)
	r.write(r.routes, edited)
	if _, err := d.Undo(t.Context(), ref, nil); err == nil {
		t.Error("an entry that somebody edited was undone")
	}
	r.wantRoutes(edited)
	if e, err := r.box.Get(t.Context(), ref.ID); err != nil || !e.Undone.IsZero() {
		t.Errorf("the sidecar has %+v, %v; want it in force", e, err)
	}

	no := r.put(egressFor("b.example.com"))
	if _, err := d.Reject(t.Context(), no, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Undo(t.Context(), no, nil); !errors.Is(err, ErrNotUndoable) {
		t.Errorf("undoing a rejection: %v", err)
	}
}

// TestUndoneIsNotTold: an operator hears that an agent may still be told of the approval.
func TestUndoneIsNotTold(t *testing.T) {
	r := newRig(t)
	d := r.desk("ann@host")
	ref := r.put(egressFor("packages.acme.test", "/"))
	if _, err := r.approve(d, ref); err != nil {
		t.Fatal(err)
	}
	r.write(filepath.Join(r.root, "web", string(ref.ID)+".proposal.json"), "{") // a hostile sidecar's
	res, err := d.Undo(t.Context(), ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := "an agent that asks for this answer again hears that it was approved: "; !strings.HasPrefix(res.Notes[len(res.Notes)-1], want) {
		t.Errorf("notes %q, want %q and why", res.Notes, want)
	}
	r.wantRoutes(baseRoutes)
}

// TestRetryAfterUndo: of the same question it is said that what was approved was undone, and by whom; but not once it was decided again.
func TestRetryAfterUndo(t *testing.T) {
	r := newRig(t)
	d := r.desk("ann@host")
	retry := func(want queue.Status, by string, of Ref) Ref {
		t.Helper()
		ref := r.put(egressFor("packages.acme.test", "/"))
		if was := r.show(d, ref).Retry; was == nil || was.Status != want || was.By != by || was.ID != of.ID || was.At.IsZero() {
			t.Errorf("asked again: %+v, want %s by %s", was, want, by)
		}
		return ref
	}
	first := r.put(egressFor("packages.acme.test", "/"))
	if _, err := r.approve(d, first); err != nil {
		t.Fatal(err)
	}
	second := retry(queue.Approved, "ann@host", first)
	if _, err := d.Reject(t.Context(), second, ""); err != nil {
		t.Fatal(err)
	}
	third := retry(queue.Rejected, "ann@host", second)
	if _, err := r.desk("bob@host").Undo(t.Context(), first, nil); err != nil {
		t.Fatal(err)
	}
	retry(queue.Rejected, "ann@host", second)
	if _, err := r.approve(d, third); err != nil {
		t.Fatal(err)
	}
	if _, err := r.desk("bob@host").Undo(t.Context(), third, nil); err != nil {
		t.Fatal(err)
	}
	retry(StatusUndone, "bob@host", third)
}

// A hostile sidecar puts something that is no response in the response's place. Nothing is applied then; and if it comes while we apply,
// the operator can take the change back.
func TestResponseInTheWay(t *testing.T) {
	way := func(r *rig, ref Ref) string {
		return filepath.Join(r.root, "web", string(ref.ID)+".response.json")
	}
	inTheWay := func(t *testing.T, r *rig, ref Ref, err error, decided queue.Status) {
		t.Helper()
		e, ok := errors.AsType[*InTheWayError](err)
		if !ok || e.File != way(r, ref) || e.Decided != decided {
			t.Errorf("error %v, want that %s is in the way", err, way(r, ref))
		}
	}
	for _, put := range []struct {
		name string
		in   func(path string) error
	}{
		{"fifo", func(path string) error { return syscall.Mkfifo(path, 0o600) }},
		{"directory", func(path string) error { return os.Mkdir(path, 0o700) }},
		{"link", func(path string) error { return os.Symlink("/dev/zero", path) }},
		{"no JSON", func(path string) error { return os.WriteFile(path, []byte("{"), 0o600) }},
	} {
		t.Run(put.name+" before", func(t *testing.T) {
			r := newRig(t)
			d := r.desk("ann@host")
			ref := r.put(egressFor("packages.acme.test", "/"))
			seen := r.show(d, ref)
			if err := put.in(way(r, ref)); err != nil {
				t.Fatal(err)
			}
			if p := r.show(d, ref); !strings.Contains(p.Blocked, "is in the way") {
				t.Errorf("blocked: %q", p.Blocked)
			}
			_, err := d.Approve(t.Context(), ref, Decision{Digest: seen.Digest, Accept: seen.Dangers()})
			inTheWay(t, r, ref, err, "")
			_, err = d.Reject(t.Context(), ref, "")
			inTheWay(t, r, ref, err, "")
			r.wantRoutes(baseRoutes)
			if done, err := d.Recover(t.Context()); len(done) != 0 || err != nil {
				t.Errorf("Recover = %+v, %v; want nothing to do", done, err)
			}
			if ev := r.events(d, ref); len(ev) != 0 {
				t.Errorf("ledger has %v", ev)
			}
			if err := os.Remove(way(r, ref)); err != nil {
				t.Fatal(err)
			}
			if _, err := r.approve(d, ref); err != nil {
				t.Error(err)
			}
		})
		t.Run(put.name+" while we apply", func(t *testing.T) {
			r := newRig(t)
			d := r.desk("ann@host")
			ref, other := r.put(egressFor("packages.acme.test", "/")), r.put(egressFor("b.example.com", "/"))
			r.step = func(name string) error {
				if name == "respond" {
					return errors.Join(put.in(way(r, ref)), put.in(way(r, other)))
				}
				return nil
			}
			_, err := r.approve(d, ref)
			inTheWay(t, r, ref, err, queue.Approved)
			r.step = nil
			for range 2 {
				done, err := d.Recover(t.Context())
				inTheWay(t, r, ref, err, queue.Approved)
				if len(done) != 0 || strings.Contains(err.Error(), "\n") {
					t.Errorf("Recover = %+v, %q; want one line", done, err)
				}
			}
			if it := r.items(d); len(it) != 2 || it[0].State != Deciding {
				t.Errorf("inbox = %+v", it)
			}
			bob := r.desk("bob@host")
			if _, err := bob.Undo(t.Context(), ref, nil); err != nil {
				t.Fatal(err)
			}
			r.wantRoutes(baseRoutes)
			rec, err := d.store.record(ref)
			if err != nil || rec.State != RecordFailed || rec.UndoneBy != "bob@host" || rec.Error != "approved by ann@host, and taken back by bob@host before its agent was told" {
				t.Errorf("record = %+v, %v", rec, err)
			}
			if done, err := d.Recover(t.Context()); len(done) != 0 || err != nil {
				t.Errorf("Recover = %+v, %v; want nothing to do", done, err)
			}
			if err := os.Remove(way(r, ref)); err != nil {
				t.Fatal(err)
			}
			if _, err := d.Undo(t.Context(), ref, nil); !errors.Is(err, ErrNotUndoable) {
				t.Errorf("undoing twice: %v", err)
			}
			if _, err := d.Reject(t.Context(), ref, "no"); err != nil {
				t.Error(err)
			}
			if ev := r.events(d, ref); !slices.Equal(ev, []string{EventDecided, EventApplied, EventUndone, EventDecided}) {
				t.Errorf("ledger has %v", ev)
			}
			if resp := r.response(ref); resp == nil || resp.Status != queue.Rejected {
				t.Errorf("response = %+v", resp)
			}
			r.audit(d)
		})
	}
}

// TestTakingBackThatFails: an unanswered change that cannot be taken back yet, so that nothing was touched, can be later.
func TestTakingBackThatFails(t *testing.T) {
	r := newRig(t)
	d := r.desk("ann@host")
	first, second := r.put(egressFor("packages.acme.test", "/a/")), r.put(egressFor("packages.acme.test", "/b/"))
	path := filepath.Join(r.root, "web", string(first.ID)+".response.json")
	r.step = func(name string) error {
		if name == "respond" {
			return os.Mkdir(path, 0o700)
		}
		return nil
	}
	if _, err := r.approve(d, first); err == nil {
		t.Fatal("approved with something in the way")
	}
	r.step = nil
	if _, err := r.approve(d, second); err != nil {
		t.Fatal(err)
	}
	both := string(read(t, r.routes))
	if _, err := d.Undo(t.Context(), first, nil); err == nil {
		t.Error("undone, though the entry was widened since")
	}
	r.wantRoutes(both)
	ctx, cancel := context.WithCancel(t.Context())
	unlock, err := r.hand().Lock(t.Context(), []string{r.routes})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := d.Undo(ctx, first, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("undoing while the file is locked: %v", err)
	}
	unlock()
	if done, err := d.Recover(t.Context()); len(done) != 0 || err == nil {
		t.Errorf("Recover = %+v, %v; want something in the way still", done, err)
	}
	if rec, err := d.store.record(first); err != nil || rec.State != Applied {
		t.Errorf("record = %+v, %v; want it applied still", rec, err)
	}
	for _, ref := range []Ref{second, first} {
		if _, err := d.Undo(t.Context(), ref, nil); err != nil {
			t.Error(err)
		}
	}
	r.wantRoutes(baseRoutes)
	if rec, err := d.store.record(first); err != nil || rec.State != RecordFailed {
		t.Errorf("record = %+v, %v; want it open again", rec, err)
	}
	r.audit(d)
}

// Killed at any step of taking an unanswered change back: in the end it is in force and answered, or taken back and open.
func TestCrashInTakingBack(t *testing.T) {
	for n := 1; ; n++ {
		r := newRig(t)
		ref := r.put(egressFor("packages.acme.test", "/"))
		path := filepath.Join(r.root, "web", string(ref.ID)+".response.json")
		r.step = func(name string) error {
			if name == "respond" {
				return os.Mkdir(path, 0o700)
			}
			return nil
		}
		if _, err := r.approve(r.desk("ann@host"), ref); err == nil {
			t.Fatal("approved with something in the way")
		}
		after := string(read(t, r.routes))
		r.step = crashAt(n, nil)
		_, err := r.desk("ann@host").Undo(t.Context(), ref, nil)
		r.step = nil
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		d := r.desk("ann@host")
		if _, err := d.Recover(t.Context()); err != nil {
			t.Errorf("step %d: recovering: %v", n, err)
		}
		if resp := r.response(ref); resp != nil {
			r.wantRoutes(after)
		} else {
			r.wantRoutes(baseRoutes)
			if it := r.items(d); len(it) != 1 || it[0].State != Failed {
				t.Errorf("step %d: inbox = %+v", n, it)
			}
		}
		if left, err := d.store.unfinished(); err != nil || len(left) != 0 {
			t.Errorf("step %d: unfinished: %v, %v", n, left, err)
		}
		r.audit(d)
		if err == nil {
			if n < 5 {
				t.Errorf("only %d steps", n)
			}
			return
		}
	}
}

// The agent that waits runs in what replace ends: it must have its answer first.
func TestCapability(t *testing.T) {
	r := newRig(t)
	ran := filepath.Join(r.root, "ran")
	log := func(word string) []string { return []string{"sh", "-c", "echo " + word + " >> " + ran} }
	r.cfg.Capability.Build, r.cfg.Capability.Replace = log("build"), log("replace")
	d := r.desk("ann@host")
	p, err := payload.NewCapability("FROM debian:12\nRUN true\nRUN apt-get install -y jq\n")
	ref := r.put(p, err)
	delivered := make(chan error, 1)
	go func() {
		_, err := r.box.Wait(t.Context(), ref.ID)
		if b, rerr := os.ReadFile(ran); rerr != nil || string(b) != "build\n" {
			err = errors.Join(err, fmt.Errorf("when the answer came %q had run: %v", b, rerr))
		}
		delivered <- errors.Join(err, r.box.Archive(t.Context(), ref.ID))
	}()
	res, err := r.approve(d, ref)
	if err != nil || res.Outcome != queue.Live {
		t.Fatalf("approving = %+v, %v, want live", res, err)
	}
	if err := <-delivered; err != nil {
		t.Error(err)
	}
	if got := string(read(t, ran)); got != "build\nreplace\n" {
		t.Errorf("ran %q, want build, then replace", got)
	}
	if left, _ := d.store.unfinished(); len(left) != 0 {
		t.Errorf("unfinished: %v", left)
	}
	if _, err := d.Undo(t.Context(), ref, nil); err != nil {
		t.Fatal(err)
	}
	if got := string(read(t, r.docker)); got != "FROM debian:12\nRUN true\n" {
		t.Errorf("after undo the Dockerfile is %q", got)
	}

	r.cfg.Capability.Build = []string{"sh", "-c", "echo broken >&2; exit 3"}
	ref = r.put(p, nil)
	var progress strings.Builder
	pre := r.show(d, ref)
	_, err = d.Approve(t.Context(), ref, Decision{Digest: pre.Digest, Accept: pre.Dangers(), Progress: &progress})
	if f, ok := errors.AsType[*apply.Failure](err); !ok || f.Step != "build" {
		t.Errorf("approving what does not build: %v, want a build failure", err)
	}
	if !strings.Contains(progress.String(), "broken") {
		t.Errorf("the build's output did not reach the operator: %q", progress.String())
	}
	if got := string(read(t, r.docker)); got != "FROM debian:12\nRUN true\n" {
		t.Errorf("after a failed build the Dockerfile is %q", got)
	}
}

func TestFind(t *testing.T) {
	r := newRig(t)
	d := r.desk("ann@host")
	a := r.put(egressFor("a.example.com"))
	b := r.put(egressFor("b.example.com"))
	common := 0
	for a.ID[common] == b.ID[common] {
		common++
	}
	if got, err := d.Find(t.Context(), string(a.ID[:common+1])); err != nil || got != a {
		t.Errorf("Find of the shortest unique prefix = %v, %v", got, err)
	}
	if got, err := d.Find(t.Context(), "web/"+strings.ToUpper(string(b.ID))); err != nil || got != b {
		t.Errorf("Find of BOTTLE/ID = %v, %v", got, err)
	}
	_, err := d.Find(t.Context(), string(a.ID[:max(4, common)]))
	if amb, ok := errors.AsType[*AmbiguousError](err); !ok || len(amb.Refs) != 2 {
		t.Errorf("Find of a common prefix: %v, want ambiguous with both", err)
	}
	for _, bad := range []string{"", "abc", "../../etc", "nope/" + string(a.ID), "web/../" + string(a.ID), "zzzzzzzz", "0000\x1b[31m", "00000000"} {
		if ref, err := d.Find(t.Context(), bad); !errors.Is(err, ErrNotFound) {
			t.Errorf("Find(%q) = %v, %v, want not found", bad, ref, err)
		} else if strings.Contains(err.Error(), "\x1b") {
			t.Errorf("Find(%q) says it raw: %q", bad, err)
		}
	}
	if _, err := d.Reject(t.Context(), a, ""); err != nil {
		t.Fatal(err)
	}
	if err := r.box.Archive(t.Context(), a.ID); err != nil {
		t.Fatal(err)
	}
	if got, err := d.Find(t.Context(), string(a.ID[:common+1])); err != nil || got != a {
		t.Errorf("Find of a decided one = %v, %v", got, err)
	}
	if got, err := d.Find(t.Context(), string(a.ID[:max(4, common)])); err != nil || got != b {
		t.Errorf("Find of a prefix that one open proposal has = %v, %v, want the open one", got, err)
	}
}

// TestShowsWhatWasDecided: whatever has become of a decided proposal in its mailbox, what is shown beside the decision is what was decided.
func TestShowsWhatWasDecided(t *testing.T) {
	r := newRig(t)
	d := r.desk("ann@host")
	ref := r.put(egressFor("a.example.com", "/"))
	if _, err := r.approve(d, ref); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(r.root, "web", string(ref.ID)+".proposal.json")
	text := string(read(t, path))
	forge := func(key, value string) string {
		m := map[string]string{}
		if err := json.Unmarshal([]byte(text), &m); err != nil {
			t.Fatal(err)
		}
		m[key] = value
		m["current_file_hash"] = queue.Hash(m["proposed_file"])
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for name, now := range map[string]string{"as it was": text, "another payload": forge("proposed_file", `{"host":"harmless.example"}`), "another justification": forge("justification", "forged"), "no JSON": "{", "gone": ""} {
		if now == "" {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		} else {
			r.write(path, now)
		}
		p, err := d.Show(t.Context(), ref, nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want := safetext.Untrusted("")
		if now == text {
			want = "the build needs it"
		}
		if p.State != Decided || p.Summary != "allow a.example.com /" || p.Justification != want || p.Decision == nil || p.Decision.By != "ann@host" {
			t.Errorf("%s: Show = %+v", name, p)
		}
		r.write(path, text)
	}
	if _, err := d.Undo(t.Context(), ref, nil); err != nil {
		t.Error(err)
	}
}

// TestForgottenIsFound: what was decided for a bottle whose mailbox is gone is shown and taken back by its id, as history has it.
func TestForgottenIsFound(t *testing.T) {
	r := newRig(t)
	d := r.desk("ann@host")
	ref := r.put(egressFor("a.example.com", "/"))
	if _, err := r.approve(d, ref); err != nil {
		t.Fatal(err)
	}
	if err := r.box.Archive(t.Context(), ref.ID); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.box.Close(), d.Forget(t.Context(), "web")); err != nil {
		t.Fatal(err)
	}
	got, err := d.Find(t.Context(), string(ref.ID))
	if err != nil || got != ref {
		t.Fatalf("Find = %v, %v", got, err)
	}
	p := r.show(d, got)
	if p.State != Decided || p.Decision == nil || !p.Decision.Undoable() || p.Summary != "allow a.example.com /" || time.Since(p.ArrivedAt).Abs() > time.Hour {
		t.Errorf("Show = %+v, want a decision that can be undone", p)
	}
	if _, err := d.Undo(t.Context(), got, nil); err != nil {
		t.Error(err)
	}
	r.wantRoutes(baseRoutes)
}

// What is wrong in one mailbox is reported, and in nobody's way.
func TestSnapshotOfHostileMailboxes(t *testing.T) {
	r := newRig(t)
	ref := r.put(egressFor("a.example.com"))
	evil := filepath.Join(r.root, "evil")
	if err := os.Mkdir(evil, 0o700); err != nil {
		t.Fatal(err)
	}
	proposal := read(t, filepath.Join(r.root, "web", string(ref.ID)+".proposal.json"))
	for name, data := range map[string]string{
		string(queue.NewID()) + ".proposal.json": string(proposal), // another's slug and id
		string(queue.NewID()) + ".proposal.json": "{",
		"\x1b]52;c;aGk=\x07.proposal.json":       "{}",
		string(ref.ID) + ".proposal.json": regexp.MustCompile(`"arrived_at": "[^"]*"`).ReplaceAllString(
			strings.Replace(string(proposal), `"web"`, `"evil"`, 1), `"arrived_at": "9999-12-31T23:59:59-14:00"`), // in UTC no time that JSON has
	} {
		r.write(filepath.Join(evil, name), data)
	}
	if err := os.Symlink(r.routes, filepath.Join(evil, string(queue.NewID())+".proposal.json")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(evil, string(queue.NewID())+".proposal.json"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(r.root, "web"), filepath.Join(r.root, "link")); err != nil {
		t.Fatal(err)
	}
	s, err := r.desk("ann@host").Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Items) != 1 || s.Items[0].Ref != ref {
		t.Errorf("items = %+v, want the one of web", s.Items)
	}
	if _, err := json.Marshal(s); err != nil {
		t.Errorf("as JSON: %v", err)
	}
	if len(s.Problems) < 5 {
		t.Errorf("%d problems, want one for each bad file: %+v", len(s.Problems), s.Problems)
	}
	for _, p := range s.Problems {
		if p.Bottle != "evil" || strings.ContainsAny(p.Name.String()+p.Text.String(), "\x1b\x07") {
			t.Errorf("problem %+v", p)
		}
	}
}

// TestConnected: a hint that was written before a call, or while it was being stored, does not make its agent look gone.
func TestConnected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const id = queue.ID("0197f3b2-6d01-7c3a-9b58-3f6f0a2c4d01")
		at := time.Now()
		time.Sleep(3 * time.Second)
		for _, tt := range []struct {
			why  string
			p    queue.Presence
			age  time.Duration
			want Connected
		}{
			{"no hint", queue.Presence{At: at}, time.Minute, Unknown},
			{"counted", queue.Presence{At: at, Known: true, Waiting: map[queue.ID]int{id: 1}}, time.Minute, Waiting},
			{"asked since", queue.Presence{At: at, Known: true}, 2 * time.Second, Waiting},
			{"stored when it was written, not yet waiting", queue.Presence{At: at, Known: true}, 3*time.Second + 100*time.Millisecond, Waiting},
			{"asked before, and not counted", queue.Presence{At: at, Known: true}, 5 * time.Second, Away},
		} {
			if got := connected(tt.p, id, tt.age); got != tt.want {
				t.Errorf("%s: %s, want %s", tt.why, got, tt.want)
			}
		}
	})
}

func TestAbandonedFoldsAway(t *testing.T) {
	r := newRig(t)
	old := r.put(egressFor("a.example.com"))
	path := filepath.Join(r.root, "web", string(old.ID)+".proposal.json")
	ago := time.Now().Add(-80 * time.Hour)
	if err := os.Chtimes(path, ago, ago); err != nil {
		t.Fatal(err)
	}
	r.openInbox() // ages start from the file's time
	young := r.put(egressFor("b.example.com"))
	it := r.items(r.desk("ann@host"))
	if len(it) != 2 || it[0].Ref != young || it[0].Abandoned || it[1].Ref != old || !it[1].Abandoned {
		t.Errorf("inbox = %+v, want the young one, then the abandoned one", it)
	}
	// Somebody who was seen waiting an hour ago has not abandoned it.
	d := r.desk("ann@host")
	d.store.saw("web", []queue.ID{old.ID}, nil, nil)
	if it := r.items(d); it[0].Ref != old || it[0].Abandoned {
		t.Errorf("inbox = %+v, want the old one first, since it was waited for", it)
	}
}

// The root of the mailboxes is replaced by another directory while the desk runs: from then on everything is there.
func TestRootReplaced(t *testing.T) {
	r := newRig(t)
	d := r.desk("ann")
	before := r.put(egressFor("before.example.com"))
	if _, err := r.approve(d, before); err != nil {
		t.Fatal(err)
	}
	old := r.root + ".old"
	if err := os.Rename(r.root, old); err != nil {
		t.Fatal(err)
	}
	if s, err := d.Snapshot(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Snapshot without a root = %+v, %v", s, err)
	}
	if _, err := d.Recover(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Recover without a root: %v", err)
	}
	if rec, err := d.store.record(before); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the record without a root = %+v, %v", rec, err)
	}
	if _, err := os.Lstat(r.root); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the desk has made the root anew: %v", err)
	}

	var err error
	if r.box, err = queue.OpenDir(t.Context(), filepath.Join(r.root, "web"), queue.Options{Slug: "web"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.box.Close() })
	ref := r.put(egressFor("after.example.com"))
	if items := r.items(d); len(items) != 1 || items[0].Ref != ref {
		t.Fatalf("open are %+v", items)
	}
	if _, err := r.approve(d, ref); err != nil {
		t.Fatal(err)
	}
	if res := r.response(ref); res == nil || res.Status != queue.Approved {
		t.Errorf("the agent gets %+v", res)
	}
	record := filepath.Join(".desk", "web", string(ref.ID)+".json")
	if _, err := os.Stat(filepath.Join(r.root, record)); err != nil {
		t.Errorf("the record is not in the new root: %v", err)
	}
	if _, err := os.Stat(filepath.Join(old, record)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the record is in the old root: %v", err)
	}
	if st, err := os.Stat(filepath.Join(r.root, ".desk")); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf(".desk is %v, %v", st, err)
	}
	if p := r.show(d, ref); p.State != Decided || p.Decision == nil || p.Decision.By != "ann" {
		t.Errorf("the decision is shown as %+v", p.Decision)
	}
	if got := r.events(d, ref); !slices.Equal(got, []string{"decided", "applied"}) {
		t.Errorf("the new ledger has %q", got)
	}
	if got := r.events(d, before); len(got) != 0 {
		t.Errorf("the new ledger has %q of the old root", got)
	}
	r.audit(d)
	if _, err := d.Undo(t.Context(), ref, nil); err != nil {
		t.Errorf("Undo: %v", err)
	}
	if left, err := d.store.unfinished(); err != nil || len(left) != 0 {
		t.Errorf("unfinished: %v, %v", left, err)
	}
}

func TestAuditOfARemovedLedger(t *testing.T) {
	r := newRig(t)
	d := r.desk("ann")
	audit := func(want bool, why string) {
		t.Helper()
		if rep, err := d.Audit(t.Context(), ""); err != nil || rep.OK() != want {
			t.Errorf("%s: %+v, %v; want OK %v", why, rep, err, want)
		}
	}
	audit(true, "nothing was decided")
	ref := r.put(egressFor("a.example.com"))
	audit(true, "nothing was decided yet")
	if _, err := r.approve(d, ref); err != nil {
		t.Fatal(err)
	}
	audit(true, "a decision")
	path := filepath.Join(r.root, ".desk", "ledger.jsonl")
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	audit(false, "an emptied ledger")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	audit(false, "no ledger")
}

// TestFullDiskIsTold: whichever step finds no room, the operator hears where to make some.
func TestFullDiskIsTold(t *testing.T) {
	full := &fs.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}
	for _, verb := range []string{"approve", "reject"} {
		r := newRig(t)
		d := r.desk("ada")
		ref := r.put(payload.NewEgress(payload.Route{Host: "new.example.com"}))
		r.step = func(name string) error {
			if strings.HasPrefix(name, "record ") {
				return full
			}
			return nil
		}
		var err error
		if verb == "approve" {
			_, err = r.approve(d, ref)
		} else {
			_, err = d.Reject(t.Context(), ref, "no")
		}
		if want := "no space left on device: make room on the file system of " + r.root; err == nil || !strings.HasSuffix(err.Error(), want) || !errors.Is(err, full) {
			t.Errorf("%s: error %v, want it to end %q", verb, err, want)
		}
	}
}

// TestFullDiskWhilePuttingBack: a change that did not hold, and whose failure could not be recorded, is not said to be open again.
func TestFullDiskWhilePuttingBack(t *testing.T) {
	r := newRig(t)
	r.verify = time.Millisecond
	r.proxy.freeze(t)
	d := r.desk("ada")
	ref := r.put(payload.NewEgress(payload.Route{Host: "new.example.com"}))
	r.step = func(name string) error {
		if name == "record failed" {
			return &fs.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}
		}
		return nil
	}
	_, err := r.approve(d, ref)
	if err == nil || !strings.Contains(err.Error(), "is not finished") || !strings.Contains(err.Error(), "not seen live") || !strings.HasSuffix(err.Error(), "make room on the file system of "+r.root) {
		t.Errorf("error %v, want all of it", err)
	}
	if f, ok := errors.AsType[*apply.Failure](err); ok {
		t.Errorf("desks will take it for %+v, which is told as put back and open again", f)
	}
	if rec, err := d.store.record(ref); err != nil || rec.State != Claimed {
		t.Errorf("record = %+v, %v", rec, err)
	}
}

// TestUnknownIsNotUnchanged: of a file that cannot be read or edited nobody knows whether it would change.
func TestUnknownIsNotUnchanged(t *testing.T) {
	r := newRig(t)
	d := r.desk("ann")
	pipelock := filepath.Join(filepath.Dir(r.routes), "pipelock.yaml")
	r.cfg.Pipelock = &config.Pipelock{File: pipelock}
	if err := os.WriteFile(pipelock, []byte("api_allowlist: [new.example]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	ref := r.put(payload.NewEgress(payload.Route{Host: "new.example"}))
	for _, tt := range []struct {
		routes  string
		blocked bool
		changed bool
		unknown bool
	}{
		{baseRoutes, false, true, false},
		{"routes: [", true, false, true},
		{"routes:\n  - host: new.example\n", false, false, false},
	} {
		if err := os.WriteFile(r.routes, []byte(tt.routes), 0o644); err != nil {
			t.Fatal(err)
		}
		p := r.show(d, ref)
		if lock := p.Targets[0]; lock.Changed || lock.Unknown {
			t.Errorf("%q: pipelock, which has the host: %+v", tt.routes, lock)
		}
		if got := p.Targets[1]; (p.Blocked != "") != tt.blocked || got.Changed != tt.changed || got.Unknown != tt.unknown {
			t.Errorf("%q: blocked %q, changed %t, unknown %t; want %t, %t, %t", tt.routes, p.Blocked, got.Changed, got.Unknown, tt.blocked, tt.changed, tt.unknown)
		}
	}
}
