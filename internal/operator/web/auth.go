package web

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/queue"
)

// LinkLife is how long a sign-in link is good.
const LinkLife = 10 * time.Minute

// What is kept at most; past it the oldest goes.
const (
	maxTokens   = 16
	maxSessions = 64
)

// A client address may fail to sign in so often, and once more every failEvery.
const (
	failBurst = 10
	failEvery = 6 * time.Second
	maxFailed = 1024 // addresses remembered
)

type hash = [sha256.Size]byte

// auth knows who may look. It keeps only hashes of tokens and cookies, so that looking one up tells nothing by its time.
type auth struct {
	idle, lifetime time.Duration
	secure         bool

	mu       sync.Mutex
	tokens   map[hash]time.Time // guarded by mu: when made
	sessions map[hash]*session  // guarded by mu
	failed   map[string]*fails  // guarded by mu; by client address
}

// session is one signed-in browser.
type session struct {
	ctx   context.Context // ends with the session
	end   context.CancelFunc
	begun time.Time
	host  string // where it was begun: it is nobody's elsewhere

	mu   sync.Mutex
	used time.Time                // guarded by mu
	done map[operator.Ref]outcome // guarded by mu; what this browser did lately
}

// outcome is what a decision of this browser did, to be shown on the proposal's page.
type outcome struct {
	Notes []string // escaped
	at    time.Time
}

type fails struct {
	n    float64 // leaks by one every failEvery
	last time.Time
}

func newAuth(o Options) *auth {
	return &auth{idle: o.Idle, lifetime: o.Lifetime, secure: o.TLS != nil, tokens: map[hash]time.Time{}, sessions: map[hash]*session{}, failed: map[string]*fails{}}
}

func (a *auth) newToken() string {
	token := rand.Text()
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.tokens) >= maxTokens {
		dropOldest(a.tokens, func(t time.Time) time.Time { return t })
	}
	a.tokens[sha256.Sum256([]byte(token))] = time.Now()
	return token
}

func dropOldest[V any](m map[hash]V, at func(V) time.Time) (dropped V) {
	var key hash
	var oldest time.Time
	for k, v := range m {
		if t := at(v); oldest.IsZero() || t.Before(oldest) {
			key, oldest, dropped = k, t, v
		}
	}
	delete(m, key)
	return dropped
}

// signIn spends a token and begins a session. The second result is how long to wait instead, when the token is none and
// this address has failed too often; a good one is taken from an address that somebody else fails from, too.
func (a *auth) signIn(token, from, host string) (cookie string, wait time.Duration, ok bool) {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	key := sha256.Sum256([]byte(token))
	made, known := a.tokens[key]
	delete(a.tokens, key)
	if !known || now.Sub(made) > LinkLife {
		f := a.failed[from]
		if f == nil {
			if len(a.failed) >= maxFailed {
				clear(a.failed) // somebody has very many addresses; a token has 130 bits
			}
			f = &fails{last: now}
			a.failed[from] = f
		}
		f.n, f.last = max(0, f.n-float64(now.Sub(f.last))/float64(failEvery)), now
		if f.n > failBurst-1 {
			return "", time.Duration((f.n - failBurst + 1) * float64(failEvery)), false
		}
		f.n++
		return "", 0, false
	}
	if len(a.sessions) >= maxSessions {
		dropOldest(a.sessions, func(s *session) time.Time { return s.begun }).end()
	}
	cookie = rand.Text()
	s := &session{begun: now, host: strings.ToLower(host), used: now, done: map[operator.Ref]outcome{}}
	s.ctx, s.end = context.WithCancel(context.Background())
	a.sessions[sha256.Sum256([]byte(cookie))] = s
	return cookie, 0, true
}

// session returns the live session of a cookie under a Host, or nil. touch: somebody used it just now.
func (a *auth) session(cookie, host string, touch bool) *session {
	if cookie == "" {
		return nil
	}
	key, now := sha256.Sum256([]byte(cookie)), time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.sessions[key]
	if s == nil || s.host != strings.ToLower(host) {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.used) > a.idle || now.Sub(s.begun) > a.lifetime {
		s.end()
		delete(a.sessions, key)
		return nil
	}
	if touch {
		s.used = now
	}
	return s
}

func (a *auth) signOut(cookie string) {
	key := sha256.Sum256([]byte(cookie))
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.sessions[key]; s != nil {
		s.end()
		delete(a.sessions, key)
	}
}

// recent is how long the outcome of a decision stays on its page.
const recent = 5 * time.Minute

func (s *session) did(ref operator.Ref, notes []string) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for r, o := range s.done {
		if now.Sub(o.at) > recent {
			delete(s.done, r)
		}
	}
	s.done[ref] = outcome{notes, now}
}

func (s *session) outcome(ref operator.Ref) *outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o, ok := s.done[ref]; ok && time.Since(o.at) <= recent {
		return &o
	}
	return nil
}

