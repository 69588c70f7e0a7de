package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
)

// The dialects that a call can be made in.
const (
	newEra   = "2026-07-28"
	oldEra   = "2025-11-25"
	floorEra = "floor"
)

// conn is a connection that speaks as little HTTP as will do, so that the client's own cost stays small.
type conn struct {
	net.Conn
	br  *bufio.Reader
	era string
	sid string
	end bool // the last response said that it is the last one here
}

func dial(ctx context.Context, addr, era string) (*conn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &conn{Conn: nc, br: bufio.NewReaderSize(nc, 2048), era: era}, nil
}

// openConn dials, and in the old era opens a session.
func openConn(ctx context.Context, addr, era string) (*conn, error) {
	c, err := dial(ctx, addr, era)
	if err != nil || era != oldEra {
		return c, err
	}
	init := `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"` + oldEra + `","capabilities":{},"clientInfo":{"name":"claude-code","version":"1"}}}`
	resp, err := c.roundTrip("/", "", init)
	if err != nil {
		return nil, err
	}
	io.Copy(io.Discard, resp.Body)
	c.sid = resp.Header.Get("Mcp-Session-Id")
	resp, err = c.roundTrip("/", "MCP-Protocol-Version: "+oldEra+"\r\n", `{"jsonrpc":"2.0","method":"notifications/initialized"}`)
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return c, err
}

// share is another connection of the same session.
func (c *conn) share(ctx context.Context) (*conn, error) {
	n, err := dial(ctx, c.RemoteAddr().String(), c.era)
	if err == nil {
		n.sid = c.sid
	}
	return n, err
}

func (c *conn) roundTrip(path, header, body string) (*http.Response, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\n%sContent-Length: %d\r\n", path, header, len(body))
	if c.sid != "" {
		b.WriteString("Mcp-Session-Id: " + c.sid + "\r\n")
	}
	b.WriteString("\r\n" + body)
	if c.end {
		c.Close()
		nc, err := net.Dial("tcp", c.RemoteAddr().String())
		if err != nil {
			return nil, err
		}
		c.Conn, c.end = nc, false
		c.br.Reset(nc)
	}
	if _, err := io.WriteString(c, b.String()); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(c.br, nil)
	if err == nil {
		c.end = resp.Close
	}
	return resp, err
}

const newMeta = `"io.modelcontextprotocol/protocolVersion":"` + newEra + `","io.modelcontextprotocol/clientInfo":{"name":"claude-code","version":"1"},"io.modelcontextprotocol/clientCapabilities":{}`

// rpc makes a request of the connection's era. Params has no braces.
func (c *conn) rpc(method, name, params string) (*http.Response, error) {
	meta := `"_meta":{"progressToken":7}`
	header := "MCP-Protocol-Version: " + c.era + "\r\n"
	if c.era != oldEra {
		meta = `"_meta":{"progressToken":7,` + newMeta + `}`
		header += "Mcp-Method: " + method + "\r\n"
		if name != "" {
			header += "Mcp-Name: " + name + "\r\n"
		}
	}
	if params != "" {
		meta += ","
	}
	return c.roundTrip("/", header, fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":%q,"params":{%s%s}}`, ids.Add(1), method, meta, params))
}

// held is a call that waits.
type held struct {
	c    *conn
	resp *http.Response
	br   *bufio.Reader
}

// ask proposes a host and returns when the call is held.
func (c *conn) ask(host string) (*held, error) {
	resp, err := c.rpc("tools/call", "egress-block", `"name":"egress-block","arguments":{"host":"`+host+`","justification":"the benchmark needs it"}`)
	if err != nil {
		return nil, err
	}
	h := &held{c, resp, bufio.NewReaderSize(resp.Body, 1024)}
	if resp.StatusCode != http.StatusOK {
		return nil, h.unexpected()
	}
	for {
		line, err := h.br.ReadSlice('\n')
		if err != nil {
			return nil, fmt.Errorf("before the call was held: %w", err)
		}
		if bytes.HasPrefix(line, []byte(":")) || bytes.Contains(line, []byte(`"notifications/progress"`)) {
			return h, nil
		}
		if bytes.Contains(line, []byte(`"result"`)) {
			return nil, fmt.Errorf("answered instead of held: %.300s", line)
		}
	}
}

func (h *held) unexpected() error {
	b, _ := io.ReadAll(io.LimitReader(h.br, 300))
	return fmt.Errorf("%s: %s", h.resp.Status, b)
}

// answer reads on to the answer.
func (h *held) answer() error {
	for {
		line, err := h.br.ReadSlice('\n')
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = h.br.ReadSlice('\n')
		}
		if err != nil {
			return fmt.Errorf("before the answer: %w", err)
		}
		if bytes.HasPrefix(line, []byte("data: ")) && bytes.Contains(line[:min(len(line), 200)], []byte(`"result"`)) {
			return nil
		}
	}
}

// end reads the rest of the response, which must end.
func (h *held) end() error {
	_, err := io.Copy(io.Discard, h.br)
	return err
}

var hosts, ids atomic.Int64 // the calls of one session share a space of ids

// freshHost is a name that nobody has asked for.
func freshHost() string { return fmt.Sprintf("h%d.example.com", hosts.Add(1)) }
