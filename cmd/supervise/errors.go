package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/bot-bottle/supervise/internal/apply"
	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/safetext"
	"github.com/bot-bottle/supervise/queue"
)

// Exit codes.
const (
	exitError   = 1
	exitUsage   = 2
	exitStale   = 3
	exitDecided = 4
)

// usageError is wrong use of the command line or a wrong setting.
type usageError struct {
	what string
	hint string
}

func (e *usageError) Error() string { return e.what }

func usagef(hint, format string, args ...any) error {
	return &usageError{what: fmt.Sprintf(format, args...), hint: hint}
}

// hinted is an error with a hint that only the place where it arose knows.
type hinted struct {
	err  error
	hint string
}

func (e *hinted) Error() string { return e.err.Error() }
func (e *hinted) Unwrap() error { return e.err }

func hint(err error, format string, args ...any) error {
	return &hinted{err, fmt.Sprintf(format, args...)}
}

// errDeclined is a question answered with no.
var errDeclined = errors.New("nothing was decided")

// explained is what an error means for whoever called us.
type explained struct {
	exit   int
	code   string // for programs: "stale", "decided", …
	hint   string
	detail any // for programs
}

// rule explains the errors that it matches; the first match wins.
type rule func(err error) (explained, bool)

// is matches a sentinel.
func is(target error, e explained) rule {
	return func(err error) (explained, bool) { return e, errors.Is(err, target) }
}

// as matches a type and may use what it carries.
func as[E error](f func(E) explained) rule {
	return func(err error) (explained, bool) {
		e, ok := errors.AsType[E](err)
		if !ok {
			return explained{}, false
		}
		return f(e), true
	}
}

// rules is the one table from errors to exit codes and hints.
var rules = []rule{
	as(func(e *usageError) explained { return explained{exit: exitUsage, code: "usage", hint: e.hint} }),
	as(func(e *operator.AmbiguousError) explained {
		return explained{exit: exitError, code: "ambiguous", hint: "type more of it", detail: e.Refs}
	}),
	as(func(e *operator.StaleError) explained {
		return explained{exit: exitStale, code: "stale", hint: fmt.Sprintf("look again with supervise show %s, then decide on what it shows now", e.Ref), detail: e.Preview}
	}),
	as(func(e *operator.DecidedError) explained {
		return explained{exit: exitDecided, code: "decided", hint: fmt.Sprintf("supervise show %s tells what was decided", e.Ref), detail: decidedJSON{e.Ref.ID, e.Ref.Bottle, e.Status, e.By, e.Via, e.At}}
	}),
	is(queue.ErrDecided, explained{exit: exitDecided, code: "decided", hint: "supervise history shows by whom"}),
	is(queue.ErrLate, explained{exit: exitDecided, code: "decided", hint: "supervise history shows by whom"}),
	as(func(e *operator.DangerError) explained {
		return explained{exit: exitError, code: "danger", hint: "read them with supervise show " + e.Ref.String() + "; if you mean it: --accept " + codes(e.Findings), detail: e.Findings}
	}),
	as(func(e *operator.UnmanagedError) explained {
		return explained{exit: exitError, code: "unmanaged", hint: "name its file in supervise.yaml (supervise bottle list shows what that names), or make the change by hand and approve with --unmanaged", detail: e.Kinds}
	}),
	as(func(e *operator.InTheWayError) explained {
		return explained{exit: exitError, code: "in-the-way", detail: e.File}
	}),
	is(operator.ErrBlocked, explained{exit: exitError, code: "blocked", hint: "supervise show tells what is in the way; reject works in any case"}),
	as(func(e *apply.Failure) explained {
		switch {
		case e.Undo && len(e.Restored) > 0:
			return explained{exit: exitError, code: "failed", hint: "these files are as they were before the approval, but that was not seen in force; mend the cause and undo it again: " + strings.Join(e.Restored, "; "), detail: e.Restored}
		case e.Undo && len(e.Left) > 0:
			return explained{exit: exitError, code: "failed", hint: "nothing was taken back; take it out by hand: " + strings.Join(e.Left, "; "), detail: e.Left}
		case e.Undo:
			return explained{exit: exitError, code: "failed", hint: "nothing was taken back; mend the cause and undo it again"}
		case len(e.Left) > 0:
			return explained{exit: exitError, code: "failed", hint: "these files could not be put back, look at them: " + strings.Join(e.Left, "; "), detail: e.Left}
		}
		return explained{exit: exitError, code: "failed", hint: "everything is as it was and the proposal is open again; supervise show has the error"}
	}),
	as(func(e *operator.EditError) explained {
		return explained{exit: exitError, code: "edit", hint: "it must be what the tool stores: a route as JSON, a URL, or a Dockerfile"}
	}),
	is(operator.ErrNotUndoable, explained{exit: exitError, code: "not-undoable", hint: "supervise show tells what was changed; change the file by hand"}),
	is(operator.ErrNotFound, explained{exit: exitError, code: "not-found", hint: "supervise list shows what is open, supervise history what was decided"}),
	is(queue.ErrNotFound, explained{exit: exitError, code: "not-found", hint: "supervise list shows what is open, supervise history what was decided"}),
	is(queue.ErrLocked, explained{exit: exitError, code: "locked", hint: "stop the bottle's sidecar first"}),
	is(errDeclined, explained{exit: exitError, code: "declined"}),
	is(context.Canceled, explained{exit: exitError, code: "interrupted", hint: "whatever was begun is finished or put back by the next command"}),
	is(fs.ErrPermission, explained{exit: exitError, code: "permission", hint: "run it as the user who owns the mailboxes, or share a group with it"}),
	is(fs.ErrNotExist, explained{exit: exitError, code: "missing", hint: "create it, or name another with the flag or setting that names it"}),
	as(func(e *hinted) explained { return explained{exit: exitError, code: "error", hint: e.hint} }),
}

