package egress

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/bot-bottle/supervise/internal/routes"
	"github.com/bot-bottle/supervise/internal/urlpath"
)

// selfHost is the proxy's own name. It is never dialled, whatever the table says.
const selfHost = "_egress.local"

// target is where a request wants to go.
type target struct {
	host string // in the form of routes.Key; checked by validHost
	port int
}

// parseTarget reads host[:port]. Without a default (0) the port must be there.
func parseTarget(s string, defaultPort int) (target, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port = strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"), strconv.Itoa(defaultPort)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return target{}, fmt.Errorf("%.300q must be host:port with a port between 1 and 65535", s)
	}
	key := routes.Key(host)
	if !validHost(key) {
		return target{}, fmt.Errorf("%.300q must name a host or an IP address", s)
	}
	return target{key, int(n)}, nil
}

func (t target) String() string { return net.JoinHostPort(t.host, strconv.Itoa(t.port)) }

// authority leaves out the scheme's own port, as in a URL and a Host header.
func (t target) authority(scheme string) string {
	if t.port == defaultPort(scheme) {
		if strings.Contains(t.host, ":") {
			return "[" + t.host + "]"
		}
		return t.host
	}
	return t.String()
}

func defaultPort(scheme string) int {
	if scheme == "https" {
		return 443
	}
	return 80
}

func isIP(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil
}

// validHost accepts an IP address without zone, and what can be looked up in the DNS.
func validHost(key string) bool {
	if a, err := netip.ParseAddr(key); err == nil {
		return a.Zone() == ""
	}
	if len(key) > 253 {
		return false
	}
	for label := range strings.SplitSeq(key, ".") {
		if len(label) < 1 || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return true
}

// grant is an allowed request.
type grant struct {
	scheme string
	to     target
	auth   *routes.Auth
	path   *urlpath.Path // nil: the path goes on as it came
}

// decide is the whole policy but for what is known at dialling only. path is as the client sent it, still
// encoded, without query.
func decide(st *state, ports []int, scheme string, to target, path string) (*grant, *refusal) {
	route, ref := findRoute(st, ports, to, path)
	if ref != nil {
		return nil, ref
	}
	if route.Auth != nil && scheme != "https" {
		return nil, &refusal{kind: KindAuth,
			why:  fmt.Sprintf("the route for host %s adds a credential, which is never sent over plain http", to.host),
			mend: "Send the same request with https://."}
	}
	g := &grant{scheme: scheme, to: to, auth: route.Auth}
	if whole(route) {
		if path != "" && path[0] != '/' {
			return nil, ambiguous(errors.New("must start with '/'"))
		}
		return g, nil
	}
	clean, err := urlpath.Clean(path)
	if err != nil {
		return nil, ambiguous(err)
	}
	// A prefix may be written either way: "/a b/" or "/a%20b/".
	if !route.Allows(clean.Plain) && !route.Allows(clean.Escaped) {
		return nil, &refusal{kind: KindPath,
			why: fmt.Sprintf("host %s is allowed for other paths only, not for this one", to.host),
			ask: suggest(to.host, path)}
	}
	g.path = &clean
	return g, nil
}

// decideTunnel is decide for a CONNECT that will not be inspected.
func decideTunnel(st *state, ports []int, to target) *refusal {
	if to.host == selfHost {
		return &refusal{kind: KindCA, why: "this proxy cannot answer for " + selfHost + " over TLS",
			mend: "Ask http://" + selfHost + "/allowlist through this proxy, with plain http."}
	}
	route, ref := findRoute(st, ports, to, "")
	switch {
	case ref != nil:
		return ref
	case !whole(route):
		return &refusal{kind: KindCA,
			why: fmt.Sprintf("host %s is allowed for some paths only, which this proxy cannot see inside TLS because it runs without a CA", to.host),
			ask: suggest(to.host, "")}
	case route.Auth != nil:
		return &refusal{kind: KindCA,
			why:  fmt.Sprintf("the route for host %s adds a credential, which this proxy cannot do inside TLS because it runs without a CA", to.host),
			mend: "Only an operator can change that: tell the user that the egress proxy needs a CA for this route."}
	}
	return nil
}

func findRoute(st *state, ports []int, to target, path string) (*routes.Route, *refusal) {
	if !slices.Contains(ports, to.port) {
		return nil, &refusal{kind: KindPort,
			why:  fmt.Sprintf("port %d is not allowed on any host, only %s", to.port, portList(ports)),
			mend: "No tool opens a port. Use an allowed one if the service has it; else tell the user."}
	}
	route, ok := st.byHost[to.host]
	if !ok {
		return nil, &refusal{kind: KindHost,
			why: fmt.Sprintf("there is no route for host %s", to.host),
			ask: suggest(to.host, path)}
	}
	return route, nil
}

// whole tells whether every path is allowed, so that none needs to be understood.
func whole(r *routes.Route) bool {
	return len(r.PathAllowlist) == 0 || slices.Contains(r.PathAllowlist, "/")
}

func ambiguous(err error) *refusal {
	return &refusal{kind: KindPath,
		why:  "the path " + err.Error(),
		mend: "Send the path in its plain form. If the service needs it as it is, its host can only be allowed whole: ask with egress-block, without path_allowlist."}
}

func portList(ports []int) string {
	ss := make([]string, len(ports))
	for i, n := range ports {
		ss[i] = strconv.Itoa(n)
	}
	return strings.Join(ss, ", ")
}
