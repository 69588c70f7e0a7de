package server

import (
	"container/list"
	"context"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"sync"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// eventStore keeps the last events of each stream, for clients that resume. It is bounded in every direction: events of one
// stream (a held call makes one every 15 s for hours), streams (the SDK never says that one is finished) and bytes in all.
// What was dropped cannot be resumed; nothing else depends on it. Streams on which a person is waited for go last: they are few and
// small, nothing touches them for hours, and theirs is the answer that matters.
type eventStore struct {
	mu     sync.Mutex
	byKey  map[streamKey]*list.Element
	recent list.List // of *storedStream; the one touched last in front
	held   list.List // those on which a person is waited for
	bytes  int
}

type streamKey struct{ session, stream string }

type storedStream struct {
	key   streamKey
	in    *list.List
	first int // index of events[0]
	data  [][]byte
	bytes int
}

func newEventStore() *eventStore {
	return &eventStore{byKey: map[streamKey]*list.Element{}}
}

// Open implements [mcp.EventStore].
func (s *eventStore) Open(_ context.Context, session, stream string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := streamKey{session, stream}
	if s.byKey[key] == nil {
		s.byKey[key] = s.recent.PushFront(&storedStream{key: key, in: &s.recent})
		s.trimLocked()
	}
	return nil
}

// Append implements [mcp.EventStore].
func (s *eventStore) Append(_ context.Context, session, stream string, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	el := s.byKey[streamKey{session, stream}]
	if el == nil {
		return mcp.ErrEventsPurged // its indices are no longer known
	}
	st := el.Value.(*storedStream)
	st.data = append(st.data, data)
	st.bytes += len(data)
	s.bytes += len(data)
	for len(st.data) > maxStreamEvents {
		n := len(st.data[0])
		st.data[0] = nil
		st.data = st.data[1:]
		st.first++
		st.bytes -= n
		s.bytes -= n
	}
	st.in.MoveToFront(el)
	s.trimLocked()
	return nil
}

// trimLocked forgets the streams that were touched longest ago until the limits hold.
func (s *eventStore) trimLocked() {
	for n := len(s.byKey); n > 1 && (s.bytes > maxEventBytes || n > maxEventStreams); n-- {
		el := s.recent.Back()
		if s.recent.Len() < 2 && s.held.Len() > 0 { // the one is the newest
			el = s.held.Back()
		}
		s.removeLocked(el)
	}
}

// findLocked returns the stream of an event, and which of its events that is; nil: it is not kept, or the event has no number.
func (s *eventStore) findLocked(session, event string) (el *list.Element, index int) {
	name, number, _ := strings.Cut(event, "_")
	index, err := strconv.Atoi(number)
	if err != nil {
		return nil, 0
	}
	return s.byKey[streamKey{session, name}], index
}

// size is how many bytes come after an event, or all of a stream that begins; what is not kept has none.
func (s *eventStore) size(session, event string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	el, index := s.findLocked(session, event)
	if el == nil {
		return 0
	}
	st := el.Value.(*storedStream)
	for _, d := range st.data[min(max(index+1-st.first, 0), len(st.data)):] {
		n += len(d)
	}
	return n
}

// hold says whether a person is waited for on a stream.
func (s *eventStore) hold(session, stream string, held bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	el := s.byKey[streamKey{session, stream}]
	if el == nil {
		return
	}
	st := el.Value.(*storedStream)
	to := &s.recent
	if held {
		to = &s.held
	}
	if st.in == to {
		return
	}
	st.in.Remove(el)
	st.in = to
	s.byKey[st.key] = to.PushFront(st)
}

// replace puts other data in an event's place, if it is still kept.
func (s *eventStore) replace(session, event string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	el, n := s.findLocked(session, event)
	if el == nil {
		return
	}
	st := el.Value.(*storedStream)
	if n -= st.first; n < 0 || n >= len(st.data) {
		return
	}
	more := len(data) - len(st.data[n])
	st.data[n] = data
	st.bytes += more
	s.bytes += more
	s.trimLocked()
}

func (s *eventStore) removeLocked(el *list.Element) {
	st := el.Value.(*storedStream)
	st.in.Remove(el)
	s.bytes -= st.bytes
	delete(s.byKey, st.key)
}

// resumeKey is where a GET's context carries the stream on which it resumes.
type resumeKey struct{}

// After implements [mcp.EventStore]. The SDK calls it for a GET once nothing but it can refuse the request, so this is where
// the headers of a resumed stream go out.
func (s *eventStore) After(ctx context.Context, session, name string, index int) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		data, err := s.after(streamKey{session, name}, index)
		if err != nil {
			yield(nil, err)
			return
		}
		if w, ok := ctx.Value(resumeKey{}).(*stream); ok && name != "" {
			w.resume()
		}
		for _, d := range data {
			if !yield(d, nil) {
				return
			}
		}
	}
}

func (s *eventStore) after(key streamKey, index int) ([][]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	el := s.byKey[key]
	if el == nil {
		return nil, fmt.Errorf("stream %q: %w", key.stream, mcp.ErrEventsPurged)
	}
	st := el.Value.(*storedStream)
	start := index + 1 - st.first
	if start < 0 {
		return nil, fmt.Errorf("stream %q: event %d: %w", key.stream, index+1, mcp.ErrEventsPurged)
	}
	st.in.MoveToFront(el)
	return append([][]byte(nil), st.data[min(start, len(st.data)):]...), nil
}

// SessionClosed implements [mcp.EventStore].
func (s *eventStore) SessionClosed(_ context.Context, session string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, el := range s.byKey {
		if key.session == session {
			s.removeLocked(el)
		}
	}
	return nil
}
