package tuitest

import (
	"slices"
	"strings"

	"github.com/charmbracelet/x/ansi"
)

// screen is what a terminal shows after what was written to it. It knows the sequences that full-screen programs
// use; what it does not know it ignores.
type screen struct {
	w, h    int
	cells   [][]string // a wide character's second cell is ""
	x, y    int
	wrap    bool // the next character goes to the next line
	top     int  // the scrolling region, both ends in it
	bottom  int
	last    string // what REP repeats
	saved   [2]int
	bells   int
	notes   []string // OSC 9
	title   string
	colours bool              // a colour was ever set
	frame   *string           // what is shown while a synchronized update (mode 2026) is under way
	reply   func(text string) // to the program; nil: a terminal that answers nothing
	parser  *ansi.Parser
}

func newScreen(w, h int) *screen {
	s := &screen{parser: ansi.NewParser()}
	s.resize(w, h)
	s.parser.SetHandler(ansi.Handler{
		Print:     s.print,
		Execute:   s.control,
		HandleCsi: s.csi,
		HandleEsc: s.esc,
		HandleOsc: s.osc,
	})
	return s
}

func blank(w int) []string {
	row := make([]string, w)
	for i := range row {
		row[i] = " "
	}
	return row
}

// resize keeps what fits.
func (s *screen) resize(w, h int) {
	old := s.cells
	s.w, s.h = w, h
	s.cells = make([][]string, h)
	for y := range s.cells {
		s.cells[y] = blank(w)
		if y < len(old) {
			copy(s.cells[y], old[y])
		}
	}
	s.top, s.bottom = 0, h-1
	s.move(s.x, s.y)
}

// String is the text, without the spaces at the ends of lines.
func (s *screen) String() string {
	if s.frame != nil {
		return *s.frame
	}
	var b strings.Builder
	for _, row := range s.cells {
		b.WriteString(strings.TrimRight(strings.Join(row, ""), " ") + "\n")
	}
	return b.String()
}

func (s *screen) move(x, y int) {
	s.x, s.y, s.wrap = max(0, min(x, s.w-1)), max(0, min(y, s.h-1)), false
}

func (s *screen) print(r rune) {
	text := string(r)
	n := ansi.StringWidthWc(text)
	if n == 0 { // joins what stands before the cursor
		if x := s.x - 1; x >= 0 {
			s.cells[s.y][x] += text
		}
		return
	}
	if s.wrap || s.x+n > s.w {
		s.x, s.wrap = 0, false
		s.down()
	}
	s.last = text
	s.cells[s.y][s.x] = text
	for i := 1; i < n; i++ {
		s.cells[s.y][s.x+i] = ""
	}
	if s.x += n; s.x >= s.w {
		s.x, s.wrap = s.w-1, true
	}
}

func (s *screen) down() {
	if s.y == s.bottom {
		s.scroll(s.top, 1)
	} else {
		s.y = min(s.y+1, s.h-1)
	}
}

// scroll moves the lines from a line of the region on up by n, or down.
func (s *screen) scroll(from, n int) {
	if from < s.top || from > s.bottom {
		return
	}
	for ; n > 0; n-- {
		s.cells = slices.Insert(slices.Delete(s.cells, from, from+1), s.bottom, blank(s.w))
	}
	for ; n < 0; n++ {
		s.cells = slices.Insert(slices.Delete(s.cells, s.bottom, s.bottom+1), from, blank(s.w))
	}
}

func (s *screen) control(b byte) {
	switch b {
	case '\a':
		s.bells++
	case '\b':
		s.move(s.x-1, s.y)
	case '\t':
		s.move((s.x/8+1)*8, s.y)
	case '\r':
		s.move(0, s.y)
	case '\n':
		s.wrap = false
		s.down()
	}
}

func (s *screen) esc(cmd ansi.Cmd) {
	switch cmd.Final() {
	case '7':
		s.saved = [2]int{s.x, s.y}
	case '8':
		s.move(s.saved[0], s.saved[1])
	case 'M':
		if s.y == s.top {
			s.scroll(s.top, -1)
		} else {
			s.move(s.x, s.y-1)
		}
	}
}

