package server

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"

	"github.com/bot-bottle/supervise/tools"
)

var (
	errHungUp    = errors.New("the client hung up")
	errEnded     = errors.New("the session has ended")
	errForgotten = errors.New("the request is over")
)

// registry knows every POST that is owed an answer and every session. It is how the server sees what the SDK does not: on
// a connection with a session the SDK cancels nothing when the client hangs up or deletes the session.
//
// Invariant: an exchange that is not in the registry has no running call whose context has not ended.
type registry struct {
	grace, idle time.Duration
	maxSessions int
	close       func(session string)                     // closes it in the SDK; returns when its calls have
	waited      func(session, stream string, waits bool) // is told whether a person is waited for on that stream

	mu        sync.Mutex // guards what follows, and the fields of exchanges and sessions
	exchanges map[string]*exchange
	sessions  map[string]*session
	lingering int           // exchanges that wait to be resumed
	down      bool          // calls are to be answered at once
	drained   chan struct{} // not nil: somebody waits until no held call has a connection
	closing   sync.WaitGroup
}

// exchange is one POST: it lives until its answers went out, or can no longer.
type exchange struct {
	key      string
	owed     int        // requests in the body, by distinct id
	alone    bool       // the body is this one request
	id       jsonrpc.ID // of that
	calls    bool       // one of them is tools/call
	post     *stream
	out      *stream  // on which answers go out: the POST's, or that of the GET that resumed it last
	parked   *parked  // its one call waits for a person
	session  *session // nil without one
	opened   string   // the session that initialize, in this POST, opened
	streamID string   // the SDK's name for the event stream, for resuming

	conns     int // connections on which the answer may go out: the POST, and the GET that resumes it
	linger    *time.Timer
	running   map[*call]bool
	answered  map[string]bool                // ids of the requests whose answers went out
	delivered []func() (then func(out bool)) // to be called before the last of the answers is written
	after     []func(out bool)               // what they returned, once it went out
}

type call struct {
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when the handler has returned
}

type session struct {
	id        string
	open      int // HTTP requests in flight
	exchanges map[*exchange]bool
	streams   map[string]*exchange // by streamID
	ending    bool
	timer     *time.Timer // runs while nothing is open
	used      time.Time
}

func newRegistry(grace, idle time.Duration, maxSessions int, closeSession func(string), waited func(session, stream string, waits bool)) *registry {
	return &registry{
		grace: grace, idle: idle, maxSessions: maxSessions, close: closeSession, waited: waited,
		exchanges: map[string]*exchange{},
		sessions:  map[string]*session{},
	}
}

// post registers a POST. Its leave must follow.
func (r *registry) post(e *exchange, sessionID string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e.conns, e.out = 1, e.post
	e.running = map[*call]bool{}
	e.answered = map[string]bool{}
	r.exchanges[e.key] = e
	if s := r.sessions[sessionID]; s != nil {
		e.session = s
		s.exchanges[e] = true
		r.touchLocked(s)
	}
}

// get registers a GET of a session, and returns the exchange that it resumes, if any. Its leave must follow, unless that one is
// busy: its connection is still there, of which the SDK does not know when the call is parked.
func (r *registry) get(sessionID, lastEventID string, out *stream) (s *session, e *exchange, busy bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s = r.sessions[sessionID]
	if s == nil {
		return nil, nil, false
	}
	streamID, _, _ := strings.Cut(lastEventID, "_")
	e = s.streams[streamID]
	if e != nil && e.alone && e.conns > 0 {
		return nil, nil, true
	}
	s.open++
	r.touchLocked(s)
	if e != nil {
		e.conns++
		e.out = out
		r.stopLingerLocked(e)
	}
	return s, e, false
}

// leave ends one request's part in s and e, either of which may be nil. What it returns, if anything, is to be run when the
// response has ended. Final tells that the request was answered as a whole, with something else than an event stream: nothing
// is left to resume.
func (r *registry) leave(s *session, e *exchange, final bool) (then func()) {
	r.mu.Lock()
	if s != nil {
		s.open--
		r.touchLocked(s)
	}
	var after []func(out bool)
	if e != nil && r.exchanges[e.key] == e {
		e.conns--
		switch {
		case len(e.answered) >= e.owed:
			after, e.after = e.after, nil
			r.dropLocked(e, errForgotten)
		case final:
			r.dropLocked(e, errForgotten)
		case e.conns > 0:
		case e.session == nil || e.session.ending || r.lingering >= maxLingering:
			r.dropLocked(e, errHungUp)
		default:
			r.lingering++
			e.linger = time.AfterFunc(r.grace, func() {
				r.mu.Lock()
				defer r.mu.Unlock()
				if r.exchanges[e.key] == e && e.conns == 0 {
					r.dropLocked(e, errHungUp)
				}
			})
		}
	}
	r.checkDrainedLocked()
	r.mu.Unlock()
	if after == nil {
		return nil
	}
	return func() { tell(after, true) }
}

