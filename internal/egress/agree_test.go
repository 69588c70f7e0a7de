package egress

import (
	"strings"
	"testing"

	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/routes"
)

// tableOf is a state with one route, as it would be read from a file.
func tableOf(t *testing.T, r routes.Route) *state {
	t.Helper()
	data, err := routes.Set(nil, r.Host, &r)
	if err != nil {
		t.Fatalf("%q cannot be written: %v", r.PathAllowlist, err)
	}
	st := new(state)
	if err := st.parse(data); err != nil {
		t.Fatalf("%q cannot be read: %v", r.PathAllowlist, err)
	}
	return st
}

// FuzzPayloadAndProxyAgree holds what egress-block accepts against what the proxy does: a prefix that can be asked for
// lets itself through, and what a refusal tells an agent to ask for can be asked for, and lets the refused path through.
func FuzzPayloadAndProxyAgree(f *testing.F) {
	for _, p := range []string{
		"/a//b", "//", "/%2e%2e/", "/A%2fb/", "/a/../b/", "/a/./b", "/a%5cb", "/a\\b", "/a;b", "/a%3Bb", "/%00", "/%", "/a%2", "/100%25", "/%c3%bc/",
		"/%C3%BC/", "/ü/", "/ü/a%20b", "/a%20b/c", "/%7Ea", "/a%21b", "/a!b", "/...", "/a/..x", "/.git", "/%20/", "/{x}/%7B", "/\"<>^`|[]", "/a%3fb/c", "/a%23/",
		"/a*b/c", "/*", "/.*x", "/%20*x", "/%ef%bb%bf/", "/%ef%bf%bd/", "/%c2%85", "/%e2%80%a8x", "/a/", "/a", "/", "", "/v1/x?y", "/%c2%a0x", "/a%2A",
	} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, path string) {
		to := target{"a.example", 443}
		p, err := payload.NewEgress(payload.Route{Host: to.host, PathAllowlist: []string{path}})
		if err == nil {
			st := tableOf(t, routes.Route{Host: p.Host, PathAllowlist: p.Route.PathAllowlist})
			if _, ref := decide(st, []int{443}, "https", to, path); ref != nil {
				t.Errorf("prefix %q can be asked for, and the path is then refused: %s", path, ref.why)
			}
		}

		_, ref := decide(new(state), []int{443}, "https", to, path)
		ask := ref.ask
		if p, err = payload.NewEgress(payload.Route{Host: ask.Host, PathAllowlist: ask.PathAllowlist}); err != nil {
			t.Fatalf("%q was refused with the advice to ask for %q, which is refused too: %v", path, ask.PathAllowlist, err)
		}
		if strings.HasPrefix(path, "/") || path == "" {
			st := tableOf(t, routes.Route{Host: p.Host, PathAllowlist: p.Route.PathAllowlist})
			if _, ref := decide(st, []int{443}, "https", to, path); ref != nil {
				t.Errorf("%q is refused with %q approved: %s", path, ask.PathAllowlist, ref.why)
			}
		}
	})
}
