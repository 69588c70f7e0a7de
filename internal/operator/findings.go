package operator

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/bot-bottle/supervise/internal/apply"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/safetext"
)

// FindingDoc documents one code. Codes are stable: scripts name them in --accept.
type FindingDoc struct {
	Code  string   `json:"code"`
	Level Level    `json:"level"`
	Tools []string `json:"tools"` // whose payload can raise it
	Text  string   `json:"text"`  // what it means, in one sentence
}

// FindingCodes lists every finding, dangers first, in the order in which they are shown.
func FindingCodes() []FindingDoc {
	docs := make([]FindingDoc, len(rules))
	for i, r := range rules {
		docs[i] = r.FindingDoc
		docs[i].Tools = slices.Clone(r.Tools)
	}
	return docs
}

// rule is one finding: check is a pure function of the payload and the plan.
type rule struct {
	FindingDoc
	check func(*subject) *hit
}

// hit is what a rule found. Evidence is agent text; text is ours, and the rule's own if empty.
type hit struct {
	text     string
	evidence []string
	uncut    bool // all of the evidence is shown
}

var (
	hostTools  = []string{payload.Egress, payload.Pipelock}
	egressOnly = []string{payload.Egress}
	urlOnly    = []string{payload.Pipelock}
	buildOnly  = []string{payload.Capability}
	allTools   = []string{payload.Egress, payload.Pipelock, payload.Capability}
)

// rules are all findings in the order in which they are shown: dangers first, then by what they mean.
var rules = []rule{
	{FindingDoc{"widened", Danger, egressOnly, "A host that was limited to some paths becomes reachable as a whole."}, checkWidened},
	{FindingDoc{"credential", Danger, egressOnly, "The proxy will add a secret to every request to this host."}, checkCredential},
	{FindingDoc{"metadata", Danger, hostTools, "The host is a cloud metadata service, which hands out credentials of the machine."}, checkMetadata},
	{FindingDoc{"loopback", Danger, hostTools, "The host is the proxy's own machine."}, checkLoopback},
	{FindingDoc{"link-local", Danger, hostTools, "The host is a link-local address, which belongs to the proxy's own network segment."}, checkLinkLocal},
	{FindingDoc{"private", Danger, hostTools, "The host is inside a private network, or is an address that the public internet does not use."}, checkPrivate},
	{FindingDoc{"ip-literal", Danger, hostTools, "The host is an IP address, so no name tells whose it is."}, checkIPLiteral},
	{FindingDoc{"look-alike", Danger, hostTools, "The host's name is easily mistaken for that of another host."}, checkLookAlike},
	{FindingDoc{"mixed-script", Danger, hostTools, "The host's name mixes letters of several scripts that no language mixes."}, checkMixedScript},
	{FindingDoc{"punycode", Danger, hostTools, "The host's name has letters beyond ASCII, some of which look like others."}, checkPunycode},
	{FindingDoc{"not-examined", Danger, buildOnly, "The file's variables are too long, too many or too involved to be followed, so what else is found is not complete."}, checkNotExamined},
	{FindingDoc{"user-root", Danger, buildOnly, "The final image runs as root."}, checkUserRoot},
	{FindingDoc{"curl-pipe-sh", Danger, buildOnly, "The build downloads a script and runs it unseen."}, checkCurlPipe},
	{FindingDoc{"add-url", Danger, buildOnly, "The build adds content from a remote address, which this file does not show."}, checkAddURL},
	{FindingDoc{"secret-in-env", Danger, buildOnly, "A credential seems to be in ENV or ARG, where it stays readable in the image."}, checkSecretInEnv},
	{FindingDoc{"setuid", Danger, buildOnly, "A program in the image gets the right to run as another user, or with more rights than its caller."}, checkSetuid},
	{FindingDoc{"insecure-build", Danger, buildOnly, "A build step asks to run without the build's sandbox or on the host's network."}, checkInsecureBuild},
	{FindingDoc{"build-frontend", Danger, buildOnly, "The file is built by a program that it names itself, not by the builder's own."}, checkFrontend},
	{FindingDoc{"too-long", Danger, buildOnly, "The Dockerfile is longer than 32 KiB or 1,000 lines, so no other finding about it was looked for: read all of it."}, checkTooLong},

	{FindingDoc{"covered", Note, allTools, "Everything that is asked for is in place already, so nothing changes."}, checkCovered},
	{FindingDoc{"new-host", Note, hostTools, "The bottle cannot reach this host yet."}, checkNewHost},
	{FindingDoc{"whole-host", Note, egressOnly, "The new host is opened with every path."}, checkWholeHost},
	{FindingDoc{"wider-paths", Note, egressOnly, "A known host gets more paths."}, checkWiderPaths},
	{FindingDoc{"auth-ignored", Note, egressOnly, "The host has an entry already, so the credential that is asked for is not used."}, checkAuthIgnored},
	{FindingDoc{"public-suffix", Note, hostTools, "Names under this suffix belong to many different owners."}, checkPublicSuffix},
	{FindingDoc{"port", Note, urlOnly, "The refused URL has a port of its own, and pipelock opens the host on every port."}, checkPort},
	{FindingDoc{"wildcard-covered", Note, hostTools, "Pipelock lets this host through because of a wildcard entry."}, checkWildcard},
	{FindingDoc{"pipelock-not-strict", Note, hostTools, "Pipelock is not in strict mode, so its list is not what holds the bottle back."}, checkNotStrict},
	{FindingDoc{"base-image", Note, buildOnly, "The image is built from other images than the current one."}, checkBaseImage},
	{FindingDoc{"base-unpinned", Note, buildOnly, "An image that the build starts from is not pinned by a digest, so another one may be used each time."}, checkUnpinned},
	{FindingDoc{"dropped-lines", Note, buildOnly, "Instructions of the current Dockerfile are gone or changed."}, checkDropped},
	{FindingDoc{"user-unset", Note, buildOnly, "No USER is set, so the image runs as the base image's user, which is often root."}, checkUserUnset},
	{FindingDoc{"build-secret", Note, buildOnly, "A build step uses a secret or the SSH agent of whoever builds."}, checkBuildSecret},
}

