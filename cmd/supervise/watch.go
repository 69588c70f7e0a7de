package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/safetext"
)

// lookEvery is how often watch looks without being told to: an undo, say, changes no mailbox.
const lookEvery = 2 * time.Second

// lookPace is between two looks, at least.
const lookPace = 20 * time.Millisecond

func newWatch(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "Tell of proposals and decisions as they come",
		Long: `Print what is open, then a line for every proposal that arrives and every decision anyone
makes, until interrupted. With --json each line is one document.

While it runs it also finishes what interrupted commands left, every five seconds, and tells
people of what waits, as the notify section of supervise.yaml says.`,
		Example: `  supervise watch
  supervise watch --json | jq -r 'select(.type == "proposal") | .item.summary'`,
		Args: args(0, 0),
		RunE: a.withDesk(func(cmd *cobra.Command, d *desk, _ []string) error {
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			return a.watch(ctx, d)
		}),
	}
	a.deskFlags(cmd)
	return cmd
}

// watched is one line of watch --json. Type says which of the others is set.
type watched struct {
	Type    string                `json:"type"` // proposal, ledger or problem
	Item    *operator.Item        `json:"item,omitempty"`
	Entry   *operator.LedgerEntry `json:"entry,omitempty"`
	Problem *operator.Problem     `json:"problem,omitempty"`
}

func (a *app) watch(ctx context.Context, d *desk) error {
	n, err := a.notifier(d, "", newLog(a.err, false))
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.Run(ctx) })
	g.Go(func() error { return n.Run(ctx) })
	g.Go(func() error {
		changes, err := d.Changes(ctx)
		if err != nil {
			return fmt.Errorf("watching %s: %w", d.root, err)
		}
		w := &watcher{app: a, desk: d, shown: map[operator.Ref]operator.State{}, problems: map[operator.Problem]bool{}}
		if w.seq, err = lastSeq(ctx, d); err != nil {
			return err
		}
		return operator.LookAtEach(ctx, changes, lookEvery, lookPace, w.look)
	})
	return g.Wait()
}

// watcher knows what it has told already.
type watcher struct {
	*app
	*desk
	shown    map[operator.Ref]operator.State
	problems map[operator.Problem]bool
	seq      int64 // of the last ledger line told
}

func lastSeq(ctx context.Context, d *desk) (int64, error) {
	for e, err := range d.History(ctx, operator.HistoryFilter{}) {
		if err == nil {
			return e.Seq, nil
		}
		if ctx.Err() != nil {
			return 0, err
		}
	}
	return 0, nil
}

// look tells what is new: decisions first, since what they are about was told before.
func (w *watcher) look(ctx context.Context) error {
	var lines []operator.LedgerEntry
	var broken []operator.Problem
	for e, err := range w.History(ctx, operator.HistoryFilter{}) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			broken = append(broken, operator.Problem{Name: "ledger", Text: safetext.Untrusted(err.Error())})
			break
		}
		if e.Seq <= w.seq {
			break
		}
		lines = append(lines, e)
	}
	s, err := w.Snapshot(ctx)
	if err != nil {
		return err
	}
	for _, e := range slices.Backward(lines) {
		if err := w.tell(watched{Type: "ledger", Entry: &e}); err != nil {
			return err
		}
		w.seq = e.Seq
	}
	now := map[operator.Ref]operator.State{}
	for _, it := range s.Items {
		fill(&it)
		now[it.Ref] = it.State
		if _, told := w.shown[it.Ref]; told {
			continue
		}
		if err := w.tell(watched{Type: "proposal", Item: &it}); err != nil {
			return err
		}
	}
	w.shown = now
	problems := map[operator.Problem]bool{}
	for _, p := range append(broken, s.Problems...) {
		problems[p] = true
		if w.problems[p] {
			continue
		}
		if err := w.tell(watched{Type: "problem", Problem: &p}); err != nil {
			return err
		}
	}
	w.problems = problems
	return nil
}

func (w *watcher) tell(l watched) error {
	if w.json {
		return w.printJSONLine(l)
	}
	switch l.Type {
	case "proposal":
		it := l.Item
		state := ""
		if it.State != operator.Open {
			state = w.style.warn(string(it.State)) + "  "
		}
		text := fmt.Sprintf("%s  %s%s  %s  %s: %s", w.style.bold("asks"), state, it.ID, it.Bottle, safetext.Line(it.Tool, 20), it.Summary.Line(200))
		if f := w.findingCodes(it.Findings); f != "" {
			text += "  " + f
		}
		return w.line(it.ArrivedAt, text)
	case "ledger":
		e := l.Entry
		text := fmt.Sprintf("%s  %s  %s", happened(*e), safetext.Line(string(e.ID), 36), escapeLine(e.Bottle))
		if e.By != "" {
			text += "  by " + escapeLine(e.By)
		}
		if e.Notes != "" {
			text += ": " + e.Notes.Line(200)
		}
		if e.Error != "" {
			text += "  error: " + e.Error.Line(200)
		}
		return w.line(e.At, text)
	}
	p := l.Problem
	return w.line(time.Now(), fmt.Sprintf("problem  %s: %s", where(*p), p.Text.Line(200)))
}

// line prints what happened. Only a terminal has it broken, where nothing an agent wrote may begin where our lines do.
func (w *watcher) line(at time.Time, text string) error {
	s := w.style
	s.wrap = 0
	return w.printf("%s", s.para(clock(at)+"  ", text))
}

func clock(t time.Time) string {
	if t.IsZero() {
		t = time.Now()
	}
	return t.Local().Format("15:04:05")
}
