package server

import (
	"bytes"
	"container/list"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

var (
	errSlow   = errors.New("the client does not take what is written to it")
	errClosed = errors.New("writing after the end of the request")
)

// stream is the response of one request to the SDK. It lets the heartbeat write between events, sees which events
// went out, and never blocks for longer than a deadline.
//
// The SDK writes one whole event with each Write. It has no Unwrap: nothing may get round the mutex.
type stream struct {
	rw     http.ResponseWriter
	rc     *http.ResponseController
	ctx    context.Context
	drop   context.CancelCauseFunc // ends ctx
	beats  *wheel
	within time.Duration // for one write
	// sending is told of each message before it is written: the event's id, and what the message answers; and what it returns, whether
	// it went out on a live connection. Nil: nobody is.
	sending func(event, answers string) (sent func(ok bool))
	closes  bool // the connection ends with the response, which says so
	plain   bool // it is HTTP/1.0, which has no chunks
	// withhold tells whether such a message is not to go out. Nil: none.
	withhold func(event, answers string, data []byte) bool

	lost    atomic.Bool // the bare connection is: nobody reads any more
	writers *writers    // it is among them while it writes; nil in some tests

	mu         sync.Mutex // guards rw, rc and what follows
	conn       net.Conn   // where it writes, once it is detached; rw and rc are nil then
	committed  bool       // the headers are out
	events     bool       // it is an event stream
	framed     bool       // the SDK writes bare JSON into an event stream
	between    bool       // what was written last ended an event
	wrote      time.Time  // when that was
	over       bool       // the request has ended, or the connection is broken
	broken     bool       // the connection is
	last       bool       // the response ends with what is written next
	answers    *places    // from which it has the following
	owes       []*place   // for a long answer that is not written yet
	replay     *place     // for what a resumed stream sends again
	replayLeft int        // bytes of that
	held       bool       // a message was withheld
	prime      []byte     // the SDK's first event, which only tells its id: it goes out with the next one, whose headers are better known
	primeID    string

	due   time.Time     // guarded by beats.mu
	place *list.Element // guarded by beats.mu
}

func (w *stream) Header() http.Header { return w.rw.Header() }

func (w *stream) WriteHeader(status int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.commitLocked(status)
}

func (w *stream) commitLocked(status int) {
	if w.over {
		return
	}
	if w.committed {
		// After the headers went out for a held call, the SDK may still choose another status and a JSON body.
		w.framed = w.framed || w.events && status != http.StatusOK
		return
	}
	w.committed = true
	w.between = true
	w.events = status == http.StatusOK && strings.HasPrefix(w.rw.Header().Get("Content-Type"), "text/event-stream")
	if !w.events {
		w.prime = nil
	} else {
		w.rw.Header().Set("X-Accel-Buffering", "no")
		w.beats.add(w)
	}
	w.rw.WriteHeader(status)
}

func (w *stream) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closes && !w.committed && !w.over {
		if name, _ := parseEvent(p); name != "" && bytes.HasSuffix(p, []byte("\ndata: \n\n")) { // it holds no message
			w.prime, w.primeID = bytes.Clone(p), name
			return len(p), nil
		}
	}
	w.commitLocked(http.StatusOK)
	if w.over {
		return 0, errClosed
	}
	data := p
	if w.framed {
		data = event(bytes.TrimSpace(p))
	}
	var name, answers string
	if w.sending != nil {
		name, answers = parseEvent(data)
	}
	if answers != "" && w.withhold != nil && w.withhold(name, answers, data) {
		w.held = true
		return len(p), nil
	}
	if err := w.sendLocked(name, answers, data); err != nil {
		return 0, err
	}
	return len(p), nil
}

// send writes an event, whose id is name and which answers that request; either may be empty.
func (w *stream) send(name, answers string, data []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return errClosed
	}
	return w.sendLocked(name, answers, data)
}

func (w *stream) sendLocked(name, answers string, data []byte) error {
	// Before, not after: a client may well hang up the moment it has read its answer.
	live := !w.lost.Load()
	if w.conn == nil {
		live = w.ctx.Err() == nil
	}
	prime := w.prime
	w.prime = nil
	var sent []func(ok bool)
	if prime != nil {
		sent = append(sent, w.sending(w.primeID, ""))
	}
	if w.sending != nil && (name != "" || answers != "") {
		sent = append(sent, w.sending(name, answers))
	}
	if prime != nil {
		data = append(prime, data...)
	}
	err := w.writeLocked(data, w.within)
	if answers != "" {
		w.paidLocked()
	}
	for _, f := range sent {
		f(live && err == nil)
	}
	return err
}

// withheld tells whether a message was.
func (w *stream) withheld() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.held
}

// A long message is written in pieces, each of which has slowest for itself: a client that does not read is to give its place back
// soon, and one that reads slowly is to have the time of any write. The system tells of what was read in steps of up to 64 KiB, so
// that 4 KiB a second are needed.
const (
	piece   = 16 << 10
	slowest = 20 * time.Second
)