// decidedJSON is who came first.
type decidedJSON struct {
	ID     queue.ID     `json:"id"`
	Bottle string       `json:"bottle"`
	Status queue.Status `json:"status"`
	By     string       `json:"by"`
	Via    string       `json:"via"`
	At     time.Time    `json:"at"`
}

func explain(err error) explained {
	for _, r := range rules {
		if e, ok := r(err); ok {
			if h, ok := errors.AsType[*hinted](err); ok {
				e.hint = h.hint
			}
			return e
		}
	}
	return explained{exit: exitError, code: "error"}
}

// failJSON is what stdout gets with --json when a command fails.
type failJSON struct {
	Error struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Hint    string `json:"hint,omitempty"`
		Detail  any    `json:"detail,omitempty"`
	} `json:"error"`
}

// fail tells of err and returns the exit code.
func (a *app) fail(cmd *cobra.Command, err error) int {
	e := explain(err)
	message := escape(err.Error())
	fmt.Fprintf(a.err, "supervise: %s\n", indent(message))
	if e.hint == "" && e.exit == exitUsage && cmd != nil {
		e.hint = cmd.CommandPath() + " --help"
	}
	if e.hint != "" {
		fmt.Fprintf(a.err, "supervise: hint: %s\n", indent(escape(e.hint)))
	}
	if a.json && !a.jsonDone {
		var doc failJSON
		doc.Error.Code, doc.Error.Message, doc.Error.Hint, doc.Error.Detail = e.code, message, e.hint, e.detail
		if err := a.printJSON(doc); err != nil {
			fmt.Fprintf(a.err, "supervise: %s\n", escape(err.Error()))
		}
	}
	return e.exit
}

// indent keeps the later lines of a message apart from what follows.
func indent(s string) string {
	return strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n  ")
}

func codes(findings []operator.Finding) string {
	var c []string
	for _, f := range findings {
		c = append(c, f.Code)
	}
	return strings.Join(c, ",")
}

// name is how a message about the use of a command begins.
func name(cmd *cobra.Command) string {
	if !cmd.HasParent() {
		return ""
	}
	return strings.TrimPrefix(cmd.CommandPath(), "supervise ") + ": "
}

// noSuchCommand refuses arguments of a command that only groups others.
func noSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	path := cmd.CommandPath()
	how := path + " --help lists the commands"
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		how = path + " " + near[0]
	}
	return usagef(how, "no command %q", strings.TrimPrefix(path+" ", "supervise ")+safetext.Line(args[0], 40))
}

// args wants between least and most arguments, named as in the usage line.
func args(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		use := strings.TrimSuffix(cmd.UseLine(), " [flags]")
		switch {
		case len(args) < least:
			return usagef(use, "%san argument is missing", name(cmd))
		case most >= 0 && len(args) > most:
			return usagef(use, "%stoo many arguments, from %q on", name(cmd), safetext.Line(args[most], 40))
		}
		return nil
	}
}

// flagError is a flag that is unknown or has a wrong value.
func flagError(cmd *cobra.Command, err error) error {
	how := cmd.CommandPath() + " --help lists its flags"
	if e, ok := errors.AsType[*pflag.InvalidValueError](err); ok && errors.Is(err, strconv.ErrSyntax) {
		return usagef(how, "%s--%s %s is no whole number", name(cmd), e.GetFlag().Name, quote(e.GetValue()))
	}
	return usagef(how, "%s%v", name(cmd), err)
}
