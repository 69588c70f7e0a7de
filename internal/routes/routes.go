// Package routes is the egress route table: the file the proxy reads and the operator keeps by hand.
//
//	routes:
//	  - host: api.github.com
//	    path_allowlist: ["/repos/"]     # prefixes; absent or empty: the whole host
//	    auth: {scheme: Bearer, token_ref: GH_TOKEN}
//
// Merging is done on plain structs ([Merge]); writing is a textual edit that keeps every other byte of the
// operator's file ([Set]), checked by parsing again and comparing with the merge. What cannot be
// edited with certainty is refused with a reason and the lines to write by hand ([EditError]).
//
// The package also edits one list of pipelock's configuration, api_allowlist, in the same way; every other key
// of that file is pipelock's own.
package routes

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/idna"

	"github.com/bot-bottle/supervise/internal/lazy"
)

// Route is one entry. Host is as written in the file.
type Route struct {
	Host          string   `yaml:"host" json:"host"`
	PathAllowlist []string `yaml:"path_allowlist,omitempty" json:"path_allowlist,omitempty"`
	Auth          *Auth    `yaml:"auth,omitempty" json:"auth,omitempty"`
}

// Auth is the credential the proxy adds for a host.
type Auth struct {
	Scheme   string `yaml:"scheme" json:"scheme"`
	TokenRef string `yaml:"token_ref" json:"token_ref"`
}

// Table is a parsed file, in its order.
type Table struct {
	Routes []Route `yaml:"routes" json:"routes"`
}

// Change is what merging one route did.
type Change struct {
	Before      *Route // nil: the host was not there
	After       *Route // never nil after Merge; nil in an undo that removes the entry
	Widened     bool   // a host limited to paths became the whole host
	AuthIgnored bool   // auth was proposed for a host that has an entry already, with another auth or none
	Covered     bool   // nothing to change
}

// MaxFile is the largest file that is parsed or edited.
const MaxFile = 256 << 10

// hostProfile maps a name to its ASCII form as a client would before looking it up. Underscores and "--" in third place
// are let through: they are no host names, but hosts are named so.
var hostProfile = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.Transitional(false), idna.StrictDomainName(false), idna.CheckHyphens(false))

// Key returns the form in which hosts are compared: lower-case ASCII (IDNA), without a trailing
// dot; an IP address in its shortest form, without brackets.
func Key(host string) string {
	if plainHost(host) {
		return host
	}
	h := strings.TrimSuffix(strings.TrimSpace(host), ".")
	if a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(h, "["), "]")); err == nil {
		return a.String()
	}
	if ascii, err := hostProfile.ToASCII(h); err == nil {
		return strings.TrimSuffix(strings.ToLower(ascii), ".")
	}
	return strings.ToLower(h)
}

// plainHost tells whether a host is its own Key, at a glance: most are, and all that Key does takes a microsecond for each route.
func plainHost(h string) bool {
	letters := false // none: it may be an IP address that is written in a longer form than need be
	for i := range len(h) {
		switch c := h[i]; {
		case 'a' <= c && c <= 'z':
			letters = true
		case c == '.' && i > 0 && h[i-1] != '.':
		case '0' <= c && c <= '9', c == '_':
		case c == '-' && i > 0 && h[i-1] != '.' && h[i-1] != '-':
		default:
			return false // "--" may be an IDNA label
		}
	}
	return letters && h[len(h)-1] != '.' && h[len(h)-1] != '-'
}

var (
	hostRE = lazy.Regexp(`^[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*$`)
	envRE  = lazy.Regexp(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

func checkHost(host string) error {
	key := Key(host)
	if Key(key) != key {
		return fmt.Errorf("host %.80q must be a bare host name such as api.github.com", host)
	}
	if _, err := netip.ParseAddr(key); err == nil {
		return nil
	}
	if len(key) > 253 || !hostRE().MatchString(key) {
		return fmt.Errorf("host %.80q must be a bare host name such as api.github.com", host)
	}
	return nil
}

func checkPath(path string) error {
	if !strings.HasPrefix(path, "/") {
		return fmt.Errorf("path %.80q must start with '/'", path)
	}
	if strings.ContainsFunc(path, func(r rune) bool { return r < 0x20 || r == 0x7f || r == '\uFFFD' || r == '\uFEFF' }) {
		return fmt.Errorf("path %.80q must not contain control characters or invalid UTF-8", path)
	}
	return nil
}

func checkAuth(a Auth) error {
	if a.Scheme != "Bearer" && a.Scheme != "token" {
		return fmt.Errorf("auth.scheme %.80q must be Bearer or token", a.Scheme)
	}
	if !envRE().MatchString(a.TokenRef) {
		return fmt.Errorf("auth.token_ref %.80q must be the name of an environment variable", a.TokenRef)
	}
	return nil
}

func (r Route) check() error {
	if err := checkHost(r.Host); err != nil {
		return err
	}
	for _, p := range r.PathAllowlist {
		if err := checkPath(p); err != nil {
			return err
		}
	}
	if r.Auth != nil {
		return checkAuth(*r.Auth)
	}
	return nil
}

// Parse reads a route table. It is strict, and its errors name the line: it refuses several documents,
// duplicate keys or hosts, anchors, aliases, merge keys and tags, unknown keys, bad hosts, paths and auths, anything that is
// not UTF-8 or holds line breaks other than LF and CRLF, and files over MaxFile. An empty file is an empty table.
func Parse(data []byte) (Table, error) {
	d, err := parseDoc(data)
	if err != nil {
		return Table{}, err
	}
	return d.table()
}

// Lookup finds the entry of a host, or nil.
func (t Table) Lookup(host string) *Route {
	if i := t.index(host); i >= 0 {
		return &t.Routes[i]
	}
	return nil
}

func (t Table) index(host string) int {
	key := Key(host)
	return slices.IndexFunc(t.Routes, func(r Route) bool { return Key(r.Host) == key })
}

// Allows tells whether the route lets a path through. The path must be normalised already.
func (r Route) Allows(path string) bool {
	return len(r.PathAllowlist) == 0 || covers(r.PathAllowlist, path)
}

func covers(prefixes []string, path string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(path, p) })
}

