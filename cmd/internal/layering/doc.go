// Package layering holds tests only: which package may import which, that each package says what it is for, and which calls
// are not made where. docs/architecture.md shows the same as a picture.
package layering
