package routes

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/bot-bottle/supervise/internal/safetext"
)

func TestSet(t *testing.T) {
	a := &Route{Host: "a.com"}
	ap := &Route{Host: "a.com", PathAllowlist: []string{"/v1/", "/v2/"}, Auth: &Auth{"Bearer", "A_TOKEN"}}
	paths := func(p ...string) *Route { return &Route{Host: "a.com", PathAllowlist: p} }
	for _, tt := range []struct {
		name     string
		in       string
		host     string
		want     *Route
		out      string
		undoable bool // removing what was added gives the same bytes
	}{
		{"append to a block list", "routes:\n  - host: x.com\n", "a.com", ap,
			"routes:\n  - host: x.com\n  - host: a.com\n    path_allowlist: [\"/v1/\", \"/v2/\"]\n    auth: {scheme: Bearer, token_ref: A_TOKEN}\n", true},
		{"dashes under the key", "routes:\n- host: x.com\n", "a.com", a, "routes:\n- host: x.com\n- host: a.com\n", true},
		{"odd indentation", "routes:\n     -    host: x.com\n          path_allowlist:\n                - /q\n", "a.com", a,
			"routes:\n     -    host: x.com\n          path_allowlist:\n                - /q\n     - host: a.com\n", true},
		{"CRLF", "routes:\r\n  - host: x.com\r\n", "a.com", paths("/v"), "routes:\r\n  - host: x.com\r\n  - host: a.com\r\n    path_allowlist: [\"/v\"]\r\n", true},
		{"no last line break", "routes:\n  - host: x.com", "a.com", paths("/v"), "routes:\n  - host: x.com\n  - host: a.com\n    path_allowlist: [\"/v\"]", true},
		{"no last line break, CRLF", "routes:\r\n  - host: x.com", "a.com", a, "routes:\r\n  - host: x.com\r\n  - host: a.com", true},
		{"comments and blank lines after stay after", "routes:\n  - host: x.com # why\n    # about x\n\n# end\n", "a.com", a,
			"routes:\n  - host: x.com # why\n    # about x\n  - host: a.com\n\n# end\n", true},
		{"as the one before is written", "routes:\n  - {host: x.com}\n", "a.com", ap,
			"routes:\n  - {host: x.com}\n  - {host: a.com, path_allowlist: [\"/v1/\", \"/v2/\"], auth: {scheme: Bearer, token_ref: A_TOKEN}}\n", true},
		{"empty file", "", "a.com", a, "routes:\n  - host: a.com\n", false},
		{"only a comment", "# routes of web\n", "a.com", a, "# routes of web\nroutes:\n  - host: a.com\n", false},
		{"only a comment, no line break", "# routes of web", "a.com", a, "# routes of web\nroutes:\n  - host: a.com", false},
		{"only a byte order mark", "\xef\xbb\xbf", "a.com", a, "\xef\xbb\xbfroutes:\n  - host: a.com\n", false},
		{"document start", "---\n", "a.com", a, "---\nroutes:\n  - host: a.com\n", false},
		{"null", "routes:\n", "a.com", a, "routes:\n  - host: a.com\n", false},
		{"null and no line break", "routes:", "a.com", a, "routes:\n  - host: a.com", false},
		{"null written", "routes: ~ # none\n", "a.com", a, "routes: # none\n  - host: a.com\n", false},
		{"empty list", "routes: []\n", "a.com", a, "routes:\n  - host: a.com\n", true},
		{"empty list and comments", "routes: [] # none yet\n  # - host: example.com\n# end\n", "a.com", a,
			"routes: # none yet\n  # - host: example.com\n  - host: a.com\n# end\n", true},
		{"empty list over two lines", "routes: [\n]\n", "a.com", a, "routes: [{host: a.com}\n]\n", true},
		{"byte order mark", "\xef\xbb\xbfroutes: []", "a.com", a, "\xef\xbb\xbfroutes:\n  - host: a.com", true},
		{"indented root", "  routes:\n    - host: x.com\n", "a.com", a, "  routes:\n    - host: x.com\n    - host: a.com\n", true},
		{"flow", "routes: [{host: x.com}]\n", "a.com", ap, "routes: [{host: x.com}, {host: a.com, path_allowlist: [\"/v1/\", \"/v2/\"], auth: {scheme: Bearer, token_ref: A_TOKEN}}]\n", true},
		{"flow with a last comma", "routes: [{host: x.com}, ]\n", "a.com", a, "routes: [{host: x.com}, {host: a.com}, ]\n", true},
		{"flow over lines", "routes: [\n    {host: x.com} # x\n  ]\n", "a.com", a, "routes: [\n    {host: x.com}, # x\n    {host: a.com}\n  ]\n", true},
		{"flow over lines with a last comma", "routes: [\r\n  {host: x.com}, # x\r\n]\r\n", "a.com", a, "routes: [\r\n  {host: x.com}, # x\r\n  {host: a.com},\r\n]\r\n", true},
		{"flow root", `{"routes": [{"host": "x.com"}]}`, "a.com", a, `{"routes": [{"host": "x.com"}, {host: a.com}]}`, true},
		{"flow root, empty list", "{routes: []}", "a.com", a, "{routes: [{host: a.com}]}", true},
		{"what YAML would read otherwise is quoted", "routes: []\n", "1.2.3.4", &Route{Host: "1.2.3.4", PathAllowlist: []string{"/\"é\\\u202e😀"}},
			"routes:\n  - host: \"1.2.3.4\"\n    path_allowlist: [\"/\\\"é\\\\\\u202e😀\"]\n", true},
		{"a long list goes over lines", "routes: []\n", "a.com", paths("/"+strings.Repeat("x", 60), "/"+strings.Repeat("y", 60)),
			"routes:\n  - host: a.com\n    path_allowlist:\n      - \"/" + strings.Repeat("x", 60) + "\"\n      - \"/" + strings.Repeat("y", 60) + "\"\n", true},

		{"add a path, block", "routes:\n- host: a.com\n  path_allowlist:\n    - /a # first\n    # about a\n\n  auth: {scheme: token, token_ref: T_T}\n", "a.com",
			&Route{Host: "a.com", PathAllowlist: []string{"/a", "/b"}, Auth: &Auth{"token", "T_T"}},
			"routes:\n- host: a.com\n  path_allowlist:\n    - /a # first\n    - \"/b\"\n    # about a\n\n  auth: {scheme: token, token_ref: T_T}\n", true},
		{"add two paths, flow", "routes:\n- host: A.com\n  path_allowlist: [ /a ] # c\n", "a.com", paths("/a", "/b", "/c"),
			"routes:\n- host: A.com\n  path_allowlist: [ /a, \"/b\", \"/c\" ] # c\n", true},
		{"add a path, all flow", "routes: [{path_allowlist: ['/a'], host: a.com}]", "a.com", paths("/a", "/b"), "routes: [{path_allowlist: ['/a', \"/b\"], host: a.com}]", true},
		{"widen, block", "routes:\n- host: a.com\n  # only these\n  path_allowlist:\n    - /a # first\n    # more\n    - /b\n  # auth later\n- host: b.com\n", "a.com", a,
			"routes:\n- host: a.com\n  # only these\n  # auth later\n- host: b.com\n", false},
		{"widen, the list is first", "routes:\n- path_allowlist: [/a] # x\n  host: a.com\n", "a.com", a, "routes:\n- host: a.com\n", false},
		{"widen, flow", "routes:\n- {host: a.com, path_allowlist: [/a], auth: {scheme: token, token_ref: T_T}}\n", "a.com", &Route{Host: "a.com", Auth: &Auth{"token", "T_T"}},
			"routes:\n- {host: a.com, auth: {scheme: token, token_ref: T_T}}\n", false},
		{"widen at the end", "routes:\n- host: a.com\n  path_allowlist: [/a]", "a.com", a, "routes:\n- host: a.com", false},
		{"narrow again", "routes:\n- host: a.com # c\n- host: b.com\n", "a.com", paths("/a"), "routes:\n- host: a.com # c\n  path_allowlist: [\"/a\"]\n- host: b.com\n", true},
		{"narrow again, flow", "routes:\n- {host: a.com}\n", "a.com", paths("/a"), "routes:\n- {host: a.com, path_allowlist: [\"/a\"]}\n", true},
		{"narrow an empty list", "routes:\n- host: a.com\n  path_allowlist: []\n", "a.com", paths("/a"), "routes:\n- host: a.com\n  path_allowlist: [\"/a\"]\n", false},
		{"shrink", "routes:\n- host: a.com\n  path_allowlist:\n  - /a\n  - /b\n  - /c\n", "a.com", paths("/a", "/c"), "routes:\n- host: a.com\n  path_allowlist:\n  - /a\n  - /c\n", false},
		{"all other paths", "routes:\n- host: a.com\n  path_allowlist: [/a, /b]\n", "a.com", paths("/c"), "routes:\n- host: a.com\n  path_allowlist: [\"/c\"]\n", false},
		{"another auth", "routes:\n- host: a.com\n  auth: {scheme: token, token_ref: T}\n  path_allowlist: [/a]\n", "a.com",
			&Route{Host: "a.com", PathAllowlist: []string{"/a"}, Auth: &Auth{"Bearer", "NO"}},
			"routes:\n- host: a.com\n  auth: {scheme: Bearer, token_ref: \"NO\"}\n  path_allowlist: [/a]\n", false},

		{"remove from the middle", "routes:\n  - host: b.com\n  # about a\n  - host: a.com\n    # inside\n    auth: null # c\n    # below a\n  - host: c.com\n", "A.com", nil,
			"routes:\n  - host: b.com\n  # about a\n    # below a\n  - host: c.com\n", false},
		{"remove a dash of its own line", "routes:\n -\n  # c\n  host: a.com\n - host: b.com", "a.com", nil, "routes:\n - host: b.com", false},
		{"remove the only one", "routes:\n  - host: a.com\n# end\n", "a.com", nil, "routes: []\n# end\n", false},
		{"remove the first, flow", "routes: [{host: a.com}, {host: b.com}]", "a.com", nil, "routes: [{host: b.com}]", false},
		{"remove a line, flow", "routes: [\n  {host: a.com}, # a\n  {host: b.com}\n]", "a.com", nil, "routes: [\n  {host: b.com}\n]", false},
		{"remove the last line, flow", "routes: [\n  {host: b.com},\n  {host: a.com} # a\n]", "a.com", nil, "routes: [\n  {host: b.com}\n]", false},

		{"nothing to do", "routes: [{host: A.com}] # c", "a.com", a, "routes: [{host: A.com}] # c", false},
		{"nothing to remove", "routes: [{host: b.com}]", "a.com", nil, "routes: [{host: b.com}]", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Set([]byte(tt.in), tt.host, tt.want)
			if err != nil {
				t.Fatalf("Set: %v", err)
			}
			if diff := cmp.Diff(tt.out, string(got)); diff != "" {
				t.Fatalf("Set mismatch (-want +got):\n%s", diff)
			}
			if !tt.undoable {
				return
			}
			before, err := Parse([]byte(tt.in))
			if err != nil {
				t.Fatal(err)
			}
			back, err := Set(got, tt.host, before.Lookup(tt.host))
			if err != nil {
				t.Fatalf("Set back: %v", err)
			}
			if diff := cmp.Diff(tt.in, string(back)); diff != "" {
				t.Errorf("Set back mismatch (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSetRefuses(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		want     *Route
		reason   string
		byHand   string
	}{
		{"does not parse", "routes: [\n", &Route{Host: "a.com"}, "line 2: did not find expected node content", "  - host: a.com\n"},
		{"flow root without a list", "{}", &Route{Host: "a.com", PathAllowlist: []string{"/a"}}, "line 1: the file is in flow style ({…}) and has no list routes",
			"  - host: a.com\n    path_allowlist: [\"/a\"]\n"},
		{"document end", "---\n...\n", &Route{Host: "a.com"}, "the edited file would not parse: line 3: did not find expected <document start>", "  - host: a.com\n"},
		{"complex key", "? routes\n: - host: a.com\n", nil, "line 2: cannot find the dash of this list element on a line of its own", "remove the entry of host a.com\n"},
		{"block scalar", "routes:\n- host: >-\n    a.com\n", nil, "line 2: a block scalar (| or >)", "remove the entry of host a.com\n"},
		{"comment between keys of a dash line", "routes:\n- path_allowlist: [/a]\n  # c\n  host: a.com\n", &Route{Host: "a.com"}, "line 2: a comment stands between path_allowlist and the next key", "  - host: a.com\n"},
		{"another host", "", &Route{Host: "b.com"}, "the entry of host a.com cannot become one of host b.com", "  - host: b.com\n"},
		{"bad path", "", &Route{Host: "a.com", PathAllowlist: []string{"v1"}}, `path "v1" must start with '/'`, "  - host: a.com\n    path_allowlist: [\"v1\"]\n"},
		{"invalid UTF-8", "", &Route{Host: "a.com", PathAllowlist: []string{"/\xff"}}, `path "/\xff" must not contain control characters or invalid UTF-8`,
			"  - host: a.com\n    path_allowlist: [\"/\\ufffd\"]\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, err := Set([]byte(tt.in), "a.com", tt.want)
			e, ok := errors.AsType[*EditError](err)
			if !ok {
				t.Fatalf("Set = %q, %v; want an EditError", out, err)
			}
			if diff := cmp.Diff(&EditError{tt.reason, tt.byHand}, e); diff != "" {
				t.Errorf("mismatch (-want +got):\n%s", diff)
			}
		})
	}
}

// file draws a route table and one of the many ways to write it.
func file(t *rapid.T) (string, Table) {
	eol := rapid.SampledFrom([]string{"\n", "\n", "\r\n"}).Draw(t, "eol")
	pick := func(s ...string) string { return rapid.SampledFrom(s).Draw(t, "pick") }
	noise := func(b *strings.Builder) {
		b.WriteString(pick("", "", "", eol, "# note: {[- "+eol, "      # deep"+eol, "  # é 'x"+eol))
	}
	tail := func() string { return pick("", "", " # c", "  ", " # é: [") + eol }
	scalar := func(s string) string { return pick(s, `"`+s+`"`, "'"+s+"'") }
	var b strings.Builder
	b.WriteString(pick("", "", "\xef\xbb\xbf"))
	noise(&b)
	b.WriteString(pick("", "", "---"+eol))
	var table Table
	hosts := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a.com", "b.com", "c.d.org", "E.com", "x-y.io"}), 0, 4, rapid.ID[string]).Draw(t, "hosts")
	for _, h := range hosts {
		r := Route{Host: h}
		r.PathAllowlist = rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"/a/", "/b", "/é/", "/c/d", "/q#x"}), 0, 3, rapid.ID[string]).Draw(t, "paths")
		if len(r.PathAllowlist) == 0 {
			r.PathAllowlist = nil
		}
		if rapid.Bool().Draw(t, "auth") {
			r.Auth = &Auth{"Bearer", "TOKEN"}
		}
		table.Routes = append(table.Routes, r)
	}
	quoted := func(ps []string) string {
		var out []string
		for _, p := range ps {
			out = append(out, scalar(p))
		}
		return strings.Join(out, pick(", ", ",", " , ", ", "+eol+"          "))
	}
	flow := func(r Route) string {
		parts := []string{"host: " + scalar(r.Host)}
		if r.PathAllowlist != nil {
			parts = append(parts, "path_allowlist: ["+pick("", " ")+quoted(r.PathAllowlist)+pick("", " ", ",")+"]")
		}
		if r.Auth != nil {
			parts = append(parts, "auth: {scheme: Bearer, token_ref: TOKEN}")
		}
		return "{" + strings.Join(rapid.Permutation(parts).Draw(t, "order"), ", ") + pick("", " ", ", ") + "}"
	}
	if len(hosts) == 0 {
		b.WriteString(pick("", "routes:"+tail(), "routes: []"+tail(), "routes: null"+tail()))
	} else if pick("block", "block", "flow") == "flow" {
		b.WriteString("routes: [" + pick("", eol+"   ", " "))
		for i, r := range table.Routes {
			if i > 0 {
				b.WriteString(pick(", ", ","+eol+"   ", ","+eol+"   "))
			}
			b.WriteString(flow(r))
		}
		b.WriteString(pick("", ",", " ", eol+" ", " # last"+eol+" ") + "]" + tail())
	} else {
		in := pick("", "  ", " ", "      ")
		b.WriteString("routes:" + tail())
		for _, r := range table.Routes {
			noise(&b)
			if pick("block", "block", "flow") == "flow" {
				b.WriteString(in + "- " + flow(r) + tail())
				continue
			}
			gap := pick(" ", "   ")
			key := strings.Repeat(" ", len(in)+1+len(gap))
			parts := []string{"host: " + scalar(r.Host) + tail()}
			if r.PathAllowlist != nil {
				s := "path_allowlist: [" + quoted(r.PathAllowlist) + "]" + tail()
				if pick("block", "flow") == "block" {
					s = "path_allowlist:" + tail()
					deep := key + pick("", "  ")
					for _, p := range r.PathAllowlist {
						s += deep + "- " + scalar(p) + tail() + pick("", deep+"  # why"+eol)
					}
				}
				parts = append(parts, s)
			}
			if r.Auth != nil {
				parts = append(parts, pick("auth: {scheme: Bearer, token_ref: TOKEN}"+tail(), "auth:"+eol+key+"  scheme: Bearer"+eol+key+"  token_ref: TOKEN"+tail()))
			}
			b.WriteString(in + "-" + gap + strings.Join(rapid.Permutation(parts).Draw(t, "order"), key))
		}
	}
	noise(&b)
	s := b.String()
	if rapid.Bool().Draw(t, "unterminated") {
		s = strings.TrimSuffix(s, eol)
	}
	return s, table
}

