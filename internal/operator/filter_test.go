package operator

import (
	"testing"

	"github.com/bot-bottle/supervise/internal/apply"
	"github.com/bot-bottle/supervise/internal/payload"
	"github.com/bot-bottle/supervise/queue"
)

func TestFilter(t *testing.T) {
	const id = "0197f3b2-0001-7c3a-9b29-3f6f0a2c4d1e"
	route := Item{
		Ref: Ref{Bottle: "web", ID: queue.ID(id)}, Tool: payload.Egress, Summary: "allow API.example.com /v1/", Host: "API.example.com", State: Open, Connected: Waiting, Danger: true,
		Findings: []Finding{{Code: "look-alike", Level: Danger}, {Code: "new-host", Level: Note}},
	}
	image := Item{
		Ref: Ref{Bottle: "build", ID: "0197f3b2-0002-7c3a-9b29-3f6f0a2c4d1e"}, Tool: payload.Capability, Summary: "another image", State: Bad, Connected: Away,
		Blocked: "it is malformed", Unmanaged: []apply.Kind{apply.KindDockerfile}, Retry: &Earlier{},
	}
	for _, tt := range []struct {
		query        string
		route, image bool
	}{
		{"", true, true},
		{" \t", true, true},
		{"WEB", true, false},
		{"api.EXAMPLE.com /v1", true, false},
		{"api build", false, false},
		{"danger", true, false},
		{"danger look-alike", true, false},
		{"waits", true, false}, // as a terminal shows it
		{"waiting", true, false},
		{"away", false, true},
		{"egress", true, false},
		{"docker", false, true}, // as a terminal shows it
		{"dockerfile", false, true},
		{"capability-block", false, true},
		{"malformed", false, true},
		{"blocked", false, true},
		{"by hand", false, true},
		{"again", false, true},
		{"0197F3B2-0001", true, false},
		{"f3b2-0001", false, false},
		{"019", false, false}, // too short for an id
	} {
		match := Filter(tt.query)
		if r, i := match(&route), match(&image); r != tt.route || i != tt.image {
			t.Errorf("Filter(%q) holds for the route: %t, the image: %t; want %t, %t", tt.query, r, i, tt.route, tt.image)
		}
	}
}
