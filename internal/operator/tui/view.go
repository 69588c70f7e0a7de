package tui

import (
	"fmt"
	"slices"
	"strings"

	tea "charm.land/bubbletea/v2"
)

// Sizes of the screen.
const (
	leastWidth  = 40
	leastHeight = 10
	twoPanes    = 64 // from here on list and card stand side by side
	aroundBody  = 5  // header, rule; rule, status, keys
)

func (m *model) tiny() bool      { return m.w < leastWidth || m.h < leastHeight }
func (m *model) narrow() bool    { return m.w < twoPanes }
func (m *model) bodyHeight() int { return max(m.h-aroundBody, 1) }

// panes are the widths of the list and the card; 0: not shown.
func (m *model) panes() (list, card int) {
	if m.narrow() {
		if m.reading {
			return 0, m.w
		}
		return m.w, 0
	}
	list = min(max(m.w*42/100, 34), 96)
	return list, m.w - list - 1
}

// cardWidth is what the card's text has: a cell stays free on both sides.
func cardWidth(w int) int { return w - 2 }

// arrange notes what of the card is on the screen.
func (m *model) arrange() {
	_, w := m.panes()
	if m.card == nil || w == 0 || m.screen != inboxScreen || m.missing != "" || m.tiny() || m.prompt != nil && m.prompt.list != nil {
		return
	}
	m.card.look(cardWidth(w), m.bodyHeight())
}

// View implements tea.Model. Its cost does not depend on how much is open.
func (m *model) View() tea.View {
	v := tea.View{AltScreen: true, WindowTitle: "supervise"}
	if n := m.inbox.counted.open; n > 0 {
		v.WindowTitle = fmt.Sprintf("supervise (%d)", n)
	}
	if m.tiny() {
		v.Content = fmt.Sprintf("%d×%d cells needed,\n%d×%d there", leastWidth, leastHeight, m.w, m.h)
		return v
	}
	lines := []string{m.header(), m.upperRule()}
	lines = append(lines, m.body()...)
	lines = append(lines, strings.Repeat("─", m.w))
	if p := m.prompt; p != nil {
		lines = append(lines, p.ask.style.paint(pad(" "+p.ask.text, m.w)))
		keys := " " + p.keys
		if p.input == nil {
			lines = append(lines, bold.paint(pad(keys, m.w)))
		} else {
			keys = cut(keys, m.w-10)
			p.input.SetWidth(m.w - width(keys) - 2)
			lines = append(lines, bold.paint(keys)+p.input.View())
			v.Cursor = p.input.Cursor()
			v.Cursor.X += width(keys)
			v.Cursor.Y = len(lines) - 1
		}
	} else {
		lines = append(lines, m.status.style.paint(pad(" "+m.status.text, m.w)), m.footer())
	}
	v.Content = strings.Join(lines, "\n")
	return v
}

// header counts what there is.
func (m *model) header() string {
	c := m.inbox.counted
	spans := []span{{bold, " supervise  "}}
	add := func(st style, text string) { spans = append(spans, span{st, text + "  "}) }
	switch {
	case m.missing != "":
		add(danger, "NO MAILBOXES")
	case !m.lookedAt:
		add(dim, "looking…")
	default:
		add(plain, fmt.Sprintf("%d open", c.open))
		if c.danger > 0 {
			add(danger, fmt.Sprintf("%d with DANGER", c.danger))
		}
		if c.waiting > 0 {
			add(plain, fmt.Sprintf("%d waited for", c.waiting))
		}
	}
	if n := len(m.inbox.marks); n > 0 {
		add(bold, fmt.Sprintf("%d marked", n))
	}
	if n := len(m.problems); n > 0 {
		add(warn, count(n, "problem")+" (p)")
	}
	if m.deaf != "" {
		add(warn, "not live: "+cut(m.deaf, 40))
	}
	used := 0
	for _, s := range spans {
		used += width(s.text)
	}
	root := m.opts.Root
	if room := m.w - used - 1; room >= 12 && root != "" {
		root = oneLine(root)
		for width(root) > room {
			_, root = split(root, 2)
			_, root = split(root, 1)
			root = "…" + root
		}
		spans = append(spans, span{plain, strings.Repeat(" ", room-width(root))}, span{dim, root})
	}
	return line{spans: spans}.render(m.w)
}

