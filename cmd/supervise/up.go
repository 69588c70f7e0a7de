//go:build !slim

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"text/template"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/bot-bottle/supervise/internal/egress"
	"github.com/bot-bottle/supervise/queue"
	"github.com/bot-bottle/supervise/server"
	"github.com/bot-bottle/supervise/tools"
)

// upOptions are up's flags.
type upOptions struct {
	dir    string
	named  bool // somebody gave dir: what is in it is theirs
	bottle string
	egress string
	listen string
	web    string
	debug  bool
}

func newUp(a *app) *cobra.Command {
	o := upOptions{}
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run the whole loop on this machine",
		Long: `Run the egress proxy, one bottle's sidecar and the browser desk in this terminal, with
everything they keep under one directory, and print the lines that connect an agent, let it be
refused, ask, and let you decide. SIGUSR1 prints another link for the browser.

It is for trying it out, and for an agent that runs on this machine; for containers see
docs/deployment.md.

All listen on loopback only. The first run makes the directory; later ones find in it what
was kept: open proposals, routes, the CA. One that was not made there by up has to be named
with --dir, since what is in it says what is reached and which files are written: it must be
beyond the reach of an agent in a sandbox.`,
		Example: `  supervise up
  supervise up --listen 127.0.0.1:9200 --egress 127.0.0.1:9199 --web 127.0.0.1:9201`,
		Args:        args(0, 0),
		Annotations: takesHUP,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := queue.CheckSlug(o.bottle); err != nil {
				return usagef("such as --bottle web", "up: --bottle: %v", err)
			}
			o.named = cmd.Flags().Changed("dir")
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			ctx, stop = signal.NotifyContext(ctx, syscall.SIGHUP) // the terminal was closed
			defer stop()
			defer catchPipe()()
			return a.up(ctx, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.dir, "dir", ".supervise", "the `directory` for everything")
	f.StringVar(&o.bottle, "bottle", "demo", "the bottle's `slug`")
	f.StringVar(&o.egress, "egress", egress.DefaultAddr, "the `address` of the egress proxy")
	f.StringVar(&o.listen, "listen", "127.0.0.1:9100", "the `address` of the sidecar")
	f.StringVar(&o.web, "web", defaultWeb, "the `address` of the browser desk")
	f.BoolVar(&o.debug, "debug", false, "log more")
	must(cmd.MarkFlagDirname("dir"))
	return cmd
}

// layout is where up keeps what it keeps.
type layout struct{ dir string }

func (l layout) root() string            { return filepath.Join(l.dir, "queue") }
func (l layout) mailbox(b string) string { return filepath.Join(l.dir, "queue", b) }
func (l layout) routes() string          { return filepath.Join(l.dir, "egress", "routes.yaml") }
func (l layout) ca() string              { return filepath.Join(l.dir, "ca") }
func (l layout) dockerfile() string      { return filepath.Join(l.dir, "bottle", "Dockerfile") }
func (l layout) config() string          { return filepath.Join(l.dir, "supervise.yaml") }

const (
	firstRoutes     = "# The routes of the egress proxy: what the bottle may reach. Yours to edit; approvals add to it.\nroutes:\n  - host: api.anthropic.com # the agent itself\n"
	firstDockerfile = "FROM debian:bookworm-slim\n"
	generated       = "# Written by 'supervise up' at every start. Remove this line to keep your own edits, and name the directory with --dir.\n"
)

// own makes the directory, or refuses one that is only found where we happen to be: a checkout may bring its own. What is in it
// says what is reached, with which of our variables for a credential, and which files an interrupted decision puts back,
// wherever they are. One that up made, or that somebody named, has a mark, and our state has the same under its path.
func (l layout) own(state string, named bool) error {
	abs, err := filepath.Abs(l.dir)
	if err != nil {
		return err
	}
	made := os.Mkdir(l.dir, 0o755)
	if made != nil && named {
		made = os.MkdirAll(l.dir, 0o755)
	}
	if made != nil && !errors.Is(made, fs.ErrExist) {
		return fmt.Errorf("making %s: %w", l.dir, made)
	}
	in, err := filepath.EvalSymlinks(filepath.Dir(abs)) // one place, by whatever links one went there
	if err != nil {
		return fmt.Errorf("making %s: %w", l.dir, err)
	}
	path := sha256.Sum256([]byte(filepath.Join(in, filepath.Base(abs))))
	here, there := filepath.Join(l.dir, ".mark"), filepath.Join(state, "up", hex.EncodeToString(path[:]))
	if made != nil {
		mark, merr := os.ReadFile(there)
		if have, herr := readMark(here); state == "" || merr != nil || herr != nil || len(mark) == 0 || !bytes.Equal(have, mark) {
			return hint(fmt.Errorf("%s is not known as made by up here, and what is in it says what is reached and which files are written", l.dir), "if it is yours: supervise up --dir %s", quote(l.dir))
		}
		return nil
	}
	mark := []byte(rand.Text())
	if err := writeMark(here, mark); err != nil {
		return fmt.Errorf("making %s: %w", here, err)
	}
	if state != "" { // what cannot be kept there has to be named again
		_ = errors.Join(os.MkdirAll(filepath.Dir(there), 0o700), os.WriteFile(there, mark, 0o600))
	}
	return nil
}

