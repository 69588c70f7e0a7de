// Package tui is the desk in a terminal: the inbox on the left, on the right what one proposal asks and
// exactly what it would change.
//
// It holds no logic of its own: it shows what [Desk] tells and calls its verbs. What it promises beyond that is about keys:
//
//   - A key that decides acts on the proposal and the digest that were on the screen when it was pressed, and only
//     once they have been there for a moment (Options.Settle): what was typed ahead hits nothing that nobody has seen.
//   - Nothing but the operator moves the selection. What is decided elsewhere stays under the cursor, says by whom, and
//     no key acts on it; what arrives or goes moves the others.
//   - What changed under the operator is marked, and approving it takes a second key. So does a change whose lines have
//     not all been on the screen. A danger wants its code typed.
//   - Nothing blocks the keys: verbs run beside the screen, and [Run] returns when all of them have ended.
//
// Whatever an agent wrote goes through package safetext, and is laid out by cells that terminals agree on.
package tui

import (
	"cmp"
	"context"
	"errors"
	"io"
	"iter"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/colorprofile"

	"github.com/bot-bottle/supervise/internal/operator"
)

// Desk is what the terminal needs of an [operator.Desk].
type Desk interface {
	Snapshot(ctx context.Context) (*operator.Snapshot, error)
	Show(ctx context.Context, ref operator.Ref, edited *string) (*operator.Preview, error)
	Approve(ctx context.Context, ref operator.Ref, d operator.Decision) (*operator.Result, error)
	Reject(ctx context.Context, ref operator.Ref, notes string) (*operator.Result, error)
	Dismiss(ctx context.Context, refs ...operator.Ref) ([]*operator.Result, error)
	Undo(ctx context.Context, ref operator.Ref, progress io.Writer) (*operator.Result, error)
	History(ctx context.Context, f operator.HistoryFilter) iter.Seq2[operator.LedgerEntry, error]
	Changes(ctx context.Context) (<-chan struct{}, error)
}

// Options configure Run.
type Options struct {
	Desk    Desk
	Root    string        // where the mailboxes are, to be shown
	In      io.Reader     // a terminal
	Out     io.Writer     // a terminal
	Env     []string      // of the terminal: TERM, NO_COLOR and the like
	NoColor bool          // as NO_COLOR
	Quiet   bool          // neither rings the bell nor notifies
	Editor  string        // a shell command that edits the file it is given; if empty, vi
	Settle  time.Duration // how long a proposal must have been on the screen before a key decides on it; if zero, DefaultSettle
}

// DefaultSettle is shorter than anybody reads, and longer than keys typed ahead take to arrive.
const DefaultSettle = 300 * time.Millisecond

// Run shows the desk until the operator quits or ctx ends. It returns when every verb it started has ended.
func Run(ctx context.Context, o Options) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m := newModel(ctx, o)
	opts := []tea.ProgramOption{tea.WithInput(o.In), tea.WithOutput(o.Out), tea.WithEnvironment(o.Env), tea.WithoutSignalHandler()}
	if o.NoColor {
		opts = append(opts, tea.WithColorProfile(colorprofile.ASCII))
	}
	p := tea.NewProgram(m, opts...)
	// Quit, not tea.WithContext: killing a program races with what it is drawing.
	stop := context.AfterFunc(ctx, p.Quit)
	defer stop()
	_, err := p.Run()
	if errors.Is(err, tea.ErrProgramKilled) && ctx.Err() != nil && !errors.Is(err, tea.ErrProgramPanic) {
		err = nil // asked to end
	}
	cancel()
	m.tasks.wait()
	return err
}

func (o Options) withDefaults() Options {
	o.Settle = cmp.Or(o.Settle, DefaultSettle)
	o.Editor = cmp.Or(o.Editor, "vi")
	return o
}
