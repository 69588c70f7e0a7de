package tui

import (
	"fmt"

	"github.com/bot-bottle/supervise/internal/operator"
)

// overlay is a text over the whole body.
type overlay struct {
	text    func(*sheet)
	preview *operator.Preview // below the text; nil: none
	scroll  int
	lines   []line
	w       int
}

func (o *overlay) layout(w int) []line {
	if o.lines == nil || o.w != w {
		s := &sheet{w: w}
		o.text(s)
		if o.preview != nil {
			s.blank()
			s.preview(o.preview)
			s.trailer(o.preview)
		}
		o.lines, o.w = s.lines, w
	}
	return o.lines
}

func (o *overlay) view(w, h int) []string {
	lines := o.layout(w - 2)
	o.scroll = max(0, min(o.scroll, len(lines)-h))
	var out []string
	for i := range h {
		var l line
		if o.scroll+i < len(lines) {
			l = lines[o.scroll+i]
		}
		out = append(out, " "+l.render(w-2)+" ")
	}
	return out
}

func (o *overlay) scrollKey(key string, h int) { o.scroll += scrollBy(key, h) }

// scrollBy is how many lines a key scrolls.
func scrollBy(key string, h int) int {
	const far = 1 << 30
	switch key {
	case "down", "j":
		return 1
	case "up", "k":
		return -1
	case "pgdown", "ctrl+d", "ctrl+f":
		return max(h-1, 1)
	case "pgup", "ctrl+u", "ctrl+b":
		return -max(h-1, 1)
	case "home":
		return -far
	case "end":
		return far
	}
	return 0
}

func (m *model) openHelp() {
	m.overlay = overlay{text: help}
	m.screen = helpScreen
}

func (m *model) openProblems() {
	if len(m.problems) == 0 {
		m.say(dim, "No mailbox has a problem.")
		return
	}
	list := m.problems
	m.overlay = overlay{text: func(s *sheet) {
		s.heading("Files that were skipped, and mailboxes that could not be read")
		for _, p := range list {
			where := oneLine(p.Bottle)
			if p.Name != "" {
				where += "/" + agentLine(p.Name, 80)
			}
			s.blank()
			s.para(bold, where)
			s.para(plain, agentText(p.Text))
		}
	}}
	m.screen = problemScreen
}

func (m *model) overlayKey(key string) {
	switch key {
	case "esc", "q", "?", "p", "enter":
		m.screen = inboxScreen
	default:
		m.overlay.scrollKey(key, m.bodyHeight())
	}
}

// helpKeys are all keys, in the order of the help.
var helpKeys = []struct{ key, does string }{
	{"", "Looking"},
	{"j k ↓ ↑", "next, previous proposal (home, end: first, last)"},
	{"pgdn pgup", "scroll the proposal (J, K: by a line)"},
	{"enter tab", "keys move the proposal; esc: the list again"},
	{"/", "filter by words: bottle, host, tool, waits, danger, a finding's code …"},
	{"g", "group by host"},
	{"z", "show what nobody has waited for in long"},
	{"h", "history: what was decided (u there undoes any change)"},
	{"p", "problems with mailboxes"},
	{"", "Deciding on what is on the screen"},
	{"a", "approve. A danger wants its code typed"},
	{"e", "edit in $EDITOR; shows what that would change, then a approves it"},
	{"r", "reject with a note: 1 to 4, or typed (begin with a space to type a digit first)"},
	{"d", "dismiss: the agent is told that nobody decided"},
	{"space", "mark for approving together (none with a danger); a approves the marked"},
	{"u", "undo what was applied last"},
	{"", "What the list says"},
	{"!", "approving adds a danger"},
	{"waits", "an agent waits for the answer"},
	{"away", "its sidecar runs, nobody waits now"},
	{"?", "its sidecar has been silent for 90 s"},
	{"again:", "the same was decided before; the proposal says how"},
	{"", "Leaving"},
	{"q ctrl+c", "quit, when what is being decided is done"},
}

func help(s *sheet) {
	for _, k := range helpKeys {
		if k.key == "" {
			s.heading(k.does)
			continue
		}
		const keyWidth = 11
		key := pad(k.key, keyWidth)
		for _, piece := range wrap(k.does, s.w-keyWidth-1, true) {
			s.add(span{bold, " " + key}, span{plain, piece})
			key = pad("", keyWidth)
		}
	}
	s.blank()
	s.para(dim, fmt.Sprintf("A key decides only on what has been on the screen for %v. What is decided elsewhere, or changes, stays under the cursor and says so.", DefaultSettle))
}
