//go:build !slim

package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/muesli/cancelreader"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/bot-bottle/supervise/internal/config"
	"github.com/bot-bottle/supervise/internal/lazy"
	"github.com/bot-bottle/supervise/internal/operator/web"
)

// defaultWeb is where the desk listens for browsers.
const defaultWeb = "127.0.0.1:9101"

// webOptions are web's flags.
type webOptions struct {
	listen    string
	hosts     []string
	cert, key string
	insecure  bool
	metrics   string
	debug     bool
}

func newWeb(a *app) *cobra.Command {
	var o webOptions
	cmd := &cobra.Command{
		Use:   "web",
		Short: "Look and decide in a browser",
		Long: `The inbox of every bottle in a browser: what is asked, exactly what would change, and the
buttons that decide. It prints a link that signs one browser in, once; Enter, or SIGUSR1, prints
another, and a browser that is signed in can make one for the next. Sessions end after 12 hours
without use, after 7 days, and with the command.

It listens on loopback, under a name of its own (supervise-….localhost), since a browser sends
the cookie that signs it in to every port of the same host. Beyond loopback it wants TLS
(--tls-cert, --tls-key) or --insecure, which lets everybody on the way read and decide; names
under which browsers reach it go into --host.

While it runs it also finishes what interrupted commands left, every five seconds, and tells
people of what waits, as the notify section of supervise.yaml says.`,
		Example: `  supervise web
  supervise web --listen 0.0.0.0:9101 --host desk.example.com --tls-cert desk.pem --tls-key desk.key
  ssh -L 9101:127.0.0.1:9101 host    then open the printed link here`,
		Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.web(cmd.Context(), o) },
	}
	a.rootFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&o.listen, "listen", defaultWeb, "the `address` to listen on")
	f.StringSliceVar(&o.hosts, "host", nil, "a `name` under which browsers reach it (repeatable, or with commas)")
	f.StringVar(&o.cert, "tls-cert", "", "the certificate `file`, PEM")
	f.StringVar(&o.key, "tls-key", "", "its key `file`, PEM")
	f.BoolVar(&o.insecure, "insecure", false, "listen beyond loopback without TLS")
	f.StringVar(&o.metrics, "metrics", "", "`address`, HOST:PORT, of a listener of its own with Prometheus metrics at /metrics (else SUPERVISE_METRICS; unset: none)")
	f.BoolVar(&o.debug, "debug", false, "log more")
	must(cmd.MarkFlagFilename("tls-cert", "pem", "crt"))
	must(cmd.MarkFlagFilename("tls-key", "pem", "key"))
	return cmd
}

func (a *app) web(ctx context.Context, o webOptions) (err error) {
	d, err := a.openDeskVia("web")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	a.tellUnread(d)
	// Before anybody can have been told that we run: a signal sent sooner would end us.
	usr1 := make(chan os.Signal, 1)
	signal.Notify(usr1, syscall.SIGUSR1)
	defer signal.Stop(usr1)
	w, err := a.listenWeb(d, o)
	if err != nil {
		return err
	}
	defer w.ln.Close()
	log := newLog(a.err, o.debug)
	n, err := a.notifier(d, w.url, log)
	if err != nil {
		return err
	}
	var shown *metricsServer
	if o.metrics = cmp.Or(o.metrics, a.env("SUPERVISE_METRICS")); o.metrics != "" {
		if err := config.CheckMetrics(o.metrics); err != nil {
			return usagef("an address that the monitoring reaches, and no bottle", "--metrics (SUPERVISE_METRICS) %s: %v", quote(o.metrics), err)
		}
		if shown, err = listenMetrics(o.metrics, deskMetrics(d), log); err != nil {
			return hint(err, "SUPERVISE_METRICS, or --metrics, moves it")
		}
		defer shown.ln.Close()
	}
	if err := a.recover(ctx, d); err != nil {
		return err
	}
	ctx, stop := interruptible(ctx)
	defer stop()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.Run(ctx) })
	g.Go(func() error { return w.Run(ctx, w.ln) })
	g.Go(func() error { return n.Run(ctx) })
	if shown != nil {
		log.Info("metrics on http://" + shown.ln.Addr().String() + "/metrics")
		g.Go(func() error { return shown.Run(ctx) })
	}
	how := "SIGUSR1 makes another."
	lines := make(chan struct{})
	if a.inTTY {
		how = "Enter, or SIGUSR1, makes another."
		signal.Ignore(syscall.SIGTTIN) // in the background reading fails, and we go on
		in, err := cancelreader.NewReader(a.in)
		if err != nil {
			return fmt.Errorf("reading the terminal: %w", err)
		}
		g.Go(func() error {
			<-ctx.Done()
			in.Cancel()
			return nil
		})
		g.Go(func() error {
			for sc := bufio.NewScanner(in); sc.Scan(); {
				select {
				case lines <- struct{}{}:
				case <-ctx.Done():
				}
			}
			return nil // the terminal is gone, or we end
		})
	}
	g.Go(func() error {
		if err := a.printf("The desk is at %s. This link signs one browser in, once, within %d minutes. %s\n\n", w.url, int(web.LinkLife.Minutes()), how); err != nil {
			return err
		}
		for {
			if err := a.printf("%s\n", w.links()); err != nil {
				return err
			}
			select {
			case <-ctx.Done():
				return nil
			case <-usr1:
			case <-lines:
			}
		}
	})
	return g.Wait()
}

