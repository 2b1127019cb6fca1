package image

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func binary(t *testing.T, content string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "app")
	if err := os.WriteFile(p, []byte(content), 0o700); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestArchive(t *testing.T) {
	out := filepath.Join(t.TempDir(), "sub", "app.tar")
	spec := Spec{Ref: "meshproof.dev/app:1", Binary: binary(t, "ELF"), User: "1337:1337", Env: []string{"A=b"}, Links: []string{"/usr/bin/curl"}}
	if err := Archive(t.Context(), spec, out); err != nil {
		t.Fatal(err)
	}
	img, err := tarball.ImageFromPath(out, nil)
	if err != nil {
		t.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if c := cf.Config; !slices.Equal(c.Entrypoint, []string{"/app"}) || c.User != "1337:1337" || !slices.Equal(c.Env, spec.Env) || cf.OS != "linux" {
		t.Errorf("config %+v", c)
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, %v; want 1", len(layers), err)
	}
	r, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, h.FileInfo().Mode().String()+" "+h.Name)
	}
	want := []string{"-rwxr-xr-x app", "drwxr-xr-x usr/", "drwxr-xr-x usr/bin/", "Lrwxrwxrwx usr/bin/curl"}
	if !slices.Equal(got, want) {
		t.Errorf("layer %q, want %q", got, want)
	}
}

func TestArchiveIsDeterministic(t *testing.T) {
	dir := t.TempDir()
	var archives []string
	for i, name := range []string{"a.tar", "b.tar"} {
		spec := Spec{Ref: "meshproof.dev/app:1", Binary: binary(t, "ELF"), Links: []string{"/b", "/a", "/c/d"}}
		out := filepath.Join(dir, name)
		if err := Archive(t.Context(), spec, out); err != nil {
			t.Fatal(i, err)
		}
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		archives = append(archives, string(b))
	}
	if archives[0] != archives[1] {
		t.Error("the same input gave different bytes")
	}
}

func TestArchiveIsCached(t *testing.T) {
	out := filepath.Join(t.TempDir(), "app.tar")
	write := func(content string) os.FileInfo {
		t.Helper()
		if err := Archive(t.Context(), Spec{Ref: "meshproof.dev/app:1", Binary: binary(t, content)}, out); err != nil {
			t.Fatal(err)
		}
		fi, err := os.Stat(out)
		if err != nil {
			t.Fatal(err)
		}
		return fi
	}
	first, second, third := write("one"), write("one"), write("two")
	if !os.SameFile(first, second) {
		t.Error("written again although nothing changed")
	}
	if os.SameFile(second, third) {
		t.Error("not written again although the binary changed")
	}
}

func TestArchiveErrors(t *testing.T) {
	out := filepath.Join(t.TempDir(), "app.tar")
	for name, c := range map[string]struct {
		spec Spec
		want string
	}{
		"no tag":        {Spec{Ref: "meshproof.dev/app", Binary: binary(t, "x")}, "meshproof.dev/app"},
		"no binary":     {Spec{Ref: "meshproof.dev/app:1", Binary: "/nonexistent"}, "/nonexistent"},
		"relative link": {Spec{Ref: "meshproof.dev/app:1", Binary: binary(t, "x"), Links: []string{"a/../b"}}, `"a/../b"`},
	} {
		t.Run(name, func(t *testing.T) {
			err := Archive(t.Context(), c.spec, out)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want it to name %s", err, c.want)
			}
			if _, err := os.Stat(out); err == nil {
				t.Error("an archive was written")
			}
		})
	}
}
