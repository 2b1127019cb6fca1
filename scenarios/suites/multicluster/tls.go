package multicluster

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
)

// A TLS record (RFC 8446, section 5.1): type, legacy version, length, fragment.
const (
	recordHeader   = 5
	recordMax      = 1<<14 + 256
	typeChange     = 20
	typeHandshake  = 22
	typeData       = 23
	helloClient    = 1
	extensionSNI   = 0
	extensionALPN  = 16
	shortestProven = 3 // records in a row that show a stream of TLS which was under way when the capture began
)

// nextRecord returns the length of the whole TLS record that data begins with; more is true if data ends before the record does.
func nextRecord(data []byte) (length int, more bool, err error) {
	if len(data) < recordHeader {
		return 0, true, nil
	}
	version, n := binary.BigEndian.Uint16(data[1:]), int(binary.BigEndian.Uint16(data[3:]))
	switch {
	case data[0] < typeChange || data[0] > typeData, version < tls.VersionTLS10 || version > tls.VersionTLS12, n > recordMax, n == 0:
		return 0, false, errors.New(begins(data))
	}
	return recordHeader + n, len(data) < recordHeader+n, nil
}

// records checks that data is TLS records to its end, the last of which may be cut off. Of a stream that was under way its
// beginning is searched within the length of one record; proven says that it was found.
func records(data []byte, fromStart bool) (proven bool, err error) {
	err = chain(data)
	if err == nil || fromStart {
		return err == nil, err
	}
	for i := 1; i < len(data) && i <= recordHeader+recordMax; i++ {
		if count(data[i:]) >= shortestProven {
			err := chain(data[i:])
			return err == nil, err
		}
	}
	if len(data) <= recordHeader+recordMax {
		return false, nil // the middle of one record, which shows nothing either way
	}
	return false, err
}

func chain(data []byte) error {
	for at := 0; at < len(data); {
		n, more, err := nextRecord(data[at:])
		if err != nil {
			return fmt.Errorf("at byte %d: %w", at, err)
		}
		if more {
			return nil
		}
		at += n
	}
	return nil
}

// count is how many whole records data begins with, as far as it matters.
func count(data []byte) int {
	for n := range shortestProven {
		length, more, err := nextRecord(data)
		if err != nil || more {
			return n
		}
		data = data[length:]
	}
	return shortestProven
}

func isHandshake(data []byte) bool {
	_, _, err := nextRecord(data)
	return err == nil && data[0] == typeHandshake
}

// hello is what a ClientHello says before anything is encrypted.
type hello struct {
	sni  string
	alpn []string
}

// parseHello reads the ClientHello (RFC 8446, section 4.1.2) that data begins with, of one or several records.
func parseHello(data []byte) (hello, error) {
	var message []byte
	for {
		n, more, err := nextRecord(data)
		if err != nil {
			return hello{}, err
		}
		if more || data[0] != typeHandshake {
			return hello{}, fmt.Errorf("a record of type %d, %d bytes", data[0], len(data))
		}
		message, data = append(message, data[recordHeader:n]...), data[n:]
		if len(message) >= 4 && len(message) >= 4+int(message[1])<<16+int(message[2])<<8+int(message[3]) {
			break
		}
		if len(data) == 0 {
			return hello{}, errors.New("the ClientHello is cut off")
		}
	}
	var (
		kind                                                uint8
		version                                             uint16
		body, session, ciphers, compressions, extensions, x cryptobyte.String
		random                                              []byte
		out                                                 hello
	)
	s := cryptobyte.String(message)
	if !s.ReadUint8(&kind) || kind != helloClient || !s.ReadUint24LengthPrefixed(&body) || !body.ReadUint16(&version) ||
		!body.ReadBytes(&random, 32) || !body.ReadUint8LengthPrefixed(&session) || !body.ReadUint16LengthPrefixed(&ciphers) ||
		!body.ReadUint8LengthPrefixed(&compressions) || !body.ReadUint16LengthPrefixed(&extensions) {
		return hello{}, errors.New("the handshake does not begin with a whole ClientHello")
	}
	for !extensions.Empty() {
		var id uint16
		if !extensions.ReadUint16(&id) || !extensions.ReadUint16LengthPrefixed(&x) {
			return hello{}, errors.New("the extensions of the ClientHello are cut off")
		}
		var list, name cryptobyte.String
		switch id {
		case extensionSNI:
			var nameType uint8
			if !x.ReadUint16LengthPrefixed(&list) || !list.ReadUint8(&nameType) || !list.ReadUint16LengthPrefixed(&name) {
				return hello{}, errors.New("the server name of the ClientHello is cut off")
			}
			out.sni = string(name)
		case extensionALPN:
			if !x.ReadUint16LengthPrefixed(&list) {
				return hello{}, errors.New("the protocols of the ClientHello are cut off")
			}
			for !list.Empty() {
				if !list.ReadUint8LengthPrefixed(&name) {
					return hello{}, errors.New("the protocols of the ClientHello are cut off")
				}
				out.alpn = append(out.alpn, string(name))
			}
		}
	}
	return out, nil
}
