package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// crowd is calls that wait and are not decided.
type crowd struct {
	calls []*held
	share []*conn // one of each session
}

const perSession = 40 // calls of one session, so that 10,000 fit into 256 sessions

// gather makes n calls, about open different questions; with fewer questions than calls several wait for one.
func gather(ctx context.Context, p *process, era string, n, open int) (*crowd, error) {
	c := &crowd{}
	prefix := freshHost()
	for i := range n {
		var cn *conn
		var err error
		switch {
		case era != oldEra:
			cn, err = dial(ctx, p.addr, era)
		case i%perSession == 0:
			if cn, err = openConn(ctx, p.addr, era); err == nil {
				c.share = append(c.share, cn)
			}
		default:
			cn, err = c.share[len(c.share)-1].share(ctx)
		}
		if err != nil {
			return c, err
		}
		h, err := cn.ask(fmt.Sprintf("c%d.%s", i%open, prefix))
		if err != nil {
			return c, fmt.Errorf("call %d: %w", i, err)
		}
		c.calls = append(c.calls, h)
	}
	return c, nil
}

// scatter hangs up.
func (c *crowd) scatter() {
	for _, h := range c.calls {
		h.c.Close()
	}
}

// answerAll decides everything that is open in p's mailbox and reads every answer.
func (c *crowd) answerAll(p *process) error {
	names, err := os.ReadDir(p.dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		if id, ok := strings.CutSuffix(n.Name(), proposalSuffix); ok {
			if err := store(p.dir, id+responseSuffix, approval(id), false); err != nil {
				return err
			}
		}
	}
	for _, h := range c.calls {
		if err := h.answer(); err != nil {
			return err
		}
		if err := h.end(); err != nil {
			return err
		}
		h.c.Close()
	}
	return nil
}