func tell(after []func(out bool), out bool) {
	for _, f := range after {
		f(out)
	}
}

func (r *registry) stopLingerLocked(e *exchange) {
	if e.linger != nil {
		e.linger.Stop()
		e.linger = nil
		r.lingering--
	}
}

func (r *registry) dropLocked(e *exchange, cause error) {
	r.stopLingerLocked(e)
	delete(r.exchanges, e.key)
	for c := range e.running {
		c.cancel(cause)
	}
	if after := e.after; after != nil {
		e.after = nil
		r.closing.Go(func() { tell(after, true) })
	}
	if s := e.session; s != nil {
		delete(s.exchanges, e)
		if e.parked != nil {
			r.waitedForLocked(e, false)
		}
		if s.streams[e.streamID] == e {
			delete(s.streams, e.streamID)
		}
		r.touchLocked(s)
	}
}

// waitedForLocked says whether a person is waited for on e's stream, which was named before the call began to wait.
func (r *registry) waitedForLocked(e *exchange, waits bool) {
	if e.session != nil && e.streamID != "" {
		r.waited(e.session.id, e.streamID, waits)
	}
}

// hungUp is told at once when the connection of a POST has gone. Only with a session may it be resumed.
func (r *registry) hungUp(e *exchange) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.session == nil {
		for c := range e.running {
			c.cancel(errHungUp)
		}
	}
}

// sending is told of a message that is about to be written, and what it returns whether it went out on a live connection. What
// waits for delivery begins before: whoever asks the same the moment he has the answer finds it being delivered.
func (r *registry) sending(e *exchange, event, answers string) (sent func(ok bool)) {
	var after []func(out bool)
	for _, begin := range r.due(e, answers) {
		after = append(after, begin())
	}
	return func(ok bool) {
		if !ok || !r.sent(e, event, answers, after) {
			tell(after, false)
		}
	}
}

// due returns what waits for delivery, if with that answer all have been given.
func (r *registry) due(e *exchange, answers string) []func() (then func(out bool)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.exchanges[e.key] != e || answers == "" || e.answered[answers] || len(e.answered)+1 < e.owed {
		return nil
	}
	return slices.Clone(e.delivered)
}

// undeliver forgets what waits for the delivery of e's answers: something else is given in their place. Those of a batch that are
// given count as lost too, and are given again.
func (r *registry) undeliver(e *exchange) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e.delivered = nil
}

// delivers tells whether something waits for the delivery of e's answers.
func (r *registry) delivers(e *exchange) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(e.delivered) > 0
}

// goesOutOn is the stream on which e's answers go out.
func (r *registry) goesOutOn(e *exchange) *stream {
	r.mu.Lock()
	defer r.mu.Unlock()
	return e.out
}

// sent records a message that went out, if that counts any more.
func (r *registry) sent(e *exchange, event, answers string, after []func(out bool)) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.exchanges[e.key] != e {
		return false
	}
	if answers != "" {
		e.answered[answers] = true
		e.after = append(e.after, after...)
	}
	if id, _, ok := strings.Cut(event, "_"); ok && id != "" && e.streamID == "" && e.session != nil {
		e.streamID = id
		e.session.streams[id] = e
	}
	return true
}

// exchange returns the exchange with that key, or nil.
func (r *registry) exchange(key string) *exchange {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.exchanges[key]
}

// begin puts a call under the exchange's lifetime. Without an exchange it is over before it starts: nil.
func (r *registry) begin(key string, cancel context.CancelCauseFunc) (*exchange, *call) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.exchanges[key]
	if e == nil || e.session != nil && e.session.ending {
		return nil, nil
	}
	return e, r.runLocked(e, cancel)
}

func (r *registry) runLocked(e *exchange, cancel context.CancelCauseFunc) *call {
	c := &call{cancel: cancel, done: make(chan struct{})}
	e.running[c] = true
	if e.session == nil && e.post.ctx.Err() != nil {
		cancel(errHungUp) // hungUp came too early to see it
	}
	if r.down {
		cancel(tools.ErrShutdown)
	}
	return c
}

