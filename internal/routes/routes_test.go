package routes

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestParse(t *testing.T) {
	want := Table{Routes: []Route{
		{Host: "API.github.com", PathAllowlist: []string{"/repos/", "/user"}, Auth: &Auth{"Bearer", "GH_TOKEN"}},
		{Host: "pypi.org"},
	}}
	for _, tt := range []struct{ name, in string }{
		{"block", "routes:\n  - host: API.github.com\n    path_allowlist:\n      - /repos/\n      - '/user'\n    auth:\n      scheme: Bearer\n      token_ref: GH_TOKEN\n  - host: pypi.org\n"},
		{"flow", `{routes: [{host: API.github.com, path_allowlist: ["/repos/", /user], auth: {scheme: Bearer, token_ref: GH_TOKEN}}, {host: pypi.org, auth: null}]}`},
		{"crlf, bom, comments", "\xef\xbb\xbf# ours\r\nroutes:\r\n- host: API.github.com # c\r\n  path_allowlist: [/repos/, /user]\r\n\r\n  auth: {scheme: Bearer, token_ref: GH_TOKEN}\r\n-   host: pypi.org\r\n    path_allowlist: []"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse([]byte(tt.in))
			if err != nil {
				t.Fatalf("Parse: %v", err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("Parse mismatch (-want +got):\n%s", diff)
			}
		})
	}
	for _, in := range []string{"", "\n", "# nothing yet\n", "routes:", "routes: []\n", "routes: null\n", "---\n", "{}"} {
		if got, err := Parse([]byte(in)); err != nil || len(got.Routes) != 0 {
			t.Errorf("Parse(%q) = %v, %v; want an empty table", in, got, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"two documents", "routes: []\n---\nroutes: []\n", "line 2: a second document; there must be one"},
		{"duplicate key", "routes:\n- host: a.com\n  host: b.com\n", `line 3: key "host" is there twice`},
		{"duplicate host", "routes:\n- host: a.com\n- host: b.com\n- host: A.com.\n", "line 4: host a.com has an entry already, on line 2"},
		{"anchor", "routes:\n- &x\n  host: a.com\n", "line 2: an anchor (&x); write the value out"},
		{"alias", "routes:\n- host: a.com\n  path_allowlist: &x [/a]\n- host: b.com\n  path_allowlist: *x\n", "line 3: an anchor (&x); write the value out"},
		{"merge key", "routes:\n- host: a.com\n  <<: {auth: null}\n", "line 3: a merge key (<<); write the keys out"},
		{"tag", "routes: !!seq []\n", "line 1: a tag (!!seq); leave it out"},
		{"not UTF-8", "routes:\n- host: a\xff.com\n", "line 2: not UTF-8"},
		{"UTF-16", "\xff\xfer\x00", "line 1: not UTF-8"},
		{"bare CR hides an entry in a comment", "routes:\n# x\r- host: a.com\n", "line 2: a line break that is neither LF nor CRLF (U+000D)"},
		{"line separator", "routes:\n# x\u2028- host: a.com\n", "line 2: a line break that is neither LF nor CRLF (U+2028)"},
		{"unknown key", "routes:\n- host: a.com\n  paths: [/a]\n", `line 3: unknown key "paths" in a route; known are host, path_allowlist, auth`},
		{"unknown top key", "route: []\n", `line 1: unknown key "route" in the file; known are routes`},
		{"no host", "routes:\n- path_allowlist: [/a]\n", "line 2: a route must have a host"},
		{"host is a number", "routes:\n- host: 10\n", "line 2: host must be a string"},
		{"host is a URL", "routes:\n- host: https://a.com/\n", `line 2: host "https://a.com/" must be a bare host name such as api.github.com`},
		{"host with port", "routes:\n- host: a.com:443\n", `line 2: host "a.com:443" must be a bare host name such as api.github.com`},
		{"wildcard", "routes:\n- host: '*.a.com'\n", `line 2: host "*.a.com" must be a bare host name such as api.github.com`},
		{"path", "routes:\n- host: a.com\n  path_allowlist:\n  - v1\n", `line 4: path "v1" must start with '/'`},
		{"control in path", "routes:\n- host: a.com\n  path_allowlist: [\"/\\e[2J\"]\n", `line 3: path "/\x1b[2J" must not contain control characters or invalid UTF-8`},
		{"paths", "routes:\n- host: a.com\n  path_allowlist: /v1\n", "line 3: path_allowlist must be a list"},
		{"scheme", "routes:\n- host: a.com\n  auth: {scheme: Basic, token_ref: X}\n", `line 3: auth.scheme "Basic" must be Bearer or token`},
		{"token_ref", "routes:\n- host: a.com\n  auth: {scheme: token, token_ref: $X}\n", `line 3: auth.token_ref "$X" must be the name of an environment variable`},
		{"no token_ref", "routes:\n- host: a.com\n  auth: {scheme: token}\n", "line 3: auth must have a token_ref"},
		{"list at top", "- host: a.com\n", "line 1: the file must be a mapping"},
		{"syntax", "routes: [\n", "line 2: did not find expected node content"},
		{"syntax, scanner", "routes:\n  - host: a: b\n", "line 2: mapping values are not allowed in this context"},
		{"syntax, on line 1", "routes: [}", "line 1: did not find expected node content"},
		{"too big", strings.Repeat("#\n", MaxFile), "the file has 524288 bytes, over the limit of 262144"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse([]byte(tt.in))
			if err == nil || err.Error() != tt.want {
				t.Errorf("Parse error = %v, want %s", err, tt.want)
			}
		})
	}
}

