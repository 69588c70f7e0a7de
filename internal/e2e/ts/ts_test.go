package ts

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// tsCall is what ts/call.mjs prints.
type tsCall struct {
	ProtocolVersion string
	Tools           []string
	Result          struct {
		IsError bool
		Content []struct{ Text string }
	}
	Progress []string
	Error    string
}

// proposal waits for the one proposal of a mailbox and returns its id and payload.
func (s *sidecar) proposal(t *testing.T) (id, payload string) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for tick := time.NewTicker(10 * time.Millisecond); ; {
		files, err := filepath.Glob(filepath.Join(s.mailbox, "*.proposal.json"))
		if err != nil {
			t.Fatal(err)
		}
		if len(files) == 1 {
			var p struct {
				ID           string
				ProposedFile string `json:"proposed_file"`
			}
			readJSON(t, files[0], &p)
			return p.ID, p.ProposedFile
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%d proposals are in %s, want 1", len(files), s.mailbox)
		}
	}
}

// respond answers as any program that knows the mailbox may: one file, created whole.
func (s *sidecar) respond(t *testing.T, id, status, notes string) {
	t.Helper()
	data, err := json.Marshal(map[string]any{"proposal_id": id, "status": status, "notes": notes, "final_file": nil})
	if err != nil {
		t.Fatal(err)
	}
	tmp := filepath.Join(t.TempDir(), "response")
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(tmp, filepath.Join(s.mailbox, id+".response.json")); err != nil {
		t.Fatal(err)
	}
}

func TestTypeScript(t *testing.T) {
	for _, tt := range []struct {
		status, notes string
		isError       bool
		wait          time.Duration // before the answer
	}{
		{"approved", "", false, 0},
		// The client gives up after 16 s without progress; progress comes at once and after 15 s.
		{"rejected", "use the mirror", true, 18 * time.Second},
	} {
		t.Run(tt.status, func(t *testing.T) {
			t.Parallel()
			s := startSidecar(t, "SUPERVISE_TOKEN=hush")
			out := make(chan string, 1)
			go func() {
				got, err := run(t.Context(), t, []string{"SUPERVISE_TOKEN=hush"}, "call.mjs", s.url, "egress-block",
					`{"host":"api.github.com","path_allowlist":["/repos/"],"justification":"the issue asks for it"}`, "16000")
				if err != nil {
					got += fmt.Sprintf("\n%v", err)
				}
				out <- got
			}()
			id, payload := s.proposal(t)
			if want := "{\n  \"host\": \"api.github.com\",\n  \"path_allowlist\": [\n    \"/repos/\"\n  ]\n}\n"; payload != want {
				t.Errorf("stored payload %q, want %q", payload, want)
			}
			if tt.wait > 0 {
				<-time.After(tt.wait) // the client's own clock is what is tested
			}
			s.respond(t, id, tt.status, tt.notes)
			text := <-out
			var got tsCall
			if err := json.Unmarshal([]byte(text), &got); err != nil {
				t.Fatalf("the client printed %s", text)
			}
			if got.Error != "" || len(got.Result.Content) == 0 {
				t.Fatalf("the client got %+v", got)
			}
			want := "status: " + tt.status + "\n"
			if tt.notes != "" {
				want += "notes: " + tt.notes + "\n"
			}
			if answer := got.Result.Content[0].Text + "\n"; !strings.HasPrefix(answer, want) || got.Result.IsError != tt.isError {
				t.Errorf("answer %q, isError %v, want it to begin with %q and %v", answer, got.Result.IsError, want, tt.isError)
			}
			if len(got.Progress) == 0 || tt.wait > 0 && len(got.Progress) < 2 {
				t.Errorf("progress %q, want one at once and one every 15 s", got.Progress)
			}
			for _, tool := range []string{"egress-block", "pipelock-block", "capability-block", "list-egress-routes", "await-decision"} {
				if !slices.Contains(got.Tools, tool) {
					t.Errorf("tools %q lack %s", got.Tools, tool)
				}
			}
		})
	}
}
