package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/supervise/internal/apply"
	"github.com/bot-bottle/supervise/internal/config"
	"github.com/bot-bottle/supervise/internal/operator"
	"github.com/bot-bottle/supervise/queue"
)

// desk is the operator's desk as a command uses it.
type desk struct {
	*operator.Desk
	root    string
	without string // where no configuration was found; "" when there is one
	inbox   queue.Inbox
	targets func(bottle string) config.Bottle
	named   []string // bottles that the configuration names
	notify  config.Notify
	dir     string // where the configuration's commands run
	scratch string // stands in for .desk, and goes with the command; "" when .desk is there
}

func (d *desk) Close() error {
	err := d.inbox.Close()
	if d.scratch != "" {
		err = errors.Join(err, os.RemoveAll(d.scratch))
	}
	return err
}

// Find is the desk's, and forgives the spaces of a paste. What an ambiguous start may mean is told with it.
func (d *desk) Find(ctx context.Context, id string) (operator.Ref, error) {
	ref, err := d.Desk.Find(ctx, strings.TrimSpace(id))
	if e, ok := errors.AsType[*operator.AmbiguousError](err); ok {
		return ref, hint(err, "type more of it:%s", d.candidates(ctx, e.Refs))
	}
	return ref, err
}

// candidates tells proposals apart, a line each.
func (d *desk) candidates(ctx context.Context, refs []operator.Ref) string {
	const most = 8
	items := make([]operator.Item, len(refs))
	bottles := map[queue.ID]int{}
	for i, ref := range refs {
		items[i].Ref = ref
		bottles[ref.ID]++
	}
	var b strings.Builder
	for i, short := range shortIDs(items) {
		if i == most {
			fmt.Fprintf(&b, "\nand %d more", len(refs)-most)
			break
		}
		ref := refs[i]
		if bottles[ref.ID] > 1 {
			short = ref.Bottle + "/" + short
		}
		fmt.Fprintf(&b, "\n%s  %s", short, ref.Bottle)
		if p, err := d.Show(ctx, ref, nil); err == nil {
			b.WriteString("  " + p.Summary.Line(100))
		}
	}
	return b.String()
}

// deskFlags gives a command what openDesk reads, and --json.
func (a *app) deskFlags(cmd *cobra.Command) {
	a.rootFlags(cmd)
	a.jsonFlag(cmd)
}

// rootFlags gives a command what openDesk reads.
func (a *app) rootFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.root, "root", "", "the mailboxes' `directory` (else SUPERVISE_ROOT, the configuration's root, the state directory)")
	cmd.Flags().StringVar(&a.config, "config", "", "the configuration `file` (else SUPERVISE_CONFIG, supervise.yaml in $XDG_CONFIG_HOME/supervise)")
	must(cmd.MarkFlagDirname("root"))
	must(cmd.MarkFlagFilename("config", "yaml", "yml"))
}

func must(err error) {
	if err != nil {
		panic(err) // a flag that we have just defined
	}
}

// withDesk opens the desk, recovers, runs f and closes it again.
func (a *app) withDesk(f func(cmd *cobra.Command, d *desk, args []string) error) func(*cobra.Command, []string) error {
	return a.with(a.openDesk, a.recover, f)
}

// withDeskAsLeft is withDesk without recovering first: what an interrupted command left to do may be just what is to be undone, or
// would bring back a bottle that is gone.
func (a *app) withDeskAsLeft(f func(cmd *cobra.Command, d *desk, args []string) error) func(*cobra.Command, []string) error {
	return a.with(a.openDesk, func(context.Context, *desk) error { return nil }, f)
}

// withReadDesk is withDesk for a command that decides nothing.
func (a *app) withReadDesk(f func(cmd *cobra.Command, d *desk, args []string) error) func(*cobra.Command, []string) error {
	return a.with(a.readDesk, a.recover, f)
}

func (a *app) with(open func() (*desk, error), first func(context.Context, *desk) error, f func(cmd *cobra.Command, d *desk, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) (err error) {
		d, err := open()
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, d.Close()) }()
		a.tellUnread(d)
		if err := first(cmd.Context(), d); err != nil {
			return err
		}
		return f(cmd, d, args)
	}
}

