package web_test

import (
	"context"
	"fmt"
	"net/http"
	"runtime"
	"testing"
	"time"

	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/operator/web"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/queue"
)

// crowded is a rig of up to 40 bottles with n open proposals, and a signed-in browser.
func crowded(t testing.TB, n int) (*rig, *client) {
	t.Helper()
	var slugs []string
	for i := range min(40, n) {
		slugs = append(slugs, fmt.Sprintf("bottle-%02d", i))
	}
	r := newRig(t, slugs...)
	for i := range n {
		r.put(slugs[i%len(slugs)], must(route(fmt.Sprintf("host-%d.example.com", i), "/v1/things", "/v1/others")), nil)
	}
	c := r.client()
	events, _ := stream(t, c) // of another page that is open
	next(t, events)
	return r, c
}

// firstPages is how long the inbox of each takes at its quickest, measured in turn so that what else the machine does
// slows all alike.
func firstPages(t testing.TB, clients ...*client) []time.Duration {
	t.Helper()
	best := make([]time.Duration, len(clients))
	for range 200 {
		for i, c := range clients {
			start := time.Now()
			if err := c.fetch(t.Context(), "/"); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); best[i] == 0 || took < best[i] {
				best[i] = took
			}
		}
	}
	return best
}

func (c *client) fetch(ctx context.Context, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path, nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	buf := make([]byte, 64<<10)
	for err == nil {
		_, err = resp.Body.Read(buf)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", path, resp.Status)
	}
	return nil
}

// BenchmarkFirstPageRatio reports how many times as slow a thousand open proposals make the first page as ten do: at most 3.
func BenchmarkFirstPageRatio(b *testing.B) {
	_, few := crowded(b, 10)
	_, many := crowded(b, 1000)
	for b.Loop() {
		took := firstPages(b, few, many)
		b.ReportMetric(float64(took[1])/float64(took[0]), "x")
	}
}

func BenchmarkFirstPage(b *testing.B) {
	for _, n := range []int{10, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			_, c := crowded(b, n)
			for b.Loop() {
				if err := c.fetch(b.Context(), "/"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// churn is a desk on which proposals come and go.
type churn struct {
	fake
	n *int
}

func (c churn) at() operator.Item {
	it := many(1)[0]
	it.ID = queue.ID(fmt.Sprintf("0197f3b2-6d01-7c3a-9b58-%012x", *c.n))
	return it
}

func (c churn) Snapshot(ctx context.Context) (*operator.Snapshot, error) {
	c.items = []operator.Item{c.at()}
	return c.fake.Snapshot(ctx)
}

func (c churn) Show(_ context.Context, ref operator.Ref, _ *string) (*operator.Preview, error) {
	p := somePreview()
	p.Ref, p.Digest, p.Tool = ref, fmt.Sprintf("digest-%d", *c.n), payload.Egress
	return p, nil
}

func (c churn) Reject(_ context.Context, ref operator.Ref, _ string) (*operator.Result, error) {
	return &operator.Result{Ref: ref, Status: queue.Rejected, Notes: []string{"a note of some length, to be remembered for a while"}}, nil
}

// Ten thousand proposals that come, are looked at and are decided leave nothing behind.
func TestMemoryDoesNotGrow(t *testing.T) {
	n := 0
	d := churn{fake{}, &n}
	s := web.New(web.Options{Desk: d, URL: base})
	cookie := signIn(t, s)
	round := func(times int) uint64 {
		for range times {
			n++
			it := d.at()
			for _, resp := range []*http.Response{
				ask(s, "GET", "/", "", "Cookie", cookie), ask(s, "GET", path(it.Ref), "", "Cookie", cookie), ask(s, "POST", path(it.Ref)+"/reject", "notes=no", "Cookie", cookie),
			} {
				if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusSeeOther {
					t.Fatalf("round %d: %s", n, resp.Status)
				}
			}
		}
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := round(2000) // whatever is bounded is full
	after := round(8000)
	t.Logf("after 2000: %d KiB, after 10000: %d KiB", before>>10, after>>10)
	if after > before+512<<10 {
		t.Errorf("the heap grew from %d to %d KiB over 8000 proposals", before>>10, after>>10)
	}
}
