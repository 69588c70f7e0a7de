package main

import (
	"bytes"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/bot-bottle/supervise/internal/operator"
)

// commands walks the tree.
func commands(cmd *cobra.Command, visit func(*cobra.Command)) {
	visit(cmd)
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() && c.Name() != "completion" && c.Name() != "help" {
			commands(c, visit)
		}
	}
}

// helps maps golden file names to help texts.
func helps(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	commands(newRoot(&app{}), func(cmd *cobra.Command) {
		args := append(strings.Fields(cmd.CommandPath())[1:], "--help")
		var stdout, stderr bytes.Buffer
		if code := run(t.Context(), args, strings.NewReader(""), &stdout, &stderr); code != 0 || stderr.Len() > 0 {
			t.Errorf("run(%q) = %d, stderr %q, want 0 and none", args, code, stderr.String())
		}
		out[strings.ReplaceAll(cmd.CommandPath(), " ", "-")+".txt"] = stdout.String()
	})
	return out
}

func TestHelp(t *testing.T) {
	dir := filepath.Join("testdata", "help")
	got := helps(t)
	if *update {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range got {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	files, err := fs.ReadDir(os.DirFS(dir), ".")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		want[f.Name()] = string(b)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("help texts (-want +got), go test -update writes them:\n%s", diff)
	}
}

// TestHelpReads: help is read on a terminal of 100 columns, and shows how a command is used.
func TestHelpReads(t *testing.T) {
	for name, text := range helps(t) {
		for line := range strings.Lines(text) {
			if w := len([]rune(strings.TrimSuffix(line, "\n"))); w > 170 || w > 100 && !strings.Contains(line, "  --") {
				t.Errorf("%s: %d columns: %s", name, w, line)
			}
		}
	}
	commands(newRoot(&app{}), func(cmd *cobra.Command) {
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") {
			t.Errorf("%s: short help %q, want one without a full stop", cmd.CommandPath(), cmd.Short)
		}
		if !cmd.HasSubCommands() && cmd.Example == "" {
			t.Errorf("%s has no example", cmd.CommandPath())
		}
	})
}

// TestDocs: docs/cli.md names every command, flag, exit code name and JSON field.
func TestDocs(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "..", "docs", "cli.md"))
	if err != nil {
		t.Fatal(err)
	}
	doc := string(b)
	commands(newRoot(&app{}), func(cmd *cobra.Command) {
		if !strings.Contains(doc, "`"+cmd.CommandPath()) {
			t.Errorf("docs/cli.md does not name %q", cmd.CommandPath())
		}
	})
	_, flags, _ := strings.Cut(doc, "\n## Flags\n")
	flags, _, _ = strings.Cut(flags, "\n## ")
	common, _, _ := strings.Cut(flags, "\n| ")
	commands(newRoot(&app{}), func(cmd *cobra.Command) {
		_, row, _ := strings.Cut(flags, "\n| `"+cmd.CommandPath()+"` |")
		row, _, _ = strings.Cut(row, "\n")
		cmd.InitDefaultHelpFlag()
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if !flagRE(f.Name).MatchString(row) && !flagRE(f.Name).MatchString(common) {
				t.Errorf("docs/cli.md, Flags, does not tell of %s --%s", cmd.CommandPath(), f.Name)
			}
		})
		for _, m := range flagRE("([a-z-]+)").FindAllStringSubmatch(row, -1) {
			if cmd.Flags().Lookup(m[1]) == nil {
				t.Errorf("docs/cli.md tells of %s --%s, which it does not have", cmd.CommandPath(), m[1])
			}
		}
	})
	for _, e := range errorCodes(t) {
		if !strings.Contains(doc, "`"+e+"`") {
			t.Errorf("docs/cli.md does not name the error code %q", e)
		}
	}
	names, _ := jsonFields()
	for name := range names {
		if !strings.Contains(doc, "`"+name+"`") {
			t.Errorf("docs/cli.md does not describe the JSON field %q", name)
		}
	}
}

// flagRE finds a flag in docs/cli.md; "supervise --version" is one too.
func flagRE(name string) *regexp.Regexp {
	return regexp.MustCompile("`(?:supervise )?--" + name + "[ `]")
}

var codeRE = regexp.MustCompile(`code: "([a-z-]+)"`)

// errorCodes are those of the table in errors.go.
func errorCodes(t *testing.T) []string {
	t.Helper()
	src, err := os.ReadFile("errors.go")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, m := range codeRE.FindAllStringSubmatch(string(src), -1) {
		out = append(out, m[1])
	}
	if len(out) < 10 {
		t.Fatalf("found only %d error codes", len(out))
	}
	return out
}

// jsonFields are the names in everything that --json prints, and the types that have them.
func jsonFields() (out map[string]bool, seen map[reflect.Type]bool) {
	out = map[string]bool{}
	seen = map[reflect.Type]bool{}
	var walk func(reflect.Type)
	walk = func(t reflect.Type) {
		for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct || seen[t] || t == reflect.TypeFor[time.Time]() {
			return
		}
		seen[t] = true
		for f := range t.Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name != "" && name != "-" {
				out[name] = true
			}
			walk(f.Type)
		}
	}
	for _, v := range []any{listJSON{}, operator.Preview{}, decisionJSON{}, dismissedJSON{}, historyJSON{}, auditJSON{}, bottlesJSON{}, forgottenJSON{}, watched{}, versionJSON{}, failJSON{}, decidedJSON{}} {
		walk(reflect.TypeOf(v))
	}
	return out, seen
}

func TestJSONFields(t *testing.T) {
	names, types := jsonFields()
	got := slices.Sorted(maps.Keys(names))
	if !slices.Contains(got, "proposed_file") || !slices.Contains(got, "age_ns") {
		t.Errorf("jsonFields() = %q, want proposed_file and age_ns among them", got)
	}
	known := map[string]bool{}
	for typ := range types {
		known[typ.Name()] = true
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		src, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^type (\w+JSON) struct`).FindAllStringSubmatch(string(src), -1) {
			if !known[m[1]] {
				t.Errorf("%s: jsonFields does not look at %s", file, m[1])
			}
		}
	}
}