// upperRule tells of the panes below it: which one the keys move, the filter, how far the card is scrolled.
func (m *model) upperRule() string {
	switch m.screen {
	case historyScreen:
		title := "history, newest first"
		if m.past.query != "" {
			title += ": " + oneLine(m.past.query)
		}
		return rule(title, "", true, m.w)
	case helpScreen:
		return rule("help", "", true, m.w)
	case problemScreen:
		return rule("problems", "", true, m.w)
	}
	if m.missing != "" || len(m.inbox.rows) == 0 {
		return strings.Repeat("─", m.w)
	}
	list, card := m.panes()
	var out string
	if list > 0 {
		title := "inbox"
		if m.inbox.groups {
			title += " by host"
		}
		if m.inbox.filter != "" {
			title = "filter: " + oneLine(m.inbox.filter)
		}
		out = rule(title, m.inbox.place(), !m.reading, list)
	}
	if card > 0 {
		if list > 0 {
			out += "┬"
		}
		title, place := "", ""
		if m.card != nil {
			title, place = "proposal", m.card.position(cardWidth(card), m.bodyHeight())
		}
		out += rule(title, place, m.reading, card)
	}
	return out
}

// place says where in the list the cursor is.
func (b *inbox) place() string {
	at, n := 0, 0
	for i, r := range b.rows {
		if r.kind != itemRow {
			continue
		}
		n++
		if i == b.cur {
			at = n
		}
	}
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%d/%d", at, n)
}

// rule is a line with a title at the left, in brackets where the keys go, and a note at the right.
func rule(title, note string, focused bool, w int) string {
	if title != "" && focused {
		title = "─[" + cut(title, w-6) + "]"
	} else if title != "" {
		title = "─ " + cut(title, w-6) + " "
	}
	if note != "" {
		note = " " + cut(note, w-width(title)-4) + " ─"
	}
	return title + strings.Repeat("─", max(w-width(title)-width(note), 0)) + note
}

func (m *model) body() []string {
	h := m.bodyHeight()
	switch {
	case m.screen == historyScreen:
		return m.past.view(m.w, h)
	case m.screen == helpScreen, m.screen == problemScreen:
		return m.overlay.view(m.w, h)
	case m.missing != "":
		return m.notice(h, span{danger, "The mailboxes cannot be read."},
			span{plain, m.missing}, span{}, span{dim, "They are looked for again and again, and appear here once they are back."})
	case !m.lookedAt:
		return m.notice(h, span{dim, "looking…"})
	case len(m.inbox.rows) == 0 && m.inbox.filter != "":
		return m.notice(h, span{bold, "Nothing matches the filter."}, span{dim, "esc shows all " + count(m.inbox.counted.open, "open proposal") + "."})
	case len(m.inbox.rows) == 0 && m.bottles == 0:
		return m.notice(h, span{bold, "Nothing to decide."}, span{dim, "No bottle has a mailbox here yet; a sidecar makes its own when it starts."},
			span{}, span{dim, "What is asked appears here by itself."})
	case len(m.inbox.rows) == 0:
		return m.notice(h, span{bold, "Nothing to decide."}, span{dim, "Looked at " + count(m.bottles, "bottle") + "."},
			span{}, span{dim, "What is asked appears here by itself."})
	}
	list, card := m.panes()
	var left, right []string
	if list > 0 {
		left = m.inbox.view(list, h, !m.reading, m.cards)
	}
	if card > 0 {
		right = m.cardView(card, h)
	}
	out := make([]string, h)
	for i := range out {
		switch {
		case list == 0:
			out[i] = right[i]
		case card == 0:
			out[i] = left[i]
		default:
			out[i] = left[i] + "│" + right[i]
		}
	}
	return out
}

