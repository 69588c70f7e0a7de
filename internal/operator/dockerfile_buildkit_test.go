package operator

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// TestReadsAsBuildKit: the lines, flags and here-documents are those that frontend/dockerfile/parser of
// github.com/moby/buildkit v0.26.3 printed for the same file, and the frontend is that of its DetectSyntax.
func TestReadsAsBuildKit(t *testing.T) {
	type row struct {
		Line  int
		Name  string
		Flags []string
		Docs  []string
	}
	data, err := os.ReadFile("testdata/buildkit.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		var want struct {
			File, Syntax string
			Rows         []row
		}
		if err := json.Unmarshal([]byte(line), &want); err != nil {
			t.Fatal(err)
		}
		d := readDockerfile(want.File)
		if d.syntax != want.Syntax {
			t.Errorf("the frontend of %q is %q, want %q", want.File, d.syntax, want.Syntax)
		}
		if want.Rows == nil {
			continue // only the frontend reads it
		}
		var got []row
		for _, in := range d.instructions {
			got = append(got, row{in.line, in.name, in.flags, in.docs})
		}
		if diff := cmp.Diff(want.Rows, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%q mismatch (-want +got):\n%s", want.File, diff)
		}
	}
}
