package routes

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPipelockCover(t *testing.T) {
	entries := []string{"API.github.com", "*.acme.test", "*", "*.", "dot.com."}
	for host, want := range map[string]string{
		"api.github.com":  "API.github.com",
		"API.GITHUB.COM.": "API.github.com",
		"github.com":      "",
		"cdn.acme.test":   "*.acme.test",
		"acme.test":       "*.acme.test",
		"xacme.test":      "",
		"dot.com":         "", // pipelock compares as written
		"other.com":       "",
	} {
		if got := PipelockCover(entries, host); got != want {
			t.Errorf("PipelockCover(%q) = %q, want %q", host, got, want)
		}
	}
}

func TestPipelockStrict(t *testing.T) {
	for in, want := range map[string]bool{
		"mode: strict\n":                    true,
		"mode: strict\nenforce: true\n":     true,
		"mode: strict\nenforce: false\n":    false,
		"mode: balanced\n":                  false,
		"version: 1\n":                      false,
		"":                                  false,
		"[strict]":                          false,
		"mode: strict\n---\nmode: strict\n": false,
	} {
		if got := PipelockStrict([]byte(in)); got != want {
			t.Errorf("PipelockStrict(%q) = %v, want %v", in, got, want)
		}
	}
}

const strictConfig = `# ours
version: 1
mode: strict

api_allowlist:
  - "*.anthropic.com"
  - "github.com"

fetch_proxy:
  listen: "127.0.0.1:8888"
dlp: &dlp
  patterns:
    - name: "Private Key Header"
      regex: '-----BEGIN\s+PRIVATE'
other: *dlp
text: |
  api_allowlist:
    - not.this.one
`

func TestPipelockSet(t *testing.T) {
	for _, tt := range []struct{ name, in, host, out string }{
		{"as the one before is written", strictConfig, "New.example.com.", strings.Replace(strictConfig, "  - \"github.com\"\n", "  - \"github.com\"\n  - \"new.example.com\"\n", 1)},
		{"plain", "api_allowlist:\n- a.com\nmode: strict\n", "b.com", "api_allowlist:\n- a.com\n- b.com\nmode: strict\n"},
		{"flow", "mode: strict\r\napi_allowlist: [a.com]\r\n", "b.com", "mode: strict\r\napi_allowlist: [a.com, b.com]\r\n"},
		{"empty list", "api_allowlist: []\nmode: balanced", "b.com", "api_allowlist:\n  - b.com\nmode: balanced"},
		{"an address is quoted", "api_allowlist: [a.com]", "1.2.3.4", "api_allowlist: [a.com, \"1.2.3.4\"]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := PipelockSet([]byte(tt.in), tt.host, true)
			if err != nil {
				t.Fatalf("PipelockSet: %v", err)
			}
			if diff := cmp.Diff(tt.out, string(got)); diff != "" {
				t.Errorf("PipelockSet mismatch (-want +got):\n%s", diff)
			}
			back, err := PipelockSet(got, tt.host, false)
			if err != nil {
				t.Fatalf("PipelockSet back: %v", err)
			}
			if diff := cmp.Diff(tt.in, string(back)); diff != "" {
				t.Errorf("PipelockSet back mismatch (-want +got):\n%s", diff)
			}
		})
	}
	for _, tt := range []struct {
		name, in, host string
		present        bool
		out            string
	}{
		{"covered already", strictConfig, "api.anthropic.com", true, strictConfig},
		{"not there", strictConfig, "api.anthropic.com", false, strictConfig},
		{"no list yet", "mode: strict\n# end", "a.com", true, "mode: strict\n# end\napi_allowlist:\n  - a.com"},
		{"null", "api_allowlist:\nmode: strict\n", "a.com", true, "api_allowlist:\n  - a.com\nmode: strict\n"},
		{"empty file", "", "a.com", true, "api_allowlist:\n  - a.com\n"},
		{"all that are exactly it", "api_allowlist: [a.com, b.com, A.com, '*.a.com']", "a.com", false, "api_allowlist: [b.com, '*.a.com']"},
		{"the only one", "api_allowlist:\n  - a.com\nmode: strict\n", "a.com", false, "api_allowlist: []\nmode: strict\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := PipelockSet([]byte(tt.in), tt.host, tt.present)
			if err != nil {
				t.Fatalf("PipelockSet: %v", err)
			}
			if diff := cmp.Diff(tt.out, string(got)); diff != "" {
				t.Errorf("PipelockSet mismatch (-want +got):\n%s", diff)
			}
		})
	}
	for _, tt := range []struct{ name, in, host, want string }{
		{"two documents", "a: 1\n---\nb: 1\n", "a.com", "line 2: a second document; there must be one"},
		{"alias", "x: &x [a.com]\napi_allowlist: *x\n", "b.com", "line 2: an alias (*x); write the value out"},
		{"anchor", "api_allowlist: &x [a.com]\ny: *x\n", "b.com", "line 1: an anchor (&x); write the value out"},
		{"merge key", "x: &x {api_allowlist: [a.com]}\n<<: *x\n", "b.com", "line 2: a merge key (<<); write the keys out"},
		{"twice", "api_allowlist: []\napi_allowlist: []\n", "b.com", `line 2: key "api_allowlist" is there twice`},
		{"a number in it", "api_allowlist:\n- 1\n", "b.com", "line 2: an entry of api_allowlist must be a string"},
		{"not a list", "api_allowlist: a.com\n", "b.com", "line 1: api_allowlist must be a list"},
		{"a text that would grow", "t: |+\n  x", "a.com", "the edited file would not say what was asked for"},
		{"a bad host", "", "https://a.com", `host "https://a.com" must be a bare host name such as api.github.com`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, err := PipelockSet([]byte(tt.in), tt.host, true)
			if e, ok := errors.AsType[*EditError](err); !ok || e.Reason != tt.want || e.ByHand == "" {
				t.Errorf("PipelockSet = %q, %v; want EditError %q with lines to add", out, err, tt.want)
			}
		})
	}
}

