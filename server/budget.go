package server

import (
	"bytes"
	"context"
	"errors"
	"sync"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	"golang.org/x/sync/semaphore"

	"github.com/bot-bottle/supervise/tools"
)

// budget is how many bytes of request bodies are in progress. A call may be held for a day with what it sent; without a
// limit a thousand of them take a gigabyte.
type budget struct {
	mu    sync.Mutex
	taken int64 // guarded by mu
}

// weigh is what a body counts: a light one nothing, one of unknown size (-1) the most that it can be.
func weigh(n int64) int64 {
	switch {
	case n < 0:
		return maxBody
	case n <= lightBody:
		return 0
	}
	return n
}

func (b *budget) take(n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n > 0 && b.taken+n > maxBodies {
		return false
	}
	b.taken += n
	return true
}

func (b *budget) give(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.taken -= n
}

// maxAnswers is how many bytes long answers take in all while they are made and written: with a large Dockerfile in each, a
// thousand that nobody reads would take gigabytes.
const (
	maxAnswers = 64 << 20
	copies     = 4 // of an answer, on its way through the encoders
)

// weighAnswer is what an answer of that size counts: a short one nothing.
func weighAnswer(size int) int64 {
	if size <= lightBody {
		return 0
	}
	return min(int64(size)*copies, maxAnswers)
}

// room takes a place for an answer that is to go out on w, if there is one.
func (w *stream) room(answers *semaphore.Weighted, weight int64) bool {
	if weight > 0 && !answers.TryAcquire(weight) {
		return false
	}
	w.owe(answers, weight)
	return true
}

// owe has a place be given back when an answer has been written, or the request has ended.
func (w *stream) owe(answers *semaphore.Weighted, weight int64) {
	if weight == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over { // nobody is there; the answer goes nowhere, or into the store of events, which has limits of its own
		answers.Release(weight)
		return
	}
	w.owes = append(w.owes, func() { answers.Release(weight) })
}

// place waits for a place for an answer that is there already, and is given to many out of one copy. What takes its place when
// ctx ends first is no delivery.
func (s *Server) place(ctx context.Context, e *exchange, w *stream, res *mcp.CallToolResult) (*mcp.CallToolResult, error) {
	weight := weighAnswer(tools.Size(res))
	if w.room(s.answers, weight) {
		return res, nil
	}
	if !s.calls.delivers(e) {
		return toolError(tools.ErrBusy), nil // it can be asked for again, and is a copy of its own
	}
	if s.answers.Acquire(ctx, weight) != nil {
		s.calls.undeliver(e)
		if err := context.Cause(ctx); !errors.Is(err, tools.ErrShutdown) {
			return nil, err
		}
		return restarting(), nil
	}
	w.owe(s.answers, weight)
	return res, nil
}

// restarting is what whoever waits for a place is told when the server ends.
func restarting() *mcp.CallToolResult {
	return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{
		Text: "status: pending\n\nThe supervise server is restarting before it could send you its answer. Make the same call again, and you get it.",
	}}}
}

// paidLocked gives back the places of answers that have been written; all of them, when the request has ended.
func (w *stream) paidLocked(all bool) {
	for len(w.owes) > 0 {
		w.owes[0]()
		w.owes = w.owes[1:]
		if !all {
			return
		}
	}
}

// body is a request's, read already.
type body struct{ r bytes.Reader }

func newBody(data []byte) *body {
	b := new(body)
	b.r.Reset(data)
	return b
}

func (b *body) Read(p []byte) (int, error) { return b.r.Read(p) }
func (b *body) Close() error               { return nil }

// drop lets go of it, although a request still names it.
func (b *body) drop() { b.r.Reset(nil) }
