package objects

// CRDs returns nothing yet.
func CRDs() []byte { return nil }
