package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/safetext"
)

// TestWatchBreaksLines: on a terminal no row of what an agent wrote begins where our lines do. Elsewhere an event is a line.
func TestWatchBreaksLines(t *testing.T) {
	it := operator.Item{Ref: operator.Ref{Bottle: "web", ID: "0197f3b2-6d01-7c3a-9b58-3f6f0a2c4d01"}, Tool: "egress-block", State: operator.Open,
		Summary: safetext.Untrusted("allow a.example /" + strings.Repeat("FORGED", 25))}
	for _, l := range []watched{
		{Type: "proposal", Item: &it},
		{Type: "ledger", Entry: &operator.LedgerEntry{Bottle: "web", Notes: it.Summary}},
		{Type: "problem", Problem: &operator.Problem{Bottle: "web", Text: it.Summary}},
	} {
		var out bytes.Buffer
		w := watcher{app: &app{out: &out, style: style{tty: true, width: 60}}}
		if err := w.tell(l); err != nil {
			t.Fatal(err)
		}
		rows := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		for i, row := range rows {
			if len(rows) < 3 || cells(row) > 60 || i > 0 && !strings.HasPrefix(row, "        ↳ ") {
				t.Errorf("%s on a terminal of 60 cells: row %d of %d is %q", l.Type, i, len(rows), row)
			}
		}
		out.Reset()
		w.style = style{wrap: 60}
		if err := w.tell(l); err != nil || strings.Count(out.String(), "\n") != 1 {
			t.Errorf("%s elsewhere: %q, %v; want one line", l.Type, &out, err)
		}
	}
}
