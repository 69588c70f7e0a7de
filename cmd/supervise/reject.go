package main

import "github.com/spf13/cobra"

func newReject(a *app) *cobra.Command {
	var notes string
	cmd := &cobra.Command{
		Use:   "reject ID",
		Short: "Say no, and why",
		Long: `Answer the agent with no. Nothing is changed.

The notes reach the agent as typed; they are its only clue to what it should do instead.`,
		Example:           `  supervise reject 0197f3b2-6d1e --notes 'no uploads; read from the mirror at pypi.internal'`,
		Args:              args(1, 1),
		ValidArgsFunction: a.completeIDs,
		RunE: a.withDesk(func(cmd *cobra.Command, d *desk, args []string) error {
			ref, err := d.Find(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			res, err := d.Reject(cmd.Context(), ref, notes)
			if err != nil {
				return err
			}
			return a.done(res, nil)
		}),
	}
	a.deskFlags(cmd)
	cmd.Flags().StringVar(&notes, "notes", "", "`text` for the agent, which reads it as typed")
	return cmd
}
