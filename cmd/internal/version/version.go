// Package version holds the product's version.
package version

// Version is the product version and the default image tag. Release builds stamp it with -ldflags -X.
var Version = "0.1.0"
