// Package examples holds configurations to copy; its tests check what can be checked without a container engine.
package examples

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
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

	"github.com/bot-bottle/supervise/internal/config"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/routes"
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
	if out, err := exec.Command("go", "build", "-o", bin, "../cmd/supervise").CombinedOutput(); err != nil {
		t.Fatalf("building supervise: %v\n%s", err, out)
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

// object is as much of a Kubernetes object as is checked here.
type object struct {
	Kind     string `yaml:"kind"`
	Metadata struct {
		Name   string            `yaml:"name"`
		Labels map[string]string `yaml:"labels"`
	} `yaml:"metadata"`
	Data map[string]string `yaml:"data"`
	Spec yaml.Node         `yaml:"spec"`
}

type podSpec struct {
	EnableServiceLinks *bool  `yaml:"enableServiceLinks"`
	Automount          *bool  `yaml:"automountServiceAccountToken"`
	DNSPolicy          string `yaml:"dnsPolicy"`
	HostNetwork        bool   `yaml:"hostNetwork"`
	SecurityContext    struct {
		RunAsNonRoot bool `yaml:"runAsNonRoot"`
		RunAsUser    int  `yaml:"runAsUser"`
		FSGroup      int  `yaml:"fsGroup"`
	} `yaml:"securityContext"`
	HostAliases []struct {
		IP        string   `yaml:"ip"`
		Hostnames []string `yaml:"hostnames"`
	} `yaml:"hostAliases"`
	InitContainers []container `yaml:"initContainers"`
	Containers     []container `yaml:"containers"`
	Volumes        []struct {
		Name      string         `yaml:"name"`
		ConfigMap map[string]any `yaml:"configMap"`
		PVC       struct {
			Claim string `yaml:"claimName"`
		} `yaml:"persistentVolumeClaim"`
		HostPath any `yaml:"hostPath"`
	} `yaml:"volumes"`
}

type container struct {
	Name string   `yaml:"name"`
	Args []string `yaml:"args"`
	Env  []struct {
		Name  string `yaml:"name"`
		Value string `yaml:"value"`
	} `yaml:"env"`
	ReadinessProbe  any `yaml:"readinessProbe"`
	LivenessProbe   any `yaml:"livenessProbe"`
	SecurityContext struct {
		Escalation   *bool `yaml:"allowPrivilegeEscalation"`
		ReadOnlyRoot bool  `yaml:"readOnlyRootFilesystem"`
		Capabilities struct {
			Drop []string `yaml:"drop"`
		} `yaml:"capabilities"`
	} `yaml:"securityContext"`
	Mounts []mount `yaml:"volumeMounts"`
}

type mount struct {
	Name     string `yaml:"name"`
	Path     string `yaml:"mountPath"`
	SubPath  string `yaml:"subPath"`
	ReadOnly bool   `yaml:"readOnly"`
}

func readObjects(t *testing.T) []object {
	t.Helper()
	var all []object
	d := yaml.NewDecoder(bytes.NewReader(read(t, "kubernetes/supervise.yaml")))
	for {
		var o object
		if err := d.Decode(&o); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatalf("kubernetes/supervise.yaml, object %d: %v", len(all)+1, err)
		}
		all = append(all, o)
	}
}

// pods returns the pod specs by the app label, and the objects that are no pods.
func pods(t *testing.T) (map[string]podSpec, []object) {
	t.Helper()
	specs := map[string]podSpec{}
	var rest []object
	for _, o := range readObjects(t) {
		switch o.Kind {
		case "Pod":
			var s podSpec
			if err := o.Spec.Decode(&s); err != nil {
				t.Fatalf("%s: %v", o.Metadata.Name, err)
			}
			specs[o.Metadata.Labels["app"]] = s
		case "Deployment":
			var s struct {
				Template struct {
					Metadata struct {
						Labels map[string]string `yaml:"labels"`
					} `yaml:"metadata"`
					Spec podSpec `yaml:"spec"`
				} `yaml:"template"`
			}
			if err := o.Spec.Decode(&s); err != nil {
				t.Fatalf("%s: %v", o.Metadata.Name, err)
			}
			specs[s.Template.Metadata.Labels["app"]] = s.Template.Spec
		default:
			rest = append(rest, o)
		}
	}
	return specs, rest
}

