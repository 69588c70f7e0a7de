package payload

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"
)

func TestEncode(t *testing.T) {
	tests := []struct {
		name string
		in   Route
		want string
		host string
	}{
		{
			"everything",
			Route{"api.github.com", []string{"/repos/"}, &Auth{"Bearer", "GH_TOKEN"}},
			"{\n  \"host\": \"api.github.com\",\n  \"path_allowlist\": [\n    \"/repos/\"\n  ],\n  \"auth\": {\n    \"scheme\": \"Bearer\",\n    \"token_ref\": \"GH_TOKEN\"\n  }\n}\n",
			"api.github.com",
		},
		{"host alone, trimmed, case kept", Route{Host: " API.github.com.\n"}, "{\n  \"host\": \"API.github.com.\"\n}\n", "api.github.com"},
		{"empty list left out", Route{Host: "a.example", PathAllowlist: []string{}}, "{\n  \"host\": \"a.example\"\n}\n", "a.example"},
		{"no HTML escaping, UTF-8", Route{Host: "bücher.example", PathAllowlist: []string{"/<&>/é"}},
			"{\n  \"host\": \"bücher.example\",\n  \"path_allowlist\": [\n    \"/<&>/é\"\n  ]\n}\n", "xn--bcher-kva.example"},
		{"paths keep order and repeats", Route{Host: "a.example", PathAllowlist: []string{"/b", "/a", "/b"}},
			"{\n  \"host\": \"a.example\",\n  \"path_allowlist\": [\n    \"/b\",\n    \"/a\",\n    \"/b\"\n  ]\n}\n", "a.example"},
		{"IPv4", Route{Host: "127.0.0.1"}, "{\n  \"host\": \"127.0.0.1\"\n}\n", "127.0.0.1"},
		{"IPv6", Route{Host: "FD00::1"}, "{\n  \"host\": \"FD00::1\"\n}\n", "fd00::1"},
		{"single label", Route{Host: "localhost"}, "{\n  \"host\": \"localhost\"\n}\n", "localhost"},
		{"hyphens in third place", Route{Host: "r3---sn-abc.googlevideo.com"}, "{\n  \"host\": \"r3---sn-abc.googlevideo.com\"\n}\n", "r3---sn-abc.googlevideo.com"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := NewEgress(tt.in)
			if err != nil {
				t.Fatalf("NewEgress: %v", err)
			}
			if diff := cmp.Diff(tt.want, p.Encode()); diff != "" {
				t.Errorf("Encode mismatch (-want +got):\n%s", diff)
			}
			if p.Host != tt.host {
				t.Errorf("Host = %q, want %q", p.Host, tt.host)
			}
			again, err := Parse(Egress, p.Encode())
			if err != nil || !reflect.DeepEqual(again, p) {
				t.Errorf("Parse(Encode()) = %+v, %v, want %+v", again, err, p)
			}
		})
	}
}

func TestNewDoesNotKeepOrChangeItsInput(t *testing.T) {
	in := Route{Host: " a.example ", PathAllowlist: []string{"/a"}, Auth: &Auth{"Bearer", " T "}}
	p, err := NewEgress(in)
	if err != nil {
		t.Fatal(err)
	}
	in.PathAllowlist[0], in.Auth.Scheme = "/changed", "changed"
	want := &Route{"a.example", []string{"/a"}, &Auth{"Bearer", "T"}}
	if diff := cmp.Diff(want, p.Route); diff != "" {
		t.Errorf("route mismatch (-want +got):\n%s", diff)
	}
	if in.Auth.TokenRef != " T " {
		t.Errorf("the input's token_ref became %q", in.Auth.TokenRef)
	}
}

