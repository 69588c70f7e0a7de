// Package egress is the reference egress proxy: what a bottle's network goes out through. It
// allows only routed hosts, and its refusals tell a stuck agent which tool to call.
//
// What it promises:
//
//   - Nothing is dialled that the route table does not allow. The table is a file (package routes); it is
//     read again on SIGHUP and when it changes. A file that cannot be read or parsed leaves the table in
//     force and is reported as last_error; at start that is the empty table, which refuses everything. No
//     reload drops a connection; a request on an open connection is judged by the table of its own moment.
//   - It speaks plain HTTP as a forward proxy, and CONNECT. With a CA, what is inside CONNECT is TLS ended here
//     (HTTP/1.1 by ALPN, leaf certificates minted per host) or plain HTTP: every CONNECT is accepted and
//     refusals are answered inside it, dialling nothing. Without a CA only a host that is allowed whole and
//     without a credential can be tunnelled, as TLS whose SNI is that host; any other CONNECT gets a 403.
//   - CONNECT host, SNI and Host header name one host. (Without a CA the Host header is inside the tunnel and cannot be seen.)
//   - Ports 80 and 443 only, unless configured.
//   - The address that is dialled is the one that was checked: loopback, link-local, metadata, private and
//     reserved ones are refused unless the route's host is that IP literal, or AllowPrivate names the host.
//   - On a route with paths the path is normalised before it is matched, exactly what was matched is
//     forwarded, and what servers read in different ways (encoded slashes, backslashes, semicolons, double
//     encoding) is refused. On a route without paths the path is passed on as it came.
//   - A route's credential is read from the environment at each request and replaces the client's
//     Authorization. It is sent over TLS only: plain http to such a route is refused. It is never logged,
//     nor is any path, query, header or body.
//   - Bodies stream both ways. A client that goes away ends its upstream request.
//   - Past the limit of connections the one makes way that has been without a request or a tunnel for longest. When all
//     have one, the next client waits. No address holds more than three quarters of them (package conns).
//   - WebSocket upgrades pass, if the request has no body or an empty one. Other upgrades are not offered upstream: h2c would
//     carry requests past every check here.
//   - http://_egress.local/allowlist, asked through the proxy or at the listener itself, is the table in force; it is never dialled.
//     The listener itself tells it to no page of another site, and under no name that a site could point at it.
//
// A refusal has status 403 (502 when the mend is on our side), the header X-Supervise-Refused
// with its [Kind], and a text/plain body.
package egress

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/bot-bottle/supervise/internal/conns"
	"github.com/bot-bottle/supervise/internal/routes"
)

// Limits of a header. Parsed, short lines take 25 times their size, are kept while the request is in progress, and twice when it
// is sent on: with 60 KiB of them on each of its connections a bottle took 1.6 GiB.
const (
	maxHeader         = 16 << 10 // bytes of a request's; net/http takes 4 KiB more
	maxResponseHeader = 64 << 10
	maxFields         = 256 // lines, and trailers that are announced
)

// DefaultAddr is where the proxy listens unless told otherwise: loopback only.
const DefaultAddr = "127.0.0.1:9099"

// Options configure a Proxy. Only RoutesFile is required.
type Options struct {
	Addr         string   // if empty, DefaultAddr
	RoutesFile   string   // in a directory of its own: it is watched, and replaced by rename
	CACert       string   // PEM file of the CA that signs leaf certificates; with CAKey, or neither
	CAKey        string   // PEM file of its key
	AllowPrivate []string // hosts that may resolve to private addresses
	Ports        []int    // if empty, 80 and 443
	MaxConns     int      // client connections at once; if zero, 1024. See the package comment

	Env    func(string) string // where credentials come from; if nil, os.Getenv
	HUP    <-chan os.Signal    // each value is a Reload; notified before New, so that an early SIGHUP does not kill
	Logger *slog.Logger        // if nil, nothing is logged

	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)      // if nil, the system's resolver
	Dial    func(ctx context.Context, network, addr string) (net.Conn, error) // dials a checked IP address; if nil, a net.Dialer
	RootCAs *x509.CertPool                                                    // who signs origins; if nil, the system's
	Timings Timings
}

// Timings bound waits. A zero field means its default.
type Timings struct {
	Header time.Duration // to send a request's header, a TLS hello, a handshake; 15 s
	Idle   time.Duration // a kept-alive connection without a request; 2 min
	Dial   time.Duration // resolving and connecting; 10 s
	Poll   time.Duration // how often the routes file is read again without an event; 1 s
	Grace  time.Duration // for requests in flight at the end of Run; 5 s
}

// Proxy is one listening proxy. Run must be called, once.
type Proxy struct {
	opts      Options
	log       *slog.Logger
	ports     []int
	private   map[string]bool // keys of AllowPrivate
	ca        *authority      // nil: none
	table     table
	ln        net.Listener
	conns     *conns.Listener // whatever serves a client lives on a connection of it: cutting them ends everything, waiting for them waits for everything
	inner     *handover       // connections that were accepted inside CONNECT
	transport *http.Transport
	forwarder *httputil.ReverseProxy
}

// ErrOption is the kind of New's errors about an option that cannot be.
var ErrOption = errors.New("egress")

