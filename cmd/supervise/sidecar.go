package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/bot-bottle/supervise/queue"
	"github.com/bot-bottle/supervise/server"
	"github.com/bot-bottle/supervise/tools"
)

// sidecarOptions are what serve, up and demo say of a bottle's sidecar.
type sidecarOptions struct {
	Dir    string // the bottle's mailbox
	Tools  tools.Options
	Server server.Options
}

// sidecar is one bottle's mailbox, tools and server, listening from openSidecar on.
type sidecar struct {
	box   *queue.Dir
	tools *tools.Tools
	srv   *server.Server
}

// openSidecar takes the mailbox first: whoever cannot have it must not answer for the bottle.
func openSidecar(o sidecarOptions, log *slog.Logger) (*sidecar, error) {
	box, err := queue.OpenDir(o.Dir, queue.Options{Slug: o.Tools.Bottle, Logger: log})
	if err != nil {
		return nil, err
	}
	o.Tools.Mailbox, o.Tools.Logger = box, log
	t, err := tools.New(o.Tools)
	if err != nil {
		return nil, errors.Join(err, box.Close())
	}
	o.Server.Register = func(s *mcp.Server) {
		t.Register(s)
		s.AddReceivingMiddleware(t.Middleware())
	}
	o.Server.Instructions, o.Server.Version, o.Server.Logger = t.Instructions(), version, log
	srv, err := server.New(o.Server)
	if err != nil {
		return nil, errors.Join(err, box.Close())
	}
	return &sidecar{box, t, srv}, nil
}

// Run serves until ctx ends. The mailbox is closed last, when nothing is held any more.
func (s *sidecar) Run(ctx context.Context) error {
	err := s.srv.Run(ctx)
	if cerr := s.box.Close(); cerr != nil {
		err = errors.Join(err, fmt.Errorf("closing the mailbox: %w", cerr))
	}
	return err
}

// Close gives up a sidecar that never ran.
func (s *sidecar) Close() error { return errors.Join(s.srv.Close(), s.box.Close()) }
