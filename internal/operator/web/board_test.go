package web

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/safetext"
	"github.com/bot-bottle/supervise/queue"
)

// still is a desk of which nothing changes but its trail.
type still struct {
	Desk
	looks atomic.Int64
	mu    sync.Mutex
	trail operator.Trail // guarded by mu
}

func (d *still) Snapshot(context.Context) (*operator.Snapshot, error) {
	d.looks.Add(1)
	return &operator.Snapshot{}, nil
}

func (d *still) Trail(context.Context) (operator.Trail, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.trail, nil
}

func (d *still) Changes(context.Context) (<-chan struct{}, error) { return make(chan struct{}), nil }

// Of two records saved within a tick of the file system's clock, only the first may have been looked at: pages are told once more.
func TestBoardSettles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		d := &still{}
		b := newBoard(d, slog.New(slog.DiscardHandler))
		ended := make(chan error)
		go func() { ended <- b.run(ctx) }()
		updates, unsubscribe, err := b.subscribe(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer unsubscribe()
		told := func() (n int) {
			t.Helper()
			for {
				synctest.Wait()
				select {
				case <-updates:
					n++
				default:
					return n
				}
			}
		}
		told()
		time.Sleep(time.Minute)
		if n := told(); n != 0 {
			t.Errorf("told %d times of nothing", n)
		}
		d.mu.Lock()
		d.trail = operator.Trail{Records: "other", Saved: time.Now()}
		d.mu.Unlock()
		b.changed()
		first := told()
		time.Sleep(2 * settling)
		second := told()
		time.Sleep(2 * lookEvery)
		looks := d.looks.Load()
		if third := told(); first != 1 || second != 1 || third != 1 {
			t.Errorf("told %d times of what was saved, %d times when it had settled, and %d times when it had for certain; want once each", first, second, third)
		}
		time.Sleep(time.Minute)
		if n := told(); n != 0 || d.looks.Load() > looks+int64(time.Minute/oldest)+1 {
			t.Errorf("told %d times, looked %d times at what had settled", n, d.looks.Load()-looks)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	})
}

// TestSortBy: the order by host is worked out once for each proposal, not at each comparison.
func TestSortBy(t *testing.T) {
	var items []*operator.Item
	for i := range 100 {
		items = append(items, &operator.Item{Ref: operator.Ref{Bottle: "web", ID: queue.ID(fmt.Sprint(i))}, Host: safetext.Untrusted(fmt.Sprint(i * 37 % 10))})
	}
	asked := 0
	sortBy(items, func(it *operator.Item) string { asked++; return it.Host.Raw() })
	if asked != len(items) || !slices.IsSortedFunc(items, where{Group: "host"}.compare) {
		t.Errorf("%d heads were asked for, want %d, and the order of the inbox", asked, len(items))
	}
}

// TestStuckIsFirst: what is stuck stands above all groups, whatever they are called.
func TestStuckIsFirst(t *testing.T) {
	now := time.Now()
	stuck := operator.Item{Ref: operator.Ref{Bottle: "z", ID: "3"}, State: operator.Stuck, Since: now}
	a := operator.Item{Ref: operator.Ref{Bottle: "a", ID: "2"}, State: operator.Open, Since: now.Add(-time.Minute)}
	b := operator.Item{Ref: operator.Ref{Bottle: "b", ID: "1"}, State: operator.Open, Since: now.Add(-time.Hour)}
	for group, want := range map[string][]*operator.Item{"": {&stuck, &b, &a}, "bottle": {&stuck, &a, &b}} {
		items := []*operator.Item{&b, &a, &stuck}
		slices.SortFunc(items, where{Group: group}.compare)
		if !slices.Equal(items, want) {
			t.Errorf("grouped by %q the first is of bottle %s, the second of %s; want %s and %s", group, items[0].Bottle, items[1].Bottle, want[0].Bottle, want[1].Bottle)
		}
	}
}