// checkEdit holds what every edit of a merge must show.
func checkEdit(data []byte, table Table, r Route) error {
	goal, change := Merge(table, r)
	out, err := Set(data, r.Host, change.After)
	if err != nil {
		return err
	}
	got, err := Parse(out)
	if err != nil {
		return fmt.Errorf("result does not parse: %w\n%q", err, out)
	}
	if diff := cmp.Diff(goal.Routes, got.Routes, cmp.Comparer(func(a, b Route) bool { return Equal(&a, &b) })); diff != "" {
		return fmt.Errorf("result is not the merge (-want +got):\n%s\n%q", diff, out)
	}
	if change.Covered && !bytes.Equal(out, data) {
		return fmt.Errorf("nothing to change, yet changed:\n%q", out)
	}
	if change.After.PathAllowlist == nil && change.Before != nil || len(table.Routes) == 0 {
		return nil // lines were removed, or what said that there is nothing
	}
	if !subsequence(data, out) {
		return fmt.Errorf("a byte of the original is gone:\n%q\n%q", data, out)
	}
	back, err := Set(out, r.Host, change.Before)
	if err != nil {
		return fmt.Errorf("undo: %w\n%q", err, out)
	}
	if !bytes.Equal(back, data) {
		return fmt.Errorf("undo gives\n%q, want\n%q, from\n%q", back, data, out)
	}
	return nil
}

