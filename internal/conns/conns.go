// Package conns bounds the connections of a listener, so that whoever opens many keeps nobody else out.
//
// A connection may make way or is kept; whoever serves it says which. At the limit the one that may make way for longest
// does. When all are kept, the next one waits, accepted but not handed out, and those after it wait in the kernel's backlog.
// One address holds at most three quarters, of four or more: past that its own longest makes way, or its next one is closed.
package conns

import (
	"container/list"
	"net"
	"net/netip"
	"sync"
)

// Listener accepts at most a number of connections at once. It is safe for concurrent use, but for Accept, which has one
// caller at a time.
type Listener struct {
	net.Listener
	most, each int

	mu      sync.Mutex
	open    map[*Conn]struct{} // guarded by mu; until its owner closes it
	loose   *list.List         // guarded by mu; of *Conn that may make way, longest first
	n       int                // guarded by mu; of open, without those that made way
	from    map[netip.Addr]int // guarded by mu; n, by address
	stopped bool               // guarded by mu
	changed sync.Cond          // on mu: one was closed or may make way, or stopped
}

// Conn is an accepted connection. It may make way until Keep.
type Conn struct {
	net.Conn
	of    *Listener
	from  netip.Addr
	gone  bool          // guarded by of.mu; closed, or made way
	place *list.Element // guarded by of.mu; in of.loose; nil: it is kept, or gone
}

// New bounds ln to most connections, at least one.
func New(ln net.Listener, most int) *Listener {
	l := &Listener{Listener: ln, most: most, each: most - most/4, open: map[*Conn]struct{}{}, loose: list.New(), from: map[netip.Addr]int{}}
	l.changed.L = &l.mu
	return l
}

// Accept waits for a connection and for room for it.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &Conn{Conn: raw, of: l, from: address(raw)}
		if l.admit(c) {
			return c, nil
		}
		raw.Close()
	}
}

// admit tells whether there is a place for c, which it then has.
func (l *Listener) admit(c *Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.each < l.most && l.from[c.from] >= l.each && !l.makeWayLocked(func(o *Conn) bool { return o.from == c.from }) {
		return false
	}
	for l.n >= l.most && !l.makeWayLocked(func(*Conn) bool { return true }) {
		if l.stopped {
			return false
		}
		l.changed.Wait()
	}
	if l.stopped {
		return false
	}
	l.open[c] = struct{}{}
	l.n++
	l.from[c.from]++
	c.place = l.loose.PushBack(c)
	return true
}

// makeWayLocked breaks the first of those that may make way, under its owner, who then closes it.
func (l *Listener) makeWayLocked(may func(*Conn) bool) bool {
	for e := l.loose.Front(); e != nil; e = e.Next() {
		if c := e.Value.(*Conn); may(c) {
			l.forgetLocked(c)
			c.Conn.Close()
			return true
		}
	}
	return false
}

func (l *Listener) forgetLocked(c *Conn) {
	if c.gone {
		return
	}
	c.gone = true
	if c.place != nil {
		l.loose.Remove(c.place)
		c.place = nil
	}
	l.n--
	if l.from[c.from]--; l.from[c.from] == 0 {
		delete(l.from, c.from)
	}
	l.changed.Broadcast()
}

// Close stops accepting; connections stay.
func (l *Listener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopped = true
	l.changed.Broadcast()
	return l.Listener.Close()
}

// Keep has the connection under c stay until Rest.
func (l *Listener) Keep(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c := under(c); c != nil && c.place != nil {
		l.loose.Remove(c.place)
		c.place = nil
	}
}

// Rest lets the connection under c make way, after all that may already.
func (l *Listener) Rest(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch c := under(c); {
	case c == nil || c.gone:
	case c.place != nil:
		l.loose.MoveToBack(c.place)
	default:
		c.place = l.loose.PushBack(c)
		l.changed.Broadcast()
	}
}

// under is what was accepted, under TLS and whatever else has a NetConn; nil if it is none of ours.
func under(c net.Conn) *Conn {
	for {
		switch o := c.(type) {
		case *Conn:
			return o
		case interface{ NetConn() net.Conn }:
			c = o.NetConn()
		default:
			return nil
		}
	}
}

// CutAll breaks every connection under its owner, who then closes it. Close comes before it.
func (l *Listener) CutAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.open {
		c.Conn.Close()
	}
}

// Wait returns once every owner has closed its connection.
func (l *Listener) Wait() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.open) > 0 {
		l.changed.Wait()
	}
}

// Close gives the place back.
func (c *Conn) Close() error {
	err := c.Conn.Close()
	c.of.mu.Lock()
	defer c.of.mu.Unlock()
	delete(c.of.open, c)
	c.of.forgetLocked(c)
	c.of.changed.Broadcast()
	return err
}

// CloseWrite ends our side of the connection, or all of it where it has no sides.
func (c *Conn) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Close()
}

func address(c net.Conn) netip.Addr {
	if ap, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
		return ap.Addr().Unmap()
	}
	return netip.Addr{}
}