func TestKubernetesPods(t *testing.T) {
	specs, rest := pods(t)
	for app, s := range specs {
		if s.EnableServiceLinks == nil || *s.EnableServiceLinks {
			t.Errorf("%s: service links would set SUPERVISE_PORT", app)
		}
		if s.Automount == nil || *s.Automount {
			t.Errorf("%s: has the service account's token", app)
		}
		if s.HostNetwork || !s.SecurityContext.RunAsNonRoot || s.SecurityContext.RunAsUser == 0 {
			t.Errorf("%s: host network %v, security context %+v; want a user and a network of its own", app, s.HostNetwork, s.SecurityContext)
		}
		for _, v := range s.Volumes {
			if v.HostPath != nil {
				t.Errorf("%s: volume %s is a path of the node", app, v.Name)
			}
			if v.PVC.Claim != "" && !slices.ContainsFunc(rest, func(o object) bool { return o.Kind == "PersistentVolumeClaim" && o.Metadata.Name == v.PVC.Claim }) {
				t.Errorf("%s: no claim %s", app, v.PVC.Claim)
			}
			if n, ok := v.ConfigMap["name"]; ok && !slices.ContainsFunc(rest, func(o object) bool { return o.Kind == "ConfigMap" && o.Metadata.Name == n }) {
				t.Errorf("%s: no ConfigMap %s", app, n)
			}
		}
		for _, c := range slices.Concat(s.InitContainers, s.Containers) {
			sc := c.SecurityContext
			if sc.Escalation == nil || *sc.Escalation || !slices.Equal(sc.Capabilities.Drop, []string{"ALL"}) || app != "bottle" && !sc.ReadOnlyRoot {
				t.Errorf("%s/%s: security context %+v", app, c.Name, sc)
			}
			for _, m := range c.Mounts {
				if m.SubPath != "" || path.Ext(m.Path) != "" {
					t.Errorf("%s/%s: %s is a single file or a subPath", app, c.Name, m.Path)
				}
				if m.Name == "mailbox" && c.Name != "supervise" && c.Name != "desk" {
					t.Errorf("%s/%s mounts the mailbox", app, c.Name)
				}
				if m.Name == "desk" && c.Name != "desk" {
					t.Errorf("%s/%s mounts the desk's records", app, c.Name)
				}
			}
		}
	}
	trusted := specs["supervise"]
	if trusted.SecurityContext.FSGroup == 0 {
		t.Error("no fsGroup: the volumes would belong to root")
	}
	i := slices.IndexFunc(trusted.Containers, func(c container) bool { return c.Name == "supervise" })
	if i < 0 {
		t.Fatal("no sidecar")
	}
	side := trusted.Containers[i]
	if side.LivenessProbe == nil || side.ReadinessProbe == nil {
		t.Error("the sidecar lacks a probe")
	}
	if !slices.ContainsFunc(side.Mounts, func(m mount) bool { return m.Path == mailbox && !m.ReadOnly }) {
		t.Errorf("the sidecar's mounts %v lack %s", side.Mounts, mailbox)
	}
}

// TestKubernetesNetwork: the bottle reaches two ports of the trusted pod and nothing else, and finds them without DNS.
func TestKubernetesNetwork(t *testing.T) {
	specs, rest := pods(t)
	if specs["bottle"].DNSPolicy != "None" {
		t.Errorf("the bottle's dnsPolicy is %q, want None", specs["bottle"].DNSPolicy)
	}
	ips := map[string]string{}
	policies := map[string]map[string]any{}
	for _, o := range rest {
		switch o.Kind {
		case "Service":
			var s struct {
				ClusterIP string `yaml:"clusterIP"`
			}
			if err := o.Spec.Decode(&s); err != nil {
				t.Fatal(err)
			}
			ips[o.Metadata.Name] = s.ClusterIP
		case "NetworkPolicy":
			var s map[string]any
			if err := o.Spec.Decode(&s); err != nil {
				t.Fatal(err)
			}
			policies[o.Metadata.Name] = s
		}
	}
	aliases := map[string]string{}
	for _, a := range specs["bottle"].HostAliases {
		for _, h := range a.Hostnames {
			aliases[h] = a.IP
		}
	}
	if diff := cmp.Diff(ips, aliases); diff != "" {
		t.Errorf("the bottle's hosts are not the services' addresses (-want +got):\n%s", diff)
	}
	both := []any{"Ingress", "Egress"}
	want := map[string]any{"podSelector": map[string]any{}, "policyTypes": both}
	if diff := cmp.Diff(want, policies["default-deny"]); diff != "" {
		t.Errorf("default-deny mismatch (-want +got):\n%s", diff)
	}
	tcp := func(port int) any { return map[string]any{"port": port, "protocol": "TCP"} }
	want = map[string]any{
		"podSelector": map[string]any{"matchLabels": map[string]any{"app": "bottle"}},
		"policyTypes": both,
		"egress": []any{map[string]any{
			"to":    []any{map[string]any{"podSelector": map[string]any{"matchLabels": map[string]any{"app": "supervise"}}}},
			"ports": []any{tcp(9100), tcp(9099)},
		}},
	}
	if diff := cmp.Diff(want, policies["bottle"]); diff != "" {
		t.Errorf("the bottle's policy mismatch (-want +got):\n%s", diff)
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
		"ALLOWED_HOSTS", "TOKEN", "TOKEN_FILE", "ROOT",
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
