package tui

import (
	"context"
	"fmt"
	"strings"

	tea "charm.land/bubbletea/v2"

	"github.com/bot-bottle/supervise/internal/operator"
)

// maxHistory is how far back the screen goes; a search looks through all of the ledger.
const maxHistory = 500

// past is the history screen.
type past struct {
	entries []operator.LedgerEntry
	err     string // escaped
	query   string
	loaded  bool
	cur     int
	top     int
	entry   *overlay // one of them in full; nil: the list
	ref     operator.Ref
}

type (
	historyMsg struct {
		query   string
		entries []operator.LedgerEntry
		err     error
	}
	entryMsg struct {
		ref operator.Ref
		p   *operator.Preview
	}
)

func (m *model) readHistory() tea.Cmd {
	query := m.past.query
	return m.tasks.run(func(ctx context.Context) tea.Msg {
		msg := historyMsg{query: query}
		for e, err := range m.opts.Desk.History(ctx, operator.HistoryFilter{Query: query, Limit: maxHistory}) {
			if err != nil {
				msg.err = err
				break
			}
			msg.entries = append(msg.entries, e)
		}
		return msg
	})
}

// take keeps the cursor on its entry.
func (p *past) take(msg historyMsg) {
	if msg.query != p.query {
		return
	}
	var at int64
	if p.cur < len(p.entries) {
		at = p.entries[p.cur].Seq
	}
	p.entries, p.err, p.loaded = msg.entries, "", true
	if msg.err != nil {
		p.err = printable(msg.err.Error())
	}
	for i, e := range p.entries {
		if e.Seq == at && p.cur > 0 {
			p.top += i - p.cur
			p.cur = i
		}
	}
	p.move(0)
}

func (p *past) move(n int) { p.cur = max(0, min(p.cur+n, len(p.entries)-1)) }

func (p *past) takeEntry(msg entryMsg) {
	if p.entry != nil && p.ref == msg.ref && msg.p != nil {
		p.entry.preview = msg.p
		p.entry.lines = nil
	}
}

func (m *model) openHistory() tea.Cmd {
	m.screen, m.past = historyScreen, past{}
	return m.readHistory()
}

func (m *model) historyKey(key string) tea.Cmd {
	p := &m.past
	if p.entry != nil {
		switch key {
		case "esc", "q", "h", "enter", "left", "backspace":
			p.entry = nil
		case "u":
			return m.undoEntry()
		default:
			p.entry.scrollKey(key, m.bodyHeight())
		}
		return nil
	}
	h := m.bodyHeight()
	switch key {
	case "esc", "q", "h":
		m.screen = inboxScreen
	case "down", "j":
		p.move(1)
	case "up", "k":
		p.move(-1)
	case "pgdown", "ctrl+d", "ctrl+f":
		p.move(h - 1)
	case "pgup", "ctrl+u", "ctrl+b":
		p.move(1 - h)
	case "home":
		p.move(-len(p.entries))
	case "end":
		p.move(len(p.entries))
	case "/":
		m.prompt = &prompt{
			ask: span{dim, "a part of what was asked, notes, bottle, id, error or who decided"}, keys: "search: ", input: newInput(),
			enter: func(q string) tea.Cmd {
				m.past = past{query: strings.TrimSpace(q)}
				return m.readHistory()
			},
		}
	case "u":
		return m.undoEntry()
	case "enter":
		return m.openEntry()
	case "?":
		m.openHelp()
	}
	return nil
}

func (m *model) undoEntry() tea.Cmd {
	p := &m.past
	if p.cur >= len(p.entries) {
		return nil
	}
	e := p.entries[p.cur]
	if e.Event != operator.EventApplied && e.Event != operator.EventNotReplaced {
		m.say(warn, "u undoes a change that was applied: choose such a line.")
		return nil
	}
	return m.askUndo(undoable{operator.Ref{Bottle: e.Bottle, ID: e.ID}, e.Bottle + ": " + agentLine(e.Summary, 60)})
}

func (m *model) openEntry() tea.Cmd {
	p := &m.past
	if p.cur >= len(p.entries) {
		return nil
	}
	e := p.entries[p.cur]
	p.ref = operator.Ref{Bottle: e.Bottle, ID: e.ID}
	p.entry = &overlay{text: func(s *sheet) { s.ledger(e) }}
	ref := p.ref
	return m.tasks.run(func(ctx context.Context) tea.Msg {
		v, err := m.opts.Desk.Show(ctx, ref, nil)
		if err != nil {
			return nil // cleared away: the ledger's line is what there is
		}
		return entryMsg{ref, v}
	})
}

// happened is a ledger line's event in two words.
func happened(e operator.LedgerEntry) string {
	switch e.Event {
	case operator.EventDecided:
		return oneLine(string(e.Status))
	case operator.EventApplied, operator.EventNotReplaced:
		return "→ " + oneLine(string(e.Outcome))
	case operator.EventFailed, operator.EventStuck, operator.EventUndone:
		return "→ " + e.Event
	case operator.EventForeign:
		return oneLine(string(e.Status)) + " elsewhere"
	}
	return oneLine(e.Event)
}

func (s *sheet) ledger(e operator.LedgerEntry) {
	s.field("what", bold, happened(e))
	s.field("when", plain, when(e.At))
	s.field("bottle", plain, oneLine(e.Bottle))
	s.field("by", plain, decider(e.By, e.Via))
	s.field("asked to", plain, agentText(e.Summary))
	s.field("notes", plain, agentText(e.Notes))
	s.field("accepted", plain, oneLine(strings.Join(e.Accepted, ", ")))
	s.field("error", warn, agentText(e.Error))
	for _, t := range e.Targets {
		if t.BeforeSHA256 != t.AfterSHA256 {
			s.field("changed", plain, oneLine(t.Path))
		}
	}
	s.field("line", dim, fmt.Sprintf("%d of the ledger", e.Seq))
}

// view draws h lines of w cells.
func (p *past) view(w, h int) []string {
	var out []string
	if p.entry != nil {
		return p.entry.view(w, h)
	}
	switch {
	case p.err != "":
		for _, l := range wrap("The ledger cannot be read: "+oneLine(p.err), w-4, true) {
			out = append(out, warn.paint(pad("  "+l, w)))
		}
	case !p.loaded:
		out = append(out, dim.paint(pad("  looking…", w)))
	case len(p.entries) == 0 && p.query != "":
		out = append(out, dim.paint(pad("  Nothing in the ledger matches.", w)))
	case len(p.entries) == 0:
		out = append(out, dim.paint(pad("  Nothing has been decided yet.", w)))
	}
	rows := max(h-len(out), 1)
	p.top = max(0, min(max(min(p.top, p.cur), p.cur-rows+1), len(p.entries)-rows))
	const whenWidth, whatWidth = 19, 19
	bottle := min(20, max(8, w/8))
	for i := p.top; i < len(p.entries) && len(out) < h; i++ {
		e := p.entries[i]
		st, lead := plain, "  "
		if i == p.cur {
			st, lead = chosen, "> "
		}
		text := lead + pad(when(e.At), whenWidth) + "  " + pad(happened(e), whatWidth) + " " + pad(oneLine(e.Bottle), bottle) + " "
		rest := w - width(text)
		about := agentLine(e.Summary, rest)
		if w >= 110 {
			by := 22
			about = pad(oneLine(e.By), by) + " " + agentLine(e.Summary, rest-by-1)
		}
		out = append(out, st.paint(pad(text+about, w)))
	}
	for len(out) < h {
		out = append(out, strings.Repeat(" ", w))
	}
	return out
}
