package safetext

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// mapped folds case and width as resolvers do.
var mapped = idna.New(idna.MapForLookup(), idna.Transitional(false))

// Host shows a host name. One that is not plain ASCII, or is punycode, is shown in both forms, the
// ASCII one first, since that is what is resolved: "xn--pple-43d.com (аpple.com, mixed script)".
func Host(s string) string {
	if !international(s) {
		return Line(s, 0)
	}
	const invalid = " (not a valid name)"
	if len(s) > 1<<10 || !utf8.ValidString(s) { // punycode takes time quadratic in its length
		return Line(s, 0) + invalid
	}
	ascii, err := mapped.ToASCII(s)
	if err != nil {
		// Without mapping or validation: also a name that no resolver takes must be shown for what it is.
		if ascii, err = idna.Punycode.ToASCII(lower(s)); err != nil {
			return Line(s, 0) + invalid
		}
	}
	if !international(ascii) {
		return Line(ascii, 0) + " (written " + Line(s, 0) + ")"
	}
	uni, err := idna.Punycode.ToUnicode(ascii)
	if err != nil {
		return Line(ascii, 0) + invalid
	}
	out := Line(ascii, 0) + " (" + Line(uni, 0)
	if mixedScript(uni) {
		out += ", mixed script"
	}
	return out + ")"
}

// lower folds ASCII only: idna knows the prefix of punycode in lower case.
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r | 0x20
		}
		return r
	}, s)
}

func international(s string) bool {
	for label := range strings.SplitSeq(s, ".") {
		if len(label) >= 4 && strings.EqualFold(label[:4], "xn--") {
			return true
		}
	}
	return strings.ContainsFunc(s, func(r rune) bool { return r >= 0x80 })
}

// together are the scripts that one language writes side by side (UTS 39, highly restrictive).
var together = [][]string{
	{"Han", "Hiragana", "Katakana", "Latin"},
	{"Han", "Bopomofo", "Latin"},
	{"Han", "Hangul", "Latin"},
}

// mixedScript tells whether one label of a name uses scripts that no language mixes.
func mixedScript(name string) bool {
	for label := range strings.SplitSeq(name, ".") {
		seen := make(map[string]bool)
		for _, r := range label {
			seen[script(r)] = true
		}
		delete(seen, "Common")
		delete(seen, "Inherited")
		if len(seen) > 1 && !fits(seen) {
			return true
		}
	}
	return false
}

func fits(seen map[string]bool) bool {
	for _, set := range together {
		n := 0
		for _, s := range set {
			if seen[s] {
				n++
			}
		}
		if n == len(seen) {
			return true
		}
	}
	return false
}

func script(r rune) string {
	if r < 0x80 {
		if 'a' <= r|0x20 && r|0x20 <= 'z' {
			return "Latin"
		}
		return "Common"
	}
	for name, table := range unicode.Scripts {
		if unicode.Is(table, r) {
			return name
		}
	}
	return "Unknown"
}