// New listens, loads the CA and reads the routes. Routes that cannot be read are no error: see the package comment.
func New(opts Options) (*Proxy, error) {
	if opts.RoutesFile == "" {
		return nil, errors.New("egress: RoutesFile is empty: name the file with the routes")
	}
	if (opts.CACert == "") != (opts.CAKey == "") {
		return nil, errors.New("egress: a CA needs both its certificate and its key, or neither")
	}
	opts.Addr = cmp.Or(opts.Addr, DefaultAddr)
	opts.MaxConns = cmp.Or(opts.MaxConns, 1024)
	opts.Logger = cmp.Or(opts.Logger, slog.New(slog.DiscardHandler))
	if opts.Env == nil {
		opts.Env = os.Getenv
	}
	if opts.Resolve == nil {
		opts.Resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	if opts.Dial == nil {
		opts.Dial = new(net.Dialer).DialContext
	}
	t := &opts.Timings
	t.Header = cmp.Or(t.Header, 15*time.Second)
	t.Idle = cmp.Or(t.Idle, 2*time.Minute)
	t.Dial = cmp.Or(t.Dial, 10*time.Second)
	t.Poll = cmp.Or(t.Poll, time.Second)
	t.Grace = cmp.Or(t.Grace, 5*time.Second)

	p := &Proxy{opts: opts, log: opts.Logger, ports: slices.Clone(opts.Ports), private: map[string]bool{}}
	if len(p.ports) == 0 {
		p.ports = []int{80, 443}
	}
	for _, n := range p.ports {
		if n < 1 || n > 65535 {
			return nil, fmt.Errorf("%w: port %d must be between 1 and 65535", ErrOption, n)
		}
	}
	if opts.MaxConns < 1 {
		return nil, fmt.Errorf("%w: max-conns %d must be positive", ErrOption, opts.MaxConns)
	}
	for _, h := range opts.AllowPrivate {
		key := routes.Key(h)
		if !validHost(key) {
			return nil, fmt.Errorf("%w: allow-private %.200q must be a host name or an IP address", ErrOption, h)
		}
		p.private[key] = true
	}
	if opts.CACert != "" {
		ca, err := loadCA(opts.CACert, opts.CAKey)
		if err != nil {
			return nil, err
		}
		p.ca = ca
	}
	p.transport = p.newTransport()
	p.forwarder = p.newForwarder()
	p.table.file = opts.RoutesFile
	p.Reload()

	ln, err := net.Listen("tcp", opts.Addr)
	if err != nil {
		return nil, fmt.Errorf("egress: listening on %s: %w", opts.Addr, err)
	}
	p.conns = conns.New(ln, opts.MaxConns)
	p.ln = ln
	p.inner = newHandover(ln.Addr())
	return p, nil
}

// Addr is the bound address.
func (p *Proxy) Addr() net.Addr { return p.ln.Addr() }

// Reload reads the routes file again. An error leaves the table as it was; it is also logged, and shown as last_error.
func (p *Proxy) Reload() error {
	changed, err := p.table.reload()
	st := p.table.load()
	switch {
	case err != nil && changed:
		p.log.Warn("routes not loaded; the table stays as it was", "file", p.opts.RoutesFile, "generation", st.generation, "err", err)
	case err == nil && changed:
		p.log.Info("routes loaded", "generation", st.generation, "routes", len(st.table.Routes), "sha256", st.sha256)
	}
	return err
}

// Run serves until ctx ends, then gives requests in flight the grace and cuts what is left, tunnels and
// WebSockets at once. When it returns, every client's connection has been closed by whoever served it. The end of ctx is no error.
func (p *Proxy) Run(ctx context.Context) error {
	// Requests outlive ctx by the grace: they hang on hard instead.
	hard, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	errorLog := slog.NewLogLogger(p.log.Handler(), slog.LevelInfo)
	var requests busy
	track := func(c net.Conn, s http.ConnState) {
		requests.track(c, s)
		switch s {
		case http.StateActive:
			p.conns.Keep(c)
		case http.StateNew, http.StateIdle:
			p.conns.Rest(c)
		}
	}
	server := func(h http.HandlerFunc) *http.Server {
		return &http.Server{
			Handler:                      fewFields(h),
			ReadHeaderTimeout:            p.opts.Timings.Header,
			IdleTimeout:                  p.opts.Timings.Idle,
			MaxHeaderBytes:               maxHeader,
			ErrorLog:                     errorLog,
			ConnState:                    track,
			Protocols:                    http1(),
			DisableGeneralOptionsHandler: true,
			BaseContext:                  func(net.Listener) context.Context { return hard },
		}
	}
	outer := server(p.serveOuter)
	inner := server(p.serveInner)
	inner.ConnContext = withTunnel

	p.log.Info("egress listening", "addr", p.ln.Addr().String(), "ca", p.ca != nil)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return serve(outer, p.conns) })
	g.Go(func() error { return serve(inner, p.inner) })
	g.Go(func() error { p.watch(ctx); return nil })
	g.Go(func() error {
		<-ctx.Done()
		// Shutdown would also wait, 5 s, for clients that never said anything. So it is only asked to accept nothing
		// more, to close what is idle and to keep nothing alive, which it has done by the time it sees that its context has ended.
		ended, cancel := context.WithCancel(hard)
		cancel()
		// Outer first: it is the one that hands connections to inner.
		_ = outer.Shutdown(ended)
		_ = inner.Shutdown(ended)
		grace, cancel := context.WithTimeout(hard, p.opts.Timings.Grace)
		defer cancel()
		if n := requests.wait(grace); n > 0 {
			p.log.Info("cutting requests that are still in flight", "requests", n)
		}
		cut()
		p.conns.CutAll()
		return nil
	})
	err := g.Wait()
	p.conns.Wait()
	p.transport.CloseIdleConnections()
	return err
}

func serve(s *http.Server, ln net.Listener) error {
	if err := s.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("egress: serving: %w", err)
	}
	return nil
}
