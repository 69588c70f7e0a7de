// Package queuetest holds the contract of package queue as tests that every backend passes.
//
// A backend's test calls Run with a function that makes an empty store. The suite opens both sides of it, closes and
// reopens them, and, where the backend lets faults in, makes every durable step fail both ways: not done, and done
// with the reply lost. After each it checks that repeating the call, with and without reopening, ends in the state
// that one call without a fault ends in.
package queuetest

import (
	"context"
	"errors"
	"iter"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/bot-bottle/supervise/queue"
)

// Backend is one store.
type Backend struct {
	// Mailbox opens a bottle's mailbox with what was stored; the suite closes it before it opens it again.
	Mailbox func(t *testing.T, slug string) queue.Mailbox
	// Inbox opens the operator's side. Several may be open at once.
	Inbox func(t *testing.T) queue.Inbox
	// SetFault injects f into all that is open; nil ends it. A nil SetFault skips those tests.
	SetFault func(f queue.Fault)
}

// Run holds open's backends to the contract.
func Run(t *testing.T, open func(t *testing.T) Backend) {
	for _, test := range []struct {
		name string
		run  func(t *testing.T, b Backend)
	}{
		{"PutGet", testPutGet},
		{"PutRepeat", testPutRepeat},
		{"PutBad", testPutBad},
		{"PutTooBig", testPutTooBig},
		{"NotFound", testNotFound},
		{"Wait", testWait},
		{"WaitEnds", testWaitEnds},
		{"WaitMany", testWaitMany},
		{"RespondOnce", testRespondOnce},
		{"RespondRace", testRespondRace},
		{"RespondBad", testRespondBad},
		{"Archive", testArchive},
		{"Recent", testRecent},
		{"Order", testOrder},
		{"Pending", testPending},
		{"Bottles", testBottles},
		{"Reopen", testReopen},
		{"Closed", testClosed},
		{"Changes", testChanges},
		{"Presence", testPresence},
		{"Undone", testUndone},
		{"Forget", testForget},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, open(t)) })
	}
	t.Run("Faults", func(t *testing.T) { testFaults(t, open) })
}

const slug = "web"

// NewProposal returns a valid proposal of a bottle.
func NewProposal(bottle, tool, file string) queue.Proposal {
	return queue.Proposal{
		ID: queue.NewID(), Bottle: bottle, Tool: tool, ProposedFile: file, Justification: "it is refused with 403",
		CurrentFileHash: queue.Hash(file), ArrivedAt: time.Now().UTC().Round(0),
	}
}

func proposal() queue.Proposal {
	return NewProposal(slug, "pipelock-block", "https://example.com/a?b=<c>&d=\u00e9\n")
}

func response(id queue.ID, s queue.Status) queue.Response {
	return queue.Response{
		ProposalID: id, Status: s, Notes: "as agreed <&>", Outcome: queue.Live, Digest: "d1",
		DecidedAt: time.Now().UTC().Round(0),
	}
}

func openBoth(t *testing.T, b Backend) (queue.Mailbox, queue.Inbox) {
	t.Helper()
	m, in := b.Mailbox(t, slug), b.Inbox(t)
	t.Cleanup(func() {
		if err := errors.Join(m.Close(), in.Close()); err != nil {
			t.Errorf("closing: %v", err)
		}
	})
	return m, in
}

func put(t *testing.T, m queue.Mailbox, p queue.Proposal) queue.Proposal {
	t.Helper()
	if err := m.Put(t.Context(), p); err != nil {
		t.Fatalf("Put(%s) = %v", p.ID, err)
	}
	return p
}

func respond(t *testing.T, in queue.Inbox, r queue.Response) queue.Response {
	t.Helper()
	if err := in.Respond(t.Context(), slug, r); err != nil {
		t.Fatalf("Respond(%s) = %v", r.ProposalID, err)
	}
	return r
}