func TestKey(t *testing.T) {
	for in, want := range map[string]string{
		"API.GitHub.com":  "api.github.com",
		"github.com.":     "github.com",
		" github.com ":    "github.com",
		"bücher.example":  "xn--bcher-kva.example",
		"my_bucket.s3.a":  "my_bucket.s3.a",
		"127.0.0.1":       "127.0.0.1",
		"[::1]":           "::1",
		"0:0:0:0:0:0:0:1": "::1",
		"localhost":       "localhost",
		"r3---sn-ab.ü.é":  "r3---sn-ab.xn--tda.xn--9ca",
	} {
		if got := Key(in); got != want {
			t.Errorf("Key(%q) = %q, want %q", in, got, want)
		}
	}
}

// TestPlainHost: what is taken for its own Key at a glance is that for IDNA too.
func TestPlainHost(t *testing.T) {
	slow := func(h string) string {
		if ascii, err := hostProfile.ToASCII(strings.TrimSuffix(h, ".")); err == nil {
			return strings.TrimSuffix(strings.ToLower(ascii), ".")
		}
		return strings.ToLower(strings.TrimSuffix(h, "."))
	}
	plain := 0
	rapid.Check(t, func(t *rapid.T) {
		h := rapid.StringOf(rapid.RuneFrom([]rune("az09_-.Aéxn"))).Draw(t, "host")
		if !plainHost(h) {
			return
		}
		plain++
		if _, err := netip.ParseAddr(h); err == nil {
			t.Fatalf("%q is an address", h)
		}
		if got := slow(h); got != h {
			t.Fatalf("%q is plain, but its key is %q", h, got)
		}
	})
	if plain == 0 {
		t.Error("no plain host was drawn")
	}
	for _, h := range []string{"", ".", "a.", ".a", "a..b", "1.2.3.4", "xn--a", "A", "a-", "-a", "é"} {
		if plainHost(h) {
			t.Errorf("%q is not plain", h)
		}
	}
	for _, h := range []string{"a", "api.github.com", "my_bucket.s3.a", "a-b.0.c"} {
		if !plainHost(h) {
			t.Errorf("%q is plain", h)
		}
	}
}

func TestAllows(t *testing.T) {
	for _, tt := range []struct {
		paths []string
		path  string
		want  bool
	}{
		{nil, "/anything", true},
		{[]string{"/repos/"}, "/repos/a", true},
		{[]string{"/repos/"}, "/repos", false},
		{[]string{"/repos/"}, "/user", false},
		{[]string{"/a", "/b"}, "/bc", true},
	} {
		if got := (Route{PathAllowlist: tt.paths}).Allows(tt.path); got != tt.want {
			t.Errorf("%q allows %q: got %v, want %v", tt.paths, tt.path, got, tt.want)
		}
	}
}