// Covers tells whether everything under the prefix path is allowed already. Only an equal entry covers a path that
// a proxy would rewrite before matching.
func (r Route) Covers(path string) bool {
	if len(r.PathAllowlist) == 0 || slices.Contains(r.PathAllowlist, path) {
		return true
	}
	rewritten := strings.ContainsAny(path, `%\?#`) || strings.Contains(path, "//") ||
		strings.Contains(path+"/", "/../") || strings.Contains(path+"/", "/./")
	return !rewritten && covers(r.PathAllowlist, path)
}

func (r Route) whole() bool {
	return len(r.PathAllowlist) == 0 || slices.Contains(r.PathAllowlist, "/")
}

func (r Route) clone() Route {
	r.PathAllowlist = slices.Clone(r.PathAllowlist)
	if len(r.PathAllowlist) == 0 {
		r.PathAllowlist = nil
	}
	if r.Auth != nil {
		r.Auth = new(*r.Auth)
	}
	return r
}

// Merge adds one route to a table and returns the new table; t is not changed. An entry of a known host
// keeps its place, its spelling and its auth, and gains the paths it does not cover yet; it is never narrowed.
// An entry of a new host goes to the end, with the host in its Key form.
func Merge(t Table, r Route) (Table, Change) {
	out := Table{Routes: make([]Route, 0, len(t.Routes)+1)}
	for _, have := range t.Routes {
		out.Routes = append(out.Routes, have.clone())
	}
	i := out.index(r.Host)
	if i < 0 {
		added := Route{Host: Key(r.Host), Auth: r.Auth}.clone()
		for _, p := range r.PathAllowlist {
			if !slices.Contains(added.PathAllowlist, p) {
				added.PathAllowlist = append(added.PathAllowlist, p)
			}
		}
		out.Routes = append(out.Routes, added)
		return out, Change{After: new(added.clone())}
	}
	before := out.Routes[i].clone()
	after := before.clone()
	switch {
	case len(before.PathAllowlist) == 0:
	case len(r.PathAllowlist) == 0:
		if !before.whole() {
			after.PathAllowlist = nil
		}
	default:
		for _, p := range r.PathAllowlist {
			if !after.Covers(p) {
				after.PathAllowlist = append(after.PathAllowlist, p)
			}
		}
	}
	out.Routes[i] = after.clone()
	return out, Change{
		Before:      &before,
		After:       &after,
		Widened:     !before.whole() && after.whole(),
		AuthIgnored: r.Auth != nil && (before.Auth == nil || *before.Auth != *r.Auth),
		Covered:     Equal(&before, &after),
	}
}

// Equal compares two entries as they stand in a file: the host's spelling and the order of paths count, and no
// list is an empty list.
func Equal(a, b *Route) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Host == b.Host && slices.Equal(a.PathAllowlist, b.PathAllowlist) &&
		(a.Auth == nil) == (b.Auth == nil) && (a.Auth == nil || *a.Auth == *b.Auth)
}

// Canonical is the stable text of one entry, for digests, diffs and records: indented JSON with a
// trailing newline, "" for nil. ParseCanonical reads it back.
func Canonical(r *Route) string {
	if r == nil {
		return ""
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(r); err != nil {
		panic(err) // strings and slices of strings always encode
	}
	return buf.String()
}

// ParseCanonical reads what Canonical wrote.
func ParseCanonical(s string) (*Route, error) {
	if s == "" {
		return nil, nil
	}
	var r Route
	dec := json.NewDecoder(strings.NewReader(s))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		return nil, fmt.Errorf("parsing the recorded route: %w", err)
	}
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("parsing the recorded route: %w", err)
	}
	return &r, nil
}
