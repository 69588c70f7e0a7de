package main

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/supervise/queue"
)

// forgottenJSON is what bottle forget --json prints.
type forgottenJSON struct {
	Forgotten string `json:"forgotten"`
	Open      int    `json:"open"` // proposals that nobody had decided
}

func newBottle(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bottle",
		Short: "Forget bottles that are gone",
		Args:  noSuchCommand,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var sure bool
	forget := &cobra.Command{
		Use:   "forget SLUG",
		Short: "Remove the mailbox of a bottle that is gone",
		Long: `Remove the mailbox of a bottle that is gone, with whatever is open in it. Records and the
ledger stay, so history still tells what was decided; what was approved stays in force.
It is refused while a sidecar uses the mailbox.`,
		Example:           `  supervise bottle forget web`,
		Args:              args(1, 1),
		ValidArgsFunction: a.completeBottles,
		RunE: a.withDesk(func(cmd *cobra.Command, d *desk, args []string) error {
			slug := args[0]
			if err := queue.CheckSlug(slug); err != nil {
				return usagef("supervise bottle forget SLUG", "forgetting a bottle: %v", err)
			}
			s, err := d.Snapshot(cmd.Context())
			if err != nil {
				return err
			}
			if !slices.Contains(s.Bottles, slug) {
				return noBottle(slug, s.Bottles)
			}
			open := 0
			for _, it := range s.Items {
				if it.Bottle == slug {
					open++
				}
			}
			if !sure {
				question := fmt.Sprintf("Forget bottle %s, with %s that nobody decided?", slug, count(open, "proposal"))
				if err := a.confirm(question, "--yes forgets it without asking"); err != nil {
					return err
				}
			}
			if err := d.Forget(cmd.Context(), slug); err != nil {
				return fmt.Errorf("forgetting bottle %s: %w", slug, err)
			}
			if a.json {
				return a.printJSON(forgottenJSON{slug, open})
			}
			return a.printf("forgot bottle %s, with %s that nobody decided\n", slug, count(open, "proposal"))
		}),
	}
	a.deskFlags(forget)
	forget.Flags().BoolVarP(&sure, "yes", "y", false, "do not ask")
	cmd.AddCommand(forget)
	return cmd
}
