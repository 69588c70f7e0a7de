// Package web is the desk in a browser: an inbox, a page for every proposal with the forms that decide, history, the
// ledger, and a page for every bottle with its live route table. Everything is rendered here; the script on
// the pages only keeps them current, and without it they work as well.
//
// It holds no logic of its own: it shows what [Desk] tells and calls its verbs. What it promises beyond that:
//
//   - Nobody sees anything without a session. A session is begun with a token that is good once and for a short while
//     ([Server.Link]); it lives in a cookie that no script can read and that no other site can send. It is good under
//     the Host it was begun under and no other. A browser sends the cookie to every port of that host: so that nothing
//     else listens under it, the host of Options.URL wants to be one that only the desk has.
//   - Only requests for a known Host are answered, and only a form of our own page changes anything. GET never does.
//   - An approval names the digest of the preview that was on the page. When it is stale the answer says what is
//     different now and shows the new preview; nothing is approved that was not shown.
//   - Whatever an agent wrote is text: it goes through package safetext, then through html/template, under a
//     Content-Security-Policy that runs no script and no style but the two files embedded here.
//   - A decision goes on when its browser hangs up; it ends with the server.
package web

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/bot-bottle/supervise/internal/config"
	"github.com/bot-bottle/supervise/internal/conns"
	"github.com/bot-bottle/supervise/internal/operator"
)

// Desk is what the pages need of an [operator.Desk].
type Desk interface {
	Snapshot(ctx context.Context) (*operator.Snapshot, error)
	Show(ctx context.Context, ref operator.Ref, edited *string) (*operator.Preview, error)
	Approve(ctx context.Context, ref operator.Ref, d operator.Decision) (*operator.Result, error)
	Reject(ctx context.Context, ref operator.Ref, notes string) (*operator.Result, error)
	Dismiss(ctx context.Context, refs ...operator.Ref) ([]*operator.Result, error)
	Undo(ctx context.Context, ref operator.Ref, progress io.Writer) (*operator.Result, error)
	History(ctx context.Context, f operator.HistoryFilter) iter.Seq2[operator.LedgerEntry, error]
	Audit(ctx context.Context, head string) (*operator.AuditReport, error)
	Changes(ctx context.Context) (<-chan struct{}, error)
	Trail(ctx context.Context) (operator.Trail, error)
}

// Options configure a Server.
type Options struct {
	Desk    Desk
	URL     string                            // under which browsers reach it, for links: http://supervise-2k7qd3xa.localhost:9101
	Plain   string                            // the same for what does not resolve URL's host: http://127.0.0.1:9101; if empty, all do
	Hosts   []string                          // names to answer to besides the loopback ones and the address that was connected to
	Targets func(bottle string) config.Bottle // where a bottle's route table is; if nil, no table is shown
	TLS     *tls.Config                       // if nil, plain HTTP
	Logger  *slog.Logger                      // if nil, nothing is logged

	Idle       time.Duration // a session that nobody used for so long ends; if zero, 12 h
	Lifetime   time.Duration // a session ends after so long; if zero, 7 days
	MaxStreams int           // pages kept current at once; if zero, 64
	MaxConns   int           // connections at once; if zero, 256. Past it one makes way that has no request of a session
}

// Server is the desk's web server. It is safe for concurrent use.
type Server struct {
	opts     Options
	log      *slog.Logger
	desk     Desk
	board    *board
	auth     *auth
	seen     seen
	streams  chan struct{} // one element an open stream
	handler  http.Handler
	lifetime context.Context // ends when Run does: decisions in progress end with it, not with their request
	end      context.CancelFunc
}

// New prepares a server. Its pages show what is open only while Run runs; Handler works without, for tests.
func New(o Options) *Server {
	if o.Desk == nil {
		panic("web.New: no Desk")
	}
	o.Idle = cmp.Or(o.Idle, 12*time.Hour)
	o.Lifetime = cmp.Or(o.Lifetime, 7*24*time.Hour)
	o.MaxStreams = cmp.Or(o.MaxStreams, 64)
	o.MaxConns = cmp.Or(o.MaxConns, 256)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	pages() // what is wrong with one is known at once
	s := &Server{opts: o, log: o.Logger, desk: o.Desk, board: newBoard(o.Desk, o.Logger), auth: newAuth(o), streams: make(chan struct{}, o.MaxStreams)}
	s.lifetime, s.end = context.WithCancel(context.Background())
	s.handler = s.guard(s.routes())
	return s
}

// Handler is everything that is served.
func (s *Server) Handler() http.Handler { return s.handler }