func FuzzPipelockSet(f *testing.F) {
	for _, s := range []string{strictConfig, "api_allowlist: [a.com] # c", "{api_allowlist: [a.com], x: [1]}", "a: |\n  x\n", "---\na: 1\n...", "api_allowlist:\n  - &x a.com\n", "'api_allowlist' :\r\n  - a.com"} {
		f.Add([]byte(s), "b.com")
	}
	f.Fuzz(func(t *testing.T, data []byte, host string) {
		before, err := PipelockParse(data)
		out, setErr := PipelockSet(data, host, true)
		if err != nil || checkHost(host) != nil {
			if setErr == nil {
				t.Errorf("PipelockSet of a bad file or host succeeded")
			}
			return
		}
		if setErr != nil {
			if _, ok := errors.AsType[*EditError](setErr); !ok {
				t.Errorf("PipelockSet error %T, want *EditError", setErr)
			}
			return
		}
		got, err := PipelockParse(out)
		if err != nil {
			t.Fatalf("result does not parse: %v\n%q", err, out)
		}
		want := slices.Clone(before)
		if !PipelockCovers(before, host) {
			want = append(want, Key(host))
		} else if !bytes.Equal(out, data) {
			t.Errorf("covered, yet changed: %q", out)
		}
		if !slices.Equal(got, want) {
			t.Errorf("entries = %q, want %q", got, want)
		}
		if len(before) == 0 || len(got) == len(before) {
			return
		}
		if !subsequence(data, out) {
			t.Errorf("a byte of the original is gone:\n%q\n%q", data, out)
		}
		if back, err := PipelockSet(out, host, false); err != nil || !bytes.Equal(back, data) {
			t.Errorf("undo gives %q, %v; want %q", back, err, data)
		}
	})
}
