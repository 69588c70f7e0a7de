package queuetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/bot-bottle/supervise/queue"
)

// errFault is the injected error.
var errFault = errors.New("injected fault")

// Failing returns a fault in step number n (from 0), before it is done or after it; crash makes every later step fail
// too, as if the process had died there. With n < 0 it only counts; steps returns the names so far.
func Failing(n int, after, crash bool) (f queue.Fault, steps func() []string) {
	var mu sync.Mutex
	var names []string
	dead := false
	f = func(step string, done bool) error {
		mu.Lock()
		defer mu.Unlock()
		if dead {
			return fmt.Errorf("%s after a crash: %w", step, errFault)
		}
		i := len(names)
		if !done {
			names = append(names, step)
		} else {
			i--
		}
		if i == n && done == after {
			dead = crash
			return fmt.Errorf("%s: %w", step, errFault)
		}
		return nil
	}
	return f, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return append([]string(nil), names...)
	}
}

// testFaults makes each durable step of each operation fail, and checks what a caller that repeats it ends up with.
func testFaults(t *testing.T, open func(t *testing.T) Backend) {
	type store struct {
		m  queue.Mailbox
		in queue.Inbox
		p  queue.Proposal
		r  queue.Response
	}
	for _, op := range []struct {
		name    string
		prepare func(t *testing.T, s store)
		do      func(ctx context.Context, s store) error
		check   func(t *testing.T, s store)
	}{
		{
			"Put", func(*testing.T, store) {},
			func(ctx context.Context, s store) error { return s.m.Put(ctx, s.p) },
			func(t *testing.T, s store) {
				wantEntries(t, "Mailbox.Entries", s.m.Entries(t.Context()), queue.Entry{Proposal: s.p})
				wantEntries(t, "Inbox.Entries", s.in.Entries(t.Context(), slug), queue.Entry{Proposal: s.p})
			},
		},
		{
			"Respond", func(t *testing.T, s store) { put(t, s.m, s.p) },
			func(ctx context.Context, s store) error {
				err := s.in.Respond(ctx, slug, s.r)
				if c, ok := errors.AsType[*queue.ConflictError](err); ok && c.Response.Equal(s.r) {
					return nil
				}
				return err
			},
			func(t *testing.T, s store) {
				want := queue.Entry{Proposal: s.p, Response: &s.r}
				wantEntries(t, "Mailbox.Entries", s.m.Entries(t.Context()), want)
				wantEntries(t, "Inbox.Entries", s.in.Entries(t.Context(), slug), want)
				if got, err := s.m.Wait(t.Context(), s.p.ID); err != nil || !got.Equal(s.r) {
					t.Errorf("Wait = %+v, %v; want %+v", got, err, s.r)
				}
			},
		},
		{
			"Archive", func(t *testing.T, s store) { put(t, s.m, s.p); respond(t, s.in, s.r) },
			func(ctx context.Context, s store) error { return s.m.Archive(ctx, s.p.ID) },
			func(t *testing.T, s store) {
				wantEntries(t, "Mailbox.Entries", s.m.Entries(t.Context()))
				wantEntries(t, "Inbox.Entries", s.in.Entries(t.Context(), slug))
				wantArchived(t, s.m, s.in, s.p, s.r, time.Now().Add(-time.Minute))
				wantEntries(t, "Recent", s.m.Recent(t.Context(), time.Now().Add(-time.Minute)), queue.Entry{Proposal: s.p, Response: &s.r})
			},
		},
		{
			"Undone", func(t *testing.T, s store) { put(t, s.m, s.p); respond(t, s.in, s.r) },
			func(ctx context.Context, s store) error { return s.in.Undone(ctx, slug, s.p.ID) },
			func(t *testing.T, s store) {
				if e, err := s.m.Get(t.Context(), s.p.ID); err != nil || e.Undone.IsZero() || e.Response == nil {
					t.Errorf("Get = %+v, %v; want it taken back", e, err)
				}
			},
		},
	} {
		fresh := func(t *testing.T) (Backend, store) {
			b := open(t)
			if b.SetFault == nil {
				t.Skip("the backend lets no faults in")
			}
			var s store
			s.m, s.in = openBoth(t, b)
			s.p = proposal()
			s.r = response(s.p.ID, queue.Approved)
			op.prepare(t, s)
			return b, s
		}
		t.Run(op.name, func(t *testing.T) {
			b, s := fresh(t)
			count, steps := Failing(-1, false, false)
			b.SetFault(count)
			if err := op.do(t.Context(), s); err != nil {
				t.Fatalf("%s without a fault = %v", op.name, err)
			}
			b.SetFault(nil)
			op.check(t, s)
			for n, step := range steps() {
				for _, after := range []bool{false, true} {
					for _, crash := range []bool{false, true} {
						name := fmt.Sprintf("%d-%s/%s/%s", n, step, word(after, "lost", "undone"), word(crash, "crash", "retry"))
						t.Run(name, func(t *testing.T) {
							b, s := fresh(t)
							f, _ := Failing(n, after, crash)
							b.SetFault(f)
							err := op.do(t.Context(), s)
							b.SetFault(nil)
							if crash {
								if err := errors.Join(s.m.Close(), s.in.Close()); err != nil {
									t.Fatal(err)
								}
								s.m, s.in = openBoth(t, b)
							}
							if err != nil {
								if !errors.Is(err, errFault) {
									t.Errorf("%s = %v, want the injected fault", op.name, err)
								}
								if err := op.do(t.Context(), s); err != nil {
									t.Fatalf("%s repeated = %v", op.name, err)
								}
							}
							op.check(t, s)
						})
					}
				}
			}
		})
	}
}

func word(b bool, yes, no string) string {
	if b {
		return yes
	}
	return no
}
