package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"gopkg.in/yaml.v3"

	"github.com/bot-bottle/supervise/internal/lazy"
	"github.com/bot-bottle/supervise/internal/yamlerr"
)

// mistake is an error at a line of the file.
type mistake struct {
	file string
	line int
	text string
}

func (m mistake) Error() string { return fmt.Sprintf("%s:%d: %s", m.file, m.line, m.text) }

// parser walks supervise.yaml. Each section has a method that knows its keys; a new section is one more method and one
// more line in top.
type parser struct {
	file     string // as it was named, for errors
	dir      string // of the file: what relative paths are relative to
	home     string
	mistakes []mistake
}

// ParseHost reads the text of a supervise.yaml that stands at path.
func ParseHost(data []byte, path, home string) (Host, error) {
	p := &parser{file: path, dir: filepath.Dir(path), home: home}
	h := Host{File: path}
	if n := p.document(data); n != nil {
		p.top(n, &h)
	}
	if len(p.mistakes) > 0 {
		return Host{}, byLine(p.mistakes)
	}
	return h, nil
}

func (p *parser) bad(n *yaml.Node, format string, args ...any) {
	p.mistakes = append(p.mistakes, mistake{p.file, n.Line, fmt.Sprintf(format, args...)})
}

func (p *parser) document(data []byte) *yaml.Node {
	fail := func(line int, text string) *yaml.Node {
		p.mistakes = append(p.mistakes, mistake{p.file, line, text})
		return nil
	}
	if len(data) > maxHost {
		return fail(1, fmt.Sprintf("the file is over the limit of %d bytes", maxHost))
	}
	if !utf8.Valid(data) {
		return fail(1, "the file is not UTF-8")
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var n, second yaml.Node
	err := dec.Decode(&n)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err == nil {
		if err = dec.Decode(&second); err == nil {
			return fail(second.Line, "a second document; there must be one")
		}
	}
	if !errors.Is(err, io.EOF) {
		line, text := yamlerr.Split(err)
		if ls := strings.Split(string(data), "\n"); line <= len(ls) && strings.Contains(ls[line-1], "{slug}") {
			text += `; inside {…} or […] a value with {slug} must be in quotes: "a/{slug}/b"`
		}
		return fail(line, text)
	}
	return n.Content[0]
}

type key struct {
	name string
	read func(n *yaml.Node)
}

// mapping reads the keys of n, in the order of the file. What is null is left alone. Where names the mapping in errors.
func (p *parser) mapping(n *yaml.Node, where string, keys ...key) {
	n = follow(n)
	if null(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		p.bad(n, "%s must be a mapping", where)
		return
	}
	var known []string
	for _, k := range keys {
		known = append(known, k.name)
	}
	seen := make(map[string]bool)
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := n.Content[i], follow(n.Content[i+1])
		at := slices.Index(known, name.Value)
		switch {
		case name.Kind != yaml.ScalarNode:
			p.bad(name, "a key of %s must be a string", where)
		case seen[name.Value]:
			p.bad(name, "key %.80q is there twice in %s", name.Value, where)
		case at < 0 && near(name.Value, known) != "":
			p.bad(name, "unknown key %.80q in %s; did you mean %s?", name.Value, where, near(name.Value, known))
		case at < 0:
			p.bad(name, "unknown key %.80q in %s; known are %s", name.Value, where, strings.Join(known, ", "))
		default:
			keys[at].read(value)
		}
		seen[name.Value] = true
	}
}

func follow(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode && n.Alias != nil {
		return n.Alias
	}
	return n
}

