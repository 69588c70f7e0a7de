package server

import (
	"bytes"
	"cmp"
	"container/list"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
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
	stuckFor  = 4 * time.Second // how long a client may take nothing of a long answer when somebody wants its place
	lookAgain = time.Second     // for such clients
)

// places are what long answers take.
type places struct {
	free    *semaphore.Weighted
	writers *writers

	mu     sync.Mutex
	all    map[*place]bool // guarded by mu
	wanted int64           // guarded by mu; weight that is waited for
	looked time.Time       // guarded by mu; when some had to make way last, which takes a moment
}

// place is one of them.
type place struct {
	w      *stream
	weight int64
}

func newPlaces(ws *writers) *places {
	return &places{free: semaphore.NewWeighted(maxAnswers), writers: ws, all: map[*place]bool{}}
}

// give gives w a place that is taken already.
func (ps *places) give(w *stream, weight int64) *place {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := &place{w, weight}
	ps.all[p] = true
	return p
}

func (ps *places) back(p *place) {
	ps.mu.Lock()
	delete(ps.all, p)
	ps.mu.Unlock()
	ps.free.Release(p.weight)
}

// makeWay ends the answers of clients that do not read them, those first that have been stuck for longest, until there is going to
// be room for what is waited for, and so much more. They can be asked for again.
func (ps *places) makeWay(weight int64) {
	ps.mu.Lock()
	if time.Since(ps.looked) < lookAgain/2 {
		ps.mu.Unlock()
		return
	}
	ps.looked = time.Now()
	all := slices.Collect(maps.Keys(ps.all))
	weight += ps.wanted
	ps.mu.Unlock()
	since := map[*place]time.Duration{}
	for _, p := range all {
		since[p] = ps.writers.stuck(p.w)
	}
	slices.SortFunc(all, func(a, b *place) int { return cmp.Compare(since[b], since[a]) })
	for _, p := range all {
		if weight <= 0 || since[p] < stuckFor {
			return
		}
		ps.writers.cut(p.w, stuckFor)
		weight -= p.weight
	}
}

// take takes a place at once.
func (ps *places) take(weight int64) bool {
	if ps.free.TryAcquire(weight) {
		return true
	}
	ps.makeWay(weight)
	return false
}

func (ps *places) want(weight int64) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.wanted += weight
}

// await waits for a place, not for long.
func (ps *places) await(ctx context.Context, weight int64) error {
	ctx, cancel := context.WithTimeoutCause(ctx, placeWait, tools.ErrBusy)
	defer cancel()
	ps.want(weight)
	defer ps.want(-weight)
	var look *time.Timer
	look = time.AfterFunc(time.Hour, func() {
		if ctx.Err() == nil {
			ps.makeWay(0)
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

// maxWriting is how many responses may be in the middle of a write. What is short is written at once, into what the system keeps;
// past the limit the one makes way that has been stuck for longest.
const maxWriting = 512

// writers are the streams on which something is being written.
type writers struct {
	mu    sync.Mutex
	of    map[*stream]*list.Element // guarded by mu; values are *writing
	order list.List                 // guarded by mu; the one that went on longest ago in front
}

type writing struct {
	since time.Time
	until func(time.Time) error // sets the deadline
	cut   bool
}

func newWriters() *writers { return &writers{of: map[*stream]*list.Element{}} }

// goesOn notes that w begins to write something, or goes on. until sets its deadline.
func (ws *writers) goesOn(w *stream, until func(time.Time) error) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	el := ws.of[w]
	if el == nil {
		el = ws.order.PushBack(&writing{})
		ws.of[w] = el
	}
	ws.order.MoveToBack(el)
	*el.Value.(*writing) = writing{since: time.Now(), until: until}
	over := ws.order.Len() - maxWriting
	for el := ws.order.Front(); over > 0; el = el.Next() {
		el.Value.(*writing).stop()
		over--
	}
}

// stop ends what is being written.
func (w *writing) stop() {
	if !w.cut {
		w.cut = true
		w.until(time.Unix(1, 0)) // an error means that it has ended
	}
}

// done notes that what was being written is, or failed.
func (ws *writers) done(w *stream) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if el := ws.of[w]; el != nil {
		ws.order.Remove(el)
		delete(ws.of, w)
	}
}

// stuck is for how long nothing has gone out of what w writes; 0 when it writes nothing.
func (ws *writers) stuck(w *stream) time.Duration {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if el := ws.of[w]; el != nil {
		return time.Since(el.Value.(*writing).since)
	}
	return 0
}

// cut ends what w is writing, if it has been stuck for so long.
func (ws *writers) cut(w *stream, least time.Duration) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if el := ws.of[w]; el != nil && time.Since(el.Value.(*writing).since) >= least {
		el.Value.(*writing).stop()
	}
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

// awaitRoom is room that waits for a while.
func (s *Server) awaitRoom(ctx context.Context, e *exchange, weight int64) error {
	err := s.room(e, weight)
	if !errors.Is(err, tools.ErrBusy) {
		return err
	}
	if err := s.answers.await(ctx, weight); err != nil {
		return err
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
	w.answers = answers
	w.owes = append(w.owes, answers.give(w, weight))
}

// oweReplay has a place be given back when so many bytes have been written, or the request has ended.
func (w *stream) oweReplay(answers *places, weight int64, bytes int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answers, w.replay, w.replayLeft = answers, answers.give(w, weight), bytes
}

func (w *stream) paidLocked() {
	for _, p := range w.owes {
		w.answers.back(p)
	}
	w.owes = nil
}

// replayedLocked notes that n more bytes are written; -1: no more come.
func (w *stream) replayedLocked(n int) {
	if w.replay == nil {
		return
	}
	if w.replayLeft -= n; n < 0 || w.replayLeft <= 0 {
		w.answers.back(w.replay)
		w.replay = nil
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
		err := s.awaitRoom(ctx, e, weight)
		if err == nil {
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
