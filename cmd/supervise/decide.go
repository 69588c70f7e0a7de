package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/aymanbagabas/go-udiff"
	"github.com/spf13/cobra"

	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/safetext"
)

// choice is how an approval is given on the command line.
type choice struct {
	digest    string
	yes       bool
	accept    []string
	unmanaged bool
	notes     string
}

func (a *app) choiceFlags(cmd *cobra.Command, c *choice) {
	f := cmd.Flags()
	f.StringVar(&c.digest, "digest", "", "approve only what the `digest` stands for, as show printed it")
	f.BoolVarP(&c.yes, "yes", "y", false, "do not ask: print the preview and approve just that")
	f.StringSliceVar(&c.accept, "accept", nil, "accept the danger with this `code` (repeatable, or with commas)")
	f.BoolVar(&c.unmanaged, "unmanaged", false, "approve although a target is not managed: you have made the change by hand")
	f.StringVar(&c.notes, "notes", "", "`text` for the agent, which reads it as typed")
	must(cmd.RegisterFlagCompletionFunc("accept", a.completeDangers))
}

// completeDangers offers the codes of the proposal that is named, or all.
func (a *app) completeDangers(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var out []cobra.Completion
	if len(args) > 0 {
		if d, err := a.readDesk(); err == nil {
			defer d.Close()
			if p, err := a.look(cmd.Context(), d, args[0], nil); err == nil {
				for _, f := range p.Findings {
					if f.Level == operator.Danger {
						out = append(out, cobra.CompletionWithDesc(f.Code, f.Text))
					}
				}
				return out, cobra.ShellCompDirectiveNoFileComp
			}
		}
	}
	for _, f := range operator.FindingCodes() {
		if f.Level == operator.Danger {
			out = append(out, cobra.CompletionWithDesc(f.Code, f.Text))
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// look finds a proposal and previews it.
func (a *app) look(ctx context.Context, d *desk, id string, edited *string) (*operator.Preview, error) {
	ref, err := d.Find(ctx, id)
	if err != nil {
		return nil, err
	}
	p, err := d.Show(ctx, ref, edited)
	if err != nil {
		return nil, err
	}
	fill(&p.Item)
	if p.Targets == nil {
		p.Targets = []operator.TargetView{}
	}
	return p, nil
}

// maxEdited bounds what is read as an edited file: the largest payload, with room to be told that it is too big.
const maxEdited = payload.MaxDockerfile * 2

// edited reads an operator's edit: a file, "-" for standard input, "" for none.
func (a *app) edited(file string) (*string, error) {
	if file == "" {
		return nil, nil
	}
	in := a.in
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, fmt.Errorf("reading the edited file: %w", err)
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxEdited+1))
	if err != nil {
		return nil, fmt.Errorf("reading the edited file %s: %w", file, err)
	}
	if len(b) > maxEdited {
		return nil, fmt.Errorf("the edited file %s is over %d bytes", file, maxEdited)
	}
	return new(string(b)), nil
}

// decisionJSON is what approve, modify, reject and undo print with --json.
type decisionJSON struct {
	*operator.Result
	Preview *operator.Preview `json:"preview,omitempty"` // with --yes: what was approved
}

// check refuses what cannot work before anything is looked at.
func (a *app) check(cmd *cobra.Command, id string, c choice) error {
	switch {
	case c.digest != "" && c.yes:
		return usagef("--digest approves what you saw, --yes what it prints itself", "%s--digest and --yes exclude each other", name(cmd))
	case cmd.Flags().Changed("digest") && !isHash(c.digest):
		return usagef("supervise show "+quote(id)+" prints it", "%s--digest %s is not 64 hexadecimal digits", name(cmd), quote(safetext.Line(c.digest, 80)))
	case len(unknownCodes(c.accept)) > 0:
		return usagef("docs/findings.md lists them; supervise show "+quote(id)+" has those of this proposal", "%sno finding has the code %q", name(cmd), strings.Join(unknownCodes(c.accept), ", "))
	}
	return nil
}

// canAsk refuses to ask where nobody can answer; not before the id is known to be one.
func (a *app) canAsk(cmd *cobra.Command, id string, c choice) error {
	if c.digest == "" && !c.yes && (!a.inTTY || !a.style.tty || a.json) {
		return usagef(fmt.Sprintf("supervise show %s prints the digest for --digest; --yes approves what it prints itself", quote(id)),
			"%sthere is no terminal to ask on", name(cmd))
	}
	return nil
}

func unknownCodes(codes []string) []string {
	return slices.DeleteFunc(slices.Clone(codes), func(code string) bool {
		return slices.ContainsFunc(operator.FindingCodes(), func(f operator.FindingDoc) bool { return f.Code == code })
	})
}

// approve decides on a proposal, or on an edit of it. p is what was looked at already, if anything.
func (a *app) approve(cmd *cobra.Command, d *desk, ref operator.Ref, edited *string, p *operator.Preview, c choice) error {
	dec := operator.Decision{Digest: c.digest, Accept: c.accept, Notes: c.notes, File: edited, Unmanaged: c.unmanaged}
	if c.digest == "" {
		var err error
		if p == nil {
			if p, err = a.look(cmd.Context(), d, ref.Bottle+"/"+string(ref.ID), edited); err != nil {
				return err
			}
		}
		dec.Digest = p.Digest
		if p.Decision == nil { // else the desk tells by whom it is decided
			if !a.json {
				if err := a.printf("%s\n", a.preview(p, a.style)); err != nil {
					return err
				}
			}
			if p.Blocked == "" && !c.yes {
				if err := a.ask(p, &dec); err != nil {
					return err
				}
			}
		}
	}
	progress := &lineWriter{w: a.err}
	dec.Progress = progress
	ctx, stop := interruptible(cmd.Context())
	defer stop()
	whole := catchPipe()
	res, err := d.Approve(ctx, ref, dec)
	whole()
	progress.Flush()
	if stale, ok := errors.AsType[*operator.StaleError](err); ok {
		if perr := a.changed(p, stale.Preview); perr != nil {
			return errors.Join(err, perr)
		}
	}
	if _, ok := errors.AsType[*operator.UnmanagedError](err); ok && d.without != "" {
		return hint(err, "%s: write one or name it with --config; or make the change by hand and approve with --unmanaged", d.without)
	}
	if err != nil {
		return err
	}
	if !c.yes {
		p = nil
	}
	return a.done(res, p)
}

// ask wants every danger typed by its code, and then a yes.
func (a *app) ask(p *operator.Preview, dec *operator.Decision) error {
	fmt.Fprint(a.err, a.recap(p))
	in := bufio.NewReader(a.in)
	answer := func(question string) (string, error) {
		fmt.Fprint(a.err, question)
		line, err := in.ReadString('\n')
		if err != nil && (err != io.EOF || line == "") {
			fmt.Fprintln(a.err)
			return "", errDeclined
		}
		return strings.TrimSpace(line), nil
	}
	for _, code := range p.Dangers() {
		if slices.Contains(dec.Accept, code) {
			continue
		}
		got, err := answer(fmt.Sprintf("%s %s: type the code to accept it: ", a.style.danger("DANGER"), code))
		if err != nil {
			return err
		}
		if got != code {
			if got != "" {
				return fmt.Errorf("%s is not %s: %w", quote(safetext.Line(got, 40)), code, errDeclined)
			}
			return errDeclined
		}
		dec.Accept = append(dec.Accept, code)
	}
	if len(p.Unmanaged) > 0 && !dec.Unmanaged {
		got, err := answer(fmt.Sprintf("%v is not managed here. Have you made the change by hand? [y/N] ", join(p.Unmanaged)))
		if err != nil {
			return err
		}
		if !yes(got) {
			return errDeclined
		}
		dec.Unmanaged = true
	}
	got, err := answer("Approve? [y/N] ")
	if err != nil {
		return err
	}
	if !yes(got) {
		return errDeclined
	}
	return nil
}

func yes(s string) bool { return strings.EqualFold(s, "y") || strings.EqualFold(s, "yes") }

func join[T ~string](list []T) string {
	var out []string
	for _, s := range list {
		out = append(out, string(s))
	}
	return strings.Join(out, ", ")
}

// changed shows how what would change differs from what was seen, or all of it if we did not show it.
func (a *app) changed(seen, now *operator.Preview) error {
	if a.json || now == nil {
		return nil // the error's detail has it
	}
	fill(&now.Item)
	if seen == nil {
		return a.printf("%s\n%s", a.style.warn("This is not what the digest stands for. What would change now:"), "\n"+a.preview(now, a.style))
	}
	// Ages go on; they are no change.
	before, after := *seen, *now
	before.Age, before.Connected = after.Age, after.Connected
	diff := udiff.Unified("what you saw", "what it is now", a.preview(&before, style{}), a.preview(&after, style{}))
	return a.printf("%s\n\n%s", a.style.warn("It has changed since you saw it:"), a.style.diff(diff))
}

// done tells what a decision did.
func (a *app) done(res *operator.Result, seen *operator.Preview) error {
	if a.json {
		if res.Notes == nil {
			res.Notes = []string{}
		}
		return a.printJSON(decisionJSON{res, seen})
	}
	head := fmt.Sprintf("%s %s for bottle %s", res.Status, res.Ref, res.Ref.Bottle)
	if o := outcome(res.Outcome); o != "" {
		head += ": " + o
	}
	if err := a.printf("%s\n", head); err != nil {
		return err
	}
	for _, n := range res.Notes {
		if err := a.printf("  %s\n", escapeLine(n)); err != nil {
			return err
		}
	}
	if res.Undoable {
		return a.printf("  %s\n", a.style.dim("to take it back: supervise undo "+string(res.Ref.ID)+a.again()))
	}
	return nil
}