func TestMerge(t *testing.T) {
	gh := &Auth{"Bearer", "GH_TOKEN"}
	other := &Auth{"token", "OTHER"}
	have := Table{Routes: []Route{
		{Host: "Scoped.com", PathAllowlist: []string{"/a/", "/b"}, Auth: gh},
		{Host: "whole.com"},
		{Host: "root.com", PathAllowlist: []string{"/x", "/"}},
	}}
	for _, tt := range []struct {
		name  string
		r     Route
		want  Change
		after string // the touched host
	}{
		{"new host", Route{Host: "New.com", PathAllowlist: []string{"/v1", "/v1", "/v2"}, Auth: gh},
			Change{After: &Route{Host: "new.com", PathAllowlist: []string{"/v1", "/v2"}, Auth: gh}}, "new.com"},
		{"paths united", Route{Host: "scoped.com", PathAllowlist: []string{"/c", "/b", "/a/deep"}},
			Change{Before: &have.Routes[0], After: &Route{Host: "Scoped.com", PathAllowlist: []string{"/a/", "/b", "/c"}, Auth: gh}}, "scoped.com"},
		{"covered by a prefix", Route{Host: "scoped.com.", PathAllowlist: []string{"/a/deep"}},
			Change{Before: &have.Routes[0], After: &have.Routes[0], Covered: true}, "scoped.com"},
		{"a path that a proxy would rewrite is not covered by a prefix", Route{Host: "scoped.com", PathAllowlist: []string{"/a/%2e"}},
			Change{Before: &have.Routes[0], After: &Route{Host: "Scoped.com", PathAllowlist: []string{"/a/", "/b", "/a/%2e"}, Auth: gh}}, "scoped.com"},
		{"no paths for a scoped host", Route{Host: "scoped.com"},
			Change{Before: &have.Routes[0], After: &Route{Host: "Scoped.com", Auth: gh}, Widened: true}, "scoped.com"},
		{"the root path for a scoped host", Route{Host: "scoped.com", PathAllowlist: []string{"/"}},
			Change{Before: &have.Routes[0], After: &Route{Host: "Scoped.com", PathAllowlist: []string{"/a/", "/b", "/"}, Auth: gh}, Widened: true}, "scoped.com"},
		{"paths for a whole host", Route{Host: "whole.com", PathAllowlist: []string{"/a"}},
			Change{Before: &have.Routes[1], After: &have.Routes[1], Covered: true}, "whole.com"},
		{"no paths for a host with the root path", Route{Host: "root.com"},
			Change{Before: &have.Routes[2], After: &have.Routes[2], Covered: true}, "root.com"},
		{"auth for a known host", Route{Host: "whole.com", Auth: other},
			Change{Before: &have.Routes[1], After: &have.Routes[1], Covered: true, AuthIgnored: true}, "whole.com"},
		{"the same auth again", Route{Host: "scoped.com", PathAllowlist: []string{"/b"}, Auth: gh},
			Change{Before: &have.Routes[0], After: &have.Routes[0], Covered: true}, "scoped.com"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := Canonical(&have.Routes[0]) + Canonical(&have.Routes[1])
			got, change := Merge(have, tt.r)
			if diff := cmp.Diff(tt.want, change); diff != "" {
				t.Errorf("change mismatch (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.want.After, got.Lookup(tt.after)); diff != "" {
				t.Errorf("entry mismatch (-want +got):\n%s", diff)
			}
			if got := Canonical(&have.Routes[0]) + Canonical(&have.Routes[1]); got != before {
				t.Errorf("Merge changed its argument: %s", got)
			}
		})
	}
}

func TestCanonical(t *testing.T) {
	r := &Route{Host: "a.com", PathAllowlist: []string{"/<&>", "/é"}, Auth: &Auth{"token", "T"}}
	want := "{\n  \"host\": \"a.com\",\n  \"path_allowlist\": [\n    \"/<&>\",\n    \"/é\"\n  ],\n  \"auth\": {\n    \"scheme\": \"token\",\n    \"token_ref\": \"T\"\n  }\n}\n"
	got := Canonical(r)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Canonical mismatch (-want +got):\n%s", diff)
	}
	back, err := ParseCanonical(got)
	if err != nil {
		t.Fatalf("ParseCanonical: %v", err)
	}
	if diff := cmp.Diff(r, back); diff != "" {
		t.Errorf("ParseCanonical mismatch (-want +got):\n%s", diff)
	}
	if got := Canonical(nil); got != "" {
		t.Errorf("Canonical(nil) = %q, want nothing", got)
	}
	if r, err := ParseCanonical(""); r != nil || err != nil {
		t.Errorf("ParseCanonical of nothing = %v, %v; want nil, nil", r, err)
	}
	for _, bad := range []string{"{", `{"host":"https://x"}`, `{"hots":"x"}`} {
		if r, err := ParseCanonical(bad); err == nil {
			t.Errorf("ParseCanonical(%q) = %v, want an error", bad, r)
		}
	}
}
