package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/supervise/internal/config"
	"github.com/bot-bottle/supervise/internal/safetext"
)

// healthTimeout is how long a healthy sidecar may take to say so.
const healthTimeout = 2 * time.Second

func newHealthcheck(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "healthcheck",
		Short: "Tell whether the sidecar here is alive",
		Long: `Ask the sidecar on this machine for /health, where SUPERVISE_PORT and SUPERVISE_BIND say that
it listens, and wait two seconds at most. Exit code 0: it is alive, and has had its mailbox
since it started. It is the image's HEALTHCHECK, since there is no shell or curl in it.`,
		Example: `  supervise healthcheck
  supervise healthcheck --port 9200`,
		Args: args(0, 0),
	}
	settings(cmd, "port", "bind")
	cmd.Flags().Lookup("port").Usage = "the sidecar's TCP port"
	cmd.Flags().Lookup("bind").Usage = "the address that the sidecar listens on"
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		// What else is configured is no concern of a health check.
		cfg, err := config.LoadSidecar(func(name string) string {
			switch name {
			case "SUPERVISE_PORT", "SUPERVISE_BIND":
				return a.env(name)
			case "SUPERVISE_BOTTLE_SLUG":
				return "any"
			}
			return ""
		}, given(cmd))
		if err != nil {
			return usagef("supervise healthcheck --help lists the settings", "healthcheck: %v", err)
		}
		if cfg.Port == 0 {
			return usagef("--port N", "healthcheck: port 0 is any free one: say which it is")
		}
		return healthy(cmd.Context(), "http://"+dialAddr(cfg)+"/health", healthTimeout)
	}
	return cmd
}

// dialAddr is where a sidecar that listens everywhere is reached from its own machine.
func dialAddr(cfg config.Sidecar) string {
	host := cfg.Bind
	if ip, err := netip.ParseAddr(cfg.Bind); err == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(cmp.Or(host, "127.0.0.1"), strconv.Itoa(cfg.Port))
}

func healthy(ctx context.Context, url string, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("checking health: %w", err)
	}
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true}, // no proxy, whatever the environment says
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := client.Do(req)
	if err != nil {
		return hint(fmt.Errorf("checking health: %w", err), "is the sidecar running? SUPERVISE_PORT and SUPERVISE_BIND must be its own")
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 200))
	switch {
	case err != nil:
		return fmt.Errorf("checking health: reading the answer of %s: %w", url, err)
	case resp.StatusCode == http.StatusOK && string(body) == "starting\n":
		return fmt.Errorf("checking health: the sidecar at %s is starting: its mailbox is not open yet", url)
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("checking health: %s answered %s: %s", url, resp.Status, safetext.Line(string(body), 100))
	}
	return nil
}
