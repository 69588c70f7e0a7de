package egress

import (
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// TestDecisions holds the policy against the vectors that the mitmproxy addon is held against too.
func TestDecisions(t *testing.T) {
	data, err := os.ReadFile("../../examples/mitmproxy/decisions.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var vectors struct {
		Routes string
		Ports  []int
		Cases  []struct {
			Name, Scheme, Host string
			Port               int
			Path               string
			Forward            *string
			Refused            string
			Ask                *[]string
		}
	}
	if err := yaml.Unmarshal(data, &vectors); err != nil {
		t.Fatal(err)
	}
	st := new(state)
	if err := st.parse([]byte(vectors.Routes)); err != nil {
		t.Fatal(err)
	}
	if len(vectors.Cases) < 50 {
		t.Fatalf("read %d cases, want at least 50", len(vectors.Cases))
	}
	for _, tt := range vectors.Cases {
		t.Run(tt.Name, func(t *testing.T) {
			if (tt.Forward == nil) == (tt.Refused == "") {
				t.Fatal("a case must have one of forward and refused")
			}
			to, err := parseTarget(net.JoinHostPort(tt.Host, strconv.Itoa(tt.Port)), 0)
			if err != nil {
				t.Fatal(err)
			}
			g, ref := decide(st, vectors.Ports, tt.Scheme, to, tt.Path)
			switch {
			case ref != nil && string(ref.kind) != tt.Refused:
				t.Errorf("refused as %s (%s), want %q", ref.kind, ref.why, tt.Refused)
			case ref != nil && tt.Ask != nil && !slices.Equal(ref.ask.PathAllowlist, *tt.Ask):
				t.Errorf("refused with the advice to ask for %q, want %q", ref.ask.PathAllowlist, *tt.Ask)
			case ref == nil && tt.Forward == nil:
				t.Errorf("allowed, want refused as %s", tt.Refused)
			case ref == nil && g.path != nil && g.path.Escaped != *tt.Forward:
				t.Errorf("forwards %q, want %q", g.path.Escaped, *tt.Forward)
			case ref == nil && g.path == nil && tt.Path != *tt.Forward:
				t.Errorf("forwards %q, want %q", tt.Path, *tt.Forward)
			}
		})
	}
}

func TestParseTarget(t *testing.T) {
	for _, tt := range []struct {
		in          string
		defaultPort int
		want        string // "": an error
	}{
		{"Example.com:443", 0, "example.com:443"},
		{"example.com.:443", 0, "example.com:443"},
		{"example.com", 80, "example.com:80"},
		{"[::1]:443", 0, "[::1]:443"},
		{"[::1]", 443, "[::1]:443"},
		{"bücher.example:443", 0, "xn--bcher-kva.example:443"},
		{"my_bucket.example:443", 0, "my_bucket.example:443"},
		{"example.com", 0, ""},
		{"example.com:", 80, ""},
		{"example.com:0", 80, ""},
		{"example.com:+80", 80, ""},
		{"example.com:65536", 80, ""},
		{"example.com:80:80", 80, ""},
		{"user@example.com:443", 0, ""},
		{"exa mple.com:443", 0, ""},
		{"a..b:443", 0, ""},
		{"*.example.com:443", 0, ""},
		{"fe80::1%eth0", 80, ""},
		{"/path", 80, ""},
		{":443", 0, ""},
		{"", 443, ""},
		{strings.Repeat("a", 64) + ".com:443", 0, ""},
		{strings.Repeat("a.", 127) + "com:443", 0, ""},
	} {
		got, err := parseTarget(tt.in, tt.defaultPort)
		switch {
		case tt.want == "" && err == nil:
			t.Errorf("parseTarget(%q, %d) = %s, want an error", tt.in, tt.defaultPort, got)
		case tt.want != "" && (err != nil || got.String() != tt.want):
			t.Errorf("parseTarget(%q, %d) = %s, %v; want %s", tt.in, tt.defaultPort, got, err, tt.want)
		}
	}
}
