package operator

import (
	"encoding/json"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/bot-bottle/supervise/internal/lazy"
)

// dockerfile is a Dockerfile read far enough for the findings: the same lines, continuations, directives and
// here-documents as BuildKit sees (v0.26.3), nothing executed. Reading never fails; what makes no sense to a builder
// stays an instruction with an odd name, and the build refuses it.
type dockerfile struct {
	syntax       string // the frontend named by "# syntax=" or one of its other forms, if any
	escape       rune
	instructions []instruction
	stages       []stage
	named        map[string]int // the last stage of each name
	work         expansion      // spent on its variables
}

// instruction is one logical line.
type instruction struct {
	line  int      // of its first physical line, from 1
	name  string   // upper case; the inner one of an ONBUILD
	onbld bool     // it was behind ONBUILD
	flags []string // "--mount=…", in order
	args  string   // the rest, continuations joined, here-document markers still in it
	exec  []string // args as a JSON array of strings; nil: shell form
	docs  []string // the bodies of its here-documents, with their line ends
	from  []string // what an ADD adds, expanded, its destination too
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
	directiveRE = lazy.Regexp(`^#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+?)\s*$`)
	slashesRE   = lazy.Regexp(`^//\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+?)\s*$`)
	lineEndRE   = lazy.Regexp(`\r+\n`)
	blankRE     = lazy.Regexp(`[\t\v\f\r ]+`)
)

const bom = "\ufeff"

// readDockerfile reads src.
func readDockerfile(src string) *dockerfile {
	d := &dockerfile{syntax: syntaxOf(src), escape: '\\', named: map[string]int{}, work: expansion{left: maxTotal}}
	lines := strings.SplitAfter(strings.TrimPrefix(src, bom), "\n")
	i := d.directives(lines)
	for i < len(lines) {
		first := i
		line := strings.TrimLeftFunc(strings.TrimRight(lines[i], "\r\n"), unicode.IsSpace)
		i++
		if line == "" || line[0] == '#' {
			continue
		}
		line, more := d.goesOn(line)
		var text strings.Builder
		text.WriteString(line)
		for more && i < len(lines) {
			line = strings.TrimRight(lines[i], "\r\n")
			i++
			if blank := strings.TrimLeftFunc(line, unicode.IsSpace); blank == "" || blank[0] == '#' {
				continue
			}
			line, more = d.goesOn(line)
			text.WriteString(line)
		}
		in := d.newInstruction(first+1, text.String())
		i = d.heredocs(&in, text.String(), lines, i)
		d.add(in)
	}
	d.resolve()
	return d
}

// goesOn tells whether a physical line goes on in the next one, and returns it without the character that says so.
func (d *dockerfile) goesOn(line string) (string, bool) {
	esc := string(d.escape)
	rest, ok := strings.CutSuffix(strings.TrimRight(line, " \t"), esc)
	if !ok || strings.HasSuffix(rest, esc) {
		return line, false
	}
	return rest, true
}

// directives reads the parser directives and returns the first line after them.
func (d *dockerfile) directives(lines []string) int {
	for i, l := range lines {
		m := directiveRE().FindStringSubmatch(strings.TrimLeftFunc(strings.TrimRight(l, "\r\n"), unicode.IsSpace))
		if m == nil {
			return i
		}
		switch strings.ToLower(m[1]) {
		case "escape":
			if m[2] == "`" {
				d.escape = '`'
			}
		case "syntax", "check":
		default:
			return i // an ordinary comment ends them
		}
	}
	return len(lines)
}

// syntaxOf returns the frontend that a file names, as BuildKit finds it, which is before and apart from the parsing:
// after a line like #!/x, in directives that begin with #, in others that begin with //, or in a JSON object.
func syntaxOf(src string) string {
	src = strings.TrimPrefix(src, bom)
	if line, rest, _ := strings.Cut(src, "\n"); strings.HasPrefix(line, "#!") {
		src = rest
	}
	for _, re := range []*regexp.Regexp{directiveRE(), slashesRE()} {
		seen := map[string]bool{}
		for l := range strings.SplitSeq(src, "\n") {
			m := re.FindStringSubmatch(strings.TrimSuffix(l, "\r"))
			if m == nil {
				break
			}
			name := strings.ToLower(m[1])
			if name == "syntax" {
				return m[2]
			}
			if seen[name] || name != "escape" && name != "check" {
				break
			}
			seen[name] = true
		}
	}
	var object map[string]any
	if json.Unmarshal([]byte(src), &object) != nil {
		return ""
	}
	s, _ := object["syntax"].(string)
	return s
}

