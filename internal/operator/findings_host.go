package operator

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"golang.org/x/net/idna"
	"golang.org/x/net/publicsuffix"
)

// hostFacts are what a host name says about itself.
type hostFacts struct {
	name    string       // lower case, no trailing dot, no brackets
	unicode string       // name with its punycode decoded
	addrs   []netip.Addr // the addresses that name may mean, if it is a spelling of one: some spellings are read in two ways
	inside  []netip.Addr // the addresses in a name like 10.0.0.1.nip.io
	suffix  string       // its public suffix
	icann   bool         // suffix is a registry's, not a company's
}

func factsOf(host string) hostFacts {
	f := hostFacts{name: strings.Trim(strings.ToLower(host), ".[]")}
	f.name, _, _ = strings.Cut(f.name, "%") // a zone
	f.unicode = f.name
	if f.addrs = addresses(f.name); f.addrs != nil {
		return f
	}
	if u, err := idna.Punycode.ToUnicode(f.name); err == nil {
		f.unicode = u
	}
	for _, s := range addressSuffixes {
		if rest, ok := strings.CutSuffix(f.name, s); ok {
			f.inside = embedded(rest)
		}
	}
	f.suffix, f.icann = publicsuffix.PublicSuffix(f.name)
	return f
}

// shared names the suffix under which the host is one of many owners' names; "" if there is none. A
// registry's suffix is only shared when the host is that suffix itself.
func (f hostFacts) shared() string {
	managed := f.icann || strings.Contains(f.suffix, ".")
	if f.addrs != nil || !managed || f.icann && f.name != f.suffix {
		return ""
	}
	return f.suffix
}

// all are the addresses that the host stands for without asking a resolver.
func (f hostFacts) all() []netip.Addr {
	return append(slices.Clone(f.addrs), f.inside...)
}

// addresses returns what a host may mean as an address: the plain spellings, and those that inet_aton
// and browsers take too (2130706433, 0x7f.1, 0177.0.0.1, 127.1). A leading zero is octal to some and decimal
// to others, so both readings count.
func addresses(host string) []netip.Addr {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{inner(a)}
	}
	parts := strings.Split(host, ".")
	if len(parts) > 4 {
		return nil
	}
	var out []netip.Addr
	for _, octal := range []bool{true, false} {
		if a, ok := aton(parts, octal); ok && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

func aton(parts []string, octal bool) (netip.Addr, bool) {
	var v uint64
	for i, p := range parts {
		base := 10
		if hex, ok := strings.CutPrefix(p, "0x"); ok {
			base, p = 16, hex
			if p == "" {
				p = "0"
			}
		} else if octal && len(p) > 1 && p[0] == '0' {
			base = 8
		}
		n, err := strconv.ParseUint(p, base, 32)
		if err != nil || p[0] == '+' {
			return netip.Addr{}, false
		}
		room := 1
		if i == len(parts)-1 {
			room = 5 - len(parts) // the last part fills what is left
		} else if n > 255 {
			return netip.Addr{}, false
		}
		if room < 4 && n>>(8*room) != 0 {
			return netip.Addr{}, false
		}
		v = v<<(8*room) | n
	}
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}), true
}

var (
	nat64    = netip.MustParsePrefix("64:ff9b::/96")
	sixToFor = netip.MustParsePrefix("2002::/16")
	v4Compat = netip.MustParsePrefix("::/96")
)

// inner returns the IPv4 address that an IPv6 address stands for, or a itself.
func inner(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	b := a.As16()
	switch {
	case a.Is4(), a == netip.IPv6Unspecified(), a == netip.IPv6Loopback():
		return a
	case nat64.Contains(a), v4Compat.Contains(a):
		return netip.AddrFrom4([4]byte(b[12:16]))
	case sixToFor.Contains(a):
		return netip.AddrFrom4([4]byte(b[2:6]))
	}
	return a
}