// collect fails the test on any error in the sequence.
func collect(t *testing.T, seq iter.Seq2[queue.Entry, error]) []queue.Entry {
	t.Helper()
	var all []queue.Entry
	for e, err := range seq {
		if err != nil {
			t.Fatalf("listing: %v", err)
		}
		all = append(all, e)
	}
	return all
}

var ignoreTimes = cmpopts.IgnoreFields(queue.Entry{}, "Since", "Age", "Delivered")

func wantEntries(t *testing.T, what string, seq iter.Seq2[queue.Entry, error], want ...queue.Entry) {
	t.Helper()
	got := collect(t, seq)
	if diff := cmp.Diff(want, got, ignoreTimes, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("%s mismatch (-want +got):\n%s", what, diff)
	}
	for _, e := range got {
		if d := time.Since(e.Since) - e.Age; d < -time.Second || d > time.Second {
			t.Errorf("%s: %s is there since %v, and its age is %v", what, e.Proposal.ID, e.Since, e.Age)
		}
		if e.Age < 0 || e.Age > time.Minute {
			t.Errorf("%s: age of %s = %v, want that of a new one", what, e.Proposal.ID, e.Age)
		}
	}
}

func testPutGet(t *testing.T, b Backend) {
	m, in := openBoth(t, b)
	p := put(t, m, proposal())
	for name, get := range map[string]func() (queue.Entry, error){
		"Mailbox": func() (queue.Entry, error) { return m.Get(t.Context(), p.ID) },
		"Inbox":   func() (queue.Entry, error) { return in.Get(t.Context(), slug, p.ID) },
	} {
		got, err := get()
		if diff := cmp.Diff(queue.Entry{Proposal: p}, got, ignoreTimes); err != nil || diff != "" {
			t.Errorf("%s.Get: error %v, mismatch (-want +got):\n%s", name, err, diff)
		}
		if !got.Delivered.IsZero() {
			t.Errorf("%s.Get: Delivered = %v, want zero", name, got.Delivered)
		}
	}
	wantEntries(t, "Mailbox.Entries", m.Entries(t.Context()), queue.Entry{Proposal: p})
	wantEntries(t, "Inbox.Entries", in.Entries(t.Context(), slug), queue.Entry{Proposal: p})

	// What may be left out is filled in.
	q := proposal()
	q.CurrentFileHash, q.ArrivedAt = "", time.Time{}
	put(t, m, q)
	got, err := m.Get(t.Context(), q.ID)
	if err != nil || got.Proposal.CurrentFileHash != queue.Hash(q.ProposedFile) || got.Proposal.ArrivedAt.IsZero() {
		t.Errorf("Get of a proposal put without hash and time = %+v, %v", got.Proposal, err)
	}
}

func testPutRepeat(t *testing.T, b Backend) {
	m, in := openBoth(t, b)
	p := put(t, m, proposal())
	put(t, m, p)
	later := p
	later.ArrivedAt = later.ArrivedAt.Add(time.Minute)
	put(t, m, later)
	other := p
	other.Justification = "something else"
	if err := m.Put(t.Context(), other); err == nil {
		t.Error("Put of another proposal with the same id = nil, want an error")
	}
	wantEntries(t, "Entries", in.Entries(t.Context(), slug), queue.Entry{Proposal: p})
	respond(t, in, response(p.ID, queue.Approved))
	if err := m.Archive(t.Context(), p.ID); err != nil {
		t.Fatal(err)
	}
	put(t, m, p)
	wantEntries(t, "Entries after the pair was archived", m.Entries(t.Context()))
}

func testPutBad(t *testing.T, b Backend) {
	m, _ := openBoth(t, b)
	for name, change := range map[string]func(*queue.Proposal){
		"id":        func(p *queue.Proposal) { p.ID = "../../etc/passwd" },
		"version 4": func(p *queue.Proposal) { p.ID = "0b8f8f3e-94a7-4b4e-9c4f-0a4f3a5f4f4f" },
		"bottle":    func(p *queue.Proposal) { p.Bottle = "other" },
		"tool":      func(p *queue.Proposal) { p.Tool = "" },
		"hash":      func(p *queue.Proposal) { p.CurrentFileHash = queue.Hash("another file") },
		"UTF-8":     func(p *queue.Proposal) { p.Justification = "\xff" },
	} {
		p := proposal()
		change(&p)
		if err := m.Put(t.Context(), p); err == nil {
			t.Errorf("Put with a bad %s = nil, want an error", name)
		}
	}
	wantEntries(t, "Entries", m.Entries(t.Context()))
}

