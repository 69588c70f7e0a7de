package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/supervise/internal/lazy"
	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/safetext"
)

func newAudit(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Check the ledger",
		Args:  noSuchCommand,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var head string
	verify := &cobra.Command{
		Use:   "verify",
		Short: "Prove that no line of the ledger was edited, moved or removed",
		Long: `Every line of the ledger holds the hash of the line before. verify follows the chain from
the first line to the last and tells where it breaks, if it does: exit code 1.

A chain cannot prove that lines at its end are missing. Note down the head it prints,
somewhere else, and give it back with --head: then it can.`,
		Example: `  supervise audit verify
  supervise audit verify --json | jq -r .head > head    to be kept elsewhere
  supervise audit verify --head "$(cat head)"           is everything up to there still there?`,
		Args: args(0, 0),
		RunE: a.withReadDesk(func(cmd *cobra.Command, d *desk, _ []string) error {
			if cmd.Flags().Changed("head") && !isHash(head) {
				return usagef("give all of what verify printed as head", "audit verify: --head %s is not 64 hexadecimal digits", quote(safetext.Line(head, 80)))
			}
			r, err := d.Audit(cmd.Context(), head)
			if err != nil {
				return err
			}
			return a.audit(r)
		}),
	}
	a.deskFlags(verify)
	verify.Flags().StringVar(&head, "head", "", "a `hash` that verify printed earlier")
	cmd.AddCommand(verify)
	return cmd
}

var hashRE = lazy.Regexp(`^[0-9a-f]{64}$`)

// isHash tells whether it may be a SHA-256 as we print it: a digest, a ledger line's hash.
func isHash(s string) bool { return hashRE().MatchString(s) }

// auditJSON is what audit verify --json prints.
type auditJSON struct {
	OK bool `json:"ok"`
	*operator.AuditReport
}

func (a *app) audit(r *operator.AuditReport) error {
	var err error
	if a.json {
		err = a.printJSON(auditJSON{r.OK(), r})
	} else {
		s := &sheet{style: a.style}
		s.field("entries", count(int(r.Entries), "line"))
		s.field("head", r.Head)
		if r.Torn > 0 {
			s.field("torn", count(int(r.Torn), "byte")+" of a last line that a crash cut off; the next entry removes them")
		}
		if r.OK() {
			s.field("result", "OK: the chain holds")
		} else {
			s.field("result", a.style.danger("BROKEN: ")+escapeLine(r.Problem))
		}
		err = a.printf("%s", s.String())
	}
	if err != nil || r.OK() {
		return err
	}
	return hint(errors.New("verifying the ledger: "+escapeLine(r.Problem)), "keep the file as it is and compare it with a copy; the entries up to there are proven")
}
