package operator

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bot-bottle/supervise/internal/apply"
	"github.com/bot-bottle/supervise/internal/config"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/queue"
)

// crowd is a root of bottles with 25 open proposals each, most of them for routes, and a table of 30 routes.
type crowd struct {
	t       testing.TB
	dir     string
	root    string
	hand    apply.Hand
	in      *queue.Root
	refs    []Ref
	targets func(slug string) config.Bottle // if nil, both files
}

func newCrowd(t testing.TB, n int) *crowd {
	t.Helper()
	c := &crowd{t: t, dir: t.TempDir()}
	c.root = filepath.Join(c.dir, "queue")
	var boxes []*queue.Dir
	for i := range (n + 24) / 25 {
		slug := fmt.Sprintf("bottle-%02d", i)
		var table strings.Builder
		table.WriteString("routes:\n")
		for j := range 30 {
			fmt.Fprintf(&table, "  - host: service-%d.team-%d.company.net\n    path_allowlist: [/v1/]\n", j, i)
		}
		c.write(c.routes(slug), table.String())
		c.write(c.docker(slug), "FROM debian:12\nRUN true\n")
		box, err := queue.OpenDir(t.Context(), filepath.Join(c.root, slug), queue.Options{Slug: slug})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { box.Close() })
		boxes = append(boxes, box)
	}
	for i := range n {
		p, err := egressFor(fmt.Sprintf("host-%d.example.com", i), "/v1/things", "/v1/others")
		if i%20 == 19 {
			p, err = payload.NewCapability(fmt.Sprintf("FROM debian:12\nRUN true\nRUN step %d\n", i))
		}
		if err != nil {
			t.Fatal(err)
		}
		slug := fmt.Sprintf("bottle-%02d", i%len(boxes))
		id, f := queue.NewID(), p.Encode()
		if err := boxes[i%len(boxes)].Put(t.Context(), queue.Proposal{ID: id, Bottle: slug, Tool: p.Tool, ProposedFile: f, Justification: "the build needs it", CurrentFileHash: queue.Hash(f), ArrivedAt: time.Now()}); err != nil {
			t.Fatal(err)
		}
		c.refs = append(c.refs, Ref{slug, id})
	}
	var err error
	if c.in, err = queue.OpenRoot(c.root, queue.RootOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.in.Close() })
	if c.hand, err = apply.New(apply.Options{LockDir: filepath.Join(c.root, ".desk", "locks"), Targets: func(slug string) config.Bottle {
		if c.targets != nil {
			return c.targets(slug)
		}
		return config.Bottle{Egress: &config.Egress{File: c.routes(slug)}, Capability: &config.Capability{File: c.docker(slug)}}
	}}); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *crowd) routes(slug string) string {
	return filepath.Join(c.dir, slug, "egress", "routes.yaml")
}
func (c *crowd) docker(slug string) string { return filepath.Join(c.dir, slug, "Dockerfile") }

func (c *crowd) write(path, data string) {
	c.t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(data), 0o644)); err != nil {
		c.t.Fatal(err)
	}
}

// desk is a fresh one, which knows nothing yet.
func (c *crowd) desk() *Desk {
	c.t.Helper()
	d, err := New(Options{Root: c.root, Inbox: c.in, Hand: c.hand, By: "ann@host", Via: "cli"})
	if err != nil {
		c.t.Fatal(err)
	}
	return d
}

func (c *crowd) look(d *Desk, want int) time.Duration {
	c.t.Helper()
	start := time.Now()
	s, err := d.Snapshot(c.t.Context())
	took := time.Since(start)
	if err != nil || len(s.Items) != want {
		c.t.Fatalf("Snapshot: %v, with %d items, want %d", err, len(s.Items), want)
	}
	return took
}

// BenchmarkSnapshot is a desk's first look at what is open, and the later ones.
func BenchmarkSnapshot(b *testing.B) {
	for _, n := range []int{10, 1000} {
		c := newCrowd(b, n)
		b.Run(fmt.Sprintf("first/%d", n), func(b *testing.B) {
			for b.Loop() {
				c.look(c.desk(), n)
			}
		})
		b.Run(fmt.Sprintf("later/%d", n), func(b *testing.B) {
			d := c.desk()
			c.look(d, n)
			for b.Loop() {
				c.look(d, n)
			}
		})
	}
}

// BenchmarkSnapshotRatio reports how many times as long a desk's first look takes with a hundred times as much open,
// each at its quickest, and the same of the later looks.
func BenchmarkSnapshotRatio(b *testing.B) {
	few, many := newCrowd(b, 10), newCrowd(b, 1000)
	for b.Loop() {
		var first, later [2]time.Duration
		for range 5 {
			for i, c := range []*crowd{few, many} {
				d, n := c.desk(), []int{10, 1000}[i]
				f, l := c.look(d, n), c.look(d, n)
				if first[i] == 0 || f < first[i] {
					first[i] = f
				}
				if later[i] == 0 || l < later[i] {
					later[i] = l
				}
			}
		}
		b.ReportMetric(float64(first[1])/float64(first[0]), "first-x")
		b.ReportMetric(float64(later[1])/float64(later[0]), "later-x")
		b.ReportMetric(float64(first[1].Microseconds())/1000, "first-ms")
		b.ReportMetric(float64(later[1].Microseconds())/1000, "later-ms")
	}
}

