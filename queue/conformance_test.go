package queue_test

import (
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/bot-bottle/supervise/queue"
	"github.com/bot-bottle/supervise/queue/queuetest"
)

func dirBackend(noWatch bool) func(t *testing.T) queuetest.Backend {
	return func(t *testing.T) queuetest.Backend {
		root := filepath.Join(t.TempDir(), "root")
		log := slog.New(slog.NewTextHandler(t.Output(), nil))
		var fault atomic.Pointer[queue.Fault]
		hook := func(step string, done bool) error {
			if f := fault.Load(); f != nil && *f != nil {
				return (*f)(step, done)
			}
			return nil
		}
		return queuetest.Backend{
			Mailbox: func(t *testing.T, slug string) queue.Mailbox {
				t.Helper()
				d, err := queue.OpenDir(t.Context(), filepath.Join(root, slug), queue.Options{Slug: slug, Logger: log, NoWatch: noWatch, Fault: hook})
				if err != nil {
					t.Fatal(err)
				}
				return d
			},
			Inbox: func(t *testing.T) queue.Inbox {
				t.Helper()
				r, err := queue.OpenRoot(root, queue.RootOptions{Logger: log, NoWatch: noWatch, Fault: hook})
				if err != nil {
					t.Fatal(err)
				}
				return r
			},
			SetFault: func(f queue.Fault) { fault.Store(&f) },
		}
	}
}

func TestDir(t *testing.T)        { t.Parallel(); queuetest.Run(t, dirBackend(false)) }
func TestDirPolling(t *testing.T) { t.Parallel(); queuetest.Run(t, dirBackend(true)) }

func TestMem(t *testing.T) {
	queuetest.Run(t, func(t *testing.T) queuetest.Backend {
		m := queue.NewMem()
		return queuetest.Backend{
			Mailbox:  func(_ *testing.T, slug string) queue.Mailbox { return m.Mailbox(slug) },
			Inbox:    func(*testing.T) queue.Inbox { return m },
			SetFault: m.SetFault,
		}
	})
}
