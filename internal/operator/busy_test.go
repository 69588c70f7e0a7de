package operator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/bot-bottle/supervise/internal/apply"
)

// replacing is a hand that is told while it replaces a bottle.
type replacing struct {
	apply.Hand
	now func()
}

func (h replacing) Replace(ctx context.Context, bottle string, progress io.Writer) error {
	h.now()
	return h.Hand.Replace(ctx, bottle, progress)
}

// TestBusyIsTold: who waits for a bottle is told once for whom and for what, by the operator's own way or, where he has none, in what
// he sees of his decision.
func TestBusyIsTold(t *testing.T) {
	r, ref, ran := buildRig(t)
	other := r.put(egressFor("a.example.com", "/"))
	want := fmt.Sprintf("bottle web is busy, and this waits for it: replacing the bottle for %s (ann@host, process %d, since ", ref, os.Getpid())
	d := r.desk("ann@host")
	d.opts.Hand = replacing{d.opts.Hand, func() {
		bob := r.desk("bob@host")
		bob.store.patience = 0
		p := r.show(bob, other)
		for name, verb := range map[string]func(context.Context, io.Writer) error{
			"approve": func(ctx context.Context, w io.Writer) error {
				_, err := bob.Approve(ctx, other, Decision{Digest: p.Digest, Progress: w})
				return err
			},
			"undo": func(ctx context.Context, w io.Writer) error {
				_, err := bob.Undo(ctx, ref, w)
				return err
			},
			"reject": func(ctx context.Context, _ io.Writer) error {
				_, err := bob.Reject(ctx, other, "")
				return err
			},
			"forget": func(ctx context.Context, _ io.Writer) error { return bob.Forget(ctx, "web") },
		} {
			for _, silent := range []bool{false, true} {
				var told []string
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				hear := func(text string) { told = append(told, text); cancel() }
				var progress io.Writer
				if bob.opts.Waiting = hear; silent {
					if name == "reject" || name == "forget" { // which show nothing of how far they are
						continue
					}
					bob.opts.Waiting, progress = nil, hearing(hear)
				}
				if err := verb(ctx, progress); !errors.Is(err, context.Canceled) || len(told) != 1 || !strings.HasPrefix(told[0], want) {
					t.Errorf("%s: %v, having been told %q; want to wait, and %q", name, err, told, want)
				}
			}
		}
		if done, err := bob.Recover(t.Context()); len(done) != 0 || err != nil {
			t.Errorf("Recover = %+v, %v; want it not to wait", done, err)
		}
	}}
	p := r.show(d, ref)
	d.opts.Inbox = watched{r.inbox, func() {
		if err := r.box.Archive(t.Context(), ref.ID); err != nil {
			t.Error(err)
		}
	}}
	if _, err := d.Approve(t.Context(), ref, Decision{Digest: p.Digest, Accept: p.Dangers()}); err != nil || ran() != "build replace" {
		t.Errorf("approving: %v; ran %q", err, ran())
	}
}

// hearing is a writer of lines.
type hearing func(string)

func (h hearing) Write(p []byte) (int, error) {
	h(strings.TrimSuffix(string(p), "\n"))
	return len(p), nil
}

// TestReplacingIsTold: a command that replaces a bottle because an interrupted one has not says so before it does.
func TestReplacingIsTold(t *testing.T) {
	r, ref, ran := buildRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := r.approveAnd(ctx, ref, cancel); err == nil {
		t.Fatal("whoever was interrupted has approved all the same")
	}
	if err := r.box.Archive(t.Context(), ref.ID); err != nil {
		t.Fatal(err)
	}
	d := r.desk("bob@host")
	var told []string
	d.opts.Waiting = func(text string) { told = append(told, text+", having run "+ran()) }
	if _, err := d.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("bottle web is still to be replaced for %s, which an interrupted command left to do: replacing it first, having run build", ref)
	if len(told) != 1 || told[0] != want || ran() != "build replace" {
		t.Errorf("told %q, and ran %q; want %q", told, ran(), want)
	}
}