func (m *model) cardView(w, h int) []string {
	var lines []line
	at := 0
	switch {
	case m.prompt != nil && m.prompt.list != nil:
		lines = m.prompt.list
		if len(lines) > h { // more than fit are counted, not hidden
			lines = append(lines[:h-1:h-1], line{spans: []span{{bold, fmt.Sprintf("… and %d more", len(lines)-h+1)}}})
		}
	case m.card != nil:
		lines = m.card.layout(cardWidth(w))
		at = max(0, min(m.card.scroll, len(lines)-h))
	}
	out := make([]string, h)
	for i := range out {
		var l line
		if at+i < len(lines) {
			l = lines[at+i]
		}
		out[i] = " " + l.render(w-2) + " "
	}
	return out
}

// notice is a few lines in the middle of an otherwise empty body.
func (m *model) notice(h int, spans ...span) []string {
	var lines []line
	for _, s := range spans {
		for text := range strings.SplitSeq(s.text, "\n") {
			for _, piece := range wrap(untab(text), m.w-8, true) {
				lines = append(lines, line{spans: []span{{plain, strings.Repeat(" ", max((m.w-width(piece))/2, 0))}, {s.style, piece}}})
			}
		}
	}
	out := make([]string, h)
	above := max((h-len(lines))/3, 0)
	for i := range out {
		var l line
		if j := i - above; j >= 0 && j < len(lines) {
			l = lines[j]
		}
		out[i] = l.render(m.w)
	}
	return out
}

// How many cells the footer has for what u would undo; with fewer it does not offer it.
const (
	leastUndo = 14
	mostUndo  = 40
)

// footer names the keys that do something now.
func (m *model) footer() string {
	type key struct{ key, does string }
	var keys []key
	add := func(k, does string) { keys = append(keys, key{k, does}) }
	switch {
	case m.screen == historyScreen && m.past.entry != nil:
		keys = []key{{"esc", "back"}, {"u", "undo"}, {"pgdn", "scroll"}}
	case m.screen == historyScreen:
		keys = []key{{"esc", "back"}, {"enter", "look"}, {"u", "undo"}, {"/", "search"}}
	case m.screen != inboxScreen:
		keys = []key{{"esc", "back"}, {"pgdn", "scroll"}}
	case m.missing != "":
		keys = []key{{"h", "history"}, {"?", "help"}, {"q", "quit"}}
	default:
		c := m.card
		if n := len(m.inbox.marks); n > 0 {
			add("a", fmt.Sprintf("approve %d marked", n))
			add("esc", "forget marks")
		} else if m.armed() && c.open() && c.busy == "" {
			if c.p.Blocked == "" && c.p.Digest != "" {
				add("a", "approve")
				add("e", "edit")
			}
			add("r", "reject")
			add("d", "dismiss")
		} else if c.open() && c.busy == "" && c.badEdit != "" {
			add("e", "edit again")
			add("esc", "drop the edit")
		}
		undoAt := len(keys)
		if m.narrow() && !m.reading && c != nil {
			add("enter", "look")
		}
		if m.reading {
			add("esc", "list")
		} else if len(m.inbox.rows) > 0 {
			add("/", "filter")
		}
		add("h", "history")
		add("?", "help")
		add("q", "quit")
		if n := len(m.applied); n > 0 {
			does, room := "undo", m.w
			if u := m.applied[n-1]; c == nil || c.ref != u.ref { // what is not on the screen is named
				for _, k := range keys {
					room -= width("  " + k.key + " " + k.does)
				}
				room = min(room-len("  u "), mostUndo)
				does = cut("undo "+u.what, room)
			}
			if room >= leastUndo {
				keys = slices.Insert(keys, undoAt, key{"u", does})
			}
		}
	}
	var spans []span
	gap, used := " ", 0
	for _, k := range keys {
		n := width(gap + k.key + " " + k.does)
		if used+n > m.w {
			continue
		}
		spans = append(spans, span{plain, gap}, span{bold, k.key}, span{plain, " " + k.does})
		gap, used = "  ", used+n
	}
	return line{spans: spans}.render(m.w)
}
