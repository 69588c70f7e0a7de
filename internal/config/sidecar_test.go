package config

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestLoadSidecar(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	defaults := Sidecar{
		BottleSlug: "web", QueueDir: "/run/supervise/queue", Port: 9100, Bind: "0.0.0.0", Redeliver: 10 * time.Minute,
		MaxPending: 32, MaxWaiting: 2048, EgressProxy: "http://egress:9099", Dockerfile: "/etc/claude-bottle/current-config/Dockerfile",
	}
	with := func(f func(*Sidecar)) Sidecar {
		s := defaults
		f(&s)
		return s
	}
	for _, tt := range []struct {
		name  string
		env   string // K=V, parted by spaces, besides the slug
		flags map[string]string
		want  Sidecar
		err   []string // all in the error
	}{
		{name: "defaults", want: defaults},
		{name: "everything", env: "SUPERVISE_QUEUE_DIR=/q SUPERVISE_PORT=0 SUPERVISE_BIND=[::1] SUPERVISE_DEBUG=1 SUPERVISE_HOLD=codex-mcp-client=240s,*=50s SUPERVISE_REDELIVER=0s " +
			"SUPERVISE_MAX_PENDING=1 SUPERVISE_MAX_WAITING=8 SUPERVISE_EGRESS_PROXY=http://127.0.0.1:9099/ SUPERVISE_DOCKERFILE=/D SUPERVISE_ALLOWED_HOSTS=a.example,,b,10.0.0.1 SUPERVISE_METRICS=[::1]:0 SUPERVISE_TOKEN=t0k",
			want: Sidecar{BottleSlug: "web", QueueDir: "/q", Bind: "::1", Debug: true, Hold: "codex-mcp-client=240s,*=50s", MaxPending: 1, MaxWaiting: 8,
				EgressProxy: "http://127.0.0.1:9099/", Dockerfile: "/D", AllowedHosts: []string{"a.example", "b", "10.0.0.1"}, Metrics: "[::1]:0", Token: "t0k"}},
		{name: "a flag wins", env: "SUPERVISE_PORT=1", flags: map[string]string{"port": "2", "bottle-slug": "api"},
			want: with(func(s *Sidecar) { s.Port, s.BottleSlug = 2, "api" })},
		{name: "an empty flag is the default", env: "SUPERVISE_PORT=1", flags: map[string]string{"port": ""}, want: defaults},
		{name: "token file", env: "SUPERVISE_TOKEN_FILE=" + file("token", "from-file\n"), want: with(func(s *Sidecar) { s.Token = "from-file" })},
		{name: "no flag for the token", flags: map[string]string{"": "x"}, want: defaults},

		{name: "no slug", env: "SUPERVISE_BOTTLE_SLUG=", err: []string{"SUPERVISE_BOTTLE_SLUG is not set", "such as web"}},
		{name: "bad slug", env: "SUPERVISE_BOTTLE_SLUG=../etc", err: []string{"SUPERVISE_BOTTLE_SLUG", `"../etc"`, "[a-z0-9]"}},
		{name: "metrics without a host", env: "SUPERVISE_METRICS=:9102", err: []string{`SUPERVISE_METRICS ":9102"`, "such as 127.0.0.1:9102"}},
		{name: "metrics without a port", flags: map[string]string{"metrics": "127.0.0.1"}, err: []string{`--metrics (SUPERVISE_METRICS) "127.0.0.1"`}},
		{name: "bad port", env: "SUPERVISE_PORT=http", err: []string{`SUPERVISE_PORT "http"`, "from 0 to 65535"}},
		{name: "port too high", env: "SUPERVISE_PORT=70000", err: []string{`SUPERVISE_PORT "70000"`}},
		{name: "bad flag", flags: map[string]string{"port": "-1"}, err: []string{`--port (SUPERVISE_PORT) "-1"`}},
		{name: "bind with port", env: "SUPERVISE_BIND=0.0.0.0:9100", err: []string{`SUPERVISE_BIND "0.0.0.0:9100"`, "without a port"}},
		{name: "bad debug", env: "SUPERVISE_DEBUG=yes!", err: []string{"SUPERVISE_DEBUG", "true or false"}},
		{name: "bad redeliver", env: "SUPERVISE_REDELIVER=10", err: []string{"SUPERVISE_REDELIVER", "10m"}},
		{name: "negative redeliver", env: "SUPERVISE_REDELIVER=-1s", err: []string{"SUPERVISE_REDELIVER"}},
		{name: "no pending", env: "SUPERVISE_MAX_PENDING=0", err: []string{"SUPERVISE_MAX_PENDING", "from 1 to"}},
		{name: "bad waiting", env: "SUPERVISE_MAX_WAITING=x", err: []string{"SUPERVISE_MAX_WAITING"}},
		{name: "proxy without scheme", env: "SUPERVISE_EGRESS_PROXY=egress:9099", err: []string{"SUPERVISE_EGRESS_PROXY", "http://egress:9099"}},
		{name: "proxy with a path", env: "SUPERVISE_EGRESS_PROXY=http://egress:9099/x", err: []string{"SUPERVISE_EGRESS_PROXY"}},
		{name: "URL as host", env: "SUPERVISE_ALLOWED_HOSTS=a,http://b/", err: []string{"SUPERVISE_ALLOWED_HOSTS", `"http://b/" is none`}},
		{name: "two tokens", env: "SUPERVISE_TOKEN=hush SUPERVISE_TOKEN_FILE=" + file("token2", "x"), err: []string{"SUPERVISE_TOKEN_FILE", "together with SUPERVISE_TOKEN"}},
		{name: "bad token", env: "SUPERVISE_TOKEN=hush\x01", err: []string{"SUPERVISE_TOKEN must", "printable ASCII"}},
		{name: "empty token file", env: "SUPERVISE_TOKEN_FILE=" + file("empty", "\n"), err: []string{"SUPERVISE_TOKEN_FILE", "empty"}},
		{name: "huge token file", env: "SUPERVISE_TOKEN_FILE=" + file("huge", strings.Repeat("x", 10000)), err: []string{"SUPERVISE_TOKEN_FILE", "at most 4096 bytes"}},
		{name: "no token file", env: "SUPERVISE_TOKEN_FILE=/nosuch", err: []string{`SUPERVISE_TOKEN_FILE "/nosuch"`, "can be read"}},
		{name: "several at once", env: "SUPERVISE_PORT=a SUPERVISE_DEBUG=b", err: []string{"SUPERVISE_PORT", "SUPERVISE_DEBUG"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			vars := map[string]string{"SUPERVISE_BOTTLE_SLUG": "web"}
			for kv := range strings.SplitSeq(tt.env, " ") {
				k, v, _ := strings.Cut(kv, "=")
				vars[k] = v
			}
			got, err := LoadSidecar(func(k string) string { return vars[k] }, tt.flags)
			if tt.err == nil {
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("mismatch (-want +got):\n%s", diff)
				}
				return
			}
			if err == nil {
				t.Fatalf("no error, want one with %q", tt.err)
			}
			for _, want := range tt.err {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q lacks %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "hush") {
				t.Errorf("error %q shows the token", err)
			}
		})
	}
}

func TestSecretIsNotPrinted(t *testing.T) {
	s := Sidecar{Token: "hush"}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "token", s.Token, "all", s)
	for _, out := range []string{log.String(), fmt.Sprint(s), fmt.Sprintf("%v %+v %#v %q %s", s, s, s, s.Token, s.Token)} {
		if strings.Contains(out, "hush") {
			t.Errorf("%q shows the token", out)
		}
	}
}

func TestSidecarVars(t *testing.T) {
	for _, v := range SidecarVars() {
		want := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(v.Env, "SUPERVISE_"), "_", "-"))
		if secret := strings.Contains(v.Env, "TOKEN"); secret && v.Flag != "" || !secret && v.Flag != want {
			t.Errorf("%s has the flag %q, want %q, or none for a secret", v.Env, v.Flag, want)
		}
		if v.Usage == "" {
			t.Errorf("%s has no usage", v.Env)
		}
	}
	if got := (Sidecar{Bind: "::1", Port: 9100}).Addr(); got != "[::1]:9100" {
		t.Errorf("Addr = %q", got)
	}
}
