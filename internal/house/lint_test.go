package house

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestLintOfVulnerabilities: .ci/lint forgives govulncheck that it cannot reach its database, and nothing else.
func TestLintOfVulnerabilities(t *testing.T) {
	const unreached = `govulncheck: fetching vulnerabilities: Get "https://vuln.go.dev/index/modules.json.gz": dial tcp: lookup vuln.go.dev: no such host`
	for _, tt := range []struct {
		name, says string
		code       string
		want       string // a line of lint's
		fails      bool
	}{
		{"nothing found", "No vulnerabilities found.", "0", "ok   govulncheck", false},
		{"out of reach", unreached, "1", "SKIP govulncheck: its database is out of reach here", false},
		{"a finding that speaks of dialling", "Vulnerability #1: GO-2026-0001\n    dial tcp: i/o timeout in net/http", "3", "--- govulncheck", true},
		{"another failure", "govulncheck: loading packages: connection refused", "1", "--- govulncheck", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bin := t.TempDir()
			fake := "#!/bin/sh\ncase $* in 'tool govulncheck '*) printf '%s\\n' \"$SAYS\"; exit $CODE ;; esac\n"
			for name, text := range map[string]string{"go": fake, "gofmt": "#!/bin/sh\n"} {
				if err := os.WriteFile(filepath.Join(bin, name), []byte(text), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			cmd := exec.CommandContext(t.Context(), filepath.Join("..", "..", ".ci", "lint"))
			cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "SAYS="+tt.says, "CODE="+tt.code)
			out, err := cmd.CombinedOutput()
			if (err != nil) != tt.fails || !strings.Contains("\n"+string(out), "\n"+tt.want+"\n") {
				t.Errorf("lint: %v\n%swant the line %q, and failure %v", err, out, tt.want, tt.fails)
			}
		})
	}
}
