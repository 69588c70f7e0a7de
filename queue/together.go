package queue

import "sync"

// together does one thing for all who ask for it at about the same time. Whoever calls do returns after a run of act that began
// after the call, with that run's error: for syncing a directory that is as good as a run of one's own, and many share its cost.
type together struct {
	act func() error

	mu   sync.Mutex
	now  *run // guarded by mu; the run that began last, if any
	next *run // guarded by mu; the run that has not begun, if any
}

type run struct {
	done chan struct{}
	err  error // set before done is closed
}

func (t *together) do() error {
	t.mu.Lock()
	r, before := t.next, t.now
	if r != nil {
		t.mu.Unlock()
		<-r.done
		return r.err
	}
	r = &run{done: make(chan struct{})}
	t.next = r
	t.mu.Unlock()

	if before != nil {
		<-before.done
	}
	t.mu.Lock()
	t.now, t.next = r, nil // who comes from here on has done something that this run may not see
	t.mu.Unlock()
	r.err = t.act()
	close(r.done)
	return r.err
}