// addressSuffixes are public services whose names resolve to the address in the name.
var addressSuffixes = []string{".nip.io", ".sslip.io", ".traefik.me"}

// embedded finds the addresses in a name that such a service may go by, wherever they are in it: 10.0.0.1,
// x.10-0-0-1, 127-0-0-1.foo, 7f000001, app-7f000001.
func embedded(rest string) []netip.Addr {
	var out []netip.Addr
	add := func(s string) {
		if a, err := netip.ParseAddr(s); err == nil && !slices.Contains(out, inner(a)) {
			out = append(out, inner(a))
		}
	}
	labels := strings.Split(rest, ".")
	for i, label := range labels {
		if i+4 <= len(labels) {
			parts := slices.Clone(labels[i : i+4])
			parts[0] = parts[0][strings.LastIndexByte(parts[0], '-')+1:]
			add(strings.Join(parts, "."))
		}
		parts := strings.Split(label, "-")
		for j := range len(parts) - 3 {
			add(strings.Join(parts[j:j+4], "."))
		}
		add(strings.ReplaceAll(label, "-", ":"))
		for _, part := range parts {
			if n, err := strconv.ParseUint(part, 16, 32); err == nil && len(part) == 8 {
				add(netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}).String())
			}
		}
	}
	return out
}

// Names and addresses by what they are. An address is of the first kind that has it.
var (
	metadataNames = []string{
		"metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal",
		"metadata.tencentyun.com", "metadata.platformequinix.com",
	}
	metadataAddrs = []netip.Addr{
		netip.MustParseAddr("169.254.169.254"), // most clouds
		netip.MustParseAddr("169.254.170.2"),   // container credentials
		netip.MustParseAddr("169.254.170.23"),  // pod credentials
		netip.MustParseAddr("169.254.0.23"),
		netip.MustParseAddr("100.100.100.200"),
		netip.MustParseAddr("168.63.129.16"),
		netip.MustParseAddr("192.0.0.192"),
		netip.MustParseAddr("fd00:ec2::254"),
		netip.MustParseAddr("fd00:ec2::23"),
		netip.MustParseAddr("fd20:ce::254"),
	}
	loopbackNames = []string{
		"localhost", "localhost.localdomain", "localhost4", "localhost6", "ip6-localhost", "ip6-loopback",
		"localtest.me", "lvh.me", "host.docker.internal", "gateway.docker.internal", "host.containers.internal",
	}
	privateSuffixes = []string{
		"internal", "local", "lan", "home", "corp", "intranet", "private", "localdomain", "home.arpa", "svc", "cluster.local",
	}
	privateNets = []netip.Prefix{
		netip.MustParsePrefix("10.0.0.0/8"),
		netip.MustParsePrefix("172.16.0.0/12"),
		netip.MustParsePrefix("192.168.0.0/16"),
		netip.MustParsePrefix("100.64.0.0/10"), // carrier-grade NAT
		netip.MustParsePrefix("fc00::/7"),
		netip.MustParsePrefix("fec0::/10"),
		netip.MustParsePrefix("0.0.0.0/8"),
		netip.MustParsePrefix("192.0.0.0/24"),
		netip.MustParsePrefix("192.0.2.0/24"),
		netip.MustParsePrefix("198.18.0.0/15"),
		netip.MustParsePrefix("198.51.100.0/24"),
		netip.MustParsePrefix("203.0.113.0/24"),
		netip.MustParsePrefix("224.0.0.0/3"),
		netip.MustParsePrefix("2001:db8::/32"),
		netip.MustParsePrefix("ff00::/8"),
	}
)

// place is the special kind of network the host is in; "" for none that is known.
func (f hostFacts) place() string {
	for _, a := range f.all() {
		if p := placeOf(a); p != "" {
			return p
		}
	}
	switch {
	case f.addrs != nil:
		return ""
	case slices.Contains(metadataNames, f.name):
		return "metadata"
	case under(f.name, loopbackNames):
		return "loopback"
	case under(f.name, privateSuffixes), !strings.Contains(f.name, "."):
		return "private"
	}
	return ""
}

