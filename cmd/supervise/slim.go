//go:build slim

package main

import "github.com/spf13/cobra"

var screens, loops []func(*app) *cobra.Command

func setUsage(*cobra.Command) {}
