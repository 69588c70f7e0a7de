package web

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"syscall"
	"time"

	"github.com/bot-bottle/supervise/internal/apply"
	"github.com/bot-bottle/supervise/internal/config"
	"github.com/bot-bottle/supervise/internal/routes"
	"github.com/bot-bottle/supervise/internal/safetext"
)

// routeTable is a bottle's routes: as the proxy has them in force or, where it is not asked or does not answer, as its
// file has them.
type routeTable struct {
	Managed bool
	Live    bool   // as the proxy shows it
	From    string // a URL or a path
	Problem string // why it is not live, or not there at all; escaped
	Stale   bool   // in force is another table than the file's
	Rows    []routeRow
}

type routeRow struct {
	Host  string // escaped
	Paths []safetext.Untrusted
	Auth  string // escaped: "Bearer GH_TOKEN"; from the proxy only "present" or "missing"
	Bad   bool   // the proxy has no value for it
}

// tableTimeout bounds one look at a proxy.
const tableTimeout = 2 * time.Second

func liveTable(ctx context.Context, e *config.Egress) routeTable {
	if e == nil {
		return routeTable{}
	}
	data, table, ferr := fileTable(e.File)
	t := routeTable{Managed: true, From: e.File}
	for _, r := range table.Routes {
		t.Rows = append(t.Rows, row(r))
	}
	if ferr != nil {
		t.Problem = safetext.Block(ferr.Error())
	}
	if e.AllowlistURL == "" {
		return t
	}
	live, err := askProxy(ctx, e)
	if err != nil {
		t.Problem = safetext.Block(fmt.Sprintf("the proxy does not show its table, so this is the file's: %v", err))
		if ferr != nil {
			t.Problem = safetext.Block(errors.Join(ferr, err).Error())
		}
		return t
	}
	t.Live, t.From, t.Rows = true, e.AllowlistURL, nil
	for _, r := range live.Routes {
		line := routeRow{Host: safetext.Host(r.Host), Paths: untrusted(r.PathAllowlist)}
		switch r.Token {
		case "present":
			line.Auth = "credential added"
		case "missing":
			line.Auth, line.Bad = "credential missing at the proxy", true
		}
		t.Rows = append(t.Rows, line)
	}
	if live.LastError != nil {
		t.Problem = "the proxy refused a newer file: " + safetext.Line(*live.LastError, 500)
	}
	t.Stale = live.SHA256 != "" && ferr == nil && live.SHA256 != apply.SHA256(data)
	return t
}

func row(r routes.Route) routeRow {
	line := routeRow{Host: safetext.Host(r.Host), Paths: untrusted(r.PathAllowlist)}
	if r.Auth != nil {
		line.Auth = safetext.Line(r.Auth.Scheme+" "+r.Auth.TokenRef, 160)
	}
	return line
}

func untrusted(in []string) []safetext.Untrusted {
	var out []safetext.Untrusted
	for _, s := range in {
		out = append(out, safetext.Untrusted(s))
	}
	return out
}

func fileTable(path string) ([]byte, routes.Table, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO must not hold the page
	if err != nil {
		return nil, routes.Table{}, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, routes.Table{}, errors.Join(fmt.Errorf("%s is not a regular file", path), err)
	}
	data, err := io.ReadAll(io.LimitReader(f, routes.MaxFile+1))
	if err != nil {
		return nil, routes.Table{}, err
	}
	if len(data) > routes.MaxFile {
		return nil, routes.Table{}, fmt.Errorf("%s is over %d bytes", path, routes.MaxFile)
	}
	t, err := routes.Parse(data)
	if err != nil {
		return nil, routes.Table{}, fmt.Errorf("%s: %w", path, err)
	}
	return data, t, nil
}

func askProxy(ctx context.Context, e *config.Egress) (apply.Allowlist, error) {
	tr := &http.Transport{DisableKeepAlives: true} // Proxy is nil: not the environment's
	if e.Proxy != "" {
		u, err := url.Parse(e.Proxy)
		if err != nil {
			return apply.Allowlist{}, err
		}
		tr.Proxy = http.ProxyURL(u)
	}
	client := &http.Client{Transport: tr, Timeout: tableTimeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.AllowlistURL, nil)
	if err != nil {
		return apply.Allowlist{}, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return apply.Allowlist{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return apply.Allowlist{}, fmt.Errorf("%s answers %s", e.AllowlistURL, resp.Status)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, apply.MaxAllowlist+1))
	if err != nil {
		return apply.Allowlist{}, err
	}
	return apply.ParseAllowlist(body)
}
