package layering

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/meshproof/meshproof/"

// A rule forbids that any package under From reaches, directly or through packages of this module, anything under one of
// To. A To with a dot in its first element is somebody else's module; only what our own packages import is looked at there.
type rule struct {
	from   string
	to     []string
	except []string // packages under from that may
	tests  bool     // tests may
	why    string
}

var rules = []rule{
	{from: "clusters", to: []string{"loadgen", "mesh", "reports", "scenarios", "fixtures", "cmd"}, why: "clusters serve any mesh and any test"},
	{from: "loadgen", to: []string{"clusters", "mesh", "reports", "scenarios", "fixtures", "cmd"}, why: "load is of use without a lab"},
	{from: "loadgen", to: []string{"k8s.io", "sigs.k8s.io", "istio.io"}, why: "loadgen never sees Kubernetes"},
	{from: "reports", to: []string{"clusters", "loadgen", "mesh", "scenarios", "fixtures", "cmd"}, why: "reports outlive runs: they see evidence only"},
	{from: "reports", to: []string{"k8s.io", "sigs.k8s.io", "istio.io"}, why: "reports see evidence only"},
	{from: "mesh", to: []string{"clusters", "loadgen", "reports", "scenarios", "fixtures"}, why: "the mesh must not know that it is being tested"},
	{from: "mesh", to: []string{"cmd"}, why: "nothing imports cmd"},
	{from: "scenarios", to: []string{"cmd"}, why: "nothing imports cmd"},
	{from: "cmd", to: []string{"sigs.k8s.io/e2e-framework"}, why: "what tests wait with stays out of the binaries"},
	{from: "fixtures", to: []string{"clusters", "loadgen", "mesh", "reports", "scenarios", "cmd"}, why: "fixtures are data and small apps"},
	{from: "mesh/identity", to: []string{"mesh/objects", "mesh/model", "mesh/xds", "mesh/proxy", "k8s.io"}, why: "identity is a leaf"},
	{from: "mesh/model", to: []string{"mesh/ingest", "mesh/translate", "mesh/xds", "mesh/proxy", "mesh/ca", "mesh/inject", "mesh/install", "mesh/operator", "mesh/multicluster", "mesh/status"}, why: "model imports objects and identity"},
	{from: "mesh/analyze", to: []string{"mesh/ingest", "mesh/translate", "mesh/xds", "mesh/proxy"}, why: "analysis looks at objects alone"},
	{from: "mesh/translate", to: []string{"mesh/ingest", "mesh/xds/server", "mesh/proxy", "mesh/ca", "mesh/inject", "mesh/install", "mesh/operator", "mesh/multicluster", "k8s.io/client-go"}, why: "translation is pure"},
	{from: "mesh/proxy", to: []string{"mesh/objects", "mesh/model", "mesh/translate", "mesh/ingest", "mesh/ca", "mesh/inject", "mesh/install", "mesh/operator", "mesh/status", "mesh/xds/server", "k8s.io"}, why: "the data plane reads xDS only"},
	{from: "mesh/proxy/conf", to: []string{"google.golang.org/protobuf", "github.com/envoyproxy"}, why: "runtime config holds no protos"},
	{from: "mesh/proxy/router", to: []string{"github.com/envoyproxy"}, why: "only decode and state touch protos"},
	{from: "mesh/proxy/listener", to: []string{"github.com/envoyproxy"}, why: "only decode and state touch protos"},
	{from: "mesh/proxy/filter", to: []string{"github.com/envoyproxy"}, why: "only decode and state touch protos"},
	{from: "mesh/proxy/upstream", to: []string{"github.com/envoyproxy"}, why: "only decode and state touch protos"},
	{from: "mesh/proxy/outlier", to: []string{"github.com/envoyproxy"}, why: "only decode and state touch protos"},
	{from: "mesh/proxy/breaker", to: []string{"github.com/envoyproxy"}, why: "only decode and state touch protos"},
	{from: "mesh/proxy/balance", to: []string{"github.com/envoyproxy"}, why: "only decode and state touch protos"},
	{from: "mesh/proxy/pool", to: []string{"github.com/envoyproxy"}, why: "only decode and state touch protos"},
	{from: "mesh/proxy/http2", to: []string{"github.com/envoyproxy"}, why: "only decode and state touch protos"},
	{from: "mesh/proxy/telemetry", to: []string{"github.com/envoyproxy"}, why: "only decode and state touch protos"},
	{from: "mesh/proxy/admin", to: []string{"github.com/envoyproxy"}, tests: true, why: "only decode and state touch protos; tests read its pages as Envoy's types"},
	{from: "mesh/proxy/http1", to: []string{"github.com/envoyproxy", "google.golang.org/protobuf", "mesh/proxy/router"}, why: "the codec knows HTTP only"},
	{from: "mesh/xds/server", to: []string{"mesh/proxy", "mesh/ingest", "mesh/ca", "k8s.io/client-go"}, why: "the server knows sets and streams"},
}