func TestRefusals(t *testing.T) {
	host := func(s string) func() error {
		return func() error { _, err := NewEgress(Route{Host: s}); return err }
	}
	path := func(p ...string) func() error {
		return func() error { _, err := NewEgress(Route{Host: "a.example", PathAllowlist: p}); return err }
	}
	ambiguous := func(why string) string {
		return "must be a path that the proxy lets through, and this one " + why +
			": end the prefix before it; if the service cannot do without it, leave path_allowlist out for the whole host"
	}
	auth := func(scheme, ref string) func() error {
		return func() error {
			_, err := NewEgress(Route{Host: "a.example", Auth: &Auth{scheme, ref}})
			return err
		}
	}
	url := func(s string) func() error { return func() error { _, err := NewPipelock(s); return err } }
	file := func(s string) func() error { return func() error { _, err := NewCapability(s); return err } }
	why := func(s string) func() error { return func() error { return CheckJustification(Egress, s) } }
	const bare = "must be a bare host name, such as api.github.com"
	tests := []struct {
		do   func() error
		want string
	}{
		{host(""), "egress-block: host is required: the bare host name that was refused, such as api.github.com"},
		{host(" \t "), "egress-block: host is required: the bare host name that was refused, such as api.github.com"},
		{host("https://a.example/x"), `egress-block: host "https://a.example/x" ` + bare + ", not a URL"},
		{host("a.example/x"), `egress-block: host "a.example/x" ` + bare + ", without a path: paths go into path_allowlist"},
		{host("a.example:443"), `egress-block: host "a.example:443" ` + bare + ", without a port"},
		{host("[::1]"), `egress-block: host "[::1]" must be an IPv6 address without brackets`},
		{host("[::1]:443"), `egress-block: host "[::1]:443" ` + bare + ", without a port"},
		{host("fe80::1%eth0"), `egress-block: host "fe80::1%eth0" must be an IP address without a zone`},
		{host("u:p@a.example"), `egress-block: host "u:p@a.example" ` + bare + ", without user or password"},
		{host("*.example"), `egress-block: host "*.example" ` + bare + ": wildcards are not supported, propose each host on its own"},
		{host("a .example"), `egress-block: host "a .example" ` + bare + ": it contains whitespace"},
		{host("a\u00a0.example"), `egress-block: host "a\u00a0.example" ` + bare + ": it contains whitespace"},
		{host("a\n.example"), `egress-block: host "a\n.example" must not contain control characters`},
		{host("a\x1b[2J.example"), `egress-block: host "a\x1b[2J.example" must not contain control characters`},
		{host("a\u009b.example"), `egress-block: host "a\u009b.example" must not contain control characters`},
		{host("a\xff.example"), `egress-block: host "a\xff.example" must be valid UTF-8`},
		{host("a_b.example"), `egress-block: host "a_b.example" must be a valid host name (IDNA), such as api.github.com`},
		{host("xn--a"), `egress-block: host "xn--a" must be a valid host name (IDNA), such as api.github.com`},
		{host("a\u202e.example"), `egress-block: host "a\u202e.example" must be a valid host name (IDNA), such as api.github.com`},
		{host("a..example"), `egress-block: host "a..example" must be a valid host name: it has an empty label (two dots in a row, or a dot at its start)`},
		{host(".example"), `egress-block: host ".example" must be a valid host name: it has an empty label (two dots in a row, or a dot at its start)`},
		{host("-a.example"), `egress-block: host "-a.example" must be a valid host name: no part may begin or end with '-'`},
		{host("-Ė.example"), `egress-block: host "-Ė.example" must be a valid host name: no part may begin or end with '-'`},
		{host("xn----xia.example"), `egress-block: host "xn----xia.example" must be a valid host name: no part may begin or end with '-'`},
		{host(strings.Repeat("a", 64) + ".example"), `egress-block: host "` + strings.Repeat("a", 64) + `.example" must be a valid host name: no part between dots may be longer than 63 bytes`},
		{host("127.1"), `egress-block: host "127.1" must be a host name or a whole IP address: its last part is a number`},
		{host("2130706433"), `egress-block: host "2130706433" must be a host name or a whole IP address: its last part is a number`},
		{host("0x7f.0x1"), `egress-block: host "0x7f.0x1" must be a host name or a whole IP address: its last part is a number`},
		{host("127.0.0.1."), `egress-block: host "127.0.0.1." must be a host name or a whole IP address: its last part is a number`},
		{host(strings.Repeat("a.", 127) + "a"), `egress-block: host "` + (strings.Repeat("a.", 127) + "a")[:200] + `" must be at most 253 bytes, not 255`},

		{path("/ok", "v1"), `egress-block: path_allowlist[1] "v1" must start with '/'`},
		{path(""), `egress-block: path_allowlist[0] must not be empty: use '/' or leave path_allowlist out for the whole host`},
		{path("/a b"), `egress-block: path_allowlist[0] "/a b" must not contain whitespace: end the prefix before it`},
		{path("/a//b"), `egress-block: path_allowlist[0] "/a//b" must be written "/a/b", as the proxy compares it`},
		{path("/%c3%bc/"), `egress-block: path_allowlist[0] "/%c3%bc/" must be written "/%C3%BC/", as the proxy compares it`},
		{path("/ü/%61%20b"), `egress-block: path_allowlist[0] "/ü/%61%20b" must be written "/%C3%BC/a%20b", as the proxy compares it`},
		{path("/%2e%2e/"), `egress-block: path_allowlist[0] "/%2e%2e/" must not contain '.' or '..' segments`},
		{path("/a/.%2E/b"), `egress-block: path_allowlist[0] "/a/.%2E/b" must not contain '.' or '..' segments`},
		{path("/A%2fb/"), `egress-block: path_allowlist[0] "/A%2fb/" ` + ambiguous("has an encoded '/' (%2F), which some servers decode before they look at the path")},
		{path("/a%5Cb"), `egress-block: path_allowlist[0] "/a%5Cb" ` + ambiguous("has a backslash, which some servers read as '/'")},
		{path("/a;b"), `egress-block: path_allowlist[0] "/a;b" ` + ambiguous("has a ';', after which some servers ignore the rest of a segment")},
		{path("/a%00"), `egress-block: path_allowlist[0] "/a%00" ` + ambiguous("has a control character")},
		{path("/100%25"), `egress-block: path_allowlist[0] "/100%25" ` + ambiguous("has an encoded '%' (%25), which some servers decode twice")},
		{path("/a%2"), `egress-block: path_allowlist[0] "/a%2" ` + ambiguous("has a '%' without two hexadecimal digits")},
		{path("/%ff"), `egress-block: path_allowlist[0] "/%ff" ` + ambiguous("is not UTF-8 once decoded")},
		{path("/.../x"), `egress-block: path_allowlist[0] "/.../x" ` + ambiguous("has a segment of dots or spaces only, which some servers shorten")},
		{path("/a?b"), `egress-block: path_allowlist[0] "/a?b" must be a path prefix without '?' or '#': only paths are compared`},
		{path("/a/*"), `egress-block: path_allowlist[0] "/a/*" must be a plain prefix without '*': everything that starts with it is allowed`},
		{path("/a/../b"), `egress-block: path_allowlist[0] "/a/../b" must not contain '.' or '..' segments`},
		{path("/a\x00"), `egress-block: path_allowlist[0] "/a\x00" must not contain control characters`},
		{path("/a\ufffd"), `egress-block: path_allowlist[0] "/a�" must not contain U+FFFD: it stands for bytes that were no UTF-8`},
		{path("/a\ufeff"), `egress-block: path_allowlist[0] "/a\ufeff" must not contain U+FEFF: it is a byte order mark`},
		{path("/" + strings.Repeat("a", MaxPath)), `egress-block: path_allowlist[0] "/` + strings.Repeat("a", 199) + `" must be at most 1024 bytes, not 1025`},
		{path(slices.Repeat([]string{"/a"}, MaxPaths+1)...), "egress-block: path_allowlist must have at most 64 entries, not 65: propose a shorter common prefix"},

		{auth("bearer", "T"), `egress-block: auth.scheme "bearer" must be "Bearer" or "token"`},
		{auth("", "T"), `egress-block: auth.scheme must be "Bearer" or "token"`},
		{auth("Bearer", ""), `egress-block: auth.token_ref must be the name of an environment variable of the proxy, such as GH_TOKEN, never the secret itself`},
		{auth("Bearer", "a-b"), `egress-block: auth.token_ref "a-b" must be the name of an environment variable of the proxy, such as GH_TOKEN, never the secret itself`},

		{url(" "), "pipelock-block: failed_url is required: the URL that was refused, such as https://api.example.com/v1/items"},
		{url("a.example"), `pipelock-block: failed_url "a.example" must be an http or https URL, such as https://api.example.com/v1/items`},
		{url("ftp://a.example"), `pipelock-block: failed_url "ftp://a.example" must be an http or https URL, such as https://api.example.com/v1/items`},
		{url("https://u:p@a.example"), "pipelock-block: failed_url must not contain credentials: leave out what stands before the '@'"},
		{url("https:///x"), `pipelock-block: failed_url "https:///x" must have a host name`},
		{url("https://a.example:99999"), `pipelock-block: failed_url "https://a.example:99999" must have a port from 1 to 65535, or none`},
		{url("https://a_b.example/"), `pipelock-block: failed_url "https://a_b.example/" must have a valid host: its host must be a valid host name (IDNA), such as api.github.com`},
		{url("https://a.example/\x1b"), `pipelock-block: failed_url "https://a.example/\x1b" must not contain control characters`},
		{url("https://a.example/ b"), `pipelock-block: failed_url "https://a.example/ b" must be one URL without whitespace`},
		{url("https://a.example/%zz"), `pipelock-block: failed_url "https://a.example/%zz" must be a URL such as https://api.example.com/v1/items`},
		{url("https://a.example/" + strings.Repeat("a", MaxURL)), `pipelock-block: failed_url "https://a.example/` + strings.Repeat("a", 182) + `" must be at most 8192 bytes, not 8210: leave the query out`},

		{file(" \n"), "capability-block: dockerfile is required: the whole new Dockerfile, not only the changed lines"},
		{file(strings.Repeat("a", MaxDockerfile+1)), "capability-block: dockerfile must be at most 262144 bytes, not 262145"},
		{file("FROM a\n\x1b[2J"), "capability-block: dockerfile must not contain control characters: U+001B at byte 7"},
		{file("FROM \xff"), "capability-block: dockerfile must be valid UTF-8"},

		{why(""), "egress-block: justification is required: say what you were doing, what was refused, and why this is the smallest change that helps"},
		{why("\n\t "), "egress-block: justification is required: say what you were doing, what was refused, and why this is the smallest change that helps"},
		{why(strings.Repeat("a", MaxJustification+1)), "egress-block: justification must be at most 4096 bytes, not 4097"},
		{why("a\u0085b"), "egress-block: justification must not contain control characters: U+0085 at byte 1"},
	}
	for i, tt := range tests {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			err := tt.do()
			if err == nil {
				t.Fatalf("no error, want %q", tt.want)
			}
			if err.Error() != tt.want {
				t.Errorf("error\n got %q\nwant %q", err, tt.want)
			}
			if _, ok := errors.AsType[*FieldError](err); !ok {
				t.Errorf("error is a %T, want a *FieldError", err)
			}
		})
	}
}

