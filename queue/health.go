package queue

// Health is how a Dir fares, for those who look after it.
type Health struct {
	Watched bool // file events are asked for; false: polling is all there is
	Proven  bool // an event has announced what another program did, and nothing has come without one since
	Missed  int  // times a poll found what no event had announced
	Flooded bool
	Lost    bool // the directory cannot be read
}

// Health tells how the last look at the directory went.
func (d *Dir) Health() Health {
	d.mu.Lock()
	defer d.mu.Unlock()
	h := d.health
	h.Flooded, h.Lost = d.flooded, d.scanErr != nil
	return h
}
