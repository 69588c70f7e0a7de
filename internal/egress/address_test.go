package egress

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRefusedClass(t *testing.T) {
	for addr, want := range map[string]string{
		"8.8.8.8":                "",
		"2606:4700::1111":        "",
		"::ffff:8.8.8.8":         "",
		"64:ff9b::8.8.8.8":       "",
		"100.128.0.1":            "",
		"172.32.0.1":             "",
		"127.0.0.1":              "loopback",
		"127.255.255.254":        "loopback",
		"::1":                    "loopback",
		"::ffff:127.0.0.1":       "loopback",
		"64:ff9b::127.0.0.1":     "loopback",
		"::ffff:0:127.0.0.1":     "loopback",
		"2002:7f00:1::":          "loopback",
		"169.254.1.1":            "link-local",
		"fe80::1":                "link-local",
		"fe80::1%eth0":           "link-local",
		"169.254.169.254":        "cloud metadata",
		"::ffff:169.254.169.254": "cloud metadata",
		"fd00:ec2::254":          "cloud metadata",
		"fd20:ce::254":           "cloud metadata",
		"100.100.100.200":        "cloud metadata",
		"168.63.129.16":          "cloud metadata",
		"10.1.2.3":               "private",
		"172.16.0.1":             "private",
		"172.31.255.255":         "private",
		"192.168.0.1":            "private",
		"::ffff:10.0.0.1":        "private",
		"fd12::1":                "private",
		"fec0::1":                "private",
		"100.64.0.1":             "carrier-grade NAT",
		"100.127.255.255":        "carrier-grade NAT",
		"0.0.0.0":                "unspecified",
		"0.1.2.3":                "unspecified",
		"::":                     "unspecified",
		"224.0.0.1":              "multicast",
		"ff02::1":                "multicast",
		"255.255.255.255":        "reserved",
		"240.0.0.1":              "reserved",
		"198.18.0.1":             "reserved",
		"192.0.2.1":              "reserved",
		"::127.0.0.1":            "reserved",
		"2001:0:1::1":            "reserved", // Teredo
		"64:ff9b:1::a00:1":       "reserved",
	} {
		if got := refusedClass(netip.MustParseAddr(addr)); got != want {
			t.Errorf("refusedClass(%s) = %q, want %q", addr, got, want)
		}
	}
}

// TestResolvedAddress: what a name resolves to decides, at the moment of dialling, and the checked address is what is dialled.
func TestResolvedAddress(t *testing.T) {
	const routes = "routes:\n- host: site.example.com\n- host: nas.example.com\n- host: 10.0.0.9\n"
	for _, tt := range []struct {
		name    string
		host    string
		addrs   []string
		status  int
		kind    string
		dialled []string
	}{
		{"public", "site.example.com", []string{"9.9.9.1"}, 200, "", []string{"9.9.9.1:80"}},
		{"private", "site.example.com", []string{"10.0.0.9"}, 403, "address", nil},
		{"metadata", "site.example.com", []string{"169.254.169.254"}, 403, "address", nil},
		{"mapped loopback", "site.example.com", []string{"::ffff:127.0.0.1"}, 403, "address", nil},
		{"mixed", "site.example.com", []string{"10.0.0.9", "9.9.9.1"}, 200, "", []string{"9.9.9.1:80"}},
		{"first is dead", "site.example.com", []string{"9.9.9.8", "9.9.9.1"}, 200, "", []string{"9.9.9.8:80", "9.9.9.1:80"}},
		{"all dead", "site.example.com", []string{"9.9.9.8"}, 502, "", []string{"9.9.9.8:80"}},
		{"no address", "site.example.com", nil, 502, "", nil},
		{"allow_private", "nas.example.com", []string{"10.0.0.9"}, 200, "", []string{"10.0.0.9:80"}},
		{"literal route", "10.0.0.9", nil, 200, "", []string{"10.0.0.9:80"}},
		{"other literal", "10.0.0.8", nil, 403, "host", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			ok := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
			w.serve("origin", "9.9.9.1", ok)
			w.serve("other", "10.0.0.9", ok)
			for _, a := range tt.addrs {
				w.names[tt.host] = append(w.names[tt.host], netip.MustParseAddr(a))
			}
			p := w.start(routes, false, Options{AllowPrivate: []string{"NAS.example.com."}})
			status, kind, body := ask(t, p.client(), "GET", "http://"+tt.host+"/")
			if status != tt.status || kind != tt.kind {
				t.Errorf("GET = %d %q, want %d %q; body:\n%s", status, kind, tt.status, tt.kind, body)
			}
			if diff := cmp.Diff(tt.dialled, w.dialled); diff != "" {
				t.Errorf("dialled (-want +got):\n%s", diff)
			}
		})
	}
}

// TestSilentAddress: an address that never answers leaves time for the next, however many there are.
func TestSilentAddress(t *testing.T) {
	addrs := []netip.Addr{netip.MustParseAddr("9.9.9.7"), netip.MustParseAddr("9.9.9.8"), netip.MustParseAddr("9.9.9.1")}
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer ours.Close()
		defer theirs.Close()
		p := &Proxy{opts: Options{
			Resolve: func(context.Context, string) ([]netip.Addr, error) { return addrs, nil },
			Dial: func(ctx context.Context, _, addr string) (net.Conn, error) {
				if addr == "9.9.9.1:80" && ctx.Err() == nil {
					return ours, nil
				}
				<-ctx.Done()
				return nil, ctx.Err()
			},
			Timings: Timings{Dial: 9 * time.Second},
		}}
		start := time.Now()
		c, err := p.dial(t.Context(), "tcp", "site.example.com:80")
		if c != ours {
			t.Errorf("dial = %v, %v; want the last address's connection", c, err)
		}
		if took := time.Since(start); took != 6*time.Second {
			t.Errorf("it took %v, want two thirds of the time to dial", took)
		}
	})
}

// TestRebinding: a name that turns private after it was first seen gets nothing.
func TestRebinding(t *testing.T) {
	w := newWorld(t)
	w.serve("site.example.com", "9.9.9.1", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Connection", "close") // the next request dials again
	}))
	w.serve("inside", "127.0.0.1", http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		t.Error("the inside was reached")
	}))
	for _, withCA := range []bool{false, true} {
		w.mu.Lock()
		w.names["site.example.com"] = []netip.Addr{netip.MustParseAddr("9.9.9.1")}
		w.mu.Unlock()
		p := w.start("routes:\n- host: site.example.com\n", withCA, Options{})
		if status, _, body := ask(t, p.client(), "GET", "http://site.example.com/"); status != 200 {
			t.Fatalf("first GET = %d %s, want 200", status, body)
		}
		w.mu.Lock()
		w.names["site.example.com"] = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
		w.mu.Unlock()
		if status, kind, _ := ask(t, p.client(), "GET", "http://site.example.com/"); status != 403 || kind != "address" {
			t.Errorf("GET after rebinding = %d %q, want 403 address", status, kind)
		}
		res, err := p.client().Get("https://site.example.com/")
		if withCA {
			if err != nil {
				t.Fatal(err)
			}
			if status, kind, _ := answer(t, res); status != 403 || kind != "address" {
				t.Errorf("GET https after rebinding = %d %q, want 403 address", status, kind)
			}
		} else if err == nil {
			t.Errorf("GET https after rebinding = %s, want a refused CONNECT", res.Status)
		}
		if slices.Contains(w.touched(), "127.0.0.1:80") || slices.Contains(w.touched(), "127.0.0.1:443") {
			t.Errorf("dialled %v, want nothing on loopback", w.dialled)
		}
	}
}
