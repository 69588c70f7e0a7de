package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"

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
		Short: "List the bottles, forget those that are gone",
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
		RunE: a.withDeskAsLeft(func(cmd *cobra.Command, d *desk, args []string) error {
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
				return err
			}
			if a.json {
				return a.printJSON(forgottenJSON{slug, open})
			}
			return a.printf("forgot bottle %s, with %s that nobody decided\n", slug, count(open, "proposal"))
		}),
	}
	a.deskFlags(forget)
	forget.Flags().BoolVarP(&sure, "yes", "y", false, "do not ask")
	cmd.AddCommand(newBottleList(a), forget)
	return cmd
}

// bottleJSON is one line of bottle list --json.
type bottleJSON struct {
	Bottle     string `json:"bottle"`
	Mailbox    bool   `json:"mailbox"`
	Sidecar    string `json:"sidecar"` // running, unknown
	Open       int    `json:"open"`
	Egress     string `json:"egress,omitempty"`
	Pipelock   string `json:"pipelock,omitempty"`
	Capability string `json:"capability,omitempty"`
}

// bottlesJSON is what bottle list --json prints.
type bottlesJSON struct {
	Root    string       `json:"root"`
	Bottles []bottleJSON `json:"bottles"`
}

func newBottleList(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Every bottle, and what of it an approval changes",
		Long: `Every bottle that has a mailbox, and every one that the configuration names: whether its
sidecar was heard of within 90 s, how many proposals are open, and which files an approval
changes. A name in the configuration without a mailbox is a bottle that never started, or
a typing mistake.`,
		Example: `  supervise bottle list
  supervise bottle list --json | jq -r '.bottles[] | select(.egress == null) | .bottle'`,
		Args: args(0, 0),
		RunE: a.withReadDesk(func(cmd *cobra.Command, d *desk, _ []string) error {
			all, err := d.bottles(cmd.Context())
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(bottlesJSON{d.root, all})
			}
			return a.listBottles(d, all)
		}),
	}
	a.deskFlags(cmd)
	return cmd
}

// bottles are those that have a mailbox and those that the configuration names.
func (d *desk) bottles(ctx context.Context) ([]bottleJSON, error) {
	s, err := d.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	open := map[string]int{}
	for _, it := range s.Items {
		open[it.Bottle]++
	}
	out := []bottleJSON{}
	names := slices.Concat(s.Bottles, d.named)
	slices.Sort(names)
	for _, slug := range slices.Compact(names) {
		b := bottleJSON{Bottle: slug, Mailbox: slices.Contains(s.Bottles, slug), Open: open[slug], Sidecar: "unknown"}
		if p, err := d.inbox.Presence(ctx, slug); err == nil && p.Known {
			b.Sidecar = "running"
		}
		t := d.targets(slug)
		if t.Egress != nil {
			b.Egress = t.Egress.File
		}
		if t.Pipelock != nil {
			b.Pipelock = t.Pipelock.File
		}
		if t.Capability != nil {
			b.Capability = t.Capability.File
		}
		out = append(out, b)
	}
	return out, nil
}

func (a *app) listBottles(d *desk, all []bottleJSON) error {
	if len(all) == 0 {
		return a.printf("No bottle has a mailbox under %s yet.\n", d.root)
	}
	t := table{style: a.style, head: []string{"BOTTLE", "OPEN", "SIDECAR", "AN APPROVAL CHANGES"}}
	strangers := 0
	for _, b := range all {
		sidecar := b.Sidecar
		if !b.Mailbox {
			sidecar = "no mailbox"
			strangers++
		}
		r := row{cells: []string{b.Bottle, strconv.Itoa(b.Open), sidecar}}
		var files []string
		for _, f := range []string{b.Egress, b.Pipelock, b.Capability} {
			if f != "" {
				files = append(files, f)
			}
		}
		if len(files) == 0 {
			files = []string{"nothing: not in the configuration"}
		}
		r.cells = append(r.cells, files[0])
		for _, f := range files[1:] {
			t.rows = append(t.rows, r)
			r = row{cells: []string{"", "", "", f}}
		}
		t.rows = append(t.rows, r)
	}
	if err := a.printf("%s", t.String()); err != nil {
		return err
	}
	if strangers > 0 {
		return a.printf("%s\n", a.style.dim("No mailbox: it never started under "+d.root+", or the configuration's name for it is mistyped."))
	}
	return nil
}
