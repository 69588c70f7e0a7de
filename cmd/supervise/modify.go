package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/safetext"
)

func newModify(a *app) *cobra.Command {
	var c choice
	var file string
	cmd := &cobra.Command{
		Use:   "modify ID",
		Short: "Approve with changes",
		Long: `Edit what was proposed and approve that instead. The agent is told that you changed it
and what is in force now.

Without --file it opens $VISUAL or $EDITOR, then shows what the edit would change and asks.
With --file the edit comes from a file, and --digest (as show --file printed it) or --yes
works as for approve. The file is what the tool stores: a route as JSON, a URL, a Dockerfile.`,
		Example: `  supervise modify 0197f3b2-6d1e
  supervise show 0197f3b2-6d1e --json | jq -r .proposed_file > route.json
  supervise modify 0197f3b2-6d1e --file route.json --yes`,
		Args:              args(1, 1),
		ValidArgsFunction: a.completeIDs,
	}
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if file == "" && (c.yes || c.digest != "") {
			return usagef("supervise show ID --file F previews an edit and prints its digest", "%s--yes and --digest need --file", name(cmd))
		}
		if file == "-" && c.digest == "" && !c.yes {
			return usagef("save the edit to a file", "%sstandard input cannot hold both the edit and your answer", name(cmd))
		}
		return a.check(cmd, args[0], c)
	}
	cmd.RunE = a.withDesk(func(cmd *cobra.Command, d *desk, args []string) error {
		ref, err := d.Find(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		if err := a.canAsk(cmd, args[0], c); err != nil {
			return err
		}
		edited, err := a.edited(file)
		if err != nil {
			return err
		}
		var p *operator.Preview
		if edited == nil {
			if p, edited, err = a.edit(cmd, d, ref); err != nil {
				return err
			}
		}
		return a.approve(cmd, d, ref, edited, p, c)
	})
	a.deskFlags(cmd)
	a.choiceFlags(cmd, &c)
	cmd.Flags().StringVar(&file, "file", "", "take the edit from this `file` (-: standard input)")
	return cmd
}

// edit lets the operator edit a proposal until it can be previewed, and returns the edit and its preview.
func (a *app) edit(cmd *cobra.Command, d *desk, ref operator.Ref) (*operator.Preview, *string, error) {
	id := ref.Bottle + "/" + string(ref.ID)
	p, err := a.look(cmd.Context(), d, id, nil)
	if err != nil {
		return nil, nil, err
	}
	if p.State == operator.Bad || p.Decision != nil {
		return p, nil, nil // the desk tells why not
	}
	proposed := p.Proposed.Raw()
	if safetext.Block(proposed) != proposed {
		// An editor would hide them, or obey them.
		return nil, nil, hint(fmt.Errorf("proposal %s holds characters that an editor may hide", ref),
			"see them with supervise show %s, write the file anew and pass it with --file", ref)
	}
	dir, err := os.MkdirTemp("", "supervise-")
	if err != nil {
		return nil, nil, fmt.Errorf("making a file to edit: %w", err)
	}
	defer os.RemoveAll(dir)
	names := map[string]string{payload.Egress: "route.json", payload.Pipelock: "url.txt", payload.Capability: "Dockerfile"}
	file := filepath.Join(dir, cmp.Or(names[p.Tool], "proposal.txt"))
	if err := os.WriteFile(file, []byte(proposed), 0o600); err != nil {
		return nil, nil, fmt.Errorf("making a file to edit: %w", err)
	}
	for {
		if err := a.editor(cmd, file); err != nil {
			return nil, nil, err
		}
		edited, err := a.edited(file)
		if err != nil {
			return nil, nil, err
		}
		if *edited == proposed {
			return nil, nil, hint(errDeclined, "the file is as it was; to approve it so: supervise approve %s%s", ref, a.again())
		}
		p, err := a.look(cmd.Context(), d, id, edited)
		if bad, ok := errors.AsType[*operator.EditError](err); ok {
			a.say("%s", indent(escape(bad.Error())))
			fmt.Fprint(a.err, "Edit it again? [Y/n] ")
			line, err := bufio.NewReader(a.in).ReadString('\n')
			if err != nil || len(line) > 1 && !yes(line[:len(line)-1]) {
				return nil, nil, errDeclined
			}
			continue
		}
		return p, edited, err
	}
}

// editor runs the operator's editor on a file.
func (a *app) editor(cmd *cobra.Command, file string) error {
	editor := cmp.Or(a.env("VISUAL"), a.env("EDITOR"), "vi")
	c := exec.CommandContext(cmd.Context(), "sh", "-c", editor+` "$@"`, editor, file) // as it may have arguments
	c.Stdin, c.Stdout, c.Stderr = a.in, a.out, a.err
	// ^C is the editor's while it runs. Caught, not ignored: the editor would inherit that.
	keys := make(chan os.Signal, 1)
	signal.Notify(keys, os.Interrupt, syscall.SIGQUIT)
	defer signal.Stop(keys)
	if err := c.Run(); err != nil {
		return hint(fmt.Errorf("running the editor %s: %w", quote(editor), err), "set EDITOR, or pass an edited file with --file")
	}
	return nil
}
