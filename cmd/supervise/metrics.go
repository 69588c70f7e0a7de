package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/queue"
	"github.com/bot-bottle/supervise/tools"
)

// metrics are what a sidecar counts. The names are part of what users rely on: docs, dashboard and alert rules in
// examples/metrics use them.
type metrics struct {
	reg *prometheus.Registry

	proposals, rejoined, replayed, left, refused, failed, archiveFailures *prometheus.CounterVec // by tool

	decisions *prometheus.CounterVec   // by tool and status
	seconds   *prometheus.HistogramVec // by tool
	holdEnds  *prometheus.CounterVec   // by tool and reason
}

const otherTool = "other" // a proposal that another program stored may name any tool

var proposing = []string{payload.Egress, payload.Pipelock, payload.Capability}

func newMetrics(bottle string) *metrics {
	m := &metrics{reg: prometheus.NewRegistry()}
	reg := prometheus.WrapRegistererWith(prometheus.Labels{"bottle": bottle}, m.reg)
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "supervise", Name: name, Help: help}, append([]string{"tool"}, labels...))
		reg.MustRegister(c)
		return c
	}
	m.proposals = counter("proposals_total", "Proposals that were stored.")
	m.rejoined = counter("rejoined_total", "Calls that joined a proposal that was open already.")
	m.replayed = counter("replayed_total", "Answers that were given again after they had gone out.")
	m.left = counter("left_total", "Calls whose client hung up or cancelled while they waited.")
	m.refused = counter("refused_total", "Calls that were turned down: bad input, or a limit.")
	m.failed = counter("failed_total", "Calls that failed through a fault of the sidecar or its mailbox.")
	m.archiveFailures = counter("archive_failures_total", "Answers that went out without the mailbox taking note of it.")
	m.decisions = counter("decisions_total", "Decisions that reached the agent, once each.", "status")
	m.holdEnds = counter("hold_ends_total", "Calls answered 'pending', by reason: hold (the client's limit), crowded, restart.", "reason")
	m.seconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: "supervise", Name: "decision_seconds", Help: "From a proposal to the decision on it.",
		Buckets: []float64{5, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 4 * 3600, 8 * 3600, 24 * 3600, 72 * 3600},
	}, []string{"tool"})
	reg.MustRegister(m.seconds, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	// What has not happened yet is 0, not absent, so that the first time is an increase.
	for _, tool := range proposing {
		for _, c := range []*prometheus.CounterVec{m.proposals, m.rejoined, m.replayed, m.left, m.refused, m.failed, m.archiveFailures} {
			c.WithLabelValues(tool)
		}
		for _, status := range []queue.Status{queue.Approved, queue.Modified, queue.Rejected} {
			m.decisions.WithLabelValues(tool, string(status))
		}
		for _, reason := range []string{tools.ReasonHold, tools.ReasonCrowded, tools.ReasonRestart} {
			m.holdEnds.WithLabelValues(tool, reason)
		}
		m.seconds.WithLabelValues(tool)
	}
	return m
}

// observe is a tools.Options.Observe.
func (m *metrics) observe(e tools.Event) {
	tool := e.Tool
	if !slices.Contains(proposing, tool) && tool != tools.Await && tool != tools.ListRoutes {
		tool = otherTool
	}
	switch e.Kind {
	case tools.Asked:
		m.proposals.WithLabelValues(tool).Inc()
	case tools.Rejoined:
		m.rejoined.WithLabelValues(tool).Inc()
	case tools.Replayed:
		m.replayed.WithLabelValues(tool).Inc()
	case tools.Left:
		m.left.WithLabelValues(tool).Inc()
	case tools.Refused:
		m.refused.WithLabelValues(tool).Inc()
	case tools.Failed:
		m.failed.WithLabelValues(tool).Inc()
	case tools.ArchiveFailed:
		m.archiveFailures.WithLabelValues(tool).Inc()
	case tools.HoldEnded:
		m.holdEnds.WithLabelValues(tool, e.Reason).Inc()
	case tools.Delivered:
		m.decisions.WithLabelValues(tool, string(e.Status)).Inc()
		m.seconds.WithLabelValues(tool).Observe(e.After.Seconds())
	}
}

