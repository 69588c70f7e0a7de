package operator

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// What a process that was killed while it wrote has left goes when a desk is opened an hour later; what somebody may be
// writing right now stays.
func TestStaleTempsGo(t *testing.T) {
	dir := t.TempDir()
	s, err := openStore(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.write("web/x.json", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	old, young := filepath.Join(dir, temps, "1-old"), filepath.Join(dir, temps, "1-young")
	for _, name := range []string{old, young} {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	past := time.Now().Add(-staleTemp - time.Minute)
	if err := os.Chtimes(old, past, past); err != nil {
		t.Fatal(err)
	}
	if _, err := openStore(dir, nil); err != nil {
		t.Fatal(err)
	}
	if names, err := filepath.Glob(filepath.Join(dir, temps, "*")); err != nil || len(names) != 1 || names[0] != young {
		t.Errorf("left are %v, %v; want %s alone", names, err, young)
	}
	if names, err := filepath.Glob(filepath.Join(dir, "web", "*")); err != nil || len(names) != 1 {
		t.Errorf("beside the record are %v, %v", names, err)
	}
}
