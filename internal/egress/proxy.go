package egress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bot-bottle/supervise/internal/routes"
	"github.com/bot-bottle/supervise/internal/safetext"
)

// http1 keeps HTTP/2 out on both sides.
func http1() *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(true)
	return p
}

// fewFields refuses a request with too many of them, and keeps none of them while what is left of it arrives.
func fewFields(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if fields(r.Header, r.Trailer) <= maxFields {
			h(w, r)
			return
		}
		r.Header, r.Trailer = nil, nil
		w.Header().Set(Header, string(KindRequest))
		w.Header().Set("Connection", "close")
		http.Error(w, fmt.Sprintf("egress: the header has more than %d lines", maxFields), http.StatusRequestHeaderFieldsTooLarge)
	}
}

func fields(header, trailer http.Header) int {
	n := len(trailer)
	for _, values := range header {
		n += len(values)
	}
	return n
}

// serveOuter answers what arrives at the listener.
func (p *Proxy) serveOuter(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodConnect:
		p.connect(w, r)
	case r.URL.Host == "":
		p.serveDirect(w, r)
	case r.URL.Scheme != "http":
		p.badRequest(w, r, "the URL's scheme is not http", "For https, send CONNECT host:443 to this proxy, as clients do that have it as their https proxy.")
	default:
		// The absolute URL governs; net/http has dropped the Host header already.
		to, err := parseTarget(r.URL.Host, 80)
		if err != nil {
			p.badRequest(w, r, "the URL's host "+err.Error(), "Mend the URL.")
			return
		}
		p.forward(w, r, "http", to)
	}
}

// serveInner answers what arrives inside CONNECT.
func (p *Proxy) serveInner(w http.ResponseWriter, r *http.Request) {
	to := r.Context().Value(tunnelKey{}).(*tunnel).to
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
		if sni := r.TLS.ServerName; sni != "" && routes.Key(sni) != to.host {
			p.mismatch(w, r, scheme, to, "TLS server name (SNI)", sni)
			return
		}
	}
	if h, err := parseTarget(r.Host, to.port); err != nil || h != to {
		p.mismatch(w, r, scheme, to, "Host header", r.Host)
		return
	}
	p.forward(w, r, scheme, to)
}

func (p *Proxy) mismatch(w http.ResponseWriter, r *http.Request, scheme string, to target, what, value string) {
	p.refuse(w, r, scheme, to, &refusal{kind: KindHost,
		why:  fmt.Sprintf("the %s %q is not the CONNECT host %s", what, safetext.Line(value, 200), to),
		mend: "Name one host in CONNECT, TLS and Host header."})
}

// forward sends a request on, if the table allows it.
func (p *Proxy) forward(w http.ResponseWriter, r *http.Request, scheme string, to target) {
	if to.host == selfHost {
		p.serveSelf(w, r)
		return
	}
	if r.Method == http.MethodConnect || r.Method == http.MethodTrace {
		// TRACE would show the client the credential that we add.
		w.Header().Set(Header, string(KindRequest))
		http.Error(w, "egress: "+r.Method+" is not passed on", http.StatusMethodNotAllowed)
		return
	}
	g, ref := decide(p.table.load(), p.ports, scheme, to, rawPath(r))
	if ref != nil {
		p.refuse(w, r, scheme, to, ref)
		return
	}
	s := sending{grant: g}
	if g.auth != nil {
		var err error
		if s.authorization, err = p.credential(g.auth); err != nil {
			p.refuse(w, r, scheme, to, &refusal{kind: KindToken,
				why:  fmt.Sprintf("the route for host %s adds a credential that the egress proxy does not have: %v", to.host, err),
				mend: "The route is there; asking for it again does not help. Tell the user that the operator must set this variable for the egress proxy."})
			return
		}
	}
	p.log.Debug("forwarding", "host", to.host, "port", to.port, "scheme", scheme)
	if r.Body != http.NoBody {
		rc := http.NewResponseController(w)
		// An origin may answer while the body is still coming.
		if err := rc.EnableFullDuplex(); err != nil {
			p.log.Warn("a body goes one way at a time", "err", err)
		}
		s.body = &body{ReadCloser: r.Body}
		if isWebSocket(r.Header) {
			rc.SetReadDeadline(time.Now().Add(p.opts.Timings.Header))
			empty, err := s.body.empty()
			if err != nil {
				s.last(w.Header())
				p.badRequest(w, r, "the body of the WebSocket handshake did not come", "Send a handshake without a body.")
				return
			}
			rc.SetReadDeadline(time.Time{})
			if empty {
				s.body = nil
			}
		}
	}
	r = r.WithContext(context.WithValue(r.Context(), sendingKey{}, s))
	if s.body != nil {
		r.Body = s.body
	} else {
		r.Body, r.ContentLength = http.NoBody, 0
	}
	p.forwarder.ServeHTTP(passedOn{w, r}, r)
	delete(w.Header(), http.TrailerPrefix+Header) // a trailer goes out when we return
}