func subsequence(a, b []byte) bool {
	for _, c := range b {
		if len(a) > 0 && a[0] == c {
			a = a[1:]
		}
	}
	return len(a) == 0
}

// Whatever way a table is written, setting the merge of a route says what the merge says, keeps every byte, and
// setting back gives the same bytes.
func TestSetProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, table := file(t)
		if got, err := Parse([]byte(s)); err != nil {
			t.Fatalf("Parse(%q): %v", s, err)
		} else if diff := cmp.Diff(table, got); diff != "" {
			t.Fatalf("Parse(%q) (-want +got):\n%s", s, diff)
		}
		r := Route{Host: rapid.SampledFrom([]string{"A.com", "b.com", "e.com.", "new.com", "8.8.8.8"}).Draw(t, "host")}
		r.PathAllowlist = rapid.SliceOfN(rapid.SampledFrom([]string{"/a/", "/new/", "/b/c", "/[x]: #", "/ü"}), 0, 3).Draw(t, "new")
		if rapid.Bool().Draw(t, "newauth") {
			r.Auth = &Auth{"token", "Y"}
		}
		if err := checkEdit([]byte(s), table, r); err != nil {
			if e, ok := errors.AsType[*EditError](err); ok && strings.Contains(e.Reason, "a comment stands between") {
				return
			}
			t.Fatalf("%q + %v: %v", s, r, err)
		}
		for _, gone := range table.Routes { // and every entry can be removed
			out, err := Set([]byte(s), gone.Host, nil)
			if err != nil {
				t.Fatalf("%q - %s: %v", s, gone.Host, err)
			}
			if !subsequence(bytes.ReplaceAll(out, []byte(" []"), nil), []byte(s)) {
				t.Fatalf("%q - %s: added something: %q", s, gone.Host, out)
			}
		}
	})
}

