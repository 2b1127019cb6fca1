package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// newCurl returns the part of curl that people use in a pod to see what a mesh does. Flags mean what they mean to curl; others
// are refused.
func newCurl() *cobra.Command {
	var (
		headers                        []string
		method, data, output, writeOut string
		include, head, fail, verbose   bool
		maxTime                        float64
	)
	cmd := &cobra.Command{
		Use:           "curl [flags] URL...",
		Short:         "Call URLs from inside a pod",
		Args:          cobra.MinimumNArgs(1),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, urls []string) error {
			client := &http.Client{
				Timeout:       time.Duration(maxTime * float64(time.Second)),
				CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			}
			defer client.CloseIdleConnections()
			for _, url := range urls {
				if !strings.Contains(url, "://") {
					url = "http://" + url
				}
				m, body := method, io.Reader(nil)
				if cmd.Flags().Changed("data") {
					body = strings.NewReader(data)
				}
				switch {
				case m != "":
				case head:
					m = http.MethodHead
				case body != nil:
					m = http.MethodPost
				default:
					m = http.MethodGet
				}
				req, err := http.NewRequestWithContext(cmd.Context(), m, url, body)
				if err != nil {
					return err
				}
				req.Header.Set("User-Agent", "curl/meshproof")
				if body != nil {
					req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
				}
				for _, h := range headers {
					name, value, ok := strings.Cut(h, ":")
					if !ok {
						return fmt.Errorf("header %q: write NAME: VALUE", h)
					}
					if value = strings.TrimSpace(value); strings.EqualFold(name, "host") {
						req.Host = value
					} else {
						req.Header.Set(name, value)
					}
				}
				if err := exchange(cmd, client, req, exchangeOptions{include || head, fail, verbose, output, writeOut}); err != nil {
					return err
				}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringArrayVarP(&headers, "header", "H", nil, "header to send, NAME: VALUE; may be repeated")
	f.StringVarP(&method, "request", "X", "", "method")
	f.StringVarP(&data, "data", "d", "", "body to POST")
	f.StringVarP(&output, "output", "o", "", "file for the body instead of standard output")
	f.StringVarP(&writeOut, "write-out", "w", "", "print this after each answer; knows %{http_code} and \\n")
	f.BoolVarP(&include, "include", "i", false, "show status and headers too")
	f.BoolVarP(&head, "head", "I", false, "ask for headers only")
	f.BoolVarP(&fail, "fail", "f", false, "a status of 400 or more is an error")
	f.BoolVarP(&verbose, "verbose", "v", false, "show what is sent and received on standard error")
	f.Float64VarP(&maxTime, "max-time", "m", 0, "seconds that a call may take; 0 is no limit")
	f.BoolP("silent", "s", false, "no progress, of which there is none")
	f.BoolP("show-error", "S", false, "show errors, which is always so")
	return cmd
}

type exchangeOptions struct {
	include, fail, verbose bool
	output, writeOut       string
}

func exchange(cmd *cobra.Command, client *http.Client, req *http.Request, o exchangeOptions) (err error) {
	if o.verbose {
		fmt.Fprintf(cmd.ErrOrStderr(), "> %s %s HTTP/1.1\n> Host: %s\n", req.Method, req.URL.RequestURI(), req.Host)
		showHeaders(cmd.ErrOrStderr(), "> ", req.Header)
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if o.verbose {
		fmt.Fprintf(cmd.ErrOrStderr(), "< %s %s\n", resp.Proto, resp.Status)
		showHeaders(cmd.ErrOrStderr(), "< ", resp.Header)
	}
	if o.fail && resp.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("the requested URL returned error: %d", resp.StatusCode)
	}
	out := cmd.OutOrStdout()
	if o.output != "" {
		file, err := os.Create(o.output)
		if err != nil {
			return err
		}
		defer func() {
			if e := file.Close(); err == nil {
				err = e
			}
		}()
		out = file
	}
	if o.include {
		fmt.Fprintf(out, "%s %s\n", resp.Proto, resp.Status)
		showHeaders(out, "", resp.Header)
		fmt.Fprintln(out)
	}
	if _, err := io.Copy(out, resp.Body); err != nil {
		return err
	}
	fmt.Fprint(cmd.OutOrStdout(), strings.NewReplacer("%{http_code}", fmt.Sprint(resp.StatusCode), `\n`, "\n").Replace(o.writeOut))
	return nil
}

func showHeaders(w io.Writer, prefix string, h http.Header) {
	var b strings.Builder
	_ = h.Write(&b) // a builder takes everything
	for line := range strings.Lines(b.String()) {
		fmt.Fprint(w, prefix, strings.TrimSuffix(line, "\r\n"), "\n")
	}
}
