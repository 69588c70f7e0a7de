package operator

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
)

// dockerfile is a Dockerfile read far enough for the findings: the same lines, continuations, directives and
// here-documents as the builders see, nothing executed. Reading never fails; what makes no sense to a builder
// stays an instruction with an odd name, and the build refuses it.
type dockerfile struct {
	syntax       string // the frontend named by "# syntax=", if any
	instructions []instruction
	stages       []stage
}

// instruction is one logical line.
type instruction struct {
	line  int      // of its first physical line, from 1
	name  string   // upper case; the inner one of an ONBUILD
	onbld bool     // it was behind ONBUILD
	flags []string // "--mount=…", in order
	args  string   // the rest, continuations joined, here-document markers still in it
	exec  []string // args as a JSON array of strings; nil: shell form
	docs  []string // the bodies of its here-documents
	stage int      // index into stages; -1 before the first FROM
}

// stage is what one FROM begins.
type stage struct {
	image string // variables expanded where a default is known
	name  string // lower case; "" without AS
	from  int    // the earlier stage it builds on; -1: an image from elsewhere
	user  string // the last USER, expanded; "" if there is none
}

var (
	directiveRE = regexp.MustCompile(`^#[ \t]*([A-Za-z][A-Za-z0-9]*)[ \t]*=[ \t]*(.+?)[ \t]*$`)
	heredocRE   = regexp.MustCompile(`^[0-9]*<<(-?)([^<]+)$`)
	variableRE  = regexp.MustCompile(`\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)(?:(:?[-+])([^}]*))?\})`)
)

// readDockerfile reads src.
func readDockerfile(src string) *dockerfile {
	d := &dockerfile{}
	lines := strings.Split(strings.ReplaceAll(strings.TrimPrefix(src, "\ufeff"), "\r\n", "\n"), "\n")
	escape, i := d.directives(lines)
	goesOn := regexp.MustCompile(`(^|[^` + regexp.QuoteMeta(escape) + `])` + regexp.QuoteMeta(escape) + `[ \t]*$`)
	for i < len(lines) {
		first := i
		line := strings.TrimLeft(lines[i], " \t")
		i++
		if line == "" || line[0] == '#' {
			continue
		}
		for goesOn.MatchString(line) {
			line = goesOn.ReplaceAllString(line, "$1")
			for i < len(lines) && skipped(lines[i]) {
				i++
			}
			if i == len(lines) {
				break
			}
			line += lines[i]
			i++
		}
		in := newInstruction(first+1, line)
		i = in.heredocs(lines, i)
		d.add(in)
	}
	d.resolve()
	return d
}

// directives reads the parser directives and returns the escape character and the first line after them.
func (d *dockerfile) directives(lines []string) (escape string, next int) {
	escape = `\`
	for i, l := range lines {
		m := directiveRE.FindStringSubmatch(strings.TrimSpace(l))
		if m == nil {
			return escape, i
		}
		switch strings.ToLower(m[1]) {
		case "syntax":
			d.syntax = m[2]
		case "escape":
			if m[2] == "`" {
				escape = m[2]
			}
		case "check":
		default:
			return escape, i // an ordinary comment ends them
		}
	}
	return escape, len(lines)
}

// skipped tells whether a line inside a continuation does not count.
func skipped(line string) bool {
	line = strings.TrimSpace(line)
	return line == "" || line[0] == '#'
}

func newInstruction(line int, text string) instruction {
	in := instruction{line: line, stage: -1}
	rest := strings.TrimSpace(text)
	for {
		end := strings.IndexAny(rest, " \t")
		if end < 0 {
			end = len(rest)
		}
		in.name = strings.ToUpper(rest[:end])
		rest = strings.TrimSpace(rest[end:])
		if in.name != "ONBUILD" || in.onbld {
			break
		}
		in.onbld = true
	}
	for strings.HasPrefix(rest, "--") {
		end := strings.IndexAny(rest, " \t")
		if end < 0 {
			end = len(rest)
		}
		in.flags = append(in.flags, rest[:end])
		rest = strings.TrimLeft(rest[end:], " \t")
	}
	in.args = strings.TrimSpace(rest)
	if strings.HasPrefix(in.args, "[") {
		var exec []string
		if json.Unmarshal([]byte(in.args), &exec) == nil {
			in.exec = exec
		}
	}
	return in
}

// heredocs takes the here-documents that in opens from lines[i:] and returns the line after them.
func (in *instruction) heredocs(lines []string, i int) int {
	if in.exec != nil || !slices.Contains([]string{"RUN", "COPY", "ADD"}, in.name) {
		return i
	}
	for _, w := range shellWords(in.args) {
		m := heredocRE.FindStringSubmatch(w)
		if m == nil {
			continue
		}
		end := unquote(m[2])
		var body []string
		for ; i < len(lines); i++ {
			l := lines[i]
			if m[1] == "-" {
				l = strings.TrimLeft(l, "\t")
			}
			if l == end {
				i++
				break
			}
			body = append(body, l)
		}
		in.docs = append(in.docs, strings.Join(body, "\n"))
	}
	return i
}

func (d *dockerfile) add(in instruction) {
	if in.name == "FROM" && !in.onbld {
		d.stages = append(d.stages, stage{from: -1})
	}
	in.stage = len(d.stages) - 1
	d.instructions = append(d.instructions, in)
}

