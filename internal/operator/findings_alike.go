package operator

import (
	"slices"
	"strings"
	"sync"

	"golang.org/x/net/idna"
	"golang.org/x/net/publicsuffix"

	"github.com/bot-bottle/supervise/internal/apply"
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
	"google-analytics.com", "cloudflare-dns.com", "docker-cn.com", "gcr.io",
}

// minAlike is the shortest label that is compared: below it everything is one letter away from something.
const minAlike = 4

// owned is a domain that somebody owns: one label under a public suffix.
type owned struct{ label, suffix string }

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

// known is a host that others are compared with, and what is compared of it.
type known struct {
	name   string
	owners []owned
	looks  []look // of the owners whose label is long enough
}

// look is how an owner of a known host looks.
type look struct {
	owned
	skeleton string
	squashed string   // the label
	whole    string   // squashed too: the host's name without the suffix
	word     string   // the skeleton as one word of a label: -github-
	inside   []string // how the domain stands inside another name: github.com, github-com, githubcom
	runes    []rune   // the label
}

func knownOf(host string) *known {
	k := &known{name: host, owners: owners(host)}
	for _, o := range k.owners {
		if len(o.label) < minAlike {
			continue
		}
		domain := o.label + "." + o.suffix
		k.looks = append(k.looks, look{
			owned: o, skeleton: skeleton(o.label), squashed: squash(o.label), whole: squash(strings.TrimSuffix(host, o.suffix)),
			word: "-" + skeleton(o.label) + "-", inside: []string{domain, strings.ReplaceAll(domain, ".", "-"), strings.ReplaceAll(domain, ".", "")},
			runes: []rune(o.label),
		})
	}
	return k
}

// tables are the well-known hosts and who owns them, made when first needed.
var tables = sync.OnceValue(func() (t struct {
	known  []*known
	owners map[owned]bool // of the siblings too
}) {
	t.owners = map[owned]bool{}
	for _, h := range wellKnown {
		t.known = append(t.known, knownOf(h))
	}
	for _, h := range slices.Concat(wellKnown, siblings) {
		for _, o := range owners(h) {
			t.owners[o] = true
		}
	}
	return t
})

// maxRouted bounds how many routed hosts are remembered.
const maxRouted = 4096

// routed remembers what is compared of hosts in the bottles' tables: it depends on nothing but the name, and all
// proposals for a bottle are compared with the same ones.
var routed struct {
	mu    sync.Mutex
	hosts map[string]*known // guarded by mu; at most maxRouted
}

// routedHosts are the hosts in the tables of a plan; one that is in two of them is there twice.
func routedHosts(plan *apply.Plan) []*known {
	routed.mu.Lock()
	defer routed.mu.Unlock()
	var out []*known
	for _, t := range plan.Targets {
		for _, h := range t.Table {
			h = strings.Trim(strings.ToLower(strings.TrimPrefix(h, "*.")), ".")
			if h == "" {
				continue
			}
			k := routed.hosts[h]
			if k == nil {
				if routed.hosts == nil || len(routed.hosts) >= maxRouted {
					routed.hosts = map[string]*known{}
				}
				k = knownOf(h)
				routed.hosts[h] = k
			}
			out = append(out, k)
		}
	}
	return out
}

// checkLookAlike compares the host with those in the tables and with the well-known ones. Hosts of one owner are
// never look-alikes. A domain that is routed already is not held against the other routes again.
func checkLookAlike(s *subject) *hit {
	if s.host.addrs != nil || s.host.place() != "" {
		return nil // not a name that anybody could register
	}
	there := routedHosts(s.plan)
	var found []string
	for _, mine := range owners(s.host.name) {
		if tables().owners[mine] {
			continue
		}
		n := nameOf(s.host.name, mine)
		compare := func(k *known) {
			if n.alike(k) && !slices.Contains(found, k.name) {
				found = append(found, k.name)
			}
		}
		if !slices.ContainsFunc(there, func(k *known) bool { return slices.Contains(k.owners, mine) }) {
			for _, k := range there {
				compare(k)
			}
		}
		for _, k := range tables().known {
			compare(k)
		}
	}
	if found == nil {
		return nil
	}
	found[0] = s.host.name + " ~ " + found[0]
	return &hit{evidence: found}
}

// name is a host, and what is compared of it for one of its owners.
type name struct {
	owned
	dotted   string // .the.whole.name
	skeleton string
	words    string // -the-skeleton-
	squashed string
	runes    []rune
}

func nameOf(host string, mine owned) name {
	mine.label = decoded(mine.label)
	sk := skeleton(mine.label)
	return name{mine, "." + host, sk, "-" + sk + "-", squash(mine.label), []rune(mine.label)}
}

// alike tells whether the name may be taken for the known host.
func (n name) alike(k *known) bool {
	for _, l := range k.looks {
		if n.owned == l.owned {
			continue
		}
		switch {
		case n.skeleton == l.skeleton, // letters that look the same, or another suffix
			n.suffix == l.suffix && oneEdit(n.runes, l.runes),
			n.squashed == l.squashed,                                  // git-hub.com
			n.squashed == l.whole,                                     // api-github.com
			n.suffix == l.suffix && strings.Contains(n.words, l.word), // github-login.com
			n.contains(l): // github.com.example.net
			return true
		}
	}
	return false
}

// contains tells whether the known domain stands in front of another, set off by dots or hyphens.
func (n name) contains(l look) bool {
	if !strings.Contains(n.dotted, l.label) {
		return false
	}
	return slices.ContainsFunc(l.inside, func(domain string) bool {
		for rest := n.dotted; ; {
			i := strings.Index(rest, domain)
			if i < 0 {
				return false
			}
			end := i + len(domain)
			if end < len(rest) && strings.IndexByte(".-", rest[end]) >= 0 && i > 0 && strings.IndexByte(".-", rest[i-1]) >= 0 {
				return true
			}
			rest = rest[i+1:]
		}
	})
}

var separators = strings.NewReplacer("-", "", ".", "")

func squash(s string) string { return separators.Replace(s) }

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
