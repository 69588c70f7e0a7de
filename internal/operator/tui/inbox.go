package tui

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/safetext"
)

// inbox is the list: what is open, in which order it is shown, and where the cursor is.
type inbox struct {
	items   []operator.Item
	at      time.Time // when items were looked at, for their ages
	index   map[operator.Ref]int
	counted counts

	filter    string
	groups    bool // by host
	abandoned bool // unfold what nobody has waited for in long

	rows  []row
	sel   operator.Ref   // the selected proposal; zero: none
	cur   int            // the row under the cursor
	top   int            // the first row on the screen
	ghost *operator.Item // the selected one, once it is no longer open
	marks map[operator.Ref]string
}

type counts struct{ open, danger, waiting, abandoned int }

type rowKind int

const (
	itemRow   rowKind = iota
	groupRow          // the name of a host; the cursor passes over it
	foldedRow         // stands for the abandoned ones
)

type row struct {
	kind rowKind
	item *operator.Item
	text string // of a group, of the fold
}

func (b *inbox) set(items []operator.Item, at time.Time) {
	b.items, b.at = items, at
	b.index = make(map[operator.Ref]int, len(items))
	b.counted = counts{}
	for i := range items {
		it := &items[i]
		b.index[it.Ref] = i
		if it.State == operator.Deciding {
			continue
		}
		b.counted.open++
		if it.Danger {
			b.counted.danger++
		}
		if it.Connected == operator.Waiting {
			b.counted.waiting++
		}
		if it.Abandoned {
			b.counted.abandoned++
		}
	}
	for ref := range b.marks {
		if _, ok := b.index[ref]; !ok {
			delete(b.marks, ref)
		}
	}
	b.arrange()
}

// item finds a proposal that is listed.
func (b *inbox) item(ref operator.Ref) *operator.Item {
	if i, ok := b.index[ref]; ok {
		return &b.items[i]
	}
	if b.ghost != nil && b.ghost.Ref == ref {
		return b.ghost
	}
	return nil
}

// arrange builds the rows. The selection stays on its proposal, and its line of the screen where it can; one that is no
// longer open stays as a ghost between its neighbours.
func (b *inbox) arrange() {
	before, cur, offset := b.rows, b.cur, b.cur-b.top
	all, match := strings.TrimSpace(b.filter) == "", operator.Filter(b.filter)
	folded := 0
	b.rows = make([]row, 0, len(b.items)+1)
	for i := range b.items {
		it := &b.items[i]
		switch {
		case !match(it):
		case it.Abandoned && !b.abandoned && all:
			folded++
		default:
			b.rows = append(b.rows, row{item: it})
		}
	}
	if b.groups {
		b.rows = grouped(b.rows)
	}
	switch {
	case folded > 0:
		b.rows = append(b.rows, row{kind: foldedRow, text: fmt.Sprintf("%d abandoned: z shows them", folded)})
	case b.abandoned && b.counted.abandoned > 0 && all:
		b.rows = append(b.rows, row{kind: foldedRow, text: "z hides the abandoned ones"})
	}
	_, open := b.index[b.sel]
	switch at := b.find(b.sel); {
	case b.sel == operator.Ref{}:
		b.cur = b.next(0, 1)
	case at >= 0:
		b.cur, b.ghost = at, nil
	case open: // filtered out, or folded
		b.cur, b.ghost = b.next(min(cur, len(b.rows)-1), 1), nil
	default:
		b.haunt(before, cur)
	}
	b.settle()
	b.top = max(0, b.cur-offset)
}

// grouped puts the items of one host together, in the order in which hosts come first.
func grouped(items []row) []row {
	var hosts []string
	by := map[string][]row{}
	for _, r := range items {
		h := r.item.Host.Raw()
		if by[h] == nil {
			hosts = append(hosts, h)
		}
		by[h] = append(by[h], r)
	}
	var rows []row
	for _, h := range hosts {
		name := steady(safetext.Host(h))
		if h == "" {
			name = "no host"
		}
		rows = append(rows, row{kind: groupRow, text: fmt.Sprintf("%s (%d)", name, len(by[h]))})
		rows = append(rows, by[h]...)
	}
	return rows
}

