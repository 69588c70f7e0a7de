package operator

import (
	"strings"

	"github.com/bot-bottle/supervise/internal/payload"
)

// leastID is how much of an id a word of a filter must be: shorter ones are pieces of too many.
const leastID = 4

// Filter returns what tells whether an inbox line holds every word of a query, in whatever case: its bottle, its tool, what it asks
// for, its state, who waits, its findings and their levels, under the names that desks show them by. Of its id a word must be the start.
func Filter(query string) func(*Item) bool {
	words := strings.Fields(strings.ToLower(query))
	return func(it *Item) bool {
		if len(words) == 0 {
			return true
		}
		hay := haystack(it)
		for _, w := range words {
			if !strings.Contains(hay, w) && (len(w) < leastID || !strings.HasPrefix(string(it.ID), w)) {
				return false
			}
		}
		return true
	}
}

func haystack(it *Item) string {
	var hay strings.Builder
	add := func(words ...string) {
		for _, s := range words {
			hay.WriteString(strings.ToLower(s) + "\n")
		}
	}
	add(it.Bottle, it.Tool, it.Summary.Raw(), it.Host.Raw(), string(it.State), string(it.Connected))
	for _, f := range it.Findings {
		add(f.Code, string(f.Level))
	}
	if it.Tool == payload.Capability {
		add("Dockerfile")
	}
	if it.Connected == Waiting {
		add("waits")
	}
	if it.State == Bad {
		add("malformed")
	}
	if it.Blocked != "" {
		add("blocked", "cannot be approved")
	}
	if len(it.Unmanaged) > 0 {
		add("by hand")
	}
	if it.Retry != nil {
		add("again")
	}
	return hay.String()
}
