package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/bot-bottle/supervise/internal/config"
	"github.com/bot-bottle/supervise/internal/memory"
	"github.com/bot-bottle/supervise/queue"
	"github.com/bot-bottle/supervise/server"
	"github.com/bot-bottle/supervise/tools"
)

func newServe(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "The sidecar: what a bottle's agent asks through",
		Long: `Serve the tools of one bottle over MCP (streamable HTTP), and keep what its agent asks for in
the bottle's mailbox until an operator answers.

Every flag is an environment variable too (--max-pending is SUPERVISE_MAX_PENDING); a flag
wins. Secrets are variables only: SUPERVISE_TOKEN, or SUPERVISE_TOKEN_FILE, is the bearer
token that clients must send. Without one, every neighbour on the network speaks for the
bottle.

On SIGTERM every held call is answered with "status: pending"; nothing is lost by it.`,
		Example: `  SUPERVISE_BOTTLE_SLUG=web SUPERVISE_TOKEN_FILE=/run/secrets/token supervise serve
  supervise serve --bottle-slug web --queue-dir ./queue/web --bind 127.0.0.1`,
		Args:        args(0, 0),
		Annotations: takesHUP,
	}
	settings(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		flags := given(cmd)
		cfg, err := config.LoadSidecar(a.env, flags)
		if err != nil {
			return usagef("supervise serve --help lists the settings", "serve: %v", err)
		}
		hold, err := tools.ParseHold(cfg.Hold)
		if err != nil {
			name := "SUPERVISE_HOLD"
			if _, ok := flags["hold"]; ok {
				name = "--hold (SUPERVISE_HOLD)"
			}
			return usagef("such as 240s, or codex-mcp-client=240s,*=50s", "serve: %s: %v", name, err)
		}
		ctx, stop := interruptible(cmd.Context())
		defer stop()
		return a.serve(ctx, cfg, hold)
	}
	return cmd
}

// settings gives a command the sidecar's flags: all, or those that are named.
func settings(cmd *cobra.Command, only ...string) {
	for _, v := range config.SidecarVars() {
		if v.Flag == "" || len(only) > 0 && !slices.Contains(only, v.Flag) {
			continue
		}
		f := &setting{value: v.Default, kind: "value"}
		if v.Default == "false" {
			f.kind = "bool"
		}
		flag := cmd.Flags().VarPF(f, v.Flag, "", v.Usage)
		if f.kind == "bool" {
			flag.NoOptDefVal = "true"
		}
	}
}

// setting is a flag whose text package config reads, as it reads the environment.
type setting struct{ value, kind string }

func (s *setting) String() string         { return s.value }
func (s *setting) Set(value string) error { s.value = value; return nil }
func (s *setting) Type() string           { return s.kind }

// given are the flags that were set.
func given(cmd *cobra.Command) map[string]string {
	out := map[string]string{}
	cmd.Flags().Visit(func(f *pflag.Flag) { out[f.Name] = f.Value.String() })
	return out
}

func (a *app) serve(ctx context.Context, cfg config.Sidecar, hold func(string) (time.Duration, bool)) error {
	log := newLog(a.err, cfg.Debug)
	var m *metrics
	var shown *metricsServer
	o := tools.Options{
		Bottle: cfg.BottleSlug, Hold: hold, Redeliver: cfg.Redeliver, MaxPending: cfg.MaxPending, MaxWaiting: cfg.MaxWaiting,
		EgressProxy: cfg.EgressProxy, Dockerfile: cfg.Dockerfile,
	}
	if cfg.Metrics != "" {
		m = newMetrics(cfg.BottleSlug)
		o.Observe = m.observe
	}
	side := newSidecar(sidecarOptions{
		Dir: cfg.QueueDir, Tools: o,
		Server: server.Options{
			MaxConns: cfg.MaxWaiting + 2048, // the held calls, and room for the streams and for what is not held
			Addr:     cfg.Addr(), Token: string(cfg.Token), AllowedHosts: cfg.AllowedHosts,
			Ready: func() error { return mailboxThere(cfg.QueueDir) },
		},
	}, log)
	var err error
	if m != nil {
		err = listenOrReplace(ctx, side, cfg.Metrics, func() (err error) {
			if shown, err = listenMetrics(cfg.Metrics, m.reg, log); err != nil {
				return hint(err, "SUPERVISE_METRICS, or --metrics, moves it")
			}
			return nil
		})
	}
	if err == nil {
		err = listenOrReplace(ctx, side, cfg.Addr(), func() error {
			err := side.listen()
			if errors.Is(err, syscall.EADDRINUSE) {
				return hint(err, "something else listens there; SUPERVISE_PORT, or --port, moves the sidecar")
			}
			return err
		})
	}
	if err != nil {
		err = locked(errors.Join(err, side.Close()))
		if shown != nil {
			err = errors.Join(err, shown.ln.Close())
		}
		if ctx.Err() != nil {
			return nil // it was stopped before it served
		}
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return side.Run(ctx) })
	g.Go(func() error {
		memory.Run(ctx)
		return nil
	})
	if m != nil {
		m.watch(cfg.BottleSlug, side)
		log.Info("metrics on http://" + shown.ln.Addr().String() + "/metrics")
		g.Go(func() error { return shown.Run(ctx) })
	}
	g.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-a.hup:
				log.Info("SIGHUP: there is nothing to reload; the environment is read at start")
			}
		}
	})
	return locked(g.Wait())
}

// listenOrReplace listens. Where addr is taken, perhaps by the sidecar that this one replaces, it takes the mailbox first, which that one
// gives back last.
func listenOrReplace(ctx context.Context, side *sidecar, addr string, listen func() error) error {
	err := listen()
	if !errors.Is(err, syscall.EADDRINUSE) || side.box != nil {
		return err
	}
	side.log.Info("the port is taken: waiting for the mailbox, in case another sidecar has both", "addr", addr)
	if err := side.open(ctx); err != nil {
		return err
	}
	return listen()
}

func locked(err error) error {
	if errors.Is(err, queue.ErrLocked) {
		return hint(err, "another sidecar serves this bottle: stop it, or give this one a mailbox of its own")
	}
	return err
}

// mailboxThere fails once the directory has gone, as when a mount is lost, or can be written no more.
func mailboxThere(dir string) error {
	st, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("the mailbox: %w", err)
	}
	if !st.IsDir() {
		return fmt.Errorf("the mailbox %s is not a directory", dir)
	}
	if err := unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return fmt.Errorf("the mailbox %s cannot be written: %w", dir, err)
	}
	return nil
}
