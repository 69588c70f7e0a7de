package tui

import (
	"strings"

	tea "charm.land/bubbletea/v2"

	"github.com/bot-bottle/supervise/internal/operator"
)

func (m *model) key(k tea.KeyPressMsg) tea.Cmd {
	key := k.String()
	switch key {
	case "ctrl+c":
		return m.quit()
	case "ctrl+z":
		return tea.Suspend
	case "ctrl+l":
		return tea.ClearScreen
	}
	if m.prompt != nil {
		return m.promptKey(k)
	}
	if m.tiny() && key != "q" {
		return nil
	}
	m.status = span{}
	switch m.screen {
	case historyScreen:
		return m.historyKey(key)
	case helpScreen, problemScreen:
		m.overlayKey(key)
		return nil
	}
	return m.inboxKey(key)
}

// quit waits for what is being decided; the second time it does not.
func (m *model) quit() tea.Cmd {
	if m.busy == 0 || m.leave {
		return tea.Quit
	}
	m.leave, m.prompt = true, nil
	m.say(warn, "Quits when it is done. Again: now; the next command then finishes it or puts it back.")
	return nil
}

func (m *model) inboxKey(key string) tea.Cmd {
	switch key {
	case "q":
		return m.quit()
	case "?":
		m.openHelp()
		return nil
	case "h":
		return m.openHistory()
	case "p":
		m.openProblems()
		return nil
	}
	if m.missing != "" {
		return nil
	}
	switch key {
	case "esc":
		return m.esc()
	case "u":
		return m.undo()
	case "/":
		m.askFilter()
		return nil
	case "g":
		m.inbox.groups = !m.inbox.groups
		m.inbox.arrange()
		return nil
	case "z":
		m.inbox.abandoned = !m.inbox.abandoned
		m.inbox.arrange()
		return nil
	case "enter", "tab":
		m.reading = m.card != nil && (!m.reading || key == "enter")
		return nil
	case "left":
		m.reading = false
		return nil
	case "right":
		m.reading = m.card != nil
		return nil
	}
	if m.leave {
		m.say(warn, "Quits when it is done; nothing new is begun.")
		return nil
	}
	switch key {
	case "a":
		return m.approve()
	case "e":
		return m.edit()
	case "r":
		return m.reject()
	case "d":
		return m.dismiss()
	case "space":
		return m.mark()
	}
	return m.moveKey(key)
}

func (m *model) moveKey(key string) tea.Cmd {
	h := m.bodyHeight()
	n := scrollBy(key, h)
	switch {
	case cardScroll(key, h) != 0:
		m.scrollCard(cardScroll(key, h))
	case m.reading:
		m.scrollCard(n)
	default:
		m.inbox.move(n)
	}
	return nil
}

// cardScroll is how many lines a key scrolls the card, whatever else the keys move.
func cardScroll(key string, h int) int {
	switch key {
	case "pgdown", "pgup", "ctrl+d", "ctrl+u", "ctrl+f", "ctrl+b":
		return scrollBy(key, h)
	case "J":
		return 1
	case "K":
		return -1
	}
	return 0
}

func (m *model) scrollCard(n int) {
	if m.card != nil && m.screen == inboxScreen {
		m.card.scroll += n
	}
}

// esc leaves one thing at a time: an edit, the card, the marks, the filter.
func (m *model) esc() tea.Cmd {
	switch {
	case m.card != nil && m.card.edit != nil && m.card.busy == "":
		m.say(plain, "Your edit is dropped.")
		return m.dropEdit()
	case m.reading:
		m.reading = false
	case len(m.inbox.marks) > 0:
		clear(m.inbox.marks)
	case m.inbox.filter != "":
		m.setFilter("")
	}
	return nil
}

func (m *model) setFilter(f string) {
	f = strings.TrimSpace(f)
	if f != m.inbox.filter && m.inbox.ghost != nil { // it is open no longer, so no filter shows it
		m.inbox.ghost, m.inbox.sel = nil, operator.Ref{}
	}
	m.inbox.filter = f
	m.inbox.arrange()
}

func (m *model) askFilter() {
	in := newInput()
	in.SetValue(m.inbox.filter)
	in.CursorEnd()
	m.reading = false
	m.prompt = &prompt{
		ask: span{dim, "words that must all be there: bottle, host, tool, waits, danger, a finding's code"}, keys: "filter: ", input: in,
		typed: m.setFilter,
		enter: func(string) tea.Cmd { return nil },
		leave: func() { m.setFilter("") },
	}
}
