package main

import (
	"bytes"
	"cmp"
	"io"
	"os"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/clipperhouse/displaywidth"
	"golang.org/x/term"

	"github.com/bot-bottle/supervise/internal/safetext"
)

// style is how text goes to one stream: plain unless it is a terminal.
type style struct {
	tty   bool
	color bool
	width int      // cells when the program began; 0: not a terminal, nothing is cut
	file  *os.File // the terminal, or nil
	wrap  int      // where lines are broken that are no terminal's; 0: nowhere
}

// elsewhere is how wide output is taken to be that goes to no terminal: what reads it may be on one, as a pager is.
const elsewhere = 100

// styleBeside is styleOf for a program whose other streams are these. Where out leads to is not known, but a terminal among
// them is where it will be seen, as in: supervise show ID | tail.
func styleBeside(out io.Writer, env func(string) string, others ...any) style {
	s := styleOf(out, env)
	if s.tty {
		return s
	}
	s.wrap = elsewhere
	for _, o := range others {
		if f := terminal(o); f != nil {
			if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
				s.wrap = w
				break
			}
		}
	}
	return s
}

func styleOf(out io.Writer, env func(string) string) style {
	f := terminal(out)
	if f == nil {
		return style{}
	}
	s := style{tty: true, color: env("NO_COLOR") == "" && env("TERM") != "dumb", file: f}
	if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
		s.width = max(w, 40)
	}
	return s
}

const reset = "\x1b[0m"

func (s style) paint(code, text string) string {
	if !s.color || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + reset
}

func (s style) bold(text string) string   { return s.paint("1", text) }
func (s style) dim(text string) string    { return s.paint("2", text) }
func (s style) danger(text string) string { return s.paint("1;31", text) }
func (s style) added(text string) string  { return s.paint("32", text) }
func (s style) gone(text string) string   { return s.paint("31", text) }
func (s style) warn(text string) string   { return s.paint("33", text) }

// diff colours a unified diff that is escaped already, and indents it. A line that is continued has "↳" where the
// diff has its own mark, which no line of a file can fake.
func (s style) diff(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		paint := func(text string) string { return text }
		switch {
		case strings.HasPrefix(line, "+++"), strings.HasPrefix(line, "---"):
			paint = s.bold
		case strings.HasPrefix(line, "@@"):
			paint = s.dim
		case strings.HasPrefix(line, "+"):
			paint = s.added
		case strings.HasPrefix(line, "-"):
			paint = s.gone
		}
		n := min(len(line), 1)
		mark, next := line[:n], "↳"[:len("↳")*n]
		for i, row := range s.rows(line[n:], 3, false) {
			if i > 0 {
				mark = next
			}
			b.WriteString("  " + paint(mark+row) + "\n")
		}
	}
	return b.String()
}

// fence sets text of an agent apart, so that none of its lines can pass for one of ours.
func (s style) fence(text string) string { return s.fenceAt("", text) }

func (s style) fenceAt(indent, text string) string {
	bar := indent + s.dim("  | ")
	var b strings.Builder
	for line := range strings.Lines(text) {
		for _, row := range s.rows(strings.TrimSuffix(line, "\n"), len(indent)+4, true) {
			b.WriteString(bar + row + "\n")
		}
	}
	if text == "" {
		b.WriteString(bar[:len(indent)] + s.dim("  | (nothing)") + "\n")
	}
	return b.String()
}

// para writes text behind first. Its other lines begin with as many blanks, and a line that is continued with "↳":
// nothing an agent wrote begins where our lines do.
func (s style) para(first, text string) string {
	used := cells(first)
	blank := strings.Repeat(" ", used)
	next := blank[:used-2] + "↳ "
	var b strings.Builder
	for line := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
		for _, row := range s.rows(line, used, true) {
			b.WriteString(first + row + "\n")
			first = next
		}
		first = blank
	}
	return b.String()
}

// least is how many cells are left for text, however narrow the terminal.
const least = 8

// rows breaks one line of escaped text, which may hold colours of ours, where the terminal would break it: it would go on
// in column 0. Used cells of each row are the caller's. With words it breaks at spaces where one is near enough.
func (s style) rows(text string, used int, words bool) []string {
	return s.broken(safetext.Spaces(text), used, words)
}

// broken is rows of text whose spaces are ours.
func (s style) broken(text string, used int, words bool) []string {
	width := s.cells()
	if width == 0 {
		return []string{text}
	}
	width = max(width-used, least)
	text = untab(text)
	var rows []string
	colour := "" // in force where the row begins
	for {
		head, tail := split(text, width)
		if i := strings.LastIndexByte(head, ' ') + 1; words && tail != "" && i > len(head)/3 {
			head, tail = text[:i], text[i:]
		}
		row := colour + head
		if i := strings.LastIndexByte(row, '\x1b'); i >= 0 {
			if colour = row[i : i+strings.IndexByte(row[i:], 'm')+1]; colour == reset {
				colour = ""
			} else {
				row += reset
			}
		}
		rows = append(rows, row)
		if tail == "" {
			return rows
		}
		text = tail
	}
}

// cells is how wide the terminal is now, or lines that go elsewhere; 0: as wide as one likes.
func (s style) cells() int {
	if s.file == nil {
		return cmp.Or(s.width, s.wrap)
	}
	if w, _, err := term.GetSize(int(s.file.Fd())); err == nil && w > 0 {
		return w
	}
	return cmp.Or(s.width, 80)
}

