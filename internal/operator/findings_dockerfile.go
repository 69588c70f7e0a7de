package operator

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/bot-bottle/supervise/internal/lazy"
)

// What of a Dockerfile is examined. The cost of all findings is bounded by it: an inbox shows hundreds.
const (
	maxExamined      = 32 << 10
	maxExaminedLines = 1000
)

// isTooLong tells whether nothing is looked for in a Dockerfile but that it is too long.
func isTooLong(file string) bool {
	return len(file) > maxExamined || strings.Count(strings.TrimSuffix(file, "\n"), "\n") >= maxExaminedLines
}

func checkTooLong(s *subject) *hit {
	if !s.tooLong {
		return nil
	}
	return &hit{evidence: []string{fmt.Sprintf("%d bytes, %d lines", len(s.p.Dockerfile), 1+strings.Count(strings.TrimSuffix(s.p.Dockerfile, "\n"), "\n"))}}
}

// added yields the instructions that the current Dockerfile does not have word for word. One with a variable
// counts as added always: the same words may mean something else now.
func (s *subject) added(yield func(instruction) bool) {
	for _, in := range s.want.instructions {
		if s.old != nil {
			if key := in.key(); s.old[key] && !strings.Contains(key, "$") {
				continue
			}
		}
		if !yield(in) {
			return
		}
	}
}

// where shows an instruction as evidence.
func where(in instruction) string { return fmt.Sprintf("line %d: %s", in.line, in.text()) }

// instructionsHit is a hit with the added instructions that match.
func (s *subject) instructionsHit(match func(instruction) bool) *hit {
	var ev []string
	for in := range s.added {
		if match(in) {
			ev = append(ev, where(in))
		}
	}
	if ev == nil {
		return nil
	}
	return &hit{evidence: ev}
}

func isRoot(user string) bool {
	name, _, _ := strings.Cut(user, ":")
	return name == "root" || digits(name) && strings.Trim(name, "0") == ""
}

// checkNotExamined: the other findings about a Dockerfile rest on what its variables stand for.
func checkNotExamined(s *subject) *hit {
	if !s.want.work.over {
		return nil
	}
	return &hit{}
}

func checkUserRoot(s *subject) *hit {
	user, before := s.want.user(), ""
	if s.now != nil {
		before = s.now.user()
	}
	name, _, _ := strings.Cut(user, ":")
	switch {
	case strings.Contains(name, "$") && user != before:
		return &hit{
			text:     "The final image runs as whoever a variable names, which has no value in this file, and as root if it stays without one.",
			evidence: []string{"USER " + user},
		}
	case isRoot(user) && !isRoot(before):
		return &hit{evidence: []string{"USER " + user}}
	case user == "" && before != "" && !isRoot(before):
		return &hit{
			text:     "The current image runs as an unprivileged user, and the proposal drops that, so it runs as the base image's user, which is often root.",
			evidence: []string{"USER " + before},
		}
	}
	return nil
}

func checkUserUnset(s *subject) *hit {
	if s.want.user() != "" || len(s.want.stages) == 0 || s.now != nil { // a current one: nothing new, or user-root says it
		return nil
	}
	return &hit{}
}

func checkCurlPipe(s *subject) *hit {
	return s.instructionsHit(func(in instruction) bool {
		switch in.name {
		case "RUN", "CMD", "ENTRYPOINT", "HEALTHCHECK", "COPY", "ADD":
			return slices.ContainsFunc(in.scripts(), runsDownload)
		}
		return false
	})
}

var (
	fetchers = []string{"curl", "wget", "wget2", "fetch", "aria2c", "axel", "http", "https", "xh", "lynx"}
	shells   = []string{"sh", "bash", "dash", "ash", "zsh", "ksh", "mksh", "fish", "busybox", "pwsh", "eval", "source", "."}
	// languages read a program from their standard input, unless an argument is it.
	languages = []string{"python", "python2", "python3", "perl", "ruby", "node", "nodejs", "deno", "bun", "php", "lua"}
	programRE = lazy.Regexp(`^-[a-zA-Z]*[cemnpr]|^--(?:eval|print)|^[^-]`)
	wrappers  = []string{
		"sudo", "doas", "env", "exec", "command", "nohup", "time", "nice", "su", "gosu", "runuser", "timeout", "chroot", "xargs", "if", "then", "!",
	}
	// substitutionRE finds a fetcher whose output becomes a word or a file: <(curl …), $(curl …), `curl …`.
	substitutionRE = lazy.Regexp("(?:<\\(|\\$\\(|`)\\s*(?:\\S*/)?(?:" + strings.Join(fetchers, "|") + ")\\s")
)