// openDesk is the desk of a command.
func (a *app) openDesk() (*desk, error) { return a.openDeskVia("cli") }

// openDeskVia is the desk of whatever decides. The ledger says via what was decided.
func (a *app) openDeskVia(via string) (*desk, error) { return a.deskIn(via, false) }

// readDesk is the desk of a command that decides nothing. In a directory that no desk was in and that has no mailbox, which
// may be a typing mistake, it leaves nothing behind.
func (a *app) readDesk() (*desk, error) { return a.deskIn("cli", true) }

// deskIn wires the desk of this host: configuration, mailboxes, and the hand that changes the targets.
func (a *app) deskIn(via string, reads bool) (_ *desk, err error) {
	host, err := config.LoadHost(a.config, a.env)
	if err != nil {
		return nil, hint(err, "docs/configuration.md describes supervise.yaml")
	}
	root, err := a.rootDir(host)
	if err != nil {
		return nil, err
	}
	dir, scratch := filepath.Join(root, ".desk"), ""
	if reads && untouched(root) {
		if scratch, err = os.MkdirTemp("", "supervise-desk-"); err != nil {
			return nil, err
		}
		dir = scratch
		defer func() {
			if err != nil {
				err = errors.Join(err, os.RemoveAll(scratch))
			}
		}()
	}
	hand, err := apply.New(apply.Options{Targets: host.For, LockDir: filepath.Join(dir, "locks"), Dir: host.Dir()})
	if err != nil {
		return nil, err
	}
	inbox, err := queue.OpenRoot(root, queue.RootOptions{})
	if err != nil {
		return nil, err
	}
	opts := operator.Options{Root: root, Dir: scratch, Inbox: inbox, Hand: hand, Via: via}
	if via != "tui" { // whose screen it would spoil
		opts.Waiting = func(text string) { a.say("%s", text) }
	}
	d, err := operator.New(opts)
	if err != nil {
		return nil, errors.Join(err, inbox.Close())
	}
	return &desk{Desk: d, root: root, without: a.without(host), inbox: inbox, targets: host.For, named: slices.Collect(maps.Keys(host.Bottles)), notify: host.Notify, dir: host.Dir(), scratch: scratch}, nil
}

// rootDir finds where the mailboxes are. A root that somebody named must be there; the default one is made.
func (a *app) rootDir(host config.Host) (string, error) {
	root, from := a.root, "--root"
	if root == "" {
		root, from = a.env("SUPERVISE_ROOT"), "SUPERVISE_ROOT"
	}
	if root == "" {
		root, from = host.Root, "root: in the configuration"
	}
	if root == "" {
		return a.defaultRoot()
	}
	root, err := filepath.Abs(root)
	if err != nil {
		return "", fmt.Errorf("%s %q: %w", from, root, err)
	}
	switch st, err := os.Stat(root); {
	case errors.Is(err, fs.ErrNotExist):
		return "", hint(fmt.Errorf("the mailboxes' root %s (from %s): %w", root, from, fs.ErrNotExist),
			"mkdir -p %s, or name another with --root", quote(root))
	case err != nil:
		return "", fmt.Errorf("the mailboxes' root (from %s): %w", from, err)
	case !st.IsDir():
		return "", hint(fmt.Errorf("the mailboxes' root %s (from %s) is not a directory", root, from),
			"it is the directory above the bottles' mailboxes")
	case isMailbox(root): // before anything of a desk is made in it
		return "", hint(fmt.Errorf("%s (from %s) is the mailbox of a bottle, not the mailboxes' root", root, from),
			"the root is the directory above, such as --root %s", quote(filepath.Dir(root)))
	}
	return root, nil
}

// isMailbox tells a directory that a sidecar keeps from one in which mailboxes are. A bottle may be called processed.
func isMailbox(dir string) bool {
	names := func(dir string) (own, proposals bool) {
		entries, _ := os.ReadDir(dir) // one that cannot be read is told of where it is needed
		for _, e := range entries {
			own = own || e.Name() == ".lock" || e.Name() == "presence.json"
			proposals = proposals || strings.HasSuffix(e.Name(), ".proposal.json")
		}
		return own, proposals
	}
	if own, proposals := names(dir); own || proposals {
		return true
	}
	own, proposals := names(filepath.Join(dir, "processed"))
	return proposals && !own
}

