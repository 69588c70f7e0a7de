// Command supervise lets a sandboxed agent ask for one narrow change, and a person decide.
//
// One binary plays every part: serve is the sidecar beside a bottle, egress the proxy in front of it, and the rest are the
// operator's commands over package operator. A command is a file of its own name; app.go has what they share,
// desk.go opens the desk, errors.go turns errors into exit codes and hints.
//
// Exit codes: 0 done; 1 it failed; 2 wrong use; 3 what would change is not what was seen; 4 decided already.
// Results go to stdout, everything else to stderr, as "supervise: what: why" and "supervise: hint: what to do". Nothing an
// agent wrote reaches either except through package safetext.
package main

import (
	"context"
	"os"
)

func main() { os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
