package http1

import "bytes"

// Field is one header field. Names are lower case.
type Field struct{ Name, Value []byte }

// Header is an ordered list of fields whose bytes live in one arena: it is reused from message to message.
// Slices that it hands out are valid until Reset.
type Header struct {
	Fields []Field
	arena  []byte
}

// Reset forgets every field and keeps the memory.
func (h *Header) Reset() {
	h.Fields = h.Fields[:0]
	h.arena = h.arena[:0]
}

// Get returns the first value of name (lower case), or nil. A field that is there but empty is a non-nil empty slice.
func (h *Header) Get(name string) []byte {
	for i := range h.Fields {
		f := &h.Fields[i]
		if len(f.Name) == len(name) && string(f.Name) == name {
			if f.Value == nil {
				return []byte{}
			}
			return f.Value
		}
	}
	return nil
}

// Has reports whether a field of that name is there.
func (h *Header) Has(name string) bool {
	for i := range h.Fields {
		if string(h.Fields[i].Name) == name {
			return true
		}
	}
	return false
}

// Joined returns every value of name joined by a comma, and whether there is one. It allocates only for several values.
func (h *Header) Joined(name []byte) ([]byte, bool) {
	var first []byte
	found, joined := false, false
	for i := range h.Fields {
		f := &h.Fields[i]
		if len(f.Name) != len(name) || !bytes.Equal(f.Name, name) {
			continue
		}
		switch {
		case !found:
			first, found = f.Value, true
		case !joined:
			first = append(append(append(make([]byte, 0, len(first)+len(f.Value)+1), first...), ','), f.Value...)
			joined = true
		default:
			first = append(append(first, ','), f.Value...)
		}
	}
	return first, found
}

// Add appends a field. The value is kept, not copied: it must not change while the header is in use.
func (h *Header) Add(name, value []byte) { h.Fields = append(h.Fields, Field{name, value}) }

// Set replaces the first field of that name, removes the others, and appends one when there is none. The value is kept, not copied.
func (h *Header) Set(name, value []byte) {
	for i := range h.Fields {
		if bytes.Equal(h.Fields[i].Name, name) {
			h.Fields[i].Value = value
			h.delFrom(i+1, name)
			return
		}
	}
	h.Add(name, value)
}

// Del removes every field of that name.
func (h *Header) Del(name []byte) { h.delFrom(0, name) }

func (h *Header) delFrom(from int, name []byte) {
	out := from
	for i := from; i < len(h.Fields); i++ {
		if !bytes.Equal(h.Fields[i].Name, name) {
			if out != i {
				h.Fields[out] = h.Fields[i]
			}
			out++
		}
	}
	h.Fields = h.Fields[:out]
}

// Copy puts b into the header's own memory, for values that must live as long as the header.
func (h *Header) Copy(b []byte) []byte {
	start := len(h.arena)
	h.arena = append(h.arena, b...)
	return h.arena[start:len(h.arena):len(h.arena)]
}

// Scratch returns the arena to append to; Take ends what was begun with Scratch and returns the appended part.
func (h *Header) Scratch() []byte { return h.arena }

// Take keeps what was appended to the slice that Scratch returned.
func (h *Header) Take(b []byte) []byte {
	start := len(h.arena)
	h.arena = b
	return b[start:len(b):len(b)]
}
