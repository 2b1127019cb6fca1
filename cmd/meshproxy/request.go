package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func requestCommand() *cobra.Command {
	var admin string
	cmd := &cobra.Command{
		Use: "request METHOD PATH", Short: "Call the admin port of the proxy in this pod", Args: cobra.ExactArgs(2),
		Example: "  meshproxy request GET config_dump",
		RunE: func(cmd *cobra.Command, args []string) error {
			url := "http://" + admin + "/" + strings.TrimPrefix(args[1], "/")
			req, err := http.NewRequestWithContext(cmd.Context(), strings.ToUpper(args[0]), url, nil)
			if err != nil {
				return err
			}
			c := http.Client{Timeout: 60 * time.Second}
			resp, err := c.Do(req)
			if err != nil {
				return fmt.Errorf("admin port: %w", err)
			}
			defer func() { _ = resp.Body.Close() }()
			if _, err := io.Copy(cmd.OutOrStdout(), resp.Body); err != nil {
				return fmt.Errorf("admin port: %w", err)
			}
			if resp.StatusCode >= 400 {
				return fmt.Errorf("%s: %s", url, resp.Status)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&admin, "admin", "127.0.0.1:15000", "address of the admin port")
	return cmd
}
