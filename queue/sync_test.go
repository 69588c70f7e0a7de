package queue

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bot-bottle/supervise/internal/straced"
)

const syncsRole = "QUEUE_SYNCS_ROOT"

// TestRepeatSyncsReally is TestRepeatSyncs by the system calls, with what else is seldom done: a repeat, a conflict, what comes
// late and what is forgotten are durable when the call returns.
func TestRepeatSyncsReally(t *testing.T) {
	if root := os.Getenv(syncsRole); root != "" {
		syncs(t, root)
		return
	}
	by, trace := straced.New(t)
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	argv := append(by, self, "-test.run=^"+t.Name()+"$")
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), syncsRole+"="+root)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	got := map[string]string{}
	for part := range strings.SplitSeq("\n"+trace.Read(t, root, presenceFile), "\n"+straced.Mark) {
		what, calls, _ := strings.Cut(part, "\n")
		got[strings.TrimSpace(what)] = calls + "\n"
	}
	const both = "sync web/processed\nsync web\n"
	for what, want := range map[string]string{
		"put again":     "sync web\n",
		"conflict":      "remove web/.operator-ID.tmp\nsync web\n",
		"archive again": both + both,
		"late":          "rename web/ID.response.json web/processed/ID.late.json\n" + both,
		"forget":        "sync .\n",
	} {
		if !strings.HasSuffix(got[what], want) {
			t.Errorf("%s: does\n%swant it to end with\n%s", what, got[what], want)
		}
	}
}

func syncs(t *testing.T, root string) {
	d := openDir(t, filepath.Join(root, "web"), Options{NoWatch: true})
	r := openRoot(t, root, RootOptions{})
	p := putNew(t, d)
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"put again", func() error { return d.Put(t.Context(), p) }},
		{"respond", func() error { return r.Respond(t.Context(), "web", answer(p.ID)) }},
		{"conflict", func() error {
			if err := r.Respond(t.Context(), "web", answer(p.ID)); !errors.Is(err, ErrDecided) {
				return fmt.Errorf("no conflict: %w", err)
			}
			return nil
		}},
		{"archive", func() error { return d.Archive(t.Context(), p.ID) }},
		{"archive again", func() error { return d.Archive(t.Context(), p.ID) }},
		{"late", func() error {
			data, err := encodeResponse(Response{ProposalID: p.ID, Status: Rejected, DecidedAt: testTime.Add(time.Second)})
			foreign(t, filepath.Join(root, "web"), p.ID, string(data))
			listDir(t, d) // looks, and so tidies
			return err
		}},
		{"close", d.Close},
		{"forget", func() error { return r.Forget(t.Context(), "web") }},
		{"end", func() error { return nil }},
	} {
		fmt.Fprintln(os.Stderr, straced.Mark, step.what)
		if err := step.do(); err != nil {
			t.Errorf("%s: %v", step.what, err)
		}
	}
}
