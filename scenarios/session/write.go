package session

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/meshproof/meshproof/reports/verdict"
)

// files of a run's folder, and what writes each.
func files() map[string]func(io.Writer, verdict.Report) error {
	return map[string]func(io.Writer, verdict.Report) error{
		"report.json": func(w io.Writer, r verdict.Report) error {
			e := json.NewEncoder(w)
			e.SetIndent("", " ")
			return e.Encode(r)
		},
	}
}

// write renders the report in every form. Each file is complete or absent.
func write(dir string, r verdict.Report) error {
	var errs []error
	for name, render := range files() {
		if err := atomically(filepath.Join(dir, name), func(w io.Writer) error { return render(w, r) }); err != nil {
			errs = append(errs, fmt.Errorf("write %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func atomically(file string, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if err := write(f); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}
