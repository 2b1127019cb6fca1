package local

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

// Where a node process finds its things. These paths exist in a node's mount namespace only, so that no configuration
// depends on where the host keeps state and cache.
const (
	inBin       = "/run/meshproof/bin"
	inNode      = "/run/meshproof/node"
	inPKI       = "/run/meshproof/pki"
	criSocket   = "/run/containerd/containerd.sock"
	pauseImage  = "meshproof.dev/pause:local"
	dnsService  = "kube-dns"
	clusterZone = "cluster.local"
)

// component is one supervised process of a node.
type component struct {
	Name  string   `json:"name"` // of the binary and the log file
	Args  []string `json:"args"`
	Env   []string `json:"env,omitempty"`
	After []string `json:"after,omitempty"` // what has to answer first, in order: unix:PATH, tcp:HOST:PORT, https:HOST:PORT/PATH
	Once  bool     `json:"once,omitempty"`  // ends by itself; only a failure is reported
}

// controllers that a lab can do without are left out: storage, clouds, node addresses, bootstrap tokens, device claims.
var controllers = []string{
	"certificatesigningrequest-approving-controller", "certificatesigningrequest-signing-controller",
	"clusterrole-aggregation-controller", "cronjob-controller", "daemonset-controller", "deployment-controller",
	"disruption-controller", "endpointslice-controller", "endpointslice-mirroring-controller", "garbage-collector-controller",
	"horizontal-pod-autoscaler-controller", "job-controller", "namespace-controller", "node-lifecycle-controller",
	"pod-garbage-collector-controller", "replicaset-controller", "resourcequota-controller",
	"root-ca-certificate-publisher-controller", "serviceaccount-controller", "serviceaccount-token-controller",
	"statefulset-controller", "taint-eviction-controller", "ttl-after-finished-controller",
}

// A lab has no storage classes, no device claims and no pod groups, so these plugins would only cost informers.
var noAdmission = []string{
	"DefaultStorageClass", "StorageObjectInUseProtection", "PersistentVolumeClaimResize", "DefaultIngressClass",
	"ClusterTrustBundleAttest", "PodGroupProtection", "PodGroupWorkloadExists", "PodTopologyLabels", "NodeDeclaredFeatureValidator",
}

// components lists what runs on a node; the first node of a cluster carries the control plane.
func components(c *clusterState, n *nodeState) []component {
	list := []component{
		{Name: "containerd", Args: []string{"--config", inNode + "/etc/containerd.toml"}, Env: goEnv(60, 0)},
		{Name: "image-import", Once: true, After: []string{"unix:" + criSocket},
			Args: []string{"--address", criSocket, inNode + "/etc/pause.tar"}},
		{Name: "kubelet", Env: goEnv(50, 0), After: []string{"unix:" + criSocket}, Args: []string{
			"--config=" + inNode + "/etc/kubelet.yaml",
			"--kubeconfig=" + inPKI + "/kubelet-" + n.Name + ".conf",
			"--hostname-override=" + n.Name,
			"--node-ip=" + n.IP,
		}},
		{Name: "kube-proxy", Env: goEnv(50, 0), After: []string{apiReady(c)}, Args: []string{"--config=" + inNode + "/etc/kube-proxy.yaml"}},
	}
	if n.IP != c.Nodes[0].IP {
		return list
	}
	return append(controlPlane(c, n), list...)
}

func apiReady(c *clusterState) string {
	return fmt.Sprintf("https:%s:%d/livez", c.Nodes[0].IP, apiPort)
}

