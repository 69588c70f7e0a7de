package main

import (
	"bytes"
	"io"
	"strings"
	"time"

	"github.com/clipperhouse/displaywidth"
	"golang.org/x/term"

	"github.com/bot-bottle/supervise/internal/safetext"
)

// style is how text goes to one stream: plain unless it is a terminal.
type style struct {
	tty   bool
	color bool
	width int // cells; 0: not a terminal, nothing is cut
}

func styleOf(out io.Writer, env func(string) string) style {
	f := terminal(out)
	if f == nil {
		return style{}
	}
	s := style{tty: true, color: env("NO_COLOR") == "" && env("TERM") != "dumb"}
	if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
		s.width = max(w, 40)
	}
	return s
}

func (s style) paint(code, text string) string {
	if !s.color || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (s style) bold(text string) string   { return s.paint("1", text) }
func (s style) dim(text string) string    { return s.paint("2", text) }
func (s style) danger(text string) string { return s.paint("1;31", text) }
func (s style) added(text string) string  { return s.paint("32", text) }
func (s style) gone(text string) string   { return s.paint("31", text) }
func (s style) warn(text string) string   { return s.paint("33", text) }

// left is how many cells remain after used ones; 0: as many as one likes.
func (s style) left(used int) int {
	if s.width == 0 {
		return 0
	}
	return max(s.width-used, 12)
}

// diff colours a unified diff that is escaped already, and indents it.
func (s style) diff(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "+++"), strings.HasPrefix(line, "---"):
			line = s.bold(line)
		case strings.HasPrefix(line, "@@"):
			line = s.dim(line)
		case strings.HasPrefix(line, "+"):
			line = s.added(line)
		case strings.HasPrefix(line, "-"):
			line = s.gone(line)
		}
		b.WriteString("  " + line + "\n")
	}
	return b.String()
}

// fence sets text of an agent apart, so that none of its lines can pass for one of ours.
func (s style) fence(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(s.dim("  | ") + strings.TrimSuffix(line, "\n") + "\n")
	}
	if text == "" {
		b.WriteString(s.dim("  | (nothing)") + "\n")
	}
	return b.String()
}

// table lays out rows of cells that are escaped already. The last column is cut to the terminal.
type table struct {
	style style
	head  []string
	rows  []row
}

type row struct {
	cells []string
	under []string // lines below the row
	paint func(string) string
}

func (t *table) String() string {
	widths := make([]int, len(t.head))
	measure := func(cells []string) {
		for i, c := range cells {
			widths[i] = max(widths[i], displaywidth.String(c))
		}
	}
	measure(t.head)
	for _, r := range t.rows {
		measure(r.cells)
	}
	var b strings.Builder
	line := func(cells []string, paint func(string) string) {
		used := 0
		var l strings.Builder
		for i, c := range cells {
			if i == len(cells)-1 {
				if most := t.style.left(used); most > 0 && displaywidth.String(c) > most {
					c = cut(c, most)
				}
				l.WriteString(c)
				break
			}
			l.WriteString(c + strings.Repeat(" ", widths[i]-displaywidth.String(c)+2))
			used += widths[i] + 2
		}
		text := strings.TrimRight(l.String(), " ")
		if paint != nil {
			text = paint(text)
		}
		b.WriteString(text + "\n")
	}
	line(t.head, t.style.dim)
	for _, r := range t.rows {
		line(r.cells, r.paint)
		for _, u := range r.under {
			b.WriteString("  " + u + "\n")
		}
	}
	return b.String()
}

// cut shortens escaped text to so many cells.
func cut(s string, most int) string {
	cells, keep := 0, 0
	for i, r := range s {
		cells += displaywidth.Rune(r)
		if cells > most {
			return s[:keep] + "…"
		}
		if cells < most {
			keep = i + len(string(r))
		}
	}
	return s
}

// age is a duration as people say it.
func age(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Minute:
		return d.Truncate(time.Second).String()
	case d < time.Hour:
		return strings.TrimSuffix(d.Truncate(time.Minute).String(), "0s")
	case d < 48*time.Hour:
		return strings.TrimSuffix(d.Truncate(time.Hour).String(), "0m0s")
	}
	return strings.TrimSuffix((d/24).Truncate(time.Hour).String(), "h0m0s") + "d"
}

// when is a time as people read it.
func when(t time.Time) string {
	if t.IsZero() {
		return "unknown"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

// escape makes text of unknown origin printable; text that was escaped before stays as it is.
func escape(s string) string { return escapeWith(s, safetext.Block) }

// escapeLine is escape for one line.
func escapeLine(s string) string {
	return escapeWith(s, func(s string) string { return safetext.Line(s, 0) })
}

func escapeWith(s string, f func(string) string) string {
	strip := func(s string) string { return strings.ReplaceAll(s, `\`, "") }
	safe := f(s)
	if strip(safe) == strip(s) { // only backslashes would be doubled
		return s
	}
	return safe
}

// quote makes a word safe for a shell.
func quote(s string) string {
	special := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:=,@%+", r))
	}
	if s != "" && !strings.ContainsFunc(s, special) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// lineWriter escapes what a build or a reload prints, line by line.
type lineWriter struct {
	w    io.Writer
	rest []byte
}

// longest is how much of a line without an end is kept.
const longest = 4 << 10

func (l *lineWriter) Write(p []byte) (int, error) {
	l.rest = append(l.rest, p...)
	for {
		line, rest, ok := bytes.Cut(l.rest, []byte("\n"))
		if !ok && len(l.rest) < longest {
			return len(p), nil
		}
		l.rest = rest
		if _, err := io.WriteString(l.w, "  "+escapeLine(strings.TrimRight(string(line), "\r"))+"\n"); err != nil {
			return 0, err
		}
	}
}

// Flush writes a last line that has no end.
func (l *lineWriter) Flush() {
	if len(l.rest) > 0 {
		_, _ = l.Write([]byte("\n")) // progress is only for the eye
	}
}