// passedOn is what the forwarder answers on. An origin's informational responses do not come past ModifyResponse.
type passedOn struct {
	http.ResponseWriter
	of *http.Request
}

func (w passedOn) WriteHeader(code int) {
	if code < 200 {
		if !w.of.ProtoAtLeast(1, 1) {
			return // HTTP/1.0 has none: it would be taken for the answer
		}
		w.Header().Del(Header)
	}
	w.ResponseWriter.WriteHeader(code)
}

// Unwrap lets http.ResponseController through.
func (w passedOn) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// body is a request's, which knows whether it was read to its end. A response that begins before that says that the connection
// closes after it: net/http panics when it comes to the end by itself, after a handler of both directions, and the
// connection is to be used again (golang/go#68560).
type body struct {
	io.ReadCloser
	ended atomic.Bool
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		b.ended.Store(true)
	}
	return n, err
}

// empty waits for the body's first byte, which is still there to be read, or its end.
func (b *body) empty() (bool, error) {
	br := bufio.NewReader(b.ReadCloser)
	_, err := br.Peek(1)
	if err == io.EOF {
		return true, nil
	}
	b.ReadCloser = struct {
		io.Reader
		io.Closer
	}{br, b.ReadCloser}
	return false, err
}

func isWebSocket(h http.Header) bool { return strings.EqualFold(h.Get("Upgrade"), "websocket") }

// last says in a response's header that it is the connection's last, if it must be.
func (s sending) last(h http.Header) {
	if s.body != nil && !s.body.ended.Load() {
		h.Set("Connection", "close")
	}
}

// sending is what the forwarder needs to know of a request.
type sending struct {
	*grant
	authorization secret // "": none is added
	body          *body  // nil: there is none, or it is empty
}

type sendingKey struct{}

func (p *Proxy) newForwarder() *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Transport:     p.transport,
		FlushInterval: -1,
		ErrorLog:      slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
		// It has removed hop-by-hop headers before, among them Proxy-Authorization, and X-Forwarded-For with its kin.
		Rewrite: func(pr *httputil.ProxyRequest) {
			s := pr.In.Context().Value(sendingKey{}).(sending)
			out := pr.Out
			out.Host = s.to.authority(s.scheme)
			u := *pr.In.URL
			u.Scheme, u.Host, u.User, u.Opaque = s.scheme, out.Host, nil, ""
			if s.path != nil {
				u.Path, u.RawPath = s.path.Plain, s.path.Escaped
			}
			out.URL = &u
			// No upgrade with a body either: what is left of it when the connection is taken over would be lost, or mixed
			// with what follows it.
			if !isWebSocket(out.Header) || s.body != nil {
				out.Header.Del("Upgrade")
				out.Header.Del("Connection")
			}
			if s.authorization != "" {
				out.Header.Set("Authorization", string(s.authorization))
			}
		},
		ModifyResponse: func(res *http.Response) error {
			if res.StatusCode < 100 { // net/http reads such a one, and panics when it is to write it
				return fmt.Errorf("its status %03d is none", res.StatusCode)
			}
			if fields(res.Header, res.Trailer) > maxFields {
				return fmt.Errorf("its header has more than %d lines", maxFields)
			}
			res.Header.Del(Header)
			delete(res.Trailer, Header) // the announcement; forward deletes the trailer itself
			// A switch of protocols is checked after this, by its Connection header.
			if res.StatusCode != http.StatusSwitchingProtocols {
				res.Request.Context().Value(sendingKey{}).(sending).last(res.Header)
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() != nil {
				panic(http.ErrAbortHandler) // the client is gone, or we are going: cut, rather than an empty 200
			}
			s := r.Context().Value(sendingKey{}).(sending)
			s.last(w.Header())
			p.unreachable(w, r, s.scheme, s.to, err)
		},
	}
}