func testPutTooBig(t *testing.T, b Backend) {
	m, in := openBoth(t, b)
	big := NewProposal(slug, "capability-block", strings.Repeat("\x01", queue.MaxFile/6+1)) // \u0001 when encoded
	if err := m.Put(t.Context(), big); !errors.Is(err, queue.ErrTooBig) {
		t.Errorf("Put of a file over the limit = %v, want ErrTooBig", err)
	}
	p := put(t, m, proposal())
	r := response(p.ID, queue.Modified)
	r.FinalFile = strings.Repeat("x", queue.MaxFile)
	if err := in.Respond(t.Context(), slug, r); !errors.Is(err, queue.ErrTooBig) {
		t.Errorf("Respond with a file over the limit = %v, want ErrTooBig", err)
	}
	fits := put(t, m, NewProposal(slug, "capability-block", strings.Repeat("x", queue.MaxFile-1024)))
	got, err := in.Get(t.Context(), slug, fits.ID)
	if err != nil || got.Proposal != fits {
		t.Errorf("Get of a file just under the limit: error %v, equal %v", err, got.Proposal == fits)
	}
}

func testNotFound(t *testing.T, b Backend) {
	m, in := openBoth(t, b)
	other := b.Mailbox(t, "other")
	defer other.Close()
	p := put(t, m, proposal())
	for _, id := range []queue.ID{queue.NewID(), "", "..", "../web/" + p.ID, p.ID + "/", "processed/" + p.ID, p.ID[:8]} {
		_, getErr := m.Get(t.Context(), id)
		_, waitErr := m.Wait(t.Context(), id)
		_, inErr := in.Get(t.Context(), slug, id)
		if err := errors.Join(getErr, waitErr, inErr); getErr == nil || waitErr == nil || inErr == nil {
			t.Errorf("id %q: Get, Wait, Inbox.Get = %v, want three errors", id, err)
		}
		if err := m.Archive(t.Context(), id); err == nil {
			t.Errorf("Archive(%q) = nil, want an error", id)
		}
		if err := in.Respond(t.Context(), slug, response(id, queue.Approved)); err == nil {
			t.Errorf("Respond(%q) = nil, want an error", id)
		}
	}
	id := queue.NewID()
	for what, err := range map[string]error{
		"Get":                       second(m.Get(t.Context(), id)),
		"Wait":                      second(m.Wait(t.Context(), id)),
		"Inbox.Get":                 second(in.Get(t.Context(), slug, id)),
		"Undone":                    in.Undone(t.Context(), slug, id),
		"Undone, no bottle":         in.Undone(t.Context(), "nobody", p.ID),
		"Respond":                   in.Respond(t.Context(), slug, response(id, queue.Approved)),
		"Get of another's id":       second(other.Get(t.Context(), p.ID)),
		"Wait for another's id":     second(other.Wait(t.Context(), p.ID)),
		"Inbox.Get of another's id": second(in.Get(t.Context(), "other", p.ID)),
		"Respond to another's id":   in.Respond(t.Context(), "other", response(p.ID, queue.Approved)),
		"Archive of another's id":   other.Archive(t.Context(), p.ID),
		"Respond, no bottle":        in.Respond(t.Context(), "nobody", response(p.ID, queue.Approved)),
		"Presence, no bottle":       second(in.Presence(t.Context(), "nobody")),
		"Forget, no bottle":         in.Forget(t.Context(), "nobody"),
	} {
		if !errors.Is(err, queue.ErrNotFound) {
			t.Errorf("%s = %v, want ErrNotFound", what, err)
		}
	}
	for _, bottle := range []string{"", ".", "..", "../web", "web/", "WEB", ".desk"} {
		for _, err := range in.Entries(t.Context(), bottle) {
			if err == nil {
				t.Errorf("Entries(%q) lists something", bottle)
			}
		}
		if _, err := in.Get(t.Context(), bottle, p.ID); err == nil {
			t.Errorf("Get(%q) = nil, want an error", bottle)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func testWait(t *testing.T, b Backend) {
	m, in := openBoth(t, b)
	for _, status := range []queue.Status{queue.Approved, queue.Modified, queue.Rejected} {
		p := put(t, m, proposal())
		want := response(p.ID, status)
		if status == queue.Modified {
			want.FinalFile = "https://example.com/other"
		}
		got := waiting(t, m, p.ID)
		respond(t, in, want)
		if diff := cmp.Diff(outcome{want, nil}, <-got, cmpopts.EquateErrors()); diff != "" {
			t.Errorf("Wait for %s mismatch (-want +got):\n%s", status, diff)
		}
		// Again, now that it is there, even if the caller is about to go.
		r, err := m.Wait(t.Context(), p.ID)
		if err != nil || !r.Equal(want) {
			t.Errorf("Wait again = %+v, %v; want %+v", r, err, want)
		}
	}
}

type outcome struct {
	Response queue.Response
	Err      error
}

// waiting returns what Wait returns, once it is running.
func waiting(t *testing.T, m queue.Mailbox, id queue.ID) <-chan outcome {
	t.Helper()
	ch := make(chan outcome, 1)
	go func() {
		r, err := m.Wait(t.Context(), id)
		ch <- outcome{r, err}
	}()
	return ch
}

func testWaitEnds(t *testing.T, b Backend) {
	m, _ := openBoth(t, b)
	p := put(t, m, proposal())
	why := errors.New("the caller hung up")
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- second(m.Wait(ctx, p.ID)) }()
	cancel(why)
	if err := <-ended; !errors.Is(err, why) {
		t.Errorf("Wait = %v, want the context's cause", err)
	}
	// Nobody's waiting withdraws a proposal.
	wantEntries(t, "Entries", m.Entries(t.Context()), queue.Entry{Proposal: p})

	got := waiting(t, m, p.ID)
	if err := m.Close(); err != nil {
		t.Errorf("Close = %v", err)
	}
	if o := <-got; !errors.Is(o.Err, queue.ErrClosed) {
		t.Errorf("Wait after Close = %v, want ErrClosed", o.Err)
	}
}

func testWaitMany(t *testing.T, b Backend) {
	m, in := openBoth(t, b)
	const proposals, each = 20, 10
	want := map[queue.ID]queue.Response{}
	got := map[queue.ID][]<-chan outcome{}
	for range proposals {
		p := put(t, m, proposal())
		for range each {
			got[p.ID] = append(got[p.ID], waiting(t, m, p.ID))
		}
	}
	for id := range got {
		want[id] = respond(t, in, response(id, queue.Rejected))
	}
	for id, chs := range got {
		for _, ch := range chs {
			if o := <-ch; o.Err != nil || !o.Response.Equal(want[id]) {
				t.Errorf("Wait(%s) = %+v, %v; want %+v", id, o.Response, o.Err, want[id])
			}
		}
	}
}

func testRespondOnce(t *testing.T, b Backend) {
	m, in := openBoth(t, b)
	p := put(t, m, proposal())
	first := respond(t, in, response(p.ID, queue.Approved))
	second := response(p.ID, queue.Rejected)
	for name, r := range map[string]queue.Response{"another": second, "the same": first} {
		err := in.Respond(t.Context(), slug, r)
		c, ok := errors.AsType[*queue.ConflictError](err)
		if !ok || !errors.Is(err, queue.ErrDecided) || !c.Response.Equal(first) || c.ID != p.ID {
			t.Errorf("Respond with %s = %v, want a ConflictError with the first response", name, err)
		}
	}
	wantEntries(t, "Entries", in.Entries(t.Context(), slug), queue.Entry{Proposal: p, Response: &first})
	wantEntries(t, "Mailbox.Entries", m.Entries(t.Context()), queue.Entry{Proposal: p, Response: &first})
	if err := m.Archive(t.Context(), p.ID); err != nil {
		t.Fatal(err)
	}
	if err := in.Respond(t.Context(), slug, second); !errors.Is(err, queue.ErrLate) {
		t.Errorf("Respond after Archive = %v, want ErrLate", err)
	}
}

// testRespondRace lets two operators answer while the sidecar delivers and archives at once.
func testRespondRace(t *testing.T, b Backend) {
	m, in := openBoth(t, b)
	in2 := b.Inbox(t)
	defer in2.Close()
	for range 50 {
		p := put(t, m, proposal())
		got := make(chan outcome, 1)
		go func() {
			r, err := m.Wait(t.Context(), p.ID)
			if err == nil {
				err = m.Archive(t.Context(), p.ID)
			}
			got <- outcome{r, err}
		}()
		answers := []queue.Response{response(p.ID, queue.Approved), response(p.ID, queue.Rejected)}
		errs := make([]error, 2)
		var wg sync.WaitGroup
		for i, in := range []queue.Inbox{in, in2} {
			wg.Go(func() { errs[i] = in.Respond(t.Context(), slug, answers[i]) })
		}
		wg.Wait()
		o := <-got
		if o.Err != nil {
			t.Fatalf("Wait and Archive = %v", o.Err)
		}
		won := 0
		for i, err := range errs {
			c, conflict := errors.AsType[*queue.ConflictError](err)
			switch {
			case err == nil:
				won++
				if !o.Response.Equal(answers[i]) {
					t.Errorf("Respond %d won and %+v was delivered", i, o.Response)
				}
			case conflict && !c.Response.Equal(o.Response):
				t.Errorf("Respond %d: the conflict names %+v, delivered was %+v", i, c.Response, o.Response)
			case !conflict && !errors.Is(err, queue.ErrLate):
				t.Errorf("Respond %d = %v, want nil, a ConflictError or ErrLate", i, err)
			}
		}
		if won != 1 {
			t.Errorf("%d responses won, want 1: %v", won, errs)
		}
	}
}

func testRespondBad(t *testing.T, b Backend) {
	m, in := openBoth(t, b)
	p := put(t, m, proposal())
	for name, change := range map[string]func(*queue.Response){
		"status":  func(r *queue.Response) { r.Status = "maybe" },
		"outcome": func(r *queue.Response) { r.Outcome = "fine" },
		"UTF-8":   func(r *queue.Response) { r.Notes = "\xff" },
		"id":      func(r *queue.Response) { r.ProposalID = "../" + p.ID },
	} {
		r := response(p.ID, queue.Approved)
		change(&r)
		if err := in.Respond(t.Context(), slug, r); err == nil {
			t.Errorf("Respond with a bad %s = nil, want an error", name)
		}
	}
	wantEntries(t, "Entries", in.Entries(t.Context(), slug), queue.Entry{Proposal: p})
}

func testArchive(t *testing.T, b Backend) {
	m, in := openBoth(t, b)
	p := put(t, m, proposal())
	if err := m.Archive(t.Context(), p.ID); err == nil {
		t.Error("Archive without a response = nil, want an error")
	}
	wantEntries(t, "Entries", m.Entries(t.Context()), queue.Entry{Proposal: p})
	r := respond(t, in, response(p.ID, queue.Approved))
	before := time.Now()
	for range 2 {
		if err := m.Archive(t.Context(), p.ID); err != nil {
			t.Errorf("Archive = %v", err)
		}
	}
	wantEntries(t, "Mailbox.Entries", m.Entries(t.Context()))
	wantEntries(t, "Inbox.Entries", in.Entries(t.Context(), slug))
	wantArchived(t, m, in, p, r, before)
	if got, err := m.Wait(t.Context(), p.ID); err != nil || !got.Equal(r) {
		t.Errorf("Wait = %+v, %v; want %+v", got, err, r)
	}
}

// testUndone: that a response was taken back is told from then on, wherever the pair is, and changes nothing else.
func testUndone(t *testing.T, b Backend) {
	m, in := openBoth(t, b)
	p, other := put(t, m, proposal()), put(t, m, proposal())
	if err := in.Undone(t.Context(), slug, p.ID); err == nil {
		t.Error("Undone without a response = nil, want an error")
	}
	r := respond(t, in, response(p.ID, queue.Approved))
	respond(t, in, response(other.ID, queue.Approved))
	check := func(when string) {
		t.Helper()
		for name, get := range map[string]func(id queue.ID) (queue.Entry, error){
			"Mailbox": func(id queue.ID) (queue.Entry, error) { return m.Get(t.Context(), id) },
			"Inbox":   func(id queue.ID) (queue.Entry, error) { return in.Get(t.Context(), slug, id) },
		} {
			if e, err := get(p.ID); err != nil || e.Response == nil || !e.Response.Equal(r) || time.Since(e.Undone).Abs() > time.Minute {
				t.Errorf("%s, %s.Get = %+v, %v; want the response, and that it was taken back now", when, name, e, err)
			}
			if e, err := get(other.ID); err != nil || !e.Undone.IsZero() {
				t.Errorf("%s, %s.Get of another = %+v, %v; want it not taken back", when, name, e, err)
			}
		}
	}
	for range 2 {
		if err := in.Undone(t.Context(), slug, p.ID); err != nil {
			t.Errorf("Undone = %v", err)
		}
	}
	check("undelivered")
	for _, id := range []queue.ID{p.ID, other.ID} {
		if err := m.Archive(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	check("delivered")
	if err := in.Undone(t.Context(), slug, other.ID); err != nil {
		t.Errorf("Undone of what is archived = %v", err)
	}
	if e, err := m.Get(t.Context(), other.ID); err != nil || e.Undone.IsZero() {
		t.Errorf("Get = %+v, %v; want it taken back", e, err)
	}
	wantEntries(t, "Mailbox.Entries", m.Entries(t.Context()))
}

// slack is how far a file's time may lie behind the clock.
const slack = time.Second

func wantArchived(t *testing.T, m queue.Mailbox, in queue.Inbox, p queue.Proposal, r queue.Response, before time.Time) {
	t.Helper()
	for name, get := range map[string]func() (queue.Entry, error){
		"Mailbox": func() (queue.Entry, error) { return m.Get(t.Context(), p.ID) },
		"Inbox":   func() (queue.Entry, error) { return in.Get(t.Context(), slug, p.ID) },
	} {
		got, err := get()
		if diff := cmp.Diff(queue.Entry{Proposal: p, Response: &r}, got, ignoreTimes); err != nil || diff != "" {
			t.Errorf("%s.Get: error %v, mismatch (-want +got):\n%s", name, err, diff)
		}
		if got.Delivered.Before(before.Add(-slack)) || got.Delivered.After(time.Now()) {
			t.Errorf("%s.Get: Delivered = %v, want between %v and now", name, got.Delivered, before)
		}
	}
}

func testRecent(t *testing.T, b Backend) {
	m, in := openBoth(t, b)
	start := time.Now()
	var want []queue.Entry
	ps := []queue.Proposal{put(t, m, proposal()), put(t, m, proposal()), put(t, m, proposal())}
	for _, i := range []int{2, 0, 1} { // delivered in another order than asked
		r := respond(t, in, response(ps[i].ID, queue.Rejected))
		if err := m.Archive(t.Context(), ps[i].ID); err != nil {
			t.Fatal(err)
		}
		want = append(want, queue.Entry{Proposal: ps[i], Response: &r})
	}
	put(t, m, proposal())
	wantEntries(t, "Recent", m.Recent(t.Context(), start.Add(-slack)), want...)
	wantEntries(t, "Recent from the future", m.Recent(t.Context(), time.Now().Add(time.Hour)))
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	m = b.Mailbox(t, slug)
	defer m.Close()
	wantEntries(t, "Recent after reopening", m.Recent(t.Context(), start.Add(-slack)), want...)
	wantEntries(t, "Recent from the future after reopening", m.Recent(t.Context(), time.Now().Add(time.Hour)))
}

func testOrder(t *testing.T, b Backend) {
	m, in := openBoth(t, b)
	var want []queue.Entry
	for range 20 {
		want = append(want, queue.Entry{Proposal: put(t, m, proposal())})
	}
	wantEntries(t, "Mailbox.Entries", m.Entries(t.Context()), want...)
	wantEntries(t, "Inbox.Entries", in.Entries(t.Context(), slug), want...)
	for e := range in.Entries(t.Context(), slug) {
		if e.Proposal != want[0].Proposal {
			t.Errorf("the first entry is %s, want %s", e.Proposal.ID, want[0].Proposal.ID)
		}
		break // a caller may stop early
	}
}

func testPending(t *testing.T, b Backend) {
	m, in := openBoth(t, b)
	var ps []queue.Proposal
	for n := range 3 {
		if got := m.Pending(); got != n {
			t.Errorf("Pending = %d after %d proposals", got, n)
		}
		ps = append(ps, put(t, m, proposal()))
	}
	respond(t, in, response(ps[0].ID, queue.Approved))
	if got := m.Pending(); got < 2 || got > 3 {
		t.Errorf("Pending = %d right after one of three was decided, want 3, or 2", got)
	}
	collect(t, m.Entries(t.Context())) // looks
	if got := m.Pending(); got != 2 {
		t.Errorf("Pending = %d after one of three was decided, want 2", got)
	}
	if err := m.Archive(t.Context(), ps[0].ID); err != nil {
		t.Fatal(err)
	}
	if got := m.Pending(); got != 2 {
		t.Errorf("Pending = %d after it was archived, want 2", got)
	}
	m.Close()
	again := b.Mailbox(t, slug)
	defer again.Close()
	if got := again.Pending(); got != 2 {
		t.Errorf("Pending = %d after reopening, want 2", got)
	}
}

func testBottles(t *testing.T, b Backend) {
	_, in := openBoth(t, b)
	for _, s := range []string{"z", "a-1"} {
		m := b.Mailbox(t, s)
		defer m.Close()
	}
	got, err := in.Bottles(t.Context())
	if diff := cmp.Diff([]string{"a-1", "web", "z"}, got); err != nil || diff != "" {
		t.Errorf("Bottles: error %v, mismatch (-want +got):\n%s", err, diff)
	}
}

func testReopen(t *testing.T, b Backend) {
	m, in := openBoth(t, b)
	open, answered, done := put(t, m, proposal()), put(t, m, proposal()), put(t, m, proposal())
	before := time.Now()
	r := respond(t, in, response(answered.ID, queue.Modified))
	d := respond(t, in, response(done.ID, queue.Rejected))
	if err := m.Archive(t.Context(), done.ID); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(m.Close(), in.Close()); err != nil {
		t.Fatal(err)
	}
	m, in = openBoth(t, b)
	want := []queue.Entry{{Proposal: open}, {Proposal: answered, Response: &r}}
	wantEntries(t, "Mailbox.Entries", m.Entries(t.Context()), want...)
	wantEntries(t, "Inbox.Entries", in.Entries(t.Context(), slug), want...)
	wantArchived(t, m, in, done, d, before)
	if got, err := m.Wait(t.Context(), answered.ID); err != nil || !got.Equal(r) {
		t.Errorf("Wait for what was answered before = %+v, %v; want %+v", got, err, r)
	}
	got := waiting(t, m, open.ID)
	o := respond(t, in, response(open.ID, queue.Approved))
	if out := <-got; out.Err != nil || !out.Response.Equal(o) {
		t.Errorf("Wait for what was open before = %+v, %v; want %+v", out.Response, out.Err, o)
	}
}

func testClosed(t *testing.T, b Backend) {
	m, in := openBoth(t, b)
	p := put(t, m, proposal())
	for range 2 {
		if err := m.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	}
	for what, err := range map[string]error{
		"Put":     m.Put(t.Context(), proposal()),
		"Get":     second(m.Get(t.Context(), p.ID)),
		"Wait":    second(m.Wait(t.Context(), p.ID)),
		"Archive": m.Archive(t.Context(), p.ID),
	} {
		if !errors.Is(err, queue.ErrClosed) {
			t.Errorf("%s after Close = %v, want ErrClosed", what, err)
		}
	}
	// The operator needs no sidecar.
	respond(t, in, response(p.ID, queue.Approved))
	if err := in.Close(); err != nil {
		t.Errorf("Inbox.Close = %v", err)
	}
}

func testChanges(t *testing.T, b Backend) {
	m, in := openBoth(t, b)
	ctx, cancel := context.WithCancel(t.Context())
	ch, err := in.Changes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	until := func(what string, done func() bool) {
		t.Helper()
		for !done() {
			if _, ok := <-ch; !ok {
				t.Fatalf("the channel was closed before %s was seen", what)
			}
		}
	}
	p := put(t, m, proposal())
	until("the proposal", func() bool { return len(collect(t, in.Entries(t.Context(), slug))) == 1 })
	respond(t, in, response(p.ID, queue.Approved))
	until("the response", func() bool { return collect(t, in.Entries(t.Context(), slug))[0].Response != nil })
	if err := m.Archive(t.Context(), p.ID); err != nil {
		t.Fatal(err)
	}
	until("the archiving", func() bool { return len(collect(t, in.Entries(t.Context(), slug))) == 0 })
	other := b.Mailbox(t, "other")
	defer other.Close()
	until("the new bottle", func() bool { s, err := in.Bottles(t.Context()); return err == nil && len(s) == 2 })
	if err := other.Put(t.Context(), NewProposal("other", "t", "f")); err != nil {
		t.Fatal(err)
	}
	until("its proposal", func() bool { return len(collect(t, in.Entries(t.Context(), "other"))) == 1 })
	cancel()
	for range ch { // ends when it is closed
	}
}

func testPresence(t *testing.T, b Backend) {
	m, in := openBoth(t, b)
	p := put(t, m, proposal())
	ch, err := in.Changes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	until := func(n int) {
		t.Helper()
		for {
			got, err := in.Presence(t.Context(), slug)
			if err != nil {
				t.Fatalf("Presence = %v", err)
			}
			if got.Known && got.Waiting[p.ID] == n {
				return
			}
			select {
			case <-ch:
			case <-time.After(100 * time.Millisecond): // a backend may write it without telling
			}
		}
	}
	until(0)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() { _, _ = m.Wait(ctx, p.ID) })
	}
	until(2)
	cancel()
	wg.Wait()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	until(0)
}

func testForget(t *testing.T, b Backend) {
	m, in := openBoth(t, b)
	p := put(t, m, proposal())
	if err := in.Forget(t.Context(), slug); !errors.Is(err, queue.ErrLocked) {
		t.Errorf("Forget while the mailbox is open = %v, want ErrLocked", err)
	}
	wantEntries(t, "Entries", in.Entries(t.Context(), slug), queue.Entry{Proposal: p})
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if err := in.Forget(t.Context(), slug); err != nil {
		t.Fatalf("Forget = %v", err)
	}
	if got, err := in.Bottles(t.Context()); err != nil || len(got) != 0 {
		t.Errorf("Bottles = %q, %v; want none", got, err)
	}
	m = b.Mailbox(t, slug)
	defer m.Close()
	wantEntries(t, "Entries of the new mailbox", m.Entries(t.Context()))
	if _, err := m.Get(t.Context(), p.ID); !errors.Is(err, queue.ErrNotFound) {
		t.Errorf("Get of what was forgotten = %v, want ErrNotFound", err)
	}
}