func (d *dockerfile) newInstruction(line int, text string) instruction {
	in := instruction{line: line, stage: -1}
	rest := text
	for {
		name, args := strings.TrimSpace(rest), ""
		if at := blankRE().FindStringIndex(name); at != nil {
			name, args = name[:at[0]], name[at[1]:]
		}
		in.name = strings.ToUpper(name)
		in.flags, rest = d.flags(args)
		if in.name != "ONBUILD" || in.onbld {
			break
		}
		in.onbld = true
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

// flags takes the words that begin with -- from the start of an instruction's arguments, and the quotes from them. It
// reads bytes, as the builder does.
func (d *dockerfile) flags(args string) (flags []string, rest string) {
	var w strings.Builder
	var quote byte
	inWord := false
	end := func() {
		if w.Len() > 0 {
			flags = append(flags, w.String())
		}
		w.Reset()
	}
	for i := 0; i < len(args); i++ {
		c := args[i]
		space := unicode.IsSpace(rune(c))
		switch {
		case !inWord && space:
		case !inWord && !strings.HasPrefix(args[i:], "--"):
			return flags, args[i:]
		case inWord && quote == 0 && space:
			if w.String() == "--" {
				return flags, args[i:]
			}
			end()
			inWord = false
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && inWord && (c == '\'' || c == '"'):
			quote = c
		case rune(c) == d.escape:
			if i++; i < len(args) {
				w.WriteByte(args[i])
			}
		default:
			w.WriteByte(c)
			inWord = true
		}
	}
	if w.String() != "--" {
		end()
	}
	return flags, ""
}

// heredocs takes the here-documents that in opens from lines[i:] and returns the line after them.
func (d *dockerfile) heredocs(in *instruction, text string, lines []string, i int) int {
	if in.exec != nil || !slices.Contains([]string{"RUN", "COPY", "ADD"}, in.name) {
		return i
	}
	for _, h := range d.work.heredocs(text) {
		var body strings.Builder
		for ; i < len(lines); i++ {
			l := lines[i]
			if h.tabs {
				l = strings.TrimLeft(l, "\t")
			}
			if strings.TrimRight(l, "\r\n") == h.name {
				i++
				break
			}
			body.WriteString(l)
		}
		in.docs = append(in.docs, body.String())
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
	global := &scope{vars: map[string]string{}}
	vars := global
	var scopes []*scope
	expand := func(s string) string { return d.work.expand(s, d.escape, vars) }
	for i := range d.instructions {
		in := &d.instructions[i]
		if in.onbld && in.name != "ADD" {
			continue
		}
		switch in.name {
		case "FROM":
			s := &d.stages[in.stage]
			f := blankRE().Split(in.args, -1)
			s.image = d.work.expand(f[0], d.escape, global)
			vars = &scope{vars: map[string]string{}}
			if n, ok := d.named[strings.ToLower(s.image)]; ok {
				s.from = n
				vars.base = scopes[n]
			}
			scopes = append(scopes, vars)
			if len(f) == 3 && strings.EqualFold(f[1], "AS") {
				s.name = strings.ToLower(f[2])
				d.named[s.name] = in.stage
			}
		case "ARG":
			for _, kv := range d.assignments(*in) {
				name, v := expand(kv.name), expand(kv.value)
				if !kv.set {
					v, kv.set = global.vars[name]
				}
				if kv.set {
					vars.vars[name] = v
				}
			}
		case "ENV":
			kvs := d.assignments(*in) // no value sees another of the same instruction
			for i, kv := range kvs {
				kvs[i].name, kvs[i].value = expand(kv.name), expand(kv.value)
			}
			for _, kv := range kvs {
				vars.vars[kv.name] = kv.value
			}
		case "USER":
			if in.stage >= 0 {
				d.stages[in.stage].user = expand(in.args)
			}
		case "ADD":
			in.from = in.exec
			if in.from == nil {
				in.from = blankRE().Split(in.args, -1)
			}
			in.from = slices.Clone(in.from)
			for i, w := range in.from {
				in.from[i] = expand(w)
			}
		}
	}
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
	seen := map[string]bool{}
	add := func(ref string) {
		if ref != "" && !strings.EqualFold(ref, "scratch") && !seen[ref] {
			seen[ref] = true
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
				if _, stage := d.named[strings.ToLower(ref)]; !digits(ref) && !stage {
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

// key is the instruction word for word, for comparing.
func (in instruction) key() string {
	parts := append([]string{in.name, strconv.FormatBool(in.onbld), in.args}, in.flags...)
	return strings.Join(append(append(parts, ""), in.docs...), "\x00")
}

// text is the instruction in one line, as evidence: white space runs are one space.
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

// scripts are the shell texts the instruction runs or writes, with plain line ends.
func (in instruction) scripts() []string {
	out := []string{in.args}
	if in.exec != nil {
		out[0] = quoteAll(in.exec)
	}
	for _, doc := range in.docs {
		out = append(out, lineEndRE().ReplaceAllString(doc, "\n"))
	}
	return out
}

// assignment is one NAME=VALUE, or one NAME of an ARG, as it is written.
type assignment struct {
	name, value string
	set         bool
}

// assignments reads the arguments of ENV and ARG, the old form "ENV NAME VALUE" too.
func (d *dockerfile) assignments(in instruction) []assignment {
	var out []assignment
	for i, w := range words(in.args, d.escape) {
		name, value, set := strings.Cut(w, "=")
		if at := blankRE().FindStringIndex(in.args); i == 0 && !set && in.name == "ENV" && at != nil {
			return []assignment{{name: in.args[:at[0]], value: in.args[at[1]:], set: true}}
		}
		out = append(out, assignment{name: name, value: value, set: set})
	}
	return out
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
