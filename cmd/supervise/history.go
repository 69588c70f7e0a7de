package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/safetext"
	"github.com/bot-bottle/supervise/queue"
)

func newHistory(a *app) *cobra.Command {
	var f operator.HistoryFilter
	var status, since string
	cmd := &cobra.Command{
		Use:   "history",
		Short: "What was decided and done, newest first",
		Long: `What was decided, and what came of it, newest first: from the ledger, which every
operator of these mailboxes shares. A decision has several lines: decided, then applied or
failed, later perhaps undone.`,
		Example: `  supervise history
  supervise history --bottle web --status rejected --since 7d
  supervise history --query github.com --limit 0 --json`,
		Args: args(0, 0),
		RunE: a.withReadDesk(func(cmd *cobra.Command, d *desk, _ []string) error {
			var err error
			if f.Since, err = parseSince(since, time.Now()); err != nil {
				return err
			}
			if f.Status, err = parseStatus(status); err != nil {
				return err
			}
			if f.Bottle != "" && queue.CheckSlug(f.Bottle) != nil {
				return usagef("", "--bottle: %v", queue.CheckSlug(f.Bottle))
			}
			if f.Tool != "" && !slices.Contains(known, f.Tool) {
				return usagef("it is "+strings.Join(known[:len(known)-1], ", ")+" or "+known[len(known)-1], "--tool %s is no tool that changes anything", quote(safetext.Line(f.Tool, 40)))
			}
			if f.Limit < 0 {
				return usagef("0 is no limit", "--limit %d is negative", f.Limit)
			}
			return a.history(cmd, d, f)
		}),
	}
	a.deskFlags(cmd)
	fl := cmd.Flags()
	fl.StringVar(&f.Bottle, "bottle", "", "only of the bottle with this `slug`")
	fl.StringVar(&f.Tool, "tool", "", "only this `tool`'s: egress-block, pipelock-block, capability-block")
	fl.StringVar(&status, "status", "", "only `decisions` of this kind: approved, modified, rejected")
	fl.StringVar(&since, "since", "", "only since `when`: 90m, 24h, 7d, 2026-05-17, or a time in RFC 3339")
	fl.StringVar(&f.Query, "query", "", "only lines with this `text` in what was asked, notes, bottle, id, error or who")
	fl.IntVar(&f.Limit, "limit", 50, "at most this many `lines`; 0: all")
	must(cmd.RegisterFlagCompletionFunc("bottle", a.completeBottles))
	must(cmd.RegisterFlagCompletionFunc("tool", cobra.FixedCompletions(known, cobra.ShellCompDirectiveNoFileComp)))
	must(cmd.RegisterFlagCompletionFunc("status", cobra.FixedCompletions([]cobra.Completion{"approved", "modified", "rejected"}, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

// known are the tools whose changes are decided on.
var known = []string{payload.Egress, payload.Pipelock, payload.Capability}

func parseStatus(s string) (queue.Status, error) {
	switch st := queue.Status(s); st {
	case "", queue.Approved, queue.Modified, queue.Rejected:
		return st, nil
	}
	return "", usagef("it is approved, modified or rejected", "--status %s is no decision", quote(safetext.Line(s, 40)))
}

// parseSince reads a duration back from now (d for days), a date, or a time.
func parseSince(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil && n >= 0 {
			return now.AddDate(0, 0, -n), nil
		}
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	if t, err := time.ParseInLocation(time.DateOnly, s, now.Location()); err == nil {
		return t, nil
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	return time.Time{}, usagef("give 90m, 24h, 7d, 2026-05-17 or 2026-05-17T08:00:00Z", "--since %s is no time", quote(safetext.Line(s, 40)))
}

// historyJSON is what history --json prints.
type historyJSON struct {
	Entries []operator.LedgerEntry `json:"entries"`
}

func (a *app) history(cmd *cobra.Command, d *desk, f operator.HistoryFilter) error {
	entries := []operator.LedgerEntry{}
	var broken []error
	for e, err := range d.History(cmd.Context(), f) {
		if err != nil {
			broken = append(broken, err) // the lines around it are still worth seeing
			continue
		}
		entries = append(entries, e)
	}
	if len(entries) == 0 && len(broken) > 0 && !a.json {
		return errors.Join(broken...) // and nobody knows whether anything matches
	}
	if len(entries) == 0 && f.Bottle != "" && !a.json {
		bare := operator.HistoryFilter{Bottle: f.Bottle, Limit: 1}
		for range d.History(cmd.Context(), bare) {
			return a.showHistory(d, entries, f.Limit)
		}
		return a.printf("No line in the ledger of %s is of bottle %s.\n", d.root, f.Bottle)
	}
	return errors.Join(append([]error{a.showHistory(d, entries, f.Limit)}, broken...)...)
}

func (a *app) showHistory(d *desk, entries []operator.LedgerEntry, limit int) error {
	if a.json {
		return a.printJSON(historyJSON{entries})
	}
	if len(entries) == 0 {
		return a.printf("Nothing in the ledger of %s matches.\n", d.root)
	}
	t := table{style: a.style, head: []string{"WHEN", "WHAT", "ID", "BOTTLE", "BY", "ASKED TO"}, middle: 3}
	for _, e := range entries {
		r := row{cells: []string{when(e.At), happened(e), safetext.Line(string(e.ID), 36), escapeLine(e.Bottle), escapeLine(e.By), e.Summary.Line(300)}}
		if e.Notes != "" {
			r.under = append(r.under, a.style.dim("notes: ")+e.Notes.Line(300))
		}
		if len(e.Accepted) > 0 && e.Event == operator.EventDecided {
			r.under = append(r.under, a.style.dim("accepted: ")+escapeLine(strings.Join(e.Accepted, ", ")))
		}
		if e.Error != "" {
			r.under = append(r.under, a.style.warn("error: ")+e.Error.Line(300))
		}
		t.rows = append(t.rows, r)
	}
	if err := a.printf("%s", t.String()); err != nil {
		return err
	}
	if limit > 0 && len(entries) == limit {
		return a.printf("%s\n", a.style.dim(fmt.Sprintf("The newest %d; --limit 0 shows all.", limit)))
	}
	return nil
}

// happened is one ledger line's event in two words.
func happened(e operator.LedgerEntry) string {
	switch e.Event {
	case operator.EventDecided:
		return escapeLine(string(e.Status))
	case operator.EventApplied, operator.EventNotReplaced:
		return "→ " + escapeLine(string(e.Outcome))
	case operator.EventFailed, operator.EventStuck, operator.EventUndone:
		return "→ " + e.Event
	case operator.EventForeign:
		return escapeLine(string(e.Status)) + " elsewhere"
	}
	return escapeLine(e.Event)
}
