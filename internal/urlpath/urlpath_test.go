package urlpath

import (
	"net/url"
	"strings"
	"testing"
)

func FuzzClean(f *testing.F) {
	for _, s := range []string{"", "/", "/a/../b", "/%2e%2E/x", "/a//b/./c/..", "/%C3%BC", "/a%20b", "/..;/x", "/%252e", "/\\", "/a%2fb", "/ .", "/%20."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		c, err := Clean(raw)
		if err != nil {
			return
		}
		again, err := Clean(c.Escaped)
		if err != nil || again != c {
			t.Errorf("Clean(%q) = %q; once more = %q, %v; want it unchanged", raw, c, again, err)
		}
		if plain, err := url.PathUnescape(c.Escaped); err != nil || plain != c.Plain {
			t.Errorf("Clean(%q): %q decodes to %q, %v; want %q", raw, c.Escaped, plain, err, c.Plain)
		}
		if strings.ContainsAny(c.Plain, "\\;%\x00\r\n") || c.Plain[0] != '/' || strings.Contains(c.Plain, "//") {
			t.Errorf("Clean(%q).Plain = %q", raw, c.Plain)
		}
		for s := range strings.SplitSeq(c.Plain[1:], "/") {
			if s != "" && strings.Trim(s, ". ") == "" {
				t.Errorf("Clean(%q).Plain = %q has the segment %q", raw, c.Plain, s)
			}
		}
		// What is forwarded is what net/http would write.
		u := url.URL{Scheme: "https", Host: "h", Path: c.Plain, RawPath: c.Escaped}
		if got := u.RequestURI(); got != c.Escaped {
			t.Errorf("Clean(%q): sent as %q, want %q", raw, got, c.Escaped)
		}
		if r, err := url.ParseRequestURI(c.Escaped); err != nil || r.EscapedPath() != c.Escaped {
			t.Errorf("Clean(%q) = %q, which reads as %v, %v", raw, c.Escaped, r, err)
		}
	})
}
