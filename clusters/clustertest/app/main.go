// Command app is the one image of the provider suite: an HTTP server, an admission webhook and an HTTP client.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "app:", err)
		os.Exit(3)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 1 && args[0] == "serve":
		return serve()
	case len(args) == 3 && args[0] == "webhook":
		return webhook(args[1], args[2])
	case len(args) == 2 && args[0] == "get":
		return get(args[1])
	case len(args) == 2 && args[0] == "dial":
		conn, err := net.DialTimeout("tcp", args[1], 2*time.Second)
		if err != nil {
			return err
		}
		return conn.Close()
	case len(args) == 2 && args[0] == "lookup":
		addrs, err := net.LookupHost(args[1])
		fmt.Println(addrs)
		return err
	case len(args) == 1 && args[0] == "cat":
		_, err := io.Copy(os.Stdout, os.Stdin)
		return err
	}
	return errors.New("usage: app serve | webhook CERT KEY | get URL | dial ADDRESS | lookup NAME | cat")
}

// serve answers every request with the name of the pod.
func serve() error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	fmt.Println("serving as", name)
	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, name) })
	return (&http.Server{Addr: ":8080", Handler: h, ReadHeaderTimeout: time.Minute}).ListenAndServe()
}

func get(url string) error {
	client := http.Client{Timeout: 2 * time.Second}
	res, err := client.Get(url)
	if err != nil {
		return err
	}
	defer res.Body.Close() // read only
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", res.Status)
	}
	_, err = io.Copy(os.Stdout, res.Body)
	return err
}

// webhook adds the label webhook=called to every object that the API server asks about.
func webhook(cert, key string) error {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var review struct {
			APIVersion string `json:"apiVersion"`
			Kind       string `json:"kind"`
			Request    struct {
				UID    string `json:"uid"`
				Object struct {
					Metadata struct {
						Labels map[string]string `json:"labels"`
					} `json:"metadata"`
				} `json:"object"`
			} `json:"request"`
		}
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		labels := map[string]string{"webhook": "called"}
		for k, v := range review.Request.Object.Metadata.Labels {
			labels[k] = v
		}
		patch, err := json.Marshal([]map[string]any{{"op": "add", "path": "/metadata/labels", "value": labels}})
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		var body bytes.Buffer
		err = json.NewEncoder(&body).Encode(map[string]any{
			"apiVersion": review.APIVersion, "kind": review.Kind,
			"response": map[string]any{"uid": review.Request.UID, "allowed": true, "patchType": "JSONPatch", "patch": patch},
		})
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_, _ = w.Write(body.Bytes())
	})
	return (&http.Server{Addr: ":8443", Handler: h, ReadHeaderTimeout: time.Minute}).ListenAndServeTLS(cert, key)
}
