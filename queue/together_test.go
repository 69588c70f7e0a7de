package queue

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		runs, fail := 0, errors.New("no space left")
		done := 0 // what the callers have done, and want synced
		var tg together
		saw := map[int]int{}
		tg.act = func() error {
			runs++
			saw[runs] = done
			time.Sleep(time.Second)
			if runs == 2 {
				return fail
			}
			return nil
		}
		type outcome struct {
			err  error
			took time.Duration
		}
		call := func() chan outcome {
			done++
			ch, start := make(chan outcome, 1), time.Now()
			go func() {
				err := tg.do()
				ch <- outcome{err, time.Since(start)}
			}()
			synctest.Wait()
			return ch
		}
		first := call()
		time.Sleep(500 * time.Millisecond)
		second, third := call(), call() // while the first run is under way
		if got, want := <-first, (outcome{nil, time.Second}); got != want {
			t.Errorf("first = %v, want %v", got, want)
		}
		for _, ch := range []chan outcome{second, third} {
			if got, want := <-ch, (outcome{fail, 1500 * time.Millisecond}); got != want {
				t.Errorf("one that came during the first run = %v, want the second run's %v", got, want)
			}
		}
		if runs != 2 || saw[1] != 1 || saw[2] != 3 {
			t.Errorf("%d runs, which saw %v; want 2, of which the second saw all three", runs, saw)
		}
		if got, want := <-call(), (outcome{nil, time.Second}); got != want {
			t.Errorf("after an error = %v, want %v", got, want)
		}
	})
}
