package apply

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"syscall"
	"time"

	"github.com/bot-bottle/supervise/internal/config"
	"github.com/bot-bottle/supervise/internal/routes"
	"github.com/bot-bottle/supervise/internal/safetext"
)

// Allowlist is the live table as a proxy shows it. A foreign proxy may leave out all but the routes.
type Allowlist struct {
	Routes    []LiveRoute `json:"routes"`
	SHA256    string      `json:"sha256"`     // of the file in force, hex; "" if the proxy does not say
	LastError *string     `json:"last_error"` // why a newer file is not in force
}

// LiveRoute is one route of it.
type LiveRoute struct {
	Host          string   `json:"host"`
	PathAllowlist []string `json:"path_allowlist"`
	Token         string   `json:"token"` // "none", "present" or "missing"; "" if the proxy does not say
}

// MaxAllowlist is the largest body that is read, in bytes.
const MaxAllowlist = 1 << 20

// ParseAllowlist reads the body of /allowlist: one JSON object with a list of routes.
func ParseAllowlist(body []byte) (Allowlist, error) {
	var a Allowlist
	if len(body) > MaxAllowlist {
		return a, fmt.Errorf("the allowlist is over the limit of %d bytes", MaxAllowlist)
	}
	var probe struct {
		Routes *json.RawMessage `json:"routes"`
	}
	if err := json.Unmarshal(body, &probe); err != nil {
		return a, fmt.Errorf("not an allowlist: %w", err)
	}
	if probe.Routes == nil {
		return a, errors.New("not an allowlist: it has no routes")
	}
	if err := json.Unmarshal(body, &a); err != nil {
		return Allowlist{}, fmt.Errorf("not an allowlist: %w", err)
	}
	return a, nil
}

func (a Allowlist) lookup(host string) *LiveRoute {
	key := routes.Key(host)
	for i, r := range a.Routes {
		if routes.Key(r.Host) == key {
			return &a.Routes[i]
		}
	}
	return nil
}

// expectation is what a live table must show.
type expectation struct {
	sha   string        // of the file
	host  string        // the touched one
	route *routes.Route // at least this; nil: the host is not there
	most  bool          // and no more than this, after an undo
}

// final is an answer that waiting will not change.
type final struct{ error }

func (f final) Unwrap() error { return f.error }

func (e expectation) check(a Allowlist) error {
	if a.SHA256 != "" && a.SHA256 != e.sha {
		err := fmt.Errorf("its table is of sha256 %s, the file is %s", safetext.Line(a.SHA256, 64), e.sha)
		if a.LastError != nil {
			err = fmt.Errorf("%w; it says: %s", err, safetext.Line(*a.LastError, 500))
		}
		return err
	}
	if a.SHA256 != "" && a.LastError != nil {
		return final{fmt.Errorf("the proxy says: %s", safetext.Line(*a.LastError, 500))}
	}
	live := a.lookup(e.host)
	if e.route == nil {
		if live != nil {
			return fmt.Errorf("host %s is still there", e.host)
		}
		return nil
	}
	if live == nil {
		return fmt.Errorf("host %s is not there", e.host)
	}
	have := routes.Route{PathAllowlist: live.PathAllowlist}
	if missing := uncovered(have, *e.route); missing != "" {
		return fmt.Errorf("host %s does not have %s", e.host, missing)
	}
	if e.most {
		if extra := uncovered(*e.route, have); extra != "" {
			return fmt.Errorf("host %s still has %s", e.host, extra)
		}
		return nil
	}
	if live.Token == "missing" {
		ref := "its token"
		if e.route.Auth != nil {
			ref = e.route.Auth.TokenRef
		}
		return final{fmt.Errorf("the proxy has no value for %s, which host %s needs: set it in the proxy's environment and restart it", ref, e.host)}
	}
	return nil
}

// uncovered names what of want is not in have, or "".
func uncovered(have, want routes.Route) string {
	if len(want.PathAllowlist) == 0 && !have.Covers("/") {
		return "the whole host"
	}
	for _, p := range want.PathAllowlist {
		if !have.Covers(p) {
			return "path " + safetext.Line(p, 200)
		}
	}
	return ""
}

// requestTimeout is of one look at the table.
const requestTimeout = time.Second

// verify looks at the proxy's live table until it is as expected, once or for a while, and tells how long that took.
func (l *Local) verify(ctx context.Context, e config.Egress, want expectation, patience time.Duration) (time.Duration, error) {
	tr := &http.Transport{DisableKeepAlives: true} // Proxy is nil: not the environment's
	if e.Proxy != "" {
		u, err := url.Parse(e.Proxy)
		if err != nil {
			return 0, fmt.Errorf("proxy %q is not a URL", e.Proxy)
		}
		tr.Proxy = http.ProxyURL(u)
	}
	client := &http.Client{Transport: tr, Timeout: requestTimeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	start := time.Now()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(l.opts.VerifyEvery)
	defer tick.Stop()
	for {
		a, err := fetch(ctx, client, e.AllowlistURL)
		if err == nil {
			err = want.check(a)
		}
		if err == nil {
			return time.Since(start), nil
		}
		if f, ok := errors.AsType[final](err); ok {
			return 0, f.error
		}
		if patience == 0 {
			return 0, err
		}
		select {
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-deadline.C:
			why := "does the proxy reload? if the file is mounted singly into its container, mount the directory instead"
			if errors.Is(err, syscall.ECONNREFUSED) {
				why = "is it running?"
			}
			return 0, fmt.Errorf("not seen live at %s within %v: %w (%s)", e.AllowlistURL, patience, err, why)
		case <-tick.C:
		}
	}
}

func fetch(ctx context.Context, c *http.Client, target string) (Allowlist, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return Allowlist{}, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return Allowlist{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, MaxAllowlist+1))
	if err != nil {
		return Allowlist{}, err
	}
	if resp.StatusCode != http.StatusOK {
		return Allowlist{}, fmt.Errorf("the proxy answers %d: %s", resp.StatusCode, safetext.Line(string(bytes.TrimSpace(body)), 200))
	}
	return ParseAllowlist(body)
}
