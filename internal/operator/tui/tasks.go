package tui

import (
	"context"
	"strings"
	"sync"
	"time"

	tea "charm.land/bubbletea/v2"
)

// tasks owns everything that runs beside the screen.
type tasks struct {
	ctx context.Context // ends when the screen does

	mu     sync.Mutex
	wg     sync.WaitGroup // guarded by mu against an Add after wait began
	closed bool
}

// run makes f a command. One that the program did not get to start before it ended is not run at all.
func (t *tasks) run(f func(context.Context) tea.Msg) tea.Cmd {
	return func() tea.Msg {
		t.mu.Lock()
		if t.closed {
			t.mu.Unlock()
			return nil
		}
		t.wg.Add(1)
		t.mu.Unlock()
		defer t.wg.Done()
		return f(t.ctx)
	}
}

// after sends msg in a while.
func (t *tasks) after(d time.Duration, msg tea.Msg) tea.Cmd {
	return t.run(func(ctx context.Context) tea.Msg {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			return msg
		case <-ctx.Done():
			return nil
		}
	})
}

func (t *tasks) wait() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.wg.Wait()
}

// progress keeps the last lines that a verb printed, for the screen to show when it next draws. It never makes
// the verb wait, also not while an editor has the terminal.
type progress struct {
	mu    sync.Mutex
	lines []string
	rest  string
}

const (
	progressLines = 6
	progressLine  = 4 << 10 // of a line without an end
)

func (p *progress) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := p.rest + string(b)
	for {
		line, rest, ok := strings.Cut(text, "\n")
		if !ok && len(text) < progressLine {
			p.rest = text
			return len(b), nil
		}
		if line = oneLine(strings.TrimRight(line, "\r")); line != "" {
			p.lines = append(p.lines, line)
			p.lines = p.lines[max(0, len(p.lines)-progressLines):]
		}
		text = rest
	}
}

// tail returns the last lines, escaped.
func (p *progress) tail() []string {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.lines...)
}
