package operator

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestChangesWithoutEnd: a sidecar that changes something all the time has us look half of the time at most.
func TestChangesWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		changes := make(chan struct{}, 1)
		n := 0
		err := LookAtEach(ctx, changes, time.Hour, time.Millisecond, func(context.Context) error {
			n++
			select {
			case changes <- struct{}{}:
			default:
			}
			time.Sleep(100 * time.Millisecond)
			return nil
		})
		if err != nil || n > 301 {
			t.Errorf("%d looks of 100 ms in a minute, %v; want half of the time at most", n, err)
		}
	})
}
