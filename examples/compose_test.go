package examples

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"
)

type composeFile struct {
	Name     string                    `yaml:"name"`
	Services map[string]composeService `yaml:"services"`
	Networks map[string]struct {
		Internal   bool              `yaml:"internal"`
		DriverOpts map[string]string `yaml:"driver_opts"`
	} `yaml:"networks"`
	Volumes map[string]struct{} `yaml:"volumes"`
}

type composeService struct {
	Image       string                 `yaml:"image"`
	Build       string                 `yaml:"build"`
	Command     []string               `yaml:"command"`
	Init        bool                   `yaml:"init"`
	DependsOn   map[string]any         `yaml:"depends_on"`
	Networks    []string               `yaml:"networks"`
	DNS         []string               `yaml:"dns"`
	CapDrop     []string               `yaml:"cap_drop"`
	SecurityOpt []string               `yaml:"security_opt"`
	Environment map[string]string      `yaml:"environment"`
	Volumes     []composeMount         `yaml:"volumes"`
	User        string                 `yaml:"user"`
	ReadOnly    bool                   `yaml:"read_only"`
	Healthcheck struct{ Disable bool } `yaml:"healthcheck"`
	Restart     string                 `yaml:"restart"`
	Ports       []string               `yaml:"ports"`
	StopGrace   string                 `yaml:"stop_grace_period"`
	MemLimit    string                 `yaml:"mem_limit"`
}

type composeMount struct {
	Type     string `yaml:"type"`
	Source   string `yaml:"source"`
	Target   string `yaml:"target"`
	ReadOnly bool   `yaml:"read_only"`
	Bind     struct {
		CreateHostPath bool `yaml:"create_host_path"`
	} `yaml:"bind"`
}

func readCompose(t *testing.T) composeFile {
	t.Helper()
	var c composeFile
	d := yaml.NewDecoder(bytes.NewReader(read(t, "compose/compose.yaml")))
	d.KnownFields(true)
	if err := d.Decode(&c); err != nil {
		t.Fatalf("compose.yaml: %v", err)
	}
	return c
}

func TestComposeNetworks(t *testing.T) {
	c := readCompose(t)
	for name, s := range c.Services {
		for _, n := range s.Networks {
			network, ok := c.Networks[n]
			if !ok {
				t.Errorf("%s is on %s, which is not declared", name, n)
			}
			if !network.Internal && name != "egress" {
				t.Errorf("%s is on %s, which has a way out", name, n)
			}
			if network.Internal && network.DriverOpts["com.docker.network.bridge.gateway_mode_ipv4"] != "isolated" {
				t.Errorf("the host has an address on %s", n)
			}
		}
		if len(s.Networks) == 0 {
			t.Errorf("%s names no network, so it is on the default one, which has a way out", name)
		}
		for _, p := range s.Ports {
			if !strings.HasPrefix(p, "127.0.0.1:") {
				t.Errorf("%s publishes %s on every address of the host", name, p)
			}
		}
		if !slices.Equal(s.CapDrop, []string{"ALL"}) || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
			t.Errorf("%s keeps capabilities %v, options %v", name, s.CapDrop, s.SecurityOpt)
		}
		if name != "bottle" && (!s.ReadOnly || s.User == "" || strings.HasPrefix(s.User, "0")) {
			t.Errorf("%s: read_only %v, user %q; want a read-only root and a user", name, s.ReadOnly, s.User)
		}
	}
	if got := c.Services["bottle"].DNS; !slices.Equal(got, []string{"127.0.0.1"}) {
		t.Errorf("the bottle's resolver is %v, want none that answers", got)
	}
}

// TestMemory: the sidecar has the memory that docs/security.md promises to keep within, everywhere.
func TestMemory(t *testing.T) {
	m := regexp.MustCompile(`a\s+CPU and a memory limit \((\d+) MiB\)`).FindSubmatch(read(t, "../docs/security.md"))
	if m == nil {
		t.Fatal("docs/security.md names no memory limit")
	}
	want := string(m[1])
	if got := readCompose(t).Services["supervise"].MemLimit; got != want+"m" {
		t.Errorf("compose limits it to %q, want %sm", got, want)
	}
	specs, _ := pods(t)
	for _, c := range specs["supervise"].Containers {
		if got := c.Resources.Limits.Memory; c.Name == "supervise" && got != want+"Mi" {
			t.Errorf("Kubernetes limits it to %q, want %sMi", got, want)
		}
	}
	if !bytes.Contains(read(t, "../docs/deployment.md"), []byte("--memory "+want+"m")) {
		t.Errorf("docs/deployment.md does not limit it to %sm", want)
	}
}