// Link returns a new sign-in link. It is good once, for LinkLife.
func (s *Server) Link() string { link, _ := s.Links(); return link }

// Links is Link, with the same link under Options.Plain: one of them is good. plain is empty if that is.
func (s *Server) Links() (link, plain string) {
	in := "/in?token=" + s.auth.newToken()
	if s.opts.Plain != "" {
		plain = s.opts.Plain + in
	}
	return s.opts.URL + in, plain
}

// grace is how long a decision in progress is given when the server ends. What it leaves is finished, or put back, by
// the next command.
const grace = 10 * time.Second

// Run serves ln until ctx ends, then waits for what is in progress. It may be called once.
func (s *Server) Run(ctx context.Context, ln net.Listener) error {
	defer s.end()
	srv := &http.Server{
		TLSConfig: s.opts.TLS,
		Handler:   s.handler, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
	var fresh freshConns
	bounded := conns.New(ln, s.opts.MaxConns)
	srv.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, keepKey{}, func() { bounded.Keep(c) })
	}
	srv.ConnState = func(c net.Conn, state http.ConnState) {
		fresh.state(c, state)
		if state == http.StateActive || state == http.StateIdle {
			bounded.Rest(c)
		}
	}
	// No WriteTimeout: an approval takes as long as the build it starts.
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.board.run(gctx) })
	g.Go(func() error {
		serve := srv.Serve
		if s.opts.TLS != nil {
			serve = func(ln net.Listener) error { return srv.ServeTLS(ln, "", "") }
		}
		if err := serve(bounded); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serving the desk: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		<-gctx.Done()
		s.board.close() // streams never end by themselves
		fresh.close()
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		if err := srv.Shutdown(stop); err != nil {
			s.end()
			return errors.Join(fmt.Errorf("ending the desk: %w", err), srv.Close())
		}
		return nil
	})
	return g.Wait()
}

type keepKey struct{}

// keep has the connection of a request stay until the request is over.
func keep(r *http.Request) {
	if f, ok := r.Context().Value(keepKey{}).(func()); ok {
		f()
	}
}

// freshConns knows the connections on which nothing has come. Browsers open some ahead, and Shutdown would wait 5 s
// for their first request.
type freshConns struct {
	mu     sync.Mutex
	conns  map[net.Conn]bool // guarded by mu
	closed bool              // guarded by mu
}

func (f *freshConns) state(c net.Conn, state http.ConnState) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case state != http.StateNew:
		delete(f.conns, c)
	case f.closed:
		c.Close()
	case f.conns == nil:
		f.conns = map[net.Conn]bool{c: true}
	default:
		f.conns[c] = true
	}
}

func (f *freshConns) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for c := range f.conns {
		c.Close()
	}
}

func (s *Server) routes() http.Handler {
	open := http.NewServeMux() // without a session
	open.HandleFunc("GET /in", s.getSignIn)
	open.HandleFunc("POST /in", s.postSignIn)
	open.HandleFunc("GET /assets/{name}", s.getAsset)
	open.HandleFunc("GET /favicon.svg", s.getFavicon)

	m := http.NewServeMux()
	m.HandleFunc("GET /{$}", s.getInbox)
	m.HandleFunc("GET /p/{bottle}/{id}", s.getProposal)
	m.HandleFunc("GET /p/{bottle}/{id}/edit", s.getEdit)
	m.HandleFunc("POST /p/{bottle}/{id}/edit", s.postEdit)
	m.HandleFunc("POST /p/{bottle}/{id}/approve", s.postApprove)
	m.HandleFunc("POST /p/{bottle}/{id}/reject", s.postReject)
	m.HandleFunc("POST /p/{bottle}/{id}/undo", s.postUndo)
	m.HandleFunc("GET /p/{bottle}/{id}/{verb}", s.backToProposal) // a reload or a bookmark of what a form answered
	m.HandleFunc("GET /review", s.getReview)
	m.HandleFunc("POST /review", s.postReview)
	m.HandleFunc("POST /dismiss", s.postDismiss)
	m.HandleFunc("GET /history", s.getHistory)
	m.HandleFunc("GET /ledger", s.getLedger)
	m.HandleFunc("GET /bottles", s.getBottles)
	m.HandleFunc("GET /b/{bottle}", s.getBottle)
	m.HandleFunc("GET /events", s.getEvents)
	m.HandleFunc("POST /out", s.postSignOut)
	m.HandleFunc("POST /link", s.postLink)
	m.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, http.StatusNotFound, "There is no such page", "The inbox shows what is open, the history what was decided.")
	})
	open.Handle("/", s.signedIn(m))
	return open
}