// counting is a hand that counts its previews.
type counting struct {
	apply.Hand
	previews int
}

func (h *counting) Glance(ctx context.Context, bottle string, ps ...payload.Payload) ([]*apply.Plan, error) {
	h.previews += len(ps)
	return h.Hand.Glance(ctx, bottle, ps...)
}

// What an inbox line says is never older than findingsFresh, and what rests on nothing new is not computed again.
func TestFindingsOfTheInbox(t *testing.T) {
	const slug = "bottle-00"
	for _, tt := range []struct {
		name     string
		change   func(c *crowd)
		route    string // the code that routes then have first
		previews int    // of 19 routes and a Dockerfile
	}{
		{"nothing", func(*crowd) {}, "new-host", 2},
		{"the table covers all", func(c *crowd) {
			var b strings.Builder
			for i := range 20 {
				fmt.Fprintf(&b, "  - host: host-%d.example.com\n", i)
			}
			c.write(c.routes(slug), "routes:\n"+b.String())
		}, "covered", 20},
		{"the table has an imitated host", func(c *crowd) {
			c.write(c.routes(slug), "routes:\n  - host: examp1e.com\n")
		}, "look-alike", 20},
		{"the table is gone", func(c *crowd) {
			if err := os.Remove(c.routes(slug)); err != nil {
				t.Error(err)
			}
		}, "new-host", 20},
		{"another table of the same name and size", func(c *crowd) {
			was := string(read(t, c.routes(slug)))
			c.write(c.routes(slug), strings.Replace(was, "service-0.team-0.company.net", "aaaaaaaaaaaaaaaa.examp1e.com", 1))
		}, "look-alike", 20},
		{"the configuration names another table", func(c *crowd) {
			other := filepath.Join(c.dir, "other.yaml")
			c.write(other, "routes:\n  - host: examp1e.com\n")
			c.targets = func(slug string) config.Bottle {
				return config.Bottle{Egress: &config.Egress{File: other}, Capability: &config.Capability{File: c.docker(slug)}}
			}
		}, "look-alike", 20},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCrowd(t, 20) // outside the bubble: it watches files
			synctest.Test(t, func(t *testing.T) {
				hand := &counting{Hand: c.hand}
				c.hand = hand
				d := c.desk()
				first := func() map[string]int {
					t.Helper()
					s, err := d.Snapshot(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					codes := map[string]int{}
					for _, it := range s.Items {
						codes[it.Tool+" "+it.Findings[0].Code]++
					}
					return codes
				}
				want := map[string]int{"egress-block new-host": 19, "capability-block base-unpinned": 1}
				if diff := cmp.Diff(want, first()); diff != "" {
					t.Fatalf("findings mismatch (-want +got):\n%s", diff)
				}
				tt.change(c)
				hand.previews = 0
				time.Sleep(findingsFresh)
				want = map[string]int{"egress-block " + tt.route: 19, "capability-block base-unpinned": 1}
				if diff := cmp.Diff(want, first()); diff != "" {
					t.Errorf("findings after the change mismatch (-want +got):\n%s", diff)
				}
				if hand.previews != tt.previews {
					t.Errorf("%d previews, want %d", hand.previews, tt.previews)
				}
				for range 3 {
					time.Sleep(findingsFresh)
					hand.previews = 0
					if first(); hand.previews != 2 {
						t.Errorf("%d previews though nothing has changed, want one a tool", hand.previews)
					}
				}
				if n := len(d.cache.bases); n != 2 {
					t.Errorf("%d bases are kept", n)
				}
			})
		})
	}
}

// TestOrderStays: the inbox has the same order each time, the oldest first, so that no row moves under an operator's finger.
func TestOrderStays(t *testing.T) {
	c := newCrowd(t, 300)
	d := c.desk()
	order := func() (ids []string) {
		t.Helper()
		s, err := d.Snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, it := range s.Items {
			ids = append(ids, string(it.ID))
		}
		return ids
	}
	want := order()
	if !slices.IsSorted(want) { // ids are in the order in which they were made
		t.Error("the oldest is not first")
	}
	for range 30 {
		if diff := cmp.Diff(want, order()); diff != "" {
			t.Fatalf("another order (-first +later):\n%s", diff)
		}
	}
}

