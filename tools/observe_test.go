package tools

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bot-bottle/supervise/queue"
	"github.com/google/go-cmp/cmp"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// events keeps what Observe was told.
type events struct {
	mu  sync.Mutex
	all []Event // guarded by mu
}

func (e *events) add(ev Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, ev)
}

// take returns what happened since the last take.
func (e *events) take() []Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := e.all
	e.all = nil
	return all
}

func TestObserve(t *testing.T) {
	var ev events
	bubble(t, Options{Observe: ev.add, MaxPending: 1}, func(t *testing.T, r *rig) {
		step := func(what string, want ...Event) {
			t.Helper()
			synctest.Wait()
			if diff := cmp.Diff(want, ev.take()); diff != "" {
				t.Errorf("%s: events mismatch (-want +got):\n%s", what, diff)
			}
		}
		const tool = "egress-block"
		ctx, cancel := context.WithCancel(t.Context())
		gone := r.start(ctx, tool, askGitHub)
		step("asked", Event{Kind: Asked, Tool: tool})
		id := r.box.only(t)
		cancel()
		<-gone
		step("cancelled", Event{Kind: Left, Tool: tool})

		r.do("pipelock-block", args{"failed_url": "https://a.example/", "justification": "x"})
		step("past the limit", Event{Kind: Refused, Tool: "pipelock-block"})
		r.do(tool, args{"host": "https://a.example/", "justification": "x"})
		step("bad host", Event{Kind: Refused, Tool: tool})
		r.do(tool, args{"justification": "x"})
		step("bad shape", Event{Kind: Refused, Tool: tool})
		r.await("x")
		step("bad id", Event{Kind: Refused, Tool: Await})
		r.await(queue.NewID())
		step("unknown id", Event{Kind: Refused, Tool: Await})

		<-r.startWith(t.Context(), &mcp.CallToolParams{Name: tool, Arguments: askGitHub})
		step("held 50 s", Event{Kind: Rejoined, Tool: tool}, Event{Kind: HoldEnded, Tool: tool, Reason: ReasonHold})

		again := r.asked(tool, askGitHub)
		awaited := r.asked(Await, args{"proposal_id": string(id)})
		step("joined", Event{Kind: Rejoined, Tool: tool}, Event{Kind: Rejoined, Tool: tool})
		if n := r.tools.Waiting(); n != 2 {
			t.Errorf("Waiting = %d, want 2", n)
		}
		time.Sleep(10 * time.Second)
		r.box.respond(t, id, queue.Response{Status: queue.Rejected})
		<-again
		<-awaited
		step("answered twice, delivered once", Event{Kind: Delivered, Tool: tool, Status: queue.Rejected, After: time.Minute})
		if n := r.tools.Waiting(); n != 0 {
			t.Errorf("Waiting = %d, want 0", n)
		}
		r.do(tool, askGitHub)
		r.await(id)
		step("replayed", Event{Kind: Replayed, Tool: tool}, Event{Kind: Replayed, Tool: tool})

		r.box.fail("archive", false, errors.New("disk is gone"))
		call := r.asked(tool, with(askGitHub, "justification", "other words"))
		r.box.respond(t, r.box.only(t), queue.Response{Status: queue.Approved})
		<-call
		step("not archived", Event{Kind: Asked, Tool: tool}, Event{Kind: ArchiveFailed, Tool: tool})
		r.box.fail("", false, nil)
		r.box.fail("put", false, errors.New("disk is gone"))
		r.do("pipelock-block", args{"failed_url": "https://a.example/", "justification": "x"})
		step("not stored", Event{Kind: Failed, Tool: "pipelock-block"})
		r.box.fail("", false, nil)

		held := r.asked("pipelock-block", args{"failed_url": "https://a.example/", "justification": "x"})
		r.shutdown(ErrShutdown)
		<-held
		step("going down", Event{Kind: Asked, Tool: "pipelock-block"}, Event{Kind: HoldEnded, Tool: "pipelock-block", Reason: ReasonRestart})
	})
}
