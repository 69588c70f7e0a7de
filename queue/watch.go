package queue

import (
	"errors"
	"syscall"

	"github.com/fsnotify/fsnotify"
)

// watcher is the source of "look now". What an event says is a hint and not relied on: some mounts deliver a rename as another
// event, some none. Its channels are nil when there is none to be had, and then polling is all there is.
type watcher struct {
	events <-chan fsnotify.Event
	errors <-chan error // events were lost
	add    func(path string) error
	remove func(path string) error
	close  func() error
}

func noWatcher() *watcher {
	nothing := func(string) error { return nil }
	return &watcher{add: nothing, remove: nothing, close: func() error { return nil }}
}

func newWatcher() (*watcher, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return noWatcher(), limitHint(err)
	}
	return &watcher{events: w.Events, errors: w.Errors, add: w.Add, remove: w.Remove, close: w.Close}, nil
}

func limitHint(err error) error {
	switch {
	case errors.Is(err, syscall.EMFILE):
		return errors.Join(err, errors.New("raise fs.inotify.max_user_instances or the limit on open files"))
	case errors.Is(err, syscall.ENOSPC):
		return errors.Join(err, errors.New("raise fs.inotify.max_user_watches"))
	}
	return err
}
