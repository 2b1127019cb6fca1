// Package image turns one static binary into an image archive that any container runtime loads, without Docker and without
// a registry.
package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Spec describes an image of one layer that holds one static binary.
type Spec struct {
	Ref        string   // full reference with a tag: meshproof.dev/app:0.1.0
	Binary     string   // path of the static binary on this host
	Path       string   // where it lies in the image; "/" + the base name of Binary when empty
	Entrypoint []string // Path alone when empty
	Env        []string // NAME=value
	User       string   // uid or uid:gid; root when empty
	Links      []string // further absolute paths of the binary: symbolic links
	Arch       string   // GOARCH of the binary; this host's when empty
}

// Archive writes the image as a docker-archive tar with uncompressed layers to out. The same input gives the same bytes.
// When out already holds this image it is left as it is; a reader never sees half an archive.
func Archive(ctx context.Context, s Spec, out string) error {
	if err := archive(ctx, s, out); err != nil {
		return fmt.Errorf("image %s: %w", s.Ref, err)
	}
	return nil
}

func archive(ctx context.Context, s Spec, out string) error {
	if s.Path == "" {
		s.Path = "/" + filepath.Base(s.Binary)
	}
	if len(s.Entrypoint) == 0 {
		s.Entrypoint = []string{s.Path}
	}
	if s.Arch == "" {
		s.Arch = runtime.GOARCH
	}
	tag, err := name.NewTag(s.Ref, name.StrictValidation)
	if err != nil {
		return err
	}
	binary, err := os.ReadFile(s.Binary)
	if err != nil {
		return err
	}
	key, err := s.key(binary)
	if err != nil {
		return err
	}
	stamp := out + ".key"
	if old, err := os.ReadFile(stamp); err == nil && string(old) == key {
		if _, err := os.Stat(out); err == nil {
			return nil
		}
	}
	layer, err := s.layer(binary)
	if err != nil {
		return err
	}
	img, err := s.image(layer)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	// The stamp goes first and comes last: a crash between leaves no stamp, never a wrong one.
	if err := os.Remove(stamp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := atomically(out, func(w io.Writer) error { return tarball.Write(tag, img, w) }); err != nil {
		return err
	}
	return atomically(stamp, func(w io.Writer) error { _, err := io.WriteString(w, key); return err })
}

// key names the content of the image and the version of this package's way to write it.
func (s Spec) key(binary []byte) (string, error) {
	sum := sha256.Sum256(binary)
	s.Binary = hex.EncodeToString(sum[:])
	b, err := json.Marshal(struct {
		Format int
		Spec   Spec
	}{2, s})
	if err != nil {
		return "", err
	}
	sum = sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

func (s Spec) layer(binary []byte) (v1.Layer, error) {
	files := map[string][]byte{s.Path: binary}
	for _, p := range s.Links {
		files[p] = nil
	}
	var buf bytes.Buffer
	if err := writeLayer(&buf, files, s.Path); err != nil {
		return nil, err
	}
	raw := buf.Bytes()
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil },
		tarball.WithMediaType(types.DockerUncompressedLayer), tarball.WithCompressionLevel(0))
}

func (s Spec) image(layer v1.Layer) (v1.Image, error) {
	img, err := mutate.AppendLayers(empty.Image, &plain{layer})
	if err != nil {
		return nil, err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", s.Arch
	cf.Created = v1.Time{Time: epoch}
	cf.Config.Entrypoint, cf.Config.Env, cf.Config.User, cf.Config.WorkingDir = s.Entrypoint, s.Env, s.User, "/"
	return mutate.ConfigFile(img, cf)
}

// epoch is the one time in an archive, so that the same input gives the same digest.
var epoch = time.Unix(0, 0).UTC()

// plain hands a layer out uncompressed: the archive goes over a local socket, where gzip only costs time.
type plain struct{ v1.Layer }

func (p *plain) Digest() (v1.Hash, error)            { return p.DiffID() }
func (p *plain) Compressed() (io.ReadCloser, error)  { return p.Uncompressed() }
func (p *plain) MediaType() (types.MediaType, error) { return types.DockerUncompressedLayer, nil }
func (p *plain) Size() (int64, error) {
	r, err := p.Uncompressed()
	if err != nil {
		return 0, err
	}
	defer r.Close() // a reader of bytes
	return io.Copy(io.Discard, r)
}

func writeLayer(w io.Writer, files map[string][]byte, executable string) error {
	tw := tar.NewWriter(w)
	dirs := map[string]bool{"/": true}
	for _, p := range sortedKeys(files) {
		if !path.IsAbs(p) || path.Clean(p) != p || p == "/" {
			return fmt.Errorf("path %q: give a clean absolute path", p)
		}
		for _, d := range parents(p) {
			if dirs[d] {
				continue
			}
			dirs[d] = true
			if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d[1:] + "/", Mode: 0o755, ModTime: epoch}); err != nil {
				return err
			}
		}
		if p != executable {
			if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: p[1:], Linkname: executable, Mode: 0o777, ModTime: epoch}); err != nil {
				return err
			}
			continue
		}
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: p[1:], Mode: 0o755, Size: int64(len(files[p])), ModTime: epoch}); err != nil {
			return err
		}
		if _, err := tw.Write(files[p]); err != nil {
			return err
		}
	}
	return tw.Close()
}