// A mailbox with thousands of proposals shows the oldest of them, and only those are examined. The others are counted, and can be
// decided by their ids. What an operator has begun to decide is always shown.
func TestShownIsBounded(t *testing.T) {
	r := newRig(t)
	var refs []Ref
	for range maxShown + 3 {
		refs = append(refs, r.put(payload.NewCapability("FROM debian:12\nRUN true\nRUN more\n")))
	}
	d := r.desk("ann@host")
	look := func(shown int, problem string) {
		t.Helper()
		s, err := d.Snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Items) != shown || (len(s.Problems) == 1) != (problem != "") || problem != "" && !strings.HasPrefix(s.Problems[0].Text.Raw(), problem) {
			t.Errorf("%d items, problems %+v; want %d, and %q", len(s.Items), s.Problems, shown, problem)
		}
		if n := len(d.cache.lines); n != shown {
			t.Errorf("%d lines are kept, want %d", n, shown)
		}
	}
	look(maxShown, "3 more are not shown")
	last := refs[maxShown:]
	for _, ref := range last {
		if got, err := d.Find(t.Context(), string(ref.ID)); err != nil || got != ref {
			t.Errorf("Find = %v, %v", got, err)
		}
	}
	if _, err := d.Reject(t.Context(), last[0], ""); err != nil {
		t.Error(err)
	}
	if _, err := r.approve(d, last[1]); err != nil {
		t.Error(err)
	}
	look(maxShown, "1 more are not shown")
	r.step = func(name string) error {
		if strings.HasSuffix(name, ".write") {
			return errCrash
		}
		return nil
	}
	r.write(r.docker, "FROM debian:12\n")
	if _, err := r.approve(d, last[2]); err == nil {
		t.Error("approving did not fail")
	}
	look(maxShown+1, "")
}

// What stands behind more than is read of a mailbox can be decided by its id all the same.
func TestFindBehindAFlood(t *testing.T) {
	r := newRig(t)
	for range 33 {
		p := queue.Proposal{ID: queue.NewID(), Bottle: "web", Tool: payload.Egress, ProposedFile: strings.Repeat("x", 1<<20), Justification: "because"}
		if err := r.box.Put(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	ref := r.put(payload.NewCapability("FROM debian:12\nRUN true\nRUN more\n"))
	d := r.desk("ann@host")
	for _, name := range []string{string(ref.ID), "web/" + string(ref.ID)} {
		if got, err := d.Find(t.Context(), name); err != nil || got != ref {
			t.Errorf("Find(%s) = %v, %v", name, got, err)
		}
	}
	if _, err := d.Reject(t.Context(), ref, ""); err != nil {
		t.Error(err)
	}
	if got, err := d.Find(t.Context(), string(ref.ID)); err != nil || got != ref {
		t.Errorf("Find of what was decided = %v, %v", got, err)
	}
}

// A mailbox with thousands of bad files names a few of them: what is open in the other bottles stands below.
func TestProblemsAreBounded(t *testing.T) {
	r := newRig(t)
	for i := range 300 {
		r.write(filepath.Join(r.root, "web", fmt.Sprintf("%d.proposal.json", i)), "")
	}
	r.put(payload.NewCapability("FROM debian:12\nRUN true\nRUN more\n"))
	s, err := r.desk("ann@host").Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Items) != 1 || len(s.Problems) != maxProblems+1 {
		t.Fatalf("%d items and %d problems, want 1 and %d", len(s.Items), len(s.Problems), maxProblems+1)
	}
	n := 0
	for _, p := range s.Problems {
		n += p.Count()
	}
	if last := s.Problems[maxProblems]; n != 300 || last.More != 300-maxProblems || last.Name != "" {
		t.Errorf("they stand for %d, the last is %+v; want 300 in all", n, last)
	}
}

// What does not check is not examined either, so its text is not kept until all bottles have been looked at.
func TestBadTextIsNotKept(t *testing.T) {
	r := newRig(t)
	p := queue.Proposal{ID: queue.NewID(), Bottle: "web", Tool: payload.Egress, ProposedFile: strings.Repeat("x", 1<<20), Justification: "because"}
	if err := r.box.Put(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	r.put(payload.NewCapability("FROM debian:12\nRUN true\nRUN more\n"))
	s, err := r.desk("ann@host").bottle(t.Context(), "web")
	if err != nil || len(s.items) != 2 {
		t.Fatalf("%d items, %v; want 2", len(s.items), err)
	}
	for _, it := range s.items {
		if bad := it.State == Bad; bad != (it.p.ProposedFile == "") {
			t.Errorf("of an item in state %s %d bytes are kept", it.State, len(it.p.ProposedFile))
		}
	}
}

// Of what is not open any more nobody needs to know when its agent last waited.
func TestSeenIsBounded(t *testing.T) {
	r := newRig(t)
	d := r.desk("ann@host")
	keep := r.put(payload.NewCapability("FROM debian:12\nRUN true\nRUN more\n"))
	for range 5 {
		gone := r.put(payload.NewCapability("FROM debian:12\nRUN true\nRUN less\n"))
		s, err := d.Snapshot(t.Context())
		if err != nil || len(s.Items) != 2 || s.Items[1].Connected != Waiting {
			t.Fatalf("Snapshot = %+v, %v; want two that wait", s, err)
		}
		if err := os.Remove(filepath.Join(r.root, "web", string(gone.ID)+".proposal.json")); err != nil {
			t.Fatal(err)
		}
	}
	seen := d.store.seen("web")
	if _, ok := seen[keep.ID]; !ok || len(seen) != 2 {
		t.Errorf("seen = %v, want the one that is open and the last one", seen)
	}
}