// findingsFor returns what approving p adds, dangers first, each code once. A target that the plan
// lacks (not managed, or unreadable) counts as if the host were not there: the operator would add it by hand.
//
// In a Dockerfile only what the current one does not have counts, so that a danger which was accepted once
// is not asked about for ever; see [subject.added].
func findingsFor(p payload.Payload, plan *apply.Plan) []Finding {
	s := newSubject(p, plan)
	var out []Finding
	for _, r := range rules {
		if !slices.Contains(r.Tools, p.Tool) || s.covered() && !aboutCovered[r.Code] || s.tooLong && !aboutTooLong[r.Code] {
			continue
		}
		h := r.check(s)
		if h == nil {
			continue
		}
		text := r.Text
		if h.text != "" {
			text = h.text
		}
		out = append(out, Finding{Code: r.Code, Level: r.Level, Text: text, Evidence: evidence(h)})
	}
	return out
}

// aboutCovered are the codes that say something about a change that changes nothing.
var aboutCovered = map[string]bool{"covered": true, "auth-ignored": true, "wildcard-covered": true}

// aboutTooLong are the codes that are told without looking into a Dockerfile.
var aboutTooLong = map[string]bool{"too-long": true, "covered": true}

// Limits of what is shown as evidence: it points at the diff, it does not replace it.
const (
	maxEvidence     = 4
	maxEvidenceText = 160
)

// evidence joins what shows a finding into one line.
func evidence(h *hit) safetext.Untrusted {
	items := h.evidence
	if h.uncut {
		return safetext.Untrusted(strings.Join(items, "; "))
	}
	more := len(items) - maxEvidence
	items = slices.Clone(items[:min(len(items), maxEvidence)])
	for i, it := range items {
		if r := []rune(it); len(r) > maxEvidenceText {
			items[i] = string(r[:maxEvidenceText-1]) + "…"
		}
	}
	s := strings.Join(items, "; ")
	if more > 0 {
		s += fmt.Sprintf("; and %d more", more)
	}
	return safetext.Untrusted(s)
}

// subject is what the rules look at: the payload and the plan, and what is read out of them once.
type subject struct {
	p    payload.Payload
	plan *apply.Plan
	host hostFacts   // of p.Host; zero for a Dockerfile
	now  *dockerfile // the current Dockerfile; nil if there is none
	want *dockerfile // the proposed one; nil for a host
	old  map[string]bool

	tooLong bool // the proposed Dockerfile is too long to read
}

func newSubject(p payload.Payload, plan *apply.Plan) *subject {
	if plan == nil {
		plan = &apply.Plan{}
	}
	s := &subject{p: p, plan: plan}
	if p.Tool != payload.Capability {
		s.host = factsOf(p.Host)
		return s
	}
	if s.tooLong = isTooLong(p.Dockerfile); s.tooLong {
		return s
	}
	s.want = readDockerfile(p.Dockerfile)
	if t := s.target(apply.KindDockerfile); t != nil && t.Exists {
		s.now = readDockerfile(string(t.Before))
		s.old = make(map[string]bool)
		for _, in := range s.now.instructions {
			s.old[in.key()] = true
		}
	}
	return s
}

// target returns the plan's target of a kind, or nil.
func (s *subject) target(k apply.Kind) *apply.Target {
	for i := range s.plan.Targets {
		if s.plan.Targets[i].Kind == k {
			return &s.plan.Targets[i]
		}
	}
	return nil
}

// primary is the target the tool is about.
func (s *subject) primary() *apply.Target {
	switch s.p.Tool {
	case payload.Egress:
		return s.target(apply.KindEgress)
	case payload.Pipelock:
		return s.target(apply.KindPipelock)
	}
	return s.target(apply.KindDockerfile)
}

