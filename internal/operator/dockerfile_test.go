package operator

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReadDockerfile(t *testing.T) {
	d := readDockerfile("# syntax = docker/dockerfile:1\n# escape=`\n# a comment\n# syntax=late\n" +
		"ARG TAG=1\n" +
		"FROM --platform=$BUILDPLATFORM base:${TAG} AS Build\n" +
		"RUN one `\n" +
		"  # aside\n" +
		"\n" +
		"  two\n" +
		"ONBUILD COPY --from=build a b\n" +
		"RUN <<A <<-'B C'\n" +
		"USER root\n" +
		"A\n" +
		"\tx\n" +
		"\tB C\n" +
		"FROM build\n" +
		"ENV NAME some value\n" +
		"USER ${NAME:-x}:${MISSING}\n" +
		"CMD [\"a\", \"b c\"]")
	type row struct {
		line  int
		text  string
		stage int
	}
	want := []row{
		{5, "ARG TAG=1", -1},
		{6, "FROM --platform=$BUILDPLATFORM base:${TAG} AS Build", 0},
		{7, "RUN one two", 0},
		{11, "ONBUILD COPY --from=build a b", 0},
		{12, "RUN <<A <<-'B C' USER root x", 0},
		{17, "FROM build", 1},
		{18, "ENV NAME some value", 1},
		{19, "USER ${NAME:-x}:${MISSING}", 1},
		{20, `CMD ["a", "b c"]`, 1},
	}
	var got []row
	for _, in := range d.instructions {
		got = append(got, row{in.line, in.text(), in.stage})
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(row{})); diff != "" {
		t.Errorf("instructions mismatch (-want +got):\n%s", diff)
	}
	stages := []stage{{image: "base:1", name: "build", from: -1}, {image: "build", from: 0, user: "some value:${MISSING}"}}
	if diff := cmp.Diff(stages, d.stages, cmp.AllowUnexported(stage{})); diff != "" {
		t.Errorf("stages mismatch (-want +got):\n%s", diff)
	}
	if d.syntax != "docker/dockerfile:1" {
		t.Errorf("syntax = %q, want docker/dockerfile:1", d.syntax)
	}
	if last := d.instructions[len(d.instructions)-1]; !slices.Equal(last.exec, []string{"a", "b c"}) {
		t.Errorf("exec form = %q, want a and b c", last.exec)
	}
}

// shapes are files of any size, of what could take more work than their size.
var shapes = []struct {
	name string
	file func(n int) string
}{
	{"continuations", func(n int) string { return "FROM a\nRUN a\\\n" + strings.Repeat("b\\\n", n) + "c\nUSER app\n" }},
	{"stages", func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "FROM a%d AS b%d\nCOPY --from=z%d a b\n", i, i, i)
		}
		return b.String()
	}},
	{"stages on stages", func(n int) string {
		var b strings.Builder
		b.WriteString("FROM a AS b0\nENV U=u\n")
		for i := range n {
			fmt.Fprintf(&b, "FROM b%d AS b%d\nUSER $U\n", i, i+1)
		}
		return b.String()
	}},
	{"doubled", doubled},
	{"one long value", func(n int) string {
		return "FROM a\nENV A=" + strings.Repeat("x", 4000) + "\nENV B=" + strings.Repeat("$A", n) + "\n"
	}},
	{"open defaults", func(n int) string { return "FROM a\nENV A=" + strings.Repeat("$b${a:-", n) + "\n" }},
	{"here-documents", func(n int) string {
		return "FROM a\nRUN " + strings.Repeat("<<A ", n) + "\n" + strings.Repeat("A\n", n)
	}},
}

// TestReadDockerfileWork: a file eight times as long takes about eight times the memory, not sixty-four, and what its
// variables stand for has an end.
func TestReadDockerfileWork(t *testing.T) {
	for _, tt := range shapes {
		t.Run(tt.name, func(t *testing.T) {
			bytes := func(n int) uint64 {
				file := tt.file(n)
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				d := readDockerfile(file)
				runtime.ReadMemStats(&after)
				if d.work.left < 0 {
					t.Errorf("%d bytes of values more than the limit", -d.work.left)
				}
				return after.TotalAlloc - before.TotalAlloc
			}
			if few, many := bytes(2000), bytes(16000); many > 20*few+4*maxTotal {
				t.Errorf("%d bytes allocated, and %d for eight times as much", few, many)
			}
		})
	}
}

func BenchmarkReadDockerfile(b *testing.B) {
	for _, s := range shapes {
		for _, n := range []int{2000, 16000} {
			b.Run(fmt.Sprintf("%s/%d", s.name, n), func(b *testing.B) {
				file := s.file(n)
				b.SetBytes(int64(len(file)))
				for b.Loop() {
					readDockerfile(file)
				}
			})
		}
	}
}

// TestOurImages: the project's own Dockerfile keeps to what old builders build and ends unprivileged on nothing, and the
// one of the compose example raises no danger.
func TestOurImages(t *testing.T) {
	data, err := os.ReadFile("../../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	d := readDockerfile(string(data))
	last := d.stages[len(d.stages)-1]
	if len(d.stages) != 2 || last.image != "scratch" || !digits(strings.ReplaceAll(last.user, ":", "")) || isRoot(last.user) {
		t.Errorf("stages = %+v, want two, the last from scratch with a numeric user", d.stages)
	}
	ends := map[string]string{}
	for _, in := range d.instructions {
		if len(in.docs) > 0 || slices.ContainsFunc(in.flags, func(f string) bool { return f == "--link" || strings.HasPrefix(f, "--checksum") }) {
			t.Errorf("%s: buildah 1.28 does not build it", where(in))
		}
		if in.stage == 1 {
			ends[in.name] = in.args
		}
	}
	for name, want := range map[string]string{
		"ENTRYPOINT": `["/supervise"]`, "CMD": `["serve"]`, "STOPSIGNAL": "SIGTERM", "HEALTHCHECK": `CMD ["/supervise", "healthcheck"]`,
	} {
		if ends[name] != want {
			t.Errorf("%s = %s, want %s", name, ends[name], want)
		}
	}
	if slices.ContainsFunc(d.images(), func(ref string) bool { return strings.Contains(ref, "@") }) || d.syntax != "" {
		t.Errorf("images %v, syntax %q; want no digests and no frontend", d.images(), d.syntax)
	}

	data, err = os.ReadFile("../../examples/compose/bottle/Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := codesOf(buildFindings("", string(data))), []string{"base-unpinned"}; !slices.Equal(got, want) {
		t.Errorf("findings of the example's Dockerfile = %v, want %v", got, want)
	}
}