func TestLimitsAreInclusive(t *testing.T) {
	long := strings.Repeat("a.", 126) + "a"
	for name, do := range map[string]func() error{
		"host":          func() error { _, err := NewEgress(Route{Host: long}); return err },
		"host with dot": func() error { _, err := NewEgress(Route{Host: long + "."}); return err },
		"path": func() error {
			_, err := NewEgress(Route{"a", []string{"/" + strings.Repeat("a", MaxPath-1)}, nil})
			return err
		},
		"paths": func() error {
			_, err := NewEgress(Route{"a", slices.Repeat([]string{"/a"}, MaxPaths), nil})
			return err
		},
		"url":            func() error { _, err := NewPipelock("http://a/" + strings.Repeat("a", MaxURL-9)); return err },
		"dockerfile":     func() error { _, err := NewCapability(strings.Repeat("\ta\r\n", MaxDockerfile/4)); return err },
		"justification":  func() error { return CheckJustification(Pipelock, strings.Repeat("a\n", MaxJustification/2)) },
		"url with query": func() error { _, err := NewPipelock("HTTPS://A.example:8443/x?y=z#f"); return err },
	} {
		if err := do(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	tests := []struct{ tool, file, want string }{
		{Egress, "", "egress-block: proposed file must be the JSON of one route: not a JSON object"},
		{Egress, "null", "egress-block: proposed file must be the JSON of one route: not a JSON object"},
		{Egress, "[]", "egress-block: proposed file must be the JSON of one route: not a JSON object"},
		{Egress, `{"host":"a"`, "egress-block: proposed file must be the JSON of one route: not valid JSON: line 1, column 12: unexpected end of JSON input"},
		{Egress, "{\n  \"host\": \"a\",\n}\n", "egress-block: proposed file must be the JSON of one route: not valid JSON: line 3, column 1: invalid character '}' looking for beginning of object key string"},
		{Egress, "{\n  \"host\": \"ü\" \"path_allowlist\": []\n}\n", "egress-block: proposed file must be the JSON of one route: not valid JSON: line 2, column 15: invalid character '\"' after object key:value pair"},
		{Egress, "{\"host\": \"a\", \"path_allowlist\": [\n  /v1\n]}", "egress-block: proposed file must be the JSON of one route: not valid JSON: line 2, column 3: invalid character '/' looking for beginning of value"},
		{Egress, "{\"host\": \"a\", \"auth\": {\"scheme\": Bearer}}", "egress-block: proposed file must be the JSON of one route: not valid JSON: line 1, column 34: invalid character 'B' looking for beginning of value"},
		{Egress, `{"host":"a"} {}`, "egress-block: proposed file must be the JSON of one route: something follows the object"},
		{Egress, `{"host":"a"}x`, "egress-block: proposed file must be the JSON of one route: something follows the object"},
		{Egress, `{"host":"a","host":"b"}`, `egress-block: proposed file must be the JSON of one route: key "host" appears twice`},
		{Egress, `{"host":"a","Host":"b"}`, `egress-block: proposed file must be the JSON of one route: unknown key "Host"`},
		{Egress, `{"host":"a","methods":["GET"]}`, `egress-block: proposed file must be the JSON of one route: unknown key "methods"`},
		{Egress, `{"host":1}`, "egress-block: host must be a string"},
		{Egress, `{}`, "egress-block: host is required: the bare host name that was refused, such as api.github.com"},
		{Egress, `{"host":"a","path_allowlist":"/"}`, "egress-block: path_allowlist must be a list of strings"},
		{Egress, `{"host":"a","path_allowlist":["/",null]}`, "egress-block: path_allowlist[1] must be a string"},
		{Egress, `{"host":"a","path_allowlist":["v1"]}`, `egress-block: path_allowlist[0] "v1" must start with '/'`},
		{Egress, `{"host":"a","auth":[]}`, "egress-block: auth must be an object with scheme and token_ref: not a JSON object"},
		{Egress, `{"host":"a","auth":{"scheme":"Bearer","token_ref":"A","token_ref":"B"}}`, `egress-block: auth must be an object with scheme and token_ref: key "token_ref" appears twice`},
		{Egress, `{"host":"a","auth":{"scheme":"Bearer","token_ref":"A","x":1}}`, `egress-block: auth must be an object with scheme and token_ref: unknown key "x"`},
		{Egress, `{"host":"a","auth":{"scheme":3,"token_ref":"A"}}`, "egress-block: auth.scheme must be a string"},
		{Egress, `{"host":"a","auth":{}}`, `egress-block: auth.scheme must be "Bearer" or "token"`},
		{Egress, "{\"host\":\"a\xff\"}", "egress-block: proposed file must be valid UTF-8"},
		{Egress, strings.Repeat(" ", maxRouteFile) + "{}", "egress-block: proposed file must be at most 524288 bytes, not 524290"},
		{Pipelock, "javascript:alert(1)", `pipelock-block: failed_url "javascript:alert(1)" must be an http or https URL, such as https://api.example.com/v1/items`},
		{Capability, "", "capability-block: dockerfile is required: the whole new Dockerfile, not only the changed lines"},
		{"shell", "x", `proposal: tool "shell" must be egress-block, pipelock-block or capability-block`},
		{"", "x", `proposal: tool must be egress-block, pipelock-block or capability-block`},
	}
	for _, tt := range tests {
		_, err := Parse(tt.tool, tt.file)
		if err == nil || err.Error() != tt.want {
			t.Errorf("Parse(%q, %.60q)\n got %v\nwant %s", tt.tool, tt.file, err, tt.want)
		}
	}
}

func TestParseAcceptsOtherSpellings(t *testing.T) {
	for _, file := range []string{
		`{"auth":null,"path_allowlist":null,"host":"a.example"}`,
		"\r\n{ \"host\" : \"\\u0061.example\", \"path_allowlist\": [] }\n\n",
	} {
		p, err := Parse(Egress, file)
		if want := "{\n  \"host\": \"a.example\"\n}\n"; err != nil || p.Encode() != want {
			t.Errorf("Parse(%q) = %q, %v, want %q", file, p.Encode(), err, want)
		}
	}
}

func TestCanonical(t *testing.T) {
	egress := func(host string, auth *Auth, paths ...string) Payload {
		p, err := NewEgress(Route{host, paths, auth})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	lock := func(s string) Payload {
		p, err := NewPipelock(s)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	tests := []struct {
		name string
		a, b Payload
		same bool
	}{
		{"case and trailing dot", egress("API.github.com.", nil), egress("api.github.com", nil), true},
		{"order and repeats", egress("a", nil, "/b", "/a", "/b"), egress("a", nil, "/a", "/b"), true},
		{"unicode and punycode", egress("bücher.example", nil), egress("xn--bcher-kva.example", nil), true},
		{"path case differs", egress("a", nil, "/A"), egress("a", nil, "/a"), false},
		{"whole host is not a path", egress("a", nil), egress("a", nil, "/a"), false},
		{"auth", egress("a", &Auth{"Bearer", "T"}), egress("a", nil), false},
		{"token", egress("a", &Auth{"Bearer", "T"}), egress("a", &Auth{"Bearer", "U"}), false},
		{"URL host case, port, fragment", lock("HTTPS://A.example:443#x"), lock("https://a.example/"), true},
		{"URL IPv6", lock("http://[FD00::1]:80/"), lock("http://[fd00::1]"), true},
		{"URL other port", lock("https://a.example:8443/"), lock("https://a.example/"), false},
		{"URL path", lock("https://a.example/x"), lock("https://a.example/X"), false},
		{"URL query", lock("https://a.example/?x"), lock("https://a.example/"), false},
	}
	for _, tt := range tests {
		before := tt.a.Encode()
		if got := tt.a.Canonical() == tt.b.Canonical(); got != tt.same {
			t.Errorf("%s: %q and %q same = %v, want %v", tt.name, tt.a.Canonical(), tt.b.Canonical(), got, tt.same)
		}
		if tt.a.Encode() != before {
			t.Errorf("%s: Canonical changed the payload to %q", tt.name, tt.a.Encode())
		}
	}
}

func TestSummary(t *testing.T) {
	tests := []struct{ tool, file, want string }{
		{Egress, `{"host":"api.github.com","path_allowlist":["/repos/"],"auth":{"scheme":"Bearer","token_ref":"GH_TOKEN"}}`, "allow api.github.com /repos/ with Bearer GH_TOKEN"},
		{Egress, `{"host":"a.example"}`, "allow a.example (whole host)"},
		{Egress, `{"host":"a","path_allowlist":["/1","/2","/3","/4","/5","/6"]}`, "allow a /1 /2 /3 /4 and 2 more paths"},
		{Egress, `{"host":"①.com","path_allowlist":["/1"]}`, "allow 1.com (written ①.com) /1"},
		{Egress, `{"host":"API.github.com."}`, "allow api.github.com (written API.github.com.) (whole host)"},
		{Pipelock, "https://a.example/x", "let https://a.example/x through pipelock"},
		{Pipelock, "https://[::1]:8443/x", "let https://[::1]:8443/x through pipelock"},
		{Pipelock, "https://①.com/x", "let 1.com through pipelock (written https://①.com/x)"},
		{Capability, "FROM a\nRUN b", "replace the Dockerfile (2 lines, 12 bytes)"},
	}
	for _, tt := range tests {
		p, err := Parse(tt.tool, tt.file)
		if err != nil || p.Summary() != tt.want {
			t.Errorf("Summary of %s = %q, %v, want %q", tt.file, p.Summary(), err, tt.want)
		}
	}
}

// TestPathsAsTheProxyComparesThem has what is odd and good: the proxy compares a path decoded, or encoded in one way. What
// a refusal says to write is good too.
func TestPathsAsTheProxyComparesThem(t *testing.T) {
	for _, p := range []string{"/", "/ü/", "/%C3%BC/", "/a%20b/", "/a%3Fb", "/a!b", "/a%21b", "/@scope/", "/{x}/[y]|\"<z>^`", "/.git", "/a/..b/c...", "/a:b,c=d"} {
		if mend := checkPath(p); mend != "" {
			t.Errorf("path %q %s", p, mend)
		}
	}
	for _, p := range []string{"/a//b/", "//", "/%7Ea", "/%c3%bc", "/ü%20", "/{a}%7b", "//漢/%41"} {
		mend := checkPath(p)
		quoted, err := strconv.QuotedPrefix(strings.TrimPrefix(mend, "must be written "))
		if err != nil {
			t.Fatalf("path %q %s; want what to write", p, mend)
		}
		better, _ := strconv.Unquote(quoted)
		if again := checkPath(better); again != "" {
			t.Errorf("path %q %s; but that %s", p, mend, again)
		}
	}
}

// FuzzParse checks that whatever is accepted encodes to a fixed point, asks the same question after it,
// and holds no control characters.
func FuzzParse(f *testing.F) {
	f.Add(uint8(0), `{"host":"api.github.com","path_allowlist":["/repos/"],"auth":{"scheme":"Bearer","token_ref":"GH_TOKEN"}}`)
	f.Add(uint8(0), `{"host":"BÜCHER.example.","path_allowlist":null}`)
	f.Add(uint8(0), `{"host":"::ffff:127.0.0.1"}`)
	f.Add(uint8(1), "HTTP://[::1]:80/a%20b?c#d")
	f.Add(uint8(2), "FROM scratch\r\n\tx")
	f.Fuzz(func(t *testing.T, kind uint8, file string) {
		tool := []string{Egress, Pipelock, Capability}[kind%3]
		p, err := Parse(tool, file)
		if err != nil {
			if _, ok := errors.AsType[*FieldError](err); !ok {
				t.Fatalf("Parse error is a %T: %v", err, err)
			}
			return
		}
		again, err := Parse(tool, p.Encode())
		if err != nil {
			t.Fatalf("Parse(Encode()) of %q: %v", file, err)
		}
		if diff := cmp.Diff(p, again); diff != "" {
			t.Errorf("Parse(Encode()) mismatch (-want +got):\n%s", diff)
		}
		if a, b := p.Canonical(), again.Canonical(); a != b {
			t.Errorf("Canonical = %q, then %q", a, b)
		}
		if tool == Capability {
			return
		}
		if i := strings.IndexFunc(p.Host+p.Summary(), unicode.IsControl); i >= 0 {
			t.Errorf("control character in %q", p.Host+p.Summary())
		}
		if q, err := NewEgress(Route{Host: p.Host}); err != nil || q.Host != p.Host {
			t.Errorf("the key %q as a host = %q, %v, want itself", p.Host, q.Host, err)
		}
	})
}
