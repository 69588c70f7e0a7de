package web

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"html/template"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/internal/safetext"
	"github.com/bot-bottle/supervise/queue"
)

//go:embed templates
var templateFiles embed.FS

//go:embed assets
var assetFiles embed.FS

// assets are served under the hash of their content, so that a browser may keep them.
var assets = map[string]asset{"app.css": loadAsset("app.css", "text/css; charset=utf-8"), "app.js": loadAsset("app.js", "text/javascript; charset=utf-8")}

type asset struct {
	data []byte
	kind string
	hash string
}

func loadAsset(name, kind string) asset {
	data, err := assetFiles.ReadFile("assets/" + name)
	if err != nil {
		panic(err) // embedded
	}
	h := sha256.Sum256(data)
	return asset{data, kind, hex.EncodeToString(h[:6])}
}

func (s *Server) getAsset(w http.ResponseWriter, r *http.Request) {
	a, ok := assets[r.PathValue("name")]
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", a.kind)
	if r.URL.Query().Get("v") == a.hash {
		w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	_, _ = w.Write(a.data) // whoever hung up
}

// getFavicon counts what waits. The number is the asker's own, so no session is needed.
func (s *Server) getFavicon(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.Atoi(r.URL.Query().Get("n"))
	if err != nil || n < 0 {
		n = 0
	}
	w.Header().Set("Content-Type", "image/svg+xml")
	w.Header().Set("Cache-Control", "public, max-age=86400")
	fill, text, size := "#5b6675", "", 20
	if n > 0 {
		fill, text = "#b25000", strconv.Itoa(n)
	}
	if n > 99 {
		text, size = "99+", 15
	}
	fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><path d="M12 1h8v7l7 8v12a3 3 0 0 1-3 3H8a3 3 0 0 1-3-3V16l7-8z" fill="%s"/><text x="16" y="27" font-family="sans-serif" font-weight="700" font-size="%d" fill="#fff" text-anchor="middle">%s</text></svg>`, fill, size, text)
}

// page is what every page has.
type page struct {
	Title   string
	Section string // of the navigation
	Open    int    // how many wait; -1: not known
	In      bool   // signed in
	Rev     string // of the board that the page shows; "": its script had better look again
	NoFresh bool   // without script the page does not load itself again: somebody types there
}

func (s *Server) page(r *http.Request, title, section string) page {
	p := page{Title: title, Section: section, In: true, Open: -1, NoFresh: true}
	if v, err := s.board.get(r.Context()); err == nil {
		p.Open = summarize(v).Open
	}
	return p
}

// pages are parsed when the first desk is made: other commands need none.
var pages = sync.OnceValue(func() map[string]*template.Template {
	pages := map[string]*template.Template{}
	funcs := template.FuncMap{
		"age": age, "secs": func(d time.Duration) int64 { return int64(max(d, 0) / time.Second) }, "when": when, "iso": func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
		"line": line, "lines": lines, "shown": func(u safetext.Untrusted) string { return shown(u.String()) }, "host": func(h safetext.Untrusted) string { return safetext.Host(h.Raw()) }, "path": proposalPath, "bottle": bottlePath,
		"asset": func(name string) string { return "/assets/" + name + "?v=" + assets[name].hash },
		"ends":  ends, "agent": agent, "outcome": outcomeText, "happened": happened, "short": shortID, "join": strings.Join, "tool": toolWord,
		"failed": func(p *operator.Preview) alert {
			return alert{Level: "danger", Title: "The last attempt did not hold, and it is open again", Text: p.Error}
		},
		"stuck": func(p *operator.Preview) alert {
			return alert{Level: "danger", Title: "This is stuck and wants your eyes", Text: p.Error}
		},
		"blocked": func(p *operator.Preview) alert {
			return alert{Level: "warn", Title: "This cannot be approved", Text: p.Blocked}
		},
		"entrydiff": func(t operator.RecordTarget) diff { return diffOf(t.EntryBefore.Raw(), t.EntryAfter.Raw()) },
	}
	base := template.Must(template.New("layout.html").Funcs(funcs).ParseFS(templateFiles, "templates/layout.html", "templates/parts.html"))
	for _, name := range []string{"signin", "link", "error", "inbox", "proposal", "edit", "review", "history", "ledger", "bottles", "bottle"} {
		pages[name] = template.Must(template.Must(base.Clone()).ParseFS(templateFiles, "templates/"+name+".html"))
	}
	return pages
})

func (s *Server) render(w http.ResponseWriter, r *http.Request, status int, name string, data any) {
	var b bytes.Buffer
	if err := pages()[name].ExecuteTemplate(&b, "layout.html", data); err != nil {
		s.log.Error("rendering", "page", name, "err", err)
		http.Error(w, "this page cannot be shown; the log has the reason", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes()) // whoever hung up
}

type alert struct {
	Level string // "danger", "warn", "ok" or "note"
	Title string
	Text  string // escaped; may have several lines
	Pre   string // escaped: output of a build
	Diff  *diff  // what is different now
}

func (s *Server) fail(w http.ResponseWriter, r *http.Request, status int, title, text string) {
	p := page{Title: title, Open: -1, NoFresh: true, In: sessionOf(r) != nil}
	s.render(w, r, status, "error", struct {
		page
		Alert alert
	}{p, alert{Level: "danger", Title: title, Text: text}})
}

// broken answers for an error that no page has a place for.
func (s *Server) broken(w http.ResponseWriter, r *http.Request, err error) {
	status, a := explain(err)
	if status == http.StatusInternalServerError {
		s.log.Error("answering", "path", r.Pattern, "err", fmt.Sprintf("%.500v", err))
	}
	s.fail(w, r, status, a.Title, a.Text)
}

// parse reads a form.
func (s *Server) parse(w http.ResponseWriter, r *http.Request) bool {
	err := r.ParseForm()
	if err == nil {
		return true
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		s.fail(w, r, http.StatusRequestEntityTooLarge, "The form is too big", fmt.Sprintf("At most %d bytes are read.", maxBody))
		return false
	}
	s.fail(w, r, http.StatusBadRequest, "The form cannot be read", safetext.Block(err.Error()))
	return false
}

func proposalPath(ref operator.Ref) string {
	return "/p/" + url.PathEscape(ref.Bottle) + "/" + url.PathEscape(string(ref.ID))
}

func bottlePath(slug string) string { return "/b/" + url.PathEscape(slug) }

// line shows one line of whatever type, escaped and cut.
func line(max int, v any) string {
	switch v := v.(type) {
	case safetext.Untrusted:
		return safetext.Spaces(v.Line(max))
	case string:
		return safetext.Spaces(safetext.Line(v, max))
	}
	return safetext.Spaces(safetext.Line(fmt.Sprint(v), max))
}

// parted is a bottle's name in two parts, of which the first gives way where there is no room for both.
type parted struct{ Name, Start, End string }

// ends parts a name that may not fit: names that belong together begin alike.
func ends(slug string) parted {
	const short, end = 12, 8
	if len(slug) <= short {
		return parted{slug, slug, ""}
	}
	return parted{slug, slug[:len(slug)-end], slug[len(slug)-end:]}
}

// shown is one escaped line as a row of text that keeps spaces, of which very many would look like the end of it.
func shown(line string) string {
	wide := safetext.Untab(line, 4, utf8.RuneCountInString)
	if few := safetext.Spaces(wide); few != wide {
		return few
	}
	return line
}

// lines are those of escaped text, each as it is shown.
func lines(text string) []string {
	out := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for i, l := range out {
		out[i] = shown(l)
	}
	return out
}

// age is a duration as people say it.
func age(d time.Duration) string {
	d = max(d, 0)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

func seconds(d time.Duration) string { return strconv.Itoa(int(math.Ceil(d.Seconds()))) }

func when(t time.Time) string {
	if t.IsZero() {
		return "unknown"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

func shortID(id queue.ID) string {
	s := safetext.Line(string(id), 36)
	if len(s) == 36 {
		return s[:13]
	}
	return s
}

func toolWord(tool string) string {
	switch tool {
	case payload.Egress:
		return "egress"
	case payload.Pipelock:
		return "pipelock"
	case payload.Capability:
		return "Dockerfile"
	}
	return safetext.Line(tool, 40)
}

func agent(c operator.Connected) string {
	switch c {
	case operator.Waiting:
		return "The agent is waiting for the answer."
	case operator.Away:
		return "The agent is not waiting at the moment; it gets the answer when it asks again."
	}
	return "No sidecar was heard of for 90 s; the agent gets the answer when it asks again."
}

func outcomeText(o queue.Outcome) string {
	switch o {
	case "":
		return ""
	case queue.Live:
		return "Live: the change is made and was seen in force."
	case queue.Built:
		return "Built: the image is built. It takes effect when the bottle is started from it."
	case queue.Unchanged:
		return "Unchanged: it was allowed already."
	case queue.Unverified:
		return "Unverified: the change was not seen in force. Check that it works."
	case queue.Acknowledged:
		return "Acknowledged: recorded; nothing was rebuilt."
	}
	return safetext.Line(string(o), 40)
}

// happened is one ledger line's event in a word or two.
func happened(e operator.LedgerEntry) string {
	switch e.Event {
	case operator.EventDecided:
		return safetext.Line(string(e.Status), 40)
	case operator.EventApplied:
		if e.Status == queue.Rejected || e.Outcome == "" {
			return "applied"
		}
		return "applied: " + safetext.Line(string(e.Outcome), 40)
	case operator.EventNotReplaced:
		return "not replaced: " + safetext.Line(string(e.Outcome), 40)
	case operator.EventForeign:
		return safetext.Line(string(e.Status), 40) + " elsewhere"
	}
	return safetext.Line(e.Event, 40)
}
