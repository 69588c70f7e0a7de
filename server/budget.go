package server

import (
	"bytes"
	"errors"
	"sync"
	"time"

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

// maxAnswers is how many bytes long answers take in all while they are made and written, and slowAnswer how long one may
// take to write: with a large Dockerfile in each, a thousand that nobody reads would take gigabytes.
const (
	maxAnswers = 64 << 20
	copies     = 4 // of an answer, on its way through the encoders
	slowAnswer = 10 * time.Second
)

// weighAnswer is what an answer counts: a short one nothing.
func weighAnswer(res *mcp.CallToolResult) int64 {
	n := tools.Size(res)
	if n <= lightBody {
		return 0
	}
	return min(int64(n)*copies, maxAnswers)
}

var errBusy = errors.New("many long answers are being sent at this moment: call again in some seconds")

// expect takes a place for an answer that is about to be made and written, until it has been or the request ends. It waits for one,
// but with an answer that went out before and was read again it fails: that would be kept meanwhile.
func (w *stream) expect(answers *semaphore.Weighted, res *mcp.CallToolResult) error {
	weight := weighAnswer(res)
	if weight == 0 || answers.TryAcquire(weight) {
		return w.owe(answers, weight)
	}
	if d, ok := res.Meta[tools.DecisionKey].(tools.Decision); ok && d.Repeated {
		return errBusy
	}
	if answers.Acquire(w.ctx, weight) != nil {
		return errClosed
	}
	return w.owe(answers, weight)
}

func (w *stream) owe(answers *semaphore.Weighted, weight int64) error {
	if weight == 0 {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		answers.Release(weight)
		return errClosed
	}
	w.within = min(w.within, slowAnswer)
	w.owes = append(w.owes, func() { answers.Release(weight) })
	return nil
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
