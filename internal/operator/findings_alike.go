package operator

import (
	"slices"
	"strings"

	"golang.org/x/net/idna"
	"golang.org/x/net/publicsuffix"
)

// wellKnown are hosts that agents often need, and that a deceiver would imitate.
var wellKnown = []string{
	"github.com", "api.github.com", "raw.githubusercontent.com", "ghcr.io", "gitlab.com", "bitbucket.org",
	"pypi.org", "files.pythonhosted.org", "registry.npmjs.org", "npmjs.com", "registry.yarnpkg.com", "nodejs.org",
	"proxy.golang.org", "sum.golang.org", "crates.io", "rubygems.org", "packagist.org", "repo.maven.apache.org",
	"deb.debian.org", "archive.ubuntu.com", "dl-cdn.alpinelinux.org", "registry-1.docker.io", "docker.com", "quay.io",
	"huggingface.co", "api.anthropic.com", "api.openai.com", "generativelanguage.googleapis.com", "google.com",
	"microsoft.com", "amazonaws.com", "cloudflare.com", "sourceforge.net", "stackoverflow.com",
}

// siblings are real domains that would otherwise be taken for imitations.
var siblings = []string{
	"github.io", "github.dev", "gitlab.io", "google.dev", "pypy.org", "debian.net", "cloudflare.net", "amazonaws.com.cn", "microsoft.net",
}

// minAlike is the shortest label that is compared: below it everything is one letter away from something.
const minAlike = 4

// owned is a domain that somebody owns: one label under a public suffix.
type owned struct{ label, suffix string }

func (o owned) domain() string { return o.label + "." + o.suffix }

// owners returns who owns a host: the customer of a hosting company, if it is under such a suffix, and the
// owner of the registered name.
func owners(host string) []owned {
	var out []owned
	for suffix, icann := publicsuffix.PublicSuffix(host); ; {
		if rest, ok := strings.CutSuffix(host, "."+suffix); ok {
			out = append(out, owned{rest[strings.LastIndexByte(rest, '.')+1:], suffix})
		}
		_, up, ok := strings.Cut(suffix, ".")
		if icann || !ok {
			return out
		}
		suffix, icann = publicsuffix.PublicSuffix(up)
	}
}

// checkLookAlike compares the host with those in the tables and with the well-known ones. Hosts of one owner are
// never look-alikes. A domain that is routed already is not held against the other routes again.
func checkLookAlike(s *subject) *hit {
	if s.host.addrs != nil || s.host.place() != "" {
		return nil // not a name that anybody could register
	}
	var routed []string
	for _, t := range s.plan.Targets {
		for _, h := range t.Table {
			if h = strings.Trim(strings.ToLower(strings.TrimPrefix(h, "*.")), "."); h != "" && !slices.Contains(routed, h) {
				routed = append(routed, h)
			}
		}
	}
	var found []string
	for _, mine := range owners(s.host.name) {
		if ownsOneOf(mine, wellKnown) || ownsOneOf(mine, siblings) {
			continue
		}
		known := wellKnown
		if !ownsOneOf(mine, routed) {
			known = slices.Concat(routed, wellKnown)
		}
		for _, k := range known {
			if alike(s.host.name, mine, k) && !slices.Contains(found, k) {
				found = append(found, k)
			}
		}
	}
	if found == nil {
		return nil
	}
	found[0] = s.host.name + " ~ " + found[0]
	return &hit{evidence: found}
}

func ownsOneOf(o owned, hosts []string) bool {
	return slices.ContainsFunc(hosts, func(h string) bool { return slices.Contains(owners(h), o) })
}

// alike tells whether the host name, which mine owns, may be taken for the known host.
func alike(name string, mine owned, known string) bool {
	mine.label = decoded(mine.label)
	for _, theirs := range owners(known) {
		if len(theirs.label) < minAlike || mine == theirs {
			continue
		}
		dashed := strings.ReplaceAll(theirs.domain(), ".", "-")
		switch {
		case skeleton(mine.label) == skeleton(theirs.label), // letters that look the same, or another suffix
			mine.suffix == theirs.suffix && oneEdit([]rune(mine.label), []rune(theirs.label)),
			squash(mine.label) == squash(theirs.label),                             // git-hub.com
			squash(mine.label) == squash(strings.TrimSuffix(known, theirs.suffix)), // api-github.com
			strings.Contains("."+name, "."+theirs.domain()+"."),                    // github.com.example.net
			strings.Contains("."+name, "."+dashed):                                 // github-com.example.net
			return true
		}
	}
	return false
}

func squash(s string) string { return strings.NewReplacer("-", "", ".", "").Replace(s) }

func decoded(label string) string {
	if u, err := idna.Punycode.ToUnicode(label); err == nil {
		return u
	}
	return label
}

// skeleton maps letters that look alike onto one of them.
func skeleton(label string) string { return lookalikes.Replace(label) }

var lookalikes = strings.NewReplacer(
	"rn", "m", "vv", "w", "cl", "d",
	"0", "o", "1", "l", "i", "l", "5", "s", "2", "z", "8", "b", "9", "g", "q", "g", "3", "e", "4", "a",
	// Cyrillic
	"а", "a", "в", "b", "с", "c", "ԁ", "d", "е", "e", "һ", "h", "і", "l", "ї", "l", "ј", "j", "к", "k", "ӏ", "l", "м", "m",
	"н", "h", "о", "o", "р", "p", "ԛ", "g", "г", "r", "ѕ", "s", "т", "t", "у", "y", "ү", "y", "ѵ", "v", "ԝ", "w", "х", "x",
	// Greek and Armenian
	"α", "a", "ε", "e", "η", "n", "ι", "l", "κ", "k", "ν", "v", "ο", "o", "ρ", "p", "τ", "t", "υ", "u", "χ", "x", "γ", "y",
	"օ", "o", "ո", "n", "ս", "u", "հ", "h", "ց", "g",
	// Latin with marks, and letters that only look Latin
	"ı", "l", "ł", "l", "í", "l", "ì", "l", "î", "l", "ï", "l", "ɩ", "l", "á", "a", "à", "a", "â", "a", "ä", "a", "ã", "a", "å", "a",
	"ạ", "a", "é", "e", "è", "e", "ê", "e", "ë", "e", "ẹ", "e", "ó", "o", "ò", "o", "ô", "o", "ö", "o", "õ", "o", "ø", "o", "ọ", "o",
	"ú", "u", "ù", "u", "û", "u", "ü", "u", "ý", "y", "ÿ", "y", "ñ", "n", "ç", "c", "ɡ", "g", "ğ", "g", "ģ", "g", "ḥ", "h", "ħ", "h",
	"ţ", "t", "ț", "t", "ṭ", "t", "ş", "s", "ș", "s", "ś", "s", "š", "s", "ṣ", "s", "ḅ", "b", "ƅ", "b", "ṁ", "m", "ṃ", "m", "ž", "z", "ź", "z",
)

// oneEdit tells whether one inserted, dropped, changed or swapped letter makes a into b.
func oneEdit(a, b []rune) bool {
	if len(a) > len(b) {
		a, b = b, a
	}
	i := 0
	for i < len(a) && a[i] == b[i] {
		i++
	}
	switch len(b) - len(a) {
	case 0:
		if i == len(a) {
			return false
		}
		return slices.Equal(a[i+1:], b[i+1:]) ||
			i+1 < len(a) && a[i] == b[i+1] && a[i+1] == b[i] && slices.Equal(a[i+2:], b[i+2:])
	case 1:
		return slices.Equal(a[i:], b[i+1:])
	}
	return false
}