func controlPlane(c *clusterState, n *nodeState) []component {
	pki := func(f string) string { return inPKI + "/" + f }
	return []component{
		{Name: "etcd", Env: goEnv(50, 0), Args: []string{
			"--name=" + n.Name,
			"--data-dir=/var/lib/etcd",
			"--listen-client-urls=http://127.0.0.1:2379",
			"--advertise-client-urls=http://127.0.0.1:2379",
			"--listen-peer-urls=http://127.0.0.1:2380",
			"--initial-advertise-peer-urls=http://127.0.0.1:2380",
			"--initial-cluster=" + n.Name + "=http://127.0.0.1:2380",
			"--unsafe-no-fsync", // a lab does not outlive its host
			"--snapshot-count=5000",
			"--log-level=warn",
		}},
		{Name: "kube-apiserver", Env: goEnv(50, 0), Args: []string{
			"--etcd-servers=http://127.0.0.1:2379",
			"--advertise-address=" + n.IP,
			fmt.Sprintf("--secure-port=%d", apiPort),
			"--service-cluster-ip-range=" + c.ServiceCIDR,
			"--service-account-issuer=https://kubernetes.default.svc." + clusterZone,
			"--service-account-key-file=" + pki("sa.pub"),
			"--service-account-signing-key-file=" + pki("sa.key"),
			"--client-ca-file=" + pki("ca.crt"),
			"--tls-cert-file=" + pki("apiserver.crt"),
			"--tls-private-key-file=" + pki("apiserver.key"),
			"--kubelet-certificate-authority=" + pki("ca.crt"),
			"--kubelet-client-certificate=" + pki("apiserver-kubelet-client.crt"),
			"--kubelet-client-key=" + pki("apiserver-kubelet-client.key"),
			"--kubelet-preferred-address-types=InternalIP",
			"--requestheader-client-ca-file=" + pki("front-proxy-ca.crt"),
			"--requestheader-allowed-names=front-proxy-client",
			"--requestheader-username-headers=X-Remote-User",
			"--requestheader-group-headers=X-Remote-Group",
			"--requestheader-extra-headers-prefix=X-Remote-Extra-",
			"--proxy-client-cert-file=" + pki("front-proxy-client.crt"),
			"--proxy-client-key-file=" + pki("front-proxy-client.key"),
			"--authorization-mode=Node,RBAC",
			"--enable-admission-plugins=NodeRestriction",
			"--disable-admission-plugins=" + strings.Join(noAdmission, ","),
			"--allow-privileged=true",
			"--enable-aggregator-routing=true",
			"--enable-priority-and-fairness=false",
			"--max-requests-inflight=2000", "--max-mutating-requests-inflight=1000",
			"--profiling=false",
			"--etcd-count-metric-poll-period=0", "--etcd-db-metric-poll-interval=0",
			"--shutdown-delay-duration=0",
		}},
		{Name: "kube-controller-manager", Env: goEnv(50, 0), After: []string{apiReady(c)}, Args: []string{
			"--kubeconfig=" + pki("controller-manager.conf"),
			"--controllers=" + strings.Join(controllers, ","),
			"--leader-elect=false",
			"--secure-port=0",
			"--profiling=false",
			"--use-service-account-credentials=false",
			"--service-account-private-key-file=" + pki("sa.key"),
			"--root-ca-file=" + pki("ca.crt"),
			"--cluster-signing-cert-file=" + pki("ca.crt"),
			"--cluster-signing-key-file=" + pki("ca.key"),
			"--kube-api-qps=200", "--kube-api-burst=400",
			"--endpointslice-updates-batch-period=0s",
			"--node-monitor-period=2s", "--node-monitor-grace-period=40s",
			"--terminated-pod-gc-threshold=200",
		}},
		{Name: "kube-scheduler", Env: goEnv(50, 0), After: []string{apiReady(c)}, Args: []string{"--config=" + inNode + "/etc/kube-scheduler.yaml", "--secure-port=0"}},
		{Name: "coredns", Env: goEnv(50, 0), After: []string{apiReady(c)}, Args: []string{"-conf", inNode + "/etc/Corefile"}},
	}
}

// goEnv trades processor time for memory: components are idle most of the time. A limit of 0 MiB means none.
func goEnv(gogc, limitMiB int) []string {
	env := []string{fmt.Sprintf("GOGC=%d", gogc)}
	if limitMiB > 0 {
		env = append(env, fmt.Sprintf("GOMEMLIMIT=%dMiB", limitMiB))
	}
	return env
}

