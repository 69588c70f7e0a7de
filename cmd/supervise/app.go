package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/bot-bottle/supervise/internal/safetext"
)

// app is one run of the program.
type app struct {
	in       io.Reader
	out, err io.Writer
	env      func(string) string
	hup      chan os.Signal // SIGHUPs since the start; only serve and egress take them

	inTTY bool
	style style // of out

	root, config string // desk commands: --root, --config
	json         bool   // --json
	jsonDone     bool   // something was written to out in JSON already
}

// run is the whole program but for the exit.
func run(ctx context.Context, args []string, in io.Reader, out, err io.Writer) int {
	a := &app{in: in, out: out, err: err, env: os.Getenv, hup: make(chan os.Signal, 1)}
	// First of all, or a reload sent while a proxy starts would kill it.
	signal.Notify(a.hup, syscall.SIGHUP)
	defer signal.Stop(a.hup)
	a.inTTY = terminal(in) != nil
	a.style = styleBeside(out, a.env, err, in)

	root := newRoot(a)
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(err)
	cmd, failed := root.ExecuteContextC(ctx)
	if failed == nil {
		return 0
	}
	return a.fail(cmd, failed)
}

// newRoot builds the tree of commands.
func newRoot(a *app) *cobra.Command {
	cobra.EnableCommandSorting = false
	root := &cobra.Command{
		Use:   "supervise",
		Short: "Decide what a sandboxed agent may do next",
		Long: `supervise lets a sandboxed agent ask for one narrow change: a route through the egress
proxy, a host through pipelock, a tool in its Dockerfile. You see exactly what would
change and approve, edit or reject it; only then does the agent get its answer.

Exit codes: 0 done, 1 it failed, 2 wrong use, 3 what would change is not what you saw,
4 decided already.`,
		Example: `  supervise list                        what is open
  supervise show 0197f3b2-6d1e          what one proposal would change
  supervise approve 0197f3b2-6d1e       look, then say yes
  supervise reject 0197f3b2-6d1e --notes 'use the mirror at pypi.internal'`,
		SuggestionsMinimumDistance: 2,
		SilenceErrors:              true,
		SilenceUsage:               true,
		Args:                       noSuchCommand,
		RunE:                       func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRun: func(cmd *cobra.Command, _ []string) {
			if cmd.Annotations["sighup"] == "" {
				signal.Reset(syscall.SIGHUP) // a closed terminal ends the command
			}
		},
	}
	root.SetFlagErrorFunc(flagError)
	setUsage(root)
	root.AddGroup(
		&cobra.Group{ID: "decide", Title: "Deciding:"},
		&cobra.Group{ID: "look", Title: "Looking back:"},
		&cobra.Group{ID: "run", Title: "Running:"},
		&cobra.Group{ID: "more", Title: "More:"},
	)
	root.SetHelpCommandGroupID("more")
	root.SetCompletionCommandGroupID("more")
	for _, g := range []struct {
		id       string
		commands []func(*app) *cobra.Command
	}{
		{"decide", append([]func(*app) *cobra.Command{newList, newShow, newApprove, newModify, newReject, newDismiss, newUndo, newWatch}, screens...)},
		{"look", []func(*app) *cobra.Command{newHistory, newAudit, newBottle}},
		{"run", append([]func(*app) *cobra.Command{newServe, newHealthcheck, newEgress}, loops...)},
		{"more", []func(*app) *cobra.Command{newVersion}},
	} {
		for _, f := range g.commands {
			cmd := f(a)
			cmd.GroupID = g.id
			cmd.SuggestionsMinimumDistance = 2
			root.AddCommand(cmd)
		}
	}
	root.SetHelpCommand(newHelp(root))
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() == "completion" { // by itself it takes any shell that it does not know for a wish to see its help
			cmd.Args, cmd.RunE = noSuchCommand, func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		}
	}
	return root
}

// newHelp is cobra's, but it fails where there is no such command.
func newHelp(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Help about any command",
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			var names []cobra.Completion
			if of, _, err := root.Find(args); err == nil {
				for _, cmd := range of.Commands() {
					if cmd.IsAvailableCommand() {
						names = append(names, cobra.CompletionWithDesc(cmd.Name(), cmd.Short))
					}
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err != nil {
				return err
			}
			if len(rest) > 0 {
				return noSuchCommand(cmd, rest)
			}
			cmd.InitDefaultHelpFlag()
			return cmd.Help()
		},
	}
}

// usage is what --help prints after a command's text.
const usage = `Usage:
  {{if .HasAvailableSubCommands}}{{.CommandPath}} COMMAND{{else}}{{.UseLine}}{{end}}{{if .HasExample}}

Examples:
{{.Example}}{{end}}{{if .HasAvailableSubCommands}}{{$all := .Commands}}{{if .Groups}}{{range $group := .Groups}}

{{.Title}}{{range $all}}{{if and (eq .GroupID $group.ID) .IsAvailableCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{end}}{{else}}

Commands:{{range $all}}{{if .IsAvailableCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{end}}

{{.CommandPath}} COMMAND --help tells more about a command.{{end}}{{if .HasAvailableLocalFlags}}

Flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}
`

// jsonFlag gives a command --json.
func (a *app) jsonFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&a.json, "json", false, "print JSON, as docs/cli.md describes it")
}

// printJSON writes one document, safe to print.
func (a *app) printJSON(v any) error {
	b, err := safetext.JSON(v)
	if err != nil {
		return fmt.Errorf("encoding the result: %w", err)
	}
	a.jsonDone = true
	return a.write(append(b, '\n'))
}

// printJSONLine writes one document on one line.
func (a *app) printJSONLine(v any) error {
	b, err := safetext.JSON(v)
	if err != nil {
		return fmt.Errorf("encoding the result: %w", err)
	}
	var line bytes.Buffer
	if err := json.Compact(&line, b); err != nil {
		return fmt.Errorf("encoding the result: %w", err)
	}
	line.WriteByte('\n')
	a.jsonDone = true
	return a.write(line.Bytes())
}

func (a *app) printf(format string, args ...any) error {
	return a.write(fmt.Appendf(nil, format, args...))
}

func (a *app) write(b []byte) error {
	if _, err := a.out.Write(b); err != nil {
		return fmt.Errorf("writing the output: %w", err)
	}
	return nil
}

// say tells the person something that is no result.
func (a *app) say(format string, args ...any) {
	fmt.Fprintf(a.err, "supervise: "+format+"\n", args...)
}

// interruptible returns a context that the first ^C or SIGTERM ends. Until it is called both end the process,
// as they should while a question is asked.
func interruptible(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second one does not ask
	return ctx, stop
}

// catchPipe makes a reader of our output that goes away an error, where the signal would end us with things still to be
// done, or cleared away. Caught, not ignored: programs that we run would inherit that.
func catchPipe() (stop func()) {
	pipe := make(chan os.Signal, 1)
	signal.Notify(pipe, syscall.SIGPIPE)
	return func() { signal.Stop(pipe) }
}

// terminal returns the file behind a stream if it is a terminal.
func terminal(stream any) *os.File {
	if f, ok := stream.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return f
	}
	return nil
}
