package main

import (
	"testing"

	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/queue"
)

// TestHappened: each line of the history says in two words what holds after it.
func TestHappened(t *testing.T) {
	for _, tt := range []struct {
		event   string
		outcome queue.Outcome
		want    string
	}{
		{operator.EventDecided, "", "approved"},
		{operator.EventApplied, queue.Live, "→ live"},
		{operator.EventNotReplaced, queue.Built, "→ built"},
		{operator.EventUndone, queue.Built, "→ undone"},
		{operator.EventForeign, "", "approved elsewhere"},
	} {
		if got := happened(operator.LedgerEntry{Event: tt.event, Status: queue.Approved, Outcome: tt.outcome}); got != tt.want {
			t.Errorf("of %s, %q is said, want %q", tt.event, got, tt.want)
		}
	}
}
