package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bot-bottle/supervise/queue"
)

// load runs f over and over on n connections for a while and returns how often, and the CPU each took of p.
func load(ctx context.Context, p *process, era string, n int, took time.Duration, f func(*conn) error) (rate, cpu float64, err error) {
	conns := make([]*conn, n)
	for i := range conns {
		if conns[i], err = openConn(ctx, p.addr, era); err != nil {
			return 0, 0, err
		}
		defer conns[i].Close()
	}
	var done atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, n)
	before, start := p.cpu(), time.Now()
	for i, c := range conns {
		wg.Go(func() {
			for time.Since(start) < took && ctx.Err() == nil {
				if errs[i] = f(c); errs[i] != nil {
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	count := float64(done.Load())
	if err := errors.Join(errs...); err != nil || count == 0 {
		return 0, 0, cmpErr(err, errors.New("nothing was done"))
	}
	return count / time.Since(start).Seconds(), float64(p.cpu()-before) / count, nil
}

func (b *bench) took() time.Duration {
	if b.quick {
		return time.Second
	}
	return 3 * time.Second
}

// whole reads a response and returns it.
func whole(resp *http.Response, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	return io.ReadAll(resp.Body)
}

// same measures a request that is answered at once against a floor that answers the same bytes.
func (b *bench) same(ctx context.Context, what, era string, target float64, ask func(*conn) (*http.Response, error)) error {
	ours, err := b.ours(ctx)
	if err != nil {
		return err
	}
	defer ours.stop()
	c, err := openConn(ctx, ours.addr, era)
	if err != nil {
		return err
	}
	answer, err := whole(ask(c))
	if err != nil {
		return err
	}
	c.Close()
	file := filepath.Join(b.dir, "canned")
	if err := os.WriteFile(file, answer, 0o600); err != nil {
		return err
	}
	floor, err := b.floor(ctx, "-canned", file)
	if err != nil {
		return err
	}
	defer floor.stop()
	var rates, cpus [2][]float64
	for range b.rounds {
		for i, p := range []*process{floor, ours} {
			f := func(c *conn) error {
				got, err := whole(c.roundTrip("/canned", "", `{"jsonrpc":"2.0","id":7,"method":"x"}`))
				return same(got, answer, err)
			}
			era := era
			if i == 1 {
				f = func(c *conn) error {
					got, err := whole(ask(c))
					return same(got, answer, err)
				}
			} else {
				era = floorEra
			}
			r, cpu, err := load(ctx, p, era, 4, b.took(), f)
			if err != nil {
				return err
			}
			rates[i], cpus[i] = append(rates[i], r), append(cpus[i], cpu)
		}
	}
	b.row(fmt.Sprintf("%s, %d bytes, %s, CPU each", what, len(answer), era), quantile(cpus[0], .5), quantile(cpus[1], .5), micros, target, false)
	b.row(fmt.Sprintf("%s, %s", what, era), quantile(rates[0], .5), quantile(rates[1], .5), rate, 0, true)
	return nil
}

// same checks the length: event ids differ.
func same(got, want []byte, err error) error {
	if err == nil && (len(got) < len(want)-64 || len(got) > len(want)+64) {
		err = fmt.Errorf("answered %d bytes instead of %d: %.200s", len(got), len(want), got)
	}
	return err
}

func (b *bench) list(ctx context.Context) error {
	for _, era := range []string{newEra, oldEra} {
		if err := b.same(ctx, "tools/list", era, 8, func(c *conn) (*http.Response, error) { return c.rpc("tools/list", "", "") }); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) rejected(ctx context.Context) error {
	bad := func(arguments string) func(c *conn) (*http.Response, error) {
		return func(c *conn) (*http.Response, error) {
			return c.rpc("tools/call", "egress-block", `"name":"egress-block","arguments":`+arguments)
		}
	}
	for _, tt := range []struct {
		what string
		ask  func(c *conn) (*http.Response, error)
	}{
		{"rejected: bad host", bad(`{"host":"https://x/","justification":"x"}`)},
		{"rejected: wrong type", bad(`{"host":7}`)},
		{"rejected: not JSON", func(c *conn) (*http.Response, error) { return c.roundTrip("/", "", `{"jsonrpc"`) }},
		{"rejected: unknown version", func(c *conn) (*http.Response, error) {
			return c.roundTrip("/", "MCP-Protocol-Version: zzz\r\n", `{"jsonrpc":"2.0","id":1,"method":"tools/list"}`)
		}},
	} {
		if err := b.same(ctx, tt.what, newEra, 0, tt.ask); err != nil {
			return err
		}
	}
	return nil
}

// cycles measures propose, decide, answer with everything synced, against a floor that syncs the same.
func (b *bench) cycles(ctx context.Context) error {
	for _, clients := range []int{1, 16, 64} {
		ours, floor, stop, err := b.both(ctx, "-durable")
		if err != nil {
			return err
		}
		err = func() error {
			defer stop()
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			var rates, cpus [2][]float64
			errs := make(chan error, 2)
			var operators sync.WaitGroup
			defer operators.Wait()
			defer cancel()
			for _, p := range []*process{floor, ours} {
				ids, err := proposals(ctx, p.dir)
				if err != nil {
					return err
				}
				for range 4 { // operators
					operators.Go(func() {
						for id := range ids {
							if err := store(p.dir, id+responseSuffix, approval(id), true); err != nil {
								select {
								case errs <- err:
								default:
								}
							}
						}
					})
				}
			}
			for range b.rounds {
				for i, p := range []*process{floor, ours} {
					r, cpu, err := load(ctx, p, [2]string{floorEra, newEra}[i], clients, b.took(), func(c *conn) error {
						h, err := c.ask(freshHost())
						if err != nil {
							return err
						}
						if err := h.answer(); err != nil {
							return err
						}
						return h.end()
					})
					if err != nil {
						return err
					}
					rates[i], cpus[i] = append(rates[i], r), append(cpus[i], cpu)
				}
			}
			select {
			case err := <-errs:
				return err
			default:
			}
			target := 0.65
			if clients == 1 {
				target = 0.8
			}
			b.row(fmt.Sprintf("cycles, %d clients", clients), quantile(rates[0], .5), quantile(rates[1], .5), rate, target, true)
			b.row(fmt.Sprintf("cycles, %d clients, CPU each", clients), quantile(cpus[0], .5), quantile(cpus[1], .5), micros, 0, false)
			return nil
		}()
		if err != nil {
			return err
		}
	}
	return nil
}

// timedStart starts a server and returns how long it took to its first answer.
func (b *bench) timedStart(ctx context.Context, ours bool, dir string) (*process, time.Duration, error) {
	port, err := freePort()
	if err != nil {
		return nil, 0, err
	}
	tr := &http.Transport{DisableKeepAlives: true}
	client := &http.Client{Transport: tr, Timeout: 10 * time.Second}
	done := make(chan time.Time, 1)
	stop := make(chan struct{})
	go func() {
		for !healthy(client, "127.0.0.1:"+port) {
			select {
			case <-stop:
				return
			case <-time.After(200 * time.Microsecond):
			}
		}
		done <- time.Now()
	}()
	start := time.Now()
	var p *process
	if ours {
		p, err = b.oursIn(ctx, dir, "SUPERVISE_PORT="+port)
	} else {
		p, err = launch(ctx, dir, nil, b.self, "floor", "-dir", dir, "-addr", "127.0.0.1:"+port)
	}
	if err != nil {
		close(stop)
		return nil, 0, err
	}
	return p, (<-done).Sub(start), nil
}

// fill makes an archive of n pairs, as years of use leave one.
func fill(dir string, n int) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	payload := "{\n  \"host\": \"api.example.com\"\n}\n"
	for range n {
		id := string(queue.NewID())
		p := fmt.Sprintf(`{"id":%q,"bottle_slug":"bench","tool":"egress-block","proposed_file":%q,"justification":"x","current_file_hash":%q,"arrived_at":%q}`,
			id, payload, queue.Hash(payload), time.Now().UTC().Format(time.RFC3339Nano))
		if err := os.WriteFile(filepath.Join(dir, id+proposalSuffix), []byte(p), 0o600); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, id+responseSuffix), approval(id), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func quiet(ctx context.Context, argv ...string) error {
	if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w: %.500s", argv, err, out)
	}
	return nil
}
