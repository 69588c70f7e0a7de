//go:build !slim

package main

import "github.com/spf13/cobra"

// What the container image leaves out (-tags slim): the screens, and what runs the whole loop on one machine. It halves the image.
var (
	screens = []func(*app) *cobra.Command{newReview, newWeb}
	loops   = []func(*app) *cobra.Command{newUp, newDemo}
)

// setUsage is not in the image either: a template makes the linker keep every method of every type.
func setUsage(root *cobra.Command) {
	root.SetUsageTemplate(usage)
	root.Version = built().String()
	root.SetVersionTemplate("{{.Version}}\n")
	root.Flags().Bool("version", false, "which build this is")
}
