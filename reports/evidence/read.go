package evidence

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// MaxLine is the longest line that is read, in bytes.
const MaxLine = 1 << 20

// Torn counts lines that were cut off by a crash and are left out.
type Torn int

// ReadRequests reads the requests of a stream from a run's folder, in the order they were recorded.
func ReadRequests(dir, stream string) ([]Request, Torn, error) {
	return readFile[Request](dir, RequestsFile(stream))
}

// ReadSamples reads the samples of a claim.
func ReadSamples(dir, claim string) ([]Request, Torn, error) {
	return readFile[Request](dir, ClaimFile(claim))
}

// ReadEvents reads the events of a run.
func ReadEvents(dir string) ([]Event, Torn, error) { return readFile[Event](dir, EventsFile) }

func readFile[T any](dir, path string) ([]T, Torn, error) {
	f, err := os.Open(filepath.Join(dir, filepath.FromSlash(path)))
	if err != nil {
		return nil, 0, fmt.Errorf("read evidence: %w", err)
	}
	defer f.Close()
	return Decode[T](f, path)
}

// Decode reads JSON lines. A line without an end at the very end of the input, or one that is cut off within its JSON
// text, is what a crash leaves: it is counted, not an error. A line that is whole but wrong is an error that names the
// file and line.
func Decode[T any](r io.Reader, name string) ([]T, Torn, error) {
	var out []T
	var torn Torn
	in := bufio.NewReaderSize(r, 64<<10)
	for number := 1; ; number++ {
		line, err := readLine(in)
		if err != nil && !errors.Is(err, io.EOF) {
			return out, torn, fmt.Errorf("%s:%d: %w", name, number, err)
		}
		if text := bytes.TrimSpace(line); len(text) > 0 {
			var v T
			if e := json.Unmarshal(text, &v); e == nil {
				out = append(out, v)
			} else if cutOff(e, text) {
				torn++
			} else {
				return out, torn, fmt.Errorf("%s:%d: %w", name, number, e)
			}
		}
		if err != nil {
			return out, torn, nil
		}
	}
}

func readLine(in *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > MaxLine {
			return nil, fmt.Errorf("line longer than %d bytes", MaxLine)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, err
		}
	}
}

// cutOff tells a document that stops early from one that is wrong: the decoder failed past its last byte.
func cutOff(err error, text []byte) bool {
	var syntax *json.SyntaxError
	return errors.As(err, &syntax) && syntax.Offset >= int64(len(text)) && err.Error() == "unexpected end of JSON input"
}
