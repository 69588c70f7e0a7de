package main

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/bot-bottle/supervise/internal/testbin"
)

// It describes itself as it was built by the go command: the module, the standard library, and nothing that is not linked.
func TestRun(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "supervise")
	if err := testbin.Build(bin, "-trimpath"); err != nil {
		t.Fatal(err)
	}
	var first, second bytes.Buffer
	for _, b := range []*bytes.Buffer{&first, &second} {
		if err := run([]string{bin}, b); err != nil {
			t.Fatal(err)
		}
	}
	if first.String() != second.String() {
		t.Error("the same binary gives other bytes")
	}
	var got bom
	if err := json.Unmarshal(first.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.Format != "CycloneDX" || got.Metadata.Component.Name != "github.com/bot-bottle/supervise" {
		t.Errorf("it is a %q of %+v", got.Format, got.Metadata.Component)
	}
	have := map[string]component{}
	for _, c := range got.Components {
		if have[c.Name].Name != "" {
			t.Errorf("%s is there twice", c.Name)
		}
		have[c.Name] = c
	}
	if v := "go" + have["std"].Version; v != strings.Fields(runtime.Version())[0] {
		t.Errorf("the standard library is of %s, want %s", v, runtime.Version())
	}
	for name, in := range map[string]bool{"github.com/modelcontextprotocol/go-sdk": true, "gopkg.in/yaml.v3": true, "pgregory.net/rapid": false, "github.com/chromedp/chromedp": false} {
		c, ok := have[name]
		if ok != in || ok && (!strings.HasPrefix(c.PURL, "pkg:golang/"+name+"@v") || len(c.Properties) != 1 || !strings.HasPrefix(c.Properties[0].Value, "h1:")) {
			t.Errorf("%s: %+v, want it there: %v, with version and checksum", name, c, in)
		}
	}
	if on := got.Dependencies[0].On; len(on) != len(got.Components) {
		t.Errorf("it depends on %d of %d components", len(on), len(got.Components))
	}
	for _, bad := range [][]string{nil, {bin, bin}, {"main.go"}, {filepath.Join(t.TempDir(), "nothing")}} {
		if err := run(bad, &first); err == nil {
			t.Errorf("run(%q) works", bad)
		}
	}
}