// haunt puts the selected proposal, which is no longer open, where it was.
func (b *inbox) haunt(before []row, cur int) {
	if b.ghost == nil && cur < len(before) && before[cur].item != nil && before[cur].item.Ref == b.sel {
		b.ghost = new(*before[cur].item)
	}
	if b.ghost == nil {
		b.cur = b.next(min(cur, len(b.rows)-1), 1)
		return
	}
	at := 0
	for i := min(cur, len(before)) - 1; i >= 0; i-- {
		if before[i].item == nil {
			continue
		}
		if j := b.find(before[i].item.Ref); j >= 0 {
			at = j + 1
			break
		}
	}
	b.rows = slices.Insert(b.rows, at, row{item: b.ghost})
	b.cur = at
}

func (b *inbox) find(ref operator.Ref) int {
	return slices.IndexFunc(b.rows, func(r row) bool { return r.item != nil && r.item.Ref == ref })
}

// next finds a row for the cursor at or after from in a direction, else in the other one; -1: there is none.
func (b *inbox) next(from, dir int) int {
	for _, d := range []int{dir, -dir} {
		for i := max(from, 0); i >= 0 && i < len(b.rows); i += d {
			if b.rows[i].kind == itemRow {
				return i
			}
		}
	}
	return -1
}

// settle makes the selection what is under the cursor.
func (b *inbox) settle() {
	if b.cur < 0 || b.cur >= len(b.rows) {
		b.cur, b.sel, b.ghost = 0, operator.Ref{}, nil
		return
	}
	b.sel = b.rows[b.cur].item.Ref
}

// move moves the cursor over n items; the ghost it leaves goes.
func (b *inbox) move(n int) {
	dir := 1
	if n < 0 {
		dir = -1
	}
	at := b.cur
	for ; n != 0; n -= dir {
		i := at + dir
		for i >= 0 && i < len(b.rows) && b.rows[i].kind != itemRow {
			i += dir
		}
		if i < 0 || i >= len(b.rows) {
			break
		}
		at = i
	}
	if at == b.cur || at >= len(b.rows) {
		return
	}
	ghost := b.ghost != nil
	b.cur, b.ghost = at, nil
	b.settle()
	if ghost {
		b.arrange()
	}
}

// scroll keeps the cursor among the visible rows, and a group's name above its first one.
func (b *inbox) scroll(visible int) {
	visible = max(visible, 1)
	b.top = min(b.top, b.cur)
	if b.top == b.cur && b.cur > 0 && b.rows[b.cur-1].kind == groupRow && visible > 1 {
		b.top--
	}
	b.top = max(b.top, b.cur-visible+1)
	b.top = max(0, min(b.top, len(b.rows)-visible))
}

// Columns of the right part of an item's first line.
const (
	toolWidth  = 8
	agentWidth = 5
	ageWidth   = 4
	rightWidth = toolWidth + 1 + agentWidth + 1 + ageWidth
)

// oneLineList is how wide a list must be to show an item in one line.
const oneLineList = 96

// rowHeight is how many lines a row takes.
func rowHeight(w int) int {
	if w >= oneLineList {
		return 1
	}
	return 2
}

// view draws h lines of w cells.
func (b *inbox) view(w, h int, focused bool, cards map[operator.Ref]*card) []string {
	rh := rowHeight(w)
	b.scroll(h / rh)
	out := make([]string, 0, h)
	since := time.Since(b.at)
	for i := b.top; i < len(b.rows) && len(out)+rh <= h; i++ {
		r := b.rows[i]
		if r.kind != itemRow {
			l := line{spans: []span{{dim, "   " + r.text}}}
			if r.kind == groupRow {
				l = line{spans: []span{{bold, " " + r.text}}}
			}
			for range rh - 1 {
				out = append(out, strings.Repeat(" ", w))
			}
			out = append(out, l.render(w))
			continue
		}
		for _, l := range b.row(r.item, since, w, i == b.cur, focused, cards[r.item.Ref]) {
			out = append(out, l.render(w))
		}
	}
	for len(out) < h {
		out = append(out, strings.Repeat(" ", w))
	}
	return out
}