// TestQuoteIsShownAsItIs: what can be shown as it is is written as it is, so that a diff shows the very text of the file.
func TestQuoteIsShownAsItIs(t *testing.T) {
	paths := []string{"/ü/", "/漢字", "/e\u0301\u0301\u0301\u0301", "/किन्तु", "/😀\u0301", "/א", "/%20/a\u00a0"}
	for r := rune(0x80); r <= unicode.MaxRune; r++ {
		if s := "/" + string(r) + "e" + string(r); utf8.ValidRune(r) && r != utf8.RuneError && safetext.Block(s) == s {
			if got, want := quote(s), `"`+s+`"`; got != want {
				t.Errorf("quote(%q) = %s, want %s", s, got, want)
			}
			if r%97 == 0 && checkPath(s) == nil {
				paths = append(paths, s)
			}
		}
	}
	for _, s := range []string{"/\u202e", "/a\u200b", "/\u0085\u2028", "/\u2800\ufe0f", "/\u200b\u0301", "/e" + strings.Repeat("\u0301", 5), "/␠"} {
		if got := quote(s); strings.Contains(got, s) || strings.ContainsFunc(got, func(r rune) bool { return r >= 0x80 && r != 0x301 }) {
			t.Errorf("quote(%q) = %q shows what is not seen as it is", s, got)
		}
		if checkPath(s) == nil {
			paths = append(paths, s)
		}
	}
	for chunk := range slices.Chunk(paths, 100) {
		if err := checkEdit([]byte("routes: []\n"), Table{}, Route{Host: "a.com", PathAllowlist: chunk}); err != nil {
			t.Error(err)
		}
	}
}

