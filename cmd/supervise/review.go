//go:build !slim

package main

import (
	"cmp"
	"context"
	"errors"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/bot-bottle/supervise/internal/operator/tui"
)

func newReview(a *app) *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:   "review",
		Short: "Look and decide on a live screen",
		Long: `The inbox of every bottle on a live screen: what is asked, exactly what would change, and one
or two keys to decide. ? lists the keys.

A new proposal rings the bell and notifies the desktop where the terminal can (OSC 9). NO_COLOR
turns colour off. While it runs it also finishes what interrupted commands left, every five seconds.`,
		Example: `  supervise review
  supervise review --quiet`,
		Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.review(cmd.Context(), quiet) },
	}
	a.rootFlags(cmd)
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "neither ring the bell nor notify the desktop")
	return cmd
}

func (a *app) review(ctx context.Context, quiet bool) (err error) {
	if !a.inTTY || !a.style.tty {
		return usagef("supervise list and supervise show work without one", "review needs a terminal")
	}
	if a.env("TERM") == "dumb" {
		return usagef("supervise list and supervise show work on any", "review needs a terminal that can move its cursor: TERM is dumb")
	}
	d, err := a.openDeskVia("tui")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	a.tellUnread(d)
	n, err := a.notifier(d, "", nil) // the screen is no place for a log
	if err != nil {
		return err
	}
	n.own.Sinks = nil // it rings itself
	if b := d.notify.Bell; b != nil && !*b {
		quiet = true
	}
	if err := a.recover(ctx, d); err != nil {
		return err
	}
	ctx, stop := interruptible(ctx)
	defer stop()
	g, gctx := errgroup.WithContext(ctx)
	gctx, done := context.WithCancel(gctx)
	defer done()
	g.Go(func() error { return d.Run(gctx) })
	g.Go(func() error { return n.Run(gctx) })
	g.Go(func() error {
		defer done() // quitting ends the recovering too
		return tui.Run(gctx, tui.Options{
			Desk: d, Root: d.root, In: a.in, Out: a.out, Env: os.Environ(), NoColor: !a.style.color, Quiet: quiet,
			Editor: cmp.Or(a.env("VISUAL"), a.env("EDITOR"), "vi"),
		})
	})
	return g.Wait()
}