// unreachable answers for an origin that could not be reached or asked.
func (p *Proxy) unreachable(w http.ResponseWriter, r *http.Request, scheme string, to target, err error) {
	if ae, ok := errors.AsType[*addressError](err); ok {
		p.refuse(w, r, scheme, to, &refusal{kind: KindAddress,
			why:  ae.Error() + ", which is never reached by name",
			mend: "No tool opens this. If it is meant to be reached, tell the user: the operator can name the host in allow_private."})
		return
	}
	text := safetext.Line(err.Error(), 300)
	p.log.Info("origin failed", "host", to.host, "port", to.port, "err", text)
	http.Error(w, fmt.Sprintf("egress: %s is allowed, but could not be reached: %s", to, text), http.StatusBadGateway)
}

func (p *Proxy) newTransport() *http.Transport {
	return &http.Transport{
		DialContext:            p.dial,
		Protocols:              http1(),
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: p.opts.RootCAs},
		TLSHandshakeTimeout:    p.opts.Timings.Header,
		DisableCompression:     true, // bodies are not ours to change
		MaxIdleConns:           256,
		MaxIdleConnsPerHost:    16,
		IdleConnTimeout:        90 * time.Second,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxResponseHeader,
	}
}

// connect opens a tunnel. Its request has no body; what follows is the tunnel's.
func (p *Proxy) connect(w http.ResponseWriter, r *http.Request) {
	to, err := parseTarget(r.RequestURI, 0)
	if err != nil {
		p.badRequest(w, r, "the CONNECT target "+err.Error(), "Send CONNECT host:443.")
		return
	}
	var config *tls.Config
	var origin net.Conn
	if p.ca != nil {
		leaf, err := p.ca.leaf(to.host)
		if err != nil {
			p.log.Error("minting a certificate", "host", to.host, "err", err)
			http.Error(w, "egress: no certificate for this host: "+err.Error(), http.StatusInternalServerError)
			return
		}
		config = &tls.Config{
			MinVersion:             tls.VersionTLS12,
			NextProtos:             []string{"http/1.1"},
			Certificates:           []tls.Certificate{*leaf},
			SessionTicketsDisabled: true,
		}
	} else {
		if ref := decideTunnel(p.table.load(), p.ports, to); ref != nil {
			p.refuse(w, r, "https", to, ref)
			return
		}
		// Before we say yes, so that the client hears of a failure.
		if origin, err = p.dial(r.Context(), "tcp", to.String()); err != nil {
			p.unreachable(w, r, "https", to, err)
			return
		}
		defer origin.Close()
	}

	raw, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		p.log.Error("taking over a connection", "err", err)
		return
	}
	t := &tunnel{Conn: raw, r: buffered.Reader, to: to}
	mine := true
	defer func() {
		if mine {
			t.Close()
		}
	}()
	t.SetDeadline(time.Now().Add(p.opts.Timings.Header))
	p.conns.Rest(t) // until something is asked inside
	if _, err := io.WriteString(raw, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	first, err := t.r.Peek(1)
	if err != nil {
		return // nothing was sent in time
	}
	const handshake = 0x16 // the first byte of TLS
	switch {
	case first[0] != handshake: // plain HTTP, as for ws://
		mine = false
		p.handOver(t)
	case config != nil:
		mine = false
		t.SetDeadline(time.Time{})
		p.inner.give(tls.Server(t, config))
	default:
		p.splice(r.Context(), t, origin)
	}
}

