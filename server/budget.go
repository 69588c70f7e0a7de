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

// errLongInBatch: an answer's place is given back when it has been written, and of several in a body nobody here knows which that is.
var errLongInBatch = errors.New("this answer is long: fetch it with await-decision, or the same call, in a request of its own")

// room takes a place for e's answer, if there is one.
func (s *Server) room(e *exchange, weight int64) error {
	switch {
	case weight == 0:
		return nil
	case !e.alone:
		return errLongInBatch
	case !s.answers.TryAcquire(weight):
		return tools.ErrBusy
	}
	s.calls.goesOutOn(e).owe(s.answers, weight)
	return nil
}

// owe has a place be given back when the request's answer has been written, or the request has ended.
func (w *stream) owe(answers *semaphore.Weighted, weight int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over { // nobody is there; the answer goes nowhere, or into the store of events, which has limits of its own
		answers.Release(weight)
		return
	}
	w.owes = append(w.owes, func() { answers.Release(weight) })
}

func (w *stream) paidLocked() {
	for _, pay := range w.owes {
		pay()
	}
	w.owes = nil
}

// place waits for a place for an answer that is there already, and is given to many out of one copy. What takes the answer's place
// is no delivery.
func (s *Server) place(ctx context.Context, e *exchange, res *mcp.CallToolResult) (*mcp.CallToolResult, error) {
	weight := weighAnswer(tools.Size(res))
	err := s.room(e, weight)
	switch {
	case err == nil:
		return res, nil
	case errors.Is(err, tools.ErrBusy) && s.calls.delivers(e):
		if s.answers.Acquire(ctx, weight) == nil {
			s.calls.goesOutOn(e).owe(s.answers, weight)
			return res, nil
		}
		s.calls.undeliver(e)
		if cause := context.Cause(ctx); !errors.Is(cause, tools.ErrShutdown) {
			return nil, cause
		}
		return tools.Postponed(res), nil
	}
	s.calls.undeliver(e)
	return toolError(err), nil // it can be asked for again
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
