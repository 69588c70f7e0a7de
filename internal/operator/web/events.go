package web

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

const (
	beat      = 25 * time.Second // between comments that show that the stream lives
	sendLimit = 10 * time.Second // for one write to a browser
)

// getEvents tells one page whenever the board changes. The page then asks for itself again; the stream has no content
// of its own but what a notification needs.
func (s *Server) getEvents(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodHead { // a page asks why its stream ended; here, not for want of a session
		w.WriteHeader(http.StatusNoContent)
		return
	}
	select {
	case s.streams <- struct{}{}:
		defer func() { <-s.streams }()
	default:
		w.Header().Set("Retry-After", "15")
		http.Error(w, "too many pages are open", http.StatusServiceUnavailable)
		return
	}
	updates, cancel, err := s.board.subscribe(r.Context())
	if err != nil {
		w.Header().Set("Retry-After", "5")
		http.Error(w, "the mailboxes cannot be read", http.StatusServiceUnavailable)
		return
	}
	defer cancel()
	rc := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	send := func(format string, args ...any) bool {
		_ = rc.SetWriteDeadline(time.Now().Add(sendLimit)) // a recorder in a test has none
		if _, err := fmt.Fprintf(w, format, args...); err != nil {
			return false
		}
		return rc.Flush() == nil
	}
	if !send("retry: 2000\n\n") {
		return
	}
	tick := time.NewTicker(beat)
	defer tick.Stop()
	cookie, ses := s.auth.cookie(r), sessionOf(r)
	for {
		select {
		case <-r.Context().Done():
			return
		case <-ses.ctx.Done(): // signed out
			return
		case <-s.board.done:
			return
		case <-tick.C:
			if s.auth.session(cookie, r.Host, false) == nil || !send(": still here\n\n") {
				return
			}
		case u := <-updates:
			b, err := json.Marshal(u)
			if err != nil || !send("event: board\ndata: %s\n\n", b) {
				return
			}
		}
	}
}

// tail keeps the end of what a build prints.
type tail struct {
	mu sync.Mutex
	b  []byte // guarded by mu
}

const maxTail = 16 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p[max(0, len(p)-maxTail):]...)
	if len(t.b) > 2*maxTail {
		t.b = append([]byte(nil), t.b[len(t.b)-maxTail:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.b[max(0, len(t.b)-maxTail):])
}

var _ io.Writer = (*tail)(nil)