// webDesk is the web desk with its listener.
type webDesk struct {
	*web.Server
	ln  net.Listener
	url string
}

// links is a new link, as it is printed.
func (w *webDesk) links() string {
	link, plain := w.Links()
	if plain == "" {
		return "  " + link + "\n"
	}
	return "  " + link + "\n  or, where .localhost does not resolve: " + plain + "\n"
}

// listenWeb prepares the web desk over d. Whoever calls runs it and closes the listener.
func (a *app) listenWeb(d *desk, o webOptions) (*webDesk, error) {
	host, err := listenHost(o.listen, defaultWeb)
	if err != nil {
		return nil, err
	}
	opts := web.Options{Desk: d, Targets: d.targets, Logger: newLog(a.err, o.debug)}
	scheme := "http"
	switch {
	case (o.cert == "") != (o.key == ""):
		return nil, usagef("give both", "--tls-cert and --tls-key belong together")
	case o.cert != "":
		pair, err := tls.LoadX509KeyPair(o.cert, o.key)
		if err != nil {
			return nil, hint(fmt.Errorf("reading the certificate: %w", err), "both files are PEM, and the key is the certificate's")
		}
		opts.TLS, scheme = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}, "https"
	case !loopback(host) && !o.insecure:
		return nil, usagef("give --tls-cert and --tls-key, or --insecure if everybody on that network may decide",
			"--listen %s is beyond loopback, without TLS", quote(o.listen))
	}
	for _, h := range o.hosts {
		name := strings.ToLower(strings.TrimSuffix(strings.Trim(h, "[]"), "."))
		if _, err := netip.ParseAddr(name); err != nil && !hostRE().MatchString(name) {
			return nil, usagef("a name alone, such as --host desk.example.com", "--host %s is no host's name", quote(h))
		}
		opts.Hosts = append(opts.Hosts, name)
	}
	ln, err := net.Listen("tcp", o.listen)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, hint(err, "something else listens there; --listen moves the desk")
	}
	if err != nil {
		return nil, fmt.Errorf("listening for browsers: %w", err)
	}
	_, port, err := net.SplitHostPort(ln.Addr().String())
	if err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	var name string
	if len(o.hosts) == 0 && scheme == "http" && loopback(host) {
		// Whatever else listens on this machine, a bottle's port that was published, shares a host with us otherwise,
		// and gets our cookies.
		if name, err = ownName(d.root); err == nil {
			opts.Hosts = append(opts.Hosts, name)
			opts.Plain = scheme + "://" + net.JoinHostPort(host, port)
		}
	} else {
		name, err = linkName(host, &opts)
	}
	if err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	opts.URL = scheme + "://" + net.JoinHostPort(name, port)
	return &webDesk{web.New(opts), ln, opts.URL}, nil
}

// ownName is a host name that resolves to loopback and that nobody else knows. It stays the same, for bookmarks and for
// links that were sent.
func ownName(root string) (string, error) {
	file := filepath.Join(root, ".desk", "web-name")
	b, err := os.ReadFile(file)
	if name := strings.TrimSpace(string(b)); err == nil && ownNameRE().MatchString(name) {
		return name, nil
	}
	if err == nil || errors.Is(err, os.ErrNotExist) {
		name := "supervise-" + strings.ToLower(rand.Text()[:8]) + ".localhost"
		if err = os.WriteFile(file, []byte(name+"\n"), 0o600); err == nil {
			return name, nil
		}
	}
	return "", fmt.Errorf("keeping the name of the desk: %w", err)
}

var ownNameRE = lazy.Regexp(`^supervise-[a-z2-7]{8}\.localhost$`)

// linkName is the host of the links: what the operator names, else what is listened on.
func linkName(host string, opts *web.Options) (string, error) {
	switch ip, err := netip.ParseAddr(host); {
	case len(opts.Hosts) > 0:
		return opts.Hosts[0], nil
	case err == nil && ip.IsUnspecified():
		name, err := os.Hostname()
		if err != nil {
			return "", hint(fmt.Errorf("finding this machine's name: %w", err), "say with --host how browsers reach it")
		}
		name = strings.ToLower(name)
		opts.Hosts = append(opts.Hosts, name)
		return name, nil
	case err != nil && !slices.Contains(opts.Hosts, host):
		opts.Hosts = append(opts.Hosts, strings.ToLower(host))
	}
	return host, nil
}

var hostRE = lazy.Regexp(`^[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?$`)

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback() || strings.EqualFold(host, "localhost")
}