func (b *inbox) row(it *operator.Item, since time.Duration, w int, cursor, focused bool, c *card) []line {
	lead := "  "
	if cursor {
		lead = "> "
	}
	if _, ok := b.marks[it.Ref]; ok {
		lead = lead[:1] + "x"
	}
	word, st := stateWord(it, b.ghost, c)
	if it.Danger && it != b.ghost {
		word, st = strings.TrimSpace("! "+word), danger
	}
	base := plain
	switch {
	case cursor && focused:
		base = chosen
	case it == b.ghost || it.State == operator.Deciding || it.Abandoned:
		base = dim
	}
	mark := func(st style) style {
		if base == chosen {
			return chosen
		}
		return st
	}
	right := pad(tool(it.Tool), toolWidth) + " " + pad(waits(it.Connected), agentWidth) + " " + leftPad(age(it.Age+since), ageWidth)
	if w >= oneLineList {
		const bottle = 20
		spans := []span{{base, lead + " " + pad(cutMiddle(it.Bottle, bottle), bottle) + " " + right + "  "}}
		if word != "" {
			spans = append(spans, span{mark(st), word + " "})
		}
		rest := w - len(lead) - 1 - bottle - 1 - rightWidth - 2
		if word != "" {
			rest -= width(word) + 1
		}
		return []line{{spans: append(spans, span{base, pad(asks(it, rest), rest)})}}
	}
	bottle := w - len(lead) - 1 - 1 - rightWidth
	first := lead + " " + pad(cutMiddle(it.Bottle, bottle), bottle) + " " + right
	second := []span{{base, "   "}}
	rest := w - 3
	if word != "" {
		second = append(second, span{mark(st), word}, span{base, " "})
		rest -= width(word) + 1
	}
	second = append(second, span{base, pad(asks(it, rest), rest)})
	return []line{{spans: []span{{base, first}}}, {spans: second}}
}

// stateWord says what is not plainly open.
func stateWord(it, ghost *operator.Item, c *card) (string, style) {
	switch {
	case c != nil && c.busy != "":
		return c.busy + "…", bold
	case it == ghost && c != nil && c.p != nil && c.p.Decision != nil:
		return oneLine(string(c.p.Decision.Status)), good
	case it == ghost:
		return "gone", dim
	}
	switch it.State {
	case operator.Failed:
		return "FAILED", danger
	case operator.Stuck:
		return "STUCK", danger
	case operator.Bad:
		return "MALFORMED", danger
	case operator.Deciding:
		return "deciding", dim
	}
	if c != nil && c.failed != "" {
		return "NOT DONE", danger
	}
	if it.Blocked != "" {
		return "BLOCKED", warn
	}
	if len(it.Unmanaged) > 0 {
		return "BY HAND", warn
	}
	if it.Retry != nil && !it.Danger {
		return "again:", warn
	}
	return "", plain
}

// asks is the one line of an item.
func asks(it *operator.Item, w int) string {
	if it.State == operator.Bad {
		return cut("from "+oneLine(it.Tool), w) // that it is malformed stands before it
	}
	return agentLine(it.Summary, w)
}

func tool(t string) string {
	switch t {
	case payload.Egress:
		return "egress"
	case payload.Pipelock:
		return "pipelock"
	case payload.Capability:
		return "docker"
	}
	return cut(oneLine(t), toolWidth)
}

func waits(c operator.Connected) string {
	switch c {
	case operator.Waiting:
		return "waits"
	case operator.Away:
		return "away"
	}
	return "?"
}

func leftPad(s string, w int) string { return strings.Repeat(" ", max(w-width(s), 0)) + s }