func null(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

func (p *parser) top(n *yaml.Node, h *Host) {
	var defaults, bottles *yaml.Node
	p.mapping(n, "the file",
		key{"root", func(n *yaml.Node) { p.path(n, "root", &h.Root, false) }},
		key{"defaults", func(n *yaml.Node) { defaults = n; p.bottle(n, "defaults", &h.Defaults) }},
		key{"bottles", func(n *yaml.Node) { bottles = n }},
		key{"notify", func(n *yaml.Node) { p.notify(n, &h.Notify) }},
	)
	if bottles != nil && !null(bottles) { // they are read last, over the defaults
		p.bottles(bottles, h)
	}
	if defaults != nil && len(p.mistakes) == 0 {
		p.unused(defaults, h)
	}
}

// target is one of a bottle's, as far as it matters whether it can be managed.
type target struct {
	name        string
	there, lost bool // it is not left out; it is not, but has no file
	example     string
}

func targets(b Bottle) []target {
	e, l, c := b.Egress, b.Pipelock, b.Capability
	return []target{
		{name: "egress", there: e != nil, lost: e != nil && e.File == "", example: "egress/routes.yaml"},
		{name: "pipelock", there: l != nil, lost: l != nil && l.File == "", example: "pipelock/pipelock.yaml"},
		{name: "capability", there: c != nil, lost: c != nil && c.File == "", example: "Dockerfile"},
	}
}

// unused tells of defaults without a file that no bottle gives one: they would do nothing, and look as if they did.
func (p *parser) unused(n *yaml.Node, h *Host) {
	for i, t := range targets(h.Defaults) {
		used := false
		for _, b := range h.Bottles {
			used = used || targets(b)[i].there // and not lost: that is a mistake of its own
		}
		if !t.lost || used {
			continue
		}
		at := n
		for j := 0; j+1 < len(n.Content); j += 2 {
			if n.Content[j].Value == t.name {
				at = n.Content[j]
			}
		}
		p.bad(at, "defaults.%s has no file, and no bottle gives it one: add file, such as ~/bottles/{slug}/%s, or leave %s out", t.name, t.example, t.name)
	}
}

func (p *parser) bottles(bottles *yaml.Node, h *Host) {
	if bottles.Kind != yaml.MappingNode {
		p.bad(bottles, "bottles must be a mapping of slugs")
		return
	}
	h.Bottles = make(map[string]Bottle)
	for i := 0; i+1 < len(bottles.Content); i += 2 {
		slug := bottles.Content[i]
		if slug.Kind != yaml.ScalarNode || !isSlug(slug.Value) {
			p.bad(slug, "bottle slug %.80q must match [a-z0-9][a-z0-9-]{0,62}", slug.Value)
			continue
		}
		if _, dup := h.Bottles[slug.Value]; dup {
			p.bad(slug, "bottle %s is there twice", slug.Value)
			continue
		}
		b := h.Defaults.clone()
		where := "bottles." + slug.Value
		p.bottle(bottles.Content[i+1], where, &b)
		for _, t := range targets(b) {
			if t.lost {
				p.bad(slug, "%s.%s has no file, here or in defaults", where, t.name)
			}
		}
		h.Bottles[slug.Value] = b
	}
}

// bottle reads the given keys over b. A target that is null is not managed, whatever the defaults say.
func (p *parser) bottle(n *yaml.Node, where string, b *Bottle) {
	p.mapping(n, where,
		key{"egress", func(n *yaml.Node) { section(p, n, where+".egress", &b.Egress, p.egress) }},
		key{"pipelock", func(n *yaml.Node) { section(p, n, where+".pipelock", &b.Pipelock, p.pipelock) }},
		key{"capability", func(n *yaml.Node) { section(p, n, where+".capability", &b.Capability, p.capability) }},
	)
}

func section[T any](p *parser, n *yaml.Node, where string, to **T, read func(*yaml.Node, string, *T)) {
	if null(n) {
		*to = nil
		return
	}
	if *to == nil {
		*to = new(T)
	}
	read(n, where, *to)
}

func (p *parser) egress(n *yaml.Node, where string, e *Egress) {
	p.mapping(n, where,
		key{"file", func(n *yaml.Node) { p.path(n, where+".file", &e.File, true) }},
		key{"reload", func(n *yaml.Node) { p.reload(n, where+".reload", &e.Reload) }},
		key{"allowlist_url", func(n *yaml.Node) { p.url(n, where+".allowlist_url", &e.AllowlistURL) }},
		key{"proxy", func(n *yaml.Node) { p.url(n, where+".proxy", &e.Proxy) }},
	)
}

func (p *parser) pipelock(n *yaml.Node, where string, l *Pipelock) {
	p.mapping(n, where,
		key{"file", func(n *yaml.Node) { p.path(n, where+".file", &l.File, true) }},
		key{"reload", func(n *yaml.Node) { p.reload(n, where+".reload", &l.Reload) }},
		key{"check", func(n *yaml.Node) {
			p.argv(n, where+".check", &l.Check)
			if len(l.Check) > 0 && !slices.ContainsFunc(l.Check, func(a string) bool { return strings.Contains(a, "{file}") }) {
				p.bad(n, `%s must have an argument "{file}", which stands for the candidate`, where+".check")
			}
		}},
	)
}

func (p *parser) capability(n *yaml.Node, where string, c *Capability) {
	p.mapping(n, where,
		key{"file", func(n *yaml.Node) { p.path(n, where+".file", &c.File, true) }},
		key{"build", func(n *yaml.Node) { p.argv(n, where+".build", &c.Build) }},
		key{"replace", func(n *yaml.Node) { p.argv(n, where+".replace", &c.Replace) }},
	)
}

func (p *parser) notify(n *yaml.Node, to *Notify) {
	p.mapping(n, "notify",
		key{"bell", func(n *yaml.Node) {
			if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!bool" {
				p.bad(n, "notify.bell must be true or false")
				return
			}
			to.Bell = new(strings.EqualFold(n.Value, "true"))
		}},
		key{"exec", func(n *yaml.Node) { p.argv(n, "notify.exec", &to.Exec) }},
		key{"webhook", func(n *yaml.Node) { section(p, n, "notify.webhook", &to.Webhook, p.webhook) }},
		key{"remind_after", func(n *yaml.Node) {
			d, err := time.ParseDuration(n.Value)
			if n.Kind != yaml.ScalarNode || err != nil || d < time.Minute {
				p.bad(n, "notify.remind_after %.40q must be a time of a minute or more, such as 15m or 2h", n.Value)
			}
			to.RemindAfter = d
		}},
	)
}

