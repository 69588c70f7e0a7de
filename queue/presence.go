package queue

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"time"
)

type presenceSeen struct {
	mtime time.Time
	seen  seen
}

// Presence implements Inbox.
func (r *Root) Presence(ctx context.Context, bottle string) (Presence, error) {
	if ctx.Err() != nil {
		return Presence{}, context.Cause(ctx)
	}
	b, err := r.openBox(bottle)
	if err != nil {
		return Presence{}, err
	}
	defer b.close()
	data, info, err := b.read(presenceFile)
	if errors.Is(err, fs.ErrNotExist) {
		return Presence{}, nil
	}
	if bad, ok := errors.AsType[*BadError](err); ok {
		r.report(bad)
		return Presence{}, nil
	}
	if err != nil {
		return Presence{}, err
	}
	r.mu.Lock()
	last := r.presence[bottle]
	if !last.mtime.Equal(info.ModTime()) {
		last = presenceSeen{info.ModTime(), newSeen(info.ModTime())}
		r.presence[bottle] = last
	}
	r.mu.Unlock()
	p := Presence{At: info.ModTime(), Known: last.seen.age() <= presenceMax, Waiting: map[ID]int{}}
	if !p.Known {
		return p, nil
	}
	var f presenceJSONFile
	if json.Unmarshal(data, &f) != nil {
		r.report(b.bad(presenceFile, "does not parse"))
		return Presence{}, nil
	}
	for id, n := range f.Waiting {
		if _, err := ParseID(string(id)); err == nil && n > 0 && len(p.Waiting) < maxNames {
			p.Waiting[id] = n
		}
	}
	return p, nil
}

type presenceJSONFile struct {
	Waiting map[ID]int `json:"waiting"`
}

func presenceJSON(waiting map[ID]int) []byte {
	data, err := json.Marshal(presenceJSONFile{Waiting: waiting})
	if err != nil {
		panic(err) // a map of strings to ints
	}
	return append(data, '\n')
}
