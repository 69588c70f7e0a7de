package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bot-bottle/supervise/internal/testbin"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "floor" { // the floor is this program again
		main()
		return
	}
	os.Exit(m.Run())
}

// BenchmarkAgainstFloor has what make bench measures as benchmarks, shortened: each ratio of sidecar to floor is a metric.
// BENCH_DIR is where mailboxes are made.
func BenchmarkAgainstFloor(b *testing.B) {
	bin := filepath.Join(b.TempDir(), "supervise")
	if err := testbin.Build(bin, "-trimpath"); err != nil {
		b.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	for _, s := range sections {
		b.Run(s.name, func(b *testing.B) {
			dir, err := os.MkdirTemp(os.Getenv("BENCH_DIR"), "supervise-bench-")
			if err != nil {
				b.Fatal(err)
			}
			defer os.RemoveAll(dir)
			run := bench{bin: bin, self: self, dir: dir, rounds: 1, most: 1000, quick: true, out: io.Discard, log: io.Discard}
			sums, order := map[string]float64{}, []string(nil)
			run.ratio = func(what string, x float64) {
				if sums[what] == 0 {
					order = append(order, what)
				}
				sums[what] += x
			}
			n := 0
			for b.Loop() {
				if err := s.run(&run, b.Context()); err != nil {
					b.Fatal(err)
				}
				n++
			}
			for _, what := range order {
				b.ReportMetric(sums[what]/float64(n), strings.ReplaceAll(strings.ReplaceAll(what, ", ", "/"), " ", "-")+"-x")
			}
		})
	}
}
