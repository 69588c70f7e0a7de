// Bench measures the sidecar against a floor in the same run: a bare net/http handler that waits on one inotify
// watch. Both are processes of their own; rounds are interleaved, and what is printed are medians and their ratio, since no absolute
// time says anything beyond the machine and the minute it was taken on. It asserts nothing.
//
//	make bench                             everything, some minutes
//	go run ./internal/bench -bin bin/supervise -only latency,memory -dir /dev/shm
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "floor" {
		if err := runFloor(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "floor:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run.
type bench struct {
	bin, self string
	dir       string // for mailboxes; removed at the end
	rounds    int
	most      int // waiting calls
	quick     bool
	out       io.Writer
	log       io.Writer
	n         int                          // mailboxes so far
	ratio     func(what string, x float64) // told of each; may be nil
}

var sections = []struct {
	name string
	run  func(*bench, context.Context) error
}{
	{"latency", (*bench).latency},
	{"memory", (*bench).memory},
	{"idle", (*bench).idle},
	{"list", (*bench).list},
	{"rejected", (*bench).rejected},
	{"cycles", (*bench).cycles},
	{"start", (*bench).start},
	{"archive", (*bench).archived},
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	var names []string
	for _, s := range sections {
		names = append(names, s.name)
	}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(stderr)
	b := &bench{out: stdout, log: stderr}
	fs.StringVar(&b.bin, "bin", "bin/supervise", "the binary to measure")
	dir := fs.String("dir", os.TempDir(), "where mailboxes are made; what is said of syncing is said of this file system")
	only := fs.String("only", strings.Join(names, ","), "what to measure")
	fs.IntVar(&b.rounds, "rounds", 5, "interleaved rounds")
	fs.IntVar(&b.most, "most", 10000, "waiting calls, at most")
	fs.BoolVar(&b.quick, "quick", false, "shorter rounds")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	if b.bin, err = filepath.Abs(b.bin); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp(*dir, "supervise-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	load, _ := os.ReadFile("/proc/loadavg")
	fmt.Fprintf(b.out, "%s, %d cores, load %s, %s, mailboxes in %s\n\n", runtime.Version(), runtime.NumCPU(), strings.TrimSpace(string(load)), time.Now().Format(time.DateOnly), *dir)
	fmt.Fprintf(b.out, "| what | floor | supervise | ratio | target | |\n|---|---|---|---|---|---|\n")
	for _, s := range sections {
		if !slices.Contains(strings.Split(*only, ","), s.name) {
			continue
		}
		fmt.Fprintln(b.log, "bench:", s.name)
		if err := s.run(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// row prints one line; a target of 0 is none. The ratio is of supervise to the floor; with more, a higher one is better.
func (b *bench) row(what string, floor, ours float64, format func(float64) string, target float64, more bool) {
	ratio, want, met := "", "", ""
	if floor > 0 {
		ratio = fmt.Sprintf("%.2f", ours/floor)
		if b.ratio != nil {
			b.ratio(what, ours/floor)
		}
	}
	if target > 0 {
		want, met = fmt.Sprintf("≤ %.2f", target), "met"
		if more {
			want = fmt.Sprintf("≥ %.2f", target)
		}
		if more != (ours/floor >= target) && ours/floor != target {
			met = "missed"
		}
	}
	fmt.Fprintf(b.out, "| %s | %s | %s | %s | %s | %s |\n", what, format(floor), format(ours), ratio, want, met)
}

// note prints a line that has no floor; limit 0 is none.
func (b *bench) note(what string, ours float64, format func(float64) string, limit float64) {
	want, met := "", ""
	if limit > 0 {
		want, met = "≤ "+format(limit), "met"
		if ours > limit {
			met = "missed"
		}
	}
	fmt.Fprintf(b.out, "| %s | | %s | | %s | %s |\n", what, format(ours), want, met)
}

func micros(v float64) string  { return fmt.Sprintf("%.0f µs", v/1e3) }
func millis(v float64) string  { return fmt.Sprintf("%.1f ms", v/1e6) }
func kib(v float64) string     { return fmt.Sprintf("%.1f KiB", v/1024) }
func mib(v float64) string     { return fmt.Sprintf("%.1f MiB", v/(1<<20)) }
func rate(v float64) string    { return fmt.Sprintf("%.0f/s", v) }
func percent(v float64) string { return fmt.Sprintf("%.2f %%", 100*v) }

func quantile[T cmp.Ordered](all []T, q float64) T {
	s := slices.Sorted(slices.Values(all))
	return s[min(int(q*float64(len(s))), len(s)-1)]
}

// ours starts the sidecar on an empty mailbox.
func (b *bench) ours(ctx context.Context, env ...string) (*process, error) {
	return b.oursIn(ctx, b.fresh(), env...)
}

func (b *bench) fresh() string {
	b.n++
	return filepath.Join(b.dir, fmt.Sprintf("m%d", b.n), "bench")
}

func (b *bench) oursIn(ctx context.Context, dir string, env ...string) (*process, error) {
	return launch(ctx, dir, append([]string{
		"SUPERVISE_BOTTLE_SLUG=bench", "SUPERVISE_QUEUE_DIR=" + dir, "SUPERVISE_BIND=127.0.0.1", "SUPERVISE_PORT=0", "SUPERVISE_HOLD=0",
		"SUPERVISE_MAX_PENDING=4096", "SUPERVISE_MAX_WAITING=100000",
	}, env...), b.bin, "serve")
}

func (b *bench) floor(ctx context.Context, args ...string) (*process, error) {
	dir := b.fresh()
	return launch(ctx, dir, nil, append([]string{b.self, "floor", "-dir", dir}, args...)...)
}

// both starts the sidecar and the floor, and has stop end them.
func (b *bench) both(ctx context.Context, floorArgs ...string) (ours, floor *process, stop func(), err error) {
	if ours, err = b.ours(ctx); err != nil {
		return nil, nil, nil, err
	}
	if floor, err = b.floor(ctx, floorArgs...); err != nil {
		ours.stop()
		return nil, nil, nil, err
	}
	return ours, floor, func() { ours.stop(); floor.stop() }, nil
}