// latency measures from the response file in place to the client having the answer, and to the end of its response, while
// others wait.
func (b *bench) latency(ctx context.Context) error {
	const what = "decision latency, %s waiting, %s"
	each := 200
	if b.quick {
		each = 50
	}
	for _, era := range []string{newEra, oldEra} {
		for _, waiting := range []int{1, 100, 1000} {
			if era == oldEra && waiting == 100 {
				continue
			}
			ours, floor, stop, err := b.both(ctx)
			if err != nil {
				return err
			}
			err = func() error {
				defer stop()
				var total [2][]float64 // to the end
				var first [2][]float64 // to the answer
				type side struct {
					p    *process
					era  string
					last *conn
					ids  <-chan string
				}
				sides := [2]*side{{p: floor, era: floorEra}, {p: ours, era: era}}
				for _, s := range sides {
					c, err := gather(ctx, s.p, s.era, waiting-1, waiting)
					defer c.scatter()
					if err != nil {
						return err
					}
					if s.ids, err = proposals(ctx, s.p.dir); err != nil {
						return err
					}
				}
				for range each * b.rounds {
					for i, s := range sides {
						if s.last == nil {
							if s.last, err = openConn(ctx, s.p.addr, s.era); err != nil {
								return err
							}
							defer s.last.Close()
						}
						h, err := s.last.ask(freshHost())
						if err != nil {
							return err
						}
						id := <-s.ids
						commit, err := prepare(s.p.dir, id+responseSuffix, approval(id), false)
						if err != nil {
							return err
						}
						time.Sleep(2 * time.Millisecond) // whatever storing the proposal set off is over
						start := time.Now()
						if err := commit(); err != nil {
							return err
						}
						if err := h.answer(); err != nil {
							return err
						}
						first[i] = append(first[i], float64(time.Since(start)))
						if err := h.end(); err != nil {
							return err
						}
						total[i] = append(total[i], float64(time.Since(start)))
					}
				}
				n := fmt.Sprint(waiting)
				b.row(fmt.Sprintf(what, n, era)+", response complete, p50", quantile(total[0], .5), quantile(total[1], .5), micros, 1.25, false)
				b.row(fmt.Sprintf(what, n, era)+", response complete, p99", quantile(total[0], .99), quantile(total[1], .99), micros, 1.5, false)
				b.row(fmt.Sprintf(what, n, era)+", answer read, p50", quantile(first[0], .5), quantile(first[1], .5), micros, 0, false)
				return nil
			}()
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// settled waits until a process's memory has stopped changing, and returns it.
func settled(p *process, atLeast time.Duration) float64 {
	start := time.Now()
	least, since := p.rss(), time.Now()
	for time.Since(start) < atLeast || time.Since(since) < 3*time.Second && time.Since(start) < time.Minute {
		time.Sleep(100 * time.Millisecond)
		if now := p.rss(); now < least*0.99 || now > least*1.01 {
			least, since = now, time.Now()
		}
	}
	return p.rss()
}

// usual is the median of a process's memory over some time, in which each call gets progress twice.
func usual(p *process, over time.Duration) float64 {
	var all []float64
	for start := time.Now(); time.Since(start) < over; time.Sleep(100 * time.Millisecond) {
		all = append(all, p.rss())
	}
	return quantile(all, .5)
}

// memory measures what a waiting call takes, and what stays of a crowd that has gone.
func (b *bench) memory(ctx context.Context) error {
	counts := []int{1000}
	if b.most >= 10000 {
		counts = append(counts, 10000)
	}
	for _, era := range []string{newEra, oldEra} {
		for _, n := range counts {
			ours, floor, stop, err := b.both(ctx)
			if err != nil {
				return err
			}
			err = func() error {
				defer stop()
				var per [2]float64
				rounds := 1
				if n == 1000 {
					rounds = 30
				}
				var after [2][]float64
				for round := range rounds {
					for i, p := range []*process{floor, ours} {
						if round > 0 && i == 0 {
							continue
						}
						before, fds := settled(p, 0), p.fds()
						c, err := gather(ctx, p, [2]string{floorEra, era}[i], n, min(n, 1000))
						if err != nil {
							return err
						}
						if round == 0 {
							settled(p, 8*time.Second)
							per[i] = (usual(p, 40*time.Second) - before) / float64(n)
						}
						if err := c.answerAll(p); err != nil {
							return err
						}
						for _, s := range c.share {
							s.Close()
						}
						deadline := time.Now().Add(30 * time.Second)
						for p.fds() > fds+2 && time.Now().Before(deadline) {
							time.Sleep(50 * time.Millisecond)
						}
						if got := p.fds(); got > fds+2 {
							return fmt.Errorf("%d descriptors are left of %d", got, fds)
						}
						after[i] = append(after[i], settled(p, 4*time.Second)-before)
						fmt.Fprintf(b.log, "bench: memory %s %d round %d: before %s, after %s\n", [2]string{floorEra, era}[i], n, round, mib(before), mib(p.rss()))
					}
				}
				b.row(fmt.Sprintf("memory of a waiting call, %d, %s", n, era), per[0], per[1], kib, 0, false)
				b.note(fmt.Sprintf("the same, alone, %d, %s", n, era), per[1], kib, 32*1024)
				b.row(fmt.Sprintf("what stays when %d have gone, after round 1, %s", n, era), after[0][0], after[1][0], mib, 0, false)
				// What is remembered is bounded: 4,096 proposals, 10,000 archived pairs, 256 sessions, the events of 8,192 calls. Eleven
				// rounds fill all of it, and some more what the runtime keeps; from then on growth would be a leak.
				for _, part := range [][2]int{{2, 10}, {21, 30}} {
					if from, to := part[0], part[1]; to <= len(after[1]) {
						b.note(fmt.Sprintf("growth by rounds %d to %d of %d calls, each, %s", from, to, n, era), sum(after[1][from-1:to])/float64(to-from+1), mib, 0)
					}
				}
				return nil
			}()
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func sum(all []float64) (s float64) {
	for _, v := range all {
		s += v
	}
	return s
}

// idle measures what it costs to wait.
func (b *bench) idle(ctx context.Context) error {
	for _, era := range []string{newEra, oldEra} {
		ours, err := b.ours(ctx)
		if err != nil {
			return err
		}
		err = func() error {
			defer ours.stop()
			took := time.Minute
			if b.quick {
				took = 31 * time.Second
			}
			// A sidecar that has seen a decision knows that events arrive.
			first, err := gather(ctx, ours, era, 1, 1)
			if err != nil {
				return err
			}
			if err := first.answerAll(ours); err != nil {
				return err
			}
			for _, n := range []int{0, 1000} {
				c, err := gather(ctx, ours, era, n, 1000)
				if err != nil {
					return err
				}
				defer c.scatter()
				for _, h := range c.calls { // somebody must read what keeps them alive
					go func() {
						for {
							if _, err := h.br.Discard(1); err != nil {
								return
							}
						}
					}()
				}
				time.Sleep(8 * time.Second)
				start := ours.cpu()
				time.Sleep(took)
				limit := 0.005
				if n == 0 {
					limit = 0
				}
				b.note(fmt.Sprintf("CPU of one core, %d waiting, %s", n, era), float64(ours.cpu()-start)/float64(took), percent, limit)
			}
			return nil
		}()
		if err != nil {
			return err
		}
	}
	return nil
}

// start measures from exec to the first /health, and what an idle process takes.
func (b *bench) start(ctx context.Context) error {
	var took, mem [2][]float64
	for range 3 * b.rounds {
		for i := range took {
			p, d, err := b.timedStart(ctx, i == 1, b.fresh())
			if err != nil {
				return err
			}
			took[i] = append(took[i], float64(d))
			mem[i] = append(mem[i], p.rss())
			p.stop()
		}
	}
	b.row("start to /health", quantile(took[0], .5), quantile(took[1], .5), millis, 1.5, false)
	b.row("memory after the start", quantile(mem[0], .5), quantile(mem[1], .5), mib, 0, false)
	if st, err := os.Stat(b.bin); err == nil {
		b.note("binary", float64(st.Size()), mib, 0)
	}
	return nil
}

func (b *bench) archived(ctx context.Context) error {
	counts := []int{10, 1000, 100_000}
	if b.quick {
		counts = counts[:2]
	}
	for _, n := range counts {
		dir := b.fresh()
		if err := fill(filepath.Join(dir, "processed"), n); err != nil {
			return err
		}
		var took, mem, listed []float64
		for range b.rounds {
			p, d, err := b.timedStart(ctx, true, dir)
			if err != nil {
				return err
			}
			took = append(took, float64(d))
			mem = append(mem, p.rss())
			start := time.Now()
			if err := quiet(ctx, b.bin, "list", "--root", filepath.Dir(dir)); err != nil {
				p.stop()
				return err
			}
			listed = append(listed, float64(time.Since(start)))
			p.stop()
		}
		b.note(fmt.Sprintf("start to /health, %d archived", n), quantile(took, .5), millis, 0)
		b.note(fmt.Sprintf("memory after the start, %d archived", n), quantile(mem, .5), mib, 0)
		b.note(fmt.Sprintf("supervise list, %d archived", n), quantile(listed, .5), millis, 0)
		runtime.GC()
	}
	return nil
}