// runsDownload tells whether a shell text feeds what a fetcher prints to an interpreter: through a pipe, a
// substitution, or either inside a quoted script. A download that is saved first and run later is not found.
func runsDownload(script string) bool {
	for _, pipeline := range pipelines(strings.ReplaceAll(script, "\\\n", " ")) {
		fetched := false
		for _, command := range pipeline {
			words := shellWords(command)
			runs, stdin := interprets(words)
			nested := runs || slices.Contains(words, "-c")
			if fetched && stdin || runs && substitutionRE().MatchString(command) {
				return true
			}
			for _, w := range words {
				inner := unquote(w)
				fetched = fetched || slices.Contains(fetchers, path.Base(strings.TrimLeft(inner, "({")))
				if inner != w && strings.ContainsAny(inner, " \t\n") && nested && runsDownload(inner) {
					return true
				}
			}
		}
	}
	return false
}

// interprets tells whether the command is an interpreter, possibly behind sudo, env and the like, and
// whether its program is what it reads from standard input.
func interprets(words []string) (runs, stdin bool) {
	wrapped := false
	for i, w := range words {
		w = strings.Trim(unquote(w), "(){}")
		if w == "" || strings.Contains(w, "=") {
			continue // a lone parenthesis, or an assignment before the command
		}
		w = path.Base(w)
		switch {
		case slices.Contains(shells, w):
			return true, true
		case slices.Contains(languages, w), strings.HasPrefix(w, "python3."):
			return true, readsProgram(words[i+1:])
		case slices.Contains(wrappers, w):
			wrapped = true
		case !wrapped:
			return false, false
		}
	}
	return false, false
}

// readsProgram tells whether a language with these arguments takes its program from standard input.
func readsProgram(args []string) bool {
	if slices.Contains(args, "-") {
		return true
	}
	return !slices.ContainsFunc(args, func(a string) bool { return !strings.ContainsAny(a, "<>") && programRE().MatchString(a) })
}

// pipelines splits a shell text at ; & && || and newlines, and each piece at its pipes, outside quotes.
func pipelines(script string) [][]string {
	var all [][]string
	var pipeline []string
	var w strings.Builder
	var quote byte
	command := func() {
		pipeline = append(pipeline, w.String())
		w.Reset()
	}
	end := func() {
		command()
		all = append(all, pipeline)
		pipeline = nil
	}
	for i := 0; i < len(script); i++ {
		c := script[i]
		next := byte(0)
		if i+1 < len(script) {
			next = script[i+1]
		}
		switch {
		case c == '\\' && quote != '\'' && next != 0:
			w.WriteByte(c)
			w.WriteByte(next)
			i++
		case quote != 0:
			if c == quote {
				quote = 0
			}
			w.WriteByte(c)
		case c == '\'' || c == '"':
			quote = c
			w.WriteByte(c)
		case c == '|' && next == '|':
			i++
			end()
		case c == '|':
			if next == '&' {
				i++
			}
			command()
			for i+1 < len(script) && (script[i+1] == '\n' || script[i+1] == ' ' || script[i+1] == '\t') {
				i++ // a pipe goes on in the next line
			}
		case c == '&' && (next == '>' || i > 0 && (script[i-1] == '>' || script[i-1] == '<')): // &>, >&
			w.WriteByte(c)
		case c == ';' || c == '&' || c == '\n':
			end()
		default:
			w.WriteByte(c)
		}
	}
	end()
	return all
}

var (
	remoteRE = lazy.Regexp(`(?i)^(?:[a-z][a-z0-9+.-]*://|[a-z0-9_-]+@[a-z0-9.-]+:)|\.git(?:#|$)`)
	setuidRE = lazy.Regexp(`\bsetcap\b|\bchmod\s+(?:-\S+\s+)*(?:0?[2-7][0-7]{3}\b|(?:[ugoa]*[-+=][rwxXt]*,)*[ugoa]*[+=][rwxXt]*s)|\b(?:install|mkdir)\s[^;&|\n]*-m\s*0?[2-7][0-7]{3}\b|\bNOPASSWD\b`)
)

func checkAddURL(s *subject) *hit {
	return s.instructionsHit(func(in instruction) bool {
		return slices.ContainsFunc(in.from, remoteRE().MatchString)
	})
}

func checkSetuid(s *subject) *hit {
	return s.instructionsHit(func(in instruction) bool {
		switch in.name {
		case "RUN", "COPY", "ADD":
			chmod := slices.ContainsFunc(in.flags, func(f string) bool {
				m, ok := strings.CutPrefix(f, "--chmod=")
				return ok && setuidRE().MatchString("chmod "+m)
			})
			return chmod || slices.ContainsFunc(in.scripts(), setuidRE().MatchString)
		}
		return false
	})
}

func checkInsecureBuild(s *subject) *hit {
	return s.instructionsHit(func(in instruction) bool {
		return in.name == "RUN" && slices.ContainsFunc(in.flags, func(f string) bool {
			f = strings.ToLower(f)
			return f == "--security=insecure" || f == "--network=host"
		})
	})
}

