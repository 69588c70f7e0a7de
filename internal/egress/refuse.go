package egress

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/bot-bottle/supervise/internal/safetext"
	"github.com/bot-bottle/supervise/internal/urlpath"
)

// Kind says what was refused. It is the value of the header X-Supervise-Refused.
type Kind string

const (
	KindHost    Kind = "host"    // no route, or CONNECT, SNI and Host header name different hosts
	KindPath    Kind = "path"    // not under an allowed prefix, or ambiguous
	KindPort    Kind = "port"    // not one of the allowed ports
	KindAddress Kind = "address" // resolves to an address that is never dialled
	KindCA      Kind = "ca"      // needs TLS inspection, and there is no CA
	KindAuth    Kind = "auth"    // a credential would go out over plain http
	KindToken   Kind = "token"   // the credential is missing on our side (502)
	KindRequest Kind = "request" // malformed for a proxy (400)
)

// Header is on every refusal, and on no answer of an origin.
const Header = "X-Supervise-Refused"

// refusal is an answer of ours instead of an origin's.
type refusal struct {
	kind Kind
	why  string      // a clause
	mend string      // sentences; empty if ask is set
	ask  *suggestion // what egress-block would be called with
}

// suggestion is the arguments of egress-block, in their order.
type suggestion struct {
	Host          string   `json:"host"`
	PathAllowlist []string `json:"path_allowlist,omitempty"`
	Justification string   `json:"justification"`
}

// suggest proposes the first segment of the path as a prefix: narrow, and wide enough for the next request. It is
// encoded where egress-block takes it in no other way.
func suggest(host, path string) *suggestion {
	s := &suggestion{Host: host, Justification: "WHY YOU NEED THIS"}
	clean, err := urlpath.Clean(path)
	if err != nil || len(clean.Plain) > 512 {
		return s
	}
	prefix := firstSegment(clean.Plain)
	if strings.ContainsFunc(prefix, func(r rune) bool {
		return r == '?' || r == '#' || r == utf8.RuneError || r == '\uFEFF' || unicode.IsSpace(r) || unicode.IsControl(r)
	}) {
		prefix = firstSegment(clean.Escaped)
	}
	prefix, _, _ = strings.Cut(prefix, "*") // not a wildcard, and taken for one
	if last := prefix[strings.LastIndexByte(prefix, '/')+1:]; strings.Trim(strings.ReplaceAll(last, "%20", " "), ". ") == "" {
		prefix = prefix[:len(prefix)-len(last)] // no segment of its own
	}
	if prefix != "/" && len(prefix) <= 1024 {
		s.PathAllowlist = []string{prefix}
	}
	return s
}

func firstSegment(path string) string {
	if first, _, ok := strings.Cut(path[1:], "/"); ok {
		return "/" + first + "/"
	}
	return path
}

func (ref *refusal) status() int {
	switch ref.kind {
	case KindToken:
		return http.StatusBadGateway
	case KindRequest:
		return http.StatusBadRequest
	}
	return http.StatusForbidden
}

// text is written for a model that is stuck: what, why, and what to do. what is the request.
func (ref *refusal) text(what string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "egress refused: %s\nreason: %s\n\n", what, ref.why)
	if ref.ask == nil {
		fmt.Fprintf(&b, "%s\n", ref.mend)
		return b.String()
	}
	var args bytes.Buffer
	enc := json.NewEncoder(&args)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	enc.Encode(ref.ask) // cannot fail: strings only
	fmt.Fprintf(&b, "To ask for it, call the tool egress-block of the MCP server \"supervise\" with these arguments:\n\n%s\n", args.String())
	if len(ref.ask.PathAllowlist) > 0 {
		b.WriteString("path_allowlist holds path prefixes: change them to what you need, or leave them out for the whole host.\n")
	} else {
		b.WriteString("This asks for the whole host.\n")
	}
	b.WriteString("The call waits until a person has decided. Once it is approved, send this request again.\n" +
		"The tool list-egress-routes shows what is allowed now.\n")
	return b.String()
}

// refuse answers a request that goes no further.
func (p *Proxy) refuse(w http.ResponseWriter, r *http.Request, scheme string, to target, ref *refusal) {
	what := r.Method + " " + to.String()
	if r.Method != http.MethodConnect {
		what = r.Method + " " + scheme + "://" + to.authority(scheme) + safetext.Line(rawPath(r), 200)
	}
	p.log.Info("refused", "kind", ref.kind, "host", to.host, "port", to.port, "scheme", scheme)
	p.answer(w, r, ref, what)
}

// badRequest refuses what names no target.
func (p *Proxy) badRequest(w http.ResponseWriter, r *http.Request, why, mend string) {
	p.log.Info("refused", "kind", KindRequest)
	p.answer(w, r, &refusal{kind: KindRequest, why: why, mend: mend}, r.Method)
}

// A refusal reaches also whoever sends all of a large body before he reads: what comes is read for a while. net/http reads so
// much by itself.
const (
	readByServer = 256 << 10
	readOn       = 64 << 20
)

func (p *Proxy) answer(w http.ResponseWriter, r *http.Request, ref *refusal, what string) {
	h := w.Header()
	rc := http.NewResponseController(w)
	more := (r.ContentLength < 0 || r.ContentLength > readByServer) && r.Header.Get("Expect") == "" && rc.EnableFullDuplex() == nil
	if more {
		h.Set("Connection", "close")
	}
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set(Header, string(ref.kind))
	text := ref.text(what)
	h.Set("Content-Length", strconv.Itoa(len(text))) // the answer ends before we return
	w.WriteHeader(ref.status())
	io.WriteString(w, text)
	if more {
		rc.Flush()
		rc.SetReadDeadline(time.Now().Add(p.opts.Timings.Header))
		io.CopyN(io.Discard, r.Body, readOn)
	}
}

func writeJSON(w http.ResponseWriter, v any) {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		http.Error(w, "egress: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Write(append(data, '\n'))
}
