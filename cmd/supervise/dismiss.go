package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/queue"
)

func newDismiss(a *app) *cobra.Command {
	var sure bool
	cmd := &cobra.Command{
		Use:   "dismiss ID|BOTTLE...",
		Short: "Clear away what nobody will decide",
		Long: `Reject with the notes "` + operator.DismissNotes + `": one proposal, or all that are
open in a bottle. Where an agent is waiting at this moment it asks first; in a script that
needs --yes. On a terminal it asks before it dismisses several, too.`,
		Example: `  supervise dismiss 0197f3b2-6d1e
  supervise dismiss web`,
		Args: args(1, -1),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, part string) ([]cobra.Completion, cobra.ShellCompDirective) {
			ids, how := a.completeIDs(cmd, nil, part)
			bottles, _ := a.completeBottles(cmd, nil, part)
			return append(bottles, ids...), how
		},
		RunE: a.withDesk(func(cmd *cobra.Command, d *desk, args []string) error {
			return a.dismiss(cmd.Context(), d, args, sure)
		}),
	}
	a.deskFlags(cmd)
	cmd.Flags().BoolVarP(&sure, "yes", "y", false, "do not ask")
	return cmd
}

// dismissedJSON is what dismiss --json prints.
type dismissedJSON struct {
	Dismissed []*operator.Result `json:"dismissed"`
}

func (a *app) dismiss(ctx context.Context, d *desk, names []string, sure bool) error {
	s, err := d.Snapshot(ctx)
	if err != nil {
		return err
	}
	var refs []operator.Ref
	for _, name := range names {
		name = strings.TrimSpace(name)
		found, err := toDismiss(ctx, d, s, name)
		if err != nil {
			return err
		}
		refs = append(refs, found...)
	}
	if waiting := waitingIn(s, refs); !sure && (waiting > 0 || len(refs) > 1 && a.asks()) {
		if err := a.confirm(dismissQuestion(refs, waiting), "--yes dismisses all the same"); err != nil {
			return err
		}
	}
	done, err := d.Dismiss(ctx, refs...)
	if a.json {
		if len(done) == 0 && err != nil {
			return err
		}
		if done == nil {
			done = []*operator.Result{}
		}
		return errors.Join(err, a.printJSON(dismissedJSON{done}))
	}
	for _, r := range done {
		if perr := a.printf("dismissed %s of bottle %s\n", r.Ref, r.Ref.Bottle); perr != nil {
			return errors.Join(err, perr)
		}
	}
	if len(refs) == 0 {
		return a.printf("Nothing is open in %s.\n", strings.Join(names, ", "))
	}
	return err
}

// dismissQuestion asks about proposals, where agents wait for some of them. One that is about to ask again, as it does after its hold,
// does not wait.
func dismissQuestion(refs []operator.Ref, waiting int) string {
	switch n := len(refs); {
	case n == 1:
		return fmt.Sprintf("An agent is waiting for the answer to %s of bottle %s. Dismiss it?", refs[0], refs[0].Bottle)
	case waiting == 0:
		return fmt.Sprintf("Dismiss %d, though no agent waits for them at this moment?", n)
	case waiting == n:
		return fmt.Sprintf("Dismiss %d, for each of which an agent is waiting?", n)
	default:
		return fmt.Sprintf("Dismiss %d, for %d of which an agent is waiting?", n, waiting)
	}
}

// toDismiss resolves a bottle to what is open in it, anything else as an id.
func toDismiss(ctx context.Context, d *desk, s *operator.Snapshot, name string) ([]operator.Ref, error) {
	if !slices.Contains(s.Bottles, name) {
		ref, err := d.Find(ctx, name)
		if errors.Is(err, operator.ErrNotFound) && queue.CheckSlug(name) == nil {
			return nil, hint(fmt.Errorf("%w, and no bottle is called that: %s", operator.ErrNotFound, quote(name)), "supervise list shows both")
		}
		return []operator.Ref{ref}, err
	}
	var refs []operator.Ref
	for _, it := range s.Items {
		if it.Bottle == name {
			refs = append(refs, it.Ref)
		}
	}
	return refs, nil
}

func waitingIn(s *operator.Snapshot, refs []operator.Ref) int {
	n := 0
	for _, it := range s.Items {
		if it.Connected == operator.Waiting && slices.Contains(refs, it.Ref) {
			n++
		}
	}
	return n
}

// asks tells whether there is somebody to ask.
func (a *app) asks() bool { return a.inTTY && a.style.tty && !a.json }

// confirm asks a question on the terminal; without one it is wrong use, and how says what to give instead.
func (a *app) confirm(question, how string) error {
	if !a.asks() {
		return usagef(how, "there is no terminal to ask on: %s", question)
	}
	fmt.Fprint(a.err, question+" [y/N] ")
	line, err := bufio.NewReader(a.in).ReadString('\n')
	if err != nil || !yes(strings.TrimSpace(line)) {
		return errDeclined
	}
	return nil
}
