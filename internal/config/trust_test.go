package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTrust: a supervise.yaml that somebody else can write, or put another in the place of, is not read.
func TestTrust(t *testing.T) {
	const other = 4242
	root := os.Getuid() == 0
	for _, tt := range []struct {
		name     string
		do       func(dir, file string) error
		readOnly bool
		needRoot bool
		want     string // with DIR for the directory; "" when it is read
	}{
		{name: "ours"},
		{name: "group may read", do: func(_, file string) error { return os.Chmod(file, 0o640) }},
		{name: "group may write", do: func(_, file string) error { return os.Chmod(file, 0o664) },
			want: "DIR/supervise.yaml can be written by others than you (mode 0664), and what it names runs as you: chmod go-w DIR/supervise.yaml"},
		{name: "all may write", do: func(_, file string) error { return os.Chmod(file, 0o602) },
			want: "DIR/supervise.yaml can be written by others than you (mode 0602), and what it names runs as you: chmod go-w DIR/supervise.yaml"},
		{name: "another's", needRoot: true, do: func(_, file string) error { return os.Chown(file, other, -1) },
			want: "DIR/supervise.yaml belongs to user 4242, and what it names runs as you: read it, then make it yours with chown, or copy it"},
		{name: "another's directory", needRoot: true, do: func(dir, _ string) error { return os.Chown(dir, other, -1) },
			want: "DIR/supervise.yaml is in a directory of user 4242, who can put another there, and what it names runs as you: copy it to one of yours"},
		{name: "the group's directory", do: func(dir, _ string) error { return os.Chmod(dir, 0o2770|fs.ModeSetgid) }},
		{name: "everybody's directory", do: func(dir, _ string) error { return os.Chmod(dir, 0o777) },
			want: "DIR/supervise.yaml is in a directory that everybody can write to (mode 0777), and what it names runs as you: chmod o-w DIR/"},
		{name: "everybody's, as /tmp is", do: func(dir, _ string) error { return os.Chmod(dir, 0o777|fs.ModeSticky) }},
		{name: "a link into everybody's directory", do: func(dir, file string) error {
			far := filepath.Join(dir, "far")
			return errors.Join(os.Mkdir(far, 0o700), os.Chmod(far, 0o777), os.Rename(file, filepath.Join(far, "it.yaml")), os.Symlink("far/it.yaml", file))
		}, want: "DIR/far/it.yaml is in a directory that everybody can write to (mode 0777), and what it names runs as you: chmod o-w DIR/far/"},
		{name: "another's link in the group's directory", needRoot: true, do: func(dir, file string) error {
			return errors.Join(os.Rename(file, filepath.Join(dir, "ours.yaml")), os.Symlink("ours.yaml", file), os.Lchown(file, other, -1), os.Chmod(dir, 0o770))
		}, want: "DIR/supervise.yaml is a link of user 4242, who can have it lead elsewhere, and what DIR/supervise.yaml names runs as you: name the file that it leads to"},
		{name: "our link through another's", needRoot: true, do: func(dir, file string) error {
			far, link := filepath.Join(dir, "far"), filepath.Join(dir, "link")
			return errors.Join(os.Mkdir(far, 0o700), os.Rename(file, filepath.Join(far, "it.yaml")), os.Symlink("far", link), os.Lchown(link, other, -1), os.Symlink("link/../link/it.yaml", file))
		}, want: "DIR/link is a link of user 4242, who can have it lead elsewhere, and what DIR/supervise.yaml names runs as you: name the file that it leads to"},
		{name: "our links", do: func(dir, file string) error {
			far, link := filepath.Join(dir, "far"), filepath.Join(dir, "link")
			return errors.Join(os.Mkdir(far, 0o700), os.Rename(file, filepath.Join(far, "it.yaml")), os.Symlink(far, link), os.Symlink("link//../link/./it.yaml", file))
		}},
		{name: "a ConfigMap", readOnly: true, do: func(dir, file string) error {
			version := filepath.Join(dir, "..2026_11_28")
			return errors.Join(os.Mkdir(version, 0o755), os.Rename(file, filepath.Join(version, "supervise.yaml")), os.Symlink("..2026_11_28", filepath.Join(dir, "..data")),
				os.Symlink("..data/supervise.yaml", file), os.Chmod(dir, 0o777))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.needRoot && !root {
				t.Skip("only root can give a file away")
			}
			dir := t.TempDir()
			file := filepath.Join(dir, "supervise.yaml")
			if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Chmod(dir, 0o700)); err != nil {
				t.Fatal(err)
			}
			if tt.do != nil {
				if err := tt.do(dir, file); err != nil {
					t.Fatal(err)
				}
			}
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			err = trust{os.Getuid(), func(string) bool { return tt.readOnly }}.check(f, file)
			got := ""
			if err != nil {
				got = strings.ReplaceAll(err.Error(), dir, "DIR")
			}
			if got != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
			if _, err := LoadHost(file, func(string) string { return "" }); !tt.readOnly && (err != nil) != (tt.want != "") {
				t.Errorf("LoadHost: %v", err)
			}
		})
	}
}

// TestTrustOfAnother: what was opened is what its path leads to, also when somebody changes that meanwhile.
func TestTrustOfAnother(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "supervise.yaml")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(os.Rename(file, file+".old"), os.WriteFile(file, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := (trust{os.Getuid(), readOnly}).check(f, file); err == nil || !strings.Contains(err.Error(), "was replaced") {
		t.Errorf("another file than was opened: %v", err)
	}
}

// TestTrustOfAPipe: a shell names one in /dev/fd.
func TestTrustOfAPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w.Close()
	if _, err := LoadHost(fmt.Sprintf("/dev/fd/%d", r.Fd()), func(string) string { return "" }); err != nil {
		t.Error(err)
	}
}

// TestTrustOfARemovedFile: some shells make such a one of <<, and it is named in /dev/fd or as /dev/stdin.
func TestTrustOfARemovedFile(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "here"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(f.Chmod(0o600), os.Remove(f.Name())); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadHost(fmt.Sprintf("/dev/fd/%d", f.Fd()), func(string) string { return "" }); err != nil {
		t.Error(err)
	}
}

func TestTrustOfRootsFile(t *testing.T) {
	f, err := os.Open("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := (trust{os.Getuid() + 1, readOnly}).check(f, f.Name()); err != nil {
		t.Errorf("root's file: %v", err)
	}
}
