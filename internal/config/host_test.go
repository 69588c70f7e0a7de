package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const full = `
root: ~/queue
defaults:                       # {slug} is replaced
  egress:
    file: ~/bottles/{slug}/routes.yaml
    reload: {docker: "egress-{slug}"}
    allowlist_url: http://_egress.local/allowlist
    proxy: http://127.0.0.1:9099
  pipelock: {file: "gate/{slug}.yaml", reload: none, check: [~/bin/pipelock, check, --config, "{file}"]}
  capability: {file: "/b/{slug}/Dockerfile", build: [docker, build, -t, "{slug}", .], replace: [up, "{slug}"]}
bottles:
  web: {}
  api:
    egress:
      file: /srv/api.yaml
      reload: {signal: {pid_file: ~/api.pid}}
    pipelock: null
  db:
    egress: {reload: {exec: [kick, "{slug}"]}, proxy: "http://{slug}:1"}
    capability: {build: null, replace: null}
  cron:
    egress: {reload: {signal: {pid: 42}}}
    pipelock: {reload: {podman: gate}}
  empty:
`

func parse(t *testing.T, s string) Host {
	t.Helper()
	h, err := ParseHost([]byte(s), "/etc/sv/supervise.yaml", "/home/op")
	if err != nil {
		t.Fatalf("ParseHost: %v", err)
	}
	return h
}

func TestFor(t *testing.T) {
	h := parse(t, full)
	if h.Root != "/home/op/queue" || h.File != "/etc/sv/supervise.yaml" {
		t.Errorf("root %q, file %q; want /home/op/queue, /etc/sv/supervise.yaml", h.Root, h.File)
	}
	egress := func(slug string, r Reload) *Egress {
		return &Egress{"/home/op/bottles/" + slug + "/routes.yaml", r, "http://_egress.local/allowlist", "http://127.0.0.1:9099"}
	}
	gate := func(slug string) *Pipelock {
		return &Pipelock{File: "/etc/sv/gate/" + slug + ".yaml", Check: []string{"/home/op/bin/pipelock", "check", "--config", "{file}"}}
	}
	image := func(slug string) *Capability {
		return &Capability{"/b/" + slug + "/Dockerfile", []string{"docker", "build", "-t", slug, "."}, []string{"up", slug}}
	}
	def := func(slug string) Bottle {
		return Bottle{egress(slug, Reload{Engine: "docker", Name: "egress-" + slug}), gate(slug), image(slug)}
	}
	for slug, want := range map[string]Bottle{
		"web":      def("web"),
		"empty":    def("empty"),
		"unlisted": def("unlisted"),
		"api": {
			&Egress{"/srv/api.yaml", Reload{PIDFile: "/home/op/api.pid"}, "http://_egress.local/allowlist", "http://127.0.0.1:9099"},
			nil, image("api")},
		"db": {
			&Egress{"/home/op/bottles/db/routes.yaml", Reload{Exec: []string{"kick", "db"}}, "http://_egress.local/allowlist", "http://db:1"},
			gate("db"), &Capability{File: "/b/db/Dockerfile"}},
		"cron": {egress("cron", Reload{PID: 42}),
			&Pipelock{"/etc/sv/gate/cron.yaml", Reload{Engine: "podman", Name: "gate"}, gate("cron").Check}, image("cron")},
		"../x": {},
		"":     {},
	} {
		if diff := cmp.Diff(want, h.For(slug)); diff != "" {
			t.Errorf("For(%q) mismatch (-want +got):\n%s", slug, diff)
		}
	}
	if diff := cmp.Diff(def("web"), h.For("web")); diff != "" {
		t.Errorf("For changed what it was read from (-want +got):\n%s", diff)
	}
}

func TestDefaultsWithoutFile(t *testing.T) {
	h := parse(t, "defaults: {egress: {proxy: 'http://127.0.0.1:1'}}\nbottles: {web: {egress: {file: r.yaml}}}\n")
	if got := h.For("other"); got.Egress != nil {
		t.Errorf("For(other).Egress = %+v, want none: it has no file", got.Egress)
	}
	if got := h.For("web"); got.Egress == nil || got.Egress.File != "/etc/sv/r.yaml" || got.Egress.Proxy != "http://127.0.0.1:1" {
		t.Errorf("For(web).Egress = %+v, want file and proxy", got.Egress)
	}
}

