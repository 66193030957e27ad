// Go's crypto/tls on either side of mutual TLS.
//
//	tls_peer client ADDRESS NAME ROOTS CERTIFICATE KEY   prints the answer to one request
//	tls_peer server ADDRESS ROOTS CERTIFICATE KEY        answers who asked, until it is killed
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
)

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func config(roots, certificate, key string) (*tls.Config, *x509.CertPool) {
	pem, err := os.ReadFile(roots)
	must(err)
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		must(fmt.Errorf("no roots in %s", roots))
	}
	pair, err := tls.LoadX509KeyPair(certificate, key)
	must(err)
	return &tls.Config{Certificates: []tls.Certificate{pair}}, pool
}

func main() {
	switch os.Args[1] {
	case "client":
		address, name := os.Args[2], os.Args[3]
		tlsConfig, pool := config(os.Args[4], os.Args[5], os.Args[6])
		tlsConfig.RootCAs, tlsConfig.ServerName = pool, name
		client := http.Client{Transport: &http.Transport{TLSClientConfig: tlsConfig}}
		response, err := client.Get("https://" + address + "/")
		must(err)
		body, err := io.ReadAll(response.Body)
		must(err)
		if response.StatusCode != 200 {
			must(fmt.Errorf("%s: %s", response.Status, body))
		}
		fmt.Print(string(body))
	case "server":
		tlsConfig, pool := config(os.Args[3], os.Args[4], os.Args[5])
		tlsConfig.ClientCAs, tlsConfig.ClientAuth = pool, tls.RequireAndVerifyClientCert
		listener, err := tls.Listen("tcp", os.Args[2], tlsConfig)
		must(err)
		handler := func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "SUCCESS|%s\n", r.TLS.PeerCertificates[0].Subject)
		}
		must(http.Serve(listener, http.HandlerFunc(handler)))
	}
}
