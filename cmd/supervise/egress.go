package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/supervise/internal/egress"
)

// takesHUP marks the commands that take SIGHUP themselves.
var takesHUP = map[string]string{"sighup": "taken"}

const egressHelp = "supervise egress --help lists its flags"

func newEgress(a *app) *cobra.Command {
	var o egress.Options
	var caDir string
	var debug bool
	cmd := &cobra.Command{
		Use:   "egress",
		Short: "The reference egress proxy",
		Long: `The proxy that a bottle's network goes out through: only routed hosts are reached, and a
refusal tells the agent which tool to call.

The routes file is read again when it changes and on SIGHUP; no connection is dropped by it,
and a file with a mistake leaves the old routes in force. Routes with paths or a credential
need TLS inspection, so a CA: --ca-dir makes one, or uses the one that is there. Only
DIR/public is for the bottle; whoever has DIR/private can pose as any host to it. Credentials
come from the environment, under the names that the routes give.`,
		Example: `  supervise egress --routes egress/routes.yaml
  supervise egress --listen 0.0.0.0:9099 --routes /egress/routes.yaml --ca-dir /egress-ca
  curl -x http://127.0.0.1:9099 http://_egress.local/allowlist`,
		Args:        args(0, 0),
		Annotations: takesHUP,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.RoutesFile == "" {
				return usagef("supervise egress --routes egress/routes.yaml", "egress: --routes is missing")
			}
			if _, err := listenHost(o.Addr, egress.DefaultAddr); err != nil {
				return err
			}
			if o.MaxConns == 0 {
				return usagef(egressHelp, "egress: max-conns 0 must be positive")
			}
			if caDir != "" {
				cert, key, err := ensureCA(caDir)
				if err != nil {
					return err
				}
				o.CACert, o.CAKey = cert, key
			}
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			o.HUP, o.Env, o.Logger = a.hup, a.env, newLog(a.err, debug)
			p, err := egress.New(o)
			if errors.Is(err, egress.ErrOption) {
				return usagef(egressHelp, "%v", err)
			}
			if errors.Is(err, syscall.EADDRINUSE) {
				return hint(err, "something else listens there; --listen moves the proxy")
			}
			if err != nil {
				return err
			}
			return p.Run(ctx)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Addr, "listen", egress.DefaultAddr, "the `address` to listen on")
	f.StringVar(&o.RoutesFile, "routes", "", "the routes `file`, in a directory of its own")
	f.StringVar(&caDir, "ca-dir", "", "inspect TLS with the CA in this `directory`: public/ca.pem and private/ca.key; made if missing")
	f.StringSliceVar(&o.AllowPrivate, "allow-private", nil, "a routed `host` that may resolve to private addresses (repeatable, or with commas)")
	f.IntSliceVar(&o.Ports, "ports", []int{80, 443}, "the `ports` that may be reached")
	f.IntVar(&o.MaxConns, "max-conns", 1024, "client connections at once; past it the longest idle one makes way")
	f.BoolVar(&debug, "debug", false, "log more")
	must(cmd.MarkFlagFilename("routes", "yaml", "yml"))
	must(cmd.MarkFlagDirname("ca-dir"))
	return cmd
}

// ensureCA makes or checks the CA. The key has a directory of its own, so that the other can be mounted.
func ensureCA(dir string) (cert, key string, err error) {
	for _, d := range []struct {
		name string
		mode os.FileMode
	}{{"public", 0o755}, {"private", 0o700}} {
		if err := os.MkdirAll(filepath.Join(dir, d.name), d.mode); err != nil {
			return "", "", fmt.Errorf("making the CA's directory: %w", err)
		}
	}
	cert, key = filepath.Join(dir, "public", "ca.pem"), filepath.Join(dir, "private", "ca.key")
	return cert, key, egress.EnsureCA(cert, key)
}

// listenHost checks what --listen says and returns its host. A missing one would be every address, unsaid.
func listenHost(listen, such string) (string, error) {
	host, port, err := net.SplitHostPort(listen)
	switch {
	case err != nil:
		return "", usagef("such as --listen "+such, "--listen %s: %v", quote(listen), err)
	case !isPort(port):
		return "", usagef("such as --listen "+such, "--listen %s has no port from 0 to 65535", quote(listen))
	case host == "":
		return "", usagef("such as --listen "+such+"; 0.0.0.0 is every address", "--listen %s: the host is missing", quote(listen))
	}
	return host, nil
}

// isPort tells whether net.Listen may take it: what is no number it would look up as the name of a service.
func isPort(port string) bool {
	_, err := strconv.ParseUint(port, 10, 16)
	return err == nil
}