func TestParseHostRefuses(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"near key", "rot: /x\n", `supervise.yaml:1: unknown key "rot" in the file; did you mean root?`},
		{"near key, deep", "defaults:\n  egress:\n    file: /x\n    allowlist-url: http://a/\n", `supervise.yaml:4: unknown key "allowlist-url" in defaults.egress; did you mean allowlist_url?`},
		{"far key", "defaults:\n  quux: 1\n", `supervise.yaml:2: unknown key "quux" in defaults; known are egress, pipelock, capability`},
		{"twice", "root: /a\nroot: /b\n", `supervise.yaml:2: key "root" is there twice in the file`},
		{"bottle twice", "bottles:\n  web:\n  web:\n", "supervise.yaml:3: bottle web is there twice"},
		{"slug", "bottles:\n  Web: {}\n", `supervise.yaml:2: bottle slug "Web" must match [a-z0-9][a-z0-9-]{0,62}`},
		{"no file in defaults", "defaults:\n  egress: {reload: none}\n", "supervise.yaml:2: defaults.egress has no file, and no bottle gives it one: add file, such as ~/bottles/{slug}/egress/routes.yaml, or leave egress out"},
		{"no file in defaults, and bottles without it", "defaults:\n  egress: {file: r}\n  capability: {build: [make]}\nbottles:\n  web: {capability: null}\n", "supervise.yaml:3: defaults.capability has no file, and no bottle gives it one: add file, such as ~/bottles/{slug}/Dockerfile, or leave capability out"},
		{"a wrong file in defaults", "defaults: {egress: {file: 7}}\n", "supervise.yaml:1: defaults.egress.file must be a string"},
		{"no file", "bottles:\n  web:\n    egress: {reload: none}\n", "supervise.yaml:2: bottles.web.egress has no file, here or in defaults"},
		{"reload word", "defaults:\n  egress:\n    reload: sighup\n", `supervise.yaml:3: defaults.egress.reload "sighup" must be one of ` + reloadForms},
		{"two reloads", "defaults: {egress: {reload: {docker: a, podman: b}}}\n", "supervise.yaml:1: defaults.egress.reload must be one of " + reloadForms},
		{"near reload", "defaults: {egress: {reload: {dokcer: a}}}\n", `supervise.yaml:1: unknown key "dokcer" in defaults.egress.reload; did you mean docker?`},
		{"pid 1", "defaults: {egress: {reload: {signal: {pid: 1}}}}\n", `supervise.yaml:1: defaults.egress.reload.signal.pid "1" must be the number of a process above 1`},
		{"signal", "defaults: {egress: {reload: {signal: 7}}}\n", "supervise.yaml:1: defaults.egress.reload.signal must be {pid: N} or {pid_file: PATH}"},
		{"an option as container", "defaults: {egress: {reload: {docker: --all}}}\n", "supervise.yaml:1: defaults.egress.reload.docker must be a container's name"},
		{"exec string", "defaults: {egress: {reload: {exec: kick}}}\n", "supervise.yaml:1: defaults.egress.reload.exec must be a list: the command and its arguments"},
		{"exec number", "defaults: {egress: {reload: {exec: [kick, 1]}}}\n", "supervise.yaml:1: defaults.egress.reload.exec[1] must be a string"},
		{"exec nothing", "defaults: {capability: {build: []}}\n", "supervise.yaml:1: defaults.capability.build must be a list: the command and its arguments"},
		{"check without file", "defaults: {pipelock: {check: [pipelock, check]}}\n", `supervise.yaml:1: defaults.pipelock.check must have an argument "{file}", which stands for the candidate`},
		{"url", "defaults: {egress: {allowlist_url: _egress.local/allowlist}}\n", `supervise.yaml:1: defaults.egress.allowlist_url "_egress.local/allowlist" must be an http or https URL`},
		{"proxy", "defaults: {egress: {proxy: '127.0.0.1:9099'}}\n", `supervise.yaml:1: defaults.egress.proxy "127.0.0.1:9099" must be an http or https URL`},
		{"placeholder", "defaults: {egress: {file: '/b/{bottle}/r'}}\n", "supervise.yaml:1: defaults.egress.file: unknown placeholder {bottle}; known is {slug}"},
		{"slug in root", "root: /b/{slug}\n", "supervise.yaml:1: root: unknown placeholder {slug}; none is known here"},
		{"another's home", "root: ~bob/q\n", `supervise.yaml:1: root "~bob/q": another user's home directory must be written out`},
		{"a number as path", "root: 7\n", "supervise.yaml:1: root must be a string"},
		{"a list", "- a\n", "supervise.yaml:1: the file must be a mapping"},
		{"merge key", "x: &x {}\n", `supervise.yaml:1: unknown key "x" in the file; known are root, defaults, bottles, notify`},
		{"bell", "notify: {bell: loud}\n", "supervise.yaml:1: notify.bell must be true or false"},
		{"remind soon", "notify: {remind_after: 5s}\n", `supervise.yaml:1: notify.remind_after "5s" must be a time of a minute or more, such as 15m or 2h`},
		{"remind never", "notify: {remind_after: 0}\n", `supervise.yaml:1: notify.remind_after "0" must be a time of a minute or more, such as 15m or 2h`},
		{"notify by word", "notify:\n  exec: notify-send\n", "supervise.yaml:2: notify.exec must be a list: the command and its arguments"},
		{"webhook without url", "notify:\n  webhook: {secret_file: k}\n", "supervise.yaml:2: notify.webhook has no url"},
		{"webhook to a file", "notify: {webhook: {url: file:///x}}\n", `supervise.yaml:1: notify.webhook.url "file:///x" must be an http or https URL`},
		{"secret inline", "notify:\n  webhook:\n    url: https://x/\n    secret: k\n", `supervise.yaml:4: unknown key "secret" in notify.webhook; known are url, secret_file`},
		{"syntax", "root: /a\n  b: [\n", "supervise.yaml:2: mapping values are not allowed in this context"},
		{"slug without quotes", "defaults:\n  egress: {file: /b/{slug}/r}\n", `supervise.yaml:2: did not find expected ',' or '}'; inside {…} or […] a value with {slug} must be in quotes: "a/{slug}/b"`},
		{"two documents", "root: /a\n---\nroot: /b\n", "supervise.yaml:2: a second document; there must be one"},
		{"not UTF-8", "root: \xff\n", "supervise.yaml:1: the file is not UTF-8"},
		{"all mistakes, by line", "bottles:\n  Web: {}\nrot: 1\ndefaults: 7\n",
			"supervise.yaml:2: bottle slug \"Web\" must match [a-z0-9][a-z0-9-]{0,62}\n" +
				"supervise.yaml:3: unknown key \"rot\" in the file; did you mean root?\n" +
				"supervise.yaml:4: defaults must be a mapping"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, err := ParseHost([]byte(tt.in), "supervise.yaml", "/home/op")
			if err == nil {
				t.Fatalf("ParseHost = %+v, want error %s", h, tt.want)
			}
			if diff := cmp.Diff(tt.want, err.Error()); diff != "" {
				t.Errorf("error mismatch (-want +got):\n%s", diff)
			}
		})
	}
	if _, err := ParseHost([]byte("root: ~/q\n"), "supervise.yaml", ""); err == nil || !strings.Contains(err.Error(), "HOME is not set") {
		t.Errorf("~ without a home: %v, want an error", err)
	}
}