func checkBuildSecret(s *subject) *hit {
	return s.instructionsHit(func(in instruction) bool {
		return in.name == "RUN" && slices.ContainsFunc(in.flags, func(f string) bool {
			options, ok := strings.CutPrefix(f, "--mount=")
			return ok && slices.ContainsFunc(strings.Split(options, ","), func(o string) bool { return o == "type=ssh" || o == "type=secret" })
		})
	})
}

// officialFrontend is the builder's own.
var officialFrontend = lazy.Regexp(`^(?:docker\.io/)?docker/dockerfile(?::[^/]*)?(?:@sha256:[0-9a-f]{64})?$`)

func checkFrontend(s *subject) *hit {
	x := s.want.syntax
	if x == "" || officialFrontend().MatchString(x) || s.now != nil && s.now.syntax == x {
		return nil
	}
	return &hit{evidence: []string{"syntax=" + x}}
}

var (
	secretNameRE = lazy.Regexp(`(?i)(?:^|_)(?:api_?key|access_?key|secret_?key|private_?key|auth_?key|credentials?|passw(?:or)?d|pword|passphrase|secrets?|tokens?|auth)(?:_|$)|(?:token|secret|password|apikey)$`)
	harmlessRE   = lazy.Regexp(`(?i)public|_(?:file|path|dir|url|sock|name|id|type|ttl)$`)
	secretRE     = lazy.Regexp(`gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,}|\bsk-[A-Za-z0-9_-]{20,}|` +
		`xox[abeoprs]-[A-Za-z0-9-]{10,}|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|AIza[A-Za-z0-9_-]{35}|npm_[A-Za-z0-9]{30,}|pypi-AgEI[A-Za-z0-9_-]+|hf_[A-Za-z0-9]{30,}|` +
		`\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]+|-----BEGIN [A-Z ]*PRIVATE KEY|[a-z]://[^/\s:@]+:[^/\s:@$]+@`)
)

// checkSecretInEnv names the variable and leaves its value out. An ARG counts without a value too: what is
// given to the build stays in the image's history.
func checkSecretInEnv(s *subject) *hit {
	var ev []string
	for in := range s.added {
		if in.name != "ENV" && in.name != "ARG" {
			continue
		}
		for _, a := range s.want.assignments(in) {
			a.name, a.value = s.want.bare(a.name), s.want.bare(a.value)
			named := secretNameRE().MatchString(a.name) && !harmlessRE().MatchString(a.name) && (a.value != "" || in.name == "ARG" && !a.set)
			if named || secretRE().MatchString(a.value) {
				ev = append(ev, fmt.Sprintf("line %d: %s %s", in.line, in.name, a.name))
			}
		}
	}
	if ev == nil {
		return nil
	}
	return &hit{evidence: ev}
}

func checkBaseImage(s *subject) *hit {
	if s.now == nil {
		return nil
	}
	was := s.now.images()
	had := map[string]bool{}
	for _, ref := range was {
		had[ref] = true
	}
	var ev []string
	for _, ref := range s.want.images() {
		if !had[ref] {
			ev = append(ev, ref)
		}
	}
	if ev == nil {
		return nil
	}
	if len(was) > 0 {
		ev[len(ev)-1] += " (was " + strings.Join(was, ", ") + ")"
	}
	return &hit{evidence: ev}
}

func checkUnpinned(s *subject) *hit {
	var ev []string
	loose := false
	for _, ref := range s.want.images() {
		if strings.Contains(ref, "@sha256:") {
			continue
		}
		tag := ref[strings.LastIndexByte(ref, '/')+1:]
		_, t, ok := strings.Cut(tag, ":")
		loose = loose || t == "latest" || !ok && !strings.Contains(ref, "$")
		ev = append(ev, ref)
	}
	if ev == nil {
		return nil
	}
	h := &hit{evidence: ev}
	if loose {
		h.text = "An image that the build starts from has no tag or the tag latest, and no digest, so another one may be used each time."
	}
	return h
}

func checkDropped(s *subject) *hit {
	if s.now == nil {
		return nil
	}
	kept := map[string]int{}
	for _, in := range s.want.instructions {
		kept[in.key()]++
	}
	var ev []string
	for _, in := range s.now.instructions {
		if in.name == "FROM" {
			continue // base-image says it
		}
		if k := in.key(); kept[k] > 0 {
			kept[k]--
		} else {
			ev = append(ev, in.text())
		}
	}
	switch len(ev) {
	case 0:
		return nil
	case 1:
		return &hit{text: "One instruction of the current Dockerfile is gone or changed.", evidence: ev}
	}
	return &hit{text: fmt.Sprintf("%d instructions of the current Dockerfile are gone or changed.", len(ev)), evidence: ev}
}
