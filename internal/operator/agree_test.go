package operator

import (
	"testing"

	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/routes"
)

// FuzzPayloadAndRoutesAgree holds the two readings of a host together: what an agent may propose is what the table
// can hold, under the same key, and writing it and taking it back leaves the file as it was.
func FuzzPayloadAndRoutesAgree(f *testing.F) {
	for _, h := range []string{"api.github.com", "API.GitHub.com.", "bücher.example", "xn--bcher-kva.example", "127.0.0.1", "::1", "2001:DB8::1", "a", "a-b.c-", "a--b.example", "1.2.3", "0x7f.1", "ß.example", "ﬀ.example", "a。b", "İ.example", "null", "true", "~", "0123", "1e3", "-a.example", "y", "a.b.c.d.e", "r3---sn-ab.bücher.example", "é--é.example", "ab--é.example", "xn----xia"} {
		f.Add(h, "/x/")
	}
	f.Add("a.example", "/{x}")
	f.Add("a.example", "/ü/%20")
	f.Add("a.example", "/#x: y")
	f.Add("a.example", "/a\ufffd")
	f.Add("a.example", "/a\ufeff")
	f.Add("a.example", "/漢/e\u0301/\u202e\u200b\u00ad/\U0001f642")
	f.Fuzz(func(t *testing.T, host, path string) {
		p, err := payload.NewEgress(payload.Route{Host: host, PathAllowlist: []string{path}})
		if err != nil {
			return
		}
		if got := routes.Key(p.Route.Host); got != p.Host {
			t.Errorf("host %q: routes compares it as %q, payload as %q", host, got, p.Host)
		}
		table, err := routes.Parse([]byte(baseRoutes))
		if err != nil {
			t.Fatal(err)
		}
		r := routes.Route{Host: p.Route.Host, PathAllowlist: p.Route.PathAllowlist}
		_, change := routes.Merge(table, r)
		if change.Covered {
			return
		}
		data, err := routes.Set([]byte(baseRoutes), r.Host, change.After)
		if err != nil {
			t.Fatalf("host %q, path %q: a proposal that passed cannot be written: %v", host, path, err)
		}
		after, err := routes.Parse(data)
		if err != nil {
			t.Fatalf("host %q, path %q: the file written does not parse: %v\n%s", host, path, err, data)
		}
		if got := after.Lookup(p.Host); !routes.Equal(got, change.After) {
			t.Errorf("host %q, path %q: the file says %+v, want %+v", host, path, got, change.After)
		}
		back, err := routes.Set(data, r.Host, change.Before)
		if err != nil {
			t.Fatalf("host %q, path %q: cannot be taken back: %v", host, path, err)
		}
		if change.Before == nil && string(back) != baseRoutes {
			t.Errorf("host %q, path %q: taken back the file is\n%s", host, path, back)
		}
	})
}
