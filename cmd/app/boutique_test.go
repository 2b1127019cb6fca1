package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// shop starts the boutique, each service by start, and returns the address of its pages.
func shop(t *testing.T, start func(role string, args ...string) string) string {
	at := map[string]string{}
	flags := func(names ...string) []string {
		services := map[string]string{
			"ads": "adservice", "cart": "cartservice", "catalog": "productcatalogservice", "checkout": "checkoutservice", "currency": "currencyservice",
			"email": "emailservice", "payment": "paymentservice", "recommendations": "recommendationservice", "shipping": "shippingservice",
		}
		var out []string
		for _, n := range names {
			out = append(out, "--"+n, at[services[n]])
		}
		return out
	}
	at["redis-cart"] = start("redis-cart")
	at["cartservice"] = start("cartservice", "--redis", at["redis-cart"], "--cluster", "remote")
	for _, leaf := range []string{"productcatalogservice", "currencyservice", "shippingservice", "paymentservice", "emailservice", "adservice"} {
		at[leaf] = start(leaf)
	}
	at["recommendationservice"] = start("recommendationservice", flags("catalog")...)
	at["checkoutservice"] = start("checkoutservice", flags("cart", "catalog", "currency", "email", "payment", "shipping")...)
	return start("frontend", append(flags(frontendCalls()...), "--cluster", "control")...)
}

// visit buys something.
func visit(t *testing.T, page string) {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Jar: jar, Transport: &http.Transport{}, Timeout: 20 * time.Second}
	defer client.CloseIdleConnections()
	read := func(resp *http.Response, err error) (string, http.Header) {
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s, %v", resp.Request.URL, resp.Status, err)
		}
		return string(body), resp.Header
	}
	read(client.Get(page + "/"))
	read(client.Get(page + "/product/mug"))
	read(client.PostForm(page+"/cart", url.Values{"product_id": {"mug"}, "quantity": {"2"}}))
	body, header := read(client.PostForm(page+"/cart/checkout", url.Values{
		"email": {"someone@example.com"}, "street_address": {"1 Sample Street"}, "zip_code": {"10115"}, "city": {"Berlin"}, "country": {"Germany"},
		"credit_card_number": {"4111-1111-1111-1111"}, "credit_card_expiration_month": {"12"}, "credit_card_expiration_year": {"2199"},
		"credit_card_cvv": {"672"},
	}))
	if !strings.Contains(body, "Your order is complete") || !strings.Contains(body, "Quantity 2, $8.99 each") {
		t.Errorf("the page after the order: %s", body)
	}
	if via := header.Get("X-Meshproof-Via"); !strings.Contains(via, "cartservice/v1/cartservice-1/remote") || header.Get("X-Meshproof-Cluster") != "control" {
		t.Errorf("cluster %q, via %s", header.Get("X-Meshproof-Cluster"), via)
	}
}

// The commands, wired as in the manifest, in one process: a visit works, and each ends in order.
func TestBoutique(t *testing.T) {
	visit(t, shop(t, func(role string, args ...string) string {
		if role != "frontend" {
			args = append(args, "--health", "127.0.0.1:0")
		}
		address, _ := start(t, role, role+"-1", args...)
		if role == "frontend" {
			return address
		}
		return strings.TrimPrefix(address, "http://")
	}))
}

// shopMemory bounds what all eleven processes hold beyond the program's own pages, in KiB. Seen: 36 MiB.
const shopMemory = 64 << 10

// The services as processes of their own, as in pods, after some visits: what they hold in memory, all together.
func TestBoutiqueMemory(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("memory is read from procfs")
	}
	program := filepath.Join(t.TempDir(), "app")
	// Built plainly: this test may itself run under the race detector, which holds ten times as much.
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	var processes []*exec.Cmd
	page := shop(t, func(role string, args ...string) string {
		log := newAddressLog()
		args = append([]string{role, "--listen", "127.0.0.1:0", "--pod", role + "-1", "--drain", "10ms"}, args...)
		if role != "frontend" {
			args = append(args, "--health", "127.0.0.1:0")
		}
		ctx, cancel := context.WithCancel(context.Background())
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		cmd.WaitDelay = 10 * time.Second
		cmd.Stderr = log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			cancel()
			if err := cmd.Wait(); err != nil && cmd.ProcessState.ExitCode() != 0 {
				t.Errorf("%s: %v", role, err)
			}
		})
		processes = append(processes, cmd)
		address := log.address(t, "serving")
		if role == "frontend" {
			return "http://" + address
		}
		return address
	})
	for range 20 {
		visit(t, page)
	}
	sum := 0
	for _, p := range processes {
		kib := anonymous(t, p.Process.Pid)
		t.Logf("%-22s %5d KiB", p.Args[1], kib)
		sum += kib
	}
	t.Logf("%-22s %5d KiB", "in all", sum)
	if sum > shopMemory {
		t.Errorf("the services hold %d KiB, allowed %d", sum, shopMemory)
	}
}

// anonymous is the memory of a process that no other shares and no file backs, in KiB.
func anonymous(t *testing.T, pid int) int {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 1 && fields[0] == "Anonymous:" {
			n, err := strconv.Atoi(fields[1])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("process %d: no anonymous memory is told", pid)
	return 0
}
