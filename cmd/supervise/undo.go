package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/safetext"
)

func newUndo(a *app) *cobra.Command {
	var unmanaged bool
	cmd := &cobra.Command{
		Use:   "undo ID",
		Short: "Take an approved change back",
		Long: `Take an approved change back: where the entry it made or widened is still as the approval
left it, it becomes what it was before; everything else in the file stays. A change that
somebody edited since is left alone, and so is a host in pipelock's list that a change which
was approved later needs: that one is to be undone first. If it is another bottle's, with routes
of its own, this one's route goes all the same, and the host stays in the list they share.

The agent is not told. Its next request is refused, and it asks again. If it has not had its
answer yet, or fetches that once more, it hears that the change was taken back.`,
		Example: `  supervise history --status approved
  supervise undo 0197f3b2-6d1e`,
		Args:              args(1, 1),
		ValidArgsFunction: a.completeApplied,
		RunE: a.withDeskAsLeft(func(cmd *cobra.Command, d *desk, args []string) error {
			ref, err := d.Find(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			progress := &lineWriter{w: a.err}
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			whole := catchPipe()
			undo := d.Undo
			if unmanaged {
				undo = d.UndoUnmanaged
			}
			res, err := undo(ctx, ref, progress)
			whole()
			progress.Flush()
			if errors.Is(err, operator.ErrNotUndoable) {
				return notUndone(cmd.Context(), d, ref, err)
			}
			if err != nil {
				return err
			}
			if a.json {
				return a.done(res, nil)
			}
			if err := a.printf("undone %s of bottle %s\n", ref, ref.Bottle); err != nil {
				return err
			}
			for _, n := range res.Notes {
				if err := a.printf("  %s\n", escapeLine(n)); err != nil {
					return err
				}
			}
			return nil
		}),
	}
	a.deskFlags(cmd)
	cmd.Flags().BoolVar(&unmanaged, "unmanaged", false, "restore a file that the configuration no longer names: you have it read by hand")
	return cmd
}

// notUndone says what there is to do, where that is not to change the file by hand.
func notUndone(ctx context.Context, d *desk, ref operator.Ref, err error) error {
	p, serr := d.Show(ctx, ref, nil)
	switch {
	case serr != nil:
		return err
	case p.Decision == nil:
		return hint(err, "supervise reject %s says no to it", ref)
	case p.Decision.State == operator.Undone:
		return &operator.DecidedError{Ref: ref, Status: operator.StatusUndone, By: p.Decision.UndoneBy, Via: p.Decision.Via, At: p.Decision.UndoneAt}
	case p.Decision.State == operator.Answered:
		return hint(err, "") // nothing was changed, so there is nothing to do
	}
	return err
}

// completeApplied offers the last changes that were made.
func (a *app) completeApplied(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	none := cobra.ShellCompDirectiveNoFileComp
	if len(args) > 0 {
		return nil, none
	}
	d, err := a.openDesk()
	if err != nil {
		return nil, none
	}
	defer d.Close()
	var out []cobra.Completion
	for e, err := range d.History(cmd.Context(), operator.HistoryFilter{Event: operator.EventApplied, Limit: 20}) {
		if err != nil {
			break
		}
		out = append(out, cobra.CompletionWithDesc(safetext.Line(string(e.ID), 36), escapeLine(e.Bottle)+": "+e.Summary.Line(60)))
	}
	return out, none | cobra.ShellCompDirectiveKeepOrder
}
