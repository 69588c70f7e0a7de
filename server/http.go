package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/bot-bottle/supervise/internal/safetext"
)

const (
	sessionHeader = "Mcp-Session-Id"
	versionHeader = "MCP-Protocol-Version"
	eventHeader   = "Last-Event-ID"
)

// ServeHTTP is the whole HTTP surface: POST to any path is MCP; so are GET for an event stream, and DELETE, of a
// session; /health and /ready; nothing else.
//
// It is shallow: a held call keeps this frame, and the runtime shrinks a stack of 16 KiB only when less than 4 are in use, which
// with the frames of net/http and the SDK is a near thing.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.requests.Add(1)
	defer s.requests.Done()
	q := s.enter(w, r)
	if q == nil {
		return
	}
	defer func() {
		if q == nil {
			return
		}
		q.leave()
		if q.then != nil {
			s.calls.closing.Go(q.then)
		}
	}()
	q.handler.ServeHTTP(q.out, q.r)
	if q.detach() {
		q = nil
		return
	}
	q.wait()
}

// enter answers what is not for the SDK, and returns the rest.
func (s *Server) enter(w http.ResponseWriter, r *http.Request) *request {
	// A body comes within its time or the connection goes. net/http clears the deadline before the next request.
	rc := http.NewResponseController(w)
	rc.SetReadDeadline(time.Now().Add(s.opts.Timings.ReadBody)) // an error means that there is no connection, as in a test
	w.Header().Set("X-Content-Type-Options", "nosniff")

	if wrong := s.hosts.check(r); wrong != "" {
		s.log.Warn("refused: unknown Host or Origin", "host", safetext.Line(r.Host, 100))
		http.Error(w, wrong, http.StatusForbidden)
		return nil
	}
	isGet := r.Method == http.MethodGet
	switch {
	case isGet && r.URL.Path == "/health":
		if s.opened() {
			io.WriteString(w, "ok\n")
		} else {
			io.WriteString(w, "starting\n")
		}
		return nil
	case isGet && r.URL.Path == "/ready":
		s.ready(w)
		return nil
	}
	if !s.authorized(r) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="supervise"`)
		http.Error(w, "send 'Authorization: Bearer TOKEN' with the token that the sidecar has as SUPERVISE_TOKEN", http.StatusUnauthorized)
		return nil
	}
	hasSession := r.Header.Get(sessionHeader) != ""
	switch {
	case r.Method == http.MethodPost,
		isGet && (hasSession || acceptsEvents(r)),
		r.Method == http.MethodDelete && hasSession:
		return s.enterMCP(w, r, rc)
	case isGet:
		w.Header().Set("Allow", "POST")
		http.Error(w, "use POST for MCP requests", http.StatusMethodNotAllowed)
	default:
		w.Header().Set("Allow", "POST, GET, DELETE")
		http.Error(w, "use POST for MCP requests, and DELETE only with "+sessionHeader, http.StatusMethodNotAllowed)
	}
	return nil
}

func acceptsEvents(r *http.Request) bool {
	return slices.ContainsFunc(r.Header.Values("Accept"), func(v string) bool {
		return strings.Contains(strings.ToLower(v), "text/event-stream")
	})
}

func (s *Server) authorized(r *http.Request) bool {
	if s.opts.Token == "" {
		return true
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	got, want := sha256.Sum256([]byte(strings.TrimSpace(token))), sha256.Sum256([]byte(s.opts.Token))
	return subtle.ConstantTimeCompare(got[:], want[:]) == 1 && strings.EqualFold(scheme, "Bearer")
}

func (s *Server) opened() bool {
	if s.opts.Opened == nil {
		return true
	}
	select {
	case <-s.opts.Opened:
		return true
	default:
		return false
	}
}

func (s *Server) ready(w http.ResponseWriter) {
	var err error
	if s.draining.Load() {
		err = errors.New("shutting down")
	} else if !s.opened() {
		err = errors.New("the mailbox is not open yet")
	} else if s.opts.Ready != nil {
		err = s.opts.Ready()
	}
	if s.unready.Swap(err != nil) != (err != nil) {
		s.log.Warn("readiness changed", "ready", err == nil, "err", err)
	}
	if err != nil {
		http.Error(w, "not ready; the sidecar's log says why", http.StatusServiceUnavailable)
		return
	}
	io.WriteString(w, "ready\n")
}

// message is what the routing needs to know of a JSON-RPC message.
type message struct {
	ID     json.RawMessage
	Method string
}

// UnmarshalJSON reads exactly the names that the SDK does, which encoding/json would find in any case.
func (m *message) UnmarshalJSON(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	if t, err := dec.Token(); err != nil || t == nil {
		return err // null is no message, and the SDK says so
	} else if t != json.Delim('{') {
		return errors.New("a message must be an object")
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return err
		}
		var v any = new(skipped) // a megabyte of keys is not to become a map
		switch key {
		case "id":
			m.ID = nil
			v = &m.ID
		case "method":
			m.Method = ""
			v = &m.Method
		}
		if err := dec.Decode(v); err != nil {
			return err
		}
	}
	return nil
}

type skipped struct{}

func (*skipped) UnmarshalJSON([]byte) error { return nil }

// peek returns the messages of a body. What it cannot read must not reach the SDK, which reads some of it, such as what has more
// behind it, and would do so without any of our limits.
func peek(body []byte) ([]message, error) {
	if batch := bytes.HasPrefix(bytes.TrimLeft(body, " \t\r\n"), []byte("[")); batch {
		var msgs []message
		err := json.Unmarshal(body, &msgs)
		return msgs, err
	}
	var msg message
	err := json.Unmarshal(body, &msg)
	return []message{msg}, err
}

const maxInitialize = 16 << 10

// What a message may hold. The SDK's decoder makes each object with room for 64 fields, 2.6 KiB, so that a megabyte of small ones
// takes 100 MiB.
const (
	maxObjects = 128 // and arrays
	maxValues  = 4096
)

// tooMany fails when a body holds more messages than one may, or they hold more than they may. What is no JSON it does not say.
func tooMany(body []byte) error {
	messages, objects, values, depth, inside := 0, 0, 1, 0, false
	batch := bytes.HasPrefix(bytes.TrimLeft(body, " \t\r\n"), []byte("["))
	for i := 0; i < len(body); i++ {
		switch c := body[i]; {
		case inside && c == '\\':
			i++
		case c == '"':
			inside = !inside
		case inside:
		case c == '{' || c == '[':
			if batch && depth == 1 {
				messages++
			}
			objects++
			depth++
		case c == '}' || c == ']':
			depth--
		case c == ',' || c == ':':
			values++
		}
	}
	n := max(1, messages)
	switch {
	case messages > maxBatch:
		return fmt.Errorf("a body may hold %d messages, and this one holds %d: send fewer at once", maxBatch, messages)
	case objects > n*maxObjects+1 || values > n*maxValues:
		return fmt.Errorf("a message may hold %d objects and arrays, and %d keys and values: these are %d and %d", maxObjects, maxValues, objects, values)
	}
	return nil
}

// maxID is the largest integer that the SDK, which reads numbers as float64, hands back as it came, as every smaller one.
const maxID = 1<<53 - 1

// maxIDBytes is how long an id may be as it is sent: a held call keeps it.
const maxIDBytes = 256

// badID returns the first id that is too long, or that the SDK would alter, so that its client would never see an answer to it;
// or nil.
func badID(msgs []message) json.RawMessage {
	for _, m := range msgs {
		if len(m.ID) > maxIDBytes {
			return m.ID
		}
		if len(m.ID) == 0 || m.ID[0] == '"' || string(m.ID) == "null" {
			continue
		}
		if n, err := strconv.ParseInt(string(m.ID), 10, 64); err != nil || n < -maxID || n > maxID {
			return m.ID
		}
	}
	return nil
}

// request is one for the SDK. Its leave must follow.
type request struct {
	s       *Server
	handler http.Handler // of the SDK
	out     *stream
	r       *http.Request
	body    *body
	batch   int64       // weight of the answers, if it has several messages
	e       *exchange   // that it is, or resumes; may be nil
	weight  int64       // of its body
	streams bool        // it is counted among the streams
	alone   func() bool // stops what tells of a hang-up while the SDK's handler runs; may be nil
	after   func()      // what else is to be done at its end; may be nil
	then    func()      // what is to be done when its response has ended; may be nil
}

func (q *request) leave() {
	if q.after != nil {
		q.after()
	}
	q.out.end()
	q.out.drop(nil)
	q.release()
}

func (q *request) release() {
	if q.streams {
		q.s.streams.Add(-1)
	}
	q.s.bodies.give(q.weight)
	q.s.batches.give(q.batch)
	if q.body != nil {
		q.body.drop()
	}
}

// enterMCP chooses the right one of the SDK's handlers for a request and looks after what the SDK does not.
func (s *Server) enterMCP(w http.ResponseWriter, r *http.Request, rc *http.ResponseController) *request {
	if s.draining.Load() {
		w.Header().Set("Retry-After", "5")
		http.Error(w, "shutting down; try again in a few seconds", http.StatusServiceUnavailable)
		return nil
	}
	r.Header = needed(r.Header) // before anything is waited for
	if !s.opened() {
		select {
		case <-s.opts.Opened:
		case <-r.Context().Done():
			w.Header().Set("Retry-After", "5")
			http.Error(w, "shutting down before the mailbox is open (the sidecar's log says why); try again in a few seconds", http.StatusServiceUnavailable)
			return nil
		}
	}
	msgs, weight, ok := s.admit(w, r, rc)
	q := &request{s: s, weight: weight}
	q.body, _ = r.Body.(*body)
	if !ok {
		q.release()
		return nil
	}
	if batch := weighBatch(len(msgs)); s.batches.take(batch) {
		q.batch = batch
	} else {
		w.Header().Set("Retry-After", "5")
		http.Error(w, "many bodies of several messages are in progress: send one message at a time", http.StatusServiceUnavailable)
		q.release()
		return nil
	}
	if r.Method == http.MethodGet || slices.ContainsFunc(msgs, func(m message) bool { return m.Method == "subscriptions/listen" }) {
		q.streams = true
		if s.streams.Add(1) > maxStreams {
			refuseStream(w)
			q.release()
			return nil
		}
		keep(r.Context())
	}
	q.handler = s.route(r, msgs)
	ctx, drop := context.WithCancelCause(r.Context())
	q.out = &stream{rw: w, rc: rc, ctx: ctx, drop: drop, beats: s.beats, writers: s.writers, within: s.opts.Timings.Write}
	q.r = r.WithContext(ctx)
	switch r.Method {
	case http.MethodPost:
		q.post(msgs)
	case http.MethodGet:
		q.get()
	case http.MethodDelete:
		q.delete()
	}
	return q
}

// maxMCPHeaders is how many headers that begin with Mcp- a request may have: the version, the session, the method, its name, and
// a tool's parameters.
const maxMCPHeaders = 64

// needed copies the headers that somebody reads. A held call keeps its request, and thousands of short lines, which are what a
// header may have, take sixteen times what was sent.
func needed(h http.Header) http.Header {
	out := http.Header{}
	mcps := 0
	for name, values := range h {
		switch name {
		case "Accept", "Authorization", "Connection", "Content-Length", "Content-Type", "Last-Event-Id", "Origin", "Sec-Fetch-Site", "User-Agent":
		default:
			if !strings.HasPrefix(name, "Mcp-") {
				continue
			}
			if mcps++; mcps > maxMCPHeaders {
				continue
			}
		}
		for _, v := range values[:min(len(values), 8)] {
			out.Add(name, strings.Clone(v))
		}
	}
	return out
}

// admit reads a request's body, puts a copy in its place and tells what is in it, or refuses the request. The weight is to be given
// back in the end.
func (s *Server) admit(w http.ResponseWriter, r *http.Request, rc *http.ResponseController) (msgs []message, weight int64, ok bool) {
	if r.ContentLength > maxBody {
		refuseBody(w, &http.MaxBytesError{Limit: maxBody})
		return nil, 0, false
	}
	heavy := weigh(r.ContentLength)
	if !s.bodies.take(heavy) {
		w.Header().Set("Retry-After", "5")
		w.Header().Set("Connection", "close") // its body is not read
		http.Error(w, fmt.Sprintf("requests of over %d bytes in all are in progress; answer or cancel some, or send less than %d bytes", maxBodies, lightBody), http.StatusServiceUnavailable)
		return nil, 0, false
	}
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		refuseBody(w, err)
		return nil, heavy, false
	}
	weight = weigh(int64(len(data)))
	s.bodies.give(heavy - weight)
	rc.SetReadDeadline(time.Time{}) // from here on it would end a held call
	r.Body = newBody(data)
	if len(data) > 0 { // else the SDK says what is missing
		if err := tooMany(data); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return nil, weight, false
		}
		if msgs, err = peek(data); err != nil {
			http.Error(w, "malformed payload: it must be one JSON-RPC message, or an array of them: "+safetext.Line(err.Error(), 200), http.StatusBadRequest)
			return nil, weight, false
		}
	}
	if initializes(msgs) && len(data) > maxInitialize {
		http.Error(w, fmt.Sprintf("initialize may have %d bytes: a session keeps what it says", maxInitialize), http.StatusRequestEntityTooLarge)
		return nil, weight, false
	}
	if id := badID(msgs); id != nil {
		refuse(w, nil, &jsonrpc.Error{
			Code:    jsonrpc.CodeInvalidRequest,
			Message: fmt.Sprintf("id %s must be a string of at most %d bytes, or an integer from %d to %d", safetext.Line(string(id), 60), maxIDBytes, -maxID, maxID),
		})
		return nil, weight, false
	}
	if version := r.Header.Get(versionHeader); version != "" && !slices.Contains(mcp.SupportedProtocolVersions(), version) {
		refuseVersion(w, version, msgs)
		return nil, weight, false
	}
	return msgs, weight, true
}

func refuseStream(w http.ResponseWriter) {
	w.Header().Set("Retry-After", "5")
	http.Error(w, fmt.Sprintf("%d event streams are open, which is the limit: end one; calls need none", maxStreams), http.StatusServiceUnavailable)
}

func refuseResume(w http.ResponseWriter, _ *http.Request) {
	http.Error(w, "this stream has a connection already, on which its answer is going to come", http.StatusConflict)
}

func initializes(msgs []message) bool {
	return slices.ContainsFunc(msgs, func(m message) bool { return m.Method == "initialize" })
}

func refuseReplay(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Retry-After", "5")
	http.Error(w, "many long answers are being sent at this moment: resume this stream in some seconds", http.StatusServiceUnavailable)
}

// route chooses the SDK's handler for a request, and takes the headers away that it must not see.
func (s *Server) route(r *http.Request, msgs []message) http.Handler {
	r.Header.Del(keyHeader)
	version := r.Header.Get(versionHeader)
	bare := r.Method == http.MethodPost && version == "" && r.Header.Get(sessionHeader) == ""
	if newEra(version) || bare && !initializes(msgs) {
		r.Header.Del(sessionHeader)
		return s.sdk().stateless
	}
	if id := r.Header.Get(sessionHeader); id != "" && !s.calls.knows(id) {
		return http.HandlerFunc(refuseSession)
	}
	return s.sdk().stateful
}

// refuseSession answers as the SDK does, which for a moment still has a session that has expired.
func refuseSession(w http.ResponseWriter, _ *http.Request) {
	http.Error(w, "session not found", http.StatusNotFound)
}

func (q *request) post(msgs []message) {
	s, e := q.s, newExchange(q.out, msgs)
	q.join(e)
	q.r.Header.Set(keyHeader, e.key)
	s.calls.post(e, q.r.Header.Get(sessionHeader))
	// Without a session the SDK's handler returns only when the call has, so a hang-up must reach the call first.
	q.alone = context.AfterFunc(q.out.ctx, func() { s.calls.hungUp(e) })
	q.after = func() {
		q.alone()
		q.then = s.calls.leave(nil, e, q.out.end())
		if e.opened != "" && !s.hasSession(e.opened) {
			s.calls.forget(e.opened)
		}
	}
}

// join has what goes out on the request's response count for e.
func (q *request) join(e *exchange) {
	q.e = e
	q.out.closes, q.out.plain = e.alone, !q.r.ProtoAtLeast(1, 1)
	q.out.sending = func(event, answers string) func(ok bool) { return q.s.calls.sending(e, event, answers) }
	q.out.withhold = func(event, answers string, data []byte) bool {
		return q.s.calls.withhold(e, event, answers, data)
	}
}

func newExchange(out *stream, msgs []message) *exchange {
	e := &exchange{key: rand.Text(), post: out}
	owed := map[string]bool{}
	for _, m := range msgs {
		if m.Method != "" && len(m.ID) > 0 && string(m.ID) != "null" {
			owed[string(m.ID)] = true
			e.calls = e.calls || m.Method == "tools/call"
		}
	}
	e.owed = len(owed)
	if len(msgs) == 1 && e.owed == 1 {
		var err error
		e.id, err = idOf(msgs[0].ID)
		e.alone = err == nil
	}
	return e
}

func (q *request) delete() {
	sessionID := q.r.Header.Get(sessionHeader)
	release, cancel := context.WithTimeout(q.r.Context(), q.s.opts.Timings.Drain)
	defer cancel()
	q.s.calls.release(release, sessionID)
	q.after = func() { q.s.calls.forget(sessionID) }
}

func (q *request) get() {
	// What is sent again may be long, and it is nobody's copy but this one's once the store has forgotten it.
	size := q.s.events.size(q.r.Header.Get(sessionHeader), q.r.Header.Get(eventHeader))
	if weight := weighAnswer(size); weight > 0 {
		if !q.s.answers.take(weight) {
			q.handler = http.HandlerFunc(refuseReplay)
			return
		}
		q.out.oweReplay(q.s.answers, weight, size)
	}
	sess, e, busy := q.s.calls.get(q.r.Header.Get(sessionHeader), q.r.Header.Get(eventHeader), q.out)
	if busy {
		q.handler = http.HandlerFunc(refuseResume)
		return
	}
	if e != nil {
		q.join(e)
	}
	q.r = q.r.WithContext(context.WithValue(q.r.Context(), resumeKey{}, q.out))
	q.after = func() {
		q.out.end()
		q.then = q.s.calls.leave(sess, e, false) // a refused GET leaves the exchange as it was
	}
}

func (s *Server) hasSession(id string) bool {
	for ss := range s.sdk().mcp.Sessions() {
		if ss.ID() == id {
			return true
		}
	}
	return false
}

// newEra tells whether a known version is one without sessions.
func newEra(version string) bool {
	known := mcp.SupportedProtocolVersions() // newest first
	i := slices.Index(known, version)
	return i >= 0 && i < slices.Index(known, newestStateful)
}

func refuseBody(w http.ResponseWriter, err error) {
	w.Header().Set("Connection", "close")
	if tooBig, ok := errors.AsType[*http.MaxBytesError](err); ok {
		http.Error(w, fmt.Sprintf("the request's body is over %d bytes", tooBig.Limit), http.StatusRequestEntityTooLarge)
	} else if errors.Is(err, os.ErrDeadlineExceeded) {
		http.Error(w, "the request's body did not come in time", http.StatusRequestTimeout)
	} else {
		http.Error(w, "reading the request's body failed", http.StatusBadRequest)
	}
}

// refuseVersion answers in the form from which a new client learns what to speak instead.
func refuseVersion(w http.ResponseWriter, version string, msgs []message) {
	supported := mcp.SupportedProtocolVersions()
	version = safetext.Line(version, 40)
	data, err := json.Marshal(mcp.UnsupportedProtocolVersionData{Supported: supported, Requested: version})
	if err != nil {
		panic(err) // plain strings
	}
	var id json.RawMessage
	if len(msgs) == 1 {
		id = msgs[0].ID
	}
	refuse(w, id, &jsonrpc.Error{
		Code: mcp.CodeUnsupportedProtocolVersion,
		Message: fmt.Sprintf("%s %q is not supported; use one of %s",
			versionHeader, version, strings.Join(supported, ", ")),
		Data: data,
	})
}

// refuse answers a request that does not reach the SDK; id is nil if there is none to answer to.
func refuse(w http.ResponseWriter, id json.RawMessage, err *jsonrpc.Error) {
	if len(id) == 0 {
		id = json.RawMessage("null")
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusBadRequest)
	json.NewEncoder(w).Encode(struct {
		Version string          `json:"jsonrpc"`
		ID      json.RawMessage `json:"id"`
		Error   *jsonrpc.Error  `json:"error"`
	}{"2.0", id, err})
}
