package main

import "github.com/spf13/cobra"

func newApprove(a *app) *cobra.Command {
	var c choice
	cmd := &cobra.Command{
		Use:   "approve ID",
		Short: "Make the change and answer the agent",
		Long: `Make the proposed change, see that it is in force, and answer the agent.

On a terminal it shows what would change and asks; a danger is accepted by typing its code.
In a script give the digest that show printed (exit code 3 if what would change is not that
any more), or --yes, which approves just what it prints itself. Either way every danger
needs --accept CODE.

A change that does not hold is put back, and the proposal stays open.`,
		Example: `  supervise approve 0197f3b2-6d1e
  supervise approve 0197f3b2-6d1e --digest "$(supervise show 0197f3b2-6d1e --json | jq -r .digest)"
  supervise approve 0197f3b2-6d1e --yes --accept credential --notes 'read only, please'`,
		Args:              args(1, 1),
		ValidArgsFunction: a.completeIDs,
	}
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error { return a.check(cmd, args[0], c) }
	cmd.RunE = a.withDesk(func(cmd *cobra.Command, d *desk, args []string) error {
		ref, err := d.Find(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		if err := a.canAsk(cmd, args[0], c); err != nil {
			return err
		}
		return a.approve(cmd, d, ref, nil, nil, c)
	})
	a.deskFlags(cmd)
	a.choiceFlags(cmd, &c)
	return cmd
}