func TestNotify(t *testing.T) {
	h, err := ParseHost([]byte(`notify:
  bell: false
  exec: [notify-send, "{title}", "{text}"]
  webhook:
    url: https://hooks.example.com/x
    secret_file: hook.key
  remind_after: 15m
`), "/etc/supervise.yaml", "/home/op")
	if err != nil {
		t.Fatal(err)
	}
	want := Notify{
		Bell: new(false), Exec: []string{"notify-send", "{title}", "{text}"},
		Webhook: &Webhook{URL: "https://hooks.example.com/x", SecretFile: "/etc/hook.key"}, RemindAfter: 15 * time.Minute,
	}
	if diff := cmp.Diff(want, h.Notify); diff != "" {
		t.Errorf("Notify mismatch (-want +got):\n%s", diff)
	}
}

func TestLoadHost(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	env := map[string]string{"HOME": filepath.Join(dir, "home")}
	load := func(path, wantFile, wantRoot string) {
		t.Helper()
		h, err := LoadHost(path, func(k string) string { return env[k] })
		if err != nil {
			t.Fatalf("LoadHost(%q): %v", path, err)
		}
		if h.File != wantFile || h.Root != wantRoot {
			t.Errorf("LoadHost(%q): file %q, root %q; want %q, %q", path, h.File, h.Root, wantFile, wantRoot)
		}
	}
	load("", "", "")
	inHome := write("home/.config/supervise/supervise.yaml", "root: in-home\n")
	load("", inHome, filepath.Join(filepath.Dir(inHome), "in-home"))
	env["XDG_CONFIG_HOME"] = "relative: to be ignored"
	load("", inHome, filepath.Join(filepath.Dir(inHome), "in-home"))
	env["XDG_CONFIG_HOME"] = filepath.Join(dir, "xdg")
	inXDG := write("xdg/supervise/supervise.yaml", "")
	load("", inXDG, "")
	here := write("supervise.yaml", "root: ~/q\n")
	load("", inXDG, "") // the one here may be another's
	env["SUPERVISE_CONFIG"] = here
	load("", here, filepath.Join(dir, "home", "q"))
	given := write("other.yaml", "root: /abs\n")
	load(given, given, "/abs")
	load("other.yaml", given, "/abs")

	for _, tt := range []struct{ set, want string }{
		{"supervise.yaml", `reading the configuration: SUPERVISE_CONFIG "supervise.yaml" must be absolute: else it would name another file in every directory`},
		{filepath.Join(dir, "gone.yaml"), "reading the configuration: open " + filepath.Join(dir, "gone.yaml") + ": no such file or directory"},
	} {
		env["SUPERVISE_CONFIG"] = tt.set
		if _, err := LoadHost("", func(k string) string { return env[k] }); err == nil || err.Error() != tt.want {
			t.Errorf("SUPERVISE_CONFIG=%s: %v, want %s", tt.set, err, tt.want)
		}
	}

	none := func(string) string { return "" }
	if h, err := LoadHost("", none); err != nil || h.File != "" {
		t.Errorf("LoadHost without settings: file %q, %v; want none", h.File, err)
	}
	if _, err := LoadHost("missing.yaml", none); err == nil || !strings.Contains(err.Error(), "missing.yaml") {
		t.Errorf("LoadHost of a missing file: %v, want an error that names it", err)
	}
	bad := write("bad.yaml", "roots: /x\n")
	want := bad + `:1: unknown key "roots" in the file; did you mean root?`
	if _, err := LoadHost(bad, none); err == nil || err.Error() != want {
		t.Errorf("LoadHost error = %v, want %s", err, want)
	}
}

func FuzzParseHost(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte("bottles: {web: &x {egress: {file: a}}, api: *x}\n"))
	f.Add([]byte("defaults: {egress: {reload: {signal: {pid: 2}}}}\n---\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := ParseHost(data, "/etc/sv/supervise.yaml", "/home/op")
		if err != nil {
			for line := range strings.SplitSeq(err.Error(), "\n/") {
				if !strings.HasPrefix("/"+strings.TrimPrefix(line, "/"), "/etc/sv/supervise.yaml:") {
					t.Errorf("error without file and line: %q", line)
				}
			}
			return
		}
		for slug := range h.Bottles {
			b := h.For(slug)
			for _, file := range []string{fileOf(b.Egress, func(e *Egress) string { return e.File }), fileOf(b.Pipelock, func(p *Pipelock) string { return p.File }),
				fileOf(b.Capability, func(c *Capability) string { return c.File })} {
				if file != "" && !filepath.IsAbs(file) {
					t.Errorf("bottle %s: file %q is not absolute", slug, file)
				}
			}
		}
	})
}

func fileOf[T any](t *T, f func(*T) string) string {
	if t == nil {
		return ""
	}
	return f(t)
}
