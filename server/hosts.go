package server

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"

	"github.com/bot-bottle/supervise/internal/safetext"
)

// hostList holds the names that a request may use for this server. It is the guard against DNS rebinding: a page in a
// browser that resolves its own name to our address still sends its own name.
type hostList map[string]bool

func newHostList(addr string, allowed []string) (hostList, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("address %q must be HOST:PORT: %w", addr, err)
	}
	l := hostList{"localhost": true, "supervise": true}
	if ip, err := netip.ParseAddr(host); host != "" && (err != nil || !ip.IsUnspecified()) {
		l[hostKey(host)] = true // 0.0.0.0 stands for whatever address a request comes in on, but is no name of ours
	}
	if name, err := os.Hostname(); err == nil && name != "" {
		l[hostKey(name)] = true
	}
	for _, name := range allowed {
		if strings.Contains(name, "/") || hostKey(name) == "" {
			return nil, fmt.Errorf("SUPERVISE_ALLOWED_HOSTS: %q is not a host name: write names without scheme, port or path, parted by commas", name)
		}
		l[hostKey(name)] = true
	}
	return l, nil
}

// hostKey is the form in which names are compared: no port, no brackets, no trailing dot, lower case.
func hostKey(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// allows tells whether host may name this server, for a request that came in on local. Besides the listed names
// these are loopback addresses, and the address it came in on: an address cannot be rebound.
func (l hostList) allows(host string, local net.Addr) bool {
	key := hostKey(host)
	if l[key] {
		return true
	}
	ip, err := netip.ParseAddr(key)
	if err != nil {
		return false
	}
	ip = ip.Unmap()
	if ip.IsLoopback() {
		return true
	}
	if tcp, ok := local.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap() == ip
	}
	return false
}

// check returns what is wrong with r's Host or Origin, or "".
func (l hostList) check(r *http.Request) string {
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	const mend = "is not a name of this server; add its host to SUPERVISE_ALLOWED_HOSTS"
	if !l.allows(r.Host, local) {
		return fmt.Sprintf("Host %q %s", safetext.Line(r.Host, 100), mend)
	}
	for _, origin := range r.Header.Values("Origin") {
		u, err := url.Parse(origin)
		if err != nil || u.Host == "" || !l.allows(u.Host, local) {
			return fmt.Sprintf("Origin %q %s", safetext.Line(origin, 100), mend)
		}
	}
	return ""
}