// covered tells whether approving changes nothing at all.
func (s *subject) covered() bool {
	if s.primary() == nil || s.plan.Blocked != nil || len(s.plan.Unmanaged) > 0 {
		return false
	}
	for _, t := range s.plan.Targets {
		same := t.Kind == apply.KindDockerfile && t.Exists && !t.Changed()
		if !t.Covered && !same {
			return false
		}
	}
	return true
}

// newRoute tells whether the host gets an entry in the egress table that it does not have.
func (s *subject) newRoute() bool {
	t := s.target(apply.KindEgress)
	return t == nil || !t.Covered && t.EntryBefore == ""
}

func checkCovered(s *subject) *hit {
	if !s.covered() {
		return nil
	}
	return &hit{}
}

// maxShort is how many prefixes of up to two characters still pick something out of a host.
const maxShort = 16

// shortPaths returns the paths that open about as much as the whole host: those of one character after the slash,
// and those of two if there are many. A prefix that ends with a slash is a directory, and not short.
func shortPaths(paths []string) []string {
	var one, short []string
	for _, p := range paths {
		n := utf8.RuneCountInString(strings.TrimPrefix(p, "/"))
		if n == 0 || n > 2 || n > 1 && strings.HasSuffix(p, "/") {
			continue
		}
		short = append(short, p)
		if n == 1 {
			one = append(one, p)
		}
	}
	if len(short) > maxShort {
		return short
	}
	return one
}

func checkWidened(s *subject) *hit {
	t := s.target(apply.KindEgress)
	if t == nil || t.Covered {
		return nil
	}
	if t.RouteWidened {
		return &hit{evidence: []string{s.p.Host}}
	}
	short := shortPaths(s.p.Route.PathAllowlist)
	if short == nil || t.EntryBefore == "" || s.whole() {
		return nil
	}
	return &hit{
		text:     "A host that was limited to some paths gets prefixes so short that together they open most of it.",
		evidence: []string{strings.Join(short, " ")},
		uncut:    true,
	}
}

// whole tells whether the proposal asks for every path; the proxy takes it so too.
func (s *subject) whole() bool {
	return len(s.p.Route.PathAllowlist) == 0 || slices.Contains(s.p.Route.PathAllowlist, "/")
}

func checkCredential(s *subject) *hit {
	a := s.p.Route.Auth
	if a == nil || !s.newRoute() {
		return nil
	}
	h := &hit{evidence: []string{fmt.Sprintf("%s %s to %s", a.Scheme, a.TokenRef, s.p.Host)}}
	if s.host.shared() != "" {
		h.text = "The proxy will add a secret to every request to this host, in a domain where anybody can get a name."
	}
	return h
}

func checkNewHost(s *subject) *hit {
	t := s.primary()
	if t != nil && (t.Covered || t.EntryBefore != "") {
		// Routed already: it is still new where pipelock refuses it.
		if m := s.target(apply.KindPipelock); m == nil || m.Covered || m.NotStrict || m.EntryBefore != "" {
			return nil
		}
	}
	return &hit{evidence: []string{s.p.Host}}
}

func checkWholeHost(s *subject) *hit {
	if !s.newRoute() {
		return nil
	}
	if s.whole() {
		return &hit{evidence: []string{s.p.Host}}
	}
	if short := shortPaths(s.p.Route.PathAllowlist); short != nil {
		return &hit{
			text:     "The new host is opened with prefixes so short that together they open most of it.",
			evidence: []string{strings.Join(short, " ")},
			uncut:    true,
		}
	}
	return nil
}

func checkWiderPaths(s *subject) *hit {
	t := s.target(apply.KindEgress)
	if t == nil || t.Covered || t.RouteWidened || t.EntryBefore == "" {
		return nil
	}
	return &hit{evidence: s.p.Route.PathAllowlist}
}

func checkAuthIgnored(s *subject) *hit {
	t := s.target(apply.KindEgress)
	if t == nil || !t.AuthIgnored || s.p.Route.Auth == nil {
		return nil
	}
	return &hit{evidence: []string{s.p.Route.Auth.Scheme + " " + s.p.Route.Auth.TokenRef}}
}

func checkPort(s *subject) *hit {
	u, err := url.Parse(s.p.URL)
	if err != nil || u.Port() == "" || u.Port() == map[string]string{"http": "80", "https": "443"}[strings.ToLower(u.Scheme)] {
		return nil
	}
	return &hit{evidence: []string{"port " + u.Port()}}
}

func checkWildcard(s *subject) *hit {
	t := s.target(apply.KindPipelock)
	if t == nil || !t.Covered {
		return nil
	}
	if slices.ContainsFunc(t.Table, func(e string) bool { return strings.EqualFold(e, s.p.Host) }) {
		return nil
	}
	for _, e := range t.Table {
		if base, ok := strings.CutPrefix(strings.ToLower(e), "*."); ok && (s.p.Host == base || strings.HasSuffix(s.p.Host, "."+base)) {
			return &hit{evidence: []string{e}}
		}
	}
	return nil
}

func checkNotStrict(s *subject) *hit {
	t := s.target(apply.KindPipelock)
	if t == nil || !t.NotStrict {
		return nil
	}
	return &hit{}
}
