package server

import (
	"container/list"
	"context"
	"sync"
	"time"
)

// wheel writes the heartbeats of all streams from one goroutine. All have the same interval, so the list is in
// the order in which they are due. What is due soon is written too once it is awake: waking costs more than writing.
type wheel struct {
	every, within time.Duration
	wake          chan struct{}

	mu      sync.Mutex // guards streams and each stream's place
	streams list.List  // of *stream
}

const soon = 25 // what part of the interval is soon

func newWheel(every, within time.Duration) *wheel {
	return &wheel{every: every, within: within, wake: make(chan struct{}, 1)}
}

func (h *wheel) add(w *stream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	w.due = time.Now().Add(h.every)
	w.place = h.streams.PushBack(w)
	if h.streams.Len() == 1 {
		select {
		case h.wake <- struct{}{}:
		default:
		}
	}
}

func (h *wheel) remove(w *stream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if w.place != nil {
		h.streams.Remove(w.place)
		w.place = nil
	}
}

// next returns the stream that is due, moved to the back; or how long until one is, zero meaning that there is none.
func (h *wheel) next() (*stream, time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	front := h.streams.Front()
	if front == nil {
		return nil, 0
	}
	w := front.Value.(*stream)
	now := time.Now()
	if wait := w.due.Sub(now); wait > h.every/soon {
		return nil, wait
	}
	w.due = now.Add(h.every)
	h.streams.MoveToBack(front)
	return w, 0
}

func (h *wheel) run(ctx context.Context) {
	for ctx.Err() == nil {
		w, wait := h.next()
		if w != nil {
			w.beat(h.every, h.within)
			continue
		}
		var due <-chan time.Time
		if wait > 0 {
			due = time.After(wait)
		}
		select {
		case <-ctx.Done():
		case <-h.wake:
		case <-due:
		}
	}
}
