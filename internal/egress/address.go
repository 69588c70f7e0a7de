package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// addressError is a host that has no address we would dial.
type addressError struct {
	host  string
	class string // of the first refused address: "loopback", … The address itself is not the agent's affair.
}

func (e *addressError) Error() string {
	return fmt.Sprintf("host %s resolves to a %s address", e.host, e.class)
}

// refusedNets are named for people. The first match counts, so metadata comes before what contains it.
var refusedNets = []struct {
	class string
	nets  []netip.Prefix
}{
	{"cloud metadata", prefixes("169.254.169.254/32", "fd00:ec2::/64", "fd20:ce::254/128", "100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32")},
	{"loopback", prefixes("127.0.0.0/8", "::1/128")},
	{"link-local", prefixes("169.254.0.0/16", "fe80::/10")},
	{"private", prefixes("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fec0::/10")},
	{"carrier-grade NAT", prefixes("100.64.0.0/10")},
	{"unspecified", prefixes("0.0.0.0/8", "::/128")},
	{"multicast", prefixes("224.0.0.0/4", "ff00::/8")},
	{"reserved", prefixes(
		"192.0.0.0/24", "192.0.2.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4", // broadcast is in the last
		"::/96", "100::/64", "2001::/23", "2001:db8::/32", "64:ff9b:1::/48", "5f00::/16", "3fff::/20")},
}

func prefixes(ss ...string) []netip.Prefix {
	ps := make([]netip.Prefix, len(ss))
	for i, s := range ss {
		ps[i] = netip.MustParsePrefix(s)
	}
	return ps
}

var (
	nat64   = netip.MustParsePrefix("64:ff9b::/96")
	sixTo4  = netip.MustParsePrefix("2002::/16")
	v4Trans = netip.MustParsePrefix("::ffff:0:0:0/96") // RFC 2765
)

// refusedClass says what kind of address this is when it must not be dialled, and "" when it may.
func refusedClass(a netip.Addr) string {
	if a.Zone() != "" {
		return "link-local"
	}
	a = a.Unmap()
	b := a.As16()
	switch {
	case nat64.Contains(a), v4Trans.Contains(a):
		a = netip.AddrFrom4([4]byte(b[12:16]))
	case sixTo4.Contains(a):
		a = netip.AddrFrom4([4]byte(b[2:6]))
	}
	for _, c := range refusedNets {
		for _, n := range c.nets {
			if n.Contains(a) {
				return c.class
			}
		}
	}
	return ""
}

// dial resolves host, drops the addresses that must not be reached, and dials what is left one by one. What is
// dialled is the checked address itself: a name that resolves otherwise a moment later changes nothing.
// The caller has found a route for the host; a host that is an IP literal is then allowed by it.
func (p *Proxy) dial(ctx context.Context, network, hostport string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(hostport)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, p.opts.Timings.Dial)
	defer cancel()
	if isIP(host) {
		return p.opts.Dial(ctx, network, hostport)
	}
	addrs, err := p.opts.Resolve(ctx, host)
	if err != nil {
		return nil, fmt.Errorf("resolving %s: %w", host, err)
	}
	var refused error
	var good []netip.Addr
	for _, a := range addrs {
		if class := refusedClass(a); class != "" && !p.private[host] {
			if refused == nil {
				refused = &addressError{host, class}
			}
			continue
		}
		good = append(good, a)
	}
	if len(good) == 0 {
		if refused == nil {
			refused = fmt.Errorf("resolving %s: no address", host)
		}
		return nil, refused
	}
	var errs []error
	for i, a := range good {
		// A dead address leaves time for the next.
		share := p.opts.Timings.Dial / time.Duration(len(good)-i)
		if deadline, ok := ctx.Deadline(); ok {
			share = time.Until(deadline) / time.Duration(len(good)-i)
		}
		one, cancel := context.WithTimeout(ctx, share)
		c, err := p.opts.Dial(one, network, net.JoinHostPort(a.String(), port))
		cancel()
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}