func FuzzSet(f *testing.F) {
	for _, s := range []string{
		"routes:\n  - host: a.com\n    path_allowlist: [\"/a\"]\n    auth: {scheme: token, token_ref: X}\n",
		"routes: [{host: a.com, path_allowlist: [/x, ],}, \n{host: b.com}]", "{routes: []}", "routes: # c\r\n-  host: 'a.com'\r\n   # d\r\n   path_allowlist:\r\n   - /a",
		"? routes\n: - host: a.com\n", "routes:\n-\n  host: >-\n    a.com\n", "\xef\xbb\xbf---\nroutes: ~\n...\n", "routes:\n- path_allowlist: [/a]\n  host: a.com\n",
	} {
		f.Add([]byte(s), "a.com", "/b", true)
		f.Add([]byte(s), "new.com", "", false)
	}
	f.Fuzz(func(t *testing.T, data []byte, host, path string, auth bool) {
		orig := slices.Clone(data)
		r := Route{Host: host}
		if path != "" {
			r.PathAllowlist = []string{path}
		}
		if auth {
			r.Auth = &Auth{"Bearer", "T"}
		}
		table, err := Parse(data)
		if err != nil || r.check() != nil {
			if _, err := Set(data, host, &r); err == nil {
				t.Errorf("Set of a bad file or route succeeded")
			}
			return
		}
		if err := checkEdit(data, table, r); err != nil {
			if _, ok := errors.AsType[*EditError](err); !ok || strings.HasPrefix(err.Error(), "undo") {
				t.Error(err)
			}
		}
		if !bytes.Equal(orig, data) {
			t.Error("Set changed its argument")
		}
	})
}
