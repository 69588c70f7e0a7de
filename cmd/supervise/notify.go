package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/bot-bottle/supervise/internal/notify"
)

// notifier tells people what waits, as supervise.yaml says. It is made before a long-running command begins, so that a
// mistake is told at once.
type notifier struct {
	shared, own notify.Options // of all processes of these mailboxes; of this terminal
}

// notifier reads the notify section. The url is the web desk's, for messages, and may be empty.
func (a *app) notifier(d *desk, url string, log *slog.Logger) (*notifier, error) {
	n := &notifier{
		shared: notify.Options{Desk: d, State: filepath.Join(d.root, ".desk", "notify"), RemindAfter: d.notify.RemindAfter, URL: url, Logger: log},
		own:    notify.Options{Desk: d, RemindAfter: d.notify.RemindAfter, Logger: log},
	}
	if len(d.notify.Exec) > 0 {
		n.shared.Sinks = append(n.shared.Sinks, notify.Exec(d.dir, d.notify.Exec))
	}
	if w := d.notify.Webhook; w != nil {
		o := notify.WebhookOptions{URL: w.URL}
		if w.SecretFile != "" {
			key, err := os.ReadFile(w.SecretFile)
			if err != nil {
				return nil, hint(fmt.Errorf("reading notify.webhook.secret_file: %w", err), "it holds the key that messages are signed with")
			}
			if o.Secret = bytes.TrimSpace(key); len(o.Secret) == 0 {
				return nil, hint(fmt.Errorf("notify.webhook.secret_file %s is empty", quote(w.SecretFile)), "it holds the key that messages are signed with")
			}
		}
		n.shared.Sinks = append(n.shared.Sinks, notify.Webhook(o))
	}
	if b := d.notify.Bell; b != nil && *b && terminal(a.err) != nil {
		n.own.Sinks = append(n.own.Sinks, notify.Terminal(a.err))
	}
	return n, nil
}

// Run notifies until ctx ends.
func (n *notifier) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return notify.Run(ctx, n.shared) })
	g.Go(func() error { return notify.Run(ctx, n.own) })
	return g.Wait()
}
