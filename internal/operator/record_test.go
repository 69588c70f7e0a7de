package operator

import (
	"os"
	"path/filepath"
	"slices"
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

// TestWriteSyncs: each directory that may have got an entry is synced before a write returns, from the innermost to the root.
func TestWriteSyncs(t *testing.T) {
	root := t.TempDir()
	s, err := openStore(filepath.Join(root, ".desk"), nil)
	if err != nil {
		t.Fatal(err)
	}
	var synced []string
	s.sync = func(dir string) error {
		name, err := filepath.Rel(root, dir)
		if err != nil {
			t.Error(err)
		}
		synced = append(synced, name)
		return syncDir(dir)
	}
	for _, tt := range []struct {
		what string
		do   func() error
		want []string
	}{
		{"a record", func() error { return s.save(&Record{ID: "x", Bottle: "web"}) }, []string{".desk/web", ".desk", "."}},
		{"another", func() error { return s.save(&Record{ID: "y", Bottle: "web"}) }, []string{".desk/web", ".desk"}},
		{"a key", func() error { return s.setEarlier("web", "egress-block", "a.example", Earlier{}) }, []string{".desk/keys/web", ".desk/keys", ".desk"}},
	} {
		synced = nil
		if err := tt.do(); err != nil || !slices.Equal(synced, tt.want) {
			t.Errorf("%s: %v, synced %q, want %q", tt.what, err, synced, tt.want)
		}
	}
}

// TestDeskIsClosed: what others can read is closed to them when it is opened, and what is no directory is not used.
func TestDeskIsClosed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), ".desk")
	for _, mode := range []os.FileMode{0o755, 0o777, 0o750, 0o701} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := openStore(dir, nil); err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("opened with mode %#o it has %v, %v; want 0700", mode, st.Mode(), err)
		}
	}
	link := filepath.Join(t.TempDir(), ".desk")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if _, err := openStore(link, nil); err == nil {
		t.Error("a link was opened")
	}
}
