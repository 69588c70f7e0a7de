package egress

import (
	"bufio"
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
)

// closeWrite ends our side of a connection, or all of it where it has no sides.
func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Close()
}

// tunnel is a client's connection after its CONNECT.
type tunnel struct {
	net.Conn
	r  *bufio.Reader // over Conn; holds what came with the CONNECT
	to target
}

func (t *tunnel) Read(b []byte) (int, error) { return t.r.Read(b) }
func (t *tunnel) CloseWrite() error          { return closeWrite(t.Conn) }
func (t *tunnel) NetConn() net.Conn          { return t.Conn }

type tunnelKey struct{}

// withTunnel is the inner server's ConnContext.
func withTunnel(ctx context.Context, c net.Conn) context.Context {
	if tc, ok := c.(*tls.Conn); ok {
		c = tc.NetConn()
	}
	return context.WithValue(ctx, tunnelKey{}, c.(*tunnel))
}

// handover is a listener that accepts what it is given.
type handover struct {
	addr    net.Addr
	ch      chan net.Conn
	stopped chan struct{}
	once    sync.Once
}

func newHandover(addr net.Addr) *handover {
	return &handover{addr: addr, ch: make(chan net.Conn), stopped: make(chan struct{})}
}

// give passes the ownership of c on.
func (h *handover) give(c net.Conn) {
	select {
	case h.ch <- c:
	case <-h.stopped:
		c.Close()
	}
}

func (h *handover) Accept() (net.Conn, error) {
	select {
	case c := <-h.ch:
		return c, nil
	case <-h.stopped:
		return nil, net.ErrClosed
	}
}

func (h *handover) Close() error {
	h.once.Do(func() { close(h.stopped) })
	return nil
}

func (h *handover) Addr() net.Addr { return h.addr }

// busy knows the connections that have a request in flight: read, and not yet answered to the last byte.
type busy struct {
	mu    sync.Mutex
	conns map[net.Conn]struct{} // guarded by mu
	quiet chan struct{}         // guarded by mu; if not nil, closed once conns is empty
}

// track is a server's ConnState hook. A hijacked connection (a tunnel, a WebSocket) has no end to wait for.
func (b *busy) track(c net.Conn, s http.ConnState) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s == http.StateActive {
		if b.conns == nil {
			b.conns = map[net.Conn]struct{}{}
		}
		b.conns[c] = struct{}{}
		return
	}
	delete(b.conns, c)
	if len(b.conns) == 0 && b.quiet != nil {
		close(b.quiet)
		b.quiet = nil
	}
}

// wait returns when no request is in flight, or when ctx ends, with how many still are. It is called once.
func (b *busy) wait(ctx context.Context) int {
	b.mu.Lock()
	quiet := make(chan struct{})
	if len(b.conns) == 0 {
		close(quiet)
	} else {
		b.quiet = quiet
	}
	b.mu.Unlock()
	select {
	case <-quiet:
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.conns)
}
