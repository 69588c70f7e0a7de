package tools

import (
	"time"

	"github.com/bot-bottle/supervise/queue"
)

// EventKind says what happened to a call or a proposal.
type EventKind int

// What Options.Observe is told of.
const (
	Asked         EventKind = iota + 1 // a new proposal was stored
	Rejoined                           // a call joined a proposal that was open already
	Replayed                           // an answer that had gone out before was given again
	HoldEnded                          // a call was answered "pending"; Reason says why
	Left                               // a call's client hung up or cancelled while it waited
	Refused                            // a call was turned down: bad input, or a limit
	Failed                             // a call failed through no fault of the agent's
	Delivered                          // an answer went out for the first time; Status, After
	ArchiveFailed                      // an answer went out, and that could not be recorded
)

// Reasons of HoldEnded.
const (
	ReasonHold    = "hold"    // the client's limit
	ReasonCrowded = "crowded" // too many calls wait
	ReasonRestart = "restart" // the server is going down
)

// Event is one thing that happened, for counters: it holds nothing that an agent or an operator wrote.
type Event struct {
	Kind   EventKind
	Tool   string        // the proposal's tool; of a proposal that others stored it may be anything
	Status queue.Status  // of Delivered
	Reason string        // of HoldEnded
	After  time.Duration // of Delivered: from the proposal to the decision
}

func (t *Tools) observe(e Event) {
	if t.opts.Observe != nil {
		t.opts.Observe(e)
	}
}

// Waiting counts the calls that are held now.
func (t *Tools) Waiting() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.waiting
}
