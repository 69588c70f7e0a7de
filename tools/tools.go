// Package tools is what the agent sees: four tools that ask or read, one that waits, and the
// ask-and-wait they share.
package tools
