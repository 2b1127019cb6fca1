package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/meshproof/meshproof/loadgen"
)

// Remote is the Generator of a profile that an agent runs.
type Remote struct {
	Client  *http.Client // must reach the agent; its timeout, if any, bounds the whole run
	BaseURL string       // http://host:port
	Profile loadgen.Profile
}

var _ loadgen.Generator = Remote{}

// Run implements loadgen.Generator.
func (r Remote) Run(ctx context.Context, emit func(loadgen.Result)) error {
	_, err := Run(ctx, r.Client, r.BaseURL, r.Profile, emit)
	return err
}

// Run has the agent at baseURL run p and calls emit for every Result as it arrives, from this goroutine. It returns the
// agent's own summary. An error means that the load did not run as the profile says, or that not every Result arrived: then
// those emitted are true, but not all. When ctx ends the agent stops, and Results under way are lost.
func Run(ctx context.Context, client *http.Client, baseURL string, p loadgen.Profile, emit func(loadgen.Result)) (Trailer, error) {
	trailer, err := run(ctx, client, baseURL, p, emit)
	if err != nil {
		return trailer, fmt.Errorf("agent %s: profile %q: %w", baseURL, p.Name, err)
	}
	return trailer, nil
}

func run(ctx context.Context, client *http.Client, baseURL string, p loadgen.Profile, emit func(loadgen.Result)) (Trailer, error) {
	if err := p.Validate(); err != nil {
		return Trailer{}, err
	}
	body, err := json.Marshal(p)
	if err != nil {
		return Trailer{}, err
	}
	address, err := url.JoinPath(baseURL, "run")
	if err != nil {
		return Trailer{}, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
	if err != nil {
		return Trailer{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return Trailer{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
		return Trailer{}, fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(text)))
	}
	return receive(json.NewDecoder(resp.Body), emit)
}

func receive(dec *json.Decoder, emit func(loadgen.Result)) (Trailer, error) {
	dec.DisallowUnknownFields()
	var got uint64
	for {
		var rec record
		switch err := dec.Decode(&rec); {
		case errors.Is(err, io.EOF):
			return Trailer{}, fmt.Errorf("the stream ended without a trailer after %d results: %w", got, io.ErrUnexpectedEOF)
		case err != nil:
			return Trailer{}, fmt.Errorf("after %d results: %w", got, err)
		case rec.Result != nil:
			got++
			emit(*rec.Result)
		case rec.Trailer != nil:
			switch t := *rec.Trailer; {
			case t.Error != "":
				return t, errors.New(t.Error)
			case t.Results != got:
				return t, fmt.Errorf("%d results arrived of %d", got, t.Results)
			default:
				return t, nil
			}
		default:
			return Trailer{}, fmt.Errorf("after %d results: a record that is neither result nor trailer", got)
		}
	}
}