type source struct {
	imports map[string][]string // package -> what its non-test files import
	tests   map[string][]string
	docs    map[string][]string // package -> files that carry a package comment
	names   map[string]string
	bans    []string
	leaks   map[string]bool // packages whose tests look for goroutines that are left
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the test")
		}
	}
}

func load(t *testing.T) source {
	t.Helper()
	top := root(t)
	s := source{imports: map[string][]string{}, tests: map[string][]string{}, docs: map[string][]string{}, names: map[string]string{}, leaks: map[string]bool{}}
	fset := token.NewFileSet()
	err := filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			base := d.Name()
			_, nested := os.Stat(filepath.Join(p, "go.mod"))
			if p != top && (base == "testdata" || strings.HasPrefix(base, ".") || nested == nil || base == "bin" || base == "runs") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		f, err := parser.ParseFile(fset, p, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(top, p)
		if err != nil {
			return err
		}
		pkg := filepath.ToSlash(filepath.Dir(rel))
		isTest := strings.HasSuffix(p, "_test.go")
		s.leaks[pkg] = s.leaks[pkg] || isTest && checksLeaks(f)
		for _, i := range f.Imports {
			name, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			name = strings.TrimPrefix(name, module)
			if isTest {
				s.tests[pkg] = append(s.tests[pkg], name)
			} else {
				s.imports[pkg] = append(s.imports[pkg], name)
			}
		}
		if !isTest {
			s.names[pkg] = f.Name.Name
			if _, ok := s.imports[pkg]; !ok {
				s.imports[pkg] = nil
			}
			if f.Doc != nil {
				s.docs[pkg] = append(s.docs[pkg], rel)
			}
			s.bans = append(s.bans, banned(fset, f, rel, pkg)...)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// checksLeaks says whether a file calls goleak; specs.Main runs end-to-end tests, of which ginkgo keeps goroutines.
func checksLeaks(f *ast.File) (found bool) {
	ast.Inspect(f, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok {
			id, _ := sel.X.(*ast.Ident)
			found = found || id != nil && (id.Name == "goleak" && slices.Contains([]string{"VerifyTestMain", "Find"}, sel.Sel.Name) || id.Name == "specs" && sel.Sel.Name == "Main")
		}
		return !found
	})
	return found
}

func under(pkg, prefix string) bool { return pkg == prefix || strings.HasPrefix(pkg, prefix+"/") }

// reach returns a path of imports from pkg, its tests too if tests is true, to something under target, or nil.
func (s source) reach(pkg, target string, tests bool) []string {
	type step struct {
		pkg  string
		path []string
	}
	seen := map[string]bool{pkg: true}
	queue := []step{{pkg, []string{pkg}}}
	for _, i := range s.tests[pkg] {
		if tests && under(i, target) {
			return []string{pkg + " (test)", i}
		}
	}
	for len(queue) > 0 {
		at := queue[0]
		queue = queue[1:]
		for _, i := range s.imports[at.pkg] {
			if seen[i] {
				continue
			}
			seen[i] = true
			next := append(slices.Clone(at.path), i)
			if under(i, target) {
				return next
			}
			if _, ours := s.imports[i]; ours {
				queue = append(queue, step{i, next})
			}
		}
	}
	return nil
}

func TestImports(t *testing.T) {
	s := load(t)
	for _, r := range rules {
		for pkg := range s.imports {
			if !under(pkg, r.from) || slices.ContainsFunc(r.except, func(e string) bool { return under(pkg, e) }) {
				continue
			}
			for _, to := range r.to {
				if p := s.reach(pkg, to, !r.tests); p != nil {
					t.Errorf("%s must not reach %s (%s): %s", pkg, to, r.why, strings.Join(p, " -> "))
				}
			}
		}
	}
}

// A rule about what is not there forbids nothing.
func TestRulesAreAboutWhatIsThere(t *testing.T) {
	s := load(t)
	there := func(prefix string) bool {
		for pkg, imports := range s.imports {
			if under(pkg, prefix) || strings.Contains(prefix, ".") && slices.ContainsFunc(imports, func(i string) bool { return under(i, prefix) }) {
				return true
			}
		}
		return false
	}
	for _, r := range rules {
		for _, prefix := range slices.Concat([]string{r.from}, r.to, r.except) {
			if !there(prefix) {
				t.Errorf("rule of %s (%s): there is no %s", r.from, r.why, prefix)
			}
		}
	}
}

// Goroutines that outlive their tests are seen in every package.
func TestTestsCheckForLeaks(t *testing.T) {
	s := load(t)
	for pkg := range s.tests {
		if !s.leaks[pkg] {
			t.Errorf("%s: its tests have no TestMain that calls goleak", pkg)
		}
	}
}

func TestOnlyMeshtestImportsBothHalves(t *testing.T) {
	s := load(t)
	for pkg := range s.imports {
		if !under(pkg, "mesh") || under(pkg, "mesh/meshtest") {
			continue
		}
		if s.reach(pkg, "mesh/proxy", true) != nil && s.reach(pkg, "mesh/translate", true) != nil {
			t.Errorf("%s reaches both mesh/proxy and mesh/translate: only mesh/meshtest may", pkg)
		}
	}
}

func TestFoldersAreTheSeven(t *testing.T) {
	allowed := []string{"cmd", "clusters", "mesh", "loadgen", "scenarios", "reports", "fixtures"}
	for pkg := range load(t).imports {
		if first, _, _ := strings.Cut(pkg, "/"); !slices.Contains(allowed, first) {
			t.Errorf("%s: code lives only in %s", pkg, strings.Join(allowed, ", "))
		}
	}
}

func TestPackageDocs(t *testing.T) {
	s := load(t)
	for pkg := range s.imports {
		switch docs := s.docs[pkg]; len(docs) {
		case 1:
		case 0:
			t.Errorf("%s: no file has a package comment", pkg)
		default:
			sort.Strings(docs)
			t.Errorf("%s: more than one package comment: %s", pkg, strings.Join(docs, ", "))
		}
		if base := path.Base(pkg); slices.Contains([]string{"util", "utils", "common", "helpers", "misc"}, base) {
			t.Errorf("%s: name the package after what it does", pkg)
		}
	}
}

// bans maps a call to why it is not made outside the folders named.
var bans = map[string]struct {
	allow []string
	why   string
}{
	// The keeper and the node inits of the embedded cluster are processes of their own that have no main of their own.
	"os.Exit":      {[]string{"cmd", "clusters/local"}, "only mains end the process"},
	"log.Fatal":    {nil, "return an error"},
	"log.Fatalf":   {nil, "return an error"},
	"os.Getenv":    {[]string{"cmd"}, "no hidden inputs: the environment is read in cmd"},
	"os.LookupEnv": {[]string{"cmd"}, "no hidden inputs: the environment is read in cmd"},
	"time.Sleep":   {nil, "wait for a condition with a context"},
	"fmt.Println":  {nil, "write to the stream that was given"},
	"fmt.Printf":   {nil, "write to the stream that was given"},
}

func banned(fset *token.FileSet, f *ast.File, rel, pkg string) []string {
	if f.Name.Name == "main" {
		return nil
	}
	var out []string
	ast.Inspect(f, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		sel, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		id, ok := sel.X.(*ast.Ident)
		if !ok || id.Obj != nil {
			return true
		}
		b, ok := bans[id.Name+"."+sel.Sel.Name]
		if !ok || slices.ContainsFunc(b.allow, func(a string) bool { return under(pkg, a) }) {
			return true
		}
		out = append(out, rel+":"+strconv.Itoa(fset.Position(call.Pos()).Line)+": "+id.Name+"."+sel.Sel.Name+": "+b.why)
		return true
	})
	return out
}

func TestBannedCalls(t *testing.T) {
	for _, b := range load(t).bans {
		t.Error(b)
	}
}

// The checks above are only worth something if they can fail.
func TestReachFindsAChain(t *testing.T) {
	s := source{imports: map[string][]string{"a": {"b"}, "b": {"c/d", "x.io/y"}, "c/d": nil}, tests: map[string][]string{"c/d": {"a"}}}
	if got := strings.Join(s.reach("a", "c", true), " "); got != "a b c/d" {
		t.Errorf("a to c: %q", got)
	}
	if got := strings.Join(s.reach("a", "x.io", true), " "); got != "a b x.io/y" {
		t.Errorf("a to x.io: %q", got)
	}
	if s.reach("c/d", "b", true) != nil {
		t.Error("c/d does not reach b")
	}
	if s.reach("c/d", "a", true) == nil {
		t.Error("a test's import must count")
	}
	if s.reach("c/d", "a", false) != nil {
		t.Error("a test's import must not count where tests may")
	}
}
