//go:build !slim

package main

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/queue"
)

var (
	descDeskOpen    = prometheus.NewDesc("supervise_desk_open", "Proposals that nobody has decided yet, by state: open, failed, stuck, bad, deciding.", []string{"bottle", "state"}, nil)
	descDeskDanger  = prometheus.NewDesc("supervise_desk_dangerous", "Those of them that need a danger accepted.", []string{"bottle"}, nil)
	descDeskWaiting = prometheus.NewDesc("supervise_desk_connected", "Those of them whose agent is waiting now.", []string{"bottle"}, nil)
	descDeskOldest  = prometheus.NewDesc("supervise_desk_oldest_seconds", "How long the oldest of them has been open; 0 without any.", []string{"bottle"}, nil)
	descDeskProblem = prometheus.NewDesc("supervise_desk_problems", "What is wrong with a mailbox, or skipped in it.", []string{"bottle"}, nil)
	descDeskEvents  = prometheus.NewDesc("supervise_desk_events_total", "Lines of the ledger, by event: decided, applied, failed, stuck, foreign, undone, not-replaced, torn.", []string{"event", "tool", "status"}, nil)
	descDeskUp      = prometheus.NewDesc("supervise_desk_up", "1 while the mailboxes can be listed and the ledger be read.", nil, nil)
)

var (
	deskStates = []operator.State{operator.Open, operator.Failed, operator.Stuck, operator.Bad, operator.Deciding}
	deskEvents = []string{operator.EventDecided, operator.EventApplied, operator.EventFailed, operator.EventStuck, operator.EventForeign, operator.EventUndone, operator.EventNotReplaced}
)

// deskCollector reads everything at each scrape; of the ledger only what is new.
type deskCollector struct {
	desk *desk

	mu     sync.Mutex
	seq    int64                // guarded by mu; the last line counted
	events map[deskEvent]uint64 // guarded by mu
}

type deskEvent struct{ event, tool, status string }

// deskMetrics is a registry that shows all bottles of a desk.
func deskMetrics(d *desk) *prometheus.Registry {
	reg := prometheus.NewRegistry()
	c := &deskCollector{desk: d, events: map[deskEvent]uint64{}}
	for _, event := range deskEvents { // 0, not absent, so that the first time is an increase
		for _, tool := range proposing {
			for _, status := range []queue.Status{queue.Approved, queue.Modified, queue.Rejected} {
				c.events[deskEvent{event, tool, string(status)}] = 0
			}
		}
	}
	reg.MustRegister(c, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg
}

func (*deskCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descInfo, descDeskOpen, descDeskDanger, descDeskWaiting, descDeskOldest, descDeskProblem, descDeskEvents, descDeskUp} {
		ch <- d
	}
}

// Collect leaves out what it cannot know.
func (c *deskCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(descInfo, 1, version)
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Second)
	defer cancel()
	up := 1.0
	s, err := c.desk.Snapshot(ctx)
	if err != nil {
		up = 0
	} else {
		for _, b := range s.Bottles {
			open := map[operator.State]int{}
			danger, waiting, problems := 0, 0, 0
			var oldest time.Duration
			for _, it := range s.Items {
				if it.Bottle != b {
					continue
				}
				open[it.State]++
				oldest = max(oldest, it.Age)
				if it.Danger {
					danger++
				}
				if it.Connected == operator.Waiting {
					waiting++
				}
			}
			for _, p := range s.Problems {
				if p.Bottle == b {
					problems += p.Count()
				}
			}
			for _, state := range deskStates {
				gauge(descDeskOpen, float64(open[state]), b, string(state))
			}
			gauge(descDeskDanger, float64(danger), b)
			gauge(descDeskWaiting, float64(waiting), b)
			gauge(descDeskOldest, oldest.Seconds(), b)
			gauge(descDeskProblem, float64(problems), b)
		}
	}
	events, err := c.count(ctx)
	if err != nil {
		up = 0
	}
	for e, n := range events {
		ch <- prometheus.MustNewConstMetric(descDeskEvents, prometheus.CounterValue, float64(n), e.event, e.tool, e.status)
	}
	gauge(descDeskUp, up)
}

// count adds the lines that the ledger has got since the last time, and returns a copy of the sums. On an error nothing is
// added: it is counted the next time.
func (c *deskCollector) count(ctx context.Context) (map[deskEvent]uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var fresh []operator.LedgerEntry
	var failed error
	for e, err := range c.desk.History(ctx, operator.HistoryFilter{}) {
		if err != nil {
			failed = err
			break
		}
		if e.Seq <= c.seq {
			break
		}
		fresh = append(fresh, e)
	}
	if failed == nil && len(fresh) > 0 {
		c.seq = fresh[0].Seq // newest first
		for _, e := range fresh {
			tool, status := e.Tool, string(e.Status)
			if tool != "" && !slices.Contains(proposing, tool) {
				tool = otherTool
			}
			c.events[deskEvent{e.Event, tool, status}]++
		}
	}
	return maps.Clone(c.events), failed
}