// cookieName has the port in it, since a browser keeps one jar for all ports of a host.
func (a *auth) cookieName(r *http.Request) string {
	name := "supervise"
	if _, port, err := net.SplitHostPort(r.Host); err == nil {
		name += "-" + port
	}
	if a.secure {
		return "__Host-" + name
	}
	return name
}

func (a *auth) cookie(r *http.Request) string {
	if c, err := r.Cookie(a.cookieName(r)); err == nil {
		return c.Value
	}
	return ""
}

type sessionKey struct{}

func sessionOf(r *http.Request) *session {
	s, _ := r.Context().Value(sessionKey{}).(*session)
	return s
}

// live marks what the page's script asks for by itself: it keeps no session alive.
const live = "Supervise-Live"

// signedIn lets only sessions through.
func (s *Server) signedIn(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		touch := r.Header.Get(live) == "" && r.URL.Path != "/events"
		ses := s.auth.session(s.auth.cookie(r), r.Host, touch)
		if ses == nil {
			p := signInPage{page: page{Title: "Sign in"}}
			if r.Method == http.MethodGet {
				p.To = onward(r.URL.Path)
			}
			s.render(w, r, http.StatusUnauthorized, "signin", p)
			return
		}
		keep(r)
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), sessionKey{}, ses)))
	})
}

type signInPage struct {
	page
	Token string // of the link that was followed
	To    string // where to go then: a proposal's page, as a notification links to it, or "", the inbox
	Error string
}

// onward returns p if it is the path of a proposal's page, else "".
func onward(p string) string {
	parts := strings.Split(p, "/") // "", "p", bottle, id
	if len(parts) != 4 || parts[0] != "" || parts[1] != "p" || queue.CheckSlug(parts[2]) != nil {
		return ""
	}
	if _, err := queue.ParseID(parts[3]); err != nil {
		return ""
	}
	return p
}

// getSignIn only shows a form: a link that is fetched for a preview, or twice, spends nothing.
func (s *Server) getSignIn(w http.ResponseWriter, r *http.Request) {
	s.render(w, r, http.StatusOK, "signin", signInPage{page: page{Title: "Sign in"}, Token: cleanToken(r.URL.Query().Get("token"))})
}

func (s *Server) postSignIn(w http.ResponseWriter, r *http.Request) {
	if !s.parse(w, r) {
		return
	}
	cookie, wait, ok := s.auth.signIn(cleanToken(r.PostForm.Get("token")), clientAddr(r), r.Host)
	if !ok {
		p := signInPage{page: page{Title: "Sign in"}, To: onward(r.PostForm.Get("to")), Error: "This link was used already, or is too old, or is not one of this desk."}
		status := http.StatusForbidden
		if wait > 0 {
			status = http.StatusTooManyRequests
			w.Header().Set("Retry-After", seconds(wait))
			p.Error = "Too many attempts from here. Wait " + seconds(wait) + " seconds."
		}
		s.log.Warn("sign-in refused", "status", status)
		s.render(w, r, status, "signin", p)
		return
	}
	s.log.Info("signed in")
	s.setCookie(w, r, cookie, int(s.opts.Lifetime/time.Second))
	http.Redirect(w, r, cmp.Or(onward(r.PostForm.Get("to")), "/"), http.StatusSeeOther)
}

func (s *Server) setCookie(w http.ResponseWriter, r *http.Request, value string, maxAge int) {
	http.SetCookie(w, &http.Cookie{Name: s.auth.cookieName(r), Value: value, Path: "/", MaxAge: maxAge, HttpOnly: true, Secure: s.auth.secure, SameSite: http.SameSiteStrictMode})
}

func (s *Server) postSignOut(w http.ResponseWriter, r *http.Request) {
	s.auth.signOut(s.auth.cookie(r))
	s.setCookie(w, r, "", -1)
	s.log.Info("signed out")
	http.Redirect(w, r, "/in", http.StatusSeeOther)
}

// postLink makes a link for another browser of the same person.
func (s *Server) postLink(w http.ResponseWriter, r *http.Request) {
	link, plain := s.Links()
	s.render(w, r, http.StatusOK, "link", struct {
		page
		Link, Plain string
		Minutes     int
	}{s.page(r, "Sign in another browser", ""), link, plain, int(LinkLife / time.Minute)})
}

// cleanToken takes a token, or a whole link that was pasted.
func cleanToken(s string) string {
	if _, token, ok := strings.Cut(s, "token="); ok {
		s = token
	}
	return strings.TrimSpace(s)
}

// clientAddr is one client for the limiter: a whole /64, which one machine has as a rule.
func clientAddr(r *http.Request) string {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	ip := ap.Addr().Unmap()
	if ip.Is6() {
		if p, err := ip.WithZone("").Prefix(64); err == nil {
			return p.String()
		}
	}
	return ip.String()
}
