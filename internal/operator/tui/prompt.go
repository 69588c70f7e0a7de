package tui

import (
	"strings"

	"charm.land/bubbles/v2/textinput"
	tea "charm.land/bubbletea/v2"

	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/payload"
)

// prompt asks something in the last two lines. With input it wants text, without one a yes.
type prompt struct {
	ask   span
	keys  string // what the footer says; with input, what stands before it
	input *textinput.Model
	about func(sight) bool // it goes once what is on the screen is something else; nil: never
	list  []line           // what it is about, in place of the card

	yes   func() tea.Cmd           // y
	enter func(string) tea.Cmd     // enter, with what was typed
	quick func(key string) *string // a key on an empty input that stands for a text
	typed func(string)             // after every key
	leave func()                   // esc
	check func(got string) string  // what is wrong with what was typed, so that it goes on asking; "" if nothing is
}

// maxNote is as much as an agent may write itself.
const maxNote = payload.MaxJustification

func newInput() *textinput.Model {
	in := textinput.New()
	in.Prompt = ""
	in.CharLimit = maxNote
	in.SetVirtualCursor(false)
	in.KeyMap.Paste.SetEnabled(false) // it would run a program to read the clipboard; terminals paste by themselves
	in.Focus()
	return &in
}

func (m *model) confirm(st style, ask string, about func(sight) bool, yes func() tea.Cmd) tea.Cmd {
	m.prompt = &prompt{ask: span{st, ask}, keys: "y yes   n no", yes: yes, about: about}
	return nil
}

// exactly is for what binds to a digest.
func exactly(want sight) func(sight) bool { return func(s sight) bool { return s == want } }

// undecided is for what binds to a proposal alone.
func undecided(ref operator.Ref) func(sight) bool {
	return func(s sight) bool {
		return s.ref == ref && s.shown && s.state != operator.Decided && s.state != operator.Deciding
	}
}

// promptKey is a key while something is asked.
func (m *model) promptKey(k tea.KeyPressMsg) tea.Cmd {
	p := m.prompt
	key := k.String()
	if key == "esc" || p.input == nil && key == "n" {
		m.prompt = nil
		m.status = span{}
		if p.leave != nil {
			p.leave()
		}
		return nil
	}
	if n := cardScroll(key, m.bodyHeight()); n != 0 && p.list == nil && (p.input == nil || key == "pgdown" || key == "pgup") {
		m.scrollCard(n) // to see what it is about
		return nil
	}
	if p.input == nil {
		if key != "y" {
			return nil
		}
		m.prompt = nil
		return p.yes()
	}
	if key == "enter" {
		got := p.input.Value()
		if p.check != nil {
			if wrong := p.check(got); wrong != "" {
				p.ask = span{danger, wrong}
				return nil
			}
		}
		m.prompt = nil
		return p.enter(got)
	}
	if p.quick != nil && p.input.Value() == "" {
		if text := p.quick(key); text != nil {
			m.prompt = nil
			return p.enter(*text)
		}
	}
	return m.feed(k)
}

// feed gives the input a message.
func (m *model) feed(msg tea.Msg) tea.Cmd {
	p := m.prompt
	in, cmd := p.input.Update(msg)
	p.input = &in
	if p.typed != nil {
		p.typed(in.Value())
	}
	return cmd
}

// paste goes into an input or nowhere: pasted text is no keys.
func (m *model) paste(msg tea.PasteMsg) tea.Cmd {
	if m.prompt == nil || m.prompt.input == nil {
		return nil
	}
	msg.Content = strings.TrimRight(msg.Content, "\r\n")
	return m.feed(msg)
}