// readMark reads no link, which could lead to the very mark that is kept, and waits for nobody.
func readMark(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 1<<10))
}

func writeMark(path string, mark []byte) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(mark)
	return errors.Join(err, f.Close())
}

// settle makes what is missing and leaves what is there.
func (l layout) settle() error {
	for _, d := range []struct {
		path string
		mode os.FileMode
	}{{l.dir, 0o755}, {l.root(), 0o700}, {filepath.Dir(l.routes()), 0o755}, {filepath.Dir(l.dockerfile()), 0o755}} {
		if err := os.MkdirAll(d.path, d.mode); err != nil {
			return fmt.Errorf("making %s: %w", d.path, err)
		}
	}
	for path, text := range map[string]string{l.routes(): firstRoutes, l.dockerfile(): firstDockerfile, filepath.Join(l.dir, ".gitignore"): "*\n"} {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("making %s: %w", path, err)
		}
		_, err = f.WriteString(text)
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("writing %s: %w", path, err)
		}
	}
	return nil
}

// configure writes the configuration for the ports that are listened on. It is for whoever has the mailbox: the configuration
// of one that runs here already must stay.
func (l layout) configure(o upOptions) error {
	have, err := os.ReadFile(l.config())
	if err == nil && !bytes.HasPrefix(have, []byte(generated)) {
		if !o.named { // as with any supervise.yaml that is only found where we happen to be
			return hint(fmt.Errorf("%s is not as up wrote it, and what it names runs as you", l.config()), "if the edits are yours: supervise up --dir %s", quote(l.dir))
		}
		return nil // somebody keeps their own
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading %s: %w", l.config(), err)
	}
	text := generated + fmt.Sprintf(`root: queue
defaults:
  egress:
    file: egress/routes.yaml
    reload: none        # the proxy watches its file
    allowlist_url: http://_egress.local/allowlist
    proxy: http://%s
  capability:
    file: bottle/Dockerfile
bottles:
  %s: {}
`, o.egress, o.bottle)
	if err := os.WriteFile(l.config(), []byte(text), 0o644); err != nil {
		return fmt.Errorf("writing %s: %w", l.config(), err)
	}
	return nil
}

// taken explains a port that somebody else has; up has flags for it and none of the settings that err may name.
func taken(err error, flag, addr, what string) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return hint(fmt.Errorf("%s cannot listen on %s: %w", what, addr, syscall.EADDRINUSE), "something else listens there, perhaps another 'supervise up'; %s moves %s", flag, what)
	}
	return err
}

