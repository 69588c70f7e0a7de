//go:build !slim

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/bot-bottle/supervise/internal/apply"
	"github.com/bot-bottle/supervise/internal/config"
	"github.com/bot-bottle/supervise/internal/egress"
	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/safetext"
	"github.com/bot-bottle/supervise/queue"
	"github.com/bot-bottle/supervise/server"
	"github.com/bot-bottle/supervise/tools"
)

const (
	demoBottle = "demo"
	demoHost   = "api.example.com"
	demoURL    = "http://" + demoHost + "/v1/status"
)

func newDemo(a *app) *cobra.Command {
	var yes, debug bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "See the whole loop once",
		Long: `A scripted agent is refused by a real proxy, asks through a real MCP client over HTTP, you
decide, the route goes live, and the agent's next try gets through. All in this process: it
needs no network and no particular port, and leaves nothing behind.`,
		Example: `  supervise demo
  supervise demo --yes`,
		Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !yes && (!a.inTTY || !a.style.tty) {
				return usagef("supervise demo --yes decides for you", "demo: there is no terminal to ask on")
			}
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			defer catchPipe()()
			return a.demo(ctx, yes, debug)
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "approve instead of asking you")
	cmd.Flags().BoolVar(&debug, "debug", false, "show the parts' own logs")
	return cmd
}

// tell narrates: who, what.
func (a *app) tell(who, format string, args ...any) error {
	return a.printf("%s %s\n", a.style.bold(fmt.Sprintf("%-9s", who)), fmt.Sprintf(format, args...))
}

func (a *app) demo(ctx context.Context, yes, debug bool) (err error) {
	dir, err := os.MkdirTemp("", "supervise-demo-")
	if err != nil {
		return fmt.Errorf("making a directory for the demo: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	l := layout{dir}
	if err := errors.Join(l.settle(), l.configure(upOptions{egress: "127.0.0.1:0", bottle: demoBottle})); err != nil {
		return err
	}
	logs := io.Discard
	if debug {
		logs = a.err
	}
	log := newLog(logs, debug)

	origin, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listening as %s: %w", demoHost, err)
	}
	site := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s says hello\n", demoHost)
	})}
	defer site.Close() // on every way out; Close of a server that never served closes nothing that is open
	proxy, err := egress.New(egress.Options{
		Addr: "127.0.0.1:0", RoutesFile: l.routes(), Env: a.env, Logger: log,
		// The one liberty of the demo: this name is the site above, wherever it is else.
		AllowPrivate: []string{demoHost},
		Resolve: func(context.Context, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
		},
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, origin.Addr().String())
		},
	})
	if err != nil {
		return errors.Join(err, origin.Close())
	}
	proxyURL := &url.URL{Scheme: "http", Host: proxy.Addr().String()}
	side, err := openSidecar(ctx, sidecarOptions{
		Dir:    l.mailbox(demoBottle),
		Tools:  tools.Options{Bottle: demoBottle, EgressProxy: proxyURL.String(), Dockerfile: l.dockerfile()},
		Server: server.Options{Addr: "127.0.0.1:0"},
	}, log)
	if err != nil {
		return errors.Join(err, origin.Close())
	}

	parts, end := context.WithCancel(ctx)
	g, parts := errgroup.WithContext(parts)
	g.Go(func() error {
		if err := site.Serve(origin); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	g.Go(func() error { return proxy.Run(parts) })
	g.Go(func() error { return side.Run(parts) })
	g.Go(func() error {
		defer end() // the play is over, the stage is cleared
		defer site.Close()
		return a.play(parts, l, proxyURL, "http://"+side.srv.Addr().String()+"/", yes)
	})
	return g.Wait()
}

// play is the story itself.
func (a *app) play(ctx context.Context, l layout, proxy *url.URL, endpoint string, yes bool) error {
	agent := &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(proxy), DisableKeepAlives: true}, Timeout: 10 * time.Second}
	if err := a.tell("demo", "an egress proxy on %s, a sidecar on %s, a stand-in for %s; nothing leaves this machine", proxy.Host, endpoint, demoHost); err != nil {
		return err
	}
	code, body, err := fetch(ctx, agent)
	if err != nil {
		return err
	}
	if err := a.tell("agent", "GET %s", demoURL); err != nil {
		return err
	}
	if err := a.tell("proxy", "%d\n%s", code, a.style.fence(safetext.Block(strings.TrimSpace(body))+"\n")); err != nil {
		return err
	}
	if code != http.StatusForbidden {
		return fmt.Errorf("the proxy answered %d, and should have refused with 403", code)
	}
	answer, err := a.askAndDecide(ctx, l, proxy, endpoint, yes)
	if err != nil {
		return err
	}
	if err := a.tell("agent", "has its answer:\n%s", a.style.fence(safetext.Block(answer.text)+"\n")); err != nil {
		return err
	}
	if code, body, err = fetch(ctx, agent); err != nil {
		return err
	}
	if err := a.tell("agent", "GET %s again: %d %s", demoURL, code, safetext.Line(strings.TrimSpace(body), 70)); err != nil {
		return err
	}
	switch {
	case answer.rejected && code == http.StatusForbidden:
		return a.tell("demo", "you said no, so nothing was changed. The directory of this demo is removed now.")
	case !answer.rejected && code == http.StatusOK:
		return a.tell("demo", "that is all of it. The directory of this demo is removed now.\n\nNext: 'supervise up' keeps a proxy and a sidecar running here and shows how to connect Claude Code.")
	}
	return fmt.Errorf("after the decision the proxy answered %d", code)
}

