package web

import (
	"fmt"
	"strings"

	"github.com/aymanbagabas/go-udiff"

	"github.com/bot-bottle/supervise/internal/safetext"
)

// diff is a unified diff as two columns. On a narrow page the columns of a block stand one above the other, which is
// the unified diff again.
type diff struct {
	Blocks         []block
	Added, Removed int
}

// block is a run of lines that are the same on both sides, or of lines that replace each other; or a gap, when both
// are empty.
type block struct {
	Same     bool
	Old, New []diffLine
}

// Gap tells whether lines were left out here.
func (b block) Gap() bool { return len(b.Old) == 0 && len(b.New) == 0 }

type diffLine struct {
	N    int
	Text safetext.Untrusted
	NoNL bool // the file ends here, without a newline
}

// parseDiff reads what udiff.Unified writes. Lines are told by the counts of their hunk, so a line that looks like
// a header is none.
func parseDiff(u safetext.Untrusted) diff {
	var d diff
	text := u.Raw()
	var oldLeft, newLeft, oldN, newN int
	var last *diffLine
	for line := range strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n") {
		switch {
		case strings.HasPrefix(line, `\`) && last != nil:
			last.NoNL = true
		case oldLeft == 0 && newLeft == 0:
			if !strings.HasPrefix(line, "@@ ") {
				continue // the header
			}
			oldN, oldLeft, newN, newLeft = hunk(line)
			if oldN > 1 || newN > 1 || len(d.Blocks) > 0 {
				d.Blocks = append(d.Blocks, block{})
			}
			last = nil
		case strings.HasPrefix(line, "-"):
			b := d.block(false)
			b.Old = append(b.Old, diffLine{N: oldN, Text: safetext.Untrusted(line[1:])})
			last = &b.Old[len(b.Old)-1]
			oldN, oldLeft, d.Removed = oldN+1, oldLeft-1, d.Removed+1
		case strings.HasPrefix(line, "+"):
			b := d.block(false)
			b.New = append(b.New, diffLine{N: newN, Text: safetext.Untrusted(line[1:])})
			last = &b.New[len(b.New)-1]
			newN, newLeft, d.Added = newN+1, newLeft-1, d.Added+1
		default:
			b := d.block(true)
			t := safetext.Untrusted(strings.TrimPrefix(line, " "))
			b.Old, b.New = append(b.Old, diffLine{N: oldN, Text: t}), append(b.New, diffLine{N: newN, Text: t})
			last = nil
			oldN, oldLeft, newN, newLeft = oldN+1, oldLeft-1, newN+1, newLeft-1
		}
	}
	return d
}

// block returns the last block if it is of that kind, else a new one.
func (d *diff) block(same bool) *block {
	if n := len(d.Blocks); n == 0 || d.Blocks[n-1].Gap() || d.Blocks[n-1].Same != same {
		d.Blocks = append(d.Blocks, block{Same: same})
	}
	return &d.Blocks[len(d.Blocks)-1]
}

// hunk reads "@@ -1,3 +1,4 @@"; a count that is left out is 1.
func hunk(line string) (oldN, oldLen, newN, newLen int) {
	f := strings.Fields(line)
	if len(f) < 3 {
		return 0, 0, 0, 0
	}
	side := func(s string) (n, count int) {
		at, c, ok := strings.Cut(s[1:], ",")
		_, _ = fmt.Sscan(at, &n) // ours: udiff wrote it
		if count = 1; ok {
			_, _ = fmt.Sscan(c, &count)
		}
		return n, count
	}
	oldN, oldLen = side(f[1])
	newN, newLen = side(f[2])
	return oldN, oldLen, newN, newLen
}

func diffOf(before, after string) diff {
	return parseDiff(safetext.Untrusted(udiff.Unified("before", "after", before, after)))
}
