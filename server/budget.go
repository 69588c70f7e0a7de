package server

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	"golang.org/x/sync/semaphore"

	"github.com/bot-bottle/supervise/tools"
)

// budget is how many bytes of something are in progress. A call may be held for a day with what it sent; without a limit a thousand
// of them take a gigabyte.
type budget struct {
	most  int64
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
	if n > 0 && b.taken+n > b.most {
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

// weighBatch is what a body of several messages counts: each may have a short answer, all of which are there at once when nobody
// reads them.
func weighBatch(messages int) int64 {
	if messages <= 1 {
		return 0
	}
	return int64(messages) * lightBody
}

const (
	placeWait = 5 * time.Second // how long an answer waits for a place; its client has a limit too
	stuckFor  = 2 * time.Second // how long a client may take nothing of a long answer when somebody wants its place
	lookAgain = time.Second     // for such clients
)

// places are what long answers take.
type places struct {
	free *semaphore.Weighted
	mu   sync.Mutex
	by   map[*stream]*place // guarded by mu
}

// place is what one stream has of them.
type place struct {
	weight int64
	cut    func() // ends what is being written
}

func newPlaces() *places {
	return &places{free: semaphore.NewWeighted(maxAnswers), by: map[*stream]*place{}}
}

// giveLocked gives w a place that is taken already. Its mu is held.
func (ps *places) giveLocked(w *stream, weight int64) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.by[w]
	if p == nil {
		p = &place{}
		if conn, rc := w.conn, w.rc; conn != nil {
			p.cut = func() { conn.SetWriteDeadline(time.Unix(1, 0)) }
		} else {
			p.cut = func() { rc.SetWriteDeadline(time.Unix(1, 0)) }
		}
		ps.by[w] = p
	}
	p.weight += weight
}

// back takes what w has.
func (ps *places) back(w *stream) {
	ps.mu.Lock()
	p := ps.by[w]
	delete(ps.by, w)
	ps.mu.Unlock()
	if p != nil {
		ps.free.Release(p.weight)
	}
}

// makeWay ends the answers of clients that do not read them. They can be asked for again.
func (ps *places) makeWay() {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for w, p := range ps.by {
		if w.writing.since() >= stuckFor {
			p.cut()
		}
	}
}

// take takes a place at once.
func (ps *places) take(weight int64) bool {
	if ps.free.TryAcquire(weight) {
		return true
	}
	ps.makeWay()
	return false
}

// await waits for a place, not for long.
func (ps *places) await(ctx context.Context, weight int64) error {
	ctx, cancel := context.WithTimeoutCause(ctx, placeWait, tools.ErrBusy)
	defer cancel()
	var look *time.Timer
	look = time.AfterFunc(time.Hour, func() {
		if ctx.Err() == nil {
			ps.makeWay()
			look.Reset(lookAgain)
		}
	})
	look.Reset(lookAgain)
	defer look.Stop()
	if ps.free.Acquire(ctx, weight) != nil {
		return context.Cause(ctx)
	}
	return nil
}

// progress is when something that is being written last went on.
type progress struct{ at atomic.Int64 }

func (p *progress) made() { p.at.Store(time.Now().UnixNano()) }
func (p *progress) done() { p.at.Store(0) }

func (p *progress) since() time.Duration {
	at := p.at.Load()
	if at == 0 {
		return 0
	}
	return time.Since(time.Unix(0, at))
}

// room takes a place for e's answer, if there is one.
func (s *Server) room(e *exchange, weight int64) error {
	switch {
	case weight == 0:
		return nil
	case !e.alone:
		return errLongInBatch
	case !s.answers.take(weight):
		return tools.ErrBusy
	}
	s.calls.goesOutOn(e).owe(s.answers, weight)
	return nil
}

// owe has a place be given back when the request's answer has been written, or the request has ended.
func (w *stream) owe(answers *places, weight int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over { // nobody is there; the answer goes nowhere, or into the store of events, which has limits of its own
		answers.free.Release(weight)
		return
	}
	w.owes = answers
	answers.giveLocked(w, weight)
}

func (w *stream) paidLocked() {
	if w.owes != nil {
		w.owes.back(w)
		w.owes = nil
	}
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
		err := s.answers.await(ctx, weight)
		if err == nil {
			s.calls.goesOutOn(e).owe(s.answers, weight)
			return res, nil
		}
		s.calls.undeliver(e)
		if !errors.Is(err, tools.ErrShutdown) && !errors.Is(err, tools.ErrBusy) {
			return nil, err
		}
		return tools.Postponed(res, err), nil
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
