//go:build !linux

package redirect

import "errors"

// Apply is possible on Linux only.
func Apply(Config) error {
	return errors.New("redirect: rules need Linux; run the proxy in a pod")
}
