package tui

import (
	"fmt"
	"strings"
	"time"

	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"
	"github.com/clipperhouse/displaywidth"

	"github.com/bot-bottle/supervise/internal/safetext"
)

// style is how a span looks. Nothing is said by style alone: without colour the words remain.
type style int

const (
	plain style = iota
	bold
	dim
	danger
	warn
	good
	added
	gone
	chosen // the selected line
	styles
)

var looks = [styles]lipgloss.Style{
	bold:   lipgloss.NewStyle().Bold(true),
	dim:    lipgloss.NewStyle().Faint(true),
	danger: lipgloss.NewStyle().Bold(true).Foreground(lipgloss.Red),
	warn:   lipgloss.NewStyle().Foreground(lipgloss.Yellow),
	good:   lipgloss.NewStyle().Foreground(lipgloss.Green),
	added:  lipgloss.NewStyle().Foreground(lipgloss.Green),
	gone:   lipgloss.NewStyle().Foreground(lipgloss.Red),
	chosen: lipgloss.NewStyle().Reverse(true),
}

func (s style) paint(text string) string {
	if s == plain || text == "" {
		return text
	}
	return looks[s].Render(text)
}

// span is text of one look: escaped, without newline or tab.
type span struct {
	style style
	text  string
}

// line is one line of the screen.
type line struct {
	spans  []span
	change int // the last piece of the change-th changed line of a diff; 0: of none
}

func (l line) String() string {
	var b strings.Builder
	for _, s := range l.spans {
		b.WriteString(s.text)
	}
	return b.String()
}

// render paints a line and makes it exactly w cells wide.
func (l line) render(w int) string {
	var b strings.Builder
	left := w
	for _, s := range l.spans {
		text := cut(s.text, left)
		left -= width(text)
		b.WriteString(s.style.paint(text))
	}
	b.WriteString(strings.Repeat(" ", max(left, 0)))
	return b.String()
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// width is the cells of steady text.
func width(s string) int {
	if isASCII(s) {
		return len(s)
	}
	return ansi.StringWidth(s)
}

// steady escapes what terminals do not agree on the width of, so that no text shifts what stands beside it. s is
// escaped already.
func steady(s string) string {
	if isASCII(s) {
		return s
	}
	var b strings.Builder
	for s != "" {
		c, w := ansi.FirstGraphemeCluster(s, ansi.GraphemeWidth)
		if w > 0 && w == apart(c) && alone(c, w) || c == "\n" || c == "\t" {
			b.WriteString(c)
		} else {
			for _, r := range c {
				switch {
				case r < 0x80:
					b.WriteRune(r)
				case r < 0x10000:
					fmt.Fprintf(&b, `\u%04x`, r)
				default:
					fmt.Fprintf(&b, `\U%08x`, r)
				}
			}
		}
		s = s[len(c):]
	}
	return b.String()
}

// alone tells whether a cluster stays what it is between spaces, where laying out may put it.
func alone(c string, w int) bool {
	return len(c) == 1 || ansi.StringWidth(" "+c+" ") == w+2
}

// apart is the cells of a cluster on a terminal that knows no clusters.
func apart(cluster string) int {
	n := 0
	for _, r := range cluster {
		if r >= 0x1F1E6 && r <= 0x1F1FF { // half a flag
			n++
		}
		n += displaywidth.Rune(r)
	}
	return n
}

// agentLine is one line of an agent's text, in at most w cells.
func agentLine(u safetext.Untrusted, w int) string {
	if w <= 0 {
		return ""
	}
	return cut(steady(u.Line(w)), w)
}

// agentText is an agent's text, escaped, with its line breaks.
func agentText(u safetext.Untrusted) string { return steady(u.String()) }

// printable escapes text that may or may not be escaped already, such as an error that quotes an agent.
func printable(s string) string { return steady(safetext.Once(s)) }

// oneLine is printable in one line.
func oneLine(s string) string {
	s = strings.TrimRight(s, "\n")
	return strings.NewReplacer("\n", `; `, "\t", " ").Replace(printable(s))
}

// cut shortens steady text to w cells.
func cut(s string, w int) string {
	if w <= 0 {
		return ""
	}
	if width(s) <= w {
		return s
	}
	head, _ := split(s, w-1)
	return head + "…"
}

// cutMiddle shortens a name, which is ASCII, to w cells. Its end is kept as well: names that belong together begin alike.
func cutMiddle(s string, w int) string {
	if len(s) <= w || w < 3 || !isASCII(s) {
		return cut(s, w)
	}
	tail := (w - 1) / 2
	return s[:w-1-tail] + "…" + s[len(s)-tail:]
}

// pad makes steady text exactly w cells wide.
func pad(s string, w int) string {
	s = cut(s, w)
	return s + strings.Repeat(" ", max(w-width(s), 0))
}

// split cuts the longest start of at most w cells off s.
func split(s string, w int) (head, tail string) {
	n := min(max(w, 0), len(s))
	if isASCII(s[:min(n+1, len(s))]) { // nothing joins, and the rest need not be looked at
		return s[:n], s[n:]
	}
	cells := 0
	n = 0
	for n < len(s) {
		c, cw := ansi.FirstGraphemeCluster(s[n:], ansi.GraphemeWidth)
		if cells += cw; cells > w {
			break
		}
		n += len(c)
	}
	return s[:n], s[n:]
}

// wrap breaks one line of steady text into pieces of at most w cells, at spaces where words is set and one is near enough. What
// stands behind very many spaces is not pushed out of sight by them.
func wrap(s string, w int, words bool) []string {
	w = max(w, 4)
	if few := safetext.Spaces(s); few != s {
		s = steady(few)
	}
	var out []string
	for {
		head, tail := split(s, w)
		if tail == "" || head == "" { // the rest; or a cluster wider than a line, which steady text has not
			return append(out, s)
		}
		if i := strings.LastIndexByte(head, ' '); words && tail[0] != ' ' && i > len(head)/3 {
			head, tail = s[:i], s[i+1:]
		} else if words {
			tail = strings.TrimPrefix(tail, " ")
		}
		out = append(out, head)
		s = tail
	}
}

// untab replaces tabs by spaces up to the next stop of four.
func untab(s string) string { return safetext.Untab(s, 4, width) }

// age is a duration in at most four cells.
func age(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", max(d, 0)/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d < 1000*24*time.Hour:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	}
	return "old"
}

// when is a time as people read it.
func when(t time.Time) string {
	if t.IsZero() {
		return "unknown"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
