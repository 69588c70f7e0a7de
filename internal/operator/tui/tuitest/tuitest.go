// Package tuitest runs a program on a terminal of its own, types, and reads its screen: what a person would see, not the
// bytes that made it, and never half of a frame that the program draws as a whole (mode 2026). Nothing in it waits for
// time to pass, only for the screen to show something.
package tuitest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/creack/pty"
)

// Patience is how long a terminal is watched for what was promised.
const Patience = 20 * time.Second

// Terminal is a program on its terminal.
type Terminal struct {
	cmd *exec.Cmd
	pty *os.File

	mu      sync.Mutex
	screen  *screen       // guarded by mu
	changed chan struct{} // guarded by mu: closed and replaced when the screen changes

	ended chan struct{} // closed when the program has ended and all it wrote was read
	err   error         // of the program; after ended
}

// Start runs cmd on a new terminal, which is its controlling one.
func Start(cmd *exec.Cmd, cols, rows int) (*Terminal, error) {
	f, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: uint16(rows), Cols: uint16(cols)})
	if err != nil {
		return nil, fmt.Errorf("starting %s on a terminal: %w", cmd.Path, err)
	}
	t := &Terminal{cmd: cmd, pty: f, screen: newScreen(cols, rows), changed: make(chan struct{}), ended: make(chan struct{})}
	t.screen.reply = func(text string) { _, _ = f.WriteString(text) } // a program that has gone needs no answer
	go t.read()
	return t, nil
}

// read runs until the program has gone, and its terminal with it.
func (t *Terminal) read() {
	defer close(t.ended)
	buf := make([]byte, 32<<10)
	for {
		n, err := t.pty.Read(buf)
		t.mu.Lock()
		t.screen.parser.Parse(buf[:n])
		close(t.changed)
		t.changed = make(chan struct{})
		t.mu.Unlock()
		if err != nil {
			break
		}
	}
	t.err = t.cmd.Wait()
}

// Type types keys, as a terminal sends them.
func (t *Terminal) Type(keys string) error {
	_, err := t.pty.WriteString(keys)
	return err
}

// Resize changes the size of the terminal, and tells the program.
func (t *Terminal) Resize(cols, rows int) error {
	t.mu.Lock()
	t.screen.resize(cols, rows)
	t.mu.Unlock()
	return pty.Setsize(t.pty, &pty.Winsize{Rows: uint16(rows), Cols: uint16(cols)})
}

// Until waits until what is on the screen satisfies ok.
func (t *Terminal) Until(what string, ok func(screen string) bool) error {
	deadline := time.NewTimer(Patience)
	defer deadline.Stop()
	for {
		t.mu.Lock()
		text, changed := t.screen.String(), t.changed
		t.mu.Unlock()
		if ok(text) {
			return nil
		}
		select {
		case <-changed:
		case <-t.ended:
			if text := t.Screen(); !ok(text) {
				return fmt.Errorf("the program ended (%v) and its screen never showed %s:\n%s", t.err, what, text)
			}
			return nil
		case <-deadline.C:
			return fmt.Errorf("the screen did not show %s in %v:\n%s", what, Patience, text)
		}
	}
}

// Wait waits until all the texts are on the screen at once.
func (t *Terminal) Wait(texts ...string) error {
	return t.Until(fmt.Sprintf("%q", texts), func(screen string) bool {
		return !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(screen, text) })
	})
}

// Gone waits until none of the texts is on the screen.
func (t *Terminal) Gone(texts ...string) error {
	return t.Until(fmt.Sprintf("no %q", texts), func(screen string) bool {
		return !slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(screen, text) })
	})
}

// Screen is the text on the screen.
func (t *Terminal) Screen() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.screen.String()
}

// Heard is how often the bell rang, and what was notified (OSC 9).
func (t *Terminal) Heard() (bells int, notes []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.screen.bells, slices.Clone(t.screen.notes)
}

// Title is the window's title.
func (t *Terminal) Title() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.screen.title
}

// Coloured tells whether the program ever set a colour.
func (t *Terminal) Coloured() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.screen.colours
}

// Signal sends the program a signal.
func (t *Terminal) Signal(s os.Signal) error { return t.cmd.Process.Signal(s) }

// End waits until the program has ended and returns its exit code. A signal counts as -1.
func (t *Terminal) End() (int, error) {
	deadline := time.NewTimer(Patience)
	defer deadline.Stop()
	select {
	case <-t.ended:
	case <-deadline.C:
		return 0, fmt.Errorf("the program had not ended after %v:\n%s", Patience, t.Screen())
	}
	if _, ok := errors.AsType[*exec.ExitError](t.err); t.err != nil && !ok {
		return 0, t.err
	}
	return t.cmd.ProcessState.ExitCode(), nil
}

// Close kills the program if it still runs.
func (t *Terminal) Close() error {
	select {
	case <-t.ended:
	default:
		if err := t.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		<-t.ended
	}
	return t.pty.Close()
}