// watch adds what is read from the sidecar at each scrape.
func (m *metrics) watch(bottle string, s *sidecar) {
	prometheus.WrapRegistererWith(prometheus.Labels{"bottle": bottle}, m.reg).MustRegister(&sidecarCollector{s})
}

var (
	descInfo        = prometheus.NewDesc("supervise_build_info", "1; the label has the version.", []string{"version"}, nil)
	descOpen        = prometheus.NewDesc("supervise_proposals_open", "Proposals that nobody has decided yet.", nil, nil)
	descOldest      = prometheus.NewDesc("supervise_oldest_open_seconds", "How long the oldest of them has been open; 0 without any.", nil, nil)
	descUndelivered = prometheus.NewDesc("supervise_answers_undelivered", "Decisions that have not reached the agent yet.", nil, nil)
	descWaiting     = prometheus.NewDesc("supervise_calls_waiting", "Calls that are held now.", nil, nil)
	descReadable    = prometheus.NewDesc("supervise_mailbox_readable", "1 while the mailbox can be read.", nil, nil)
	descFlooded     = prometheus.NewDesc("supervise_mailbox_flooded", "1 while the mailbox holds too many names.", nil, nil)
	descWatched     = prometheus.NewDesc("supervise_mailbox_watched", "1 while file events are asked for; 0: polling is all there is.", nil, nil)
	descProven      = prometheus.NewDesc("supervise_mailbox_events_proven", "1 once a file event announced a decision, until one comes without.", nil, nil)
	descMissed      = prometheus.NewDesc("supervise_mailbox_missed_events_total", "Times a poll found what no file event had announced.", nil, nil)
)

type sidecarCollector struct{ *sidecar }

func (*sidecarCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descInfo, descOpen, descOldest, descUndelivered, descWaiting, descReadable, descFlooded, descWatched, descProven, descMissed} {
		ch <- d
	}
}

// Collect leaves out what it cannot know, so that a mailbox in trouble does not hide the rest.
func (c *sidecarCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	is := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	gauge(descInfo, 1, version)
	select {
	case <-c.opened:
	default:
		gauge(descReadable, 0)
		return
	}
	gauge(descWaiting, float64(c.tools.Waiting()))
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	var open, undelivered int
	var oldest time.Duration
	var failed error
	for e, err := range c.box.Entries(ctx) {
		switch {
		case errors.Is(err, queue.ErrBad) || errors.Is(err, queue.ErrFlooded):
		case err != nil:
			failed = err
		case e.Response != nil:
			undelivered++
		default:
			open++
			oldest = max(oldest, e.Age)
		}
	}
	if failed == nil {
		gauge(descOpen, float64(open))
		gauge(descOldest, oldest.Seconds())
		gauge(descUndelivered, float64(undelivered))
	}
	h := c.box.Health() // of the look that Entries took
	gauge(descReadable, is(failed == nil && !h.Lost))
	gauge(descFlooded, is(h.Flooded))
	gauge(descWatched, is(h.Watched))
	gauge(descProven, is(h.Proven))
	ch <- prometheus.MustNewConstMetric(descMissed, prometheus.CounterValue, float64(h.Missed))
}

// metricsServer shows a registry at /metrics, on a listener of its own: whoever reaches the tools need not reach it.
type metricsServer struct {
	ln  net.Listener
	srv *http.Server
}

func listenMetrics(addr string, reg *prometheus.Registry, log *slog.Logger) (*metricsServer, error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listening for metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		MaxRequestsInFlight: 4,
		Timeout:             10 * time.Second,
	}))
	return &metricsServer{ln, &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      20 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}}, nil
}

// Run serves until ctx ends.
func (m *metricsServer) Run(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { m.srv.Close() })() // a scrape that is cut off is repeated
	if err := m.srv.Serve(m.ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving metrics: %w", err)
	}
	return nil
}
