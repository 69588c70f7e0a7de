package operator

import (
	"context"
	"time"
)

// LookAtEach looks at once, after each change and every so often, until ctx ends, which is no error, or look fails. Between two looks
// is the pace at least, and as much time as the last one took: changes without end, which a sidecar can make, take half of the time at most.
func LookAtEach(ctx context.Context, changes <-chan struct{}, every, pace time.Duration, look func(context.Context) error) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		began := time.Now()
		if err := look(ctx); err != nil && ctx.Err() == nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(max(pace, time.Since(began))):
		}
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-changes:
			if !ok {
				changes = nil
			}
		case <-tick.C:
		}
	}
}
