package payload

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"

	"github.com/bot-bottle/supervise/internal/lazy"
	"github.com/bot-bottle/supervise/internal/urlpath"
)

// NewEgress checks a route. Host and token_ref are trimmed; nothing else is changed.
func NewEgress(r Route) (Payload, error) {
	bad := func(field, value, mend string) (Payload, error) {
		return Payload{}, &FieldError{Egress, field, cut(value), mend}
	}
	r.Host = strings.TrimSpace(r.Host)
	host, mend := checkHost(r.Host)
	if mend != "" {
		return bad("host", r.Host, mend)
	}
	if len(r.PathAllowlist) > MaxPaths {
		return bad("path_allowlist", "", fmt.Sprintf("must have at most %d entries, not %d: propose a shorter common prefix", MaxPaths, len(r.PathAllowlist)))
	}
	for i, path := range r.PathAllowlist {
		if mend := checkPath(path); mend != "" {
			return bad("path_allowlist["+strconv.Itoa(i)+"]", path, mend)
		}
	}
	r.PathAllowlist = slices.Clone(r.PathAllowlist)
	if len(r.PathAllowlist) == 0 {
		r.PathAllowlist = nil
	}
	if r.Auth != nil {
		a := *r.Auth
		a.TokenRef = strings.TrimSpace(a.TokenRef)
		if a.Scheme != "Bearer" && a.Scheme != "token" {
			return bad("auth.scheme", a.Scheme, `must be "Bearer" or "token"`)
		}
		if !envName().MatchString(a.TokenRef) || len(a.TokenRef) > MaxTokenRef {
			return bad("auth.token_ref", a.TokenRef, "must be the name of an environment variable of the proxy, such as GH_TOKEN, never the secret itself")
		}
		r.Auth = &a
	}
	return Payload{Tool: Egress, Route: &r, Host: host}, nil
}

// NewPipelock checks a URL that pipelock refused. It is trimmed.
func NewPipelock(failedURL string) (Payload, error) {
	s := strings.TrimSpace(failedURL)
	bad := func(value, mend string) (Payload, error) {
		return Payload{}, &FieldError{Pipelock, "failed_url", cut(value), mend}
	}
	switch {
	case s == "":
		return bad("", "is required: the URL that was refused, such as https://api.example.com/v1/items")
	case len(s) > MaxURL:
		return bad(s, fmt.Sprintf("must be at most %d bytes, not %d: leave the query out", MaxURL, len(s)))
	case !utf8.ValidString(s):
		return bad(s, "must be valid UTF-8")
	case strings.ContainsFunc(s, unicode.IsControl):
		return bad(s, "must not contain control characters")
	case strings.ContainsFunc(s, unicode.IsSpace):
		return bad(s, "must be one URL without whitespace")
	}
	u, err := url.Parse(s)
	if err != nil {
		return bad(s, "must be a URL such as https://api.example.com/v1/items")
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https": // Parse lower-cases it
		return bad(s, "must be an http or https URL, such as https://api.example.com/v1/items")
	case u.User != nil:
		// Not echoed: what stands before the '@' may be a secret.
		return bad("", "must not contain credentials: leave out what stands before the '@'")
	case u.Hostname() == "":
		return bad(s, "must have a host name")
	case u.Port() != "" && !validPort(u.Port()):
		return bad(s, "must have a port from 1 to 65535, or none")
	}
	host, mend := checkHost(u.Hostname())
	if mend != "" {
		return bad(s, "must have a valid host: its host "+mend)
	}
	return Payload{Tool: Pipelock, URL: s, Host: host}, nil
}

// NewCapability checks a Dockerfile, which is kept byte for byte.
func NewCapability(dockerfile string) (Payload, error) {
	if mend := checkText(dockerfile, MaxDockerfile, "the whole new Dockerfile, not only the changed lines"); mend != "" {
		return Payload{}, &FieldError{Capability, "dockerfile", "", mend}
	}
	return Payload{Tool: Capability, Dockerfile: dockerfile}, nil
}

// CheckJustification checks the words that go with a proposal of the tool.
func CheckJustification(tool, s string) error {
	if mend := checkText(s, MaxJustification, "say what you were doing, what was refused, and why this is the smallest change that helps"); mend != "" {
		return &FieldError{tool, "justification", "", mend}
	}
	return nil
}

// checkText checks text of several lines; "" is good.
func checkText(s string, limit int, want string) string {
	switch {
	case strings.TrimSpace(s) == "":
		return "is required: " + want
	case len(s) > limit:
		return fmt.Sprintf("must be at most %d bytes, not %d", limit, len(s))
	case !utf8.ValidString(s):
		return "must be valid UTF-8"
	}
	for i, r := range s {
		if unicode.IsControl(r) && r != '\n' && r != '\r' && r != '\t' {
			return fmt.Sprintf("must not contain control characters: %U at byte %d", r, i)
		}
	}
	return ""
}

var envName = lazy.Regexp(`^[A-Za-z_][A-Za-z0-9_]*$`)

var encodedDot = strings.NewReplacer("%2e", ".", "%2E", ".")

