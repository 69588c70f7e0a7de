package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/supervise/internal/safetext"
)

func newReject(a *app) *cobra.Command {
	var notes string
	cmd := &cobra.Command{
		Use:   "reject ID",
		Short: "Say no, and why",
		Long: `Answer the agent with no. Nothing is changed.

The notes reach the agent as typed; they are its only clue to what it should do instead.`,
		Example: `  supervise reject 0197f3b2-6d1e --notes 'no uploads; read from the mirror at pypi.internal'`,
		Args: func(cmd *cobra.Command, given []string) error {
			if len(given) > 1 {
				return usagef("supervise reject "+quote(given[0])+" --notes "+quote(strings.Join(given[1:], " ")), "reject: too many arguments, from %q on", safetext.Line(given[1], 40))
			}
			return args(1, 1)(cmd, given)
		},
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