// resolve fills the stages, expanding what ARG and ENV give a value to.
func (d *dockerfile) resolve() {
	global := map[string]string{}
	vars := global
	for _, in := range d.instructions {
		if in.onbld {
			continue
		}
		switch in.name {
		case "FROM":
			vars = map[string]string{}
			s := &d.stages[in.stage]
			f := strings.Fields(in.args)
			if len(f) > 0 {
				s.image = expand(f[0], global)
			}
			if len(f) == 3 && strings.EqualFold(f[1], "AS") {
				s.name = strings.ToLower(f[2])
			}
			s.from = d.stageNamed(s.image, in.stage)
		case "ARG":
			for _, kv := range assignments(in.args) {
				v, inherited := kv.value, global[kv.name]
				if !kv.set {
					v = inherited
				}
				if kv.set || inherited != "" {
					vars[kv.name] = expand(v, vars)
				}
			}
		case "ENV":
			for _, kv := range assignments(in.args) {
				vars[kv.name] = expand(kv.value, vars)
			}
		case "USER":
			if in.stage >= 0 {
				d.stages[in.stage].user = unquote(expand(in.args, vars))
			}
		}
	}
}

// stageNamed returns the stage before limit that ref names, or -1.
func (d *dockerfile) stageNamed(ref string, limit int) int {
	for i := limit - 1; i >= 0; i-- {
		if n := d.stages[i].name; n != "" && n == strings.ToLower(ref) {
			return i
		}
	}
	return -1
}

// user is whom the final image runs as; "" when no USER says so.
func (d *dockerfile) user() string {
	for i := len(d.stages) - 1; i >= 0; i = d.stages[i].from {
		if u := d.stages[i].user; u != "" {
			return u
		}
	}
	return ""
}

// images lists what is taken from outside the file, each once, in order: bases, and images that COPY and
// RUN --mount take files from.
func (d *dockerfile) images() []string {
	var out []string
	add := func(ref string) {
		if ref != "" && !strings.EqualFold(ref, "scratch") && !slices.Contains(out, ref) {
			out = append(out, ref)
		}
	}
	for _, in := range d.instructions {
		switch in.name {
		case "FROM":
			if in.onbld || in.stage < 0 {
				continue
			}
			if s := d.stages[in.stage]; s.from < 0 {
				add(s.image)
			}
		case "COPY", "ADD", "RUN":
			for _, f := range in.flags {
				ref := from(f)
				if ref != "" && !digits(ref) && d.stageNamed(ref, len(d.stages)) < 0 {
					add(ref)
				}
			}
		}
	}
	return out
}

// from returns the image or stage that a --from or a --mount=…,from= flag names.
func from(flag string) string {
	if v, ok := strings.CutPrefix(flag, "--from="); ok {
		return v
	}
	if v, ok := strings.CutPrefix(flag, "--mount="); ok {
		for o := range strings.SplitSeq(v, ",") {
			if ref, ok := strings.CutPrefix(o, "from="); ok {
				return ref
			}
		}
	}
	return ""
}

// text is the instruction in one line, as evidence and for comparing: white space runs are one space.
func (in instruction) text() string {
	parts := append([]string{in.name}, in.flags...)
	if in.onbld {
		parts = append([]string{"ONBUILD"}, parts...)
	}
	parts = append(parts, strings.Fields(in.args)...)
	for _, doc := range in.docs {
		parts = append(parts, strings.Fields(doc)...)
	}
	return strings.Join(parts, " ")
}

// scripts are the shell texts the instruction runs or writes.
func (in instruction) scripts() []string {
	if in.exec != nil {
		return append([]string{quoteAll(in.exec)}, in.docs...)
	}
	return append([]string{in.args}, in.docs...)
}

// assignment is one NAME=VALUE, or one NAME of an ARG.
type assignment struct {
	name, value string
	set         bool
}

// assignments reads the arguments of ENV and ARG, the old form "ENV NAME VALUE" too.
func assignments(args string) []assignment {
	words := shellWords(args)
	if len(words) == 0 {
		return nil
	}
	if !strings.Contains(words[0], "=") && len(words) > 1 {
		return []assignment{{name: words[0], value: strings.TrimSpace(args[strings.Index(args, words[0])+len(words[0]):]), set: true}}
	}
	var out []assignment
	for _, w := range words {
		name, value, set := strings.Cut(w, "=")
		out = append(out, assignment{name: unquote(name), value: unquote(value), set: set})
	}
	return out
}

// expand replaces the variables that have a value, or a default of their own; others stay as written.
func expand(s string, vars map[string]string) string {
	return variableRE.ReplaceAllStringFunc(s, func(ref string) string {
		m := variableRE.FindStringSubmatch(ref)
		v := vars[m[1]+m[2]]
		switch {
		case strings.HasSuffix(m[3], "-") && v == "":
			return m[4]
		case strings.HasSuffix(m[3], "+") && v != "":
			return m[4]
		case strings.HasSuffix(m[3], "+"):
			return ""
		case v == "":
			return ref
		}
		return v
	})
}

// shellWords splits at white space outside quotes; the quotes stay.
func shellWords(s string) []string {
	var words []string
	var w strings.Builder
	var quote byte
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\\' && quote != '\'' && i+1 < len(s):
			w.WriteString(s[i : i+2])
			i++
			continue
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '\'' || c == '"':
			quote = c
		case c == ' ' || c == '\t' || c == '\n':
			if w.Len() > 0 {
				words = append(words, w.String())
				w.Reset()
			}
			continue
		}
		w.WriteByte(c)
	}
	if w.Len() > 0 {
		words = append(words, w.String())
	}
	return words
}

// unquote removes the quotes and backslashes of one shell word.
func unquote(w string) string {
	var b strings.Builder
	var quote byte
	for i := 0; i < len(w); i++ {
		c := w[i]
		switch {
		case c == '\\' && quote != '\'' && i+1 < len(w):
			i++
			b.WriteByte(w[i])
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '\'' || c == '"'):
			quote = c
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

func quoteAll(argv []string) string {
	q := make([]string, len(argv))
	for i, a := range argv {
		q[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
	}
	return strings.Join(q, " ")
}

func digits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}