// checkPath checks a path prefix; "" is good. What could never match a request is refused, as it would
// look narrower than it is, or be approved in vain: the proxy compares a path decoded, or encoded in one way.
func checkPath(p string) string {
	switch {
	case p == "":
		return "must not be empty: use '/' or leave path_allowlist out for the whole host"
	case len(p) > MaxPath:
		return fmt.Sprintf("must be at most %d bytes, not %d", MaxPath, len(p))
	case !utf8.ValidString(p):
		return "must be valid UTF-8"
	case strings.ContainsFunc(p, unicode.IsControl):
		return "must not contain control characters"
	case strings.ContainsRune(p, utf8.RuneError):
		return "must not contain U+FFFD: it stands for bytes that were no UTF-8"
	case strings.ContainsRune(p, '\uFEFF'):
		return "must not contain U+FEFF: it is a byte order mark"
	case p[0] != '/':
		return "must start with '/'"
	case strings.ContainsFunc(p, unicode.IsSpace):
		return "must not contain whitespace: end the prefix before it"
	case strings.ContainsAny(p, "?#"):
		return "must be a path prefix without '?' or '#': only paths are compared"
	case strings.Contains(p, "*"):
		return "must be a plain prefix without '*': everything that starts with it is allowed"
	}
	for seg := range strings.SplitSeq(encodedDot.Replace(p), "/") {
		if seg == "." || seg == ".." {
			return "must not contain '.' or '..' segments"
		}
	}
	clean, err := urlpath.Clean(p)
	switch {
	case err != nil:
		return "must be a path that the proxy lets through, and this one " + err.Error() +
			": end the prefix before it; if the service cannot do without it, leave path_allowlist out for the whole host"
	case p == clean.Plain || p == clean.Escaped:
		return ""
	case !strings.Contains(p, "%"): // empty segments
		return fmt.Sprintf("must be written %q, as the proxy compares it", clean.Plain)
	}
	return fmt.Sprintf("must be written %q, as the proxy compares it", clean.Escaped)
}

// idnaProfile is what resolvers and browsers do with a name, with one leniency: "--" in third place
// is left alone, since real hosts have it (r3---sn-….googlevideo.com).
var idnaProfile = idna.New(
	idna.MapForLookup(),
	idna.Transitional(false),
	idna.StrictDomainName(true),
	idna.ValidateLabels(true),
	idna.CheckHyphens(false),
	idna.CheckJoiners(true),
	idna.BidiRule(),
)

// checkHost returns the form of a trimmed host that is compared, or what it must be.
func checkHost(s string) (key, mend string) {
	const want = "must be a bare host name, such as api.github.com"
	switch {
	case s == "":
		return "", "is required: the bare host name that was refused, such as api.github.com"
	case len(s) > MaxHost+1: // one more for a trailing dot
		return "", fmt.Sprintf("must be at most %d bytes, not %d", MaxHost, len(s))
	case !utf8.ValidString(s):
		return "", "must be valid UTF-8"
	case strings.ContainsFunc(s, unicode.IsControl):
		return "", "must not contain control characters"
	case strings.ContainsFunc(s, unicode.IsSpace):
		return "", want + ": it contains whitespace"
	case strings.Contains(s, "://"):
		return "", want + ", not a URL"
	case strings.Contains(s, "@"):
		return "", want + ", without user or password"
	case strings.ContainsAny(s, `/\?#`):
		return "", want + ", without a path: paths go into path_allowlist"
	case strings.Contains(s, "*"):
		return "", want + ": wildcards are not supported, propose each host on its own"
	}
	if a, err := netip.ParseAddr(s); err == nil {
		if a.Zone() != "" {
			return "", "must be an IP address without a zone"
		}
		return a.String(), ""
	}
	if strings.ContainsAny(s, "[]:") {
		if inner, ok := strings.CutPrefix(s, "["); ok {
			if a, err := netip.ParseAddr(strings.TrimSuffix(inner, "]")); err == nil && a.Is6() {
				return "", "must be an IPv6 address without brackets"
			}
		}
		return "", want + ", without a port"
	}
	ascii, err := idnaProfile.ToASCII(s)
	if err != nil {
		return "", "must be a valid host name (IDNA), such as api.github.com"
	}
	ascii = strings.TrimSuffix(ascii, ".")
	if ascii == "" || len(ascii) > MaxHost {
		return "", fmt.Sprintf("must be a valid host name (IDNA) of at most %d bytes", MaxHost)
	}
	labels := strings.Split(ascii, ".")
	for _, l := range labels {
		switch {
		case l == "":
			return "", "must be a valid host name: it has an empty label (two dots in a row, or a dot at its start)"
		case len(l) > 63:
			return "", "must be a valid host name: no part between dots may be longer than 63 bytes"
		case hyphened(l):
			return "", "must be a valid host name: no part may begin or end with '-'"
		}
	}
	if numeric(labels[len(labels)-1]) {
		// 127.1, 0x7f000001 and 2130706433 are addresses to a resolver, whatever they look like.
		return "", "must be a host name or a whole IP address: its last part is a number"
	}
	if _, err := netip.ParseAddr(ascii); err == nil {
		return "", "must be an IP address written plainly in ASCII"
	}
	return ascii, ""
}

// hyphened tells whether a label begins or ends with '-', as it is or as it reads.
func hyphened(label string) bool {
	if strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-") {
		return true
	}
	read, err := idna.Punycode.ToUnicode(label)
	return err != nil || strings.HasPrefix(read, "-") || strings.HasSuffix(read, "-")
}

// numeric tells whether a resolver may take a last label for part of an IPv4 address.
func numeric(label string) bool {
	digits := strings.Trim(label, "0123456789") == ""
	hex, isHex := strings.CutPrefix(label, "0x")
	return digits || isHex && strings.Trim(hex, "0123456789abcdef") == ""
}

func validPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

// cut keeps an error about a huge value small.
func cut(s string) string {
	const most = 1 << 10
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "")
}