func (p *parser) webhook(n *yaml.Node, where string, w *Webhook) {
	before := len(p.mistakes)
	p.mapping(n, where,
		key{"url", func(n *yaml.Node) { p.url(n, where+".url", &w.URL) }},
		key{"secret_file", func(n *yaml.Node) { p.path(n, where+".secret_file", &w.SecretFile, false) }},
	)
	if w.URL == "" && len(p.mistakes) == before {
		p.bad(n, "%s has no url", where)
	}
}

const reloadForms = `none, {signal: {pid: N}}, {signal: {pid_file: PATH}}, {docker: NAME}, {podman: NAME} or {exec: [COMMAND, …]}`

func (p *parser) reload(n *yaml.Node, where string, r *Reload) {
	*r = Reload{}
	if n.Kind == yaml.ScalarNode && (n.Value == "none" || null(n)) {
		return
	}
	if n.Kind != yaml.MappingNode || len(n.Content) != 2 {
		have := ""
		if n.Kind == yaml.ScalarNode {
			have = fmt.Sprintf(" %.40q", n.Value)
		}
		p.bad(n, "%s%s must be one of %s", where, have, reloadForms)
		return
	}
	engine := func(name string) func(*yaml.Node) {
		return func(n *yaml.Node) {
			r.Engine = name
			if p.str(n, where+"."+name, &r.Name) && (r.Name == "" || strings.HasPrefix(r.Name, "-")) {
				p.bad(n, "%s.%s must be a container's name", where, name)
			}
		}
	}
	p.mapping(n, where,
		key{"signal", func(n *yaml.Node) {
			if n.Kind != yaml.MappingNode || len(n.Content) != 2 {
				p.bad(n, "%s.signal must be {pid: N} or {pid_file: PATH}", where)
				return
			}
			p.mapping(n, where+".signal",
				key{"pid", func(n *yaml.Node) {
					pid, err := strconv.ParseInt(n.Value, 10, 32)
					if n.Kind != yaml.ScalarNode || err != nil || pid <= 1 {
						p.bad(n, "%s.signal.pid %.40q must be the number of a process above 1", where, n.Value)
					}
					r.PID = int(pid)
				}},
				key{"pid_file", func(n *yaml.Node) { p.path(n, where+".signal.pid_file", &r.PIDFile, true) }},
			)
		}},
		key{"docker", engine("docker")},
		key{"podman", engine("podman")},
		key{"exec", func(n *yaml.Node) { p.argv(n, where+".exec", &r.Exec) }},
	)
}

