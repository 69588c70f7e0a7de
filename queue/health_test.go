package queue

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"

	"github.com/fsnotify/fsnotify"
	"github.com/google/go-cmp/cmp"
)

func TestHealth(t *testing.T) {
	for _, tt := range []struct {
		name    string
		noWatch bool
		event   bool
		want    Health
	}{
		{"events", false, true, Health{Watched: true, Proven: true}},
		{"none to be had", true, false, Health{Missed: 1}},
		{"none that come", false, false, Health{Watched: true, Missed: 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "web")
			synctest.Test(t, func(t *testing.T) {
				ring, _, source, _ := fakeEvents()
				d := openDir(t, dir, Options{NoWatch: tt.noWatch, newWatcher: source})
				p := putNew(t, d)
				got := waitFor(t.Context(), d, p.ID)
				synctest.Wait()
				foreign(t, dir, p.ID, approval(p.ID))
				if tt.event {
					ring <- fsnotify.Event{Name: dir, Op: fsnotify.Chmod}
				}
				if res := <-got; res.err != nil {
					t.Fatal(res.err)
				}
				synctest.Wait() // the look that gave the answer has ended
				if diff := cmp.Diff(tt.want, d.Health()); diff != "" {
					t.Errorf("Health mismatch (-want +got):\n%s", diff)
				}
				if err := os.RemoveAll(dir); err != nil {
					t.Fatal(err)
				}
				listDir(t, d)
				if !d.Health().Lost {
					t.Error("Health says that the directory is there, and it is gone")
				}
			})
		})
	}
}