// split cuts the longest start of at most width cells off s, but at least one character.
func split(s string, width int) (head, tail string) {
	at := 0
	for used := 0; at < len(s); {
		n, w := unit(s[at:])
		if used += w; used > width && at > 0 {
			break
		}
		at += n
	}
	return s[:at], s[at:]
}

// cells is the most cells that a terminal gives escaped text, which may hold colours of ours.
func cells(s string) int {
	used := 0
	for s != "" {
		n, w := unit(s)
		s = s[n:]
		used += w
	}
	return used
}

// unit is the length of what must not be broken at the start of s, and the most cells that a terminal gives it: a colour
// of ours, or a character with its marks. Not every terminal joins characters, or knows which take no cell.
func unit(s string) (n, width int) {
	if s[0] == '\x1b' { // escaped text has none
		return strings.IndexByte(s, 'm') + 1, 0
	}
	for n < len(s) {
		r, size := utf8.DecodeRuneInString(s[n:])
		if n > 0 && !unicode.In(r, unicode.Mn, unicode.Me) {
			break
		}
		n += size
		if r >= 0x1F1E6 && r <= 0x1F1FF { // half a flag
			width++
		}
		width += max(displaywidth.Rune(r), 1)
	}
	return n, width
}

// untab replaces tabs by spaces up to the next stop of eight.
func untab(s string) string { return safetext.Untab(s, 8, cells) }

// table lays out rows of cells that are escaped already. On a terminal the last column is cut to what is left; where that is
// little, it stands on a line of its own.
type table struct {
	style  style
	head   []string
	rows   []row
	middle int // a column that is cut in the middle where room is short; 0: none
}

type row struct {
	cells []string
	under []string // lines below the row
	paint func(string) string
}

// Where room is short: the last column has so many cells beside the others, or a line of its own, and what is cut in the
// middle so many.
const (
	leastLast  = 40
	mostMiddle = 24
)

func (t *table) String() string {
	under := t.style
	under.wrap = 0 // a row is a line, for what reads them
	last := len(t.head) - 1
	widths := make([]int, last+1)
	measure := func(cells []string) {
		for i, c := range cells {
			widths[i] = max(widths[i], displaywidth.String(c))
		}
	}
	measure(t.head)
	for _, r := range t.rows {
		measure(r.cells)
	}
	used := 0
	for _, w := range widths[:last] {
		used += w + 2
	}
	most := t.style.width // 0: no terminal
	tight := func() bool { return most > 0 && most-used < min(leastLast, widths[last]) }
	shorten := func(enough func(used int) bool) {
		if less := used - widths[t.middle] + mostMiddle; t.middle > 0 && less < used && enough(less) {
			used, widths[t.middle] = less, mostMiddle
		}
	}
	if tight() {
		shorten(func(used int) bool { return most-used >= min(leastLast, widths[last]) })
	}
	below := tight()
	if below && used-2 > most {
		shorten(func(int) bool { return true })
	}

	var b strings.Builder
	line := func(cells []string, paint func(string) string) {
		if paint == nil {
			paint = func(text string) string { return text }
		}
		l, mark := "", ""
		end := func() { // of a row of a narrow terminal
			if l = strings.TrimRight(l, " "); l == "" {
				return // more of the row above
			}
			for _, row := range t.style.broken(l, 2, true) {
				b.WriteString(mark + paint(strings.TrimRight(row, " ")) + "\n")
				mark = "↳ "
			}
			l = ""
		}
		for i, c := range cells[:last] {
			c = cutMiddle(c, widths[i])
			if below && displaywidth.String(l)+widths[i] > most-2 {
				end()
			}
			l += c + strings.Repeat(" ", widths[i]-displaywidth.String(c)+2)
		}
		c := cells[last]
		if below {
			end()
			b.WriteString("  " + paint(cut(c, most-2)) + "\n")
			return
		}
		if most > 0 {
			c = cut(c, most-used)
		}
		b.WriteString(paint(strings.TrimRight(l+c, " ")) + "\n")
	}
	line(t.head, t.style.dim)
	for _, r := range t.rows {
		line(r.cells, r.paint)
		for _, u := range r.under {
			b.WriteString(under.para("  ", u))
		}
	}
	return b.String()
}

// cutMiddle shortens a name to so many cells, of which the end is kept as well: names that belong together begin alike.
func cutMiddle(s string, most int) string {
	if displaywidth.String(s) <= most {
		return s
	}
	if len(s) != displaywidth.String(s) { // not ASCII
		return cut(s, most)
	}
	tail := (most - 1) / 2
	return s[:most-1-tail] + "…" + s[len(s)-tail:]
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
func escape(s string) string { return safetext.Once(s) }

// escapeLine is escape for one line.
func escapeLine(s string) string {
	return strings.NewReplacer("\n", `\n`, "\t", `\t`).Replace(escape(s))
}

// escapeCut is escapeLine, cut to max characters.
func escapeCut(s string, max int) string {
	r := []rune(escapeLine(s))
	if len(r) > max {
		r = append(r[:max-1], '…')
	}
	return string(r)
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
		text := escapeLine(strings.TrimRight(string(line), "\r"))
		if _, err := io.WriteString(l.w, styleOf(l.w, os.Getenv).para("  ", text)); err != nil {
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