// untouched tells whether a root has neither a desk nor a mailbox, so that a desk would find nothing to do in it.
func untouched(root string) bool {
	if _, err := os.Lstat(filepath.Join(root, ".desk")); !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	entries, err := os.ReadDir(root)
	return err == nil && !slices.ContainsFunc(entries, func(e os.DirEntry) bool {
		return queue.CheckSlug(e.Name()) == nil && isMailbox(filepath.Join(root, e.Name()))
	})
}

// without says where no configuration was found, or nothing when there is one.
func (a *app) without(host config.Host) string {
	if host.File != "" {
		return ""
	}
	if own := config.UserFile(a.env); own != "" {
		return "no supervise.yaml in " + filepath.Dir(own)
	}
	return "no supervise.yaml"
}

// tellUnread tells of a configuration in the current directory, where one may be missed.
func (a *app) tellUnread(d *desk) {
	if _, err := os.Lstat("supervise.yaml"); err == nil && d.without != "" {
		a.say("supervise.yaml in this directory is not read by itself, since whoever can write here could run programs as you")
		a.say("hint: if it is yours: --config supervise.yaml, or export SUPERVISE_CONFIG=\"$PWD/supervise.yaml\"")
	}
}

// stateDir is where the user's own things are kept; "" when neither XDG_STATE_HOME nor HOME says where.
func (a *app) stateDir() string {
	state := a.env("XDG_STATE_HOME")
	if !filepath.IsAbs(state) { // the specification: a relative path is to be ignored
		home := a.env("HOME")
		if !filepath.IsAbs(home) {
			return ""
		}
		state = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(state, "supervise")
}

func (a *app) defaultRoot() (string, error) {
	state := a.stateDir()
	if state == "" {
		return "", usagef("--root DIR, or SUPERVISE_ROOT", "where the mailboxes are is not said, and HOME is not set")
	}
	root := filepath.Join(state, "queue")
	if err := os.MkdirAll(root, 0o700); err != nil {
		return "", fmt.Errorf("making the mailboxes' root: %w", err)
	}
	return root, nil
}

// recover finishes what an interrupted command left, and tells of it.
func (a *app) recover(ctx context.Context, d *desk) error {
	done, err := d.Recover(ctx)
	for _, r := range done {
		a.say("recovered %s of bottle %s: %s: %s", r.Ref, r.Ref.Bottle, r.State, escapeLine(r.Text))
	}
	if err != nil && ctx.Err() == nil {
		// What is asked for may well work without it.
		a.say("recovering what was interrupted: %s", indent(escape(err.Error())))
	}
	return context.Cause(ctx)
}

// again is the flags that make another command use the same desk.
func (a *app) again() string {
	var b strings.Builder
	if a.root != "" {
		b.WriteString(" --root " + quote(a.root))
	}
	if a.config != "" {
		b.WriteString(" --config " + quote(a.config))
	}
	return b.String()
}

// completeIDs offers what is open.
func (a *app) completeIDs(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	s := a.glance(cmd.Context())
	if s == nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []cobra.Completion
	for _, it := range s.Items {
		out = append(out, cobra.CompletionWithDesc(string(it.ID), it.Bottle+": "+it.Summary.Line(60)))
	}
	return out, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
}

// completeBottles offers the bottles that have a mailbox.
func (a *app) completeBottles(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	s := a.glance(cmd.Context())
	if s == nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return s.Bottles, cobra.ShellCompDirectiveNoFileComp
}

// glance is a snapshot for completion: whatever goes wrong, there is nothing to offer.
func (a *app) glance(ctx context.Context) *operator.Snapshot {
	d, err := a.readDesk()
	if err != nil {
		return nil
	}
	defer d.Close()
	s, err := d.Snapshot(ctx)
	if err != nil {
		return nil
	}
	return s
}