func (p *Proxy) handOver(t *tunnel) {
	t.SetDeadline(time.Time{})
	p.inner.give(t)
}

// splice joins client and origin if the client's TLS hello names the CONNECT host. An IP address has no SNI.
func (p *Proxy) splice(ctx context.Context, t *tunnel, origin net.Conn) {
	sni, hello, err := readHello(t)
	if err != nil {
		p.log.Info("tunnel cut: no TLS hello", "host", t.to.host, "err", err)
		return
	}
	if name := routes.Key(sni); name != t.to.host && !(sni == "" && isIP(t.to.host)) {
		// There is no way to tell the client: the next bytes it reads are the origin's.
		p.log.Info("refused", "kind", KindHost, "host", t.to.host, "port", t.to.port, "sni", safetext.Line(sni, 253))
		return
	}
	t.SetDeadline(time.Time{})
	p.conns.Keep(t)
	// A side that has ended no longer notices that the other is cut.
	defer context.AfterFunc(ctx, func() { t.Close(); origin.Close() })()
	var wg sync.WaitGroup
	wg.Go(func() { pipe(origin, io.MultiReader(bytes.NewReader(hello), t)) })
	pipe(t, origin)
	wg.Wait()
}

// pipe copies until src ends, and then ends dst: the sending side after a clean end, all of it after a failure.
func pipe(dst net.Conn, src io.Reader) {
	if _, err := io.Copy(dst, src); err != nil {
		dst.Close()
		return
	}
	closeWrite(dst)
}

var errHello = errors.New("hello read")

// readHello reads a TLS client hello from r, with nothing answered, and returns it with what it names.
func readHello(r io.Reader) (sni string, read []byte, err error) {
	var seen bytes.Buffer
	deaf := deafConn{r: io.TeeReader(io.LimitReader(r, 64<<10), &seen)}
	err = tls.Server(deaf, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		sni = h.ServerName
		return nil, errHello
	}}).Handshake()
	if !errors.Is(err, errHello) {
		return "", nil, err
	}
	return sni, seen.Bytes(), nil
}

// deafConn reads from r and swallows what is written.
type deafConn struct {
	net.Conn // nil: nothing else is called
	r        io.Reader
}

func (c deafConn) Read(b []byte) (int, error)       { return c.r.Read(b) }
func (c deafConn) Write(b []byte) (int, error)      { return len(b), nil }
func (c deafConn) Close() error                     { return nil }
func (c deafConn) SetDeadline(time.Time) error      { return nil }
func (c deafConn) SetWriteDeadline(time.Time) error { return nil }

// rawPath is the request's path as it was sent: url.URL may already have decided what an odd one means.
func rawPath(r *http.Request) string {
	s := r.RequestURI
	if !strings.HasPrefix(s, "/") {
		if _, rest, ok := strings.Cut(s, "://"); ok {
			i := strings.IndexAny(rest, "/?")
			if i < 0 {
				return ""
			}
			s = rest[i:]
		}
	}
	s, _, _ = strings.Cut(s, "?")
	return s
}

// secret is a credential. It does not print.
type secret string

func (secret) String() string       { return "redacted" }
func (secret) GoString() string     { return "redacted" }
func (secret) LogValue() slog.Value { return slog.StringValue("redacted") }

// credential is the Authorization header of a route.
func (p *Proxy) credential(a *routes.Auth) (secret, error) {
	v := strings.TrimSpace(p.opts.Env(a.TokenRef))
	if v == "" {
		return "", fmt.Errorf("the variable %s is not set", a.TokenRef)
	}
	for _, c := range []byte(v) {
		if c <= ' ' || c > '~' {
			return "", fmt.Errorf("the variable %s holds what cannot be in a header", a.TokenRef)
		}
	}
	return secret(a.Scheme + " " + v), nil
}
