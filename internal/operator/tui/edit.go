package tui

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	tea "charm.land/bubbletea/v2"

	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/safetext"
)

// maxEdited bounds what is read as an edit: the largest payload, with room to be told that it is too big.
const maxEdited = payload.MaxDockerfile * 2

const invalidEdit = "Your edit is not valid: e edits it again, esc drops it."

type editedMsg struct {
	ref  operator.Ref
	text string
	err  error
}

// edit opens the editor on what is on the screen: the proposal, or the edit of it so far.
func (m *model) edit() tea.Cmd {
	c := m.card
	again := c != nil && c.badEdit != "" && c.p != nil && c.busy == "" && c.open()
	if !again {
		if c = m.decidable("e"); c == nil {
			return nil
		}
	}
	if c.p.State == operator.Bad {
		m.say(warn, "It is malformed, so it can only be rejected.")
		return nil
	}
	text := c.p.Proposed.Raw()
	if c.edit != nil {
		text = *c.edit
	}
	if safetext.Block(text) != text {
		// An editor would hide them, or obey them.
		m.say(warn, "It holds characters that an editor may hide: write the file anew, and supervise modify --file.")
		return nil
	}
	file, err := editable(c.p.Tool, text)
	if err != nil {
		m.say(danger, "%s", oneLine(err.Error()))
		return nil
	}
	ref := c.ref
	run := exec.CommandContext(m.tasks.ctx, "sh", "-c", m.opts.Editor+` "$@"`, m.opts.Editor, file) // as it may have arguments
	return tea.ExecProcess(run, func(err error) tea.Msg {
		defer os.RemoveAll(filepath.Dir(file))
		if err != nil {
			return editedMsg{ref: ref, err: fmt.Errorf("the editor failed: %w (EDITOR is %q)", err, m.opts.Editor)}
		}
		text, err := readEdit(file)
		return editedMsg{ref, text, err}
	})
}

// editable makes a file of its own, in a directory of its own, that only we can read.
func editable(tool, text string) (string, error) {
	dir, err := os.MkdirTemp("", "supervise-")
	if err != nil {
		return "", fmt.Errorf("making a file to edit: %w", err)
	}
	names := map[string]string{payload.Egress: "route.json", payload.Pipelock: "url.txt", payload.Capability: "Dockerfile"}
	file := filepath.Join(dir, cmp.Or(names[tool], "proposal.txt"))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return "", errors.Join(fmt.Errorf("making a file to edit: %w", err), os.RemoveAll(dir))
	}
	return file, nil
}

func readEdit(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", fmt.Errorf("reading the edit: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxEdited+1))
	if err != nil {
		return "", fmt.Errorf("reading the edit: %w", err)
	}
	if len(b) > maxEdited {
		return "", fmt.Errorf("the edit is over %d bytes", maxEdited)
	}
	return string(b), nil
}

func (m *model) edited(msg editedMsg) tea.Cmd {
	if msg.err != nil {
		m.say(danger, "%s", oneLine(msg.err.Error()))
		return nil
	}
	c := m.cards[msg.ref]
	if c == nil || c != m.card || c.p == nil {
		m.say(warn, "Your edit is dropped: its proposal is no longer on the screen.")
		return nil
	}
	if msg.text == c.p.Proposed.Raw() {
		m.say(plain, "The file is as it was proposed.")
		return m.dropEdit()
	}
	c.edit, c.lines = &msg.text, nil
	m.say(plain, "looking at what your edit would change …")
	return m.show()
}

// dropEdit goes back to what was proposed.
func (m *model) dropEdit() tea.Cmd {
	c := m.card
	if c.edit == nil {
		return nil
	}
	c.edit, c.badEdit, c.lines = nil, "", nil
	if c.of != nil {
		c.p, c.changed = nil, nil
	}
	return m.show()
}