// writeNode writes a node's configuration files and the folders that its namespaces mount.
func writeNode(c *clusterState, n *nodeState, cgroup string) error {
	for _, d := range []string{"etc/cni", "logs", "var/lib/kubelet", "var/log", "var/tmp", "var/cache"} {
		if err := os.MkdirAll(filepath.Join(n.Dir, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.Symlink("/run", filepath.Join(n.Dir, "var/run")); err != nil && !os.IsExist(err) {
		return err
	}
	hosts := "127.0.0.1 localhost\n::1 localhost ip6-localhost\n"
	for _, m := range c.Nodes {
		hosts += m.IP + " " + m.Name + "\n"
	}
	files := map[string]string{
		"etc/hosts":           hosts,
		"etc/resolv.conf":     "nameserver " + c.DNSIP + "\n",
		"etc/containerd.toml": containerdConfig,
		"etc/Corefile":        fmt.Sprintf(corefile, c.PodCIDR, c.ServiceCIDR, inPKI),
	}
	for name, v := range map[string]any{
		"etc/kubelet.yaml":         kubeletConfig(c, n, cgroup),
		"etc/kube-proxy.yaml":      proxyConfig(c, n),
		"etc/kube-scheduler.yaml":  schedulerConfig(),
		"etc/cni/10-mesh.conflist": cniConfig(n),
	} {
		marshal := yaml.Marshal
		if strings.HasSuffix(name, ".conflist") {
			marshal = json.Marshal
		}
		b, err := marshal(v)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		files[name] = string(b)
	}
	for name, content := range files {
		if err := writeFile(filepath.Join(n.Dir, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

type object = map[string]any

func kubeletConfig(c *clusterState, n *nodeState, cgroup string) object {
	return object{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"address":                  "0.0.0.0",
		"healthzPort":              0,
		"authentication":           object{"anonymous": object{"enabled": false}, "webhook": object{"enabled": false}, "x509": object{"clientCAFile": inPKI + "/ca.crt"}},
		"authorization":            object{"mode": "AlwaysAllow"}, // only holders of a certificate of the lab's CA get this far
		"tlsCertFile":              inPKI + "/kubelet-" + n.Name + ".crt",
		"tlsPrivateKeyFile":        inPKI + "/kubelet-" + n.Name + ".key",
		"containerRuntimeEndpoint": "unix://" + criSocket,
		"cgroupDriver":             "cgroupfs",
		"cgroupRoot":               "/" + cgroup + "/" + n.Name + "/pods",
		"enforceNodeAllocatable":   []string{"none"},
		"failCgroupV1":             false,
		"failSwapOn":               false,
		// The node makes these sysctls look as kubelet wants them, so that the host's stay as they are.
		"protectKernelDefaults":       true,
		"makeIPTablesUtilChains":      false,
		"oomScoreAdj":                 0,
		"clusterDomain":               clusterZone,
		"clusterDNS":                  []string{c.DNSIP},
		"resolvConf":                  "/etc/resolv.conf",
		"volumePluginDir":             "/var/lib/kubelet/volume-plugins",
		"maxPods":                     250,
		"serializeImagePulls":         false,
		"registryPullQPS":             0,
		"eventRecordQPS":              0,
		"kubeAPIQPS":                  200,
		"kubeAPIBurst":                400,
		"nodeStatusUpdateFrequency":   "10s",
		"imageGCHighThresholdPercent": 100,
		// Full disks are the host's business: a lab must not evict pods because of them.
		"evictionHard":                              object{"memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%", "imagefs.inodesFree": "0%"},
		"localStorageCapacityIsolation":             false,
		"enableProfilingHandler":                    false,
		"enableSystemLogHandler":                    false,
		"shutdownGracePeriod":                       "0s",
		"configMapAndSecretChangeDetectionStrategy": "Watch",
		"imagePullCredentialsVerificationPolicy":    "NeverVerify",
	}
}

func proxyConfig(c *clusterState, n *nodeState) object {
	return object{
		"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
		"clientConnection":   object{"kubeconfig": inPKI + "/proxy.conf"},
		"hostnameOverride":   n.Name,
		"mode":               "nftables",
		"clusterCIDR":        c.PodCIDR,
		"nftables":           object{"minSyncPeriod": "50ms", "syncPeriod": "30s"},
		"conntrack":          object{"maxPerCore": 0, "min": 0},
		"oomScoreAdj":        0,
		"healthzBindAddress": "127.0.0.1:10256",
		"metricsBindAddress": "127.0.0.1:10249",
		"enableProfiling":    false,
	}
}

func schedulerConfig() object {
	return object{
		"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
		"clientConnection":         object{"kubeconfig": inPKI + "/scheduler.conf", "qps": 200, "burst": 400},
		"leaderElection":           object{"leaderElect": false},
		"enableProfiling":          false,
		"parallelism":              4,
		"podInitialBackoffSeconds": 1,
	}
}

func cniConfig(n *nodeState) object {
	return object{
		"cniVersion": "1.0.0", "name": "meshproof",
		"plugins": []object{
			{
				"type": "ptp", "mtu": 1500,
				"ipam": object{
					"type": "host-local", "dataDir": "/run/cni-ipam",
					"ranges": [][]object{{{"subnet": n.PodCIDR}}},
					"routes": []object{{"dst": "0.0.0.0/0"}},
				},
			},
			{"type": "portmap", "capabilities": object{"portMappings": true}, "backend": "nftables"},
		},
	}
}

const containerdConfig = `version = 4
root = '/var/lib/containerd'
state = '/run/containerd'
disabled_plugins = [
  'io.containerd.nri.v1.nri', 'io.containerd.internal.v1.tracing', 'io.containerd.tracing.processor.v1.otlp',
  'io.containerd.monitor.container.v1.restart', 'io.containerd.image-verifier.v1.bindir',
  'io.containerd.snapshotter.v1.blockfile', 'io.containerd.snapshotter.v1.erofs', 'io.containerd.differ.v1.erofs',
  'io.containerd.mount-handler.v1.erofs', 'io.containerd.internal.v1.opt',
]

[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '` + pauseImage + `'

[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true # the host may lack CAP_SYS_RESOURCE
  enable_criu = false
  enable_cdi = false

[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ['` + inBin + `']
  conf_dir = '` + inNode + `/etc/cni'
  use_internal_loopback = true

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'

[plugins.'io.containerd.metadata.v1.bolt']
  no_sync = true # a lab does not outlive its host

[plugins.'io.containerd.server.v1.grpc']
  address = '` + criSocket + `'

[plugins.'io.containerd.server.v1.ttrpc']
  address = '` + criSocket + `.ttrpc'
`

// The zone of the cluster and reverse zones only: nothing is ever asked outside, other names do not exist.
const corefile = `.:53 {
    errors
    ready 127.0.0.1:8181
    cache 5 {
        disable denial
    }
    kubernetes cluster.local %[1]s %[2]s {
        kubeconfig %[3]s/coredns.conf
        pods insecure
        ttl 5
    }
}
`
