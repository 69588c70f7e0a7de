// Package house has no code. Its tests keep the rules that no single package can: who imports whom, that every package
// says what it promises, that only safetext's users print what an agent wrote.
package house

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"regexp"
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

	TestGoFiles, XTestGoFiles []string
}

func packages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Dir,GoFiles,Imports,TestGoFiles,XTestGoFiles", "./...")
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
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if file.Doc != nil {
				with = append(with, f)
			}
		}
		if len(p.GoFiles) > 0 && len(with) != 1 {
			t.Errorf("%s: package comments in %q, want one", p.ImportPath, with)
		}
	}
}

var sleepsWell = regexp.MustCompile(`// .*(bubble|between two looks)`)

// TestSleepsAreInBubbles: a test that sleeps in real time is slow, and fails on a machine that is slower. In a bubble of synctest, or in
// a function that gives one to what it calls, time costs nothing; helpers that are called there say so beside the call, and so do those
// that look at another process again and again.
func TestSleepsAreInBubbles(t *testing.T) {
	n := 0
	for _, p := range packages(t) {
		fset := token.NewFileSet()
		var files []*ast.File
		for _, f := range append(p.TestGoFiles, p.XTestGoFiles...) {
			file, err := parser.ParseFile(fset, filepath.Join(p.Dir, f), nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, file)
		}
		bubbles := map[string]bool{"synctest.Test": true}
		for _, file := range files {
			for _, d := range file.Decls {
				if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && takesFunc(f) && calls(f, "synctest.Test", nil) {
					bubbles[f.Name.Name] = true
				}
			}
		}
		for _, file := range files {
			said := map[int]bool{} // lines
			for _, group := range file.Comments {
				for _, c := range group.List {
					said[fset.Position(c.Pos()).Line] = sleepsWell.MatchString(c.Text)
				}
			}
			calls(file, "time.Sleep", func(call *ast.CallExpr, within []string) {
				n++
				if at := fset.Position(call.Pos()); !slices.ContainsFunc(within, func(f string) bool { return bubbles[f] }) && !said[at.Line] {
					t.Errorf("%s: a sleep outside a bubble: wait for the thing itself", at)
				}
			})
		}
	}
	if n < 50 {
		t.Errorf("%d sleeps found, and there are more", n)
	}
}

func takesFunc(f *ast.FuncDecl) bool {
	return slices.ContainsFunc(f.Type.Params.List, func(p *ast.Field) bool { _, ok := p.Type.(*ast.FuncType); return ok })
}

// calls tells whether a function is called in n, and gives each such call to found, with those in whose arguments it stands.
func calls(n ast.Node, name string, found func(call *ast.CallExpr, within []string)) (any bool) {
	var open []ast.Node
	ast.Inspect(n, func(m ast.Node) bool {
		if m == nil {
			open = open[:len(open)-1]
			return true
		}
		if call, ok := m.(*ast.CallExpr); ok && nameOf(call) == name {
			any = true
			if found != nil {
				var within []string
				for _, o := range open {
					if c, ok := o.(*ast.CallExpr); ok {
						within = append(within, nameOf(c))
					}
				}
				found(call, within)
			}
		}
		open = append(open, m)
		return true
	})
	return any
}

func nameOf(call *ast.CallExpr) string {
	switch f := call.Fun.(type) {
	case *ast.Ident:
		return f.Name
	case *ast.SelectorExpr:
		if x, ok := f.X.(*ast.Ident); ok {
			return x.Name + "." + f.Sel.Name
		}
	}
	return ""
}
