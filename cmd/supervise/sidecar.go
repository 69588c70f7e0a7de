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

// sidecar is one bottle's mailbox, tools and server.
type sidecar struct {
	o      sidecarOptions
	log    *slog.Logger
	srv    *server.Server
	opened chan struct{} // closed when box and tools are there
	box    *queue.Dir
	tools  *tools.Tools
}

func newSidecar(o sidecarOptions, log *slog.Logger) *sidecar {
	s := &sidecar{o: o, log: log, opened: make(chan struct{})}
	s.o.Server.Opened = s.opened
	s.o.Server.Register = func(m *mcp.Server) {
		s.tools.Register(m)
		m.AddReceivingMiddleware(s.tools.Middleware())
	}
	s.o.Server.Instructions, s.o.Server.Version, s.o.Server.Logger = o.Tools.Instructions(), version, log
	return s
}

// listen comes before open where it can: nobody is answered for the bottle before the mailbox is open, but until then the server
// says that it lives, and what is asked of it waits.
func (s *sidecar) listen() (err error) {
	s.srv, err = server.New(s.o.Server)
	return err
}

// open takes the mailbox and reads what is in it.
func (s *sidecar) open(ctx context.Context) error {
	box, err := queue.OpenDir(ctx, s.o.Dir, queue.Options{Slug: s.o.Tools.Bottle, Logger: s.log})
	if err != nil {
		return err
	}
	s.o.Tools.Mailbox, s.o.Tools.Logger = box, s.log
	t, err := tools.New(s.o.Tools)
	if err != nil {
		return errors.Join(err, box.Close())
	}
	s.box, s.tools = box, t
	close(s.opened)
	s.log.Info("the mailbox is open", "dir", s.o.Dir)
	return nil
}

// openSidecar does both.
func openSidecar(ctx context.Context, o sidecarOptions, log *slog.Logger) (*sidecar, error) {
	s := newSidecar(o, log)
	if err := s.listen(); err != nil {
		return nil, err
	}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, s.srv.Close())
	}
	return s, nil
}

// Run serves until ctx ends, and opens the mailbox if that is not done yet. The mailbox is closed last, when nothing is held any
// more.
func (s *sidecar) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	served := make(chan error, 1)
	go func() { served <- s.srv.Run(ctx) }()
	if s.box == nil {
		if err := s.open(ctx); err != nil && ctx.Err() != nil {
			return <-served // it was stopped before it had a mailbox
		} else if err != nil {
			cancel(err)
			return errors.Join(err, <-served)
		}
	}
	err := <-served
	if cerr := s.box.Close(); cerr != nil {
		err = errors.Join(err, fmt.Errorf("closing the mailbox: %w", cerr))
	}
	return err
}

// Close gives up a sidecar that never ran.
func (s *sidecar) Close() (err error) {
	if s.srv != nil {
		err = s.srv.Close()
	}
	if s.box != nil {
		err = errors.Join(err, s.box.Close())
	}
	return err
}
