package operator

import (
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/bot-bottle/supervise/internal/lazy"
)

// Limits of the expansion of variables, which could double a value in every line. They are far above what a
// Dockerfile that somebody means to read needs.
const (
	maxValue = 4 << 10  // of one value that has variables in it, in bytes
	maxTotal = 1 << 20  // of all values of a file that stood for variables, in bytes
	maxDepth = 100      // of ${a:-${b:-…}}
	hopCost  = 8        // what looking into one more stage counts for in maxTotal
	noRune   = rune(-1) // after the end
)

// scope are the variables of a stage; those of the stage that it builds on count where it has none itself.
type scope struct {
	vars map[string]string
	base *scope
}

// expansion is the work that one file may cause.
type expansion struct {
	left int  // of maxTotal
	over bool // something was left as it is written, because of a limit or because it is not understood
}

func (e *expansion) spend(n int) bool {
	if n > e.left {
		e.over = true
		return false
	}
	e.left -= n
	return true
}

func (e *expansion) lookup(s *scope, name string) (string, bool) {
	for ; s != nil; s = s.base {
		if !e.spend(hopCost) {
			return "", false
		}
		if v, ok := s.vars[name]; ok {
			return v, true
		}
	}
	return "", false
}

// expand returns s without its quotes and with the variables replaced that have a value in vars, or a default of
// their own; others stay as written, and so does all of what is no valid word.
func (e *expansion) expand(s string, escape rune, vars *scope) string {
	if !strings.ContainsAny(s, "$'\""+string(escape)) {
		return s
	}
	l := lexer{src: s, escape: escape, vars: vars, work: e}
	v, err := l.until(noRune, false)
	if err != nil {
		return s
	}
	return v
}

// bare is a word without its quotes, its variables as they are written if they have no default.
func (d *dockerfile) bare(w string) string { return d.work.expand(w, d.escape, nil) }

var errWord = errors.New("not a word")

// lexer reads shell words as BuildKit's frontend does (frontend/dockerfile/shell/lex.go of v0.26.3), also where that is
// odd: what it takes for a here-document decides which lines are instructions.
type lexer struct {
	src    string
	pos    int
	escape rune
	vars   *scope
	work   *expansion
	keep   bool // references stay
	raw    bool // quotes stay
	rawEsc bool // and so does the escape character
	depth  int
	buf    strings.Builder // the word being read; what is inside ${} shares it
	words  []string        // of the outermost call
}

func (l *lexer) peek() rune {
	if l.pos >= len(l.src) {
		return noRune
	}
	r, _ := utf8.DecodeRuneInString(l.src[l.pos:])
	return r
}

func (l *lexer) next() rune {
	if l.pos >= len(l.src) {
		return noRune
	}
	r, n := utf8.DecodeRuneInString(l.src[l.pos:])
	l.pos += n
	return r
}

// until reads up to stop, or to the end, and returns the text; the words of the outermost call are in l.words.
func (l *lexer) until(stop rune, rawEsc bool) (string, error) {
	if l.depth++; l.depth > maxDepth {
		l.work.over = true
		return "", errWord
	}
	was := l.rawEsc
	l.rawEsc = rawEsc
	defer func() { l.depth--; l.rawEsc = was }()
	var text strings.Builder
	var words []string
	inWord := false
	raw := func(s string) {
		l.buf.WriteString(s)
		inWord = true
	}
	flush := func() {
		if l.buf.Len() > 0 {
			if l.depth == 1 {
				words = append(words, l.buf.String())
			}
			l.buf.Reset()
			inWord = false
		}
	}
	plain := func(s string) {
		for _, r := range s {
			if !unicode.IsSpace(r) {
				raw(string(r))
			} else if inWord {
				flush()
			}
		}
	}
	l.buf.Reset()
	for {
		r := l.peek()
		if r == noRune || r == stop {
			break
		}
		switch r {
		case '$', '<', '\'', '"':
			var s string
			var err error
			switch r {
			case '$':
				s, err = l.dollar(text.Len())
			case '<':
				s = l.marker()
			case '\'':
				s, err = l.single()
			case '"':
				s, err = l.double(text.Len())
			}
			if err != nil {
				return "", err
			}
			text.WriteString(s)
			if r == '$' {
				plain(s)
			} else {
				raw(s)
			}
			continue
		}
		l.next()
		if r != l.escape {
			plain(string(r))
			text.WriteRune(r)
			continue
		}
		if l.rawEsc {
			raw(string(r))
			text.WriteRune(r)
		}
		if r = l.next(); r == noRune {
			break
		}
		raw(string(r))
		text.WriteRune(r)
	}
	if stop != noRune && l.next() != stop {
		return "", errWord
	}
	flush()
	if l.depth == 1 {
		l.words = words
	}
	return text.String(), nil
}

// marker reads < or <<, with the white space that may be before the name of a here-document.
func (l *lexer) marker() string {
	start := l.pos
	l.next()
	if l.peek() == '<' {
		l.next()
		for strings.ContainsRune("\t\r ", l.peek()) {
			l.next()
		}
	}
	return l.src[start:l.pos]
}

func (l *lexer) single() (string, error) {
	n := strings.IndexByte(l.src[l.pos+1:], '\'')
	if n < 0 {
		return "", errWord
	}
	s := l.src[l.pos : l.pos+n+2]
	l.pos += n + 2
	if !l.raw {
		s = s[1 : len(s)-1]
	}
	return s, nil
}