func inPieces(p []byte, end time.Time, deadline func(time.Time) error, to io.Writer) error {
	long := len(p) >= piece
	for part := range slices.Chunk(p, piece) {
		by := end
		if long {
			by = earlier(end, time.Now().Add(slowest))
		}
		deadline(by) // an error means that there is no connection, as in a test
		if _, err := to.Write(part); err != nil {
			return err
		}
	}
	return nil
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// writeLocked writes and, on an event stream, flushes: the SDK ignores the errors of its own flushes.
func (w *stream) writeLocked(p []byte, within time.Duration) error {
	if w.writers != nil {
		defer w.writers.done(w)
	}
	var err error
	if w.conn != nil {
		err = w.chunkLocked(p, within)
	} else {
		if err = inPieces(p, time.Now().Add(within), w.untilLocked, w.rw); err == nil && w.events {
			err = w.flushLocked()
		}
	}
	if err != nil {
		w.over, w.broken = true, true
		w.drop(fmt.Errorf("%w: %w", errSlow, err))
		return err
	}
	w.replayedLocked(len(p))
	w.between, w.wrote = bytes.HasSuffix(p, []byte("\n\n")), time.Now()
	return nil
}

// untilLocked begins to write something, or goes on.
func (w *stream) untilLocked(t time.Time) error {
	var until func(time.Time) error
	if w.conn != nil {
		until = w.conn.SetWriteDeadline
	} else {
		until = w.rc.SetWriteDeadline
	}
	err := until(t)
	if w.writers != nil {
		w.writers.goesOn(w, until)
	}
	return err
}

func (w *stream) flushLocked() error {
	if w.conn != nil {
		return nil
	}
	if err := w.rc.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

// FlushError implements what [http.ResponseController] looks for.
func (w *stream) FlushError() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return errClosed
	}
	if w.prime != nil {
		return nil
	}
	return w.flushLocked()
}

// hold sends the headers now, when the response is going to be an event stream.
func (w *stream) hold() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.over && !w.committed && strings.HasPrefix(w.rw.Header().Get("Content-Type"), "text/event-stream") {
		if w.closes {
			w.rw.Header().Set("Connection", "close")
		}
		w.commitLocked(http.StatusOK)
		w.sendLocked("", "", []byte(": waiting\n\n")) // a broken connection ends the request
	}
}

// resume sends the headers of a stream that was found again. The SDK, which is about to set the same ones, sends none before
// the next event, and that may be hours away.
func (w *stream) resume() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.over && !w.committed {
		h := w.rw.Header()
		h.Set("Cache-Control", "no-cache, no-transform")
		h.Set("Content-Type", "text/event-stream")
		h.Set("Connection", "keep-alive")
		if w.closes {
			h.Set("Connection", "close")
		}
		w.commitLocked(http.StatusOK)
		w.writeLocked([]byte(": resumed\n\n"), w.within)
	}
}

// beat writes a comment, unless something else is being written, or was a short while ago, which is as good: there is
// something at least every interval and a half.
func (w *stream) beat(every, within time.Duration) {
	if !w.mu.TryLock() {
		return
	}
	defer w.mu.Unlock()
	if !w.over && w.between && time.Since(w.wrote) >= every/2 {
		w.writeLocked([]byte(":\n\n"), within)
	}
}

// end is called when the request's handler returns; nothing is written after it. It tells whether something else than an event
// stream was answered.
func (w *stream) end() (final bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.prime != nil && !w.over {
		w.commitLocked(http.StatusOK)
		w.sendLocked("", "", nil)
	}
	w.over = true
	w.paidLocked()
	w.replayedLocked(-1)
	w.beats.remove(w)
	if w.conn == nil {
		w.rc.SetWriteDeadline(time.Now().Add(w.within)) // for what net/http writes to end the response
	}
	return w.committed && !w.events
}

// parseEvent returns the id of an event and the id of the request that its message answers, each empty if there is none.
// It reads bare JSON too.
func parseEvent(p []byte) (event, answers string) {
	data := p
	if !bytes.HasPrefix(p, []byte("{")) {
		data = nil
		for line := range bytes.Lines(p) {
			if v, ok := bytes.CutPrefix(line, []byte("id: ")); ok {
				event = string(bytes.TrimSpace(v))
			} else if v, ok := bytes.CutPrefix(line, []byte("data: ")); ok {
				data = v
			}
		}
	}
	return event, answered(data)
}

// answered returns the id of the request that a message of the SDK answers. It reads no further than the result, which can
// be long.
func answered(msg []byte) (id string) {
	if bytes.HasPrefix(msg, []byte(`{"jsonrpc":"2.0","method":`)) {
		return "" // as every notification of the SDK begins
	}
	dec := json.NewDecoder(bytes.NewReader(msg))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return ""
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil || key == "method" {
			return ""
		}
		if id != "" && (key == "result" || key == "error") {
			return id
		}
		var v json.RawMessage
		if dec.Decode(&v) != nil {
			return ""
		}
		if key == "id" && string(v) != "null" {
			id = string(v)
		}
	}
	return id
}
