// Command etcd is upstream's etcd server, built from its published module.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"

	"github.com/meshproof/meshproof/clusters/local/node/internal/trim"
)

func main() {
	trim.Start(20)
	etcdmain.Main(os.Args)
}