func (p *parser) str(n *yaml.Node, where string, to *string) bool {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
		p.bad(n, "%s must be a string", where)
		return false
	}
	if strings.ContainsRune(n.Value, 0) {
		p.bad(n, "%s must not contain a zero byte", where)
		return false
	}
	*to = n.Value
	return true
}

var placeholder = lazy.Regexp(`\{[A-Za-z_]*\}`)

// path reads a path and makes it absolute. With slugs it may hold {slug}.
func (p *parser) path(n *yaml.Node, where string, to *string, slugs bool) {
	if !p.str(n, where, to) {
		return
	}
	s := *to
	if s == "" {
		p.bad(n, "%s must be a path", where)
		return
	}
	for _, ph := range placeholder().FindAllString(s, -1) {
		if ph != "{slug}" || !slugs {
			known := "none is known here"
			if slugs {
				known = "known is {slug}"
			}
			p.bad(n, "%s: unknown placeholder %.40s; %s", where, ph, known)
			return
		}
	}
	s, ok := p.tilde(n, where, s)
	if !ok {
		return
	}
	if !filepath.IsAbs(s) {
		s = filepath.Join(p.dir, s)
	}
	*to = filepath.Clean(s)
}

// tilde replaces a leading ~.
func (p *parser) tilde(n *yaml.Node, where, s string) (string, bool) {
	if s != "~" && !strings.HasPrefix(s, "~/") {
		if strings.HasPrefix(s, "~") {
			p.bad(n, "%s %.80q: another user's home directory must be written out", where, s)
			return s, false
		}
		return s, true
	}
	if !filepath.IsAbs(p.home) {
		p.bad(n, "%s %.80q: HOME is not set, so the path must be written out", where, s)
		return s, false
	}
	return p.home + s[1:], true
}

func (p *parser) url(n *yaml.Node, where string, to *string) {
	if !p.str(n, where, to) {
		return
	}
	u, err := url.Parse(strings.ReplaceAll(*to, "{slug}", "slug"))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		p.bad(n, "%s %.200q must be an http or https URL", where, *to)
	}
}

// argv reads a command, which no shell sees. A leading ~/ of an argument is the home directory, as in a shell.
func (p *parser) argv(n *yaml.Node, where string, to *[]string) {
	*to = nil
	if null(n) {
		return
	}
	if n.Kind != yaml.SequenceNode || len(n.Content) == 0 {
		p.bad(n, "%s must be a list: the command and its arguments", where)
		return
	}
	for i, c := range n.Content {
		var s string
		if !p.str(follow(c), fmt.Sprintf("%s[%d]", where, i), &s) {
			continue
		}
		if i == 0 && s == "" {
			p.bad(c, "%s[0] must be a command", where)
		}
		if strings.HasPrefix(s, "~/") {
			s, _ = p.tilde(c, where, s)
		}
		*to = append(*to, s)
	}
}