func fetch(ctx context.Context, c *http.Client) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, demoURL, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, "", fmt.Errorf("asking the proxy: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	return resp.StatusCode, string(body), err
}

type demoAnswer struct {
	text     string
	rejected bool
}

// askAndDecide lets the agent ask, and while its call is held the operator decide.
func (a *app) askAndDecide(ctx context.Context, l layout, proxy *url.URL, endpoint string, yes bool) (demoAnswer, error) {
	client := mcp.NewClient(&mcp.Implementation{Name: "supervise-demo", Version: version}, &mcp.ClientOptions{})
	session, err := client.Connect(ctx, &mcp.StreamableClientTransport{Endpoint: endpoint}, nil)
	if err != nil {
		return demoAnswer{}, fmt.Errorf("connecting as an agent: %w", err)
	}
	defer session.Close()
	if err := a.tell("agent", "reads that, and calls the tool egress-block of %s", endpoint); err != nil {
		return demoAnswer{}, err
	}
	inbox, err := queue.OpenRoot(l.root(), queue.RootOptions{})
	if err != nil {
		return demoAnswer{}, err
	}
	defer inbox.Close()
	hand, err := apply.New(apply.Options{LockDir: filepath.Join(l.root(), ".desk", "locks"), Targets: func(string) config.Bottle {
		return config.Bottle{Egress: &config.Egress{File: l.routes(), AllowlistURL: "http://_egress.local/allowlist", Proxy: proxy.String()}}
	}})
	if err != nil {
		return demoAnswer{}, err
	}
	d, err := operator.New(operator.Options{Root: l.root(), Inbox: inbox, Hand: hand, Via: "demo"})
	if err != nil {
		return demoAnswer{}, err
	}
	changes, err := d.Changes(ctx)
	if err != nil {
		return demoAnswer{}, err
	}

	var answer demoAnswer
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		params := &mcp.CallToolParams{Name: payload.Egress, Arguments: map[string]any{
			"host": demoHost, "path_allowlist": []string{"/v1/"}, "justification": "The build reads the status page of the service it talks to.",
		}}
		params.SetProgressToken("demo") // and with it the call may be held for as long as you like
		res, err := session.CallTool(ctx, params)
		if err != nil {
			return fmt.Errorf("calling %s: %w", payload.Egress, err)
		}
		for _, c := range res.Content {
			if text, ok := c.(*mcp.TextContent); ok {
				answer.text += text.Text
			}
		}
		answer.rejected = res.IsError
		return nil
	})
	g.Go(func() error {
		for {
			s, err := d.Snapshot(ctx)
			if err != nil {
				return err
			}
			if len(s.Items) > 0 {
				return a.decideDemo(ctx, d, s.Items[0].Ref, yes)
			}
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-changes:
			}
		}
	})
	err = g.Wait()
	return answer, err
}

func (a *app) decideDemo(ctx context.Context, d *operator.Desk, ref operator.Ref, yes bool) error {
	p, err := d.Show(ctx, ref, nil)
	if err != nil {
		return err
	}
	if err := a.tell("operator", "that is you. The agent's call is held until you decide:\n\n%s", a.preview(p, a.style)); err != nil {
		return err
	}
	dec := operator.Decision{Digest: p.Digest, Notes: "only the status page"}
	if !yes {
		if err := a.askUntil(ctx, p, &dec); errors.Is(err, errDeclined) {
			_, err := d.Reject(ctx, ref, "not in the demo")
			return err
		} else if err != nil {
			return err
		}
	} else {
		dec.Accept = p.Dangers()
	}
	res, err := d.Approve(ctx, ref, dec)
	if err != nil {
		return err
	}
	return a.tell("operator", "%s: %s", res.Status, outcome(res.Outcome))
}

// askUntil asks, and gives up when ctx ends: a question on the terminal cannot be taken back, but need not be waited for.
func (a *app) askUntil(ctx context.Context, p *operator.Preview, dec *operator.Decision) error {
	got := make(chan error, 1)
	mine := *dec
	go func() { got <- a.ask(p, &mine) }()
	select {
	case err := <-got:
		*dec = mine
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
