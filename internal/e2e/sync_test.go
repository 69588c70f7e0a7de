package e2e

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/bot-bottle/supervise/internal/straced"
)

// TestSyncs: what is said to survive a power cut is synced before it gets its name, its directory after that, and both before
// anything is done that rests on it.
func TestSyncs(t *testing.T) {
	by, serve := straced.New(t)
	w := newWorld(t)
	real, err := filepath.EvalSymlinks(w.dir)
	ok(t, err)
	w.proxyAt = "127.0.0.1:1" // never asked
	w.write("supervise.yaml", "root: queue\ndefaults:\n  egress: {file: egress/routes.yaml}\n")
	w.desk = []string{"SUPERVISE_CONFIG=" + w.path("supervise.yaml")}
	w.side = startIn(t, by, []string{"SUPERVISE_BOTTLE_SLUG=web", "SUPERVISE_QUEUE_DIR=" + w.path("queue/web"), "SUPERVISE_BIND=127.0.0.1", "SUPERVISE_PORT=" + w.port}, "serve")
	w.sideURL = "http://" + w.side.says(`listening on (127\.0\.0\.1:\d+)`) + "/"
	ch := ask(t.Context(), w.connect("2026-07-28"), "egress-block", args("a.example.com", "x"))
	id := w.queued(1)
	w.must("list") // makes what is the desk's

	by, approve := straced.New(t)
	p := startIn(t, by, append(w.desk, "PWD="+w.dir), "approve", id, "--yes")
	<-p.done
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		t.Fatalf("approve: exit %d\n%s", code, p.output())
	}
	get(t, ch)
	if len(w.glob("queue/web/processed/"+id+".response.json")) != 1 {
		t.Fatal("the answer is not archived")
	}
	if code := w.side.end(syscall.SIGTERM); code != 0 {
		t.Errorf("serve: exit %d", code)
	}

	const (
		box  = "queue/web"
		desk = "queue/.desk"
	)
	// stored is a file that gets its name when it is whole.
	stored := func(verb, temp, name string, dirs ...string) string {
		var s strings.Builder
		s.WriteString("write " + temp + "\nsync " + temp + "\n" + verb + " " + temp + " " + name + "\n")
		for _, d := range dirs {
			s.WriteString("sync " + d + "\n")
		}
		return s.String()
	}
	record := stored("rename", desk+"/.tmp/ID", desk+"/web/ID.json", desk+"/web", desk)
	line := "write " + desk + "/ledger.jsonl\nsync " + desk + "/ledger.jsonl\n"
	moved := func(what string) string {
		return "rename " + box + "/ID." + what + ".json " + box + "/processed/ID." + what + ".json\nsync " + box + "/processed\nsync " + box + "\n"
	}
	t.Run("serve", func(t *testing.T) {
		straced.InOrder(t, serve.Read(t, real, "presence.json"),
			"mkdir "+box+"\nsync queue\n",
			"mkdir "+box+"/processed\nsync "+box+"\n",
			stored("link", box+"/.sidecar-ID.tmp", box+"/ID.proposal.json", box)+"remove "+box+"/.sidecar-ID.tmp\n",
			moved("proposal")+moved("response"),
		)
	})
	t.Run("approve", func(t *testing.T) {
		mark := desk + "/unfinished/web.ID"
		straced.InOrder(t, approve.Read(t, real),
			"create "+mark+"\nsync "+mark+"\nsync "+desk+"/unfinished\n",
			stored("rename", desk+"/.tmp/ID", desk+"/web/ID.1.egress", desk+"/web", desk),
			record,
			line+"sync "+desk+"\n",
			stored("rename", "egress/.supervise-tmp-routes.yaml", "egress/routes.yaml", "egress"),
			line,
			record,
			stored("link", box+"/.operator-ID.tmp", box+"/ID.response.json", box)+"remove "+box+"/.operator-ID.tmp\n",
			record,
			"remove "+mark+"\n",
		)
	})
}
