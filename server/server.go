// Package server serves the tools over MCP streamable HTTP.
package server
