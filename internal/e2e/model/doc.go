// Package model has no code. Its test drives the whole protocol, from an agent's question to its answer, by random steps
// against a reference model: agents that ask, ask again, hang up and lose answers; sidecars that are killed and
// started; two operators whose programs stop, go on and die before any durable step; another program that answers too; a
// person who edits the files meanwhile; a proxy that does not reload; a mailbox whose steps fail. It runs in fake time.
package model