func (a *app) up(ctx context.Context, o upOptions) error {
	for _, addr := range []struct{ flag, value string }{{"--egress", o.egress}, {"--listen", o.listen}, {"--web", o.web}} {
		host, port, err := net.SplitHostPort(addr.value)
		switch {
		case err != nil:
			return usagef("such as "+addr.flag+" 127.0.0.1:9200", "up: %s %s is not HOST:PORT", addr.flag, quote(addr.value))
		case !loopback(host): // nothing here asks who is there
			return usagef("up is for this machine alone, such as "+addr.flag+" "+net.JoinHostPort("127.0.0.1", port)+"; docs/deployment.md is for more",
				"up: %s %s is beyond loopback", addr.flag, quote(addr.value))
		case !isPort(port):
			return usagef("such as "+addr.flag+" 127.0.0.1:9200", "up: %s %s has no port from 0 to 65535", addr.flag, quote(addr.value))
		}
	}
	l := layout{o.dir}
	if err := l.own(a.stateDir(), o.named); err != nil {
		return err
	}
	cert, key, err := ensureCA(l.ca())
	if err != nil {
		return err
	}
	log := newLog(a.err, o.debug)
	if err := l.settle(); err != nil { // before the proxy, which reads the routes
		return err
	}
	proxy, err := egress.New(egress.Options{Addr: o.egress, RoutesFile: l.routes(), CACert: cert, CAKey: key, Env: a.env, Logger: log})
	if err != nil {
		return taken(err, "--egress", o.egress, "the proxy")
	}
	o.egress = proxy.Addr().String()
	side, err := openSidecar(ctx, sidecarOptions{
		Dir:    l.mailbox(o.bottle),
		Tools:  tools.Options{Bottle: o.bottle, EgressProxy: "http://" + o.egress, Dockerfile: l.dockerfile()},
		Server: server.Options{Addr: o.listen},
	}, log)
	if err != nil {
		if ctx.Err() != nil {
			err = nil // it was stopped while it waited for the mailbox
		}
		stopped, stop := context.WithCancel(ctx)
		stop()
		return errors.Join(taken(err, "--listen", o.listen, "the sidecar"), proxy.Run(stopped)) // which gives its port back
	}
	o.listen = side.srv.Addr().String()
	giveUp := func(err error) error {
		stopped, stop := context.WithCancel(ctx)
		stop()
		return errors.Join(err, side.Close(), proxy.Run(stopped))
	}
	if err := l.configure(o); err != nil {
		return giveUp(err)
	}
	a.config = l.config()
	d, err := a.openDeskVia("web")
	if err != nil {
		return giveUp(err)
	}
	defer d.Close()
	if err := a.recover(ctx, d); err != nil {
		return giveUp(err)
	}
	usr1 := make(chan os.Signal, 1)
	signal.Notify(usr1, syscall.SIGUSR1)
	defer signal.Stop(usr1)
	w, err := a.listenWeb(d, webOptions{listen: o.web, debug: o.debug})
	if err != nil {
		return giveUp(taken(err, "--web", o.web, "the browser desk"))
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return proxy.Run(ctx) })
	g.Go(func() error { return side.Run(ctx) })
	g.Go(func() error { return d.Run(ctx) })
	g.Go(func() error { return w.Run(ctx, w.ln) })
	g.Go(func() error {
		if err := a.printf("%s", banner(a, l, o, w.links())); err != nil {
			return err
		}
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-usr1:
				if err := a.printf("%s", w.links()); err != nil {
					return err
				}
			}
		}
	})
	return g.Wait()
}

const bannerText = `{{bold "supervise is up"}}, bottle {{.Bottle}}, everything under {{.Dir}}. ^C stops it.

{{bold "Connect Claude Code"}}, in the directory where the agent works:
  claude mcp add --transport http supervise http://{{.Listen}}/
  HTTP_PROXY=http://{{.Egress}} HTTPS_PROXY=http://{{.Egress}} NO_PROXY=127.0.0.1,localhost \
    NODE_EXTRA_CA_CERTS={{.CA}} SSL_CERT_FILE={{.CA}} claude

{{bold "Be refused"}}, as the agent will be:
  curl --cacert {{.CA}} -x http://{{.Egress}} https://example.com/

{{bold "Ask"}}, as the agent will. It waits for you; a client like curl that shows no progress, for 50 s:
  curl -sN http://{{.Listen}}/ -H 'Content-Type: application/json' -H 'Accept: application/json, text/event-stream' \
    -d '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"egress-block","arguments":{"host":"example.com","justification":"to see how it works"}}}'

{{bold "Decide"}}, in a browser (the link signs it in, once):
{{.Links}}{{bold "or"}} in another shell:
  {{.Self}} review --config {{.Config}}
  {{.Self}} list --config {{.Config}}
  {{.Self}} approve ID --config {{.Config}}

`

func banner(a *app, l layout, o upOptions, links string) string {
	abs := func(path string) string {
		if p, err := filepath.Abs(path); err == nil {
			return quote(p)
		}
		return quote(path)
	}
	var b bytes.Buffer
	t := template.Must(template.New("").Funcs(template.FuncMap{"bold": a.style.bold}).Parse(bannerText))
	err := t.Execute(&b, map[string]string{
		"Links": links, "Bottle": o.bottle, "Dir": l.dir, "Listen": o.listen, "Egress": o.egress,
		"CA": abs(filepath.Join(l.ca(), "public", "ca.pem")), "Config": quote(l.config()), "Self": self(),
	})
	if err != nil {
		panic(err) // fixed text and strings
	}
	return b.String()
}

// self is how to call this program again from here.
func self() string {
	if len(os.Args) > 0 && os.Args[0] != "" {
		return quote(os.Args[0])
	}
	return "supervise"
}
