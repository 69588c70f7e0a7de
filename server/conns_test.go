package server

import (
	"net"
	"net/http"
	"testing"
)

// A connection that was answered makes way like any other while its client has not closed it.
func TestAnsweredMakesWay(t *testing.T) {
	cs := newConns(2)
	held, client := net.Pipe()
	defer client.Close()
	cs.state(held, http.StateNew)
	cs.state(held, http.StateActive)
	cs.keep(held)
	cs.state(held, http.StateHijacked)
	other, client2 := net.Pipe()
	defer client2.Close()
	cs.state(other, http.StateNew)
	cs.keep(other)
	third, client3 := net.Pipe()
	defer client3.Close()
	cs.state(third, http.StateNew)
	if _, err := third.Write(nil); err == nil || cs.all[third] != nil {
		t.Error("one more was let in, though all are kept")
	}
	cs.answered(held)
	fourth, client4 := net.Pipe()
	defer client4.Close()
	cs.state(fourth, http.StateNew)
	if cs.all[held] != nil || cs.all[fourth] == nil {
		t.Error("one that was answered does not make way")
	}
	cs.gone(held) // when its goroutine hears of it
	if n := len(cs.all); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}
