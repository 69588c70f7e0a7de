// Package examples holds configurations to copy; its tests check what can be checked without a container engine.
package examples

import (
	"bytes"
	"encoding/json"
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

	"github.com/bot-bottle/supervise/internal/config"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/routes"
	"github.com/bot-bottle/supervise/internal/testbin"
	"github.com/bot-bottle/supervise/tools"
)

const (
	endpoint = "http://supervise:9100/"
	mailbox  = "/run/supervise/queue"
	current  = "/etc/claude-bottle/current-config"
)

var allTools = []string{payload.Egress, payload.Pipelock, payload.Capability, tools.ListRoutes, tools.Await}

func read(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// readJSON reads name into v; a key that v does not have is an error, so that a misspelt one is seen.
func readJSON(t *testing.T, name string, v any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(read(t, name)))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

func TestReadmes(t *testing.T) {
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	index := string(read(t, "README.md"))
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		if _, err := os.Stat(filepath.Join(e.Name(), "README.md")); err != nil {
			t.Errorf("%s has no README.md: %v", e.Name(), err)
		}
		if !strings.Contains(index, "]("+e.Name()+")") {
			t.Errorf("README.md does not name %s", e.Name())
		}
	}
}

func TestClaudeCode(t *testing.T) {
	var servers struct {
		Servers map[string]struct {
			Type       string            `json:"type"`
			URL        string            `json:"url"`
			Headers    map[string]string `json:"headers"`
			AlwaysLoad bool              `json:"alwaysLoad"`
		} `json:"mcpServers"`
	}
	readJSON(t, "claude-code/.mcp.json", &servers)
	s, ok := servers.Servers["supervise"]
	if !ok || len(servers.Servers) != 1 {
		t.Fatalf("servers = %v, want supervise alone", servers.Servers)
	}
	if s.Type != "http" || !s.AlwaysLoad || s.URL != "${SUPERVISE_URL:-"+endpoint+"}" {
		t.Errorf("supervise = %+v, want an http server at %s that is always loaded", s, endpoint)
	}
	if got, want := s.Headers["Authorization"], "Bearer ${SUPERVISE_TOKEN:-none}"; got != want {
		t.Errorf("Authorization = %q, want %q", got, want)
	}

	var settings struct {
		Enabled     []string `json:"enabledMcpjsonServers"`
		Permissions struct {
			Allow []string `json:"allow"`
		} `json:"permissions"`
	}
	readJSON(t, "claude-code/.claude/settings.json", &settings)
	var want []string
	for _, name := range allTools {
		want = append(want, "mcp__supervise__"+name)
	}
	if diff := cmp.Diff(want, settings.Permissions.Allow); diff != "" {
		t.Errorf("allowed tools mismatch (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"supervise"}, settings.Enabled); diff != "" {
		t.Errorf("enabled servers mismatch (-want +got):\n%s", diff)
	}
}

// TestGuidance: one text for all clients, which names every tool and where the Dockerfile is.
func TestGuidance(t *testing.T) {
	text := string(read(t, "claude-code/CLAUDE.md"))
	for _, word := range slices.Concat(allTools, []string{"approved", "modified", "rejected", "pending", tools.DefaultDockerfile}) {
		if !strings.Contains(text, "`"+word+"`") {
			t.Errorf("CLAUDE.md does not speak of `%s`", word)
		}
	}
	for _, other := range []string{"codex/AGENTS.md", "gemini/GEMINI.md"} {
		if diff := cmp.Diff(text, string(read(t, other))); diff != "" {
			t.Errorf("%s is not CLAUDE.md's text (-want +got):\n%s", other, diff)
		}
	}
}

// TestCodex reads the lines of the one table; a TOML parser would be a dependency for six of them.
func TestCodex(t *testing.T) {
	got := map[string]string{}
	table := ""
	for l := range strings.Lines(string(read(t, "codex/config.toml"))) {
		l, _, _ = strings.Cut(strings.TrimSpace(l), "#")
		if l == "" {
			continue
		}
		if strings.HasPrefix(l, "[") {
			table = l
			continue
		}
		key, value, ok := strings.Cut(l, " = ")
		if !ok {
			t.Errorf("line %q is not KEY = VALUE", l)
		}
		got[key] = value
	}
	if table != "[mcp_servers.supervise]" {
		t.Errorf("table = %s, want [mcp_servers.supervise]", table)
	}
	want := map[string]string{
		"url": `"` + endpoint + `"`, "bearer_token_env_var": `"SUPERVISE_TOKEN"`,
		"startup_timeout_sec": "20", "tool_timeout_sec": "3600", "default_tools_approval_mode": `"approve"`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("config.toml mismatch (-want +got):\n%s", diff)
	}
}

func TestGemini(t *testing.T) {
	var settings struct {
		Servers map[string]struct {
			URL     string            `json:"httpUrl"`
			Headers map[string]string `json:"headers"`
			Timeout int               `json:"timeout"`
			Trust   bool              `json:"trust"`
		} `json:"mcpServers"`
	}
	readJSON(t, "gemini/settings.json", &settings)
	s := settings.Servers["supervise"]
	if s.URL != endpoint || s.Headers["Authorization"] != "Bearer $SUPERVISE_TOKEN" || !s.Trust {
		t.Errorf("supervise = %+v, want %s with the token, trusted", s, endpoint)
	}
	if s.Timeout != 3_600_000 {
		t.Errorf("timeout = %d ms, want an hour", s.Timeout)
	}
}

// TestHolds: a hold that a README tells to set is read, and ends before the client's own limit.
func TestHolds(t *testing.T) {
	setting := regexp.MustCompile(`SUPERVISE_HOLD=(\S+)`)
	for dir, client := range map[string]string{"codex": "codex-mcp-client", "gemini": "gemini-cli-mcp-client"} {
		m := setting.FindSubmatch(read(t, dir+"/README.md"))
		if m == nil {
			t.Errorf("%s/README.md sets no SUPERVISE_HOLD", dir)
			continue
		}
		hold, err := tools.ParseHold(string(m[1]))
		if err != nil {
			t.Errorf("%s: %v", dir, err)
			continue
		}
		if d, ok := hold(client); !ok || d.Seconds() < 3000 || d.Seconds() >= 3600 {
			t.Errorf("%s: hold of %s = %v, %v; want a little less than the hour its configuration waits", dir, client, d, ok)
		}
	}
}

func TestRoutes(t *testing.T) {
	for _, file := range []string{"compose/egress/routes.yaml"} {
		if _, err := routes.Parse(read(t, file)); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
	for _, o := range readObjects(t) {
		if o.Kind == "ConfigMap" && o.Data["routes.yaml"] != "" {
			if _, err := routes.Parse([]byte(o.Data["routes.yaml"])); err != nil {
				t.Errorf("ConfigMap %s: %v", o.Metadata.Name, err)
			}
		}
	}
}

// TestDeskConfiguration: supervise.yaml names the files that the proxy reads.
func TestDeskConfiguration(t *testing.T) {
	const dir = "/srv/compose"
	h, err := config.ParseHost(read(t, "compose/supervise.yaml"), dir+"/supervise.yaml", "/home/operator")
	if err != nil {
		t.Fatal(err)
	}
	b := h.For("web")
	if h.Root != dir+"/mailbox" || b.Egress == nil || b.Egress.File != dir+"/egress/routes.yaml" || b.Capability == nil || b.Capability.File != dir+"/bottle/Dockerfile" {
		t.Errorf("root %s, egress %+v, capability %+v; want what compose.yaml mounts", h.Root, b.Egress, b.Capability)
	}
	if ports := readCompose(t).Services["egress"].Ports; b.Egress != nil && !slices.Contains(ports, strings.TrimPrefix(b.Egress.Proxy, "http://")+":9099") {
		t.Errorf("the desk asks %s, the proxy is published at %v", b.Egress.Proxy, ports)
	}

	for _, o := range readObjects(t) {
		data := o.Data["supervise.yaml"]
		if data == "" {
			continue
		}
		h, err := config.ParseHost([]byte(data), "/etc/desk/supervise/supervise.yaml", "/")
		if err != nil {
			t.Fatal(err)
		}
		specs, _ := pods(t)
		desk := specs["supervise"].Containers[slices.IndexFunc(specs["supervise"].Containers, func(c container) bool { return c.Name == "desk" })]
		for _, dir := range []string{h.Root, h.Root + "/web", path.Dir(h.For("web").Egress.File)} {
			if !slices.ContainsFunc(desk.Mounts, func(m mount) bool { return m.Path == dir && !m.ReadOnly }) {
				t.Errorf("the desk cannot write %s: its mounts are %v", dir, desk.Mounts)
			}
		}
	}
}

// TestCommands: every flag that a container is started with is one of its command.
func TestCommands(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "supervise")
	if err := testbin.Build(bin); err != nil {
		t.Fatal(err)
	}
	commands := map[string][]string{}
	for name, s := range readCompose(t).Services {
		if s.Image == "supervise" && s.Command != nil {
			commands["compose "+name] = s.Command
		}
	}
	specs, _ := pods(t)
	for _, c := range specs["supervise"].Containers {
		commands["kubernetes "+c.Name] = c.Args
	}
	for name, args := range commands {
		help, err := exec.Command(bin, args[0], "--help").Output()
		if err != nil {
			t.Errorf("%s: supervise %s --help: %v", name, args[0], err)
			continue
		}
		for _, a := range args[1:] {
			flag, _, _ := strings.Cut(a, "=")
			if !strings.Contains(string(help), flag+" ") {
				t.Errorf("%s: supervise %s has no %s", name, args[0], flag)
			}
		}
	}
}

// TestEnvironment: every SUPERVISE_ variable of the examples is one that the sidecar, the desk or the files here know.
func TestEnvironment(t *testing.T) {
	known := map[string]bool{
		"SUPERVISE_URL": true,                        // of the clients
		"SUPERVISE_UID": true, "SUPERVISE_GID": true, // of compose.yaml
	}
	for _, name := range []string{
		"BOTTLE_SLUG", "QUEUE_DIR", "PORT", "BIND", "DEBUG", "HOLD", "REDELIVER", "MAX_PENDING", "MAX_WAITING", "EGRESS_PROXY", "DOCKERFILE",
		"ALLOWED_HOSTS", "METRICS", "TOKEN", "TOKEN_FILE", "ROOT", "CONFIG",
	} {
		known["SUPERVISE_"+name] = true
	}
	word := regexp.MustCompile(`\bSUPERVISE_[A-Z_]+\b`)
	err := fs.WalkDir(os.DirFS("."), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || strings.HasSuffix(name, "_test.go") || strings.HasPrefix(name, "mitmproxy/") {
			return err
		}
		for _, w := range word.FindAllString(string(read(t, name)), -1) {
			if !known[w] {
				t.Errorf("%s: nothing reads %s", name, w)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	for service, want := range map[string][]string{"bottle": {"SUPERVISE_TOKEN", "SUPERVISE_URL"}, "supervise": {"SUPERVISE_BOTTLE_SLUG", "SUPERVISE_EGRESS_PROXY", "SUPERVISE_TOKEN"}} {
		var got []string
		for k := range readCompose(t).Services[service].Environment {
			if strings.HasPrefix(k, "SUPERVISE_") {
				got = append(got, k)
			}
		}
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("environment of %s mismatch (-want +got):\n%s", service, diff)
		}
	}
}
