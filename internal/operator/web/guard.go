package web

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// maxBody is the largest form: a Dockerfile at its limit, every byte of it percent-encoded.
const maxBody = 1 << 20

// policy lets a page run the script and style that are embedded here and nothing else.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// guard is before everything: headers, Host, Origin, where a form came from, its size.
func (s *Server) guard(next http.Handler) http.Handler {
	cross := http.NewCrossOriginProtection()
	cross.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "this form was not sent by a page of this desk", http.StatusForbidden)
	}))
	next = cross.Handler(http.MaxBytesHandler(next, maxBody))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		// Not no-referrer: browsers then say "Origin: null" with our own forms, and over plain HTTP beyond loopback
		// nothing else tells them from another site's.
		h.Set("Referrer-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
		h.Set("Cache-Control", "no-store")
		if !s.knownHost(r) {
			msg := "unknown Host: name it with --host"
			if strings.HasSuffix(hostname(r.Host), ".localhost") {
				msg = "this is not the name of this desk: open a link that it prints"
			}
			http.Error(w, msg, http.StatusForbidden)
			return
		}
		if o := r.Header.Get("Origin"); o != "" && !sameHost(o, r.Host) {
			http.Error(w, "this request comes from another site", http.StatusForbidden)
			return
		}
		if r.Method != http.MethodGet && r.Method != http.MethodHead && r.Header.Get("Origin") == "" && r.Header.Get("Sec-Fetch-Site") == "" {
			http.Error(w, "a form says where it comes from: send the header Origin", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// knownHost keeps a name that somebody else controls from being pointed at us (DNS rebinding). The address that was
// connected to is no name.
func (s *Server) knownHost(r *http.Request) bool {
	host := hostname(r.Host)
	if ip, err := netip.ParseAddr(host); err == nil {
		local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		return ip.IsLoopback() || slices.Contains(s.opts.Hosts, host) || ok && hostname(local.String()) == ip.Unmap().String()
	}
	return host == "localhost" || slices.Contains(s.opts.Hosts, host)
}

func hostname(hostport string) string {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.Trim(hostport, "[]")
	}
	return strings.TrimSuffix(strings.ToLower(host), ".")
}

// sameHost compares hosts and ports; the scheme may differ behind a proxy that ends TLS.
func sameHost(origin, host string) bool {
	u, err := url.Parse(origin)
	return err == nil && u.Host != "" && strings.EqualFold(u.Host, host)
}