func (s *screen) osc(cmd int, data []byte) {
	_, text, _ := strings.Cut(string(data), ";")
	switch cmd {
	case 0, 2:
		s.title = text
	case 9:
		s.notes = append(s.notes, text)
	}
}

func (s *screen) csi(cmd ansi.Cmd, params ansi.Params) {
	if cmd.Prefix() != 0 {
		if cmd.Prefix() == '?' {
			s.mode(cmd, param(params, 0, 0))
		}
		return
	}
	n := max(param(params, 0, 1), 1)
	row := s.cells[s.y]
	at := s.y*s.w + s.x
	switch cmd.Final() {
	case 'A':
		s.move(s.x, s.y-n)
	case 'B', 'e':
		s.move(s.x, s.y+n)
	case 'C', 'a':
		s.move(s.x+n, s.y)
	case 'D':
		s.move(s.x-n, s.y)
	case 'E':
		s.move(0, s.y+n)
	case 'F':
		s.move(0, s.y-n)
	case 'G', '`':
		s.move(n-1, s.y)
	case 'd':
		s.move(s.x, n-1)
	case 'H', 'f':
		s.move(max(param(params, 1, 1), 1)-1, n-1)
	case 'I':
		s.move((s.x/8+n)*8, s.y)
	case 'Z':
		s.move(((s.x+7)/8-n)*8, s.y)
	case 'J':
		s.span(param(params, 0, 0), at, s.w*s.h, 0)
	case 'K':
		s.span(param(params, 0, 0), at, (s.y+1)*s.w, s.y*s.w)
	case 'X':
		s.erase(at, min(at+n, (s.y+1)*s.w))
	case '@':
		copy(row[min(s.x+n, s.w):], slices.Clone(row[s.x:]))
		s.erase(at, min(at+n, (s.y+1)*s.w))
	case 'P':
		copy(row[s.x:], slices.Clone(row[min(s.x+n, s.w):]))
		s.erase(max(at, (s.y+1)*s.w-n), (s.y+1)*s.w)
	case 'L':
		s.scroll(s.y, -n)
	case 'M':
		s.scroll(s.y, n)
	case 'S':
		s.scroll(s.top, n)
	case 'T':
		s.scroll(s.top, -n)
	case 'b':
		for range n {
			s.print([]rune(s.last)[0])
		}
	case 'r':
		s.top, s.bottom = n-1, min(param(params, 1, s.h), s.h)-1
		s.move(0, 0)
	case 'm':
		params.ForEach(0, func(_, p int, _ bool) {
			if p >= 30 && p <= 49 || p >= 90 && p <= 107 {
				s.colours = s.colours || p != 39 && p != 49
			}
		})
	}
}

const (
	altScreen    = 1049
	synchronized = 2026
)

// mode is a private mode that is set, reset, or asked for.
func (s *screen) mode(cmd ansi.Cmd, mode int) {
	switch {
	case mode == altScreen && cmd.Final() == 'h':
		s.erase(0, s.w*s.h)
	case mode == synchronized && cmd.Final() == 'h' && s.frame == nil:
		s.frame = new(s.String())
	case mode == synchronized && cmd.Final() == 'l':
		s.frame = nil
	case mode == synchronized && cmd.Final() == 'p' && s.reply != nil:
		s.reply("\x1b[?2026;2$y") // known, and off
	}
}

func param(p ansi.Params, i, def int) int {
	v, _, ok := p.Param(i, def)
	if !ok {
		return def
	}
	return v
}

// span erases from the cursor to the end (0), from the start to the cursor (1), or all (2).
func (s *screen) span(how, at, end, start int) {
	switch how {
	case 0:
		s.erase(at, end)
	case 1:
		s.erase(start, at+1)
	case 2:
		s.erase(start, end)
	}
}

func (s *screen) erase(from, to int) {
	for i := from; i < to; i++ {
		s.cells[i/s.w][i%s.w] = " "
	}
}