func placeOf(a netip.Addr) string {
	switch {
	case slices.Contains(metadataAddrs, a):
		return "metadata"
	case a.IsLoopback(), a.IsUnspecified(): // 0.0.0.0 connects to the machine itself
		return "loopback"
	case a.IsLinkLocalUnicast(), a.IsLinkLocalMulticast():
		return "link-local"
	case slices.ContainsFunc(privateNets, func(n netip.Prefix) bool { return n.Contains(a) }):
		return "private"
	}
	return ""
}

// under tells whether name is one of names or below one.
func under(name string, names []string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return name == n || strings.HasSuffix(name, "."+n) })
}

// meaning is the host, and the addresses it means where that is not how it is written.
func (f hostFacts) meaning() []string {
	names := []string{f.name}
	for _, a := range f.all() {
		if a.String() != f.name {
			names = append(names, a.String())
		}
	}
	return []string{strings.Join(names, " = ")}
}

func checkPlace(s *subject, place string) *hit {
	if s.host.place() != place {
		return nil
	}
	return &hit{evidence: s.host.meaning()}
}

func checkMetadata(s *subject) *hit  { return checkPlace(s, "metadata") }
func checkLoopback(s *subject) *hit  { return checkPlace(s, "loopback") }
func checkLinkLocal(s *subject) *hit { return checkPlace(s, "link-local") }
func checkPrivate(s *subject) *hit   { return checkPlace(s, "private") }

func checkIPLiteral(s *subject) *hit {
	if s.host.addrs == nil {
		return nil
	}
	h := &hit{evidence: s.host.meaning()}
	if h.evidence[0] != s.host.name {
		h.text = "The host is an IP address in an unusual spelling, so no name tells whose it is."
	}
	return h
}

func checkPublicSuffix(s *subject) *hit {
	suffix := s.host.shared()
	if suffix == "" {
		return nil
	}
	h := &hit{evidence: []string{suffix}}
	switch {
	case s.host.name == suffix && s.host.icann:
		h.text = "The host is a suffix under which a registry sells names, not somebody's own name."
	case s.host.name == suffix:
		h.text = "The host is a suffix under which a company hands out names to its customers."
	default:
		h.text = "The host is a customer's name under a company's suffix, where anybody can get one."
	}
	return h
}

func checkPunycode(s *subject) *hit {
	for label := range strings.SplitSeq(s.host.name, ".") {
		if strings.HasPrefix(label, "xn--") {
			return &hit{evidence: []string{s.host.name + " = " + s.host.unicode}}
		}
	}
	return nil
}

func checkMixedScript(s *subject) *hit {
	for label := range strings.SplitSeq(s.host.unicode, ".") {
		if mixed := scriptsOf(label); len(mixed) > 1 && !together(mixed) {
			return &hit{evidence: []string{label + " = " + strings.Join(mixed, " + ")}}
		}
	}
	return nil
}

// scriptsOf lists the scripts of a label's letters, sorted.
func scriptsOf(label string) []string {
	var out []string
	for _, r := range label {
		if name := scriptOf(r); name != "" && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

func scriptOf(r rune) string {
	if r < 0x80 {
		if 'a' <= r && r <= 'z' {
			return "Latin"
		}
		return ""
	}
	for name, t := range unicode.Scripts {
		if name != "Common" && name != "Inherited" && unicode.Is(t, r) {
			return name
		}
	}
	return ""
}

// together tells whether some language writes these scripts side by side.
func together(scripts []string) bool {
	for _, set := range [][]string{
		{"Han", "Hiragana", "Katakana", "Latin"},
		{"Bopomofo", "Han", "Latin"},
		{"Hangul", "Han", "Latin"},
	} {
		if !slices.ContainsFunc(scripts, func(s string) bool { return !slices.Contains(set, s) }) {
			return true
		}
	}
	return false
}
