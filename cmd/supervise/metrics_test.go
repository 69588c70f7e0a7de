//go:build !slim

package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"

	"github.com/bot-bottle/supervise/tools"
)

// TestMetricsExamples: the dashboard, the rules and the table name metrics that there are, and the table all of them.
func TestMetricsExamples(t *testing.T) {
	log := newLog(t.Output(), false)
	m := newMetrics("web")
	side, err := openSidecar(t.Context(), sidecarOptions{Dir: filepath.Join(t.TempDir(), "web"), Tools: tools.Options{Bottle: "web", Observe: m.observe}}, log)
	if err != nil {
		t.Fatal(err)
	}
	defer side.Close()
	m.watch("web", side)
	families, err := m.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), "supervise_") {
			have = append(have, f.GetName())
		}
		for _, metric := range f.GetMetric() {
			if !slices.ContainsFunc(metric.GetLabel(), func(l *dto.LabelPair) bool { return l.GetValue() == "web" }) {
				t.Errorf("%s has no bottle", f.GetName())
			}
		}
	}
	root := filepath.Join(t.TempDir(), "root")
	if err := os.MkdirAll(filepath.Join(root, "web"), 0o700); err != nil {
		t.Fatal(err)
	}
	a := &app{root: root, env: func(string) string { return "" }, config: filepath.Join(root, "..", "supervise.yaml")}
	if err := os.WriteFile(a.config, []byte("bottles: {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := a.openDesk()
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if families, err = deskMetrics(d).Gather(); err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), "supervise_") && !slices.Contains(have, f.GetName()) {
			have = append(have, f.GetName())
		}
	}
	nameRE := regexp.MustCompile(`\b(supervise_[a-z_]+)`)
	suffixRE := regexp.MustCompile(`(_seconds)_(bucket|count|sum)$`)
	for _, file := range []string{"dashboard.json", "alerts.yaml", "README.md"} {
		text, err := os.ReadFile(filepath.Join("..", "..", "examples", "metrics", file))
		if err != nil {
			t.Fatal(err)
		}
		var named []string
		for _, name := range nameRE.FindAllString(string(text), -1) {
			if name = suffixRE.ReplaceAllString(name, "$1"); !slices.Contains(named, name) {
				named = append(named, name)
			}
		}
		for _, name := range named {
			if !slices.Contains(have, name) {
				t.Errorf("%s names %s, and there is no such metric", file, name)
			}
		}
		if file == "README.md" {
			slices.Sort(named)
			slices.Sort(have)
			if diff := cmp.Diff(have, named); diff != "" {
				t.Errorf("%s mismatch (-there are +named):\n%s", file, diff)
			}
		}
	}
}

// TestMetricsOther: what somebody else stored cannot make series without bound.
func TestMetricsOther(t *testing.T) {
	m := newMetrics("web")
	m.observe(tools.Event{Kind: tools.Delivered, Tool: "a", Status: "approved"})
	m.observe(tools.Event{Kind: tools.Delivered, Tool: "b", Status: "approved"})
	families, err := m.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "supervise_decisions_total" {
			continue
		}
		for _, metric := range f.GetMetric() {
			if metric.GetCounter().GetValue() == 2 && strings.Contains(metric.String(), `"other"`) {
				return
			}
		}
		t.Errorf("decisions = %v, want 2 of tool other", f)
	}
}
