package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/internal/safetext"
	"github.com/bot-bottle/supervise/queue"
)

func newList(a *app) *cobra.Command {
	var all bool
	var bottle string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "What is open in every bottle",
		Long: `What is open in every bottle: stuck changes first, then in the order first seen.

AGENT is who waits for the answer: waiting (at least one call), away (the sidecar runs,
nobody waits), unknown (no sidecar was heard of for 90 s). Proposals whose agent has been
gone for 72 hours are only counted; --all shows them.

What cannot be read is told on stderr. When nothing is open besides, that may be all there
is to decide: exit code 1.`,
		Example: `  supervise list
  supervise list --bottle web --all
  supervise list --json | jq -r '.items[].id'`,
		Args: args(0, 0),
		RunE: a.withReadDesk(func(cmd *cobra.Command, d *desk, _ []string) error {
			s, err := d.Snapshot(cmd.Context())
			if err != nil {
				return err
			}
			if bottle != "" {
				if err := only(s, bottle); err != nil {
					return err
				}
			}
			return a.list(d, s, all)
		}),
	}
	a.deskFlags(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "show abandoned proposals too")
	cmd.Flags().StringVar(&bottle, "bottle", "", "only of the bottle with this `slug`")
	must(cmd.RegisterFlagCompletionFunc("bottle", a.completeBottles))
	return cmd
}

// only drops everything but one bottle's.
func only(s *operator.Snapshot, bottle string) error {
	if err := queue.CheckSlug(bottle); err != nil {
		return usagef("", "--bottle: %v", err)
	}
	one := operator.Snapshot{Items: []operator.Item{}, Problems: []operator.Problem{}, Bottles: []string{}}
	for _, b := range s.Bottles {
		if b == bottle {
			one.Bottles = append(one.Bottles, b)
		}
	}
	if len(one.Bottles) == 0 {
		return noBottle(bottle, s.Bottles)
	}
	for _, it := range s.Items {
		if it.Bottle == bottle {
			one.Items = append(one.Items, it)
		}
	}
	for _, p := range s.Problems {
		if p.Bottle == bottle {
			one.Problems = append(one.Problems, p)
		}
	}
	*s = one
	return nil
}

func noBottle(bottle string, have []string) error {
	err := fmt.Errorf("bottle %s has no mailbox", bottle)
	if len(have) == 0 {
		return hint(err, "no bottle has one; a sidecar makes its own when it starts")
	}
	return hint(err, "the bottles are %s", strings.Join(have, ", "))
}

// listJSON is what list --json prints.
type listJSON struct {
	Root string `json:"root"`
	*operator.Snapshot
}

func (a *app) list(d *desk, s *operator.Snapshot, all bool) error {
	if a.json {
		for i := range s.Items {
			fill(&s.Items[i])
		}
		if s.Bottles == nil {
			s.Bottles = []string{}
		}
		if err := a.printJSON(listJSON{d.root, s}); err != nil || len(s.Items) > 0 {
			return err
		}
		return unread(s.Problems)
	}
	for _, p := range alike(s.Problems) {
		a.say("mailbox %s", p)
	}
	t := table{style: a.style, head: []string{"ID", "BOTTLE", "TOOL", "AGE", "AGENT", "ASKS TO"}, middle: 1}
	folded := 0
	shorts := shortIDs(s.Items)
	for i, it := range s.Items {
		if it.Abandoned && !all {
			folded++
			continue
		}
		t.rows = append(t.rows, a.itemRow(it, shorts[i]))
	}
	switch {
	case len(t.rows) > 0:
		if err := a.printf("%s", t.String()); err != nil {
			return err
		}
	case folded == 0 && unread(s.Problems) != nil:
		return unread(s.Problems)
	case len(s.Bottles) == 0:
		if err := a.printf("Nothing to decide, and no bottle has a mailbox under %s yet.\n", d.root); err != nil {
			return err
		}
	default:
		if err := a.printf("Nothing to decide. Looked at %s under %s.\n", count(len(s.Bottles), "bottle"), d.root); err != nil {
			return err
		}
		if !used(d.root, s.Bottles) {
			a.say("no sidecar has ever used one of these directories: is this where the mailboxes are?")
		}
	}
	if len(t.rows) == 0 && d.without != "" {
		if err := a.printf("%s\n", a.style.dim("There is "+d.without+"; --config names one.")); err != nil {
			return err
		}
	}
	if folded > 0 {
		return a.printf("%s\n", a.style.dim(fmt.Sprintf("%s not shown, since nobody has waited for 72 hours: supervise list --all%s", count(folded, "abandoned proposal"), a.again())))
	}
	return nil
}

// used tells whether one of the directories was ever a mailbox: a sidecar leaves its lock, or at least an archive.
func used(root string, bottles []string) bool {
	return slices.ContainsFunc(bottles, func(slug string) bool {
		return slices.ContainsFunc([]string{".lock", "processed"}, func(name string) bool {
			_, err := os.Lstat(filepath.Join(root, slug, name))
			return err == nil
		})
	})
}

