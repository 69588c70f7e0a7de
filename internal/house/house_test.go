// Package house has no code. Its tests keep the rules that no single package can: who imports whom, that every package
// says what it promises, that only safetext's users print what an agent wrote.
package house

import (
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/bot-bottle/supervise/"

type goPackage struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	Imports    []string
}

func packages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Dir,GoFiles,Imports", "./...")
	cmd.Dir = filepath.Join("..", "..")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []goPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) < 10 {
		t.Fatalf("go list shows %d packages", len(pkgs))
	}
	return pkgs
}

// allowed says what of ours each package may import, directly. A package that is not here may import nothing of ours.
var allowed = map[string][]string{
	"queue":                 {},
	"queue/queuetest":       {"queue"},
	"internal/lazy":         {},
	"internal/straced":      {},
	"internal/payload":      {"internal/lazy", "internal/urlpath"},
	"internal/safetext":     {},
	"internal/urlpath":      {},
	"internal/yamlerr":      {"internal/lazy"},
	"internal/routes":       {"internal/lazy", "internal/yamlerr"},
	"internal/config":       {"internal/lazy", "internal/yamlerr", "queue"},
	"internal/notify":       {"internal/config", "internal/safetext", "internal/operator"},
	"internal/apply":        {"internal/config", "internal/payload", "internal/routes", "internal/safetext", "queue"},
	"internal/operator":     {"internal/apply", "internal/lazy", "internal/payload", "internal/routes", "internal/safetext", "queue"},
	"internal/operator/tui": {"internal/apply", "internal/operator", "internal/payload", "internal/safetext", "queue"},
	"internal/operator/web": {"internal/apply", "internal/config", "internal/conns", "internal/operator", "internal/payload", "internal/routes", "internal/safetext", "queue"},
	"internal/conns":        {},
	"internal/egress":       {"internal/conns", "internal/routes", "internal/safetext", "internal/urlpath"},
	"tools":                 {"internal/payload", "internal/safetext", "queue"},
	"server":                {"internal/safetext", "tools"},
	"examples/sdk-client":   {},
}

// free may import anything: the command, and programs that only tests or pictures need.
func free(pkg string) bool {
	return pkg == "cmd/supervise" || pkg == "internal/bench" || pkg == "internal/sbom" || strings.HasPrefix(pkg, "internal/e2e") || strings.Contains(pkg, "/screenshots") || strings.Contains(pkg, "testdata")
}

func TestImportsPointOneWay(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		if free(name) {
			continue
		}
		may := allowed[name]
		for _, imp := range p.Imports {
			ours, ok := strings.CutPrefix(imp, module)
			if ok && !slices.Contains(may, ours) {
				t.Errorf("%s imports %s, and may import only %q", name, ours, may)
			}
		}
	}
}

func TestEveryPackageHasOneComment(t *testing.T) {
	for _, p := range packages(t) {
		var with []string
		for _, f := range p.GoFiles {
			ast, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if ast.Doc != nil {
				with = append(with, f)
			}
		}
		if len(p.GoFiles) > 0 && len(with) != 1 {
			t.Errorf("%s: package comments in %q, want one", p.ImportPath, with)
		}
	}
}