func (r *registry) finish(e *exchange, c *call) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(e.running, c)
	close(c.done)
}

// onDelivered keeps f until e's answers have gone out.
func (r *registry) onDelivered(e *exchange, f func() (then func(out bool))) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.exchanges[e.key] == e {
		e.delivered = append(e.delivered, f)
	}
}

// touchLocked starts or stops the clock that ends an idle session.
func (r *registry) touchLocked(s *session) {
	if s.ending {
		return
	}
	s.used = time.Now()
	if s.open == 0 && len(s.exchanges) == 0 {
		s.timer.Reset(r.idle)
	} else {
		s.timer.Stop()
	}
}

// open registers a session that e's initialize opens. When too many are open, the one that has been idle
// for longest makes way; false: none is idle.
func (r *registry) open(e *exchange, id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sessions[id] != nil {
		return true
	}
	if len(r.sessions) >= r.maxSessions {
		var oldest *session
		for _, s := range r.sessions {
			if s.open == 0 && len(s.exchanges) == 0 && (oldest == nil || s.used.Before(oldest.used)) {
				oldest = s
			}
		}
		if oldest == nil {
			return false
		}
		r.expireLocked(oldest)
	}
	s := &session{id: id, exchanges: map[*exchange]bool{}, streams: map[string]*exchange{}}
	s.timer = time.AfterFunc(r.idle, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.sessions[id] == s && s.open == 0 && len(s.exchanges) == 0 && time.Since(s.used) >= r.idle {
			r.expireLocked(s)
		}
	})
	r.sessions[id] = s
	e.opened = id
	r.touchLocked(s)
	return true
}

// knows tells whether that session is there.
func (r *registry) knows(sessionID string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sessions[sessionID] != nil
}

// expireLocked ends a session on our own account.
func (r *registry) expireLocked(s *session) {
	r.endLocked(s)
	delete(r.sessions, s.id)
	r.closing.Go(func() { r.close(s.id) })
}

func (r *registry) endLocked(s *session) []*call {
	s.ending = true
	s.timer.Stop()
	var calls []*call
	for e := range s.exchanges {
		for c := range e.running {
			c.cancel(errEnded)
			calls = append(calls, c)
		}
	}
	return calls
}

// release ends a session's calls before DELETE reaches the SDK, which waits for them, and waits until they have returned or
// ctx ends. forget must follow.
func (r *registry) release(ctx context.Context, sessionID string) {
	r.mu.Lock()
	var calls []*call
	if s := r.sessions[sessionID]; s != nil {
		calls = r.endLocked(s)
	}
	r.mu.Unlock()
	for _, c := range calls {
		select {
		case <-c.done:
		case <-ctx.Done():
			return
		}
	}
}

// forget removes a session that the SDK has closed.
func (r *registry) forget(sessionID string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sessions[sessionID]
	if s == nil {
		return
	}
	r.endLocked(s)
	delete(r.sessions, sessionID)
	for e := range s.exchanges {
		if e.conns == 0 {
			r.dropLocked(e, errEnded)
		}
	}
}

// held counts the running calls.
func (r *registry) held() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.exchanges {
		n += len(e.running)
	}
	return n
}

func (r *registry) drainingLocked() (n int) {
	for _, e := range r.exchanges {
		if e.calls && e.conns > 0 {
			n++
		}
	}
	return n
}

func (r *registry) checkDrainedLocked() {
	if r.drained != nil && r.drainingLocked() == 0 {
		close(r.drained)
		r.drained = nil
	}
}

// shutdown has all calls answered, also those that begin from now on.
func (r *registry) shutdown() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down = true
	for _, e := range r.exchanges {
		for c := range e.running {
			c.cancel(tools.ErrShutdown)
		}
	}
}

// drain waits until the answers of all calls with a connection have gone out, and returns how many have not when ctx ends.
func (r *registry) drain(ctx context.Context) int {
	r.mu.Lock()
	done := make(chan struct{})
	r.drained = done
	r.checkDrainedLocked()
	r.mu.Unlock()
	select {
	case <-done:
		return 0
	case <-ctx.Done():
		r.mu.Lock()
		defer r.mu.Unlock()
		r.drained = nil
		return r.drainingLocked()
	}
}

// end ends everything that is left.
func (r *registry) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.sessions {
		r.endLocked(s)
	}
	for _, e := range r.exchanges {
		r.dropLocked(e, errEnded)
	}
}

// wait returns when the sessions that were expired are closed, and what the answers set off is done.
func (r *registry) wait() { r.closing.Wait() }