// unread is the error of an inbox that looks empty and may not be: nil if all that matters could be read.
func unread(problems []operator.Problem) error {
	files, mailboxes := 0, map[string]bool{}
	for _, p := range problems {
		switch {
		case p.Aside:
		case p.More > 0:
			files += p.More
		case p.Name == "":
			mailboxes[p.Bottle] = true
		default:
			files++
		}
	}
	var what []string
	if files > 0 {
		what = append(what, count(files, "file"))
	}
	if n := len(mailboxes); n == 1 {
		what = append(what, "1 mailbox")
	} else if n > 1 {
		what = append(what, fmt.Sprintf("%d mailboxes", n))
	}
	if len(what) == 0 {
		return nil
	}
	return hint(fmt.Errorf("nothing to show, but %s could not be read", strings.Join(what, " and ")),
		"a bottle's sidecar and its operator need one uid, or a shared group; what is no proposal can be moved away")
}

// alike tells of problems, those of one bottle that differ only in the file's name in one line.
func alike(problems []operator.Problem) []string {
	type kind struct {
		bottle string
		text   safetext.Untrusted
	}
	var order []kind
	of := map[kind][]operator.Problem{}
	for _, p := range problems {
		k := kind{p.Bottle, p.Text}
		if of[k] == nil {
			order = append(order, k)
		}
		of[k] = append(of[k], p)
	}
	var out []string
	for _, k := range order {
		more := ""
		if n := len(of[k]); n > 1 {
			more = fmt.Sprintf(" and %d more", n-1)
		}
		out = append(out, where(of[k][0])+more+": "+k.text.Line(300))
	}
	return out
}

// where names what a problem is about.
func where(p operator.Problem) string {
	if p.Bottle == "" || p.Name == "" {
		return p.Bottle + p.Name.Line(80)
	}
	return p.Bottle + "/" + p.Name.Line(80)
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func (a *app) itemRow(it operator.Item, short string) row {
	r := row{cells: []string{short, it.Bottle, safetext.Line(it.Tool, 20), age(it.Age), string(it.Connected), it.Summary.Line(300)}}
	switch it.State {
	case operator.Stuck, operator.Failed, operator.Bad:
		r.under = append(r.under, a.style.warn(strings.ToUpper(string(it.State))+": ")+escapeCut(firstLine(it.Error), 300))
	case operator.Deciding:
		r.under = append(r.under, a.style.dim("being decided at this moment"))
	}
	if it.Blocked != "" {
		r.under = append(r.under, a.style.warn("CANNOT BE APPROVED: ")+escapeCut(firstLine(it.Blocked), 300))
	}
	if len(it.Unmanaged) > 0 {
		r.under = append(r.under, a.style.dim(fmt.Sprintf("not managed here, to be done by hand: %s", join(it.Unmanaged))))
	}
	if f := a.findingCodes(it.Findings); f != "" {
		r.under = append(r.under, f)
	}
	if it.Retry != nil {
		r.under = append(r.under, a.style.dim("asked before: ")+earlier(it.Retry))
	}
	if it.Abandoned {
		r.paint = a.style.dim
	}
	return r
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}

func (a *app) findingCodes(findings []operator.Finding) string {
	var dangers, notes []string
	for _, f := range findings {
		if f.Level == operator.Danger {
			dangers = append(dangers, f.Code)
		} else {
			notes = append(notes, f.Code)
		}
	}
	var parts []string
	if len(dangers) > 0 {
		parts = append(parts, a.style.danger("DANGER: "+strings.Join(dangers, ", ")))
	}
	if len(notes) > 0 {
		parts = append(parts, a.style.dim("notes: "+strings.Join(notes, ", ")))
	}
	return strings.Join(parts, "; ")
}

func earlier(e *operator.Earlier) string {
	s := fmt.Sprintf("%s on %s", e.Status, when(e.At))
	if e.By != "" {
		s += " by " + escapeLine(e.By)
	}
	if e.Notes != "" {
		s += ": " + e.Notes.Line(200)
	}
	return s
}

// shortest is how much of an id is always shown. UUIDv7s begin with the time: these 13 characters are its
// milliseconds, so that what arrives later, or was decided before, seldom makes them ambiguous.
const shortest = 13

// shortIDs returns starts of ids that tell the items apart.
func shortIDs(items []operator.Item) []string {
	out := make([]string, len(items))
	for i, it := range items {
		id := string(it.ID)
		n := min(shortest, len(id))
		for j, other := range items {
			if j == i || other.ID == it.ID {
				continue
			}
			for n < len(id) && strings.HasPrefix(string(other.ID), id[:n]) {
				n++
			}
		}
		out[i] = id[:n]
	}
	return out
}

// fill makes absent lists empty ones, so that programs need not tell them apart.
func fill(it *operator.Item) {
	if it.Findings == nil {
		it.Findings = []operator.Finding{}
	}
}