func TestComposeMounts(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("compose")); err != nil {
		t.Fatal(err)
	}
	setup(t, dir)
	c := readCompose(t)
	where := map[string][]string{} // source → services
	for name, s := range c.Services {
		for _, m := range s.Volumes {
			if m.Type != "bind" {
				continue
			}
			if m.Bind.CreateHostPath {
				t.Errorf("%s: the engine would create %s as root", name, m.Source)
			}
			info, err := os.Stat(filepath.Join(dir, m.Source))
			if err != nil {
				t.Errorf("%s: setup.sh does not make it: %v", name, err)
			} else if !info.IsDir() {
				t.Errorf("%s mounts the file %s; a file that is replaced stays the old one in there", name, m.Source)
			}
			where[path.Clean(m.Source)] = append(where[path.Clean(m.Source)], name)
			if name == "bottle" && !m.ReadOnly {
				t.Errorf("the bottle may write %s", m.Source)
			}
		}
	}
	for source, want := range map[string][]string{"mailbox/web": {"supervise"}, "ca": {"egress"}, "egress": {"egress"}, "bottle": {"bottle"}} {
		if diff := cmp.Diff(want, where[source]); diff != "" {
			t.Errorf("who mounts %s mismatch (-want +got):\n%s", source, diff)
		}
	}
	for source := range where {
		if source == "mailbox" || source == "." {
			t.Errorf("%s is mounted: it holds the desk's records", source)
		}
	}
	if i := slices.IndexFunc(c.Services["supervise"].Volumes, func(m composeMount) bool { return m.Target == mailbox }); i < 0 {
		t.Errorf("the mailbox is not where the sidecar looks: %s", mailbox)
	}
	if i := slices.IndexFunc(c.Services["bottle"].Volumes, func(m composeMount) bool { return m.Target == current }); i < 0 {
		t.Errorf("the current Dockerfile is not where the agent looks: %s", current)
	}
}

// setup runs setup.sh in dir.
func setup(t *testing.T, dir string) {
	t.Helper()
	cmd := exec.Command("sh", filepath.Join(dir, "setup.sh"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("setup.sh: %v\n%s", err, out)
	}
}

func TestComposeSetup(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("compose")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".env", "mailbox", "ca"} { // what a person's own run of setup.sh left
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	setup(t, dir)
	env := string(read(t, filepath.Join(dir, ".env")))
	if !regexp.MustCompile(`^SUPERVISE_UID=\d+\nSUPERVISE_GID=\d+\nSUPERVISE_TOKEN=[0-9a-f]{48}\n$`).MatchString(env) {
		t.Errorf(".env = %q, want uid, gid and a token", env)
	}
	for name, want := range map[string]fs.FileMode{".env": 0o600, "mailbox": 0o700, "mailbox/web": 0o700, "ca/private": 0o700, "ca/public": 0o755} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
		} else if got := info.Mode().Perm(); got != want {
			t.Errorf("mode of %s = %o, want %o", name, got, want)
		}
	}
	setup(t, dir)
	if again := string(read(t, filepath.Join(dir, ".env"))); again != env {
		t.Errorf("a second run changed .env from %q to %q", env, again)
	}
	// Every variable that compose.yaml wants is in .env or has a default.
	for _, m := range regexp.MustCompile(`\$\{(\w+)(:-)?`).FindAllStringSubmatch(string(read(t, "compose/compose.yaml")), -1) {
		if m[2] == "" && !strings.Contains(env, m[1]+"=") {
			t.Errorf("compose.yaml wants %s, which setup.sh does not set", m[1])
		}
	}
	ignored := string(read(t, "compose/.gitignore"))
	for _, name := range []string{"/.env", "/ca/", "/mailbox/"} {
		if !strings.Contains(ignored, name+"\n") {
			t.Errorf(".gitignore does not have %s", name)
		}
	}
}
