package tui

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/aymanbagabas/go-udiff"

	"github.com/bot-bottle/supervise/internal/operator"
)

// card is one proposal as it is on the screen.
type card struct {
	ref  operator.Ref
	p    *operator.Preview // nil: not here yet
	edit *string           // what the operator would apply instead
	of   *string           // the edit that p is of
	told *string           // the edit of which the status line has told whether it is valid
	err  string            // why there is no preview; escaped

	changed *operator.Preview // what was on the screen before it changed; nil: it has not
	failed  string            // why the last attempt did not hold; escaped
	badEdit string            // why the edit cannot be previewed; escaped
	busy    string            // "approving", while a verb runs
	log     *progress         // what it prints
	did     string            // what we did about it

	scroll int
	seen   []bool // which changed lines have been on the screen

	lines []line // laid out for w; nil: to be laid out again
	w     int
}

// current tells whether p is the preview of what would be applied now.
func (c *card) current() bool { return c != nil && c.p != nil && c.of == c.edit && c.badEdit == "" }

// open tells whether there is something to decide.
func (c *card) open() bool {
	if c == nil || c.p == nil || c.p.Decision != nil || c.did != "" {
		return false
	}
	switch c.p.State {
	case operator.Open, operator.Failed, operator.Stuck, operator.Bad:
		return true
	}
	return false
}

// show takes a new preview.
func (c *card) show(p *operator.Preview, of *string) {
	old := c.p
	same := old != nil && c.of == of
	if same && c.err == "" && alike(old, p) {
		c.p = p // laid out already
		return
	}
	switch {
	case !same || p.Decision != nil:
		c.changed, c.seen = nil, nil
	case old.Digest != p.Digest:
		if c.changed == nil {
			c.changed = old
		} else if c.changed.Digest == p.Digest {
			c.changed = nil // back to what was seen first
		}
		c.seen, c.scroll = nil, 0
	}
	if !same {
		c.scroll = 0
	}
	if p.State == operator.Failed || p.State == operator.Stuck {
		c.failed = "" // the preview has it
	}
	c.p, c.of, c.err, c.lines = p, of, "", nil
}

// alike tells whether two previews look the same.
func alike(a, b *operator.Preview) bool {
	x, y := *a, *b
	x.Age = y.Age // not shown
	return reflect.DeepEqual(x, y)
}

// layout returns the card's lines for a width.
func (c *card) layout(w int) []line {
	if c.lines != nil && c.w == w && c.busy == "" {
		return c.lines
	}
	s := &sheet{w: w}
	c.banner(s)
	switch {
	case c.p != nil:
		s.blank()
		s.preview(c.p)
		s.trailer(c.p)
	case c.err != "":
		s.para(warn, c.err)
	default:
		s.add(span{dim, "looking…"})
	}
	if len(c.seen) != s.changes {
		c.seen = make([]bool, s.changes)
	}
	c.lines, c.w = s.lines, w
	return c.lines
}

// banner is what must be read first.
func (c *card) banner(s *sheet) {
	if c.busy != "" {
		s.add(span{bold, c.busy + "…"})
		for _, l := range c.log.tail() {
			s.add(span{dim, "  " + cut(l, s.w-2)})
		}
	}
	if c.did != "" {
		s.para(good, c.did)
	}
	if p := c.p; p != nil {
		c.state(s, p)
	}
	if c.failed != "" {
		s.para(danger, "NOT DONE")
		s.para(warn, c.failed)
	}
	if c.badEdit != "" {
		s.para(danger, "YOUR EDIT IS NOT VALID")
		s.para(warn, c.badEdit)
		s.para(dim, "e edits it again, esc drops it. Below is what was proposed.")
	} else if c.edit != nil && c.p != nil && c.p.Decision == nil {
		s.para(warn, "YOUR EDIT, and what would change with it")
	}
	if c.changed != nil && c.p != nil {
		s.para(danger, "CHANGED SINCE YOU LOOKED")
		s.difference(text(c.changed, s.w-2), text(c.p, s.w-2))
	}
}

// difference is what was on the screen and what is, where telling that does not take long.
func (s *sheet) difference(before, after string) {
	const most = 2000 // lines; twice as many take four times as long
	if strings.Count(before, "\n") > most || strings.Count(after, "\n") > most {
		s.para(plain, "It is too long to show what has changed: look at all of it.")
		return
	}
	s.diff(udiff.Unified("what you saw", "what it is now", before, after), false)
}

func (c *card) state(s *sheet, p *operator.Preview) {
	switch {
	case p.Decision != nil && c.did == "":
		s.para(good, strings.ToUpper(oneLine(string(p.Decision.Status)))+" by "+decider(p.Decision.By, p.Decision.Via))
	case p.State == operator.Failed:
		s.para(danger, "FAILED")
		s.para(warn, "The last attempt did not hold; it is open again.")
		s.para(warn, printable(p.Error))
	case p.State == operator.Stuck:
		s.para(danger, "STUCK")
		s.para(warn, printable(p.Error))
	case p.State == operator.Bad:
		s.para(danger, "MALFORMED")
	case p.State == operator.Deciding && c.busy == "":
		s.para(warn, "Being decided at this moment.")
	}
}

// look notes which changed lines are among those of the screen.
func (c *card) look(w, h int) {
	lines := c.layout(w)
	c.scroll = max(0, min(c.scroll, len(lines)-h))
	for _, l := range lines[c.scroll:min(c.scroll+h, len(lines))] {
		if l.change > 0 {
			c.seen[l.change-1] = true
		}
	}
}

// unseen counts the changed lines that have not been on the screen.
func (c *card) unseen() int {
	n := 0
	for _, seen := range c.seen {
		if !seen {
			n++
		}
	}
	return n
}

// position says what of a long card is on the screen.
func (c *card) position(w, h int) string {
	n := len(c.layout(w))
	if n <= h {
		return ""
	}
	text := fmt.Sprintf("%d–%d of %d", c.scroll+1, min(c.scroll+h, n), n)
	if u := c.unseen(); u > 0 && c.open() {
		text += ", " + count(u, "change") + " unseen"
	}
	return text
}