func (l *lexer) double(before int) (string, error) {
	var text strings.Builder
	quote := func() {
		if r := l.next(); l.raw {
			text.WriteRune(r)
		}
	}
	quote()
	for {
		switch l.peek() {
		case noRune:
			return "", errWord
		case '"':
			quote()
			return text.String(), nil
		case '$':
			s, err := l.dollar(before + text.Len())
			if err != nil {
				return "", err
			}
			text.WriteString(s)
		default:
			r := l.next()
			if r == l.escape {
				if l.rawEsc {
					text.WriteRune(r)
				}
				switch p := l.peek(); p {
				case noRune:
					continue
				case '"', '$', l.escape:
					r = l.next()
				}
			}
			text.WriteRune(r)
		}
	}
}

// dollar reads a variable; before is how much of its value is there already.
func (l *lexer) dollar(before int) (string, error) {
	start := l.pos
	l.next()
	if l.peek() != '{' {
		name := l.name()
		if name == "" {
			return "$", nil
		}
		return l.value(name, start, before), nil
	}
	l.next()
	if strings.ContainsRune("{}:", l.peek()) || l.peek() == noRune {
		return "", errWord
	}
	name := l.name()
	op := l.next()
	switch op {
	case '}':
		return l.value(name, start, before), nil
	case '/':
		if l.peek() == '/' {
			l.next()
		}
		if _, err := l.until('/', true); err != nil {
			return "", err
		}
		if _, err := l.until('}', true); err != nil {
			return "", err
		}
		return l.unread(name, start), nil
	}
	orEmpty := op == ':'
	if orEmpty {
		op = l.next()
	}
	trims := op == '#' || op == '%'
	if orEmpty && trims || !strings.ContainsRune("+-?#%", op) && !orEmpty {
		return "", errWord
	}
	word, err := l.until('}', trims)
	if err != nil {
		return "", err
	}
	if l.keep {
		return "${" + name + l.operator(start, name) + word + "}", nil
	}
	v, set := l.work.lookup(l.vars, name)
	empty := !set || orEmpty && v == ""
	switch {
	case trims:
		return l.unread(name, start), nil
	case op == '-' && empty:
		return l.fit(word, start, before), nil
	case op == '+' && set && empty:
		return "", nil
	case op == '+' && set:
		return l.fit(word, start, before), nil
	case (op == '-' || op == '?') && !empty:
		return l.fit(v, start, before), nil
	}
	return l.src[start:l.pos], nil
}

// operator is what stands between the name and the word of ${name:-word}.
func (l *lexer) operator(start int, name string) string {
	rest := l.src[start+len("${")+len(name):]
	if rest[0] == ':' {
		_, n := utf8.DecodeRuneInString(rest[1:])
		return rest[:1+n]
	}
	return rest[:1]
}

// value is that of a plain reference, which began at start.
func (l *lexer) value(name string, start, before int) string {
	if l.keep {
		return l.src[start:l.pos]
	}
	v, set := l.work.lookup(l.vars, name)
	if !set {
		return l.src[start:l.pos]
	}
	return l.fit(v, start, before)
}

// fit is v, or the reference as it is written where v is too much.
func (l *lexer) fit(v string, start, before int) string {
	if before+len(v) > maxValue {
		l.work.over = true
		return l.src[start:l.pos]
	}
	if !l.work.spend(len(v)) {
		return l.src[start:l.pos]
	}
	return v
}

// unread is a reference that changes its value by a pattern.
func (l *lexer) unread(name string, start int) string {
	if l.keep {
		return l.src[start:l.pos]
	}
	if _, set := l.work.lookup(l.vars, name); set {
		l.work.over = true
	}
	return l.src[start:l.pos]
}

func (l *lexer) name() string {
	start := l.pos
	for r := l.peek(); r != noRune; r = l.peek() {
		if l.pos == start {
			if unicode.IsDigit(r) {
				for unicode.IsDigit(l.peek()) {
					l.next()
				}
				break
			}
			if strings.ContainsRune("@*#?-$!0", r) {
				l.next()
				break
			}
		}
		if !unicode.IsLetter(r) && !unicode.IsDigit(r) && r != '_' {
			break
		}
		l.next()
	}
	return l.src[start:l.pos]
}

var heredocRE = lazy.Regexp(`^[0-9]*<<(-?)\s*([^<]*)$`)

// heredoc is a here-document that an instruction opens.
type heredoc struct {
	name string
	tabs bool // those at the start of its lines do not count
}

// heredocs returns the here-documents that a logical line opens.
func (e *expansion) heredocs(line string) []heredoc {
	if !strings.Contains(line, "<<") {
		return nil
	}
	l := lexer{src: line, escape: '\\', work: e, keep: true, raw: true}
	if _, err := l.until(noRune, true); err != nil {
		return nil
	}
	var docs []heredoc
	for _, w := range l.words {
		m := heredocRE().FindStringSubmatch(w)
		if m == nil || m[2] == "" {
			continue
		}
		l := lexer{src: m[2], escape: '\\', work: e, keep: true}
		if _, err := l.until(noRune, false); err == nil && len(l.words) == 1 {
			docs = append(docs, heredoc{name: l.words[0], tabs: m[1] == "-"})
		}
	}
	return docs
}

// words splits the arguments of ENV, ARG and ADD; quotes and escape characters stay.
func words(s string, escape rune) []string {
	var out []string
	var w strings.Builder
	var quote rune
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		i += n
		switch {
		case quote == 0 && unicode.IsSpace(r):
			if w.Len() > 0 {
				out = append(out, w.String())
				w.Reset()
			}
			continue
		case r == escape && quote != '\'':
			if i == len(s) {
				continue // as there: it does not count at the end
			}
			w.WriteRune(r)
			r, n = utf8.DecodeRuneInString(s[i:])
			i += n
		case quote == 0 && (r == '\'' || r == '"'):
			quote = r
		case r == quote:
			quote = 0
		}
		w.WriteRune(r)
	}
	if w.Len() > 0 {
		out = append(out, w.String())
	}
	return out
}
